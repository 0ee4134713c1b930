"""Who else has a file open: the kernel grants a lease only where nobody has who would be in its way. fcntl(2).

Used in worker threads, on either side. A lease of somebody else's file takes CAP_LEASE, which containers lack by
default, or his file-system user, which is a thread's own; root can be that without further rights.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

READ, WRITE = fcntl.F_RDLCK, fcntl.F_WRLCK
"""Nobody has it open for writing, nor mapped so; nobody else has it open at all."""
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM})
_libc = ctypes.CDLL(None, use_errno=True)


class Lease(enum.Enum):
    """What the kernel says to somebody who wants one."""

    GRANTED = "nobody is in the way"
    REFUSED = "somebody is in the way"
    UNKNOWN = "the file system does not know"
    FORBIDDEN = "we are not told"


def take(number: int, kind: int) -> Lease:
    """Try to get a lease of an open file; one that was granted ends with ``give_back``, or with the descriptor."""
    try:
        return _take(number, kind)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            return Lease.UNKNOWN
    with _as_owner(number):
        try:
            return _take(number, kind)
        except OSError as error:
            return Lease.FORBIDDEN if error.errno in _NOT_OURS else Lease.UNKNOWN


def holds(number: int, kind: int) -> bool:
    """Whether a lease that was granted is in force; while it is being broken it is not."""
    return fcntl.fcntl(number, fcntl.F_GETLEASE) == kind


def give_back(number: int) -> None:
    fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _take(number: int, kind: int) -> Lease:
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, kind)
    except BlockingIOError:
        return Lease.REFUSED
    return Lease.GRANTED


@contextmanager
def _as_owner(number: int) -> Iterator[None]:
    """Files are touched as the file's owner, in this thread alone; without root nothing changes."""
    before = _libc.setfsuid(os.fstat(number).st_uid)
    try:
        yield
    finally:
        _libc.setfsuid(before)
