"""Making entries anew from the files themselves: the published files that can say whose copies they are.

Called by ``cache.recovery`` at a start, in a worker thread, where there is no index, and for moved files that it does
not know. A label is written when the copy is complete, is worth nothing once the file was written to, and holds the
fingerprint of the source's file. So what is adopted is served only after the source has shown that very file, as after
any restart. A moved file's label holds whatever is written to it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from cachefs.cache import inside, label
from cachefs.cache.folder import Contents
from cachefs.model import CacheEntry, EntryState, FileKey, Phase, SourceName
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EXDEV)
REASON = "it was on the SSD when the index was lost"


def adopt(root: str, contents: Contents, sources: frozenset[SourceName], now: float) -> Iterator[CacheEntry]:
    """Entries for the published files with a valid label, numbered from 1. ``now`` stands for the time of publication:
    nobody knows any more when they were last wanted, and they are to be kept as if that had been just now. Moved files
    are found, of whatever source they are."""
    entry_id = 0
    for name, size in contents.published.items():
        key = key_of(name)
        found = _readable_label(root, name, key) if key is not None and size >= 0 else None
        if found is None or (found.file.key.source not in sources and found.home is None):
            continue
        entry_id += 1
        if found.home is not None:
            yield moved_entry(entry_id, found)
            continue
        whole = Ranges.of([(0, size)])
        yield CacheEntry(entry_id, found.file, EntryState.CACHED, whole, REASON, found.begun_at, published_at=now)


def moved_entry(entry_id: int, found: label.Label) -> CacheEntry:
    """Of a moved file that no row knows: how far it had moved is looked at anew."""
    if found.home is None:
        raise ValueError(f"{found.file.key} was not moved")
    home = found.home if found.home.phase is not Phase.AWAY else replace(found.home, phase=Phase.LEAVING)
    return CacheEntry(
        entry_id,
        found.file,
        EntryState.MOVED,
        Ranges.of([(0, found.file.size)]),
        REASON,
        found.begun_at,
        published_at=time.time(),
        home=home,
    )


def key_of(name: str) -> FileKey | None:
    """Whose copy a name below the cache folder stands for."""
    if name.count("/") < 2:
        return None
    _, source, path = name.split("/", 2)
    key = FileKey(SourceName(source), path)
    return key if cache_path(key) == name else None


def _readable_label(root: str, name: str, key: FileKey) -> label.Label | None:
    try:
        return label_of(root, name, key)
    except OSError:
        return None  # it is no copy for anybody, and stays


def label_of(root: str, name: str, key: FileKey) -> label.Label | None:
    """What a published file says of itself; None when there is no such file. Raises ``OSError`` when nobody can tell:
    then it may be the only one."""
    number = opened(root, name)
    if number is None:
        return None
    try:
        return label.read(number, key)
    finally:
        os.close(number)


def says_nothing(root: str, name: str) -> bool:
    """Whether a published file does not even say that it is a copy. Raises ``OSError`` when nobody can tell."""
    number = opened(root, name)
    if number is None:
        return False
    try:
        return label.says_nothing(number)
    finally:
        os.close(number)


def only_copy(root: str, name: str) -> label.Label | None:
    """What a file below the cache folder says that was moved, and must not be removed; None for any other. Raises
    ``OSError`` when nobody can tell: then it must not be removed, either."""
    found = label_of(root, name, key_of(name) or FileKey(SourceName(""), name))
    return found if found is not None and found.home is not None else None


def opened(root: str, name: str) -> int | None:
    """A regular file of ours, for reading; None when there is something else, or nothing."""
    try:
        return inside.open_file(root, name)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
