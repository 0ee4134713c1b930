"""A name in a folder that is to be changed: where it is, and what the cache may hold of it.

Used by ``changes`` and ``renaming``.
"""

from __future__ import annotations

import errno

from cachefs.fs.found import RESERVED, Place
from cachefs.fs.inodes import Node
from cachefs.fs.union import Union
from cachefs.model import FileKey, Targets


def at(union: Union, parent: Node, name: str) -> tuple[Place, Targets]:
    """Where a name is, and what the cache may hold of it: the file, or everything below the folder. Raises ``OSError``:
    EPERM for what is cachefs's own."""
    if name == RESERVED:
        raise PermissionError(errno.EPERM, f"{name} is cachefs's own", name)
    key = union.child_key(parent, name)
    return union.place(parent), below(key)


def below(key: FileKey) -> Targets:
    """A file, or a folder and everything in it."""
    return Targets(keys=frozenset((key,)), folders=frozenset((key,)))


def both(one: Targets, other: Targets) -> Targets:
    return Targets(one.keys | other.keys, one.folders | other.folders, one.inodes | other.inodes)
