"""Those who use the mount: writers with a journal, readers that compare every byte, and who commands cachefs.

Each is a thread that acts until it is told to stop or the mount dies under it. All paths lead through a descriptor of
the mount's root: once the mount is dead they lead nowhere, never into the bare folder below it.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cachefs.control.client import Client
from cachefs.errors import CachefsError, NotRunning, UserError
from tests.crash.content import content, difference
from tests.crash.failures import Lost
from tests.crash.journal import Change, Create, Journal, Link, Rename, Truncate, Unlink, Write
from tests.crash.outsider import REPLACED, REWRITTEN, Outsider
from tests.crash.stage import KIB, Stage

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a call fails with when the server dies during it or before."""
STATE = "user.cachefs.state"
_PIECE = 128 * KIB
_MOST_NAMES = 12
_REST_CHANGES = 40
"""Of its folder by a writer; then the other half of the files rests."""


@dataclass(slots=True)
class Counts:
    """What was done; added to by one thread each."""

    files: int = 0
    bytes: int = 0
    changes: int = 0
    commands: int = 0


class Actor(Protocol):
    """``act`` does one thing. Raises ``OSError`` or ``CachefsError`` when the mount dies, ``Lost`` for a wrong byte."""

    counts: Counts

    def act(self, root: int) -> None: ...


