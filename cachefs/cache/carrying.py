"""The bytes of files that move: compared before one leaves its source, brought before one is at home again.

Of ``moving``, which says when. Gives way to people, as copying does, and keeps to ``copying.bandwidth``.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable

import trio

from cachefs.cache import moved_bytes
from cachefs.cache.copying import read_attributes, read_chunk
from cachefs.cache.filecopy import CHECKPOINT_BYTES, SourceFiles, close_at_source
from cachefs.cache.pacing import READING_WINDOW_S, chunk_bytes, pause_after
from cachefs.cache.places import Homes, Stays
from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.model import CacheEntry, DropCause, FileKey, Targets


class Carrying:
    """See the module. Use from the event loop only."""

    def __init__(self, store: Store, files: SourceFiles, homes: Homes, bandwidth: Callable[[], int | None]) -> None:
        self._store = store
        self._files = files
        self._homes = homes
        self._bandwidth = bandwidth

    async def compare(self, entry: CacheEntry) -> str:
        """See that source and SSD have the same bytes, and give the SSD's file the attributes of now; returns the
        digest of the bytes. Raises ``Stays`` where the SSD cannot keep an attribute."""
        source = await self._files.open(entry.key)
        try:
            copy = await self._store.on_ssd(moved_bytes.open_file, self._store.file_of(entry), os.O_RDONLY)
            try:
                theirs = await self._files.run(entry.key.source, read_attributes, source)
                difference = await self._store.on_ssd(moved_bytes.take_over, copy, theirs)
                if difference:
                    raise Stays(f"the SSD does not keep its {difference}")
                await self._store.on_ssd(moved_bytes.forget_pages, copy)
                return await self._same_bytes(entry, source, copy)
            finally:
                await self._store.close_on_ssd(copy)
        finally:
            await close_at_source(self._files, entry.key, source)

    async def _same_bytes(self, entry: CacheEntry, source: Descriptor, copy: Descriptor) -> str:
        digest, position = hashlib.sha256(), 0
        while position < entry.size:
            length = min(entry.size - position, self._chunk_bytes(entry.key))
            theirs = await self._files.run(entry.key.source, read_chunk, source, position, length)
            if not await self._store.on_ssd(moved_bytes.is_equal, copy, theirs, position, length, digest):
                self._store.demote(Targets(keys=frozenset((entry.key,))), DropCause.DAMAGED)
                raise Stays(f"the copy on the SSD differs near byte {position}")
            position += length
            await self._rest(entry.key, theirs.took_s, length)
        return digest.hexdigest()

    async def bring(
        self, entry: CacheEntry, copy: Descriptor, target: Descriptor, size: int, tell: Callable[[int], object]
    ) -> None:
        """Bytes, then attributes, then all of it made durable and read again."""
        key = entry.key
        await self._homes.change(key, moved_bytes.make_room, target, size)
        digest, position, unsafe = hashlib.sha256(), 0, 0
        while position < size:
            length = min(size - position, self._chunk_bytes(key))
            chunk = await self._store.on_ssd(moved_bytes.read_and_count, copy, position, length, digest)
            took_s = await self._homes.change(key, moved_bytes.write, target, chunk)
            position, unsafe = position + length, unsafe + length
            if unsafe >= CHECKPOINT_BYTES:
                unsafe = 0
                await self._homes.change(key, moved_bytes.sync_data, target)
            tell(position)
            await self._rest(key, took_s, length)
        expected = entry.home.digest if entry.home is not None else ""
        if expected and digest.hexdigest() != expected:
            raise Stays(
                "its bytes on the SSD are not those that were moved: the SSD has lost some (see cachefs verify)"
            )
        attributes = await self._store.on_ssd(read_attributes, copy)
        await self._homes.change(key, moved_bytes.set_attributes, target, attributes)
        if await self._digest_at_home(key, target, size) != digest.hexdigest():
            raise OSError(errno.EIO, "the source does not read what was written", key.path)

    async def _digest_at_home(self, key: FileKey, target: Descriptor, size: int) -> str:
        digest, position = hashlib.sha256(), 0
        await self._files.run(key.source, moved_bytes.forget_pages, target)
        while position < size:
            length = min(size - position, self._chunk_bytes(key))
            chunk = await self._files.run(key.source, moved_bytes.read_and_count, target, position, length, digest)
            position += length
            await self._rest(key, chunk.took_s, length)
        return digest.hexdigest()

    # --- pace ---------------------------------------------------------------------------------------------------

    def _chunk_bytes(self, key: FileKey) -> int:
        return chunk_bytes(self._someone_reads(key), self._bandwidth())

    async def _rest(self, key: FileKey, took_s: float, length: int) -> None:
        await trio.sleep(pause_after(took_s, length, self._bandwidth(), self._someone_reads(key)))

    def _someone_reads(self, key: FileKey) -> bool:
        return trio.current_time() - self._files.reading_since(key.source) < READING_WINDOW_S
