"""After each kill: is everything there that was acknowledged, and does the cache folder hold what its index says?

Looks for itself: reads through the mount, reads the source and the cache folder beside cachefs, and opens the index
read-only with SQLite. The one place to extend when a file's only copy may be somewhere else than at its source.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cachefs.control.client import Client
from cachefs.fs.found import RESERVED
from tests.crash.actors import Counts, Writer, read
from tests.crash.content import difference
from tests.crash.failures import Lost
from tests.crash.journal import LINKS, Seen, SeenFile
from tests.crash.load import Load
from tests.crash.outsider import REPLACED, REWRITTEN, Outsider
from tests.crash.stage import Stage

SETTLES_WITHIN_S = 20.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the index, as SQLite shows it."""

    id: int
    path: str
    size: int
    mtime_ns: int
    inode: int | None
    state: str

    @property
    def place(self) -> str:
        """Its file, below the cache folder."""
        return f"partial/{self.id}" if self.state == "copying" else f"files/{self.path}"


def audit(stage: Stage, load: Load) -> Counts:
    """Raises ``Lost``; returns what was compared. Nobody else changes anything meanwhile."""
    counts = Counts()
    root = os.open(stage.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for writer in load.writers:
            _written(writer, root, counts)
        for name, right in stage.library.items():
            _same(name, _read_or_none(name, root), right, counts)
        for name in (*REPLACED, *REWRITTEN):
            _same(name, _read_or_none(name, root), load.outsider.now(name), counts)
        _names(stage, load.outsider, root)
    except OSError as error:
        raise Lost(f"reading through the mount failed: {error!r}") from error
    finally:
        os.close(root)
    _pins(stage, load)
    _folder(stage, counts)
    return counts


def _written(writer: Writer, root: int, counts: Counts) -> None:
    """A name that a moved file has replaced stays at its source until that is settled, a moment after the start; until
    then the other names of that file count it as a link. Nothing else may take time."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while True:
        seen = _seen(writer.folder, root)
        wrong = writer.journal.settle(seen)
        if not wrong:
            break
        if LINKS not in wrong or time.monotonic() > deadline:
            raise Lost(f"{writer.folder}: {wrong}")
        time.sleep(_POLL_S)
    counts.files += len(seen)
    counts.bytes += sum(len(file.data) for file in seen.values())


def _seen(folder: str, root: int) -> Seen:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    try:
        found = {}
        for name in os.listdir(place):
            info = os.stat(name, dir_fd=place, follow_symlinks=False)
            found[name] = SeenFile(info.st_ino, info.st_nlink, read(name, place))
        return found
    finally:
        os.close(place)


def _read_or_none(name: str, root: int) -> bytes | None:
    try:
        return read(name, root)
    except FileNotFoundError:
        return None


def _same(name: str, found: bytes | None, right: bytes | None, counts: Counts) -> None:
    counts.files += 1
    counts.bytes += len(found or b"")
    if found is None or right is None:
        if found is not right:
            raise Lost(f"{name} is {'missing' if found is None else 'there, and was deleted at its source'}")
        return
    if wrong := difference(found, right):
        raise Lost(f"{name}: {wrong}")


def _names(stage: Stage, outsider: Outsider, root: int) -> None:
    """The mount lists what there is, and nothing else."""
    right = set(stage.library) | {name for name in (*REPLACED, *REWRITTEN) if outsider.now(name) is not None}
    mine = tuple(stage.writer(number) for number in range(stage.writers))
    found = {
        name for name in _files(os.fspath(stage.mountpoint), "") if not name.startswith(tuple(f"{m}/" for m in mine))
    }
    if found != right:
        raise Lost(f"the mount lists {sorted(found - right)} too much, and lacks {sorted(right - found)}")


def _pins(stage: Stage, load: Load) -> None:
    with Client(stage.socket) as client:
        found = {pin.target for pin in client.pins()}
    commander = load.commander
    missing = commander.pinned - commander.in_doubt - found
    more = found - commander.pinned - commander.in_doubt
    if missing or more:
        raise Lost(f"pins: {sorted(missing)} are lost, {sorted(more)} were let go and are there")
    commander.pinned, commander.in_doubt = found, set()


# --- the cache folder ------------------------------------------------------------------------------------------------


def _folder(stage: Stage, counts: Counts) -> None:
    """Wait until rows and files agree: copies go on, and what was dropped is removed a moment later."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while True:
        rows = read_rows(stage.ssd)
        problem = unaccounted(rows, sizes(stage.ssd)) or _half_home(stage)
        if not problem and rows == read_rows(stage.ssd):
            break
        if time.monotonic() > deadline:
            raise Lost(
                f"the cache folder, {SETTLES_WITHIN_S:g} s after the start: {problem or 'the index never rests'}"
            )
        time.sleep(_POLL_S)
    check_index(stage.ssd)
    for row in rows:
        if row.state == "cached":
            _copy(stage, row, counts)


def unaccounted(rows: tuple[Row, ...], found: Mapping[str, int]) -> str:
    """The first file without a row, row without a file, or wrong size. What was moved is the file itself, and written
    to: its row need not know its size."""
    places = {row.place: row.size for row in rows}
    if strays := sorted(found.keys() - places.keys()):
        return f"no row speaks of {', '.join(strays[:5])}"
    if missing := sorted(places.keys() - found.keys()):
        return f"there is no {', '.join(missing[:5])}"
    written = {row.place for row in rows if row.state == "moved"}
    wrong = [
        f"{name} has {found[name]} bytes, not {size}"
        for name, size in places.items()
        if found[name] != size and name not in written
    ]
    return "; ".join(wrong[:5])


def _half_home(stage: Stage) -> str:
    """What is kept at the source of a moved file takes no room there."""
    with closing(_index(stage.ssd)) as index:
        moved = {inode % 2**64 for (inode,) in index.execute("SELECT inode FROM entries WHERE home IS NOT NULL")}
    try:
        kept = sorted(path for path in (stage.source / RESERVED).iterdir() if path.stat().st_size)
    except FileNotFoundError:
        return ""
    filled = [path.name for path in kept if path.name.isdigit() and int(path.name) in moved]
    return f"moved files take room at their source: {', '.join(filled)}" if filled else ""


def _copy(stage: Stage, row: Row, counts: Counts) -> None:
    """A copy that passes for that of its source's file has its bytes."""
    name = row.path.partition("/")[2]
    try:
        info = os.stat(stage.source / name)
        if (info.st_size, info.st_mtime_ns, info.st_ino) != (row.size, row.mtime_ns, row.inode):
            return  # known by its fingerprint not to be this file
        found = (stage.ssd / row.place).read_bytes()
        right = (stage.source / name).read_bytes()
    except FileNotFoundError:
        return  # evicted or moved just now, or gone at the source
    counts.files += 1
    counts.bytes += len(found)
    if (wrong := difference(found, right)) and row in read_rows(stage.ssd):
        raise Lost(f"the copy of {name} on the SSD: {wrong}")


def read_rows(ssd: Path) -> tuple[Row, ...]:
    """The index beside whoever has it open."""
    state = "CASE WHEN home IS NULL THEN state ELSE 'moved' END"
    columns = f"id, source || CAST('/' AS BLOB) || path, size, mtime_ns, source_inode, {state}"
    with closing(_index(ssd)) as index:
        rows = index.execute(f"SELECT {columns} FROM entries ORDER BY id").fetchall()
    return tuple(
        Row(number, os.fsdecode(path), size, int(mtime_ns), inode, state)
        for number, path, size, mtime_ns, inode, state in rows
    )


def check_index(ssd: Path) -> None:
    """Raises ``Lost`` unless SQLite finds nothing wrong with it."""
    with closing(_index(ssd)) as index:
        (verdict,) = index.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise Lost(f"the index: {verdict}")


def _index(ssd: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{ssd}/index.sqlite?mode=ro", uri=True, timeout=5)


def sizes(ssd: Path) -> dict[str, int]:
    """Every file below ``files`` and ``partial``; one that goes meanwhile may be left out."""
    found = {}
    for tree in ("files", "partial"):
        for name in _files(os.fspath(ssd / tree), f"{tree}/"):
            try:
                found[name] = os.lstat(ssd / name).st_size
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
    return found


def _files(top: str, prefix: str) -> Iterator[str]:
    for folder, _, names in os.walk(top):
        below = os.path.relpath(folder, top)
        for name in names:
            yield prefix + (name if below == "." else f"{below}/{name}")
