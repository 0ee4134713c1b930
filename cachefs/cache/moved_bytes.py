"""The bytes and the attributes of one moved file: compared, brought back, made durable, read again.

Called by ``cache.moving`` in worker threads, as ``cache.copying``: what touches the SSD's file in the SSD's, what
touches the source's in its own. Everything here touches only the descriptors that it is given.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cachefs import leases
from cachefs.cache.copying import Attributes, Chunk, read_attributes, read_chunk, write_chunk
from cachefs.cache.label import PREFIX
from cachefs.descriptors import Descriptor, open_below, open_unreadable
from cachefs.leases import Lease


@dataclass(frozen=True, slots=True)
class State:
    """The SSD's file at one moment: any change of it shows."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def open_file(path: str, flags: int) -> Descriptor:
    for more in (os.O_NOATIME, 0):  # to look at a film is not to watch it
        with suppress(PermissionError):
            return Descriptor(open_below(path, flags | more))
    number = open_below(path, os.O_PATH)
    try:
        return Descriptor(open_unreadable(number))
    finally:
        os.close(number)


def state_of(file: Descriptor) -> State:
    with file.use() as number:
        info = os.fstat(number)
    return State(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def state_at(path: str) -> State:
    info = os.lstat(path)
    return State(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def forget_pages(file: Descriptor) -> None:
    """What is read next comes from the disk: that is what is to be trusted."""
    with file.use() as number:
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)


def _whole(chunk: Chunk, start: int, length: int) -> bytes:
    """The bytes of a chunk with its holes."""
    if len(chunk.pieces) == 1 and len(chunk.pieces[0].data) == length:
        return chunk.pieces[0].data
    data = bytearray(length)
    for piece in chunk.pieces:
        data[piece.start - start : piece.start - start + len(piece.data)] = piece.data
    return bytes(data)


def is_equal(copy: Descriptor, theirs: Chunk, start: int, length: int, digest: Digest) -> bool:
    if theirs.end < start + length:
        return False
    ours = read_chunk(copy, start, length)
    data = _whole(theirs, start, length)
    digest.update(data)
    return ours.end == theirs.end and _whole(ours, start, length) == data


def read_and_count(file: Descriptor, start: int, length: int, digest: Digest) -> Chunk:
    chunk = read_chunk(file, start, length)
    if chunk.end < start + length:
        raise OSError(errno.EIO, f"the file ends at byte {chunk.end}")
    digest.update(_whole(chunk, start, length))
    return chunk


def nobody_writes(file: Descriptor) -> bool:
    """Whether no handle or mapping can write it. True where the file system cannot tell."""
    with file.use() as number:
        lease = leases.take(number, leases.READ)
        if lease is Lease.GRANTED:
            leases.give_back(number)
    return lease in (Lease.GRANTED, Lease.UNKNOWN)


def make_room(target: Descriptor, size: int) -> None:
    with target.use() as number:
        os.ftruncate(number, 0)
        os.ftruncate(number, size)


def write(target: Descriptor, chunk: Chunk) -> float:
    began = time.monotonic()
    write_chunk(target, chunk)
    return time.monotonic() - began


def sync_data(target: Descriptor) -> None:
    with target.use() as number:
        os.fdatasync(number)


def set_attributes(target: Descriptor, attributes: Attributes) -> None:
    """Exactly these, and durable. Raises ``OSError`` where one cannot be kept: the file stays where it keeps it."""
    with target.use() as number:
        os.fchown(number, attributes.uid, attributes.gid)
        wanted = dict(attributes.xattrs)
        for name in set(os.listxattr(number)) - set(wanted):
            if not name.startswith(PREFIX):  # what the SSD's file says of itself
                os.removexattr(number, name)
        for name, value in wanted.items():
            os.setxattr(number, name, value)
        os.fchmod(number, attributes.mode)
        os.utime(number, ns=(attributes.atime_ns, attributes.mtime_ns))
        os.fsync(number)


def take_over(copy: Descriptor, theirs: Attributes) -> str:
    """Give the copy what the original's attributes are by now; as ``difference``, for what it does not keep."""
    left = difference(theirs, read_attributes(copy))
    if left:
        with suppress(OSError):  # the comparison tells
            set_attributes(copy, theirs)
        left = difference(theirs, read_attributes(copy))
    return left


def difference(theirs: Attributes, kept: Attributes) -> str:
    """The first attribute that the copy does not have as the original has it; empty when it has all."""
    for name in ("mode", "uid", "gid", "mtime_ns"):
        if getattr(theirs, name) != getattr(kept, name):
            return {"mtime_ns": "time of change", "uid": "owner", "gid": "group"}.get(name, name)
    return "" if sorted(theirs.xattrs) == sorted(kept.xattrs) else "extended attributes"
