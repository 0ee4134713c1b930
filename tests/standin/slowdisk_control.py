"""The slow disk as tests and the demo drive it: start it as a process, command it, read its counters, end it.

Imports neither pyfuse3 nor trio: the disk's process does. Commands go as JSON lines over the disk's unix socket.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.standin.slowdisk_process import DiskProcess, SlowDiskFailed, SlowDiskSettings
from tests.standin.slowdisk_rules import IN_MEMORY


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


@dataclass(frozen=True, slots=True)
class SlowDisk:
    """A running slow disk. Paths are relative to its root; the empty path is the whole disk.

    A rule is for a part of the disk: what lies at or below ``path`` (``exact``: at it alone), for the operations
    ``kinds`` (none: all). It holds until ``release``; of several faults the newest that meets an operation decides.
    """

    process: DiskProcess

    @property
    def backing(self) -> Path:
        return self.process.backing

    @property
    def mountpoint(self) -> Path:
        return self.process.mountpoint

    def counts(self) -> DiskCounts:
        return DiskCounts(**self._command("counts"))

    def reset(self) -> None:
        """Counters to zero."""
        self._command("reset")

    def hang(self, path: str = "", kinds: Sequence[str] = (), *, exact: bool = False) -> None:
        """Give no answer."""
        self._command("fault", path=path, kinds=kinds, exact=exact, errno=None)

    def fail(self, number: int = errno.EIO, path: str = "", kinds: Sequence[str] = (), *, exact: bool = False) -> None:
        """Answer with this errno."""
        self._command("fault", path=path, kinds=kinds, exact=exact, errno=number)

    def slow_down(
        self,
        path: str = "",
        kinds: Sequence[str] = (),
        *,
        delay_s: float = 0.0,
        bytes_per_s: float | None = None,
        exact: bool = False,
    ) -> None:
        """Be slower than the disk is."""
        self._command("slow_down", path=path, kinds=kinds, exact=exact, delay_s=delay_s, bytes_per_s=bytes_per_s)

    def release(self, path: str = "", kinds: Sequence[str] = ()) -> None:
        """End every rule at or below ``path`` that is for these kinds alone (none: every rule); what hangs goes on."""
        self._command("release", path=path, kinds=kinds)

    def go_away(self) -> None:
        """Its server dies: the mount stays, and everything in it fails with ENOTCONN, also what is open."""
        self.process.kill()

    def leave_empty_folder(self) -> None:
        """It is gone, and an ordinary empty folder in its place; what is open in it stays dead."""
        self.process.kill()
        self.process.unmount()

    def come_back(self) -> None:
        """It is mounted anew in the same place, without rules, every counter at zero. What was open stays dead."""
        self.leave_empty_folder()
        self.process.start()

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

    def _command(self, command: str, timeout_s: float = 20.0, **arguments: object) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(os.fspath(self.process.socket_path))
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
        process = DiskProcess(backing, mountpoint, Path(folder, "control"), settings or SlowDiskSettings(), owner_read)
        try:
            process.start()
            try:
                yield SlowDisk(process)
            finally:
                process.end()
        finally:
            os.close(owner_read)
            os.close(owner_write)
