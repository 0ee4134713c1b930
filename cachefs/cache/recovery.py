"""What a start finds in the cache folder, and what is left of it: no human is needed after a crash.

Called once by ``cache.store.open_store``, in a worker thread, before anything is served. ``reconcile`` decides from
values, ``open_folder`` carries it out.

| the crash came after             | row     | partial | published | what recovery does                            |
| -------------------------------- | ------- | ------- | --------- | --------------------------------------------- |
| the partial file was made        | none    | yes     | no        | the file goes                                 |
| begin, chunks, checkpoints       | copying | yes     | no        | kept; the copy goes on from its ranges        |
| the rename                       | copying | no      | yes       | row and file go: nothing vouches for the name |
| the row                          | cached  | no      | yes       | kept; not served before the source was asked  |
| a drop in memory                 | as was  | as was  | as was    | kept; the fingerprint tells when it is asked  |
| a drop's row deletion            | none    | perhaps | perhaps   | the files go                                  |
| a drop on a full SSD             | as was  | no      | no        | the row goes: there the file goes first       |

A file that says of itself that it was moved never goes, nor one of which nobody can tell: it may be the only one. What
moved files say is the truth, and the rows follow (``cache.following``). What their sources have of them is asked later
(``cache.moving``).

An index that was not closed in peace, or is not that of the last start (an older one was put back), is compared with
what all files say. Where it is not that of the last start, or was lost, files that say nothing at all are set aside:
they stay, and are used for nothing, until ``cache.verify`` finds that their sources have them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from cachefs.cache import keepsake
from cachefs.cache.adoption import adopt, key_of, only_copy, says_nothing
from cachefs.cache.belonging import (
    Moved,
    check_identity,
    identity_of,
    moved_files,
    moved_rows,
    not_alone,
    refuse_strangers,
)
from cachefs.cache.folder import Contents, Folder, Mark, strangers
from cachefs.cache.following import Following, follow, write_labels
from cachefs.cache.full import NO_ROOM
from cachefs.cache.index import Index
from cachefs.cache.keepsake import Keepsake
from cachefs.cache.label import Label
from cachefs.errors import CacheError, IndexDamaged, IndexFull
from cachefs.model import Asked, CacheEntry, EntryState, Pin, SourceName
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

log = logging.getLogger(__name__)

_FULL = (
    "the SSD is full: the cache folder %s can be read but not written. What it holds (copies: %d) is served, "
    "everything else comes from the sources; nothing is copied before there is room"
)
_SILENT = (
    "files on the SSD that say nothing of themselves, and may be the only ones, are kept and not used: %d, such as "
    "%s/%s. cachefs verify tells which of them their sources have; --repair removes those"
)


_LOST = (
    "was moved to the SSD, and is not there: it was removed behind cachefs. Put it back there, or (from a backup) at "
    "its source; cachefs verify --repair forgets it"
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found, in numbers, for the log; and whether cachefs had died before it."""

    kept: int = 0
    resumable: int = 0
    rows_dropped: int = 0
    files_removed: int = 0
    after_crash: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stays, which rows go, and which files (relative to the cache folder) go after them."""

    keep: tuple[CacheEntry, ...]
    rows: tuple[int, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A cache folder after recovery, locked and consistent."""

    folder: Folder
    index: Index
    entries: tuple[CacheEntry, ...]
    pins: tuple[Pin, ...]
    asked: tuple[Asked, ...]
    next_id: int
    recovery: Recovery
    kept: Keepsake | None
    """What is written down a second time; None when the SSD has no room for it."""
    rows_left: frozenset[int] = frozenset()
    """Rows that have to go, once the index can be written."""
    late: tuple[CacheEntry, ...] = ()
    """Entries whose rows are to be written, once the index can be."""
    aside: Mapping[str, int] = field(default_factory=dict)
    """Files that are nobody's and must not be removed, with their sizes: they may be the only ones."""
    moved_from: frozenset[SourceName] = frozenset()
    """The sources from which files have moved to this folder (``cache.schema``), as far as it can be the one that they
    moved to: none where it holds nothing but what may be such a file, or has lost all that there was."""


def reconcile(entries: Iterable[CacheEntry], contents: Contents, sources: frozenset[SourceName]) -> Verdict:
    """Which entries have the file they speak of, and which files have an entry that speaks of them."""
    keep, rows, claimed = [], [], set()
    for entry in entries:
        name = _file_name(entry)
        if entry.key.source in sources and _is_whole(entry, name, contents):
            keep.append(_as_found(entry, contents))
            claimed.add(name)
        elif entry.home is not None:
            log.error("%s %s", entry.key, _LOST)
        else:
            rows.append(entry.id)
    found = (*contents.partial, *contents.published)
    return Verdict(tuple(keep), tuple(rows), tuple(name for name in found if name not in claimed))


