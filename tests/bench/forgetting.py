"""Makes the kernel forget the names of one mount, and of no other.

A reconfiguration that changes nothing (fspick(2), fsconfig(2)) drops a file system's unused names; for FUSE its inodes
go with them, and the daemon is told so. Writing to /proc/sys/vm/drop_caches would do it to the whole machine.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_SYS_FSCONFIG = 431  # the same numbers on every architecture: include/uapi/asm-generic/unistd.h
_SYS_FSPICK = 433
_AT_FDCWD = -100
_FSPICK_CLOEXEC = 1
_FSCONFIG_CMD_RECONFIGURE = 7


def forget_names(mountpoint: Path) -> None:
    """Raises ``OSError``; needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = ctypes.c_char_p(os.fsencode(mountpoint))
    picked = _checked(libc.syscall(_SYS_FSPICK, _AT_FDCWD, path, _FSPICK_CLOEXEC), mountpoint)
    try:
        _checked(libc.syscall(_SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0), mountpoint)
    finally:
        os.close(picked)


def _checked(result: int, path: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    return result
