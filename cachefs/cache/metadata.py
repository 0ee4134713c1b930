"""What was last seen of the folders of sources: their names and attributes, for when a source is away.

A file of its own beside the index: losing it costs nothing but that knowledge, so it is written in batches, without
waiting for the disk, and made anew when it is damaged. Called by the daemon for ``fs``; keeps bytes and never looks
into them. Bounded: the folders that were seen longest ago go first. An SSD that fails or hangs costs what was noted
since the start: what it has of those folders when it is back may be older, and is not believed. One that was away is
written to again when the cache folder at its path is the one that it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple
from urllib.parse import quote

import trio

from cachefs.cache.folder import token_of
from cachefs.cache.locking import locking
from cachefs.errors import CacheError
from cachefs.model import MOUNTS_BELOW, FileKey, SourceName
from cachefs.ownership import ours

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_VERSION = 2
_SCHEMA = """
-- One row per folder of a source that was listed.
CREATE TABLE IF NOT EXISTS folders (
    source          BLOB NOT NULL,      -- the source's name in cachefs.yaml
    path            BLOB NOT NULL,      -- below the source's folder; empty for that folder itself
    listing         BLOB NOT NULL,      -- as fs/leaves.c packs it: 110 bytes and the name for each entry
    checksum        INTEGER NOT NULL,   -- CRC-32 of it
    seen_at         REAL NOT NULL,      -- seconds since the epoch
    PRIMARY KEY (source, path)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS folders_by_age ON folders (seen_at);
"""
_MOST_BYTES = 400_000_000
_TRIM_TO_BYTES = 360_000_000
_WRITE_EVERY_S = 1.0
_NO_ANSWER_S = 10.0
_RECALL_S = 2.0
"""How long somebody who lists a folder waits for what is remembered of it."""
_STOP_S = 0.7


@dataclass(frozen=True, slots=True)
class _Seen:
    listing: bytes | None
    at: float


class Metadata:
    """See the module. Made by ``open_metadata``."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._path = f"{root}/folders.sqlite"
        self._token = ""
        self._connection: sqlite3.Connection | None = None
        self._unsaved: dict[FileKey, _Seen] = {}
        self._saved: set[FileKey] = set()
        """Noted and written since the start, and since the SSD failed last."""
        self._stale: set[FileKey] = set()
        """What the SSD has of these may be older than what was noted: their rows are to go."""
        self._came = trio.Event()
        self._turn = trio.CapacityLimiter(1)
        self._failed = False

    def note(self, folder: FileKey, listing: bytes) -> None:
        """This is what the folder holds now. On the disk within some seconds."""
        self._unsaved[folder] = _Seen(listing, time.time())
        self._came.set()

    def forget(self, folder: FileKey) -> None:
        """There is no such folder any more."""
        self._unsaved[folder] = _Seen(None, time.time())
        self._came.set()

    async def recall(self, folder: FileKey) -> bytes | None:
        """What the folder held when it was last seen."""
        unsaved = self._unsaved.get(folder)
        if unsaved is not None:
            return unsaved.listing
        if folder in self._stale:
            return None
        try:
            return await self._in_time(_RECALL_S, self._load, folder)
        except (sqlite3.Error, OSError) as error:
            self._trouble(error)
            return None

    @property
    def failed(self) -> bool:
        """Whether the SSD did not do what was asked last."""
        return self._failed

    async def run(self) -> None:
        """Write what is noted. Runs for ever."""
        while True:
            await self._came.wait()
            await trio.sleep(_WRITE_EVERY_S)
            await self.save()

    async def save(self, within_s: float = _NO_ANSWER_S) -> None:
        """Write what is noted now."""
        batch, self._came = dict(self._unsaved), trio.Event()
        if not batch:
            return
        stale = frozenset(self._stale)
        try:
            await self._in_time(within_s, self._save, batch, stale)
            self._failed = False
            self._stale -= stale
            self._saved |= batch.keys()
        except (sqlite3.Error, OSError) as error:
            self._stale |= batch.keys()
            self._trouble(error)
        for folder, seen in batch.items():
            if self._unsaved.get(folder) is seen:
                del self._unsaved[folder]

    async def _in_time(self, within_s: float, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """In a thread, one at a time; one that hangs is left behind. Raises ``TimeoutError`` then."""
        with trio.move_on_after(max(within_s, 0.0)):
            return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._turn)
        raise TimeoutError(f"no answer within {within_s:g} s")

    async def end(self) -> None:
        """Write what is noted, and close. Raises nothing."""
        began = trio.current_time()
        await self.save(_STOP_S)
        try:
            await self._in_time(_STOP_S - (trio.current_time() - began), self.close)
        except (sqlite3.Error, OSError) as error:
            log.debug("%s: %s", self._path, error)

    def _trouble(self, error: Exception) -> None:
        level = logging.DEBUG if self._failed else logging.INFO
        self._failed = True
        if not _is_full(error):
            self._stale |= self._saved  # it is written without waiting for the disk
            self._saved = set()
        log.log(level, "what folders hold cannot be remembered in %s: %s", self._path, error)

    # --- in threads ---

    def open(self) -> None:
        """Open the file; one that is damaged or of another version is made anew."""
        self._token = token_of(self._root)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if _is_full(error):
                raise  # what it holds is worth more than what it cannot take
            log.info("%s is made anew: %s", self._path, error)
            self.close()
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(self._path + suffix)
            self._open()

    def _open(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        ours().give(self._path, 0o600)
        self._connection.execute(locking(self._path))
        self._connection.execute("PRAGMA auto_vacuum = FULL")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"its version is {version}")
        self._connection.executescript(_SCHEMA)
        if version != _VERSION:
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        """Opened anew after a failure, for the SSD may have been away, but never in another folder than before."""
        if self._connection is None:
            if not self._token or token_of(self._root) != self._token:
                raise sqlite3.OperationalError("the cache folder is not there")
            self._open()
        assert self._connection is not None
        return self._connection

    def _given_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _load(self, folder: FileKey) -> bytes | None:
        try:
            return _recall(self._opened(), folder)
        except (sqlite3.Error, OSError):
            self._given_up()
            raise

    def _save(self, batch: dict[FileKey, _Seen], stale: frozenset[FileKey]) -> None:
        try:
            self._write(self._opened(), batch, stale)
        except BaseException:
            self._given_up()  # and rolled back
            raise

    def _write(self, connection: sqlite3.Connection, batch: dict[FileKey, _Seen], stale: frozenset[FileKey]) -> None:
        with connection:
            connection.execute("BEGIN")
            for folder in stale.union(batch):
                connection.execute("DELETE FROM folders WHERE source = ? AND path = ?", _names(folder))
            for folder, seen in batch.items():
                if seen.listing is not None:
                    row = (*_names(folder), seen.listing, zlib.crc32(seen.listing), seen.at)
                    connection.execute(
                        "INSERT INTO folders (source, path, listing, checksum, seen_at) VALUES (?, ?, ?, ?, ?)", row
                    )
        self._trim(connection)

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Forget what was seen longest ago when the file has become too large."""
        while os.path.getsize(self._path) > _MOST_BYTES:
            (count,) = connection.execute("SELECT COUNT(*) FROM folders").fetchone()
            share = 1 - _TRIM_TO_BYTES / os.path.getsize(self._path)
            connection.execute(
                "DELETE FROM folders WHERE (source, path) IN"
                " (SELECT source, path FROM folders ORDER BY seen_at LIMIT ?)",
                (max(1, int(count * share)),),
            )
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _recall(connection: sqlite3.Connection, folder: FileKey) -> bytes | None:
    query = "SELECT listing, checksum FROM folders WHERE source = ? AND path = ?"
    row = connection.execute(query, _names(folder)).fetchone()
    listing = row[0] if row is not None else None
    return listing if isinstance(listing, bytes) and zlib.crc32(listing) == row[1] else None


def _is_full(error: Exception) -> bool:
    return bool(getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL)


def _names(folder: FileKey) -> tuple[bytes, bytes]:
    return os.fsencode(folder.source), os.fsencode(folder.path)


def last_seen(root: str, source: SourceName) -> bytes | None:
    """What the source's own folder held when it was last seen, so that a start can do without it, or know it again.
    Beside a running daemon or without one; changes nothing. Blocks."""
    path = f"{root}/folders.sqlite"
    how = "mode=ro" if os.path.exists(f"{path}-wal") else "immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?{how}", uri=True, timeout=1)) as connection:
            return _recall(connection, FileKey(source, ""))
    except sqlite3.Error:
        return None


async def forget_source(root: str, source: SourceName) -> None:
    """Whatever is in the source's folder at the next start is the source. While no daemon has the cache folder.
    Raises ``CacheError``."""
    async with open_metadata(root) as metadata:
        metadata.forget(FileKey(source, ""))
        metadata.forget(FileKey(source, MOUNTS_BELOW))
        await metadata.save()
        if metadata.failed:
            raise CacheError(
                f"what is known of {source} in the cache folder {root} cannot be changed; is the SSD there?"
            )


@asynccontextmanager
async def open_metadata(root: str) -> AsyncIterator[Metadata]:
    """The memory of the cache folder ``root``, which must be locked already. Where the SSD does not want it, it works
    for as long as this process lives."""
    metadata = Metadata(root)
    try:
        await trio.to_thread.run_sync(metadata.open)
    except (sqlite3.Error, OSError) as error:
        metadata._trouble(error)
    try:
        yield metadata
    finally:
        with trio.CancelScope(shield=True):
            await metadata.end()
