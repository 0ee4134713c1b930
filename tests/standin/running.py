"""cachefs as its users run it: ``cachefs mount -c FILE`` in a process of its own, ready, commanded, and gone again.

Mount tests and the demo start it here. Nothing in this module touches the mount itself: it may hang.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cachefs.control.client import Client
from cachefs.errors import CachefsError
from cachefs.model import Status
from cachefs.mounts import mounted_at, unmount

REPOSITORY = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 30.0
ENDS_WITHIN_S = 20.0
POLL_S = 0.05


class CachefsFailed(Exception):
    """It did not start, or did not end; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class RunningCachefs:
    """One ``cachefs mount``. ``process`` is the keeper; its standard error goes to ``log``."""

    mountpoint: Path
    config: Path
    socket: Path
    log: Path
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        """A connection to its control socket; the caller closes it."""
        return Client(self.socket)

    def status(self) -> Status:
        with self.client() as client:
            return client.status()

    def run(self, command: str, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """``cachefs COMMAND -c CONFIG ARGUMENTS``, to its end; the caller looks at the exit code."""
        return subprocess.run(
            [sys.executable, "-m", "cachefs", command, "-c", os.fspath(self.config), *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def terminate(self) -> int:
        """SIGTERM, and the exit code. ``CachefsFailed`` when it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise CachefsFailed(f"cachefs did not end within {ENDS_WITHIN_S:g} s of SIGTERM\n{self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL to the keeper, as a crash would; the mount may stay behind, dead."""
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        """End it in whatever state it is, and leave nothing mounted."""
        if self.process.poll() is None:
            try:
                self.terminate()
            except CachefsFailed:
                self.kill()
        while mounted_at(self.mountpoint) is not None:
            unmount(self.mountpoint, force=True)

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="backslashreplace").splitlines()[-lines:])


def start_cachefs(
    config: Path,
    log: Path,
    settings: Mapping[str, Any],
    program: Path = REPOSITORY,
    variables: Mapping[str, str] | None = None,
) -> RunningCachefs:
    """Write ``settings`` as ``config``, start ``cachefs mount``, return once it is mounted and answers.

    ``settings`` must hold ``mountpoint`` and ``control.socket``; ``program`` is the folder that the package is in;
    ``variables`` are added to the environment.
    ``CachefsFailed`` as soon as the process has ended.
    """
    config.touch(mode=0o600)  # it may hold a token
    config.write_text(yaml.safe_dump(dict(settings)))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CACHEFS_")}
    environ |= variables or {}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.fspath(program), environ.get("PYTHONPATH"))))
    with log.open("ab") as writing:
        process = subprocess.Popen(
            [sys.executable, "-m", "cachefs", "mount", "-c", os.fspath(config)],
            cwd=program,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,  # Ctrl-C reaches the one who started it, who then ends it
        )
    running = RunningCachefs(Path(settings["mountpoint"]), config, Path(settings["control"]["socket"]), log, process)
    with ExitStack() as undo:
        undo.callback(running.remove)
        wait_until_ready(running)
        undo.pop_all()
    return running


def wait_until_ready(running: RunningCachefs, within_s: float = READY_WITHIN_S) -> None:
    """Block until it is mounted and its control socket answers."""
    deadline = time.monotonic() + within_s
    while not _is_ready(running):
        try:
            code = running.process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise CachefsFailed(f"cachefs was not ready within {within_s:g} s\n{running.tail()}") from None
        else:
            raise CachefsFailed(f"cachefs ended with {code} before it was ready\n{running.tail()}")


def _is_ready(running: RunningCachefs) -> bool:
    mount = mounted_at(running.mountpoint)
    if mount is None or not mount.is_cachefs or not running.socket.exists():
        return False
    try:
        return _descends_from(running.status().pid, running.process.pid)
    except CachefsError:
        return False


def _descends_from(pid: int, ancestor: int) -> bool:
    """Whether it is this one that answers: the server of a keeper that was killed does so while it stops."""
    while pid > 1 and pid != ancestor:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        pid = int(fields[1])
    return pid == ancestor
