"""Files on the SSD from which the kernel serves an inode by itself, and what keeps them and the source the same.

Used by ``routing``. While an inode is in passthrough mode its backing file is what readers see: every write and
truncate through the mount must reach it as well as the source. A shared mapping of a handle that was opened for reading
*and* writing goes further: it writes the backing file directly, msync never reaches the daemon, and it goes on after
the handle was closed. From such an open on the backing file is the truth, and is copied back to the source at flush,
fsync and close, and once more when nobody can write it any more, which a read lease tells (fcntl(2)).
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from cachefs import leases
from cachefs.descriptors import Descriptor
from cachefs.fs import channel, reach
from cachefs.leases import Lease

log = logging.getLogger(__name__)

_COMPARE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DESCRIPTOR = -1
"""The kernel looks at who asks before it looks at this."""


@dataclass(slots=True, eq=False)
class Backing:
    """One backing file. ``descriptor`` is open for reading; ``mirror`` for writing, once somebody writes.

    ``home`` is the source's file, open for writing, once the backing file may be written by a mapping; ``unbar`` then
    holds the bars of handles that are closed already. ``clean`` is its mtime when it was last known to equal the
    source, None when it may not.
    """

    id: int
    entry_id: int
    descriptor: Descriptor
    mirror: Descriptor | None = None
    home: Descriptor | None = None
    unbar: list[Callable[[], object]] = field(default_factory=list)
    clean: int | None = None
    same: bool = False
    """The file has moved: the backing file is the file itself, and there is no other side."""
    lost: bool = False
    """It went away with its SSD. Who has it open has what the kernel can still give; nobody else gets it."""
    is_waiting: bool = False
    """Whether its source did not take what a mapping wrote, the last time."""
    lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def is_truth(self) -> bool:
        """Whether a mapping may have written it."""
        return self.home is not None


class Backings:
    """Makes and ends backing files, and counts them. ``problem`` says why the kernel takes none (any more);
    ``kernel_is_there`` is set once it has been answered what this mount can do."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.live = 0
        self.kernel_is_there = trio.Event()

    async def look(self) -> None:
        """Say why the kernel takes none before somebody opens a file, as far as it tells."""
        await self.kernel_is_there.wait()
        if self.problem:
            return
        try:
            self._tell_kernel(_NO_DESCRIPTOR)
        except OSError as error:
            if error.errno != errno.EBADF:
                self._give_up(error)

    def open(self, descriptor: Descriptor, entry_id: int) -> Backing | None:
        """A backing file for an entry whose SSD file is open; None when the kernel takes none."""
        if self.problem:
            return None
        try:
            number = self._tell_kernel(descriptor.number)
        except OSError as error:
            self._give_up(error)
            return None
        self.live += 1
        return Backing(number, entry_id, Descriptor(os.dup(descriptor.number)))

    def _give_up(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
        log.info("cached files are read through the daemon, not by the kernel itself: %s", self.problem)

    def _tell_kernel(self, descriptor: int) -> int:
        if channel.problem():
            raise OSError(errno.ENOSYS, channel.problem())
        if not channel.has_passthrough():
            raise OSError(errno.ENOSYS, "this kernel has no passthrough, which came with Linux 6.9")
        try:
            return channel.open_backing(descriptor)
        except PermissionError as error:
            raise OSError(error.errno, "the daemon lacks CAP_SYS_ADMIN") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                text = "the cache folder is on a stacked file system (overlayfs); in a container, make it a volume"
                raise OSError(error.errno, text) from error
            raise

    def close(self, backing: Backing) -> None:
        """Nobody has its inode open any more. Its descriptors are the caller's to close, in a thread."""
        self.live -= 1
        channel.close_backing(backing.id)


# --- in threads ------------------------------------------------------------------------------------------------------


def open_again(descriptor: Descriptor) -> Descriptor:
    """The same file open for reading and writing anywhere, also when its name is gone."""
    with descriptor.use() as number:
        return Descriptor(os.open(reach.proc_path(number), os.O_RDWR | os.O_CLOEXEC))


def write(home: Descriptor, data: bytes, offset: int, appends: bool) -> int:
    """Write to the source; returns how much, as write(2)."""
    with home.use() as to_home:
        return write_at(to_home, data, _place(to_home, len(data), offset) if appends else offset)


def write_itself(home: Descriptor, data: bytes, offset: int, appends: bool) -> int:
    """As ``write``, for a file that is its own backing file."""
    with home.use() as to_home:
        _drop_set_id(to_home)
    return write(home, data, offset, appends)


def write_both(home: Descriptor, mirror: Descriptor, data: bytes, offset: int, appends: bool) -> int:
    """Write to the source, then to the backing file at the same place. What one of them does not take, none has."""
    with home.use() as to_home, mirror.use() as to_mirror:
        _drop_set_id(to_home)
        offset = _place(to_home, len(data), offset) if appends else offset
        done = write_at(to_home, data, offset)
        try:
            write_at(to_mirror, data[:done], offset, whole=True)
        except OSError:
            with suppress(OSError):  # a source that fails, too
                _bring_back(to_mirror, to_home, offset, done)
            raise
    return done


def _bring_back(kept: int, changed: int, offset: int, length: int) -> None:
    """Make a part of one file what it still is in the other."""
    there = os.pread(kept, length, offset)
    if there:
        write_at(changed, there, offset, whole=True)
    size = os.fstat(kept).st_size
    if os.fstat(changed).st_size > size:
        os.ftruncate(changed, size)


def _place(number: int, length: int, offset: int) -> int:
    """Where a write of a handle opened with O_APPEND belongs: at the file's end, wherever the kernel takes that to be;
    but for the pages of a mapping, which it writes back through the same handle. The kernel sends one at a time."""
    end = os.fstat(number).st_size
    return offset if offset % mmap.PAGESIZE == 0 and offset + length <= end else end


def _drop_set_id(number: int) -> None:
    """Before somebody writes: on direct I/O the kernel leaves it to us (fuse_direct_write_iter(), fs/fuse/file.c)."""
    mode = os.fstat(number).st_mode
    dropped = mode & (stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
    if dropped:
        os.fchmod(number, stat.S_IMODE(mode & ~dropped))


def write_at(number: int, data: bytes, offset: int, *, whole: bool = False) -> int:
    """Write ``data`` at ``offset``. Returns how much of it: as with write(2) less only where a file that grows meets a
    full disk, and not if it must be the ``whole``. Of less than the pages of a mapping the kernel would not tell."""
    view, done = memoryview(data), 0
    while done < len(data):
        try:
            done += os.pwrite(number, view[done:], offset + done)
        except OSError as error:
            grows = done and os.fstat(number).st_size == offset + done
            if whole or not grows or error.errno not in _FULL:
                raise
            break
    return done


def copy_back(source_of_truth: Descriptor, home: Descriptor, clean: int | None, *, always: bool) -> int:
    """Make the source's file equal to the backing file; returns the mtime for which that holds.

    Flushing first makes the kernel notice the next write of a mapping: it sets mtime when a clean page becomes dirty.
    """
    with source_of_truth.use() as truth, home.use() as to_home:
        os.fdatasync(truth)
        mtime_ns = os.fstat(truth).st_mtime_ns
        if mtime_ns == clean and not always:
            return mtime_ns
        offset = 0
        while data := os.pread(truth, _COMPARE_BYTES, offset):
            if os.pread(to_home, len(data), offset) != data:
                write_at(to_home, data, offset)
            offset += len(data)
        if os.fstat(to_home).st_size != offset:
            os.ftruncate(to_home, offset)
    return mtime_ns


def nobody_writes(descriptor: Descriptor) -> bool:
    """Whether no handle or mapping can write the file, for sure."""
    with descriptor.use() as number:
        lease = leases.take(number, leases.READ)
        if lease is Lease.GRANTED:
            leases.give_back(number)
    return lease is Lease.GRANTED
