"""The places at their sources that moved files have left, and come back to.

Used by ``cache.moving``, which decides when and in which order; and by ``changes``, when a moved file is deleted. Every
method is one hop into a thread of the source, and durable when it returns. What leaves is not simply deleted: its inode
is emptied and kept in a folder of ours at the source's root, which the mount never shows: no other file is given its
number, and the file that comes back is that very inode. Where nobody can tell whether it is in use, it is deleted,
which harms no reader, and what comes back is a new file. For those who look nothing has changed: a folder's mtime is
what it was.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat as st
import time
from collections import Counter
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs import leases
from cachefs.descriptors import Descriptor, sync_names
from cachefs.fs import keepings, reach
from cachefs.fs.foldertimes import unseen
from cachefs.fs.found import RESERVED
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union
from cachefs.leases import Lease
from cachefs.model import FileKey, Fingerprint, SourceFile, SourceName

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FOUND_WITHIN_S = 0.001
"""Somebody who has found a file by its name opens it by then."""
_PATIENCE_S = 2.0
"""For an earlier change of a file: most are one call to a disk."""
_RENAME_NOREPLACE = 1
_OTHER_FILESYSTEM = "it is on another file system than its source's root"
_NO_WAY_BACK = "its file system can rename nothing without overwriting, so that it could not come back"
_NOT_TOLD = "it belongs to somebody else, and who has it open is told to him and root alone"
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class AtHome:
    """A file at its source, as it is now, its birth time (0 where unknown), and when anything of it changed last."""

    file: SourceFile
    birth_ns: int
    ctime_ns: int


class Homes:
    """See the module. Use from the event loop only."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._late: Counter[FileKey] = Counter()
        """Files of which a thread is changing something at the source, also one that was given up."""
        self._ended = trio.Event()

    def is_ready(self, key: FileKey) -> bool:
        """Whether its source answers, and no earlier change of this file is still under way there."""
        return self._source(key).online and key not in self._late

    async def change(self, key: FileKey, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """``function``, which changes something of this file, in a thread of its source. Past its deadline nobody waits
        for it, but nothing else is done to the file before it has really returned. Raises ``OSError``."""
        with trio.move_on_after(_PATIENCE_S):
            while key in self._late:
                await self._ended.wait()
        if key in self._late:
            raise OSError(errno.EBUSY, "an earlier change of it has not come back yet", key.path)
        self._late[key] += 1
        self._union.touched((key,))
        return await self._source(key).change(partial(self._returned, key), function, *args)

    def _returned(self, key: FileKey) -> None:
        del self._late[key]
        self._ended.set()
        self._ended = trio.Event()
        self._union.touched((key,))

    async def look(self, key: FileKey, *, durable: bool = False) -> AtHome | None:
        """What its source has under this name, whatever the mount shows; None when there is nothing. ``durable``: it
        outlives a power cut, whoever made it so. Raises ``OSError``; EEXIST for anything but a regular file."""
        source = self._source(key)
        try:
            seen = await source.call_gently(_look_durably if durable else _look, source, key.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not seen.is_file:
            raise OSError(errno.EEXIST, "something that is no file has its place", str(key))
        return AtHome(await self._union.files.identified(key, seen), seen.birth_ns, seen.ctime_ns)

    async def has_folder(self, key: FileKey) -> bool:
        """Whether its folder is there at its source, whatever the mount shows. Raises ``OSError``; ENOTDIR where
        something else has the name of one."""
        source = self._source(key)
        try:
            await source.call_gently(_open_folder, source, reach.split(key.path)[0])
        except FileNotFoundError:
            return False
        return True

    async def take_away(self, key: FileKey, kept: int | None, seen: SourceFile, ctime_ns: int) -> bool:
        """Let the source give up the file that was ``seen``; whether its inode is kept, as this number. Raises
        ``OSError``: one of ``places.NOTHING_DONE`` when anybody has it open, or that cannot be known, when anything of
        it is different by now, and when it could not come back."""
        return await self.change(key, _take_away, self._source(key), key.path, kept, seen, ctime_ns)

    async def finish(self, key: FileKey, kept: int, left: Fingerprint) -> None:
        """What a crash may have left of ``take_away`` half done: the file that was ``left`` goes, any other comes back.
        Raises ``OSError``."""
        await self.change(key, _finish, self._source(key), key.path, kept, left)

    async def open_return(self, key: FileKey, kept: int) -> Descriptor:
        """The kept inode, or a new file in its place, open for writing what comes back; ``arrive`` names it."""
        return await self.change(key, keepings.open_one, self._source(key), kept)

    async def identify(self, key: FileKey, returning: Descriptor) -> SourceFile:
        """What the returning file is, as it will be known under its name."""
        source = self._source(key)
        return await self._union.files.identified(key, await source.call_gently(_look_at, returning))

    async def arrive(self, key: FileKey, kept: int, returning: Descriptor) -> None:
        """Give the returned file its name, in folders that are made where they are gone. Raises ``FileExistsError``
        when the name was taken meanwhile: nothing is ever overwritten; ESTALE when it is not the file any more that was
        opened to be written."""
        await self.change(key, _arrive, self._source(key), key.path, kept, returning)
        self._union.touched((key,))  # what is remembered of its folder is without it

    async def let_go(self, key: FileKey, kept: int, *, keep: bool) -> None:
        """The file will not come back (or, ``keep``, not now): what is kept of it takes no room any more."""
        source = self._source(key)
        if keep:
            await self.change(key, keepings.trim, source, kept)
        elif await self.change(key, keepings.let_go, source, kept):
            self._union.emptied(source)

    async def set_aside(self, key: FileKey, kept: int) -> None:
        """The file will not come back, but its number is not to be another's yet: ``let_go`` ends that. What a crash
        leaves of it is not taken for a moved file's."""
        await self.change(key, keepings.set_aside, self._source(key), kept)

    async def filled(self, key: FileKey) -> frozenset[int]:
        """The numbers of those that are kept at this file's source with bytes in them."""
        source = self._source(key)
        sizes = await source.call_gently(keepings.sizes, source)
        return frozenset(int(name) for name, size in sizes.items() if size and name.isdigit())

    async def count_kept(self, source: Source) -> int:
        """How many files this source keeps places for. Raises ``OSError``."""
        return await source.call(keepings.count, source)

    async def tidy(self, name: SourceName, moved: Callable[[], Set[int]]) -> None:
        """Remove what is kept at a source of files that are moved no more: all but these numbers, and those that the
        kernel knows. What has bytes stays, unless its file was deleted."""
        source = self._named(name)
        sizes = await source.call_gently(keepings.sizes, source)
        keep = set(map(str, moved()))  # asked now: what was there by then is among them
        empty = {name for name, size in sizes.items() if not (size and name.isdigit())} - keep
        known = {name for name in empty if self._union.inodes.knows(int(name.removesuffix(keepings.DELETED)))}
        if await source.call_gently(keepings.remove, source, empty - known):
            self._union.emptied(source)

    def _source(self, key: FileKey) -> Source:
        return self._named(key.source)

    def _named(self, name: SourceName) -> Source:
        source = self._union.sources.get(name)
        if source is None:
            raise OSError(errno.ENOENT, "no such source", name)
        return source


# --- in the source's threads -----------------------------------------------------------------------------------------


def _look(source: Source, path: str) -> Stat:
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder:
        return look(folder, name)


def _open_folder(source: Source, path: str) -> None:
    with source.folders.at(path):
        pass


def _look_durably(source: Source, path: str) -> Stat:
    with source.folders.at(reach.split(path)[0]) as folder:
        sync_names(folder)
    return _look(source, path)


def _look_at(descriptor: Descriptor) -> Stat:
    with descriptor.use() as number:
        return look(number)


def _take_away(source: Source, path: str, kept: int | None, seen: SourceFile, ctime_ns: int) -> bool:
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder:
        number = os.open(name, os.O_RDWR | _FILE, dir_fd=folder)
        try:
            found = look(number)
            linked = kept is not None and found.nlink != 1  # one that was replaced only loses this name
            if linked or not _is_same(found, seen.fingerprint) or found.ctime_ns != ctime_ns:  # of its attributes, too
                raise OSError(errno.ESTALE, "it was changed meanwhile", path)
            reserved = kept is not None and _lease(number) and source.is_local
            if kept is None:
                _remove(folder, name, found)
            elif reserved:
                _set_aside(source, folder, name, str(kept), lambda _: _is_ours_alone(number))
                os.ftruncate(number, 0)
                os.fsync(number)  # what comes back with its bytes after a power cut takes room for ever
            else:
                leaving = f"{kept}{keepings.LEAVING}"
                _set_aside(source, folder, name, leaving, lambda there: _is_same(there, seen.fingerprint))
                keepings.left(source, kept)
        finally:
            os.close(number)  # and with it goes the lease
        sync_names(folder)
    return reserved


def _is_same(found: Stat, expected: Fingerprint) -> bool:
    same_inode = expected.inode is None or found.ino == expected.inode
    return same_inode and (found.size, found.mtime_ns) == (expected.size, expected.mtime_ns)


def _lease(number: int) -> bool:
    """Make sure that nobody else has the file open: to empty it under a reader would be to lose it for him. False
    where the file system knows no leases: then it is only deleted, which harms no reader. One that is not a local
    disk's grants it without knowing who has the file open elsewhere, or below it (FUSE, network)."""
    lease = leases.take(number, leases.WRITE)
    if lease is Lease.REFUSED:
        raise OSError(errno.EBUSY, "somebody has it open")
    if lease is Lease.FORBIDDEN:
        raise OSError(errno.EPERM, _NOT_TOLD)
    return lease is Lease.GRANTED


def _is_ours_alone(number: int) -> bool:
    """Whether nobody found it by its name before that went: who opens it now waits for the lease, and would have an
    emptied file; a link breaks none."""
    time.sleep(_FOUND_WITHIN_S)
    return leases.holds(number, leases.WRITE) and os.fstat(number).st_nlink == 1


def _remove(folder: int, name: str, found: Stat) -> None:
    now = look(folder, name)
    if (now.dev, now.ino) != (found.dev, found.ino):
        raise OSError(errno.ESTALE, "another file has its name", name)
    with unseen(folder, name):
        os.unlink(name, dir_fd=folder)


def _set_aside(source: Source, folder: int, name: str, aside: str, is_ours: Callable[[Stat], bool]) -> None:
    """Take the name of a file, and see then what it was the name of: somebody may just have renamed another one over
    it. That one comes back."""
    with keepings.opened(source) as reserved:
        keepings.make_place(reserved, aside)
        try:
            with unseen(folder, name):
                _rename_to_nothing(folder, name, reserved, aside)
        except OSError as error:
            raise _why_not_aside(error, name) from error
        sync_names(reserved)
        if not is_ours(look(reserved, aside)):
            _put_back(reserved, aside, folder, name)
            raise OSError(errno.EBUSY, "somebody opened, linked or replaced it just then")


def _why_not_aside(error: OSError, name: str) -> OSError:
    if error.errno == errno.EXDEV:
        return OSError(errno.EXDEV, _OTHER_FILESYSTEM, name)
    if error.errno in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
        return OSError(errno.EPERM, _NO_WAY_BACK, name)
    return error


def _put_back(reserved: int, aside: str, folder: int, name: str) -> None:
    """Raises ``FileExistsError`` where another one has got its name already: it stays where it is then, whole."""
    try:
        with unseen(folder, name):
            _rename_to_nothing(reserved, aside, folder, name)
    except FileExistsError:
        log.warning("%s was replaced twice while it was moved: one of the two is kept as %s/%s", name, RESERVED, aside)
        raise


def _finish(source: Source, path: str, kept: int, left: Fingerprint) -> None:
    folder_path, name = reach.split(path)
    aside = f"{kept}{keepings.LEAVING}"
    try:
        with keepings.opened(source, make=False) as reserved:
            if _is_same(look(reserved, aside), left):
                keepings.left(source, kept)
                return
            with source.folders.at(folder_path) as folder:
                _put_back(reserved, aside, folder, name)
                sync_names(folder)
    except FileNotFoundError:
        return


def _arrive(source: Source, path: str, kept: int, returning: Descriptor) -> None:
    folder_path, name = reach.split(path)
    _make_folders(source, folder_path)
    with source.folders.at(folder_path) as folder, keepings.opened(source) as reserved:
        _refuse_another(reserved, str(kept), returning)
        try:
            with unseen(folder, name):
                _rename_to_nothing(reserved, str(kept), folder, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise OSError(errno.EXDEV, _OTHER_FILESYSTEM, path) from error
        sync_names(folder)
        sync_names(reserved)
    keepings.remove_folder(source)


def _refuse_another(folder: int, name: str, opened: Descriptor) -> None:
    """Somebody may have tidied up there meanwhile, behind our back."""
    there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    with opened.use() as number:
        ours = os.fstat(number)
    if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        raise OSError(errno.ESTALE, f"what was brought home is not in {RESERVED} any more", name)


def _rename_to_nothing(old_folder: int, old: str, new_folder: int, new: str) -> None:
    """rename(2), never over anything. Where a file system knows no such renaming, by a second name."""
    if _libc.renameat2(old_folder, os.fsencode(old), new_folder, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), new)
    os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
    os.unlink(old, dir_fd=old_folder)


def _make_folders(source: Source, path: str) -> None:
    """The folders that a file comes back to; its neighbours may be gone, but it was never deleted. A new one is as open
    to others as the one that it is in."""
    above = ""
    for name in path.split("/") if path else ():
        below = f"{above}/{name}" if above else name
        with source.folders.at(above) as folder, suppress(FileExistsError):
            seen = look(folder)
            os.mkdir(name, st.S_IMODE(seen.mode), dir_fd=folder)
            _make_alike(folder, name, seen)
            sync_names(folder)
            source.folders.forget(below)  # what may be open is one that was deleted
        above = below


def _make_alike(above: int, name: str, seen: Stat) -> None:
    """As far as its file system and our rights allow: the file is to come home in any case."""
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        with suppress(OSError):
            os.fchown(made, seen.uid, seen.gid)
        with suppress(OSError):
            os.fchmod(made, st.S_IMODE(seen.mode))
    finally:
        os.close(made)