def open_folder(root: str, sources: Mapping[SourceName, str]) -> Opened:
    """Lock the folder, open its index, recover. Raises ``CacheError``; then nothing is held."""
    others = strangers(root)
    folder = Folder.take(root)
    if others:
        log.warning("cache.path %s", not_alone(root, others))
    return _open(folder, sources)


def open_again(root: str, sources: Mapping[SourceName, str], mark: Mark, gone: Iterable[int]) -> Opened:
    """As ``open_folder``, for a folder that was away: only if it is that folder. The entries ``gone`` were dropped
    meanwhile."""
    return _open(Folder.take_again(root, mark), sources, gone)


def _open(folder: Folder, sources: Mapping[SourceName, str], gone: Iterable[int] = ()) -> Opened:
    root = folder.root
    with ExitStack() as stack:
        stack.callback(folder.close)
        try:
            index, damage = _open_index(folder)
            stack.callback(index.close)
            kept = keepsake.read(folder.place)
            identity = index.identity()
            stored = identity if identity is not None or kept is None else kept.identity
            check_identity(root, stored, sources, lambda: _moved(folder, index, identity is not None))
            contents = folder.contents()
            refuse_strangers(root, _moved_beside(folder, index, contents, frozenset(sources)), sources)
            if identity is None:
                _rebuild(folder, index, contents, sources, kept, damage)
            if identity != identity_of(sources):
                _if_room(index, partial(index.set_identity, identity_of(sources)))
            opened = _recover(folder, index, contents, frozenset(sources), frozenset(gone))
        except OSError as error:
            raise CacheError(f"cache.path {root} cannot be used: {error}") from error
        stack.pop_all()
        return opened


def _moved(folder: Folder, index: Index, has_rows: bool) -> Moved:
    """What the folder holds the only copy of. An index that is new has no rows; then the files alone can say it."""
    files = moved_files(folder.place, folder.contents().published)
    rows = moved_rows(index.entries())
    return Moved({**files.sizes, **rows.sizes}, all_known=has_rows or files.all_known)


def _moved_beside(folder: Folder, index: Index, contents: Contents, sources: frozenset[SourceName]) -> Moved:
    """As ``_moved``, of what is no source of ours."""
    strange = [name for name in contents.published if (key := key_of(name)) is None or key.source not in sources]
    rows = moved_rows(index.entries())
    return Moved({**moved_files(folder.place, strange).sizes, **rows.sizes})


def _open_index(folder: Folder) -> tuple[Index, str]:
    """The index, and what befell the one before it if that had to be set aside."""
    try:
        return _readable_index(folder), ""
    except IndexDamaged as error:
        damage = f"{error}; it is kept as {folder.set_index_aside()}"
        return Index(folder.index), damage


def _readable_index(folder: Folder) -> Index:
    index = Index(folder.index)
    try:
        index.entries()
        index.keepsake()
    except CacheError:
        index.close()
        raise
    return index


def _rebuild(
    folder: Folder,
    index: Index,
    contents: Contents,
    sources: Mapping[SourceName, str],
    kept: Keepsake | None,
    damage: str,
) -> None:
    """Fill a new index with what the cache folder knows of itself, and say once what has become of the old one."""
    adopted = tuple(adopt(folder.place, contents, frozenset(sources), time.time()))
    index.rebuild(identity_of(sources), adopted, kept)
    found = len(contents.published) + len(contents.partial)
    if not damage and kept is None and not found:
        return  # a new cache
    log.warning(
        "%s. A new one is made from what is on the SSD: copies kept: %d; files that do not say whose "
        "copies they are: %d. Lost is when the copies were read and wanted, and why they were made%s",
        damage or f"the index {folder.index} is gone",
        len(adopted),
        found - len(adopted),
        "" if kept is not None else "; pins must be set again",
    )


