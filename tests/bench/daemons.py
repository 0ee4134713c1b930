"""What the processes behind a mount cost, read from /proc: processor time and memory. Touches no mount."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> tuple[int, ...]:
    """A process and all that descend from it: the keeper and its server."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = _parent(int(name))
            if parent is not None:
                children.setdefault(parent, []).append(int(name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return tuple(found)


def cpu_s(pids: Iterable[int]) -> float:
    """Processor seconds so far, of all their threads, in user and kernel mode; in steps of a clock tick."""
    return sum(sum(map(int, _stat(pid)[11:13])) for pid in pids) / _TICKS


def resident_bytes(pids: Iterable[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE


def _parent(pid: int) -> int | None:
    try:
        return int(_stat(pid)[1])
    except (FileNotFoundError, ProcessLookupError):
        return None  # gone meanwhile


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything; the state is the first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
