"""Moved files that are deleted, renamed, replaced, or brought home since somebody needs them there.

Used by ``changes``: a change of a moved file goes to the SSD's file alone, since there is no other. What cannot be done
there, such as a second name, is done at home. Where the SSD and the source both have a part in a renaming, the SSD's
file first says what is about to happen, so that no crash in between leaves two files of one name.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, TypeVarTuple

from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError, SourceOffline
from cachefs.fs import reach
from cachefs.fs.elsewhere import identity_of, shown
from cachefs.fs.foldertimes import touch
from cachefs.fs.found import Place
from cachefs.fs.inodes import Node
from cachefs.fs.reach import Opened, Ref
from cachefs.fs.rename import NOREPLACE
from cachefs.fs.routing import Routing
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat, look
from cachefs.fs.syncing import sync
from cachefs.fs.union import Union
from cachefs.model import CacheEntry, FileKey, Phase

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_REFUSED = frozenset({errno.EEXIST, errno.EPERM, errno.EACCES, errno.EROFS, errno.EXDEV, errno.EISDIR, errno.EBUSY})


class Home(Protocol):
    """The other side of moved files. Everything raises ``OSError``."""

    async def bring_home(self, key: FileKey, /) -> None:
        """Wait until a moved file is at its source."""
        ...

    async def left(self, key: FileKey, /) -> None:
        """Wait until none below it is just giving up its place at its source."""
        ...

    async def known(self, key: FileKey, /) -> None:
        """See to it that a moved file is wholly away, and its source has nothing of it."""
        ...

    async def let_go(self, key: FileKey, number: int, /, *, in_use: bool) -> None:
        """Its source need not keep its place any more; nor, unless it is ``in_use``, its number."""
        ...


@dataclass(frozen=True, slots=True)
class Gone:
    """A moved file that has lost its name: what the kernel knows of it (None: nothing), and the file, held for those
    who have it open."""

    node: Node | None
    source: Source
    held: Opened


@dataclass(frozen=True, slots=True)
class Renamed:
    """A moved file that has another name: what it was, what the kernel knows of it, the moved file that had that name,
    and whether the source still has a file of it, to be removed."""

    before: CacheEntry
    node: Node | None
    replaced: Gone | None
    over: bool


class MovedFiles:
    """See the module. Use from the event loop only."""

    def __init__(self, union: Union, routing: Routing, homes: Home | None) -> None:
        """``homes`` None: nothing is moved."""
        self._union = union
        self._routing = routing
        self._homes = homes
        self._files = union.elsewhere.files

    def get(self, key: FileKey) -> CacheEntry | None:
        return self._files.get(key)

    def holds(self, key: FileKey) -> bool:
        """Whether this is a moved file, or one is anywhere below it."""
        return self._files.get(key) is not None or self.holds_below(key)

    def holds_below(self, folder: FileKey) -> bool:
        """Whether a moved file is anywhere below a folder."""
        return bool(self._files.below(folder))

    def may_become(self, key: FileKey) -> bool:
        """Whether the SSD has a place for a moved file of this name; where it has none that is a file of its source."""
        return not self._files.is_kept_from(key)

    async def settled(self, key: FileKey) -> None:
        """Its source has no file of its name. What the SSD has no room to note is looked at by whoever settles."""
        try:
            await self._files.settled(key)
        except CacheError as error:
            log.debug("%s: %s", key, error)

    async def known(self, *keys: FileKey) -> None:
        """Before any of these is deleted, renamed or replaced: what its source still had of it would come back. Outside
        of their turns. Raises ``OSError``."""
        for key in keys:
            if not self.are_known(key) and self._homes is not None:
                await self._homes.known(key)

    def are_known(self, *keys: FileKey) -> bool:
        """Whether none of these is a moved file that is still, or already, at its source as well."""
        return all(moved is None or _is_away(moved) for moved in map(self._files.get, keys))

    async def tell_folders(self, *changed: FileKey) -> None:
        """These names are new, or gone, on the SSD alone: who goes by the mtime of their folders is to see that. Nobody
        is kept from it by a source that is away."""
        for folder in dict.fromkeys(FileKey(key.source, key.path.rpartition("/")[0]) for key in changed):
            source = self._union.sources[folder.source]
            try:
                await source.call(touch, source, folder.path)
            except OSError as error:
                log.debug("the mtime of %s stays what it is: %s", folder, error)
        self._union.touched(changed)

    async def delete(self, moved: CacheEntry) -> Gone:
        """Remove a moved file, within a turn of its name. What its source keeps of it goes when it can."""
        async with self._held(moved) as gone:
            self._routing.withdraw(moved.key)
            _refuse_undone(await self._files.delete(moved.key), moved.key)
        self._union.touched((moved.key,))
        await self._ended(gone.node, moved)
        await self.tell_folders(moved.key)
        return gone

    async def rename(self, old: FileKey, new: FileKey, place: Place, *, replace: bool) -> Renamed:
        """Give a moved file another name, in the folder that is at ``place``, within turns of both."""
        moved, replaced = self._files.get(old), self._files.get(new)
        if moved is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), old.path)
        there = await place.source.call(_at, place.source, place.ref, new.path.rpartition("/")[2])
        stranger = there is not None and replaced is not None
        if there is not None and there.is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), new.path)
        if not replace and (there is not None or replaced is not None):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new.path)
        if stranger:
            there = None  # both are kept: what is replaced is the one that the mount shows
        if there is not None:
            await self._sync(self._place(old).source, _open_of, self._place(old).ref)
        goes = self._held(replaced) if replaced is not None and new != old else nullcontext()
        async with goes as gone:
            if there is not None:
                await self._files.replacing(old, (await self._union.files.identified(new, there)).fingerprint)
            self._routing.withdraw(new)
            _refuse_undone(await self._files.rename(old, new), old)
        self._union.touched((old, new))
        if replaced is not None and gone is not None:
            await self._ended(gone.node, replaced)
        return Renamed(moved, self._node(moved), gone, there is not None)

    async def rename_back(self, renamed: Renamed, new: FileKey) -> None:
        """The source did not let go of what it has of the new name: the moved file has its own again, within the turns
        of both. Raises ``CacheError`` and ``OSError``; then it is finished by whoever settles such files."""
        old, home = renamed.before.key, renamed.before.home
        self._routing.withdraw(new)
        _refuse_undone(await self._files.rename(new, old), new)
        if home is not None:
            await self._files.stays(old, home)
        self._union.touched((old, new))

    async def yield_to(
        self, coming: FileKey, key: FileKey, flags: int, rename: Callable[[], Awaitable[T]]
    ) -> tuple[Gone, T]:
        """Let a file of the source, ``coming``, take the place of a moved one, within turns of both. ``rename`` must
        find nothing in that place at the source."""
        moved = self._files.get(key)
        if flags & NOREPLACE or moved is None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), key.path)
        source = self._union.sources[coming.source]
        seen = await source.call(_seen, source, coming.path)
        if seen.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), key.path)
        await self._sync(source, _open_at, source, coming.path, seen)
        async with self._held(moved) as gone:
            await self._files.yielding(key, (await self._union.files.identified(coming, seen)).fingerprint)
            try:
                result = await rename()
            except OSError as error:  # else whoever settles such files looks what became of it
                if is_refused(error) and moved.home is not None:
                    await self._files.stays(key, moved.home)
                raise
            self._routing.withdraw(key)
            await self._files.delete(key)
        self._union.touched((key,))
        await self._ended(gone.node, moved)
        return gone, result

    async def left(self, key: FileKey) -> None:
        """Wait until no file here or below is just giving up its place at its source. No further one begins while the
        caller bars it."""
        if self._homes is not None:
            await self._homes.left(key)

    async def at_home(self, node: Node) -> Place:
        """Where a file is, at its source, brought there if need be; it stays there while the caller bars it."""
        place = self._union.place(node)
        if place.keys:
            await self.left(place.keys[0])
            place = self._union.place(node)
        if place.moved is not None:
            await self._bring_home(place.moved.key)
            place = self._union.place(node)
        return place

    async def bring_home_below(self, key: FileKey) -> None:
        """A file, or all files below a folder. They stay there while the caller bars them."""
        await self.left(key)
        moved = self._files.get(key)
        for entry in (moved,) if moved is not None else self._files.below(key):
            await self._bring_home(entry.key)

    async def _bring_home(self, key: FileKey) -> None:
        if self._homes is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), key.path)
        await self._homes.bring_home(key)

    @asynccontextmanager
    async def _held(self, moved: CacheEntry) -> AsyncIterator[Gone]:
        """A moved file that is to lose its name within; what is held of it is the caller's when that was done."""
        place = self._place(moved.key)
        held = await place.source.call(_hold, place.ref)
        async with AsyncExitStack() as undone:
            undone.push_async_callback(place.source.discard, held.descriptor)
            yield Gone(self._node(moved), place.source, Opened(held.descriptor, shown(moved, held.stat)))
            undone.pop_all()

    async def _sync(self, source: Source, function: Callable[[*Ts], Descriptor | None], *args: *Ts) -> None:
        """What takes the place of a file on another disk is durable before that one goes. Many programs rely on it that
        a renaming alone sees to that."""
        coming = await source.call(function, *args)
        if coming is not None:
            try:
                await sync(source, coming, datasync=True)
            finally:
                await source.discard(coming)

    async def _ended(self, node: Node | None, moved: CacheEntry) -> None:
        """It is deleted: nobody but those who have it open, while the kernel knows it, needs what is kept of it."""
        await self._union.when_forgotten(node, partial(self._let_go, moved))
        if node is not None:
            await self._let_go(moved, in_use=True)

    async def _let_go(self, moved: CacheEntry, *, in_use: bool = False) -> None:
        if self._homes is None:
            return
        try:
            await self._homes.let_go(moved.key, moved.source_file.inode, in_use=in_use)
        except OSError as error:
            log.info("what source %s keeps of the deleted %s stays there: %s", moved.key.source, moved.key.path, error)

    def _node(self, moved: CacheEntry) -> Node | None:
        return self._union.inodes.find(*identity_of(moved))

    def _place(self, key: FileKey) -> Place:
        place = self._union.elsewhere.place(key)
        if place is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), key.path)
        return place


