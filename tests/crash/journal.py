"""What the mount has acknowledged, and what it may therefore show after a kill (pure).

A writer has a folder of its own and does one thing at a time. So after a kill the folder is what was acknowledged
last, or that with the change that was in flight: whole, or for a write any beginning of it, since the kernel hands a
long write over in pieces, in order. What was acknowledged without fsync survives too: the source's kernel has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from tests.crash.content import common_prefix, difference

LINKS = "links instead of"
"""In what ``settle`` says of a file that has all its names and bytes, and more or fewer links."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Names in one folder, the files that they lead to, and their bytes. Two names of one file are hard links."""

    names: Mapping[str, int] = field(default_factory=dict)
    contents: Mapping[int, bytes] = field(default_factory=dict)

    def content(self, name: str) -> bytes:
        return self.contents[self.names[name]]

    def with_content(self, name: str, data: bytes) -> Tree:
        return replace(self, contents={**self.contents, self.names[name]: data})

    def with_name(self, name: str, number: int) -> Tree:
        return replace(self, names={**self.names, name: number})

    def without(self, name: str) -> Tree:
        return replace(self, names={other: number for other, number in self.names.items() if other != name})


@dataclass(frozen=True, slots=True)
class SeenFile:
    """One name as the mount shows it."""

    inode: int
    links: int
    data: bytes


Seen = Mapping[str, SeenFile]
"""A writer's folder as the mount shows it."""


@dataclass(frozen=True, slots=True)
class Create:
    name: str
    number: int

    def apply(self, tree: Tree) -> Tree:
        return Tree({**tree.names, self.name: self.number}, {**tree.contents, self.number: b""})

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Write:
    """Write ``data`` at ``offset``, which is not behind the end."""

    name: str
    offset: int
    data: bytes

    def apply(self, tree: Tree) -> Tree:
        return self._up_to(tree, len(self.data))

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        """The longest beginning of it that ``seen`` can have; when that does not explain it, no shorter one does."""
        if self.name in seen:
            yield self._up_to(tree, common_prefix(seen[self.name].data[self.offset :], self.data))

    def _up_to(self, tree: Tree, length: int) -> Tree:
        old = tree.content(self.name)
        return tree.with_content(self.name, old[: self.offset] + self.data[:length] + old[self.offset + length :])


@dataclass(frozen=True, slots=True)
class Truncate:
    name: str
    size: int

    def apply(self, tree: Tree) -> Tree:
        return tree.with_content(self.name, tree.content(self.name)[: self.size].ljust(self.size, b"\0"))

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Rename:
    """Also onto a name that there is. Not between two names of one file: that does nothing."""

    name: str
    new: str

    def apply(self, tree: Tree) -> Tree:
        return tree.without(self.name).with_name(self.new, tree.names[self.name])

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Link:
    name: str
    new: str

    def apply(self, tree: Tree) -> Tree:
        return tree.with_name(self.new, tree.names[self.name])

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Unlink:
    name: str

    def apply(self, tree: Tree) -> Tree:
        return tree.without(self.name)

    def parts(self, tree: Tree, seen: Seen) -> Iterator[Tree]:
        yield from ()


Change = Create | Write | Truncate | Rename | Link | Unlink


class Journal:
    """One writer's. ``begin`` before the call, ``acknowledge`` after it, ``settle`` after a kill."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.in_flight: Change | None = None
        self._numbers = count(1)
        self._inodes: dict[int, int] = {}

    def new_number(self) -> int:
        return next(self._numbers)

    def begin(self, change: Change) -> None:
        self.in_flight = change

    def acknowledge(self) -> None:
        if self.in_flight is None:
            raise ValueError("nothing was in flight")
        self.tree = self.in_flight.apply(self.tree)
        self.in_flight = None

    def settle(self, seen: Seen) -> str:
        """Take what the mount shows for the truth if it may be so; else say what is wrong."""
        for tree in self._outcomes(seen):
            if not self._problem(tree, seen):
                self.tree, self.in_flight = tree, None
                for name, number in tree.names.items():
                    self._inodes.setdefault(number, seen[name].inode)
                return ""
        problem = self._problem(self.tree, seen)
        if self.in_flight is None:
            return problem
        after = self._problem(self.in_flight.apply(self.tree), seen)
        return f"{problem}; or, had {short(self.in_flight)} taken place: {after}"

    def _outcomes(self, seen: Seen) -> Iterator[Tree]:
        yield self.tree
        if self.in_flight is not None:
            yield self.in_flight.apply(self.tree)
            yield from self.in_flight.parts(self.tree, seen)

    def _problem(self, tree: Tree, seen: Seen) -> str:
        """How ``seen`` differs from ``tree``: names, bytes, who is linked to whom, inode numbers."""
        if missing := sorted(tree.names.keys() - seen.keys()):
            return f"missing: {', '.join(missing)}"
        if more := sorted(seen.keys() - tree.names.keys()):
            return f"there, and should not be: {', '.join(more)}"
        links = {number: list(tree.names.values()).count(number) for number in tree.names.values()}
        inodes = {number: self._inodes.get(number) for number in links}
        for name, number in sorted(tree.names.items()):
            if wrong := difference(seen[name].data, tree.contents[number]):
                return f"{name}: {wrong}"
            if seen[name].links != links[number]:
                return f"{name}: {seen[name].links} {LINKS} {links[number]}"
            known = inodes[number] = inodes[number] or seen[name].inode
            if seen[name].inode != known:
                return f"{name}: inode number {seen[name].inode} instead of {known}"
        return ""


def short(change: Change | None) -> str:
    """For people: what it is, without all its bytes."""
    text = repr(change)
    return text if len(text) < 200 else f"{text[:120]}… ({len(text)} characters)"
