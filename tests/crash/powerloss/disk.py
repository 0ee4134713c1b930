"""What may be on the disk when the power goes (pure).

The rules, for a file system that orders what it does to names, as ext4, XFS and btrfs do:

* What a call did to a file's bytes is surely there once that file was synced after it. Before, each write may be there,
  or a beginning of it that ends at a page; sizes, times and attributes are kept in their order.
* What a call did to a name is surely there once the folder was synced after it, and so is everything that was done
  before it to the same folders. Before, what was done to one folder is there up to some point; two folders are
  independent, except for what concerns both: a rename is there as a whole or not at all.
* A file's sync does not keep its name: more than ext4 does, but nobody promises it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.crash.powerloss.recording import Call, Kind

PAGE = 4096
SHARED_MEMORY = "-shm"
"""Whoever opens a database alone makes this file of SQLite's anew, whatever is in it."""
REMOVED = 1
"""The number of an attribute's call that takes it away."""
_NAMES = (Kind.CREATE, Kind.MKDIR, Kind.RENAME, Kind.UNLINK, Kind.RMDIR)
_IN_ORDER = (Kind.TRUNCATE, Kind.XATTR, Kind.TIMES)


@dataclass(frozen=True, slots=True)
class Stored:
    """One file on the disk."""

    data: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Left:
    """A folder after the power cut: its folders, and its files by name."""

    folders: frozenset[str]
    files: Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept of that which need not be: of the names up to which call, and of each file's calls, which."""

    name: str
    names: Callable[[int], bool]
    """Whether this call on a name is among those that were kept, and with it all that it rests on."""
    bytes: Callable[[int], bool]
    torn: Callable[[int], int | None] = lambda _: None
    """How many pages of a kept write there are; None: all of it."""


@dataclass(slots=True)
class _Names:
    """The calls on names so far, and for each those before it that it rests on."""

    calls: list[int] = field(default_factory=list)
    rests_on: dict[int, tuple[int, ...]] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    sure: set[int] = field(default_factory=set)

    def add(self, at: int, folders: Sequence[str]) -> None:
        self.rests_on[at] = tuple({self.last[folder] for folder in folders if folder in self.last})
        self.calls.append(at)
        for folder in folders:
            self.last[folder] = at

    def sync(self, folder: str) -> None:
        if folder in self.last:
            self.keep(self.last[folder], self.sure)

    def keep(self, at: int, kept: set[int]) -> None:
        """``at`` and everything below it."""
        todo = [at]
        while todo:
            one = todo.pop()
            if one not in kept:
                kept.add(one)
                todo.extend(self.rests_on[one])


def choices(chance: random.Random, samples: int, calls: int) -> Iterator[Choice]:
    """Everything, nothing, only the names, only the bytes; then so many at random."""
    for name, names, data in (
        ("all", True, True),
        ("only what was synced", False, False),
        ("all names, only synced bytes", True, False),
        ("all bytes, only synced names", False, True),
    ):
        yield Choice(name, lambda _, kept=names: kept, lambda _, kept=data: kept)  # type: ignore[misc]
    for number in range(samples):
        yield _at_random(random.Random(chance.random()), number, calls)


def _at_random(chance: random.Random, number: int, calls: int) -> Choice:
    likely = chance.random()
    names = [chance.random() < likely for _ in range(calls)]
    kept = [chance.random() < likely for _ in range(calls)]
    torn = [chance.randrange(4) if chance.random() < 0.2 else None for _ in range(calls)]
    return Choice(f"sample {number}", names.__getitem__, kept.__getitem__, torn.__getitem__)


def left(calls: Sequence[Call], choice: Choice) -> Left:
    """What the power cut after the last of these calls leaves."""
    names = _Names()
    synced: dict[int, int] = {}
    for at, call in enumerate(calls):
        if call.kind in _NAMES:
            names.add(at, _folders(call))
        elif call.kind is Kind.SYNC:
            synced[call.file] = at
        elif call.kind is Kind.SYNC_FOLDER:
            names.sync(call.path)
    kept = set(names.sure)
    for at in names.calls:
        if choice.names(at):
            names.keep(at, kept)
    folders, files = _tree(calls, [at for at in names.calls if at in kept])
    contents = _contents(calls, choice, synced, set(files.values()))
    stays = {name: contents[file] for name, file in files.items() if not name.endswith(SHARED_MEMORY)}
    return Left(frozenset(folders), stays)


def _folders(call: Call) -> tuple[str, ...]:
    """The folders whose names the call changes, and the folder that it makes or removes."""
    if call.kind in (Kind.MKDIR, Kind.RMDIR):
        return _above(call.path), call.path
    return (_above(call.path), _above(call.new)) if call.kind is Kind.RENAME else (_above(call.path),)


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _tree(calls: Sequence[Call], kept: Sequence[int]) -> tuple[set[str], dict[str, int]]:
    folders: set[str] = set()
    files: dict[str, int] = {}
    for at in kept:
        call = calls[at]
        match call.kind:
            case Kind.CREATE:
                files[call.path] = call.file
            case Kind.MKDIR:
                folders.add(call.path)
            case Kind.RMDIR:
                folders.discard(call.path)
            case Kind.UNLINK:
                files.pop(call.path, None)
            case Kind.RENAME:
                files[call.new] = files.pop(call.path)
    return folders, files


def _contents(calls: Sequence[Call], choice: Choice, synced: Mapping[int, int], wanted: set[int]) -> dict[int, Stored]:
    found = dict.fromkeys(wanted, Stored())
    broken: set[int] = set()
    for at, call in enumerate(calls):
        if call.file not in wanted or call.kind not in (Kind.WRITE, *_IN_ORDER):
            continue
        sure = at < synced.get(call.file, -1)
        if call.kind in _IN_ORDER and not sure and (call.file in broken or not choice.bytes(at)):
            broken.add(call.file)  # nor anything of that kind that comes later
            continue
        if sure:
            found[call.file] = _applied(found[call.file], call, None)
        elif choice.bytes(at):
            found[call.file] = _applied(found[call.file], call, choice.torn(at))
    return found


def _applied(file: Stored, call: Call, pages: int | None) -> Stored:
    match call.kind:
        case Kind.WRITE:
            start = call.number
            data = call.data if pages is None else call.data[: max(0, (start // PAGE + pages) * PAGE - start)]
            old = file.data.ljust(start, b"\0") if data else file.data
            return Stored(old[:start] + data + old[start + len(data) :], file.xattrs, file.mtime_ns)
        case Kind.TRUNCATE:
            return Stored(file.data[: call.number].ljust(call.number, b"\0"), file.xattrs, file.mtime_ns)
        case Kind.XATTR:
            others = tuple(pair for pair in file.xattrs if pair[0] != call.path)
            now = others if call.number == REMOVED else (*others, (call.path, call.data))
            return Stored(file.data, now, file.mtime_ns)
        case _:
            return Stored(file.data, file.xattrs, call.number)
