"""The bytes and the attributes of one file, from a source's descriptor to one on the SSD.

Called by ``cache.filecopy`` in worker threads: what reads, in the source's, which may be abandoned when it hangs; what
writes, in the SSD's. Everything here touches only the descriptor it is given and takes a use of it, so that a thread
that wakes up late can never reach into a stranger's file. It knows no entries and no paths.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from dataclasses import dataclass

from cachefs.cache import label
from cachefs.descriptors import Descriptor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file and where they belong."""

    start: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read has found up to ``end``: pieces of data with holes between them. ``end`` is short of what was
    asked for where the file ends. ``took_s`` of the source's time."""

    pieces: tuple[Piece, ...]
    end: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What fstat shows of the file that was opened: is it the one that was to be copied?"""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a copy keeps of its original besides the bytes."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]


def look(source: Descriptor) -> Seen:
    with source.use() as number:
        info = os.fstat(number)
    return Seen(info.st_size, info.st_mtime_ns)


def read_chunk(source: Descriptor, start: int, length: int) -> Chunk:
    """Read ``length`` bytes at ``start``; fewer only at the end of the file. Raises ``OSError``."""
    began = time.monotonic()
    pieces = []
    position, end = start, start + length
    with source.use() as number:
        while position < end:
            data_at, hole_at = _next_data(number, position, end)
            if data_at > position:
                position = data_at
                continue
            data = _read(number, position, hole_at - position)
            if not data:
                break
            pieces.append(Piece(position, data))
            position += len(data)
    return Chunk(tuple(pieces), position, time.monotonic() - began)


def write_chunk(target: Descriptor, chunk: Chunk) -> None:
    """Write what was read; the target is a hole wherever nothing was written yet. Raises ``OSError``."""
    with target.use() as number:
        for piece in chunk.pieces:
            _write(number, piece.data, piece.start)


def read_attributes(source: Descriptor) -> Attributes:
    """Mode, owner, times and extended attributes. Raises ``OSError`` when the source fails."""
    with source.use() as number:
        info = os.fstat(number)
        xattrs = tuple(_xattrs(number))
    return Attributes(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_atime_ns, info.st_mtime_ns, xattrs)


def write_attributes(target: Descriptor, attributes: Attributes) -> None:
    """Give the copy what the original has, as far as we may: the mount shows the original's attributes anyway."""
    with target.use() as number:
        for name, value in attributes.xattrs:
            try:
                os.setxattr(number, name, value)
            except OSError as error:
                log.debug("extended attribute %s is not kept on the SSD: %s", name, error)
        try:
            if os.geteuid() == 0:
                os.fchown(number, attributes.uid, attributes.gid)
            os.fchmod(number, attributes.mode)
            os.utime(number, ns=(attributes.atime_ns, attributes.mtime_ns))
        except (OSError, OverflowError) as error:  # overflow: times that no utimensat takes, such as a broken server's
            log.debug("owner, mode or times are not kept on the SSD: %s", error)


def _next_data(number: int, start: int, end: int) -> tuple[int, int]:
    """Where the next data begins and ends, both at most ``end``; all is data where the file system knows no holes."""
    try:
        data_at = os.lseek(number, start, os.SEEK_DATA)
        return min(data_at, end), min(os.lseek(number, data_at, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return start, end
    # No data behind ``start``: a hole up to the end of the file, if the file is that long.
    return max(start, min(end, os.fstat(number).st_size)), end


def _read(number: int, start: int, length: int) -> bytes:
    """Exactly ``length`` bytes, fewer only at the end of the file."""
    data = os.pread(number, length, start)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length and (data := os.pread(number, length - done, start + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _write(number: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(number, view, start)
        view = view[written:]
        start += written


def _xattrs(number: int) -> list[tuple[str, bytes]]:
    try:
        names = [name for name in os.listxattr(number) if not name.startswith(label.PREFIX)]
        return [(name, os.getxattr(number, name)) for name in names]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):  # none here, gone meanwhile, or not for us
            return []
        raise
