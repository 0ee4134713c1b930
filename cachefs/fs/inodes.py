"""Which inode number is which file, and under which names the kernel knows it. No disk, no trio.

The number is both the node id of the kernel and what ``stat`` shows (pyfuse3 has one field for the two), so it must be
the same for hard links and after a remount, and must not be given to another file while the kernel knows the first.

    bits 63     a number too large to carry a tag, hashed together with its tag
    bits 62-48  the device's tag: 0 for the first source's own file system, persisted for every other
    bits 47-0   the source's inode number
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from stat import S_IFMT, S_ISDIR

from cachefs.descriptors import Descriptor
from cachefs.fs.leaves import Leaves
from cachefs.fs.stat import Stat
from cachefs.model import FileKey, SourceName

ROOT = 1
"""pyfuse3.ROOT_INODE: the mount's own root, whatever the source calls it."""
_TAG_SHIFT = 48
_INO_LIMIT = 1 << _TAG_SHIFT
_TAG_OF_ROOT_NUMBER = 0x7FFF
"""Takes inode 1 of the first device, which is some other file there (ext4: the bad-blocks list; FUSE: a root)."""
_TAG_OF_SUBSTITUTES = 0x7FFE
_LARGE = 1 << 63


def number_of(tag: int, ino: int) -> int:
    """The number that the mount shows for inode ``ino`` of the device with this tag."""
    if ino >= _INO_LIMIT or tag >= _TAG_OF_SUBSTITUTES:
        digest = hashlib.blake2b(b"%d:%d" % (tag, ino), digest_size=8).digest()
        return int.from_bytes(digest, "big") | _LARGE
    if tag == 0 and ino <= ROOT:
        return _TAG_OF_ROOT_NUMBER << _TAG_SHIFT | ino
    return tag << _TAG_SHIFT | ino


def tag_of(number: int) -> int:
    """The tag of such a number."""
    return number >> _TAG_SHIFT


def inode_of(number: int) -> int:
    """The source's inode number of a leaf, whose number is a tag and that."""
    return number & (_INO_LIMIT - 1)


@dataclass(frozen=True, slots=True)
class Link:
    """One name of a node: in which folder, by the folder's number."""

    parent: int
    name: str


@dataclass(slots=True, eq=False)
class FolderWatch:
    """A folder whose changes are seen as they happen, since ``since`` (trio time). ``changes`` counts them: who asks
    the source and finds another count afterwards may have been told what is over already."""

    id: int
    source: SourceName
    since: float
    changes: int = 0
    key: FileKey | None = None
    """The folder's key, under which it is remembered."""
    folder: int = 0
    """The folder's number."""
    remembered: int = -1
    """The count of changes for which what is remembered of it is true."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode that the kernel may know.

    ``kind`` (type bits) and ``born_ns`` (birth time, 0 where unknown) tell a file from a later one with the same
    number. ``links`` are the names seen so far, the latest last. ``orphan`` keeps a file that lost a name through the
    mount, so that its number cannot be given away and it can still be reached.
    """

    number: int
    dev: int
    ino: int
    kind: int
    born_ns: int
    lookups: int = 0
    links: tuple[Link, ...] = ()
    orphan: Descriptor | None = None
    version: tuple[int, int] | None = None
    """Size and mtime of the bytes that the kernel may have pages of."""
    seen: Stat | None = None
    """What its source showed last."""
    writers: int = 0
    """Handles that are open for writing through the mount."""
    watch: FolderWatch | None = None
    """Of a folder: how its changes are seen; None where they are not."""