class Writer:
    """Changes one folder and reads back what it has written."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.journal = Journal()
        self.counts = Counts()
        self.folder = stage.writer(number)
        self._seed = stage.seed
        self._chance = random.Random(f"{stage.seed}/{self.folder}")
        self._version = 0

    def act(self, root: int) -> None:
        place = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        try:
            change = self._next(place)
            with self._perhaps_open(place, change) as reader:
                self.journal.begin(change)
                carry_out(place, change, sync=self._chance.random() < 0.1)
                self.journal.acknowledge()
                self.counts.changes += 1
                if reader is not None:
                    self._compare(change.name, read_all(reader))
            if self._chance.random() < 0.5 and self.journal.tree.names:
                name = self._chance.choice(sorted(self.journal.tree.names))
                self._compare(name, read(name, place))
        finally:
            os.close(place)

    @contextmanager
    def _perhaps_open(self, place: int, change: Change) -> Iterator[int | None]:
        """Sometimes the file has a reader while it is written: the kernel reads a cached one by itself then."""
        if not isinstance(change, Write | Truncate) or self._chance.random() < 0.7:
            yield None
            return
        number = os.open(change.name, os.O_RDONLY, dir_fd=place)
        try:
            os.pread(number, _PIECE, 0)
            yield number
        finally:
            os.close(number)

    def _compare(self, name: str, found: bytes) -> None:
        self.counts.files += 1
        self.counts.bytes += len(found)
        if wrong := difference(found, self.journal.tree.content(name)):
            raise Lost(f"{self.folder}/{name}, read back by its writer: {wrong}")

    def _choose(self, names: Sequence[str], place: int) -> str:
        """Every other file is left alone for a while, so that it can be copied and moved; of the rest, those that were
        are changed more often."""
        awake = names[self.counts.changes // _REST_CHANGES % 2 :: 2]
        name = self._chance.choice(awake)
        if self._chance.random() < 0.4:
            cached = [one for one in awake if os.getxattr(f"/proc/self/fd/{place}/{one}", STATE) == b"cached"]
            name = self._chance.choice(cached or [name])
        return name

    def _next(self, place: int) -> Change:
        names = sorted(self.journal.tree.names)
        if len(names) < 3:
            return Create(self._free(names), self.journal.new_number())
        name = self._choose(names, place)
        kinds: list[Callable[[str, list[str]], Change]] = [self._rewrite, self._append, self._truncate, self._rename]
        kinds += [self._link, self._unlink] if len(names) < _MOST_NAMES else [self._unlink]
        kinds += [self._create] if len(names) < _MOST_NAMES else []
        weights: dict[Callable[[str, list[str]], Change], int] = {
            self._rewrite: 4,
            self._append: 4,
            self._rename: 2,
            self._create: 2,
        }
        kind = self._chance.choices(kinds, [weights.get(kind, 1) for kind in kinds])[0]
        return kind(name, names)

    def _free(self, names: Sequence[str]) -> str:
        return self._chance.choice([name for name in (f"f{number}" for number in range(24)) if name not in names])

    def _create(self, name: str, names: list[str]) -> Change:
        return Create(self._free(names), self.journal.new_number())

    def _rewrite(self, name: str, names: list[str]) -> Change:
        """Any part of it, from the beginning or from the middle."""
        size = len(self.journal.tree.content(name))
        return Write(name, self._chance.choice((0, self._chance.randint(0, size))), self._data(name))

    def _append(self, name: str, names: list[str]) -> Change:
        size = len(self.journal.tree.content(name))
        if size > 1024 * KIB:
            return Truncate(name, 0)
        return Write(name, size, self._data(name))

    def _truncate(self, name: str, names: list[str]) -> Change:
        return Truncate(name, self._chance.randrange(2 * len(self.journal.tree.content(name)) + 1))

    def _rename(self, name: str, names: list[str]) -> Change:
        other = self._chance.choice(names)
        taken = self.journal.tree.names
        return Rename(name, self._free(names) if taken[other] == taken[name] else other)

    def _link(self, name: str, names: list[str]) -> Change:
        return Link(name, self._free(names))

    def _unlink(self, name: str, names: list[str]) -> Change:
        return Unlink(name)

    def _data(self, name: str) -> bytes:
        self._version += 1
        return content(self._seed, f"{self.folder}/{name}", self._version, self._chance.randrange(1, 300 * KIB))


def carry_out(place: int, change: Change, *, sync: bool) -> None:
    """Do it in the folder ``place``, as a program would. Raises ``OSError``."""
    match change:
        case Create(name):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=place))
        case Write(name, offset, data):
            number = os.open(name, os.O_WRONLY, dir_fd=place)
            try:
                while data:
                    written = os.pwrite(number, data, offset)
                    data, offset = data[written:], offset + written
                if sync:
                    os.fsync(number)
            finally:
                os.close(number)
        case Truncate(name, size):
            number = os.open(name, os.O_WRONLY | (0 if size else os.O_TRUNC), dir_fd=place)
            try:
                if size:
                    os.ftruncate(number, size)
            finally:
                os.close(number)
        case Rename(name, new):
            os.rename(name, new, src_dir_fd=place, dst_dir_fd=place)
        case Link(name, new):
            os.link(name, new, src_dir_fd=place, dst_dir_fd=place)
        case Unlink(name):
            os.unlink(name, dir_fd=place)


def read(name: str, place: int) -> bytes:
    """A whole file by a new open, in pieces."""
    number = os.open(name, os.O_RDONLY, dir_fd=place)
    try:
        return read_all(number)
    finally:
        os.close(number)


def read_all(number: int) -> bytes:
    """An open file from its beginning, in pieces."""
    found = bytearray()
    while piece := os.pread(number, _PIECE, len(found)):
        found += piece
    return bytes(found)


class Reader:
    """Reads the library and what is changed behind the mount, and knows what it must find there."""

    def __init__(self, stage: Stage, number: int, outsider: Outsider) -> None:
        self.counts = Counts()
        self._library = stage.library
        self._names = sorted(stage.library)
        self._chance = random.Random(f"{stage.seed}/reader {number}")
        self._outsider = outsider

    def act(self, root: int) -> None:
        if self._chance.random() < 0.3:
            self._read_changing(self._chance.choice(REPLACED), root)
            return
        name = self._chance.choice(self._names)
        found = read(name, root)
        self._count(found)
        if wrong := difference(found, self._library[name]):
            raise Lost(f"{name}, read under load: {wrong}")

    def _read_changing(self, name: str, root: int) -> None:
        opened_at = time.monotonic()
        found: bytes | None = None
        try:
            found = read(name, root)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return  # replaced while it was being opened: the program opens it again
            if error.errno != errno.ENOENT:
                raise
        possible = self._outsider.possible(name, opened_at, time.monotonic())
        self._count(found or b"")
        if found not in possible:
            what = "not there" if found is None else f"{len(found)} bytes"
            right = " or ".join("none" if data is None else str(len(data)) for data in possible)
            raise Lost(f"{name}, read under load, is of no version that it can be: {what}, should be {right} bytes")

    def _count(self, found: bytes) -> None:
        self.counts.files += 1
        self.counts.bytes += len(found)


class Commander:
    """Asks for copies, evictions and pins through the control socket. More commands go into ``_COMMANDS``."""

    def __init__(self, stage: Stage) -> None:
        self.counts = Counts()
        self.pinned: set[str] = set()
        self.in_doubt: set[str] = set()
        """What was being pinned or let go when the server died."""
        self._socket = stage.socket
        self._chance = random.Random(f"{stage.seed}/commander")
        self._commands = _COMMANDS if stage.mode == "copy" else {**_COMMANDS, Commander.restore: 2}
        written = [f"{stage.writer(writer)}/f{number}" for writer in range(stage.writers) for number in range(24)]
        behind = [*REPLACED, *REWRITTEN] if stage.mode == "copy" else written  # what has moved cannot be changed there
        self._files = (sorted(stage.library), behind, written)

    def act(self, root: int) -> None:
        name = self._chance.choice(self._chance.choices(self._files, (6, 2, 3))[0])
        command = self._chance.choices(list(self._commands), list(self._commands.values()))[0]
        with Client(self._socket) as client:
            try:
                command(self, client, name)
            except NotRunning:
                raise
            except UserError:
                self.in_doubt.clear()  # refused: no such file just now, or nothing of it is cached
        self.counts.commands += 1

    def copy(self, client: Client, name: str) -> None:
        client.copy(name)

    def evict(self, client: Client, name: str) -> None:
        client.evict(name)

    def pin(self, client: Client, name: str) -> None:
        if len(self.pinned) < 8:
            self.in_doubt.add(name)
            client.pin(name)
            self.pinned.add(name)
            self.in_doubt.discard(name)

    def restore(self, client: Client, name: str) -> None:
        client.restore(name, lambda _: None)

    def unpin(self, client: Client, name: str) -> None:
        if self.pinned:
            name = self._chance.choice(sorted(self.pinned))
            self.in_doubt.add(name)
            client.unpin(name)
            self.pinned.discard(name)
            self.in_doubt.discard(name)


_COMMANDS: dict[Callable[[Commander, Client, str], None], int] = {
    Commander.copy: 6,
    Commander.evict: 4,
    Commander.pin: 1,
    Commander.unpin: 1,
}
"""With how often each is given."""


class Outside:
    """The outsider as an actor."""

    def __init__(self, outsider: Outsider) -> None:
        self.counts = Counts()
        self._outsider = outsider
        self._rest = threading.Event()

    def act(self, root: int) -> None:
        self._outsider.act()
        self.counts.changes += 1
        self._rest.wait(0.02)


def is_death(error: Exception) -> bool:
    """Whether a call may fail like this because the server is dead. A command says it in words only."""
    if isinstance(error, CachefsError):
        return isinstance(error, NotRunning) or str(error).startswith("the daemon on ")
    return isinstance(error, OSError) and error.errno in DEAD
