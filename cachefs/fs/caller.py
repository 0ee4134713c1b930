"""Acting as the user who made the system call, in one worker thread.

New files must belong to the caller from their first moment on; a chown afterwards would leave a window in which they
are the daemon's, and would lose what a setgid folder or a quota says. Linux keeps the file-system user and groups per
thread, so the raw system calls are used: glibc's ``setgroups`` would change every thread of the process. The umask can
be a thread's own too (``has_own_umask``): whether it counts below a default ACL is then for the source to say.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "armv7l": 206, "i686": 206}.get(platform.machine())
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_AM_ROOT = os.geteuid() == 0
_CLONE_FS = 0x200


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a system call. ``groups`` are the supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _keep_access() -> None:
    """Raise the right to pass closed folders again, which leaving fsuid 0 has dropped in this thread.

    The kernel has already checked the caller's rights at the mount (``default_permissions``).
    """
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    if _libc.capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget failed")
    wanted = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
    data[0].effective |= wanted & data[0].permitted
    if _libc.capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _set_groups(groups: tuple[int, ...]) -> None:
    if _SETGROUPS is None:
        return
    array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
    if _libc.syscall(_SETGROUPS, len(groups), array) != 0:
        raise OSError(ctypes.get_errno(), "setgroups failed")


_daemon_groups = tuple(os.getgroups())
_unshared = threading.local()


def has_own_umask() -> bool:
    """Whether this thread's umask is its own from now on; some sandboxes refuse unshare(2)."""
    if not hasattr(_unshared, "done"):
        _unshared.done = _libc.unshare(_CLONE_FS) == 0
    return bool(_unshared.done)


@contextmanager
def _masking(umask: int) -> Iterator[None]:
    """Where threads cannot have umasks of their own, the kernel has applied the caller's already (``mounting``)."""
    if not umask or not has_own_umask():
        yield
        return
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """Create files as ``caller`` inside the block, in this thread only.

    Without root there is nobody else to be: the kernel lets only the daemon's own user in.
    """
    with _masking(caller.umask), _owning(caller):
        yield


@contextmanager
def _owning(caller: Caller) -> Iterator[None]:
    if not _AM_ROOT or (caller.uid == 0 and caller.gid == 0):
        yield
        return
    _set_groups(caller.groups)
    _libc.setfsgid(caller.gid)
    _libc.setfsuid(caller.uid)
    try:
        _keep_access()
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        _set_groups(_daemon_groups)
