"""How SQLite shares its files in the cache folder with others, which a full SSD decides.

Used by ``cache.index`` and ``cache.metadata`` when they open one. Blocks.
"""

from __future__ import annotations

import os

from cachefs.cache.full import takes_nothing

_ROOM_BYTES = 4 << 20
"""SQLite's write-ahead log grows to this before it is used anew."""


def locking(path: str) -> str:
    """How SQLite is to share one of its files, as a PRAGMA.

    With others it needs a file beside it (``-shm``) that is mapped into memory, before it can even read. On a full SSD
    that cannot be made, or worse: a write to the mapping ends the process with SIGBUS. Alone it needs none; but then
    nobody can look at the file, nor a start follow on a process that hangs in a dead SSD.
    """
    return f"PRAGMA locking_mode = {'EXCLUSIVE' if _is_full(os.path.dirname(path)) else 'NORMAL'}"


def _is_full(folder: str) -> bool:
    try:
        space = os.statvfs(folder)
    except OSError:
        return False
    no_file = space.f_files > 0 and space.f_favail == 0
    return space.f_bavail * space.f_frsize < _ROOM_BYTES or no_file or takes_nothing(folder)
