"""Everything that changes the tree or a file's attributes through the mount.

Called by ``operations``. Every change goes to the source, in one thread hop, after ``routing.change`` took what it
touches out of the cache; then the nodes learn their new names. A file that loses a name keeps a descriptor for as long
as the kernel knows it: without one, its inode number could be given to the next new file at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from cachefs.descriptors import Descriptor
from cachefs.fs import reach, times
from cachefs.fs.caller import Caller, acting_as
from cachefs.fs.found import Found, Place
from cachefs.fs.inodes import Link, Node
from cachefs.fs.losing import Losing, remove
from cachefs.fs.movedfiles import Home, MovedFiles
from cachefs.fs.named import at, below, both
from cachefs.fs.reach import Child, Opened, Ref
from cachefs.fs.renaming import Renaming
from cachefs.fs.routing import Routing
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union
from cachefs.model import DropCause, FileKey, Targets

_TRIES = 3
"""For a file that is just moving."""

Maker = Callable[[int, str], object]
"""Makes a name in an open folder."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What setattr changes; None leaves a field as it is. Times in nanoseconds."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def changes_content(self) -> bool:
        """Whether a cached copy could no longer be told from the file by its fingerprint, or is not the file's."""
        return self.size is not None or self.mtime_ns is not None


class Changes:
    """The mutations of the mount."""

    def __init__(self, union: Union, routing: Routing, homes: Home | None = None) -> None:
        """``homes``: the other side of moved files; None where there are none."""
        self._union = union
        self._routing = routing
        self._moved = MovedFiles(union, routing, homes)
        self._losing = Losing(union)
        self._renaming = Renaming(union, routing, self._moved, self._losing)

    # --- new names -----------------------------------------------------------------------------------------------

    async def make(self, parent: Node, name: str, caller: Caller, maker: Maker) -> Found:
        """A new folder, symlink or special file, made by ``maker`` as the caller."""
        place, targets = self._at_new(parent, name)
        seen = await self._routing.change(
            place.source, targets, _make, place.ref, name, caller, maker, cause=DropCause.CHANGED
        )
        self._union.watched.touched(parent)
        return await self._union.sightings.found(place.source, Child(name, seen), parent)

    async def create(self, parent: Node, name: str, flags: int, mode: int, caller: Caller) -> tuple[Found, Opened]:
        """A new file, open as ``flags`` say."""
        place, targets = self._at_new(parent, name, again=not flags & os.O_EXCL)
        opened = await self._routing.change(
            place.source, targets, _create, place.ref, name, flags, mode, caller, cause=DropCause.CHANGED
        )
        self._union.watched.touched(parent)
        return await self._union.sightings.found(place.source, Child(name, opened.stat), parent), opened

    async def link(self, node: Node, parent: Node, name: str) -> Found:
        """One more name for a file, on the same source."""
        place, targets = self._at_new(parent, name)
        with self._routing.barred(Targets(inodes=frozenset((node.number,)))):
            target = await self._moved.at_home(node)
            if target.source is not place.source:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
            every = both(targets, self._routing.targets(node, target))
            seen = await self._routing.change(
                place.source, every, _link, target.ref, place.ref, name, cause=DropCause.CHANGED
            )
        self._union.watched.touched(parent)
        found = await self._union.sightings.found(place.source, Child(name, seen), parent)
        self._routing.names_changed()
        return found

    # --- names that go -------------------------------------------------------------------------------------------

    async def unlink(self, parent: Node, name: str) -> None:
        """Remove a file's name."""
        names = self._names(parent, name)
        for _ in range(_TRIES):
            await self._moved.known(*names())
            async with self._routing.turns.changing(names, content=False) as (key,):
                if self._moved.are_known(key):
                    await self._unlink(parent, name, key)
                    return
        raise OSError(errno.EBUSY, "it moves all the time", name)

    async def _unlink(self, parent: Node, name: str, key: FileKey) -> None:
        moved = self._moved.get(key)
        if moved is not None:
            await self._losing.forgotten(await self._moved.delete(moved), Link(parent.number, name))
            self._union.watched.touched(parent)
            self._routing.names_changed()
        else:
            await self._remove(parent, name, os.unlink)

    async def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty folder."""
        names = self._names(parent, name)
        (key,) = names()
        with self._routing.barred(below(key)):
            await self._moved.left(key)
            async with self._routing.turns.renaming(names) as (now,):
                if now != key:  # ESTALE makes the kernel look it up and ask again
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
                if self._moved.get(key) is not None:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
                if self._moved.holds_below(key):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
                await self._remove(parent, name, os.rmdir)

    def _names(self, parent: Node, name: str) -> Callable[[], tuple[FileKey]]:
        """What a name's key is whenever it is asked: a folder above may get another one."""
        return lambda: (self._union.child_key(parent, name),)

    async def _remove(self, parent: Node, name: str, unlink: Callable[..., None]) -> None:
        place, targets = at(self._union, parent, name)
        removed = await self._routing.change(
            place.source, targets, remove, place.ref, name, unlink, cause=DropCause.GONE, later=targets.folders
        )
        self._union.watched.touched(parent)
        if removed.emptied_root:
            self._union.emptied(place.source)
        await self._losing.lost(place, removed, Link(parent.number, name))
        self._routing.names_changed()

    async def rename(self, old_parent: Node, old: str, new_parent: Node, new: str, flags: int) -> None:
        """As ``Renaming.rename``."""
        await self._renaming.rename(old_parent, old, new_parent, new, flags)

    # --- attributes ----------------------------------------------------------------------------------------------

    async def set_attributes(self, node: Node, wanted: Attributes) -> Found:
        """chmod, chown, truncate and utimens; returns the attributes afterwards."""
        place = self._union.place(node)
        targets = self._routing.targets(node, place) if wanted.changes_content else Targets()
        if wanted.changes_content:
            node.version = None
        self._union.touched(place.keys)
        try:
            async with (
                self._routing.changing(node, content=wanted.changes_content),
                self._routing.truncating(node, wanted.size),
            ):
                place = self._union.place(node)
                seen = await self._routing.change(
                    place.source, targets, _set_attributes, place.ref, wanted, cause=DropCause.CHANGED
                )
        finally:
            self._union.touched(place.keys)
        return self._union.sightings.seen(node, place, seen)

    async def read_link(self, node: Node) -> str:
        place = self._union.place(node)
        return await place.source.call(_read_link, place.ref)

    async def fsync_folder(self, node: Node) -> None:
        if self._union.is_virtual(node):
            return
        place = self._union.place(node)
        await place.source.call(_fsync_folder, place.ref)

    def _at_new(self, parent: Node, name: str, *, again: bool = False) -> tuple[Place, Targets]:
        """As ``_at``, for a name that must not be there. ``again``: what is there is to be opened instead."""
        if self._moved.get(self._union.child_key(parent, name)) is not None:
            if again:  # ESTALE makes the kernel look it up and open it
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        return at(self._union, parent, name)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _make(parent: Ref, name: str, caller: Caller, maker: Maker) -> Stat:
    with reach.folder_of(parent) as folder:
        with acting_as(caller):
            maker(folder, name)
        return look(folder, name)


