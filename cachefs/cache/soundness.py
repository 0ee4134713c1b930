"""Whether the SSD still has the bytes of moved files, of which it holds the only copy.

Asked by ``cache.verify``; ``cache.moving`` shows what is wrong. Mends nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from cachefs.cache import moved_bytes
from cachefs.cache.pacing import CHUNK_BYTES
from cachefs.cache.places import Hold
from cachefs.cache.store import Store
from cachefs.model import FileKey

_ROTTEN = "its bytes on the SSD are not those that were moved (see cachefs verify)"


class Soundness:
    """See the module. Use from the event loop only."""

    def __init__(self, store: Store, hold: Hold) -> None:
        self._store = store
        self._hold = hold
        self.flaws: dict[FileKey, str] = {}
        """What was wrong with files when they were looked at last."""

    async def look(self, key: FileKey) -> None:
        """See that the SSD has a moved file. Raises ``OSError``; ``flaws`` has it from then on."""
        entry = self._store.moves.get(key)
        if entry is not None:
            with self._noting(key):
                await self._store.on_ssd(moved_bytes.state_at, self._store.file_of(entry))
            if self.flaws.get(key) != _ROTTEN:
                self.flaws.pop(key, None)

    async def has_its_bytes(self, key: FileKey, account: Callable[[int], None]) -> bool:
        """Whether a moved file's bytes are those that were moved. Of one that was written since they are taken as they
        are, to be told by from now on. Raises ``OSError`` when they cannot be read. ``flaws`` has what is wrong."""
        with self._noting(key):
            has_them = await self._has_its_bytes(key, account)
            self.flaws.pop(key, None)
            if not has_them:
                self.flaws[key] = _ROTTEN
            return has_them

    @contextmanager
    def _noting(self, key: FileKey) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.flaws[key] = f"its only copy cannot be read: {error.strerror or error} (see cachefs verify)"
            raise

    async def _has_its_bytes(self, key: FileKey, account: Callable[[int], None]) -> bool:
        entry = self._store.moves.get(key)
        if entry is None or entry.home is None:
            return True
        copy = await self._store.on_ssd(moved_bytes.open_file, self._store.file_of(entry), os.O_RDONLY)
        try:
            before = await self._store.on_ssd(moved_bytes.state_of, copy)
            await self._store.on_ssd(moved_bytes.forget_pages, copy)
            digest, position = hashlib.sha256(), 0
            while position < before.size:
                length = min(before.size - position, CHUNK_BYTES)
                await self._store.on_ssd(moved_bytes.read_and_count, copy, position, length, digest)
                position += length
                account(length)
            async with self._hold(key) as free:
                now = self._store.moves.get(key)
                same = free and await self._store.on_ssd(moved_bytes.state_of, copy) == before
                if not same or now is None or now.home is None:
                    return True  # it is being written
                if not now.home.digest:
                    await self._store.moves.set_home(now, replace(now.home, digest=digest.hexdigest()))
                    return True
                return now.home.digest == digest.hexdigest()
        finally:
            await self._store.close_on_ssd(copy)
