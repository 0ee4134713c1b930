"""Files that are on the SSD alone: what is refused and said for their sake, by the daemon, ``check`` and ``accept``.

An SSD that is not mounted leaves an empty folder; a mount without the moved files would show a library with holes, and
Plex would take them for deleted. So would a source that is looked at below the mount, or another disk in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from cachefs.config import Config
from cachefs.errors import CannotMount, UserError
from cachefs.fs.homes import Homes
from cachefs.fs.keepings import kept_in
from cachefs.fs.union import Union
from cachefs.model import SourceName
from cachefs.units import format_size

log = logging.getLogger(__name__)


def count(source: Path) -> int:
    """How many files the source keeps places for; 0 where that cannot be seen. Blocks."""
    with suppress(OSError):
        return kept_in(source)
    return 0


async def refuse_without(cache: Path, union: Union, homes: Homes, knows: Callable[[SourceName], bool]) -> None:
    """Refuse to mount where a source keeps places for files that have moved to another cache folder than this one, as
    far as it ``knows``: that of an SSD that is not mounted, whatever was copied since to where it was. Raises
    ``CannotMount``.

    A source that does not answer now shows its files as they were seen last, the moved ones too.
    """
    for source in union.sources.values():
        if knows(source.name):
            continue
        try:
            kept = await homes.count_kept(source)
        except OSError as error:
            log.debug("%s: %s", source.name, error)
            continue
        if kept:
            raise CannotMount(refusal(cache, Path(source.path), source.name, kept))


def refusal(cache: Path, source: Path, name: str, kept: int) -> str:
    """What is said where a source keeps so many places."""
    return (
        f"source {name} has moved {_files(kept)} to an SSD, and the cache folder {cache} holds none of them: is the "
        "SSD mounted? Without it they would be missing in the mount. If they are at home again, or lost for good, "
        f"remove {source}/.cachefs-moved; but first copy to the source what there is in {cache}/files/{name}: files "
        "that say nothing of themselves, since their extended attributes were lost on the way to another SSD, may be "
        "the ones"
    )


def held(sizes: Collection[int]) -> str:
    """What the SSD holds, of files with these sizes."""
    return f"the SSD holds the only copy of {_files(len(sizes))} ({format_size(sum(sizes))})"


def in_place(config: Config, sizes: Collection[int]) -> str:
    """What is said where the mount lies over the source, and the SSD has files with these sizes; else nothing. Who
    mounted elsewhere before, in move mode, has files that Plex misses as soon as cachefs stops."""
    if not (sizes and config.in_place):
        return ""
    return (
        f"{held(sizes)}, and whoever looks below {config.mountpoint} while cachefs is stopped finds them gone; "
        "bring them home: cachefs restore --all"
    )


def refuse_other_disk(name: str, path: Path, away: int) -> None:
    """Ask once more before a source is taken as it is now, whose files are on the SSD. Raises ``UserError``."""
    if away:
        raise UserError(
            f"the SSD holds the only copy of {_files(away)} of source {name}: from here on they would come home to "
            f"what is in {path} now. If that is the right disk, cachefs accept --moved {name}"
        )


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"
