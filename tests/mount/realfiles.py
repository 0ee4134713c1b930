"""A mount of a test's own, system calls on it as the interface of ``tests.fileops``, and as another user."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachefs.fs.times import set_times
from tests.fileops import Seen
from tests.mount.kit import errno_of
from tests.standin.running import RunningCachefs, start_cachefs

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("position", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.closedir.argtypes = (ctypes.c_void_p,)
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


def _error(path: str | Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fspath(path))


@contextmanager
def mounted(*sources: str, in_place: bool = False, **settings: Any) -> Iterator[tuple[RunningCachefs, Path]]:
    """cachefs over fresh folders of these names, and the folder that they are in, which other users may enter."""
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        for name in (*sources, "mount", "ssd"):
            (base / name).mkdir()
        log = base / "cachefs.log"
        wanted = {
            "mountpoint": str(base / (sources[0] if in_place else "mount")),
            "sources": [{"path": str(base / name), "name": name} for name in sources],
            "cache": {"path": str(base / "ssd"), "max_size": "1GiB", "min_free": "1MiB"} | settings.pop("cache", {}),
            "control": {"socket": str(base / "control.sock")},
        }
        running = start_cachefs(base / "cachefs.yaml", log, wanted | settings)
        try:
            yield running, base
        finally:
            running.remove()
        lines = log.read_text(errors="backslashreplace").splitlines()
        warnings = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback", line)]
        assert not warnings, "\n".join(warnings)


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """opendir(3)."""

    stream: int

    def next(self) -> tuple[str, int] | None:
        """Name and inode number; None at the end."""
        ctypes.set_errno(0)
        found = _libc.readdir(self.stream)
        if found:
            return os.fsdecode(found.contents.name), found.contents.ino
        if ctypes.get_errno():
            raise _error("readdir")
        return None

    def rest(self) -> list[tuple[str, int]]:
        return list(iter(self.next, None))

    def tell(self) -> int:
        return int(_libc.telldir(self.stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self.stream, position)


@contextmanager
def opened_folder(path: Path) -> Iterator[OpenFolder]:
    stream = _libc.opendir(os.fsencode(path))
    if not stream:
        raise _error(path)
    try:
        yield OpenFolder(stream)
    finally:
        _libc.closedir(stream)


@dataclass(frozen=True, slots=True)
class RealFiles:
    """``Files`` below ``folder``, which lies in a mount over ``behind``."""

    folder: Path
    behind: Path

    def _at(self, path: str) -> Path:
        return self.folder / path

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        return os.open(self._at(path), flags, mode)

    def read(self, handle: int, size: int, offset: int = 0) -> bytes:
        return os.pread(handle, size, offset)

    def write(self, handle: int, data: bytes, offset: int | None = None) -> int:
        return os.write(handle, data) if offset is None else os.pwrite(handle, data, offset)

    def close(self, handle: int) -> None:
        os.close(handle)

    def fstat(self, handle: int) -> Seen:
        return _seen(os.fstat(handle))

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fsync(self, handle: int, datasync: bool = False) -> None:
        if datasync:
            os.fdatasync(handle)
        else:
            os.fsync(handle)

    def fsync_folder(self, path: str) -> None:
        handle = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def stat(self, path: str) -> Seen:
        return _seen(os.lstat(self._at(path)))

    def entries(self, path: str) -> list[tuple[str, int]]:
        with opened_folder(self._at(path)) as folder:
            return folder.rest()

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        here, there = os.fsencode(self._at(old)), os.fsencode(self._at(new))
        if _libc.renameat2(_AT_FDCWD, here, _AT_FDCWD, there, flags) != 0:
            raise _error(old)

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mkfifo(self, path: str, mode: int = 0o644) -> None:
        os.mkfifo(self._at(path), mode)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        if atime_ns is not None and mtime_ns is not None:
            os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        else:
            set_times(os.fspath(self._at(path)), atime_ns, mtime_ns)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(self._at(path), name, value)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name)

    def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self._at(path))

    def statvfs(self, path: str) -> os.statvfs_result:
        return os.statvfs(self._at(path))


OWNER, USER, GROUP, MASK, OTHER = 1, 2, 4, 0x10, 0x20
"""Whom an entry of an ACL is about: linux/posix_acl.h."""
_NOBODY = 0xFFFFFFFF


def set_acl(path: Path, entries: Iterable[tuple[int, int, int | None]], *, default: bool = False) -> None:
    """As setfacl(1) does. An entry: whom it is about, what they may (4 read, 2 write, 1 execute), and a USER's uid.
    Layout: linux/posix_acl_xattr.h."""
    packed = [struct.pack("<HHI", tag, rights, _NOBODY if uid is None else uid) for tag, rights, uid in entries]
    name = "system.posix_acl_default" if default else "system.posix_acl_access"
    os.setxattr(path, name, struct.pack("<I", 2) + b"".join(packed))


def _seen(found: os.stat_result) -> Seen:
    return Seen(
        ino=found.st_ino,
        mode=found.st_mode,
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
    )


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is not root."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def does(self, function: Callable[[], object], umask: int = 0o022) -> None:
        """Run it in a child process as this user; AssertionError with the child's traceback when it fails."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            text = self._in_child(function, umask)
            os.write(writing, text.encode(errors="backslashreplace"))
            os._exit(1 if text else 0)
        os.close(writing)
        with os.fdopen(reading, errors="backslashreplace") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, text or f"the child ended with {status}"

    def _in_child(self, function: Callable[[], object], umask: int) -> str:
        try:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            os.umask(umask)
            function()
        except BaseException:  # noqa: BLE001 - the parent raises it
            return traceback.format_exc()
        return ""


def entries(
    user: User, rights: int, *, group: int = 0, mask: int = 7, other: int = 0
) -> list[tuple[int, int, int | None]]:
    """An ACL in which the owner may do everything, and one other user is named."""
    return [(OWNER, 7, None), (USER, rights, user.uid), (GROUP, group, None), (MASK, mask, None), (OTHER, other, None)]


def refusal(user: User, path: Path, flags: int = os.O_RDONLY) -> int:
    """What the user's open fails with; 0 where it does not."""
    reading, writing = os.pipe()
    user.does(lambda: os.write(writing, b"%d" % errno_of(os.open, path, flags)))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return int(pipe.read())
