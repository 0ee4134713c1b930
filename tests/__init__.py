"""Everything that tries cachefs: tests, demo, benchmark, crash and soak rigs. Their temporary files are on a disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cachefs import mounts

_ON_DISK = Path("/var/tmp")
"""Kept over a restart, and so not in memory: file-hierarchy(7)."""

_MEMORY = ("tmpfs", "ramfs")


def _leave_memory() -> None:
    """Debian 13 has /tmp in memory, where the kernel reads no cached file by itself. TMPDIR is a person's word."""
    table = mounts.all_now()
    here, there = (mounts.holding(table, path) for path in (Path(tempfile.gettempdir()).resolve(), _ON_DISK))
    if "TMPDIR" in os.environ or here is None or there is None:
        return
    if here.fstype in _MEMORY and there.fstype not in _MEMORY and os.access(_ON_DISK, os.W_OK):
        os.environ["TMPDIR"] = tempfile.tempdir = str(_ON_DISK)


_leave_memory()