def _create(parent: Ref, name: str, flags: int, mode: int, caller: Caller) -> Opened:
    kept = flags & (os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC)
    new = kept | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with reach.folder_of(parent) as folder, acting_as(caller):
        try:
            descriptor = Descriptor(os.open(name, new, mode, dir_fd=folder))
        except FileExistsError as error:
            if flags & os.O_EXCL:
                raise
            # It appeared behind the mount: ESTALE makes the kernel look it up and open it, rights and all.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name) from error
    try:
        return Opened(descriptor, look(descriptor.number))
    except OSError:
        descriptor.close()
        raise


def _link(target: Ref, parent: Ref, name: str) -> Stat:
    with reach.place_of(target) as place, reach.folder_of(parent) as folder:
        os.link(reach.proc_path(place), name, dst_dir_fd=folder, follow_symlinks=True)
        return look(folder, name)


def _set_attributes(ref: Ref, wanted: Attributes) -> Stat:
    with reach.place_of(ref) as place:
        path = reach.proc_path(place)
        if wanted.size is not None:
            os.truncate(path, wanted.size)
        if wanted.uid is not None or wanted.gid is not None:
            os.chown(path, _or_same(wanted.uid), _or_same(wanted.gid))
        if wanted.mode is not None:
            os.chmod(path, wanted.mode & 0o7777)
        if wanted.atime_ns is not None or wanted.mtime_ns is not None:
            times.set_times(path, wanted.atime_ns, wanted.mtime_ns)
        return look(place)


def _or_same(number: int | None) -> int:
    return -1 if number is None else number


def _read_link(ref: Ref) -> str:
    with reach.place_of(ref) as place:
        return os.readlink("", dir_fd=place)


def _fsync_folder(ref: Ref) -> None:
    with reach.folder_of(ref) as folder:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)
