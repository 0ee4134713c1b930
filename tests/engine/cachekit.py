"""What the tests of the cache share: files as a source shows them, limits in bytes, a store on a temporary folder."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from cachefs.cache.store import Hooks, Limits, Refused, Store, Targets, open_store
from cachefs.model import CacheEntry, FileKey, Fingerprint, SourceFile, SourceName

MEDIA = SourceName("Media")
SOURCES = {MEDIA: "/mnt/media"}


@dataclass(frozen=True, slots=True)
class Bytes:
    """An amount that does not depend on the disk."""

    count: int

    def resolve(self, total_bytes: int, /) -> int:
        return self.count


ROOMY = Limits(max_size=Bytes(1 << 40), min_free=Bytes(0))


def limited(max_size: int) -> Limits:
    return Limits(max_size=Bytes(max_size), min_free=Bytes(0))


def key(path: str) -> FileKey:
    return FileKey(MEDIA, path)


def source_file(path: str, size: int = 10, *, mtime_ns: int = 1, inode: int | None = None) -> SourceFile:
    number = inode if inode is not None else sum(os.fsencode(path)) + 1000
    return SourceFile(key(path), Fingerprint(size, mtime_ns, number, "uuid"), number)


def opened(root: Path, limits: Limits = ROOMY, hooks: Hooks | None = None) -> AbstractAsyncContextManager[Store]:
    return open_store(root, limits, SOURCES, hooks=hooks)


async def begun(store: Store, file: SourceFile, reason: str = "because") -> CacheEntry:
    entry = await store.begin(file, reason, now=100.0)
    assert not isinstance(entry, Refused)
    return entry


async def write(store: Store, entry: CacheEntry, data: bytes, at: int = 0) -> None:
    """Put bytes into the partial file as the copiers do."""
    target = await store.open_partial(entry)
    assert target is not None
    with target.use() as number:
        os.pwrite(number, data, at)
    target.close()
    store.record(entry.id, at, at + len(data))


async def cached(
    store: Store, path: str, data: bytes = b"0123456789", *, mtime_ns: int = 1, inode: int | None = None
) -> CacheEntry:
    """A published entry with these bytes."""
    file = source_file(path, len(data), mtime_ns=mtime_ns, inode=inode)
    entry = await begun(store, file)
    await write(store, entry, data)
    published = await store.publish(entry, file)
    assert published is not None
    return published


def content(store: Store, entry: CacheEntry) -> bytes:
    return Path(store.file_of(entry)).read_bytes()


def names(*paths: str) -> Targets:
    return Targets(keys=frozenset(map(key, paths)))


def listed(root: Path) -> set[str]:
    """The regular files below files/ and partial/."""
    found = [path for folder in ("files", "partial") for path in (root / folder).rglob("*")]
    return {str(path.relative_to(root)) for path in found if path.is_file()}
