"""Whether another process is dead, although it may still be there: its other threads can outlive the first."""

from __future__ import annotations

import os
from pathlib import Path


def code_of_the_dead(pid: int) -> int | None:
    """The exit code of a process once its first thread has ended; None before that, and for one that was reaped."""
    return code_in(Path(f"/proc/{pid}/stat"))


def code_in(stat: Path) -> int | None:
    """As ``code_of_the_dead``, from a process's ``stat`` (proc_pid_stat(5))."""
    try:
        fields = stat.read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] in (b"Z", b"X") else None
