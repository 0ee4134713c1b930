"""What the channel makes of single messages: the test plays the kernel, at the other end of a socket.

libfuse takes an open descriptor for a mountpoint (``/dev/fd/N``), so nothing is mounted. Messages: linux/fuse.h.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.engine.wirekit import serving

PLAIN, MARKED, FAILS = 2, 3, 4
HANDLE, BACKING_ID = 7, 42
LOOKUP, OPEN, INIT = 1, 14, 26
EVERYTHING = 0xFFFFFFFF

_SERVER = f"""
import errno, sys, threading
from cachefs.fs import channel
import pyfuse3, trio

class Operations(pyfuse3.Operations):
    async def open(self, inode, flags, ctx):
        if inode == {FAILS}:
            raise pyfuse3.FUSEError(errno.EIO)
        return pyfuse3.FileInfo(fh=channel.marked({HANDLE}, {BACKING_ID}) if inode == {MARKED} else {HANDLE})

    async def lookup(self, parent, name, ctx):
        raise pyfuse3.FUSEError(channel.node())

def echo():
    for line in sys.stdin:
        print(line, end="", flush=True)

threading.Thread(target=echo, daemon=True).start()
if "wants" in sys.argv[2:]:
    channel.want_passthrough()
    channel.want_umask()
pyfuse3.init(Operations(), "/dev/fd/" + sys.argv[1], set())
trio.run(pyfuse3.main)
"""


@dataclass(frozen=True, slots=True)
class InitReply:
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    flags2: int
    max_stack_depth: int

    def has(self, bit: int) -> bool:
        return bool((self.flags | self.flags2 << 32) >> bit & 1)


@dataclass(frozen=True, slots=True)
class OpenReply:
    handle: int
    flags: int
    backing_id: int


@dataclass(slots=True)
class Kernel:
    """This end. ``device`` is the other one, as the server has it."""

    own: socket.socket
    device: socket.socket
    server: subprocess.Popen[bytes]
    _unique: int = field(default=0)

    def ask(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        """The errno and the body of the answer."""
        self._unique += 2
        header = struct.pack("=IIQQIIII", 40 + len(body), opcode, self._unique, node, 0, 0, os.getpid(), 0)
        self.own.sendall(header + body)
        answer = self.own.recv(1 << 16)
        length, error, unique = struct.unpack_from("=IiQ", answer)
        assert (length, unique) == (len(answer), self._unique)
        return -error, answer[16:]

    def init(self, offered: int = EVERYTHING, offered2: int = EVERYTHING) -> InitReply:
        error, body = self.ask(INIT, 0, struct.pack("=IIIII44x", 7, 45, 128 << 10, offered, offered2))
        assert (error, len(body)) == (0, 64)
        fields = struct.unpack("=IIIIHHIIHHII24x", body)
        return InitReply(fields[2], fields[3], fields[4], fields[5], fields[10], fields[11])

    def open(self, node: int) -> OpenReply:
        error, body = self.ask(OPEN, node, struct.pack("=II", os.O_RDONLY, 0))
        assert error == 0
        return OpenReply(*struct.unpack("=QIi", body))


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """The kernel of a server that wants all there is, or of one that does not (by parametrizing with False)."""
    words = ["wants"] if getattr(request, "param", True) else []
    with serving(_SERVER, *words) as (own, device, server):
        yield Kernel(own, device, server)


def test_a_session_begins_with_what_one_hung_disk_makes_necessary(kernel: Kernel) -> None:
    reply = kernel.init()
    assert reply.has(18), "FUSE_PARALLEL_DIROPS"
    assert not reply.has(19), "FUSE_HANDLE_KILLPRIV: the kernel drops set-uid bits itself"
    assert reply.has(6), "FUSE_DONT_MASK"
    assert (reply.max_background, reply.congestion_threshold) == (512, 384)
    assert reply.max_readahead > 64 << 20
    assert reply.has(30), "FUSE_INIT_EXT"
    assert reply.has(37), "FUSE_PASSTHROUGH"
    assert reply.max_stack_depth == 1
    assert fcntl.fcntl(kernel.device, fcntl.F_GETFL) & os.O_NONBLOCK


def test_nothing_is_asked_of_a_kernel_that_did_not_offer_it(kernel: Kernel) -> None:
    reply = kernel.init(offered=1 << 30, offered2=0)
    assert not any(reply.has(bit) for bit in (6, 18, 19, 37))
    assert reply.max_stack_depth == 0


@pytest.mark.parametrize("kernel", [False], indirect=True)
def test_nothing_is_asked_that_was_not_wanted(kernel: Kernel) -> None:
    reply = kernel.init()
    assert not reply.has(6)
    assert not reply.has(37)
    assert reply.has(18)


def test_a_marked_handle_is_read_from_its_backing_file(kernel: Kernel) -> None:
    kernel.init()
    marked = kernel.open(MARKED)
    assert marked.backing_id == BACKING_ID
    assert marked.flags & 1 << 7, "FOPEN_PASSTHROUGH"
    assert not marked.flags & 1 << 1, "FOPEN_KEEP_CACHE, which the kernel refuses beside it"
    assert kernel.open(PLAIN) == OpenReply(HANDLE, 1 << 1, 0)
    assert kernel.ask(OPEN, FAILS, struct.pack("=II", os.O_RDONLY, 0)) == (5, b"")
    assert kernel.open(MARKED) == marked


def test_a_handler_learns_the_node_of_its_request(kernel: Kernel) -> None:
    kernel.init()
    for node in (9, 11):
        assert kernel.ask(LOOKUP, node, b"name\0") == (node, b"")


def test_a_request_that_is_gone_when_it_is_read_stops_nothing(kernel: Kernel) -> None:
    """As when its client is killed: the device is said to be readable, and then there is nothing."""
    kernel.init()
    kernel.open(PLAIN)
    stdin, stdout = kernel.server.stdin, kernel.server.stdout
    assert stdin is not None
    assert stdout is not None
    missed = 0
    for attempt in range(1000):
        kernel.own.sendall(bytes(40))
        for _ in range(attempt * 2):
            pass  # the moment between its waking up and its reading is short, and its place not known
        try:
            kernel.device.recv(40, socket.MSG_DONTWAIT)
            missed += 1
        except BlockingIOError:  # it was faster, and answers that it knows no such request
            kernel.own.recv(1 << 16)
        stdin.write(b"alive?\n")
        assert select.select([stdout], [], [], 10)[0], "its threads stand still"
        assert stdout.read(7) == b"alive?\n"
    assert missed > 100
    assert kernel.open(PLAIN).handle == HANDLE
