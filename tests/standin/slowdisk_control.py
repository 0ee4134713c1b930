"""The slow disk as tests and the demo drive it: start it as a process, command it, read its counters, end it.

Imports neither pyfuse3 nor trio: the disk's process does. Commands go as JSON lines over the disk's unix socket.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cachefs.mounts import unmount

REPOSITORY = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 20.0
ENDS_WITHIN_S = 5.0

IN_MEMORY = frozenset({"statfs", "flush", "release", "releasedir", "forget"})
"""Operations that no real disk moves for: counted, and subject to faults, but they neither wait nor wake."""


@dataclass(frozen=True, slots=True)
class SlowDiskSettings:
    """How slow the disk is. ``bytes_per_s`` None: as fast as it can.

    ``direct_io``: every ``read()`` arrives. Without it the kernel's page cache answers what the same opening (and any
    other that overlaps it) has read already, and read-ahead asks for more than was read; a new open starts anew.
    """

    wake_up_s: float = 3.0
    idle_s: float = 20.0
    bytes_per_s: float | None = 40e6
    burst_bytes: int = 1 << 20
    seek_s: float = 0.008
    direct_io: bool = False


FAST = SlowDiskSettings(wake_up_s=0.0, idle_s=1e6, bytes_per_s=None, seek_s=0.0)
"""No slowness of its own: for tests that only count, or want faults."""


@dataclass(frozen=True, slots=True)
class DiskCounts:
    """What the disk was asked since the last reset."""

    operations: Mapping[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    written_bytes: int = 0
    wake_ups: int = 0
    held: int = 0
    asleep: bool = False

    @property
    def total(self) -> int:
        """Operations that a real disk would have had to move for."""
        return sum(count for kind, count in self.operations.items() if kind not in IN_MEMORY)

    def of(self, kind: str) -> int:
        """How often ``kind`` (``lookup``, ``getattr``, ``open``, ``read``, …) was asked."""
        return self.operations.get(kind, 0)


class SlowDiskFailed(Exception):
    """The disk's process could not start, died, or refused a command."""


@dataclass(frozen=True, slots=True)
class SlowDisk:
    """A running slow disk. Paths are relative to its root; the empty path is the whole disk."""

    backing: Path
    mountpoint: Path
    socket_path: Path
    process: subprocess.Popen[bytes]

    def counts(self) -> DiskCounts:
        return DiskCounts(**self._command("counts"))

    def reset(self) -> None:
        """Counters to zero."""
        self._command("reset")

    def hang(self, path: str = "", kinds: tuple[str, ...] = ()) -> None:
        """From now on operations below ``path`` get no answer until ``release``."""
        self._command("fault", path=path, kinds=kinds, errno=None)

    def fail(self, number: int = errno.EIO, path: str = "", kinds: tuple[str, ...] = ()) -> None:
        """From now on operations below ``path`` fail with this errno until ``release``."""
        self._command("fault", path=path, kinds=kinds, errno=number)

    def go_away(self) -> None:
        """Everything fails as on a mount whose server is gone."""
        self.fail(errno.ENOTCONN)

    def release(self, path: str = "") -> None:
        """End every hang and failure at or below ``path``."""
        self._command("release", path=path)

    def slow_down(self, path: str, *, delay_s: float | None = None, bytes_per_s: float | None = None) -> None:
        """Make one part of the tree slower than the disk is; neither value ends it."""
        self._command("slow_down", path=path, delay_s=delay_s, bytes_per_s=bytes_per_s)

    def settings(self, **changes: float | bool | None) -> None:
        """Change fields of ``SlowDiskSettings`` while it runs."""
        self._command("settings", changes=changes)

    def sleep(self) -> None:
        """Stop the motor now."""
        self._command("sleep")

    def wake(self) -> None:
        """Start the motor, at once."""
        self._command("wake")

    def wait_asked(self, kind: str, times: int = 1, timeout_s: float = 20.0) -> None:
        """Block until ``kind`` was asked ``times`` times since the last reset; ``TimeoutError``."""
        self._command("until_asked", timeout_s, kind=kind, times=times)

    def wait_held(self, at_least: int = 1, timeout_s: float = 20.0) -> None:
        """Block until a hang holds this many operations; ``TimeoutError``."""
        self._command("until_held", timeout_s, at_least=at_least)

    def kill(self) -> None:
        """End the process as a crash would: the mount stays, dead, until the context manager removes it."""
        self.process.kill()
        self.process.wait()

    def _command(self, command: str, timeout_s: float = 20.0, **arguments: object) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(os.fspath(self.socket_path))
                connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
                with connection.makefile("rb") as lines:
                    answer: dict[str, Any] = json.loads(lines.readline() or b'{"error": "it ended"}')
        except ConnectionError as error:
            raise SlowDiskFailed(f"slow disk: {command}: {error}") from error
        if "error" in answer:
            raise SlowDiskFailed(f"slow disk: {command}: {answer['error']}")
        return answer


@contextmanager
def slow_disk(backing: Path, mountpoint: Path, settings: SlowDiskSettings | None = None) -> Iterator[SlowDisk]:
    """A slow disk over ``backing``, mounted at ``mountpoint`` (both exist), ready when this returns.

    Leaving it unmounts and ends the process, hung or not. It also goes by itself when this process dies.
    """
    # A name of its own and short: a socket's address holds 107 bytes, and pytest's folders are deep.
    with tempfile.TemporaryDirectory(prefix="slowdisk-") as folder:
        owner_read, owner_write = os.pipe()
        try:
            disk = _start(backing, mountpoint, settings or SlowDiskSettings(), Path(folder, "control"), owner_read)
            try:
                yield disk
            finally:
                _end(disk)
        finally:
            os.close(owner_read)
            os.close(owner_write)


def _start(backing: Path, mountpoint: Path, settings: SlowDiskSettings, control: Path, owner_read: int) -> SlowDisk:
    ready_read, ready_write = os.pipe()
    command = [sys.executable, "-m", "tests.standin.slowdisk", str(backing), str(mountpoint), "--control", str(control)]
    command += [
        "--settings",
        json.dumps(asdict(settings)),
        "--ready-fd",
        str(ready_write),
        "--owner-fd",
        str(owner_read),
    ]
    try:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            pass_fds=(ready_write, owner_read),
            start_new_session=True,  # Ctrl-C reaches the one who started it, who then ends it
        )
    finally:
        os.close(ready_write)
    disk = SlowDisk(backing, mountpoint, control, process)
    with os.fdopen(ready_read, "rb") as ready:
        readable, _, _ = select.select([ready], [], [], READY_WITHIN_S)
        if not readable or not ready.read(1):
            _end(disk)
            raise SlowDiskFailed(f"the slow disk did not start at {mountpoint}: its own message is on stderr")
    return disk


def _end(disk: SlowDisk) -> None:
    """SIGTERM unmounts; whatever is left after a while is killed and its mount removed by force."""
    disk.process.send_signal(signal.SIGTERM)
    try:
        disk.process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        disk.kill()
    unmount(disk.mountpoint, force=True)
