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
from functools import partial

from cachefs.descriptors import Descriptor, sync_names
from cachefs.fs import reach, times
from cachefs.fs.caller import Caller, acting_as
from cachefs.fs.found import RESERVED, Found, Place
from cachefs.fs.inodes import Link, Node
from cachefs.fs.movedfiles import Gone, Home, MovedFiles
from cachefs.fs.reach import Child, Opened, Ref
from cachefs.fs.rename import EXCHANGE, NOREPLACE, Moved, Step, carry_out
from cachefs.fs.routing import Routing
from cachefs.fs.source import is_empty
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union
from cachefs.model import DropCause, FileKey, Targets

_TRIES = 8
"""For a renaming whose files move, or whose folders get other names, before it is their turn."""

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


@dataclass(frozen=True, slots=True)
class _Names:
    """A renaming: each name with the folder that it is in."""

    old: tuple[Node, str]
    new: tuple[Node, str]
    flags: int

    @property
    def old_link(self) -> Link:
        return Link(self.old[0].number, self.old[1])

    @property
    def new_link(self) -> Link:
        return Link(self.new[0].number, self.new[1])


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that has just lost a name, held so that its number stays its own."""

    descriptor: Descriptor
    stat: Stat
    emptied_root: bool = False
    """It was the last one in its source's root."""

    def close(self) -> None:
        self.descriptor.close()