def _recover(
    folder: Folder, index: Index, contents: Contents, sources: frozenset[SourceName], gone: frozenset[int]
) -> Opened:
    belongs = index.start() == folder.token_before != ""
    doubtful = not (index.ended_in_peace and belongs)
    now = follow(folder.place, index.entries(), contents, index.next_id(), doubtful=doubtful)
    late = _write_rows(index, now)
    verdict = reconcile(_not_gone(now, gone, contents), contents, sources)
    found = {entry.id for entry in verdict.keep}
    astray = any(entry.home is not None and entry.id not in found for entry in now.entries.values())
    aside = _set_aside(folder, index, contents, verdict.files, belongs and not astray)
    rows = gone.union(verdict.rows, now.gone if late else ())
    left = rows if rows and not _if_room(index, partial(index.delete, rows)) else frozenset[int]()
    removed = [name for name in verdict.files if name not in aside]
    for name in removed:
        folder.remove(name)
    if left and _if_room(index, partial(index.delete, left)):  # the files have made room
        left = frozenset()
    write_labels(folder, now.unlabelled, contents.published)
    _label(folder, index, verdict.keep)
    resumable = sum(entry.state is EntryState.COPYING for entry in verdict.keep)
    counts = Recovery(len(verdict.keep), resumable, len(verdict.rows), len(removed), not index.ended_in_peace)
    if index.full:
        log.warning(_FULL, folder.root, len(verdict.keep))
    next_id = max([index.next_id(), *(entry.id + 1 for entry in late)])
    kept = _kept(folder, index)
    moved = {entry.key for entry in now.entries.values() if entry.home is not None}
    moved |= {key for name in aside if (key := key_of(name)) is not None}
    asked = tuple(asked for asked in index.asked() if asked.key.source in sources)
    return Opened(
        folder,
        index,
        verdict.keep,
        index.pins(),
        asked,
        next_id,
        counts,
        kept,
        left,
        late,
        aside,
        moved_from=index.moved_from().union(key.source for key in moved) if verdict.keep or not moved else frozenset(),
    )


def _write_rows(index: Index, now: Following) -> tuple[CacheEntry, ...]:
    """Write what the files have shown; returns what the index has no room for."""
    changed = tuple(now.changed.values())
    if (not changed and not now.gone) or _if_room(index, partial(index.put, changed, now.gone)):
        return ()
    return changed


def _not_gone(now: Following, gone: frozenset[int], contents: Contents) -> Iterator[CacheEntry]:
    """A moved file is gone only with its file, whatever was meant to become of it."""
    for entry in now.entries.values():
        if entry.id not in gone or (entry.home is not None and contents.published.get(_file_name(entry), -1) >= 0):
            yield entry


def _set_aside(
    folder: Folder, index: Index, contents: Contents, strays: Iterable[str], belongs: bool
) -> dict[str, int]:
    """Those that no entry speaks of and that must stay all the same, with their sizes; say so of those that are new."""
    known = frozenset(index.aside())
    silent, aside = [], {}
    for name in strays:
        size = contents.published.get(name, -1)
        if size < 0:
            continue
        try:
            if only_copy(folder.place, name) is None:
                if name not in known and (belongs or not says_nothing(folder.place, name)):
                    continue
                silent.append(name)
        except OSError as error:
            log.error("%s/%s cannot be looked at (%s): it may be an only copy, and is kept", folder.root, name, error)
        aside[name] = size
    new = [name for name in silent if name not in known]
    if new:
        log.warning(_SILENT, len(new), folder.root, new[0])
    _if_room(index, partial(index.begin, folder.mark.token, silent))
    return aside


def _if_room(index: Index, write: Callable[[], object]) -> bool:
    """Whether the index could take it; what it cannot take since the SSD is full is not needed to serve."""
    try:
        write()
    except IndexFull:
        index.full = True
        return False
    return True


def _kept(folder: Folder, index: Index) -> Keepsake | None:
    """See that what is written down a second time is what the index says; None when there is no room for it."""
    kept = index.keepsake()
    try:
        if kept != keepsake.read(folder.place):
            keepsake.save(folder.place, kept)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return None
    return kept


def _as_found(entry: CacheEntry, contents: Contents) -> CacheEntry:
    """A moved file has the size that it has: people write to it."""
    size = contents.published.get(cache_path(entry.key), entry.size) if entry.home is not None else entry.size
    if size == entry.size:
        return entry
    fingerprint = replace(entry.fingerprint, size=size)
    return replace(
        entry, source_file=replace(entry.source_file, fingerprint=fingerprint), ranges=Ranges.of([(0, size)])
    )


def _label(folder: Folder, index: Index, entries: Iterable[CacheEntry]) -> None:
    """Label the files of copies that were published before there were labels."""
    unlabelled = index.unlabelled()
    labelled = []
    for entry in entries:
        if entry.id in unlabelled and entry.home is None:
            if not folder.label_published(Label(entry.source_file, entry.begun_at)):
                break  # nor will the SSD take the others
            labelled.append(entry.id)
    if labelled:
        _if_room(index, partial(index.set_labelled, labelled))


def _file_name(entry: CacheEntry) -> str:
    return cache_path(entry.key) if entry.state.is_whole else f"partial/{entry.id}"


def _is_whole(entry: CacheEntry, name: str, contents: Contents) -> bool:
    """Whether the file holds what the row says. A partial file has its full size from the start, holes included."""
    if entry.home is not None:
        return contents.published.get(name, -1) >= 0
    if entry.state is EntryState.CACHED:
        return contents.published.get(name) == entry.size
    spans = entry.ranges.spans
    if spans and spans[-1].end > entry.size:
        return False
    return contents.partial.get(name) == entry.size
