"""A crash leaves no picture of this process's memory behind: the Plex token is in it.

Called by keeper and server before anything else.
"""

from __future__ import annotations

import resource


def leave_no_core() -> None:
    """Of a limit of one byte the kernel makes no file, and starts no program that would take a core either, which it
    does with a limit of nothing (fs/coredump.c)."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (1 if most else 0, most))
