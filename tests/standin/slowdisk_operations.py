"""What the slow disk does for the kernel: count each operation, wait its time, then do it on the backing folder.

Used by ``slowdisk`` only. A node is an ``O_PATH`` descriptor on the backing file, so that inode numbers are the backing
folder's (which must be one file system), a renamed or deleted file stays the file it was, and no number is given out
twice while the kernel knows it. Entry and attribute timeouts are 0: the kernel asks again every time.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, InodeT, ModeT, RequestContext

from tests.standin.slowdisk_physics import Disk, Place

T = TypeVar("T")
READDIR_BATCH = 64
IGNORED_OPEN_FLAGS = os.O_APPEND | os.O_DIRECT | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL
STAT_FIELDS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks")
STAT_TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


@dataclass(slots=True)
class Node:
    """A file the kernel knows: ``O_PATH`` descriptor, its number, and how often the kernel was told of it."""

    fd: int
    number: int
    lookups: int = 0

    @property
    def proc(self) -> str:
        return f"/proc/self/fd/{self.fd}"


@dataclass(frozen=True, slots=True)
class Found:
    """A fresh ``O_PATH`` descriptor and what it showed."""

    fd: int
    result: os.stat_result


def look(parent_fd: int, name: bytes) -> Found:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent_fd)
    return Found(fd, os.fstat(fd))


async def in_thread(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


class SlowOperations(pyfuse3.Operations):
    """The file system: count and wait, then do the same on the backing folder."""

    def __init__(self, backing: str, disk: Disk) -> None:
        super().__init__()
        self.disk = disk
        self._root = os.path.realpath(backing)
        fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY)
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: Node(fd, pyfuse3.ROOT_INODE, lookups=1)}
        self._root_number = os.fstat(fd).st_ino
        self._open_nodes: dict[int, Node] = {}
        self._listings: dict[int, tuple[Node, list[bytes]]] = {}
        self._listing_ids = itertools.count(1)

    # --- names ---

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        parent = self._nodes[parent_inode]
        async with self._asked("lookup", self._below(parent, name)):
            return self._remember(await in_thread(partial(look, parent.fd, self._stored(name))))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self.disk.count("forget", len(inode_list))
        for inode, count in inode_list:
            node = self._nodes[inode]
            node.lookups -= count
            if node.lookups <= 0 and inode != pyfuse3.ROOT_INODE:
                del self._nodes[inode]
                os.close(node.fd)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        make = partial(os.mknod, name, mode & ~ctx.umask, rdev)
        return await self._make("mknod", parent_inode, name, ctx, make)

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return await self._make("mkdir", parent_inode, name, ctx, partial(os.mkdir, name, mode & ~ctx.umask))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make("symlink", parent_inode, name, ctx, partial(os.symlink, target, name))

    async def _make(
        self, kind: str, parent_inode: InodeT, name: bytes, ctx: RequestContext, make: Callable[..., None]
    ) -> EntryAttributes:
        parent, uid, gid = self._nodes[parent_inode], ctx.uid, ctx.gid

        def make_and_look() -> Found:
            make(dir_fd=parent.fd)
            give_to_caller(parent.fd, name, uid, gid)
            return look(parent.fd, name)

        async with self._asked(kind, self._below(parent, name)):
            return self._remember(await in_thread(make_and_look))

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node, parent = self._nodes[inode], self._nodes[new_parent_inode]

        def make_and_look() -> Found:
            os.link(node.proc, new_name, dst_dir_fd=parent.fd, follow_symlinks=True)
            return look(parent.fd, new_name)

        async with self._asked("link", self._path(node), self._below(parent, new_name)):
            return self._remember(await in_thread(make_and_look))

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._nodes[parent_inode]
        async with self._asked("unlink", self._below(parent, name)):
            await in_thread(partial(os.unlink, name, dir_fd=parent.fd))

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._nodes[parent_inode]
        async with self._asked("rmdir", self._below(parent, name)):
            await in_thread(partial(os.rmdir, name, dir_fd=parent.fd))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old, new = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        async with self._asked("rename", self._below(old, name_old), self._below(new, name_new)):
            await in_thread(partial(rename, old.fd, name_old, new.fd, name_new, flags))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        node = self._nodes[inode]
        async with self._asked("readlink", self._path(node)):
            return FileNameT(await in_thread(partial(os.readlink, b"", dir_fd=node.fd)))

    # --- attributes ---

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[inode]
        async with self._asked("getattr", self._path(node)):
            return self._attributes(await in_thread(partial(os.fstat, node.fd)))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        async with self._asked("setattr", self._path(node)):
            for change in changes(node, attr, fields, fh):
                await in_thread(change)
            return self._attributes(await in_thread(partial(os.fstat, node.fd)))

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        root = self._nodes[pyfuse3.ROOT_INODE]
        async with self._asked("statfs", ""):
            result = await in_thread(partial(os.fstatvfs, root.fd))
        answer = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{name}", getattr(result, f"f_{name}"))
        return answer

    async def getxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> bytes:
        node = self._nodes[inode]
        async with self._asked("getxattr", self._path(node)):
            return await in_thread(partial(os.getxattr, node.proc, name))

    async def setxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        node = self._nodes[inode]
        async with self._asked("setxattr", self._path(node)):
            await in_thread(partial(os.setxattr, node.proc, name, value))

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        node = self._nodes[inode]
        async with self._asked("listxattr", self._path(node)):
            names = await in_thread(partial(os.listxattr, node.proc))
        return [pyfuse3.XAttrNameT(os.fsencode(name)) for name in names]

    async def removexattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> None:
        node = self._nodes[inode]
        async with self._asked("removexattr", self._path(node)):
            await in_thread(partial(os.removexattr, node.proc, name))

    # --- open files: the handle is the backing descriptor ---

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        node = self._nodes[inode]
        async with self._asked("open", self._path(node)):
            fd = await in_thread(partial(os.open, node.proc, flags & ~IGNORED_OPEN_FLAGS))
        return self._opened(node, fd)

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent, uid, gid, mode = self._nodes[parent_inode], ctx.uid, ctx.gid, ModeT(mode & ~ctx.umask)
        exclusive = flags & os.O_EXCL

        def create_and_look() -> tuple[int, Found]:
            how = (flags & ~IGNORED_OPEN_FLAGS) | os.O_CREAT | exclusive | os.O_NOFOLLOW
            fd = os.open(name, how, mode, dir_fd=parent.fd)
            give_to_caller(parent.fd, name, uid, gid)
            return fd, look(parent.fd, name)

        async with self._asked("create", self._below(parent, name)):
            fd, found = await in_thread(create_and_look)
        attributes = self._remember(found)
        return self._opened(self._nodes[attributes.st_ino], fd), attributes

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        node = self._open_nodes[fh]
        async with self._asked("read", self._path(node), size=size, place=Place(node.number, off)):
            return await in_thread(partial(os.pread, fh, size, off))

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        node = self._open_nodes[fh]
        async with self._asked("write", self._path(node), size=len(buf), place=Place(node.number, off)):
            return await in_thread(partial(os.pwrite, fh, buf, off))

    async def flush(self, fh: FileHandleT) -> None:
        async with self._asked("flush", self._path(self._open_nodes[fh])):
            pass

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        async with self._asked("fsync", self._path(self._open_nodes[fh])):
            await in_thread(partial(os.fdatasync if datasync else os.fsync, fh))

    async def release(self, fh: FileHandleT) -> None:
        node = self._open_nodes.pop(fh)
        await in_thread(partial(os.close, fh))
        async with self._asked("release", self._path(node)):
            pass

    # --- folders ---

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        node = self._nodes[inode]
        async with self._asked("opendir", self._path(node)):
            number = next(self._listing_ids)
            self._listings[number] = (node, [])
            return FileHandleT(number)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        node, names = self._listings[fh]
        async with self._asked("readdir", self._path(node)):
            if start_id == 0:
                names[:] = await in_thread(partial(list_names, node.proc))
            position = start_id
            while position < len(names):
                batch = names[position : position + READDIR_BATCH]
                found = await in_thread(partial(look_at_all, node.fd, batch))
                if not self._reply(token, batch, found, position):
                    return
                position += len(batch)

    def _reply(self, token: pyfuse3.ReaddirToken, names: list[bytes], found: list[Found | None], position: int) -> bool:
        """Hand entries to the kernel; False when its buffer is full. Owns every descriptor of ``found``."""
        room = True
        for number, (name, entry) in enumerate(zip(names, found, strict=True), position + 1):
            if entry is None:
                continue
            shown = FileNameT(name.replace(b"~", b"~" * self.disk.settings.long_tilde))
            room = room and pyfuse3.readdir_reply(token, shown, self._attributes(entry.result), number)
            if room:
                self._remember(entry)
            else:
                os.close(entry.fd)
        return room

    async def releasedir(self, fh: FileHandleT) -> None:
        node, _ = self._listings.pop(fh)
        async with self._asked("releasedir", self._path(node)):
            pass

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        node, _ = self._listings[fh]
        async with self._asked("fsyncdir", self._path(node)):
            await in_thread(partial(sync_folder, node.proc))

    # --- inside ---

    @asynccontextmanager
    async def _asked(self, kind: str, *paths: str, size: int = 0, place: Place | None = None) -> AsyncIterator[None]:
        try:
            await self.disk.ask(kind, *paths, size=size, place=place)
            yield
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    def _stored(self, name: bytes) -> bytes:
        return name.replace(b"~" * self.disk.settings.long_tilde, b"~")

    def _path(self, node: Node) -> str:
        """Where the file is now, relative to the disk's root."""
        return os.readlink(node.proc)[len(self._root) :].lstrip("/").removesuffix(" (deleted)")

    def _below(self, parent: Node, name: bytes) -> str:
        return f"{self._path(parent)}/{os.fsdecode(name)}".lstrip("/")

    def _remember(self, found: Found) -> EntryAttributes:
        """The kernel is told of this file once more."""
        number = self._number(found.result)
        node = self._nodes.get(number)
        if node is None:
            self._nodes[number] = node = Node(found.fd, number)
        else:
            os.close(found.fd)
        node.lookups += 1
        return self._attributes(found.result)

    def _number(self, result: os.stat_result) -> int:
        return pyfuse3.ROOT_INODE if result.st_ino == self._root_number else result.st_ino

    def _attributes(self, result: os.stat_result) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = InodeT(self._number(result))
        attributes.entry_timeout = attributes.attr_timeout = 0
        for name in STAT_FIELDS + STAT_TIMES:
            setattr(attributes, name, getattr(result, name))
        return attributes

    def _opened(self, node: Node, fd: int) -> FileInfo:
        self._open_nodes[fd] = node
        return FileInfo(fh=FileHandleT(fd), keep_cache=False, direct_io=self.disk.settings.direct_io)