@dataclass(slots=True)
class Inodes:
    """All nodes that the kernel knows, by number. Changed on the event loop only."""

    _nodes: dict[int, Node] = field(default_factory=dict)
    _substitutes: dict[int, list[Node]] = field(default_factory=dict)
    _issued: int = 0
    leaves: Leaves = field(default_factory=Leaves)

    def __len__(self) -> int:
        return len(self._nodes) + len(self.leaves)

    def __iter__(self) -> Iterator[Node]:
        """Those that are no leaves."""
        return iter(self._nodes.values())

    def get(self, number: int) -> Node | None:
        """The node that the kernel knows by this number; a leaf becomes one."""
        node = self._nodes.get(number)
        if node is None and (leaf := self.leaves.take(number)) is not None:
            node = Node(number, leaf.dev, inode_of(number), leaf.kind, leaf.birth_ns, leaf.lookups)
            node.links = (Link(leaf.parent, leaf.name),)
            self._nodes[number] = node
            self.leaves.own(number)
        return node

    def find(self, number: int, born_ns: int) -> Node | None:
        """The node that the kernel knows of the file with this number that was born then, also by a substitute."""
        node = self.get(number)
        if node is not None and node.born_ns == born_ns:
            return node
        others = (node for node in self._substitutes.get(number, ()) if node.number in self._nodes)
        return next((node for node in others if node.born_ns == born_ns), None)

    def knows(self, number: int) -> bool:
        """Whether the kernel may know this number. A leaf stays one."""
        return number in self._nodes or self.leaves.has(number)

    def knows_folder(self, number: int) -> bool:
        """Whether the kernel may know this number as that of a folder."""
        node = self._nodes.get(number)
        return node is not None and S_ISDIR(node.kind)

    def begin(self, seen: Stat) -> None:
        """This is the mount's root, now and for as long as the source does not become another folder."""
        root = self._nodes.get(ROOT)
        if root is None:
            root = self._nodes[ROOT] = Node(ROOT, seen.dev, seen.ino, S_IFMT(seen.mode), seen.birth_ns, lookups=1)
        root.dev, root.ino, root.born_ns, root.seen = seen.dev, seen.ino, seen.birth_ns, seen

    def meet(self, number: int, seen: Stat, link: Link | None) -> Node:
        """The node for a file that was just seen; a new one where the kernel knows none.

        A known number with another type or birth is a reuse behind our back: the new file gets a substitute number
        until the kernel has forgotten the old one.
        """
        node = self.get(number)
        if node is None:
            node = self._known_substitute(number, seen) or self._new(number, seen)
        elif not _same(node, seen):
            node = self._substitute(number, seen)
        node.dev, node.ino, node.seen = seen.dev, seen.ino, seen
        if link is not None and (not node.links or node.links[-1] != link):
            others = (
                tuple(known for known in node.links if known != link) if seen.nlink > 1 and not seen.is_folder else ()
            )
            node.links = (*others, link)
        return node

    def _new(self, number: int, seen: Stat) -> Node:
        return Node(number, seen.dev, seen.ino, S_IFMT(seen.mode), seen.birth_ns)

    def _known_substitute(self, number: int, seen: Stat) -> Node | None:
        """The number is free again, but the kernel knows the file by another."""
        if not self._substitutes:
            return None
        nodes = (node for node in self._substitutes.get(number, ()) if node.number in self._nodes)
        return next((node for node in nodes if _same(node, seen)), None)

    def _substitute(self, number: int, seen: Stat) -> Node:
        for node in self._substitutes.get(number, ()):
            if _same(node, seen):
                return node
        self._issued += 1
        node = self._new(_TAG_OF_SUBSTITUTES << _TAG_SHIFT | self._issued, seen)
        self._substitutes.setdefault(number, []).append(node)
        return node

    def looked_up(self, node: Node) -> None:
        """The kernel was told of the node once more.

        Where another task told it of the same number since this node was met, that one counts: one node a number.
        """
        known = self._nodes.get(node.number)
        if known is None:
            known = self._nodes[node.number] = node
            known.lookups += self.leaves.own(node.number)  # a listing may have told of it since it was met
        known.lookups += 1

    def forgotten(self, number: int, count: int) -> Node | None:
        """The kernel gave back ``count`` lookups. Returns the node when that was the last of them: whoever asked
        closes its ``orphan``."""
        node = self._nodes.get(number)
        if node is None:
            return None
        node.lookups -= count
        if node.lookups > 0 or node.number == ROOT:
            return None
        del self._nodes[number]
        if number not in self._substitutes:  # else the file may be known by another number: no leaf
            self.leaves.disown(number)
        if number >> _TAG_SHIFT == _TAG_OF_SUBSTITUTES:
            kept = {
                first: [other for other in nodes if other is not node] for first, nodes in self._substitutes.items()
            }
            for first in kept.keys() - {first for first, nodes in kept.items() if nodes} - self._nodes.keys():
                self.leaves.disown(first)
            self._substitutes = {first: nodes for first, nodes in kept.items() if nodes}
        return node

    def unlinked(self, node: Node, link: Link) -> None:
        """The name is gone."""
        node.links = tuple(known for known in node.links if known != link)

    def renamed(self, node: Node, old: Link, new: Link) -> None:
        """The node moved from one name to another."""
        node.links = (*(known for known in node.links if known not in (old, new)), new)

    def paths(self, node: Node) -> tuple[str, ...]:
        """Union paths under which the node was seen, the latest first; empty for an orphan."""
        if node.number == ROOT:
            return ("",)
        if len(node.links) == 1:
            path = self._path(node.links[0])
            return () if path is None else (path,)
        found = (self._path(link) for link in reversed(node.links))
        return tuple(path for path in found if path is not None)

    def _path(self, link: Link) -> str | None:
        names = [link.name]
        parent = link.parent
        while parent != ROOT:
            node = self._nodes.get(parent)
            if node is None or not node.links or len(names) > 4096:
                return None
            names.append(node.links[-1].name)
            parent = node.links[-1].parent
        return "/".join(reversed(names))


def _same(node: Node, seen: Stat) -> bool:
    """Whether the file just seen can be the one the kernel knows."""
    return node.kind == S_IFMT(seen.mode) and node.born_ns == seen.birth_ns
