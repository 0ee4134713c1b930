"""What is mounted where, read from the kernel's mount table, and taking a mount away.

The keeper and the command line call this. It must never touch a mountpoint (no ``stat``, no ``open``): the mount may
be dead or hung, and whoever asks it something hangs with it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cachefs.errors import UserError

FSTYPE = "fuse.cachefs"

_MOUNTINFO = Path("/proc/self/mountinfo")
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_FUSERMOUNT_TIMEOUT_S = 10.0
_STACKED = frozenset({"overlay", "ecryptfs", "aufs"})
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "ncpfs", "gfs2", "ocfs2", "glusterfs", "lustre"}
)
_OF_KERNEL = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs", "bpf", "configfs", "pstore"}
)
_MAX_LINKS = 40  # as the kernel: path_resolution(7)

# umount2(2)
_MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table. ``device_minor`` names a FUSE mount's connection."""

    id: int
    parent_id: int
    device_minor: int
    path: Path
    fstype: str
    source: str
    is_shared: bool = False
    """What is mounted in it is seen in other mount namespaces too: mount_namespaces(7)."""

    @property
    def is_cachefs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def is_stacked(self) -> bool:
        """On another file system, so that no FUSE mount may be backed by it in turn."""
        return self.fstype in _STACKED

    @property
    def is_of_kernel(self) -> bool:
        """What the kernel shows of itself: nobody can keep a file there."""
        return self.fstype in _OF_KERNEL

    @property
    def is_local(self) -> bool:
        """Whether every change to it is made by this machine's kernel, which can tell of it."""
        return not self.fstype.startswith("fuse") and self.fstype not in _REMOTE


def mounted_at(path: Path) -> Mount | None:
    """The mount one sees at exactly ``path`` (the topmost of several), or None; symbolic links are followed as far
    as that needs no look into a mount."""
    mounts = parse(_MOUNTINFO.read_bytes())
    return topmost(mounts, resolve(path, {mount.path for mount in mounts}))


def all_now() -> tuple[Mount, ...]:
    """The mount table of this moment."""
    return parse(_MOUNTINFO.read_bytes())


def holding(mounts: Iterable[Mount], path: Path) -> Mount | None:
    """The mount that ``path`` lies in, by its name alone, cachefs itself left out: in place it lies over the one
    meant."""
    others = [mount for mount in mounts if not mount.is_cachefs]
    return next((found for folder in (path, *path.parents) if (found := topmost(others, folder)) is not None), None)


def resolve_now(path: Path) -> Path:
    """``path`` absolute and with its symbolic links followed, without a call on any mountpoint of this moment."""
    return resolve(path, {mount.path for mount in parse(_MOUNTINFO.read_bytes())})


def parse(table: bytes) -> tuple[Mount, ...]:
    """The mounts of a table in the format of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)), in its order."""
    return tuple(_parse_line(line) for line in table.splitlines() if line)


def topmost(mounts: Iterable[Mount], path: Path) -> Mount | None:
    """Of the mounts at ``path``, the one that covers the others."""
    here = [mount for mount in mounts if mount.path == path]
    covered = {mount.parent_id for mount in here if mount.parent_id != mount.id}
    uncovered = [mount for mount in here if mount.id not in covered]
    return uncovered[-1] if uncovered else None


def resolve(path: Path, mountpoints: set[Path]) -> Path:
    """``path`` absolute and with its symbolic links followed, without a call on any of ``mountpoints``."""
    todo = list(reversed(Path(os.path.abspath(path)).parts[1:]))
    done = Path("/")
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done.parent
            continue
        step = done / part
        target = None if step in mountpoints or links >= _MAX_LINKS else _link_target(step)
        if target is None:
            done = step
            continue
        links += 1
        done = Path("/") if target.is_absolute() else done
        todo.extend(reversed([part for part in target.parts if part != "/"]))
    return done


def unmount(path: Path, force: bool) -> None:
    """Take the topmost mount at ``path`` away at once; files that are still open there keep it alive unseen.

    ``force`` also ends a FUSE connection that nobody answers: whoever waits for it gets an error instead of hanging.
    As root by umount2(2), else by fusermount3. Nothing mounted there is fine. Raises ``UserError``.
    """
    mount = mounted_at(path)
    if mount is None:
        return
    if force:
        _abort_connection(mount)
    flags = MNT_DETACH | UMOUNT_NOFOLLOW | (_MNT_FORCE if force else 0)
    error = umount2(mount.path, flags)
    if error == errno.EPERM:
        _fusermount(mount.path)
    elif error not in (0, errno.EINVAL, errno.ENOENT):  # these two: gone meanwhile
        raise UserError(f"cannot unmount {path}: {os.strerror(error)}")


def abort(path: Path) -> None:
    """End the connection of the FUSE mount at ``path``, which stays there and gives errors; who waits for it gets one.

    MNT_FORCE alone would also unmount it, so it is kept busy. O_PATH asks the mount nothing: it may hang.
    """
    mount = mounted_at(path)
    if mount is None:
        return
    try:
        held = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone meanwhile
    try:
        _abort_connection(mount)
        umount2(mount.path, _MNT_FORCE | UMOUNT_NOFOLLOW)
    finally:
        os.close(held)


def _parse_line(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    fstype, source = after.split(b" ")[:2]
    return Mount(
        id=int(fields[0]),
        parent_id=int(fields[1]),
        device_minor=int(fields[2].partition(b":")[2]),
        path=Path(os.fsdecode(_unescape(fields[4]))),
        fstype=os.fsdecode(_unescape(fstype)),
        source=os.fsdecode(_unescape(source)),
        is_shared=any(field.startswith(b"shared:") for field in fields[6:]),
    )


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline, ``#`` and backslash are written as three octal digits in the mount table."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def _link_target(path: Path) -> Path | None:
    """Where a symbolic link points, or None for anything else (also for what is missing or unreadable)."""
    try:
        return Path(os.readlink(path))
    except OSError:
        return None


def umount2(path: Path, flags: int) -> int:
    """umount2(2); 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result: int = libc.umount2(ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(flags))
    return ctypes.get_errno() if result else 0


def _abort_connection(mount: Mount) -> None:
    """End a FUSE connection through sysfs, which its owner may do without being root; MNT_FORCE does it for root."""
    if not mount.fstype.startswith("fuse"):
        return
    try:
        (_CONNECTIONS / str(mount.device_minor) / "abort").write_text("1")
    except OSError:
        return  # fusectl is not mounted (containers), or not ours: the unmount that follows says what matters


def _fusermount(path: Path) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise UserError(f"cannot unmount {path}: fusermount3 is missing; install the package fuse3")
    command = [program, "-u", "-z", "--", os.fspath(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_FUSERMOUNT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"cannot unmount {path}: {program} did not end within {_FUSERMOUNT_TIMEOUT_S:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="backslashreplace").strip()
        raise UserError(f"cannot unmount {path}: {said or f'{program} ended with {done.returncode}'}")
