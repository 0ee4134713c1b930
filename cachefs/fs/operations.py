"""The adapter between pyfuse3's requests and the rooms behind it; the one place where exceptions become errnos.

Called by pyfuse3 only. Decides nothing: it turns numbers into nodes, names into text, attributes into pyfuse3's
structures, and counts what the kernel was told.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat as st
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from cachefs.errors import CacheError
from cachefs.fs import channel
from cachefs.fs.caller import Caller
from cachefs.fs.changes import Attributes, Changes
from cachefs.fs.found import Found
from cachefs.fs.inodes import Node
from cachefs.fs.listings import Listings
from cachefs.fs.routing import Opening, Routing
from cachefs.fs.union import Union
from cachefs.fs.xattrs import Xattrs

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

STATE = "user.cachefs.state"
"""Answered for regular files, never listed, so that ``rsync -X`` does not copy it."""
_DOTS = (".", "..")
"""Listed as every file system lists them; the kernel takes no more than their type from us, and counts no lookup."""
_STAT_AT_ONCE = 512
"""Names of a folder that one thread hop asks attributes of."""


def _errors(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Whatever a handler raises reaches the caller of the system call as an errno, and never ends the mount. At the end
    of the server nobody is left without an answer: he may hold a lock that a thread of ours waits for."""

    @functools.wraps(handler)
    async def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except trio.Cancelled as cancelled:  # whoever called us is cancelled again where he waits next
            raise pyfuse3.FUSEError(errno.ENOTCONN) from cancelled
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except CacheError as error:  # of a moved file: there is no other side to turn to
            log.info("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.number) from error
        except Exception as error:
            log.exception("%s failed; the caller gets EIO; please report this", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return translated


@dataclass(slots=True)
class _OpenFolder:
    """A folder that is read name by name: over several sources, or where there is no channel. ``.`` and ``..`` come
    first; the names are as they were when it was last read from the start."""

    folder: Node
    names: list[str] = field(default_factory=list)
    found: list[Found | None] = field(default_factory=list)
    """Attributes of the names before ``len(found)``; None where a name was gone by then."""
    as_of: int = 0
    """How often something had been changed through the mount by then."""


class Operations(pyfuse3.Operations):
    """Handlers in pyfuse3's order of arguments."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, union: Union, routing: Routing, changes: Changes, xattrs: Xattrs | None = None) -> None:
        super().__init__()
        self._union = union
        self._routing = routing
        self._changes = changes
        self._xattrs = xattrs if xattrs is not None else Xattrs(union, routing)
        self.enable_acl = self._xattrs.acls is not None  # FUSE_POSIX_ACL: the kernel asks for ACLs and enforces them
        self.listings = Listings(union)
        self._open_folders: dict[int, _OpenFolder] = {}
        self._issued = 0

    def init(self) -> None:
        """The kernel is there."""
        if channel.is_bound():
            self._union.inodes.leaves.begin()
        self._routing.backings.kernel_is_there.set()  # whoever waits for it runs after the answer was written

    # --- names ---------------------------------------------------------------------------------------------------

    @_errors
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._told(await self._union.lookup(self._union.node(parent_inode), os.fsdecode(name)))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            node = self._union.inodes.forgotten(number, count)
            if node is not None:
                await self._union.let_go(node)

    @_errors
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(
            parent_inode, name, ctx, lambda folder, text: os.mkdir(text, mode & 0o7777, dir_fd=folder)
        )

    @_errors
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, ctx, lambda folder, text: os.mknod(text, mode, rdev, dir_fd=folder))

    @_errors
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(
            parent_inode, name, ctx, lambda folder, text: os.symlink(target, os.fsencode(text), dir_fd=folder)
        )

    async def _make(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext, maker: Callable[[int, str], None]
    ) -> pyfuse3.EntryAttributes:
        found = await self._changes.make(self._union.node(parent), os.fsdecode(name), _caller(ctx), maker)
        return self._told(found)

    @_errors
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node, parent = self._union.node(inode), self._union.node(new_parent_inode)
        return self._told(await self._changes.link(node, parent, os.fsdecode(new_name)))

    @_errors
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.unlink(self._union.node(parent_inode), os.fsdecode(name))

    @_errors
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.rmdir(self._union.node(parent_inode), os.fsdecode(name))

    @_errors
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        old, new = self._union.node(parent_inode_old), self._union.node(parent_inode_new)
        await self._changes.rename(old, os.fsdecode(name_old), new, os.fsdecode(name_new), flags)

    # --- attributes ----------------------------------------------------------------------------------------------

    @_errors
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._union.node(inode)
        known = self._routing.attributes_of_cached(node)
        if known is not None:
            return _attributes(known)
        try:
            return _attributes(await self._union.attributes(node))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return _attributes(await self._routing.attributes_of_open(node))

    @_errors
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._union.node(inode)
        size = attr.st_size if fields.update_size else None
        if size is not None and fh is not None:
            await self._routing.truncate(fh, size)
            size = None
        wanted = Attributes(
            size=size,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _attributes(await self._changes.set_attributes(node, wanted))

    @_errors
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return os.fsencode(await self._changes.read_link(self._union.node(inode)))

    @_errors
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        node, text = self._union.node(inode), os.fsdecode(name)
        if text == STATE:
            if not st.S_ISREG(node.kind):
                raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
            return self._routing.state(node).value.encode()
        return await self._xattrs.get(node, text)

    @_errors
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if os.fsdecode(name) == STATE:
            raise pyfuse3.FUSEError(errno.EPERM)
        await self._xattrs.set(self._union.node(inode), os.fsdecode(name), value, _caller(ctx))

    @_errors
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return [os.fsencode(name) for name in await self._xattrs.names(self._union.node(inode), ctx.uid == 0)]

    @_errors
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if os.fsdecode(name) == STATE:
            raise pyfuse3.FUSEError(errno.EPERM)
        await self._xattrs.remove(self._union.node(inode), os.fsdecode(name), _caller(ctx))

    @_errors
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        number = channel.node()  # pyfuse3 does not say which file was meant
        space = await self._union.space(self._union.node(number) if number is not None else None)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = space.block_bytes
        answer.f_blocks, answer.f_bfree, answer.f_bavail = space.blocks, space.free, space.available
        answer.f_files, answer.f_ffree, answer.f_favail = space.files, space.files_free, space.files_free
        answer.f_namemax = space.longest_name
        return answer

    # --- files ---------------------------------------------------------------------------------------------------

    @_errors
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return _file_info(await self._routing.open(self._union.node(inode), flags))

    @_errors
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._union.node(parent_inode)
        found, opened = await self._changes.create(parent, os.fsdecode(name), flags, mode & 0o7777, _caller(ctx))
        attributes = self._told(found)
        return _file_info(self._routing.adopt(found.node, opened, flags)), attributes

    @_errors
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._routing.read(fh, off, size)  # type: ignore[return-value]  # any buffer will do

    @_errors
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._routing.write(fh, off, buf)

    @_errors
    async def flush(self, fh: int) -> None:
        await self._routing.flush(fh)

    @_errors
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._routing.fsync(fh, datasync)

    @_errors
    async def release(self, fh: int) -> None:
        await self._routing.release(fh)

    # --- folders -------------------------------------------------------------------------------------------------

    @_errors
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if channel.keeps_listings():
            raise pyfuse3.FUSEError(errno.ENOSYS)  # need not be: the kernel never asks again, and keeps every listing
        if channel.is_bound():
            return 0
        self._issued += 1
        self._open_folders[self._issued] = _OpenFolder(self._union.node(inode))
        return self._issued

    @_errors
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        opened = self._open_folders.get(fh)
        if opened is None:
            request, folder = channel.request(), self._union.node(channel.node() or 0)
            if not self._union.is_virtual(folder):
                await self.listings.answer(folder, start_id, request)
                return
            opened = _OpenFolder(folder)
        await self._read_by_name(opened, start_id, token)

    async def _read_by_name(self, opened: _OpenFolder, start: int, token: pyfuse3.ReaddirToken) -> None:
        changed, opened.as_of = self._union.touches.count != opened.as_of, self._union.touches.count
        if start == 0 or not opened.names:
            await self._read_folder(opened)
        elif changed:
            del opened.found[max(start, len(_DOTS)) :]  # it may be another file by now that has such a name
        names, found = opened.names, opened.found
        told = self._union.told
        for index in range(start, len(names)):
            while index >= len(found):
                await self._extend(opened)
            item = found[index]
            if item is None:
                continue
            if not pyfuse3.readdir_reply(token, os.fsencode(names[index]), _attributes(item), index + 1):
                return
            if index >= len(_DOTS):
                told(item.node)

    async def _read_folder(self, opened: _OpenFolder) -> None:
        """Everything but a very large folder's end, in one thread hop."""
        listed = await self._union.contents.listing(opened.folder, _STAT_AT_ONCE)
        opened.names = [*_DOTS, *listed.names]
        first = await self._in_order(opened.folder, listed.names[:_STAT_AT_ONCE], listed.children)
        opened.found = [listed.own, self._above(listed.own), *first]

    def _above(self, own: Found) -> Found:
        """What ``..`` is: the root, and a removed folder, are their own parents. Only its number is told."""
        links = own.node.links
        parent = self._union.inodes.get(links[-1].parent) if links else None
        return own if parent is None else own._replace(node=parent)

    async def _extend(self, opened: _OpenFolder) -> None:
        """Attributes of the next names, in one thread hop."""
        begin = len(opened.found)
        names = opened.names[begin : begin + _STAT_AT_ONCE]
        found = await self._union.contents.children(opened.folder, names)
        opened.found += await self._in_order(opened.folder, names, found)

    async def _in_order(self, folder: Node, names: list[str], found: dict[str, Found]) -> list[Found | None]:
        """What was found of each name. What is not there may be gone, or have moved just then."""
        for name in names:
            if name not in found:
                with suppress(FileNotFoundError):
                    found[name] = await self._union.lookup(folder, name)
        return [found.get(name) for name in names]

    @_errors
    async def releasedir(self, fh: int) -> None:
        self._open_folders.pop(fh, None)

    @_errors
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        opened = self._open_folders.get(fh)
        folder = opened.folder if opened is not None else self._union.node(channel.node() or 0)
        await self._changes.fsync_folder(folder)

    # --- pyfuse3's structures ------------------------------------------------------------------------------------

    def _told(self, found: Found) -> pyfuse3.EntryAttributes:
        """The answer to a request that makes the kernel know the node once more."""
        self._union.told(found.node)
        return _attributes(found)


def _attributes(found: Found) -> pyfuse3.EntryAttributes:
    seen = found.stat
    answer = pyfuse3.EntryAttributes()
    answer.st_ino = found.node.number
    answer.st_mode = seen.mode
    answer.st_nlink = seen.nlink
    answer.st_uid = seen.uid
    answer.st_gid = seen.gid
    answer.st_rdev = seen.rdev
    answer.st_size = seen.size
    answer.st_blksize = seen.blksize
    answer.st_blocks = seen.blocks
    answer.st_atime_ns = seen.atime_ns
    answer.st_mtime_ns = seen.mtime_ns
    answer.st_ctime_ns = seen.ctime_ns
    answer.entry_timeout = found.name_s
    answer.attr_timeout = found.attributes_s
    return answer


def _file_info(opening: Opening) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=opening.handle, keep_cache=opening.keep_cache, direct_io=opening.direct_io)


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    """Who made the request; no supplementary groups when the process is gone, or is not visible from here."""
    try:
        groups = tuple(sorted(pyfuse3.get_sup_groups(ctx.pid)))
    except (OSError, RuntimeError):
        groups = ()
    return Caller(ctx.uid, ctx.gid, groups, ctx.umask)