class Changes:
    """The mutations of the mount."""

    def __init__(self, union: Union, routing: Routing, homes: Home | None = None) -> None:
        """``homes``: the other side of moved files; None where there are none."""
        self._union = union
        self._routing = routing
        self._moved = MovedFiles(union, routing, homes)

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
            both = _both(targets, self._routing.targets(node, target))
            seen = await self._routing.change(
                place.source, both, _link, target.ref, place.ref, name, cause=DropCause.CHANGED
            )
        self._union.watched.touched(parent)
        found = await self._union.sightings.found(place.source, Child(name, seen), parent)
        self._routing.names_changed()
        return found

    # --- names that go -------------------------------------------------------------------------------------------

    async def unlink(self, parent: Node, name: str) -> None:
        """Remove a file's name."""

        def names() -> tuple[FileKey]:
            return (self._union.child_key(parent, name),)

        async with self._routing.turns.changing(names, content=False) as (key,):
            moved = self._moved.get(key)
            if moved is not None:
                await self._forget_name(await self._moved.delete(moved), Link(parent.number, name))
                self._union.watched.touched(parent)
            else:
                await self._remove(parent, name, os.unlink)

    async def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty folder."""
        key = self._union.child_key(parent, name)
        with self._routing.barred(_below(key)):
            await self._moved.left(key)
            if self._moved.get(key) is not None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            if self._moved.holds_below(key):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
            await self._remove(parent, name, os.rmdir)

    async def _remove(self, parent: Node, name: str, remove: Callable[..., None]) -> None:
        place, targets = self._at(parent, name)
        removed = await self._routing.change(
            place.source, targets, _remove, place.ref, name, remove, cause=DropCause.GONE, later=targets.folders
        )
        self._union.watched.touched(parent)
        if removed.emptied_root:
            self._union.emptied(place.source)
        await self._lost_name(place, removed, Link(parent.number, name))
        self._routing.names_changed()

    async def _lost_name(self, place: Place, removed: Removed, link: Link) -> None:
        """Let the node go on without the name, or forget about it when the kernel does not know it."""
        node = self._union.known(place.source, removed.stat)
        if not (node is not None and self._is_kept(node, removed.descriptor, link)):
            await place.source.discard(removed.descriptor)

    async def _forget_name(self, gone: Gone, link: Link) -> None:
        """As ``_lost_name``, of a moved file."""
        node = gone.node
        if node is not None and self._is_kept(node, gone.held.descriptor, link):
            node.dev, node.ino = gone.held.stat.dev, gone.held.stat.ino
        else:
            await gone.source.discard(gone.held.descriptor)
        self._routing.names_changed()

    def _is_kept(self, node: Node, held: Descriptor, link: Link) -> bool:
        """Take a name from a node; whether it goes on by what is held of it."""
        self._union.inodes.unlinked(node, link)
        if node.orphan is not None or node.links:
            return False
        node.orphan = held
        return True

    async def rename(self, old_parent: Node, old: str, new_parent: Node, new: str, flags: int) -> None:
        """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE, within one source."""
        names = _Names((old_parent, old), (new_parent, new), flags)
        for _ in range(_TRIES):
            if await self._rename(names):
                break
        else:
            raise OSError(errno.EBUSY, "its files move all the time", old)
        self._union.watched.touched(old_parent)
        self._union.watched.touched(new_parent)
        self._routing.names_changed()

    async def _rename(self, names: _Names) -> bool:
        """False when what the names stand for became something else meanwhile."""

        def keys_of() -> tuple[FileKey, FileKey]:
            return self._union.child_key(*names.old), self._union.child_key(*names.new)

        (place, targets), (new_place, new_targets) = self._at(*names.old), self._at(*names.new)
        if place.source is not new_place.source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), names.old[1])
        both, (old_key, new_key), turns = _both(targets, new_targets), keys_of(), self._routing.turns
        with self._routing.barred(both):
            if not names.flags & EXCHANGE and (self._moved.get(old_key) or self._moved.get(new_key)):
                # Within the turns of both nothing moves or comes home: what is where stays so until it is renamed.
                async with turns.changing(keys_of, content=False) as now:
                    return now == (old_key, new_key) and await self._rename_on_ssd(
                        names, (old_key, new_key), new_targets, both
                    )
            await self._moved.bring_home_below(old_key)
            await self._moved.bring_home_below(new_key)
            async with turns.renaming(keys_of) as now:
                if now != (old_key, new_key) or any(map(self._moved.holds, now)):
                    return False
                await self._renamed(names, await self._carry_out(names, both))
                return True

    async def _carry_out(
        self, names: _Names, both: Targets, durable: bool = False, onto_nothing: bool = False
    ) -> Moved:
        place, new_place = self._union.place(names.old[0]), self._union.place(names.new[0])
        step = Step(place.ref, names.old[1], new_place.ref, names.new[1], names.flags, durable, onto_nothing)
        return await self._routing.change(
            place.source, both, carry_out, step, cause=DropCause.CHANGED, later=both.folders
        )

    async def _renamed(self, names: _Names, moved: Moved) -> None:
        """A file of the source has another name, and what had that one has none, or the other."""
        place = self._union.place(names.old[0])
        node = self._union.known(place.source, moved.stat)
        if node is not None:
            self._union.inodes.renamed(node, names.old_link, names.new_link)
        await self._displaced(place, moved, names.old_link, names.new_link)

    async def _rename_on_ssd(
        self, names: _Names, keys: tuple[FileKey, FileKey], new_targets: Targets, both: Targets
    ) -> bool:
        """A moved file, or over one, within the turns of both names; False when neither is moved any more."""
        old_key, new_key = keys
        if self._moved.get(old_key) is not None:
            await self._rename_moved(names, keys, new_targets)
            self._union.watched.touched(names.old[0])
            self._union.watched.touched(names.new[0])
            return True
        if self._moved.get(new_key) is None:
            return False
        carry_out = partial(self._carry_out, names, both, True)
        gone, moved = await self._moved.yield_to(old_key, new_key, names.flags, carry_out)
        await self._forget_name(gone, names.new_link)
        await self._renamed(names, moved)
        return True

    async def _rename_moved(self, names: _Names, keys: tuple[FileKey, FileKey], targets: Targets) -> None:
        """A moved file, on the SSD; then what its source has of the new name (``targets``) goes."""
        (old_key, new_key), place = keys, self._union.place(names.new[0])
        renamed = await self._moved.rename(old_key, new_key, place, replace=not names.flags & NOREPLACE)
        if renamed.node is not None:
            self._union.inodes.renamed(renamed.node, names.old_link, names.new_link)
        if renamed.replaced is not None:
            await self._forget_name(renamed.replaced, names.new_link)
        if renamed.over:
            removed = await self._routing.change(
                place.source, targets, _remove, place.ref, names.new[1], _unlink_for_good, cause=DropCause.GONE
            )
            await self._lost_name(place, removed, names.new_link)
            await self._moved.settled(new_key)
        await self._moved.tell_folders(old_key, new_key)

    async def _displaced(self, place: Place, moved: Moved, old: Link, new: Link) -> None:
        """What was at the new name has the old one now, after an exchange, or none any more."""
        if moved.displaced is None:
            return
        if not moved.exchanged:
            await self._lost_name(place, Removed(moved.displaced.descriptor, moved.displaced.stat), new)
            return
        other = self._union.known(place.source, moved.displaced.stat)
        if other is not None:
            self._union.inodes.renamed(other, new, old)
        await place.source.discard(moved.displaced.descriptor)

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

    def _at(self, parent: Node, name: str) -> tuple[Place, Targets]:
        """Where a name is, and what the cache may hold of it: the file, or everything below the folder."""
        if name == RESERVED:
            raise PermissionError(errno.EPERM, f"{name} is cachefs's own", name)
        key = self._union.child_key(parent, name)
        return self._union.place(parent), _below(key)

    def _at_new(self, parent: Node, name: str, *, again: bool = False) -> tuple[Place, Targets]:
        """As ``_at``, for a name that must not be there. ``again``: what is there is to be opened instead."""
        if self._moved.get(self._union.child_key(parent, name)) is not None:
            if again:  # ESTALE makes the kernel look it up and open it
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        return self._at(parent, name)


def _below(key: FileKey) -> Targets:
    return Targets(keys=frozenset((key,)), folders=frozenset((key,)))


def _both(one: Targets, other: Targets) -> Targets:
    return Targets(one.keys | other.keys, one.folders | other.folders, one.inodes | other.inodes)


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


def _remove(parent: Ref, name: str, remove: Callable[..., None]) -> Removed:
    with reach.folder_of(parent) as folder:
        reach.vouch(parent, folder, name)
        held = Descriptor(os.open(name, reach.PLACE, dir_fd=folder))
        try:
            remove(name, dir_fd=folder)
            seen = look(held.number)
            emptied_root = parent.paths[:1] == ("",) and is_empty(folder)
        except OSError:
            held.close()
            raise
    if seen.is_folder and parent.paths:
        parent.folders.forget(f"{parent.paths[0]}/{name}".lstrip("/"))
    return Removed(held, seen, emptied_root)


def _unlink_for_good(name: str, *, dir_fd: int) -> None:
    """The SSD's file of this name says next that the source has none."""
    os.unlink(name, dir_fd=dir_fd)
    sync_names(dir_fd)


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
