"""Making a file's bytes durable without one call that lasts as long as its source is slow.

A program may leave gigabytes for a single fsync(2), and a disk may need minutes for them: the source's deadline would
pass, and the whole source count as away. So they are written back piece by piece, each a call of its own, and what is
left for fsync(2) is little.
"""

from __future__ import annotations

import ctypes
import errno
import os

from cachefs.descriptors import Descriptor
from cachefs.fs.source import Source

PIECE_BYTES = 64 << 20

_WAIT_BEFORE_WRITE_WAIT_AFTER = 1 | 2 | 4
"""linux/fs.h"""
_KNOWS_NO_PIECES = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE)
_libc = ctypes.CDLL(None, use_errno=True)


async def sync(source: Source, descriptor: Descriptor, *, datasync: bool) -> None:
    """fsync(2) or fdatasync(2). Raises ``OSError``; past the deadline only when not even one piece gets through."""
    size = await source.call(_sync_if_small, descriptor, datasync)
    if not size:
        return
    for offset in range(0, size, PIECE_BYTES):
        await source.call(_write_back, descriptor, offset)
    await source.call(_sync, descriptor, datasync)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _sync_if_small(descriptor: Descriptor, datasync: bool) -> int:
    """The size that is still to be synced; 0 when that is done."""
    with descriptor.use() as number:
        size = os.fstat(number).st_size
    if size > PIECE_BYTES:
        return size
    _sync(descriptor, datasync)
    return 0


def _sync(descriptor: Descriptor, datasync: bool) -> None:
    with descriptor.use() as number:
        if datasync:
            os.fdatasync(number)
        else:
            os.fsync(number)


def _write_back(descriptor: Descriptor, offset: int) -> None:
    """sync_file_range(2), where the file system knows it."""
    with descriptor.use() as number:
        place, length = ctypes.c_int64(offset), ctypes.c_int64(PIECE_BYTES)
        if _libc.sync_file_range(number, place, length, _WAIT_BEFORE_WRITE_WAIT_AFTER) == 0:
            return
    failed = ctypes.get_errno()
    if failed not in _KNOWS_NO_PIECES:
        raise OSError(failed, os.strerror(failed))
