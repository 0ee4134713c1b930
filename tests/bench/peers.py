"""Other file systems of this kind, mounted over the same files: each with the settings that make it fast.

As for cachefs on a local disk, names and attributes may be believed for long, and folders kept by the kernel.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.mounts import mounted_at, unmount
from tests.bench.probe import ProbeFailed
from tests.demo.stop import Stop

_WITHIN_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that stays in the foreground; ``options`` before source and mountpoint. ``says``: its version."""

    name: str
    program: str
    options: tuple[str, ...]
    source: str = "{source}"
    version: str = "--version"


PEERS = (
    Peer(
        "mergerfs",
        "mergerfs",
        ("-f", "-o", "allow_other,cache.files=auto-full,cache.readdir=true,cache.attr=600,cache.entry=600"),
        version="-V",
    ),
    Peer("bindfs", "bindfs", ("-f", "-o", "attr_timeout=600,entry_timeout=600"), version="-V"),
    Peer(
        "unionfs-fuse",
        "unionfs-fuse",
        ("-f", "-o", "allow_other,auto_cache,attr_timeout=600,entry_timeout=600"),
        "{source}=RO",
    ),
)


def found() -> list[Peer]:
    """Those on this machine."""
    return [peer for peer in PEERS if shutil.which(peer.program)]


def version(peer: Peer) -> str:
    """The line in which it names itself, with the options it is mounted with."""
    said = subprocess.run([peer.program, peer.version], capture_output=True, text=True, check=False)
    lines = (line for line in (said.stdout + said.stderr).splitlines() if peer.name in line)
    return f"{next(lines, 'unknown version')} ({' '.join(peer.options)})"


@contextmanager
def mounted(peer: Peer, source: Path, mountpoint: Path, stop: Stop) -> Iterator[int]:
    """Mount it; the process id. Afterwards nothing is mounted and the process is gone."""
    process = subprocess.Popen(
        [peer.program, *peer.options, peer.source.format(source=source), mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the one who started it, who then ends it
    )
    try:
        deadline = time.monotonic() + _WITHIN_S
        while mounted_at(mountpoint) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProbeFailed(f"{peer.name} did not mount (exit code {process.poll()}); try --without {peer.name}")
            stop.wait(_POLL_S)
        yield process.pid
    finally:
        while mounted_at(mountpoint) is not None:
            unmount(mountpoint, force=True)
        process.kill()
        process.wait()
