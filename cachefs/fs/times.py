"""utimensat(2) with UTIME_OMIT, which Python's ``os.utime`` cannot say: one time set, the other left alone."""

from __future__ import annotations

import ctypes
import os

_AT_FDCWD = -100
_UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def set_times(path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times that are given, in nanoseconds since the epoch."""
    times = (_Timespec * 2)(_timespec(atime_ns), _timespec(mtime_ns))
    if _libc.utimensat(_AT_FDCWD, os.fsencode(path), times, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _timespec(time_ns: int | None) -> _Timespec:
    if time_ns is None:
        return _Timespec(0, _UTIME_OMIT)
    return _Timespec(*divmod(time_ns, 1_000_000_000))
