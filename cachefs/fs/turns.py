"""Who may change which names just now: whom a moved file's change, its way home and a folder's new name wait for.

Used by ``inuse``, ``changes`` and ``renaming``. A file becomes its source's again only while nobody changes it; a
folder gets another name only while neither happens below it, for both go by its files' names. The kernel does not see
to that: it locks the folder that holds a name, and not the one whose own name changes. Who had to wait asks anew for
his names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio

from cachefs.fs.elsewhere import Moved
from cachefs.model import FileKey
from cachefs.paths import folders_above

KeysOf = Callable[[], Sequence[FileKey]]

PATIENCE_S = 1.0
"""How long a file on its way home waits for whoever is changing it: most changes are one call to a disk."""


class Turns:
    """Use from the event loop only."""

    def __init__(self, files: Moved) -> None:
        self._files = files
        self._held: Counter[FileKey] = Counter()
        self._changing: Counter[FileKey] = Counter()
        self._renaming: Counter[FileKey] = Counter()
        self._waiting: Counter[FileKey] = Counter()
        """What is to be renamed, and waits: whoever comes later waits behind it, or it would wait for ever."""
        self._ended = trio.Event()

    @asynccontextmanager
    async def changing(self, keys_of: KeysOf, *, content: bool) -> AsyncIterator[tuple[FileKey, ...]]:
        """Around a change of files that may be moved; yields what they are called. ``content``: of their bytes, so that
        their digests are forgotten."""
        keys = tuple(keys_of())
        while any(key in self._held or self._is_to_be_renamed(key) for key in keys):
            await self._ended.wait()
            keys = tuple(keys_of())
        with self._counted(self._changing, keys):
            if content:
                for key in keys:
                    await self._files.changed(key)
            yield keys

    def is_changing(self, key: FileKey) -> bool:
        return key in self._changing

    @asynccontextmanager
    async def renaming(self, keys_of: KeysOf) -> AsyncIterator[tuple[FileKey, ...]]:
        """Around a renaming of files or folders at their source, or a folder's removal; yields what they are called."""
        keys = tuple(keys_of())
        while any(map(self._is_busy, keys)):
            await self._wait_before_others(keys)
            keys = tuple(keys_of())
        with self._counted(self._renaming, keys):
            yield keys

    @asynccontextmanager
    async def held(self, key: FileKey) -> AsyncIterator[None]:
        """No change of the file begins within; one that lasts is ``is_changing``."""
        while self._is_to_be_renamed(key):
            await self._ended.wait()
        with self._counted(self._held, (key,)):
            with trio.move_on_after(PATIENCE_S):
                while key in self._changing:
                    await self._ended.wait()
            yield

    async def _wait_before_others(self, keys: Sequence[FileKey]) -> None:
        """Until something has ended."""
        self._waiting.update(keys)
        came = False
        try:
            await self._ended.wait()
            came = True
        finally:
            _take(self._waiting, keys)
            if not came:
                self._note_end()

    def _is_to_be_renamed(self, key: FileKey) -> bool:
        return _has(self._renaming, key) or _has(self._waiting, key)

    def _is_busy(self, key: FileKey) -> bool:
        """Whether anything happens to this or below it, or a folder that it is in is being renamed."""
        if _has(self._renaming, key):
            return True
        return any(key in (other, *folders_above(other)) for kind in self._all() for other in kind)

    def _all(self) -> tuple[Counter[FileKey], ...]:
        return self._held, self._changing, self._renaming

    @contextmanager
    def _counted(self, counts: Counter[FileKey], keys: Sequence[FileKey]) -> Iterator[None]:
        counts.update(keys)
        try:
            yield
        finally:
            _take(counts, keys)
            self._note_end()

    def _note_end(self) -> None:
        self._ended.set()
        self._ended = trio.Event()


def _has(counts: Counter[FileKey], key: FileKey) -> bool:
    """Whether this, or a folder that it is in, is counted."""
    return bool(counts) and (key in counts or any(folder in counts for folder in folders_above(key)))


def _take(counts: Counter[FileKey], keys: Sequence[FileKey]) -> None:
    counts.subtract(keys)
    for key in keys:
        if not counts[key]:
            del counts[key]
