"""Whose cache folder it is, and of which files it holds the only copy: what forbids to use it for other sources.

Asked by ``cache.recovery`` at a start, and by ``check``, which must not open the index: it may be another process's.
Decides and words; changes nothing in the folder. Blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cachefs.cache import inside, keepsake
from cachefs.cache.adoption import key_of, label_of
from cachefs.cache.folder import TREES, refuse_foreign
from cachefs.cache.schema import SCHEMA_VERSION, newer
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, FileKey, SourceName

_LOOKS = 5
"""How often a folder is listed anew that somebody changes meanwhile."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The files, with their sizes, of which a cache folder holds the only copy. ``all_known``: there is no other file
    that may be one."""

    sizes: Mapping[FileKey, int]
    all_known: bool = True

    def beside(self, sources: Iterable[SourceName]) -> tuple[FileKey, ...]:
        """Those of other sources than these."""
        known = frozenset(sources)
        return tuple(sorted(key for key in self.sizes if key.source not in known))


def moved_rows(entries: Iterable[CacheEntry]) -> Moved:
    """What the index says."""
    return Moved({entry.key: entry.size for entry in entries if entry.home is not None})


def moved_files(root: str, published: Iterable[str]) -> Moved:
    """What the files with these names, relative to the cache folder, say of themselves. One that says nothing may have
    lost what it said, on the way to another SSD."""
    sizes, all_known = {}, True
    for name in published:
        key = key_of(name)
        try:
            said = label_of(root, name, key) if key is not None else None
        except OSError:
            said = None
        if said is None:
            all_known = False
        elif said.home is not None:
            sizes[said.file.key] = said.file.size
    return Moved(sizes, all_known)


def moved_in(root: str) -> Moved:
    """As ``moved_files``, of a folder that somebody may have in use, or that is none."""
    for _ in range(_LOOKS):
        try:
            return moved_files(root, [name for name, _ in inside.sizes(root, "files")])
        except FileNotFoundError:  # there is none, or one of its files went while it was listed
            if not os.path.isdir(f"{root}/files"):
                return Moved({})
        except OSError:
            break
    return Moved({}, all_known=False)


def knows(root: str, source: SourceName, moved: Moved) -> bool:
    """Whether files of this source have moved to the folder, as a start would find; see ``cache.moves``. ``moved`` is
    what is in it."""
    if not moved.all_known or any(key.source == source for key in moved.sizes):
        return True
    kept = keepsake.read(root)
    return kept is not None and source in kept.moved_from


def not_alone(root: str, others: tuple[str, ...]) -> str:
    """What is said of a folder that is to become a cache and holds these."""
    what = f"'{others[0]}'" if len(others) == 1 else f"{len(others)} other things, such as '{others[0]}'"
    return f"{root} holds {what}; cachefs leaves that alone, but give it a folder of its own, such as {root}/cachefs"


def identity_of(sources: Mapping[SourceName, str]) -> str:
    """What a cache folder remembers of its configuration: each source's name and path. JSON, since a path may hold
    any character."""
    return json.dumps(sources, sort_keys=True)


def check_identity(
    root: str, stored: str | None, sources: Mapping[SourceName, str], moved: Callable[[], Moved]
) -> None:
    """Refuse a folder whose copies were made from other sources. A source may come or go beside one that stays.
    ``moved`` is asked only then: what may be done about it depends on that."""
    if stored is None or stored == identity_of(sources):
        return
    before: dict[SourceName, str] = json.loads(stored)
    elsewhere = [name for name in before if name in sources and before[name] != sources[name]]
    if not elsewhere and before.keys() & sources.keys():
        return
    was = ", ".join(f"{name} at {before[name]}" for name in (elsewhere or sorted(before)))
    now = ", ".join(f"{name} at {sources[name]}" for name in (elsewhere or sorted(sources)))
    raise CacheError(
        f"the cache folder {root} belongs to another configuration: it holds copies of {was}, not of {now}"
        f"{_way_out(before, sources, moved())}"
    )


def _way_out(before: Mapping[SourceName, str], sources: Mapping[SourceName, str], moved: Moved) -> str:
    """What to do about a folder of other sources. It may be deleted only where it is known to hold no file that was
    moved."""
    names = {path: name for name, path in before.items()}
    renamed = [f"name {path} {names[path]} again" for name, path in sources.items() if names.get(path, name) != name]
    if moved.sizes:
        again = f" ({', '.join(renamed)})" if renamed else ""
        return (
            f". It holds {_only_copies(sorted(moved.sizes))}, so keep it: write the old configuration again{again}, "
            "set cache.mode to copy, mount, run cachefs restore --all, and then change it"
        )
    choice = (
        f". Either {', '.join(renamed)}, or choose another cache.path" if renamed else ". Choose another cache.path"
    )
    return f"{choice}, or delete that folder: it holds nothing but copies" if moved.all_known else choice


def refuse_strangers(root: str, moved: Moved, sources: Iterable[SourceName]) -> None:
    """Never leave the only copies of a source behind that nobody asks for any more."""
    lost = moved.beside(sources)
    if lost:
        names = ", ".join(dict.fromkeys(key.source for key in lost))
        raise CacheError(
            f"the cache folder {root} holds {_only_copies(lost)}, and there is no source {names} in the configuration. "
            "Put it back, set cache.mode to copy, mount, and run cachefs restore --all"
        )


def _only_copies(keys: tuple[FileKey, ...] | list[FileKey]) -> str:
    files = f"{len(keys)} files, such as" if len(keys) > 1 else "one file,"
    return f"the only copy of {files} {keys[0].path} of source {keys[0].source}"


def refusal(root: str, sources: Mapping[SourceName, str], moved: Moved) -> str:
    """Why a start would refuse this cache folder, or an empty text. Takes no lock and does not open the index, so that
    it can be asked at any time; what only the index knows is found by the start."""
    kept = keepsake.read(root)
    try:
        refuse_foreign(root)
        inside.refuse_foreign(root, tuple(name for name in TREES if os.path.lexists(f"{root}/{name}")))
        if kept is not None and kept.schema > SCHEMA_VERSION:
            return newer(f"{root}/index.sqlite", kept.schema)
        check_identity(root, kept.identity if kept is not None else None, sources, lambda: moved)
        refuse_strangers(root, moved, sources)
    except (CacheError, OSError) as error:
        return str(error)
    return ""
