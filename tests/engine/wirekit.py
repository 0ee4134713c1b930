"""The file system over a channel, with the test as its kernel: what is asked, and when, is in the test's hands.

A server of its own process, as one process has one session. The kernel's end of the device is a socket (libfuse takes
an open descriptor for a mountpoint), so nothing is mounted. Messages: linux/fuse.h.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT_NODE = 1
ANSWERS_WITHIN_S = 30
REPLY_BYTES = 4096
"""As many as the kernel wants at least when it reads a folder."""
_PROJECT = Path(__file__).parents[2]
_LOOKUP, _UNLINK, _WRITE, _RELEASE, _INIT, _CREATE, _READDIRPLUS = 1, 10, 16, 18, 26, 35, 44
_ENTRY, _DIRENT = struct.Struct("=4Q2I6Q10I"), struct.Struct("=2Q2I")

_SERVER = """
import os, sys
from pathlib import Path
from cachefs.fs import channel
import pyfuse3, trio
from cachefs.fs.operations import Operations
from tests.engine.fskit import rooms

async def obey(fs):
    lines = trio.lowlevel.FdStream(os.dup(0))
    async for line in lines:
        verb, _, path = line.decode().rstrip("\\n").partition(" ")
        key = fs.key(path)
        if verb == "home":
            await fs.movers.restore(key)
        elif fs.store.get(key) is not None:
            await fs.movers.move(key)
        else:
            await fs.moved(path)
        print("done", flush=True)

async def serve(device, folder):
    async with rooms(Path(folder)) as fs, trio.open_nursery() as nursery:
        pyfuse3.init(Operations(fs.union, fs.routing, fs.changes), "/dev/fd/" + device, set())
        nursery.start_soon(obey, fs)
        await pyfuse3.main()

trio.run(serve, *sys.argv[1:])
"""


@dataclass(frozen=True, slots=True)
class Told:
    """A name of a folder as READDIRPLUS tells it: with the node, or (0) the name alone."""

    name: str
    node: int
    size: int
    place: int


@dataclass(slots=True)
class WireKernel:
    """The kernel of one mount. It keeps nothing, and forgets nothing."""

    own: socket.socket
    server: subprocess.Popen[bytes]
    source: Path
    _unique: int = field(default=0)

    def ask(self, opcode: int, node: int, body: bytes) -> bytes:
        """OSError as the system call would give it."""
        self._unique += 2
        header = struct.pack("=IIQQIIII", 40 + len(body), opcode, self._unique, node, 0, 0, os.getpid(), 0)
        self.own.sendall(header + body)
        answer = self.own.recv(1 << 20)
        length, error, unique = struct.unpack_from("=IiQ", answer)
        assert (length, unique) == (len(answer), self._unique)
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer[16:]

    def begin(self) -> None:
        self.ask(_INIT, 0, struct.pack("=IIIII44x", 7, 45, 128 << 10, 0xFFFFFFFF, 0xFFFFFFFF))

    def look_up(self, folder: int, name: str) -> int:
        """The node of a name."""
        return int(_ENTRY.unpack_from(self.ask(_LOOKUP, folder, os.fsencode(name) + b"\0"))[0])

    def unlink(self, folder: int, name: str) -> None:
        self.ask(_UNLINK, folder, os.fsencode(name) + b"\0")

    def create(self, folder: int, name: str) -> tuple[int, int]:
        """The node of a new file, and its handle."""
        body = struct.pack("=4I", os.O_RDWR | os.O_CREAT, 0o100644, 0, 0) + os.fsencode(name) + b"\0"
        answer = self.ask(_CREATE, folder, body)
        return int(_ENTRY.unpack_from(answer)[0]), int(struct.unpack_from("=Q", answer, _ENTRY.size)[0])

    def write(self, node: int, handle: int, data: bytes) -> None:
        self.ask(_WRITE, node, struct.pack("=QQIIQII", handle, 0, len(data), 0, 0, os.O_RDWR, 0) + data)

    def release(self, node: int, handle: int) -> None:
        self.ask(_RELEASE, node, struct.pack("=QIIQ", handle, os.O_RDWR, 0, 0))

    def read_folder(self, folder: int, place: int) -> list[Told]:
        """One READDIRPLUS; nothing at the end."""
        body = struct.pack("=QQIIQII", 0, place, REPLY_BYTES, 0, 0, os.O_RDONLY, 0)
        answer, at, found = self.ask(_READDIRPLUS, folder, body), 0, []
        while at < len(answer):
            entry = _ENTRY.unpack_from(answer, at)
            _, place, length, _ = _DIRENT.unpack_from(answer, at + _ENTRY.size)
            begin = at + _ENTRY.size + _DIRENT.size
            found.append(Told(os.fsdecode(answer[begin : begin + length]), entry[0], entry[7], place))
            at += _ENTRY.size + _DIRENT.size + (length + 7 & ~7)
        return found

    def move(self, path: str) -> None:
        """From now on the file is on the SSD alone."""
        self._tell(f"move {path}")

    def bring_home(self, path: str) -> None:
        """From now on it is at its source again."""
        self._tell(f"home {path}")

    def _tell(self, line: str) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(line.encode() + b"\n")
        assert self.server.stdout.readline() == b"done\n"


@dataclass(slots=True)
class Lister:
    """Somebody who reads a folder from its start to its end, a reply at a time."""

    kernel: WireKernel
    folder: int
    told: list[Told] = field(default_factory=list)
    is_done: bool = False

    def go_on(self) -> None:
        found = self.kernel.read_folder(self.folder, self.told[-1].place if self.told else 0)
        self.told += found
        self.is_done = not found

    def finish(self) -> None:
        while not self.is_done:
            self.go_on()

    @property
    def names(self) -> list[str]:
        """In the order in which they were told, without ``.`` and ``..``."""
        return [told.name for told in self.told if told.name not in {".", ".."}]


@contextmanager
def wire_kernel(folder: Path) -> Iterator[WireKernel]:
    """A kernel with the file system over ``folder/sources/Media``, which cannot be watched."""
    with serving(_SERVER, str(folder)) as (own, _, server):
        kernel = WireKernel(own, server, folder / "sources" / "Media")
        kernel.begin()
        yield kernel


@contextmanager
def serving(program: str, *args: str) -> Iterator[tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]]:
    """The kernel's end of a device, the device, and a process that runs ``program`` with its number."""
    own, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own, device:
        own.settimeout(ANSWERS_WITHIN_S)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(device.fileno()), *args],
            cwd=_PROJECT,
            env={**os.environ, "PYTHONPATH": "."},
            pass_fds=(device.fileno(),),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as server:
            try:
                yield own, device, server
            finally:
                server.kill()
