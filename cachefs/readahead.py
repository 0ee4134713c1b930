"""How far the kernel reads ahead in the mount: larger requests to the daemon, hence fewer of them.

Called by ``daemon`` once the mount is there, and by ``doctor``. The kernel keeps the number beside the mount, in sysfs;
nobody asks the mount itself. Its own 128 KiB is all it takes without the channel, whose INIT reply lifts that limit.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cachefs import mounts
from cachefs.units import format_size

log = logging.getLogger(__name__)

_DEVICES = Path("/sys/class/bdi")  # Documentation/ABI/testing/sysfs-class-bdi


def raise_to(size: int, mountpoint: Path) -> None:
    """Let the kernel read ahead so many bytes below ``mountpoint``, if it lets us: only root may say so."""
    mount = mounts.mounted_at(mountpoint)
    if mount is None:
        return
    try:
        _setting(mount).write_text(str(size // 1024))
    except OSError as error:
        why = error.strerror or str(error)
        log.info("read-ahead stays as the kernel has it, not %s: %s: %s", format_size(size), _setting(mount), why)


def of(mount: mounts.Mount) -> int | None:
    """Bytes that the kernel reads ahead in a mount; None where sysfs does not tell."""
    try:
        return int(_setting(mount).read_text()) * 1024
    except (OSError, ValueError):
        return None


def _setting(mount: mounts.Mount) -> Path:
    """A FUSE mount has no block device: its major number is 0."""
    return _DEVICES / f"0:{mount.device_minor}" / "read_ahead_kb"
