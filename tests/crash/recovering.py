"""How long the recovery of a cache with 10,000 entries takes after a death in the midst of its work.

Nothing of it needs a mount or a source: recovery asks neither.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cachefs.cache.recovery import Recovery, open_folder
from cachefs.model import SourceName
from tests.crash.stage import SOURCE

ENTRIES = 10_000
LEFTOVERS = 100
_SOURCES = {SourceName(SOURCE): f"/mnt/{SOURCE}"}


@dataclass(frozen=True, slots=True)
class Measured:
    """``took_s`` for ``found``; ``listing_s`` is what only looking at the same files takes."""

    took_s: float
    listing_s: float
    found: Recovery


def measure(folder: Path, entries: int = ENTRIES) -> Measured:
    """Make such a cache below ``folder``, recover it, and remove it again."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        ssd = Path(made, "ssd")
        _fill(ssd, entries)
        began = time.monotonic()
        looked_at = sum(1 for _ in _stats(os.fspath(ssd)))
        listing_s = time.monotonic() - began
        if looked_at < entries:
            raise RuntimeError(f"only {looked_at} files were made")
        began = time.monotonic()
        opened = open_folder(os.fspath(ssd), _SOURCES)
        took_s = time.monotonic() - began
        opened.index.close()
        opened.folder.close()
        return Measured(took_s, listing_s, opened.recovery)


def _fill(ssd: Path, entries: int) -> None:
    """Entries of one byte, among them a few without a file, and files without a row; the index was not closed."""
    opened = open_folder(os.fspath(ssd), _SOURCES)
    opened.index.close()
    opened.folder.close()
    for number in range(entries + LEFTOVERS):
        path = ssd / "files" / SOURCE / _path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with closing(sqlite3.connect(ssd / "index.sqlite")) as connection, connection:
        connection.executemany(
            "INSERT INTO entries (source, path, size, mtime_ns, inode, links, state, ranges, reason, begun_at,"
            " labelled) VALUES (?, ?, 1, '1', 1, 1, 'cached', x'', '', 0, 1)",
            [(SOURCE.encode(), _path(number).encode()) for number in range(LEFTOVERS, entries + 2 * LEFTOVERS)],
        )
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', x'')")


def _path(number: int) -> str:
    return f"Show {number // 100}/{number}.mkv"


def _stats(folder: str) -> Iterator[os.stat_result]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                yield from _stats(item.path)
            else:
                yield item.stat(follow_symlinks=False)
