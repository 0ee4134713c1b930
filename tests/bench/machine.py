"""What a reader must know of the machine and of the run to judge its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import pyfuse3

from cachefs.mounts import parse
from tests.bench.sample import Amounts
from tests.bench.works import GIB, MIB
from tests.standin.running import REPOSITORY

BUSY = 0.5
"""A load per processor from which on somebody else is at work as well."""


def facts(place: Path, amounts: Amounts, fast_path: str, load_before: float) -> dict[str, str]:
    """In words, in the order of their weight. No name of the machine, and no path."""
    return {
        "kernel": f"Linux {platform.release()} ({platform.machine()})",
        "processor": f"{_processor()}, {os.cpu_count()} of them",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.0f} GiB",
        "file system beneath": _file_system(place),
        "software": f"Python {platform.python_version()}, pyfuse3 {pyfuse3.__version__}, libfuse {_libfuse()}",
        "cachefs": _commit(),
        "cached files": f"not read by the kernel itself: {fast_path}" if fast_path else "read by the kernel itself",
        "files": f"4 films of {amounts.film_bytes // MIB} MiB, 64 clips of 1 MiB, trees of 10,000 empty files",
        "rounds": f"{amounts.rounds} rounds, each with passes of at least {amounts.min_ms} ms",
        "load before and after": f"load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after",
        "day": time.strftime("%Y-%m-%d"),
    }


def busy() -> str | None:
    """Why the figures would say little now."""
    load = os.getloadavg()[0]
    if load / (os.cpu_count() or 1) < BUSY:
        return None
    return f"this machine has other work (load {load:.1f} on {os.cpu_count()} processors): the figures will be noisy"


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _file_system(place: Path) -> str:
    mounts = parse(Path("/proc/self/mountinfo").read_bytes())
    over = [mount for mount in mounts if place.is_relative_to(mount.path)]
    return max(over, key=lambda mount: len(mount.path.parts)).fstype


def _libfuse() -> str:
    said = subprocess.run(["pkg-config", "--modversion", "fuse3"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
