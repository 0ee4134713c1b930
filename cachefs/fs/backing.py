"""Files on the SSD from which the kernel serves an inode by itself, and what keeps them and the source the same.

Used by ``routing``. While an inode is in passthrough mode its backing file is what readers see: every write and
truncate through the mount must reach it as well as the source. A shared mapping of a handle that was opened for reading
*and* writing goes further: it writes the backing file directly, msync never reaches the daemon, and it goes on after
the handle was closed. From such an open on the backing file is the truth, and what a mapping has written there is
copied back to the source at flush, fsync and close, and once more when nobody can write it any more, which a read lease
tells (fcntl(2)).

Only what a mapping has written: else a change that somebody made at the source meanwhile would be undone. Its time of
modification tells. It is set to one that no write ever gives, and the first write to a page of a mapping changes it,
again after each fdatasync (page_mkwrite in the kernel's file systems; tmpfs has none, see ``tells_of_mappings``).
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

COPY_BACK_BYTES = 64 << 20
"""In one go: a source has a time limit for each call."""
CATCH_UP_BYTES = 4 << 20
_COMPARE_BYTES = 1 << 20
_UNTOUCHED_NS = 1_000_000_000 * 10**9
"""A time of modification that is over, and that all file systems can keep: some know only even seconds."""
_IN_MEMORY = ("tmpfs", "ramfs")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DESCRIPTOR = -1
"""The kernel looks at who asks before it looks at this."""


Seen = tuple[int, int]
"""Size and mtime_ns of a file."""


@dataclass(slots=True, eq=False)
class Backing:
    """One backing file. ``descriptor`` is open for reading; ``mirror`` for writing, once somebody writes.

    ``home`` is the source's file, open for writing, once the backing file may be written by a mapping; ``unbar`` then
    holds the bars of handles that are closed already. ``seen`` is what the source's file was when both were the same
    last, None where that is not known.
    """

    id: int
    entry_id: int
    descriptor: Descriptor
    mirror: Descriptor | None = None
    home: Descriptor | None = None
    unbar: list[Callable[[], object]] = field(default_factory=list)
    seen: Seen | None = None
    written: bool = False
    """By a mapping, since it was last copied back."""
    mixed: bool = False
    """Whether it was also written with write(2) since mappings may write it: just then one of theirs may have been
    missed."""
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

    def open(self, descriptor: Descriptor, entry_id: int, seen: Seen) -> Backing | None:
        """A backing file for an entry whose SSD file is open, and whose source's file was ``seen``; None when the
        kernel takes none."""
        if self.problem:
            return None
        try:
            number = self._tell_kernel(descriptor.number)
        except OSError as error:
            self._give_up(error)
            return None
        self.live += 1
        return Backing(number, entry_id, Descriptor(os.dup(descriptor.number)), seen=seen)

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


def tells_of_mappings(fstype: str) -> bool:
    """Whether a file system of this type changes the time of modification of a file that is written by a mapping."""
    return fstype not in _IN_MEMORY


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


def write_both(home: Descriptor, mirror: Descriptor, data: bytes, offset: int, appends: bool) -> tuple[int, Seen]:
    """Write to the source, then to the backing file at the same place. What one of them does not take, none has.
    Returns also what the source's file is then."""
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
        return done, _seen(to_home)


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


def seen_of(home: Descriptor) -> Seen:
    with home.use() as number:
        return _seen(number)


def _seen(number: int) -> Seen:
    found = os.fstat(number)
    return found.st_size, found.st_mtime_ns


def mark(truth: Descriptor) -> None:
    """From now on ``was_written`` tells whether a mapping writes it."""
    with truth.use() as number:
        os.utime(number, ns=(os.fstat(number).st_atime_ns, _UNTOUCHED_NS))


def was_written(truth: Descriptor) -> bool:
    """Whether it has been written since ``mark``. Some file systems know only once it was written to the disk."""
    with truth.use() as number:
        os.fdatasync(number)
        return os.fstat(number).st_mtime_ns != _UNTOUCHED_NS


def begin_copy(truth: Descriptor) -> int:
    """As ``mark``; all that was written before is copied back then, and what is written from now on, told of. Returns
    the size."""
    mark(truth)
    with truth.use() as number:
        os.fdatasync(number)
        return os.fstat(number).st_size


def copy_back(truth: Descriptor, home: Descriptor, start: int, end: int) -> Seen:
    """Make a part of the source's file what the backing file has there; returns what it is then. Its size stays: no
    mapping changes that."""
    with truth.use() as from_truth, home.use() as to_home:
        end = min(end, os.fstat(to_home).st_size)
        while start < end and (data := os.pread(from_truth, min(_COMPARE_BYTES, end - start), start)):
            if os.pread(to_home, len(data), start) != data:
                write_at(to_home, data, start)
            start += len(data)
        return _seen(to_home)


def catch_up(mirror: Descriptor, start: int, data: bytes) -> None:
    """Make a part of the backing file what its source has there; at the end (no data) it ends there, too."""
    with mirror.use() as number:
        if not data:
            os.ftruncate(number, start)
        elif os.pread(number, len(data), start) != data:
            write_at(number, data, start, whole=True)


def nobody_writes(descriptor: Descriptor) -> bool:
    """Whether no handle or mapping can write the file, for sure."""
    with descriptor.use() as number:
        lease = leases.take(number, leases.READ)
        if lease is Lease.GRANTED:
            leases.give_back(number)
    return lease is Lease.GRANTED
