"""The index of the cache: which files the SSD holds, what is pinned, which devices have a tag. In SQLite.

The only importer of ``sqlite3``. Called by ``cache.store`` (and by its recovery), always in a worker thread and by one
thread at a time; every call is one transaction that is on the disk when the call returns. It decides nothing and
touches no other file.

Names may hold any byte, so they are kept as BLOBs (``os.fsencode``).
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from cachefs.errors import CacheError, IndexDamaged
from cachefs.model import CacheEntry, EntryState, FileKey, Fingerprint, Pin, SourceFile, SourceName
from cachefs.ranges import Ranges

SCHEMA_VERSION = 1

_SCHEMA = """
-- One row per file on the SSD. The row is the publication: it is written last when an entry is made and goes first
-- when one is dropped, so that after a crash a file without a row is rubbish and never the reverse.
CREATE TABLE IF NOT EXISTS entries (
    id              INTEGER PRIMARY KEY AUTOINCREMENT, -- names partial/<id>; AUTOINCREMENT: never used twice
    source          BLOB NOT NULL,      -- the source's name in cachefs.yaml
    path            BLOB NOT NULL,      -- below the source's folder; with the source the name below files/
    size            INTEGER NOT NULL,   -- fingerprint: bytes
    mtime_ns        TEXT NOT NULL,      -- fingerprint: decimal, since times after 2262 pass 63 bits (ext4 goes to 2446)
    source_inode    INTEGER,            -- fingerprint: as two's complement; NULL where the file system does not keep it
    filesystem      TEXT,               -- fingerprint: UUID; NULL where unknown
    inode           INTEGER NOT NULL,   -- st_ino in the mount, as two's complement: hard links have the same
    links           INTEGER NOT NULL,   -- hard links at the source when it was last looked at
    state           TEXT NOT NULL CHECK (state IN ('copying', 'cached')),
    ranges          BLOB NOT NULL,      -- copying: little-endian u64 pairs, only of bytes that fdatasync has confirmed;
                                        -- cached: empty, since all bytes are there
    reason          TEXT NOT NULL,      -- why it was copied, for people
    begun_at        REAL NOT NULL,      -- this and the other times: seconds since the epoch
    published_at    REAL,               -- NULL while copying
    last_read_at    REAL,               -- written in batches: may be a minute behind
    last_wanted_at  REAL,               -- when a plan last wanted it; written in batches
    watched_at      REAL,               -- when somebody last finished it
    UNIQUE (source, path)
);
-- What the user said to keep always.
CREATE TABLE IF NOT EXISTS pins (
    target          BLOB NOT NULL,      -- a path of the union, or a title when there is a rating key
    rating_key      TEXT NOT NULL,      -- Plex's number of a show, season or film; '' for a path
    created_at      REAL NOT NULL,
    PRIMARY KEY (target, rating_key)
);
-- 'schema': the version of these tables. 'identity': the sources this cache was made for, one line each.
CREATE TABLE IF NOT EXISTS meta (
    name            TEXT PRIMARY KEY,
    value           BLOB NOT NULL
);
-- The tag in the upper bits of the inode numbers of each device, in the order in which they were first seen.
CREATE TABLE IF NOT EXISTS devices (
    identity        TEXT PRIMARY KEY,
    tag             INTEGER NOT NULL UNIQUE
);
"""

_COLUMNS = (
    "id, source, path, size, mtime_ns, source_inode, filesystem, inode, links, state, ranges, reason, "
    "begun_at, published_at, last_read_at, last_wanted_at, watched_at"
)

_Row = tuple[object, ...]


class Index:
    """One open index. Not for two threads at once."""

    def __init__(self, path: str) -> None:
        """Open the index, or make an empty one. Raises ``IndexDamaged`` or ``CacheError``."""
        self._path = path
        with self._translated():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            self._prepare()
        except CacheError:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._translated():
            self._connection.close()

    # --- entries ---

    def entries(self) -> tuple[CacheEntry, ...]:
        """Every entry; a copying one with the ranges of its last checkpoint."""
        with self._translated():
            return tuple(map(_entry, self._connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY id")))

    def problem(self) -> str:
        """What SQLite finds wrong when it reads everything; empty when all is well. 0.05 s for 10,000 entries."""
        with self._translated():
            (verdict,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        return "" if verdict == "ok" else str(verdict)

    def next_id(self) -> int:
        """A number greater than that of any entry there ever was."""
        with self._translated():
            row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        return int(row[0]) + 1 if row else 1

    def insert(self, entry: CacheEntry, gone: Iterable[int] = ()) -> None:
        """Add a new entry, and in the same transaction remove those that are gone: they may have its name."""
        places = ", ".join("?" * len(_COLUMNS.split(",")))
        with self._transaction() as connection:
            _delete(connection, gone)
            connection.execute(f"INSERT INTO entries ({_COLUMNS}) VALUES ({places})", _row(entry))

    def delete(self, ids: Iterable[int]) -> None:
        with self._transaction() as connection:
            _delete(connection, ids)

    def save_ranges(self, entry_id: int, ranges: Ranges) -> None:
        """Remember what has been copied; the caller has made those bytes durable before."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET ranges = ? WHERE id = ? AND state = 'copying'", (_packed(ranges), entry_id)
            )

    def publish(self, entry_id: int, published_at: float) -> None:
        """Make an entry cached. Nothing happens when its row has gone meanwhile."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET state = 'cached', ranges = x'', published_at = ? WHERE id = ?",
                (published_at, entry_id),
            )

    def save_details(self, entries: Iterable[CacheEntry]) -> None:
        """Write what may change while an entry lives: reason, times, inode number, links."""
        rows = [
            (
                _readable(entry.reason),
                entry.last_read_at,
                entry.last_wanted_at,
                entry.watched_at,
                _signed(entry.source_file.inode),
                entry.source_file.links,
                entry.id,
            )
            for entry in entries
        ]
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE entries SET reason = ?, last_read_at = ?, last_wanted_at = ?, watched_at = ?, inode = ?, "
                "links = ? WHERE id = ?",
                rows,
            )

    # --- pins, meta, devices ---

    def pins(self) -> tuple[Pin, ...]:
        with self._translated():
            rows = self._connection.execute("SELECT target, rating_key, created_at FROM pins ORDER BY created_at")
            return tuple(Pin(os.fsdecode(target), key, created_at) for target, key, created_at in rows)

    def add_pin(self, pin: Pin) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO pins (target, rating_key, created_at) VALUES (?, ?, ?)",
                (os.fsencode(pin.target), pin.rating_key, pin.created_at),
            )

    def remove_pin(self, target: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM pins WHERE target = ?", (os.fsencode(target),))

    def identity(self) -> str | None:
        """The sources this cache was made for; None for a new cache."""
        value = self._meta("identity")
        return None if value is None else os.fsdecode(value)

    def set_identity(self, identity: str) -> None:
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('identity', ?)", (os.fsencode(identity),))

    def device_tag(self, identity: str) -> int:
        """The number of this device: 0 for the first one ever seen, then 1, 2, … for good."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO devices SELECT ?, coalesce(max(tag) + 1, 0) FROM devices", (identity,)
            )
            row = connection.execute("SELECT tag FROM devices WHERE identity = ?", (identity,)).fetchone()
        return int(row[0])

    # --- inside ---

    def _prepare(self) -> None:
        with self._translated():
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise IndexDamaged(f"the index {self._path} is damaged: {verdict}")
        with self._transaction() as connection:
            for statement in _statements(_SCHEMA):
                connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (b"%d" % SCHEMA_VERSION,))
        version = self._meta("schema")
        if version != b"%d" % SCHEMA_VERSION:
            found = os.fsdecode(version or b"?")
            raise CacheError(
                f"the index {self._path} has version {found}, and this cachefs knows {SCHEMA_VERSION}: "
                "use the cachefs that made it, or another cache.path"
            )

    def _meta(self, name: str) -> bytes | None:
        with self._translated():
            row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and durable at the end of the block."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # after an I/O error SQLite has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            kind = IndexDamaged if damaged else CacheError
            raise kind(f"the index {self._path} cannot be used: {error}") from error


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit in the middle of a transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _delete(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    connection.executemany("DELETE FROM entries WHERE id = ?", [(entry_id,) for entry_id in ids])


def _row(entry: CacheEntry) -> _Row:
    file, fingerprint = entry.source_file, entry.fingerprint
    return (
        entry.id,
        os.fsencode(entry.key.source),
        os.fsencode(entry.key.path),
        fingerprint.size,
        str(fingerprint.mtime_ns),
        None if fingerprint.inode is None else _signed(fingerprint.inode),
        fingerprint.filesystem,
        _signed(file.inode),
        file.links,
        entry.state.value,
        _packed(entry.ranges) if entry.state is EntryState.COPYING else b"",
        _readable(entry.reason),
        entry.begun_at,
        entry.published_at,
        entry.last_read_at,
        entry.last_wanted_at,
        entry.watched_at,
    )


# A row's columns are typed by the schema, which mypy cannot see.
def _entry(row: tuple) -> CacheEntry:  # type: ignore[type-arg]
    (entry_id, source, path, size, mtime_ns, source_inode, filesystem, inode, links, state, ranges, *rest) = row
    reason, begun_at, published_at, last_read_at, last_wanted_at, watched_at = rest
    fingerprint = Fingerprint(
        size, int(mtime_ns), None if source_inode is None else _unsigned(source_inode), filesystem
    )
    key = FileKey(SourceName(os.fsdecode(source)), os.fsdecode(path))
    cached = state == EntryState.CACHED.value
    return CacheEntry(
        id=entry_id,
        source_file=SourceFile(key, fingerprint, _unsigned(inode), links),
        state=EntryState(state),
        ranges=Ranges.of([(0, size)]) if cached else _unpacked(ranges),
        reason=reason,
        begun_at=begun_at,
        published_at=published_at,
        last_read_at=last_read_at,
        last_wanted_at=last_wanted_at,
        watched_at=watched_at,
    )


def _packed(ranges: Ranges) -> bytes:
    return b"".join(struct.pack("<QQ", *span) for span in ranges.spans)


def _unpacked(blob: bytes) -> Ranges:
    return Ranges.of(struct.iter_unpack("<QQ", blob))


def _signed(number: int) -> int:
    """An unsigned 64-bit number as SQLite can hold it: inode numbers use all 64 bits, the tag sits in the upper."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _readable(text: str) -> str:
    """Text for people, with the surrogates of undecodable names spelled out: SQLite's TEXT is strict UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
