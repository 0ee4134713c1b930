"""A source is taken as it is now, because a person says so: what that takes, with a running daemon and without one.

Used by ``engine``, and by ``cli``. A folder that is not there is never accepted: what comes in its
place later would be believed whatever it is, an empty mountpoint too.
"""

from __future__ import annotations

import os
from collections import Counter

import trio

from cachefs import abroad, building
from cachefs.cache.belonging import moved_in
from cachefs.cache.metadata import forget_source
from cachefs.config import Config, SourceConfig
from cachefs.errors import SourceTimeout, UserError


def not_there(path: str, error: OSError) -> UserError:
    """What is said where no folder can be accepted."""
    return UserError(f"{path} {_problem(error)}: mount its disk, or make the folder, first; nothing is accepted")


def _problem(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if isinstance(error, NotADirectoryError):
        return "is no folder"
    return "does not answer" if isinstance(error, SourceTimeout) else f"cannot be read ({error.strerror})"


async def for_next_start(config: Config, source: SourceConfig, *, moved: bool) -> None:
    """While no daemon has the cache folder. Raises ``UserError`` and ``CacheError``."""
    root = str(config.cache.path)
    try:
        found = await building.source_of(config, source).look_anew()
    except OSError as error:
        raise not_there(str(source.path), error) from error
    found.close()
    if not await trio.to_thread.run_sync(os.path.lexists, f"{root}/lock"):
        raise UserError(
            f"{root} is no cache folder that cachefs has used: is the SSD mounted? Before the first start of cachefs "
            "there is nothing to accept"
        )
    if not moved:
        on_ssd = await trio.to_thread.run_sync(moved_in, root)
        abroad.refuse_other_disk(source.name, source.path, sum(key.source == source.name for key in on_ssd.sizes))
    await forget_source(root, source.name)


def homeless(config: Config, source: SourceConfig) -> str:
    """What is said of moved files whose folders are not in what was accepted; empty when there are none. Blocks."""
    moved = moved_in(str(config.cache.path)).sizes
    folders = Counter(os.path.dirname(key.path) for key in moved if key.source == source.name)
    count = sum(files for folder, files in folders.items() if not os.path.isdir(source.path / folder))
    if not count:
        return ""
    have, them = ("one moved file has", "it") if count == 1 else (f"{count} moved files have", "them")
    return f"{have} no folder there; cachefs restore --all brings {them} back"
