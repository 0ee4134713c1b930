"""The slow disk's process: started, killed as a crash would, unmounted, mounted again in the same place, ended.

Used by ``slowdisk_control``, which commands the disk while it runs. Nothing here touches the mountpoint: it may hang,
or be dead. It must not have anything mounted over it when it goes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cachefs.mounts import unmount

REPOSITORY = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 20.0
ENDS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class SlowDiskSettings:
    """How slow the disk is. ``bytes_per_s`` None: as fast as it can.

    ``direct_io``: every ``read()`` arrives. Without it the kernel's page cache answers what the same opening (and any
    other that overlaps it) has read already, and read-ahead asks for more than was read; a new open starts anew.
    ``long_tilde``: a tilde in a name is shown as so many, as CIFS, NTFS or rclone show names that ext4 cannot hold.
    """

    wake_up_s: float = 3.0
    idle_s: float = 20.0
    bytes_per_s: float | None = 40e6
    burst_bytes: int = 1 << 20
    seek_s: float = 0.008
    direct_io: bool = False
    long_tilde: int = 1


FAST = SlowDiskSettings(wake_up_s=0.0, idle_s=1e6, bytes_per_s=None, seek_s=0.0)
"""No slowness of its own: for tests that only count, or want faults."""


class SlowDiskFailed(Exception):
    """The disk's process could not start, died, or refused a command."""


@dataclass(slots=True)
class DiskProcess:
    """What serves one mountpoint. ``owner_fd`` is the reading end of a pipe: the process ends when the other closes."""

    backing: Path
    mountpoint: Path
    socket_path: Path
    settings: SlowDiskSettings
    owner_fd: int
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mount, and return once it is ready. ``SlowDiskFailed``, with nothing left mounted."""
        self.socket_path.unlink(missing_ok=True)
        ready_read, ready_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                self._command(ready_write),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                pass_fds=(ready_write, self.owner_fd),
                start_new_session=True,  # Ctrl-C reaches the one who started it, who then ends it
            )
        finally:
            os.close(ready_write)
        with os.fdopen(ready_read, "rb") as ready:
            readable, _, _ = select.select([ready], [], [], READY_WITHIN_S)
            if not readable or not ready.read(1):
                self.end()
                raise SlowDiskFailed(f"the slow disk did not start at {self.mountpoint}: its own message is on stderr")

    def _command(self, ready_fd: int) -> list[str]:
        command = [sys.executable, "-m", "tests.standin.slowdisk", str(self.backing), str(self.mountpoint)]
        command += ["--control", str(self.socket_path), "--settings", json.dumps(asdict(self.settings))]
        return [*command, "--ready-fd", str(ready_fd), "--owner-fd", str(self.owner_fd)]

    def kill(self) -> None:
        """End it as a crash would: the mount stays, dead, and so does every file that is open in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def unmount(self) -> None:
        """Take the mount away: what is left is the folder below it. Files that are open stay dead."""
        unmount(self.mountpoint, force=True)

    def end(self) -> int | None:
        """SIGTERM unmounts; whatever is left after a while is killed and its mount removed by force. The exit code."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.unmount()
        return self._process.returncode
