"""What befalls the cache folder while cachefs is dead. Never what is the only copy of anything."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress

from cachefs.cache.keepsake import NAME
from cachefs.fs.found import RESERVED
from tests.crash.audit import sizes
from tests.crash.rounds import Mishap
from tests.crash.stage import SOURCE, Stage


def befall(stage: Stage, mishap: Mishap) -> None:
    """Change the cache folder; nobody has it open."""
    _ACTS[mishap](stage)


def _nothing(stage: Stage) -> None:
    pass


def _stray_files(stage: Stage) -> None:
    folder = stage.ssd / "files" / SOURCE / "nobody knows" / "this folder"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(b"of nobody")
    (stage.ssd / "partial" / "1000000").write_bytes(b"of nobody")


def _rows_without_files(stage: Stage) -> None:
    """Where files move, a published one may be the only one."""
    trees = ("files/", "partial/") if stage.mode == "copy" else ("partial/",)
    for name in sorted(name for name in sizes(stage.ssd) if name.startswith(trees))[:3]:
        (stage.ssd / name).unlink()


def _lost_index(stage: Stage) -> None:
    for suffix in ("", "-wal", "-shm"):
        (stage.ssd / f"index.sqlite{suffix}").unlink(missing_ok=True)


def _lost_keepsake(stage: Stage) -> None:
    (stage.ssd / NAME).unlink(missing_ok=True)


def _damaged_index(stage: Stage) -> None:
    with (stage.ssd / "index.sqlite").open("r+b") as file:
        file.write(b"this is no index any more")
    (stage.ssd / "index.sqlite-wal").unlink(missing_ok=True)


def _fewer_sources(stage: Stage) -> None:
    """As if there had been another one until now."""
    with closing(sqlite3.connect(stage.ssd / "index.sqlite")) as index, index:
        (sources,) = index.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
        more = json.dumps({**json.loads(sources), "Gone": "/mnt/gone"}, sort_keys=True)
        index.execute("UPDATE meta SET value = ? WHERE name = 'identity'", (more.encode(),))


def _half_home(stage: Stage) -> None:
    """What is still kept of a file that has moved no more (the kernel knew its number), nobody brings home."""
    moved: set[str] = set()
    with (
        suppress(sqlite3.OperationalError),  # the kill was so early that there is no index
        closing(sqlite3.connect(f"file:{stage.ssd}/index.sqlite?mode=rw", uri=True)) as index,
    ):
        rows = index.execute("SELECT source_inode FROM entries WHERE home IS NOT NULL")
        moved = {str(inode) for (inode,) in rows}
    with suppress(FileNotFoundError):  # nothing has moved
        for kept in (stage.source / RESERVED).iterdir():
            if kept.name in moved:
                kept.write_bytes(b"the beginning of a film")


def _no_labels(stage: Stage) -> None:
    with closing(sqlite3.connect(stage.ssd / "index.sqlite")) as index, index:
        index.execute("UPDATE entries SET labelled = 0")


_ACTS = {
    Mishap.NONE: _nothing,
    Mishap.STRAY_FILES: _stray_files,
    Mishap.ROWS_WITHOUT_FILES: _rows_without_files,
    Mishap.LOST_INDEX: _lost_index,
    Mishap.LOST_KEEPSAKE: _lost_keepsake,
    Mishap.DAMAGED_INDEX: _damaged_index,
    Mishap.FEWER_SOURCES: _fewer_sources,
    Mishap.HALF_HOME: _half_home,
    Mishap.NO_LABELS: _no_labels,
}
