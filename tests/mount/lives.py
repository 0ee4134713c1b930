"""What the tests of starting, stopping and failing share: a small configuration, processes that read, and waiting.

Nothing here touches a mount in the test's own process where it might hang: readers are processes of their own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cachefs.mounts import mounted_at
from tests.standin.running import POLL_S, REPOSITORY, CachefsFailed, RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

TOKEN = "secret-token-0123456789"
ENDS_WITHIN_S = 20.0

_READ_FOR_EVER = """
import os, sys
while True:
    number = os.open(sys.argv[1], os.O_RDONLY)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(number, 65536):
        pass
    os.close(number)
"""
_READ_AT = """
import os, sys
number = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
for line in sys.stdin:
    try:
        print(len(os.pread(number, 4096, int(line))), flush=True)
    except OSError as error:
        print(-error.errno, flush=True)
"""


@contextmanager
def settings_in(folder: Path, sources: Sequence[Path] = ()) -> Iterator[dict[str, Any]]:
    """``cachefs.yaml`` with everything it needs below ``folder``: by default one plain folder, ``media``, as source."""
    for name in ("media", "ssd", "mount"):
        (folder / name).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cachefs-") as short:  # a socket's address holds 107 bytes
        yield {
            "mountpoint": str(folder / "mount"),
            "sources": [{"path": str(path), "name": path.name} for path in sources or (folder / "media",)],
            "cache": {"path": str(folder / "ssd"), "max_size": "1GiB", "min_free": "1MiB"},
            "control": {"socket": f"{short}/control.sock"},
        }


@contextmanager
def slow_and_media_in(
    folder: Path, disk: SlowDisk, files: Mapping[str, bytes], timeout_s: float
) -> Iterator[dict[str, Any]]:
    """As ``settings_in``, with ``files`` in two sources: ``slow``, the slow disk, and ``media``, a plain folder. Their
    ttl is zero: nothing is believed."""
    with settings_in(folder, (disk.mountpoint, folder / "media")) as made:
        for source in made["sources"]:
            source |= {"timeout": f"{timeout_s:g}s", "ttl": "0s"}
        for place in (disk.backing, folder / "media"):
            for name, content in files.items():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(content)
        yield made


@dataclass(frozen=True, slots=True)
class Attempt:
    """A ``cachefs mount`` that ended by itself."""

    code: int
    output: str


def attempt(config: Path, settings: dict[str, Any], before: Sequence[str] = ()) -> Attempt:
    """Run ``cachefs mount`` to its end, started through the command ``before`` where one is given. It fails the test
    by ``TimeoutExpired`` when it mounts instead of refusing."""
    config.write_text(yaml.safe_dump(settings))
    return attempt_file(config, before)


def attempt_file(config: Path, before: Sequence[str] = ()) -> Attempt:
    """As ``attempt``, with the file as it is."""
    command = [*before, sys.executable, "-m", "cachefs", "mount", "-c", str(config)]
    with tempfile.TemporaryFile() as output:  # no pipe: a server that hangs in a disk would hold it open
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(ENDS_WITHIN_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(ENDS_WITHIN_S)
        output.seek(0)
        return Attempt(code, output.read().decode())


@contextmanager
def reading_for_ever(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads the file again and again until it fails or the block ends."""
    process = subprocess.Popen([sys.executable, "-c", _READ_FOR_EVER, str(path)], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(ENDS_WITHIN_S)


class Reader:
    """A process that holds a file open and reads where it is told, one read at a time."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READ_AT, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def begin(self, offset: int) -> None:
        """Ask for 4 KiB at ``offset``; ``result`` has the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{offset}\n")
        self._process.stdin.flush()

    def result(self) -> int:
        """Bytes read by the last ``begin``, or minus the errno."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def read(self, offset: int) -> int:
        self.begin(offset)
        return self.result()

    def kill(self) -> None:
        """SIGKILL; not waited for, since a process in a hung read cannot end."""
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait(ENDS_WITHIN_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def readers() -> Iterator[Callable[[Path], Reader]]:
    """Start readers; all end with the block."""
    started: list[Reader] = []

    def start(path: Path) -> Reader:
        started.append(Reader(path))
        return started[-1]

    try:
        yield start
    finally:
        for reader in started:
            reader.end()


def wait_until(running: RunningCachefs, condition: Callable[[], bool], what: str, within_s: float = 20.0) -> None:
    """Poll with a deadline; fails at once when cachefs has ended."""
    deadline = time.monotonic() + within_s
    while not condition():
        try:
            code = running.process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise CachefsFailed(f"not within {within_s:g} s: {what}\n{running.tail()}") from None
        else:
            raise CachefsFailed(f"cachefs ended with {code} before: {what}\n{running.tail()}")


def wait_gone(pid: int, within_s: float = ENDS_WITHIN_S) -> None:
    """Until a process that is not our child has ended, or is only waited for by its parent."""
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([number], (), (), within_s)
    finally:
        os.close(number)
    assert readable, f"process {pid} has not ended within {within_s:g} s"


def kill_server(running: RunningCachefs) -> int:
    """SIGKILL to the server of a running cachefs; its pid."""
    pid = running.status().pid
    os.kill(pid, signal.SIGKILL)
    return pid


def kill_both(running: RunningCachefs) -> None:
    """SIGKILL to keeper and server, as when a container is killed: nobody is left who could unmount."""
    server = running.status().pid
    os.kill(server, signal.SIGSTOP)  # so that the keeper's death cannot make it unmount
    running.kill()
    os.kill(server, signal.SIGKILL)
    wait_gone(server)


def is_clean(running: RunningCachefs) -> bool:
    """Whether nothing of it is left: no mount, no socket, no process that holds its cache."""
    return mounted_at(running.mountpoint) is None and not running.socket.exists()