def list_names(path: str) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(path)))


def look_at_all(parent_fd: int, names: list[bytes]) -> list[Found | None]:
    found: list[Found | None] = []
    for name in names:
        try:
            found.append(look(parent_fd, name))
        except FileNotFoundError:  # deleted since it was listed
            found.append(None)
    return found


def give_to_caller(parent_fd: int, name: bytes, uid: int, gid: int) -> None:
    """As root, what was just made belongs to whoever asked for it."""
    if os.geteuid() == 0:
        keeps_group = os.fstat(parent_fd).st_mode & stat.S_ISGID
        os.chown(name, uid, -1 if keeps_group else gid, dir_fd=parent_fd, follow_symlinks=False)


def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(old_fd, old, new_fd, new, flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def changes(
    node: Node, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None
) -> list[Callable[[], object]]:
    """What a setattr asks for, in an order in which the times come out as asked."""
    steps: list[Callable[[], object]] = []
    if fields.update_size:
        steps.append(partial(os.truncate, node.proc if fh is None else fh, attr.st_size))
    if fields.update_uid or fields.update_gid:
        owner = attr.st_uid if fields.update_uid else -1
        steps.append(partial(os.chown, node.proc, owner, attr.st_gid if fields.update_gid else -1))
    if fields.update_mode:
        steps.append(partial(os.chmod, node.proc, stat.S_IMODE(attr.st_mode)))
    if fields.update_atime or fields.update_mtime:
        now = os.fstat(node.fd)
        accessed = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
        modified = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
        steps.append(partial(os.utime, node.proc, ns=(accessed, modified)))
    return steps


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