def is_refused(error: OSError) -> bool:
    """Whether a source that was to rename or remove something has done nothing, for sure."""
    return isinstance(error, SourceOffline) or error.errno in _REFUSED


def _is_away(moved: CacheEntry) -> bool:
    """Whether what its source has of its name is somebody else's."""
    return moved.home is not None and moved.home.phase is Phase.AWAY


def _refuse_undone(done: bool, key: FileKey) -> None:
    """Nobody is told that something was done that was not: ESTALE for a file that is moved no more."""
    if not done:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), key.path)


# --- in threads ------------------------------------------------------------------------------------------------------


def _at(source: Source, parent: Ref, name: str) -> Stat | None:
    """What has this name. EXDEV in a folder that no file can come home to: the place that it keeps there is on the file
    system of the source's root."""
    with source.folders.at("") as root, reach.folder_of(parent) as folder:
        if os.fstat(root).st_dev != os.fstat(folder).st_dev:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
        try:
            return look(folder, name)
        except FileNotFoundError:
            return None


def _seen(source: Source, path: str) -> Stat:
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder:
        return look(folder, name)


def _open_of(ref: Ref) -> Descriptor:
    return reach.open_node(ref, os.O_RDONLY | os.O_NONBLOCK).descriptor


def _open_at(source: Source, path: str, seen: Stat) -> Descriptor | None:
    """None for what has no bytes, or may not be read by an ordinary user's cachefs."""
    if not seen.is_file:
        return None
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder, suppress(PermissionError):
        return Descriptor(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))
    return None


def _hold(ref: Ref) -> Opened:
    """A file that is about to lose its last name, held as a place."""
    with reach.place_of(ref) as place:
        held = Descriptor(os.dup(place))
    try:
        return Opened(held, look(held.number)._replace(nlink=0))
    except OSError:
        held.close()
        raise
