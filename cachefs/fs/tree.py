"""The one tree that the mount shows: its nodes, and where each of them lives.

The state of ``union`` and what it is made of. Decides nothing about the cache: what is seen of a file is told to a
``Witness``, which is the cache's side.
"""

from __future__ import annotations

import errno
import os
import stat as st
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cachefs.errors import SourceError
from cachefs.fs.certain import Certain
from cachefs.fs.elsewhere import Elsewhere
from cachefs.fs.files import Files
from cachefs.fs.found import Place, Witness, tag_in
from cachefs.fs.inodes import ROOT, FolderWatch, Inodes, Node, number_of
from cachefs.fs.reach import Ref
from cachefs.fs.remembered import Known, Memory, NoMemory, Remembered
from cachefs.fs.remembering import Remembering
from cachefs.fs.roots import Roots
from cachefs.fs.source import Source
from cachefs.fs.space import Space, total
from cachefs.fs.stat import Stat
from cachefs.fs.touched import Touched
from cachefs.fs.watched import Watched
from cachefs.model import FileKey, UnionPath
from cachefs.paths import Layout


class Tree:
    """Every source, and the nodes that the kernel knows of them. Use from the event loop only."""

    def __init__(
        self,
        sources: Iterable[Source],
        layout: Layout,
        witness: Witness,
        tag_of: Callable[[str], Awaitable[int]],
        memory: Memory | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.layout = layout
        self.inodes = Inodes()
        self.elsewhere = elsewhere if elsewhere is not None else Elsewhere()
        self.witness = witness
        self.remembered = Remembered(memory if memory is not None else NoMemory())
        self.roots = Roots(self.sources, self.remembered, self.inodes, tag_of)
        self.watched = Watched(self.inodes.leaves.close_folder, self._changed)
        self.touches = Touched()
        self.certainty = Certain(self.sources, self.roots, self.remembered, self.watched)
        self.files = Files(self.sources, self.roots, witness, self.certainty.under, self.elsewhere)
        self.files_asked = Files(self.sources, self.roots, witness, _nothing_is_certain, self.elsewhere)
        """As ``files``, and the sources are asked whatever is known of them."""
        self.remembering = Remembering(self.sources, self.remembered, self.watched)
        self.virtual = Stat(st.S_IFDIR | 0o755, ROOT, 0, 2, os.geteuid(), os.getegid(), 0, 0, 0, 4096, *_now4())
        """The root over several sources, which lives nowhere."""
        self._tell_names: Callable[[FileKey], object] | None = None
        self._when_forgotten: dict[int, Callable[[], Awaitable[None]]] = {}

    def follow_names(self, tell: Callable[[FileKey], object]) -> None:
        """``tell`` is called with each folder in which something came, went or changed, as far as that is heard."""
        self._tell_names = tell

    def _changed(self, folder: Node | FileKey) -> None:
        for key in (folder,) if isinstance(folder, FileKey) else self.keys(folder):
            self.remembering.changed(key)
            if self._tell_names is not None:
                self._tell_names(key)

    # --- start ---------------------------------------------------------------------------------------------------

    async def open_sources(self) -> None:
        """Open every source's folder; OSError when one cannot be, and nothing is remembered of it. To be called before
        the mount is made."""
        await self.roots.open()
        if len(self.sources) > 1:
            self.inodes.begin(self.virtual)

    async def accept(self, source: Source) -> None:
        """Whatever is in the source's place, or below it where something was mounted, is the source from now on. Raises
        OSError, with nothing changed, when the source's place has no folder that can be read."""
        await self.roots.accept(source)
        await source.probe_once()

    async def mounts_changed(self, source: Source) -> None:
        """Wait until something else is mounted below a source than before, or something is missing there or back."""
        await self.roots.mounts_changed(source)
        self.inodes.leaves.close_idle(0)

    # --- where things are ----------------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """The node the kernel means; ESTALE when it is not known, which makes the kernel look it up anew."""
        node = self.inodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def is_virtual(self, node: Node) -> bool:
        """Whether the node is the root over several sources, which lives nowhere."""
        return node.number == ROOT and len(self.sources) > 1

    def keys(self, node: Node) -> tuple[FileKey, ...]:
        """Every key under which the node was seen and that it may still have, the likeliest first."""
        key_below = self.layout.key_below
        keys = [key for path in self.inodes.paths(node) if (key := key_below(UnionPath(path))) is not None]
        return tuple(keys) if len(keys) < 2 else tuple(key for key in keys if key.source == keys[0].source)

    def place(self, node: Node) -> Place:
        """Where the node lives; EPERM for the virtual root, ESTALE for a file that no name leads to any more."""
        keys = self.keys(node)
        for key in keys:
            moved = self.elsewhere.place(key, node)
            if moved is not None:
                return moved
        if not keys and node.orphan is None:
            number = errno.EPERM if self.is_virtual(node) else errno.ESTALE
            raise OSError(number, os.strerror(number))
        source = self.sources[keys[0].source] if keys else self._source_of(node)
        if keys and tag_in(node.dev) is not None:  # it was moved, or remembered only
            node.dev = self.roots.present(source.name, node.dev)
        ref = Ref(
            source.folders, tuple(key.path for key in keys), node.dev, node.ino, node.kind, node.born_ns, node.orphan
        )
        return Place(source, keys, ref)

    def _source_of(self, orphan: Node) -> Source:
        """A source on the orphan's file system, one that answers if there is any."""
        elsewhere = self.elsewhere.any_source() if tag_in(orphan.dev) is not None else None
        if elsewhere is not None:
            return elsewhere
        found = self.roots.on(orphan.dev)
        if not found:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return next((source for source in found if source.online), found[0])

    def child_key(self, parent: Node, name: str) -> FileKey:
        """The key of a name in a folder; EPERM in the virtual root, ENOENT in a folder that was removed."""
        if self.is_virtual(parent):
            raise OSError(errno.EPERM, f"the sources are fixed by the configuration: {name}")
        place = self.place(parent)
        if not place.keys:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return named(place.keys[0], name)

    def known(self, source: Source, seen: Stat) -> Node | None:
        """The node of a file that was just seen, if the kernel knows it."""
        device = self.roots.device(source.name, seen.dev)
        if device is None:
            return None
        node = self.inodes.meet(number_of(device.tag, seen.ino), seen, None)
        return node if self.inodes.get(node.number) is node else None

    def moved_in(self, folder: Node, names: Sequence[str] | None = None) -> dict[str, int]:
        """The moved files in a folder itself, or those of these names, and their numbers."""
        keys = () if self.is_virtual(folder) else self.keys(folder)
        if not keys:
            return {}
        return self.elsewhere.names_in(keys[0]) if names is None else self.elsewhere.those_in(keys[0], names)

    def holds_in(self, folder: Node) -> bool:
        """Whether anything of a file in this folder itself is cached."""
        return any(self.witness.holds_in(key) for key in self.keys(folder))

    # --- what becomes of them ------------------------------------------------------------------------------------

    def emptied(self, source: Source) -> None:
        """The last name in a source's root was removed through the mount, or by ourselves: that it is empty is what
        somebody wanted."""
        self.roots.emptied(source)

    def touched(self, keys: Iterable[FileKey]) -> None:
        """These files are being changed through the mount, or were just now."""
        for key in keys:
            self.touches.touch(key)
            self.watched.touched_below(FileKey(key.source, key.path.rpartition("/")[0]))

    async def close_idle_folders(self) -> None:
        """Of the sources, so that they can be unmounted, and of the SSD, where moved files are."""
        for source in (*self.sources.values(), *self.elsewhere.sources.values()):
            if source.online:
                await source.close_idle_folders()

    async def when_forgotten(self, node: Node | None, act: Callable[[], Awaitable[None]]) -> None:
        """``act`` once the kernel does not know this file any more: until then no other may get its number."""
        if node is None:
            await act()
        else:
            self._when_forgotten[node.number] = act

    def told(self, node: Node) -> None:
        """The kernel was told of the node once more. What it believes of a folder, the folder's own watch has to
        hear."""
        self.inodes.looked_up(node)
        known = self.inodes.get(node.number)
        if known is not None and known.watch is None and st.S_ISDIR(known.kind):
            self.watched.wake(known)

    async def let_go(self, node: Node) -> None:
        """The kernel has forgotten the node: close what was held for it."""
        later = self._when_forgotten.pop(node.number, None)
        if later is not None:
            await later()
        self.stop_watching(self.watched.sleep(node))
        if node.orphan is not None:
            await self._source_of(node).discard(node.orphan)

    def stop_watching(self, ended: Iterable[FolderWatch]) -> None:
        for watch in ended:
            watches = self.sources[watch.source].watches
            if watches is not None:
                watches.remove(watch.id)

    async def space(self, node: Node | None) -> Space:
        """statfs(2): the numbers of the node's source; for the root of several (or None) the sum over those that
        answer."""
        if node is not None and not self.is_virtual(node):
            place = self.place(node)
            source = self.sources[place.keys[0].source] if place.keys else place.source
            return total([await source.call(_statvfs, source)])
        online = [source for source in self.sources.values() if source.online]
        if not online:
            raise SourceError(errno.EIO, "no source answers")
        return total([await source.call(_statvfs, source) for source in online])


def named(folder: FileKey, name: str) -> FileKey:
    """The key of a name in a folder."""
    return FileKey(folder.source, f"{folder.path}/{name}" if folder.path else name)


async def _nothing_is_certain(folder: FileKey) -> Known | None:
    return None


def _now4() -> tuple[int, int, int, int]:
    now = time.time_ns()
    return (now, now, now, 0)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _statvfs(source: Source) -> os.statvfs_result:
    with source.folders.at("") as folder:
        return os.fstatvfs(folder)
