"""The index of the cache: which files the SSD holds, what is pinned, which devices have a tag. In SQLite.

The only importer of ``sqlite3``. Called by ``cache.store`` (and by its recovery), always in a worker thread and by one
thread at a time; every call is one transaction that is on the disk when the call returns. It decides nothing and
touches no other file.

Names may hold any byte, so they are kept as BLOBs (``os.fsencode``).
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from cachefs.cache import homes, wishes
from cachefs.cache.full import takes_nothing
from cachefs.cache.keepsake import Keepsake
from cachefs.cache.locking import locking
from cachefs.cache.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION, newer
from cachefs.cache.written import files_of, names_of
from cachefs.errors import CacheError, IndexDamaged, IndexFull
from cachefs.model import Asked, CacheEntry, EntryState, FileKey, Fingerprint, Pin, SourceFile, SourceName
from cachefs.ownership import ours
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

_PIN_COLUMNS = "target, rating_key, created_at, stood_for"
_COLUMNS = (
    "id, source, path, size, mtime_ns, source_inode, filesystem, inode, links, state, ranges, reason, "
    "begun_at, published_at, last_read_at, last_wanted_at, watched_at, home"
)

_Row = tuple[object, ...]


class Index:
    """One open index. Not for two threads at once."""

    def __init__(self, path: str) -> None:
        """Open the index, or make an empty one. Raises ``IndexDamaged``, or ``CacheError`` when it cannot be reached or
        a newer cachefs made it. Where the SSD is full it is opened all the same, if it is there already."""
        self._path = path
        self._sound = True
        self.ended_in_peace = False
        """Whether whoever had it open before had closed it."""
        self.full = False
        """Whether it could be opened for reading only, since there is no room on the SSD."""
        with self._translated():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            ours().give(path, 0o600)  # it says who watches what; the files beside it follow
        try:
            with self._translated():
                self._connection.execute(locking(path))
            self._prepare()
        except CacheError:
            self._connection.close()
            raise

    def distrust(self) -> None:
        """Let the next start look closely, as after an end that was not in peace."""
        self._sound = False

    def close(self) -> None:
        """Let go of it, and leave word that it was closed in peace, unless something was found wrong with it."""
        with suppress(sqlite3.Error):  # then the next start looks closely
            if self._sound:
                self._connection.execute("DELETE FROM meta WHERE name = 'open'")
        with self._translated():
            self._connection.close()

    # --- entries ---

    def entries(self) -> tuple[CacheEntry, ...]:
        """Every entry; a copying one with the ranges of its last checkpoint. Raises ``IndexDamaged`` for a row that
        nobody can have written: SQLite has no checksums."""
        with self._translated():
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY id").fetchall()
        try:
            return tuple(map(_entry, rows))
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            self._sound = False
            raise IndexDamaged(f"the index {self._path} is damaged: a row of it makes no sense ({error})") from error

    def problem(self) -> str:
        """What SQLite finds wrong when it reads everything; empty when all is well. 6 ms for 10,000 entries."""
        with self._translated():
            (verdict,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        self._sound = self._sound and verdict == "ok"
        return "" if verdict == "ok" else str(verdict)

    def next_id(self) -> int:
        """A number greater than that of any entry there ever was."""
        with self._translated():
            row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        return int(row[0]) + 1 if row else 1

    def insert(self, entry: CacheEntry, gone: Iterable[int] = ()) -> None:
        """Add a new entry, and in the same transaction remove those that are gone: they may have its name. So may a
        row without its file, of a moved one."""
        places = ", ".join("?" * len(_COLUMNS.split(",")))
        with self._transaction() as connection:
            _delete(connection, gone)
            _delete_named(connection, (entry,), "home IS NOT NULL")
            connection.execute(f"INSERT INTO entries ({_COLUMNS}) VALUES ({places})", _row(entry))

    def put(self, entries: Collection[CacheEntry], gone: Iterable[int] = ()) -> None:
        """Make these the rows of their numbers and their names, whatever was; their files say whose they are."""
        places = ", ".join("?" * len(_COLUMNS.split(",")))
        with self._transaction() as connection:
            _delete(connection, gone)
            _delete(connection, [entry.id for entry in entries])
            _delete_named(connection, entries, "TRUE")
            connection.executemany(
                f"INSERT INTO entries ({_COLUMNS}, labelled) VALUES ({places}, 1)", [_row(entry) for entry in entries]
            )

    def delete(self, ids: Iterable[int]) -> None:
        with self._transaction() as connection:
            _delete(connection, ids)

    def save_ranges(self, entry_id: int, ranges: Ranges) -> None:
        """Remember what has been copied; the caller has made those bytes durable before."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET ranges = ? WHERE id = ? AND state = 'copying'", (_packed(ranges), entry_id)
            )

    def publish(self, entry_id: int, published_at: float, *, labelled: bool = False) -> None:
        """Make an entry cached. Nothing happens when its row has gone meanwhile."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET state = 'cached', ranges = x'', published_at = ?, labelled = ? WHERE id = ?",
                (published_at, labelled, entry_id),
            )

    def save_home(self, entry: CacheEntry) -> None:
        """Write where a moved file's home is, or that it is moved no more, with its fingerprint of now."""
        fingerprint = entry.fingerprint
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET home = ?, size = ?, mtime_ns = ?, source_inode = ?, filesystem = ? WHERE id = ?",
                (
                    None if entry.home is None else homes.encode(entry.home),
                    fingerprint.size,
                    str(fingerprint.mtime_ns),
                    None if fingerprint.inode is None else _signed(fingerprint.inode),
                    fingerprint.filesystem,
                    entry.id,
                ),
            )

    def unlabelled(self) -> frozenset[int]:
        """The cached entries whose files do not say whose copies they are."""
        with self._translated():
            found = self._connection.execute("SELECT id FROM entries WHERE state = 'cached' AND NOT labelled")
            return frozenset(entry_id for (entry_id,) in found)

    def set_labelled(self, ids: Iterable[int]) -> None:
        with self._transaction() as connection:
            connection.executemany("UPDATE entries SET labelled = 1 WHERE id = ?", [(entry_id,) for entry_id in ids])

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

    # --- pins, wishes, meta, devices ---

    def pins(self) -> tuple[Pin, ...]:
        with self._translated():
            rows = self._connection.execute(f"SELECT {_PIN_COLUMNS} FROM pins ORDER BY created_at").fetchall()
        with self._making_sense("what is pinned"):
            return tuple(
                Pin(os.fsdecode(target), rating_key, at, files_of(json.loads(files)))
                for target, rating_key, at, files in rows
            )

    def add_pin(self, pin: Pin) -> None:
        with self._transaction() as connection:
            connection.execute(f"INSERT OR REPLACE INTO pins ({_PIN_COLUMNS}) VALUES (?, ?, ?, ?)", _pin_row(pin))

    def remove_pin(self, target: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM pins WHERE target = ?", (os.fsencode(target),))

    def asked(self) -> tuple[Asked, ...]:
        """What people said of single files. Raises ``IndexDamaged`` for what nobody can have written."""
        rows = self._meta("asked")
        with self._making_sense("what was asked"):
            return wishes.from_rows(json.loads(rows)) if rows else ()

    @contextmanager
    def _making_sense(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, RecursionError) as error:
            self._sound = False
            raise IndexDamaged(f"the index {self._path} is damaged: it makes no sense {what} ({error})") from error

    def set_asked(self, said: Iterable[Asked]) -> None:
        """This is all that people said."""
        with self._transaction() as connection:
            _set_asked(connection, said)

    def moved_from(self) -> frozenset[SourceName]:
        """The sources from which files have moved to this folder. Raises ``IndexDamaged`` as ``asked``."""
        names = self._meta("moved_from")
        with self._making_sense("where files have moved from"):
            return frozenset(map(SourceName, json.loads(names))) if names else frozenset()

    def set_moved_from(self, sources: Iterable[SourceName]) -> None:
        with self._transaction() as connection:
            _set_moved_from(connection, sources)

    def identity(self) -> str | None:
        """The sources this cache was made for; None for a new cache."""
        value = self._meta("identity")
        return None if value is None else os.fsdecode(value)

    def set_identity(self, identity: str) -> None:
        with self._transaction() as connection:
            _set_identity(connection, identity)

    def start(self) -> str:
        """By what the start is known that this index saw last; empty for a new one. See ``folder.Folder``."""
        return os.fsdecode(self._meta("start") or b"")

    def aside(self) -> tuple[str, ...]:
        """The files that are nobody's and must not be removed."""
        names = self._meta("aside")
        return tuple(map(os.fsdecode, names.split(b"\0"))) if names else ()

    def begin(self, start: str, aside: Iterable[str]) -> None:
        """It belongs to this start, which has set these files aside."""
        names = b"\0".join(map(os.fsencode, aside))
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('start', ?)", (os.fsencode(start),))
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('aside', ?)", (names,))

    def rebuild(self, identity: str, entries: Iterable[CacheEntry], kept: Keepsake | None) -> None:
        """Make a new index that of a cache which has lost its own: all of it, or nothing."""
        places = ", ".join("?" * len(_COLUMNS.split(",")))
        with self._transaction() as connection:
            connection.executemany(
                f"INSERT INTO entries ({_COLUMNS}, labelled) VALUES ({places}, 1)", [_row(entry) for entry in entries]
            )
            if kept is not None:
                _keep(connection, kept)
            _set_identity(connection, identity)

    def keep(self, kept: Keepsake) -> None:
        """It has lost some of these."""
        with self._transaction() as connection:
            _keep(connection, kept)

    def keepsake(self) -> Keepsake:
        """What is to be written down a second time."""
        with self._translated():
            devices = dict(self._connection.execute("SELECT identity, tag FROM devices").fetchall())
        return Keepsake(SCHEMA_VERSION, self.identity() or "", devices, self.pins(), self.asked(), self.moved_from())

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
            is_new = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None
        if not is_new:
            self._refuse_other_versions()
            self._refuse_damaged()
        if is_new or self._version() < SCHEMA_VERSION:
            self._make_tables(is_new)
        try:
            with self._transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', x'')")
        except IndexFull:  # then the next start may look less closely
            self.full = True

    def _make_tables(self, is_new: bool) -> None:
        """Make the tables, or bring those of an earlier version up to date."""
        with self._transaction() as connection:
            for statement in _statements(SCHEMA) if is_new else ():
                connection.execute(statement)
            for version in () if is_new else range(self._version(), SCHEMA_VERSION):
                MIGRATIONS[version](connection.execute)
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (b"%d" % SCHEMA_VERSION,))

    def _version(self) -> int:
        """The version of the tables. Raises ``IndexDamaged`` when none is said that there ever was."""
        said = self._meta("schema") or b"nothing"
        if not said.isdigit() or int(said) < 1:
            raise IndexDamaged(f"the index {self._path} is damaged: it says {os.fsdecode(said)} about its version")
        return int(said)

    def _refuse_other_versions(self) -> None:
        version = self._version()
        if version > SCHEMA_VERSION:
            raise CacheError(newer(self._path, version))

    def _refuse_damaged(self) -> None:
        """Look closely after an end that was not in peace; in a hurry else."""
        self.ended_in_peace = self._meta("open") is None
        pragma = "quick_check" if self.ended_in_peace else "integrity_check"
        with self._translated():
            (verdict,) = self._connection.execute(f"PRAGMA {pragma}(1)").fetchone()
        if verdict != "ok":
            raise IndexDamaged(f"the index {self._path} is damaged: {verdict}")

    def _meta(self, name: str) -> bytes | None:
        with self._translated():
            row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0] or b"")

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
            self._sound = self._sound and not damaged
            kind = IndexDamaged if damaged else IndexFull if self._is_full(code) else CacheError
            raise kind(f"the index {self._path} cannot be used: {error}") from error

    def _is_full(self, code: int) -> bool:
        maybe = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        return code == sqlite3.SQLITE_FULL or (maybe and takes_nothing(os.path.dirname(self._path)))


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit in the middle of a transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _set_identity(connection: sqlite3.Connection, identity: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('identity', ?)", (os.fsencode(identity),))


def _keep(connection: sqlite3.Connection, kept: Keepsake) -> None:
    connection.executemany("INSERT OR IGNORE INTO devices VALUES (?, ?)", kept.devices.items())
    rows = map(_pin_row, kept.pins)
    connection.executemany(f"INSERT OR IGNORE INTO pins ({_PIN_COLUMNS}) VALUES (?, ?, ?, ?)", rows)
    _set_asked(connection, kept.asked)
    _set_moved_from(connection, kept.moved_from)


def _set_asked(connection: sqlite3.Connection, said: Iterable[Asked]) -> None:
    rows = json.dumps(wishes.rows_of(said)).encode("ascii")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('asked', ?)", (rows,))


def _set_moved_from(connection: sqlite3.Connection, sources: Iterable[SourceName]) -> None:
    names = json.dumps(sorted(sources)).encode("ascii")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('moved_from', ?)", (names,))


def _pin_row(pin: Pin) -> _Row:
    return os.fsencode(pin.target), pin.rating_key, pin.created_at, json.dumps(names_of(pin.stood_for))


def _delete(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    connection.executemany("DELETE FROM entries WHERE id = ?", [(entry_id,) for entry_id in ids])


def _delete_named(connection: sqlite3.Connection, entries: Iterable[CacheEntry], which: str) -> None:
    names = [(os.fsencode(entry.key.source), os.fsencode(entry.key.path)) for entry in entries]
    connection.executemany(f"DELETE FROM entries WHERE source = ? AND path = ? AND {which}", names)


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
        EntryState.CACHED.value if entry.state.is_whole else entry.state.value,
        _packed(entry.ranges) if entry.state is EntryState.COPYING else b"",
        _readable(entry.reason),
        entry.begun_at,
        entry.published_at,
        entry.last_read_at,
        entry.last_wanted_at,
        entry.watched_at,
        None if entry.home is None else homes.encode(entry.home),
    )


# A row's columns are typed by the schema, which mypy cannot see.
def _entry(row: tuple) -> CacheEntry:  # type: ignore[type-arg]
    (entry_id, source, path, size, mtime_ns, source_inode, filesystem, inode, links, state, ranges, *rest) = row
    reason, begun_at, published_at, last_read_at, last_wanted_at, watched_at, home = rest
    fingerprint = Fingerprint(
        size, int(mtime_ns), None if source_inode is None else _unsigned(source_inode), filesystem
    )
    key = FileKey(SourceName(os.fsdecode(source)), os.fsdecode(path))
    cache_path(key)  # ValueError for a name that leads elsewhere
    if type(size) is not int or size < 0:
        raise ValueError(f"a size of {size!r:.40}")
    cached = EntryState(state) is EntryState.CACHED
    if home is not None and not cached:
        raise ValueError("a file that is copied and moved")
    return CacheEntry(
        id=entry_id,
        source_file=SourceFile(key, fingerprint, _unsigned(inode), links),
        state=EntryState.MOVED if home is not None else EntryState(state),
        ranges=Ranges.of([(0, size)]) if cached else _unpacked(ranges),
        reason=reason,
        begun_at=begun_at,
        published_at=published_at,
        last_read_at=last_read_at,
        last_wanted_at=last_wanted_at,
        watched_at=watched_at,
        home=None if home is None else homes.decode(home),
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
