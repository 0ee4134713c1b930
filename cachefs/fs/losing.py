"""Names that are removed, and the files that had them.

Used by ``changes`` and ``renaming``. A file that loses its last name keeps a descriptor for as long as the kernel knows
it: without one, its inode number could be given to the next new file at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cachefs.descriptors import Descriptor, sync_names
from cachefs.fs import reach
from cachefs.fs.found import Place
from cachefs.fs.inodes import Link, Node
from cachefs.fs.movedfiles import Gone
from cachefs.fs.reach import Ref
from cachefs.fs.source import is_empty
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that has just lost a name, held so that its number stays its own."""

    descriptor: Descriptor
    stat: Stat
    emptied_root: bool = False
    """It was the last one in its source's root."""

    def close(self) -> None:
        self.descriptor.close()


class Losing:
    """What becomes of the files. Use from the event loop only."""

    def __init__(self, union: Union) -> None:
        self._union = union

    async def lost(self, place: Place, removed: Removed, link: Link) -> None:
        """Let the node go on without the name, or forget about it when the kernel does not know it."""
        node = self._union.known(place.source, removed.stat)
        if not (node is not None and self._is_kept(node, removed.descriptor, link)):
            await place.source.discard(removed.descriptor)

    async def forgotten(self, gone: Gone, link: Link) -> None:
        """As ``lost``, of a moved file."""
        node = gone.node
        if node is not None and self._is_kept(node, gone.held.descriptor, link):
            node.dev, node.ino = gone.held.stat.dev, gone.held.stat.ino
        else:
            await gone.source.discard(gone.held.descriptor)

    def _is_kept(self, node: Node, held: Descriptor, link: Link) -> bool:
        """Take a name from a node; whether it goes on by what is held of it."""
        self._union.inodes.unlinked(node, link)
        if node.orphan is not None or node.links:
            return False
        node.orphan = held
        return True


# --- in the source's threads -----------------------------------------------------------------------------------------


def remove(parent: Ref, name: str, unlink: Callable[..., None]) -> Removed:
    with reach.folder_of(parent) as folder:
        reach.vouch(parent, folder, name)
        held = Descriptor(os.open(name, reach.PLACE, dir_fd=folder))
        try:
            unlink(name, dir_fd=folder)
            seen = look(held.number)
            emptied_root = parent.paths[:1] == ("",) and is_empty(folder)
        except OSError:
            held.close()
            raise
    if seen.is_folder and parent.paths:
        parent.folders.forget(f"{parent.paths[0]}/{name}".lstrip("/"))
    return Removed(held, seen, emptied_root)


def unlink_for_good(name: str, *, dir_fd: int) -> None:
    """The SSD's file of this name says next that the source has none."""
    os.unlink(name, dir_fd=dir_fd)
    sync_names(dir_fd)
