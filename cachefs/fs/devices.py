"""Which file system a device number stands for, over remounts and restarts.

``st_dev`` changes with mount order, so the identity is the file system's UUID where the kernel tells it, else the
mount's own source. Whether inode numbers last over a remount is known per file-system type.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

_FS_IOC_GETFSUUID = 0x80111500
"""linux/fs.h, since Linux 6.9; answers a length byte and 16 bytes."""
_LASTING = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "nilfs2", "ntfs3"})
"""Types whose inode numbers stay the same over a remount."""
_LOCAL = _LASTING | {"vfat", "exfat", "tmpfs", "ramfs"}
"""Types that no other machine can change; FUSE (mergerfs, Unraid's /mnt/user) hides what changes behind it."""


@dataclass(frozen=True, slots=True)
class Device:
    """One file system of a source. ``filesystem`` is None where inode numbers do not last over a remount."""

    identity: str
    filesystem: str | None
    local: bool = False
    """Whether every change of it is made on this machine, so that inotify sees it."""


@dataclass(frozen=True, slots=True)
class _MountRow:
    kind: str
    source: str
    root: str


def identify(folder: int) -> Device:
    """What file system the open ``folder`` is on. Runs in a worker thread; raises OSError."""
    row = _mount_row(mount_id(folder))
    if row is None:
        status = os.fstatvfs(folder)
        return Device(f"unknown:{status.f_fsid:x}", None)
    uuid = _uuid(folder, row.kind) if row.kind in _LASTING else None
    return Device(f"{row.kind}:{uuid or row.source}", uuid, row.kind in _LOCAL)


def _uuid(folder: int, kind: str) -> str | None:
    """The file system's UUID, with the subvolume's number for btrfs, whose subvolumes number their inodes apart."""
    fsid = os.fstatvfs(folder).f_fsid
    suffix = f"-{fsid:x}" if kind == "btrfs" else ""
    buffer = bytearray(17)
    try:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    except OSError:
        return None
    try:
        fcntl.ioctl(readable, _FS_IOC_GETFSUUID, buffer)
    except OSError:  # an older kernel, or a type without one: statfs derives its id from the UUID for these types
        return f"fsid-{fsid:x}" if fsid and kind in {"ext2", "ext3", "ext4", "btrfs", "zfs", "f2fs"} else None
    finally:
        os.close(readable)
    return buffer[1 : 1 + buffer[0]].hex() + suffix


def mount_id(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return -1


def _mount_row(mount_id: int) -> _MountRow | None:
    """The row of /proc/self/mountinfo; None when the mount is detached from this process's view."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            fields = left.split()
            if int(fields[0]) == mount_id:
                kind, source, *_ = right.split(" ")
                return _MountRow(kind=kind, source=source, root=fields[3])
    return None
