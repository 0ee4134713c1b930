"""Making the mount and answering the kernel until it is gone. Called by ``daemon``."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import trio

from cachefs import mounts
from cachefs.errors import CannotMount, UserError
from cachefs.fs import caller, channel
from cachefs.fs.operations import Operations

log = logging.getLogger(__name__)

NAME = "CACHEFS_NAME"
"""What the mount table calls the mount's source; ``mount -a`` looks there for what /etc/fstab says."""
_MIN_TASKS = 16
_MAX_TASKS = 4096
"""Every request waits under some limiter; the number of tasks must not be the limit, or requests for a hung source
would keep all others out (110 of them did, with pyfuse3's 99)."""


@asynccontextmanager
async def mounted(operations: Operations, mountpoint: Path, *, for_others: bool, unmounts: bool) -> AsyncIterator[None]:
    """The mount, for the length of the block; the caller ``unmounts`` it himself if not. Raises ``CannotMount``."""
    if not await trio.to_thread.run_sync(os.path.isdir, mountpoint):
        raise CannotMount(f"the mountpoint {mountpoint} is no folder")
    channel.want_passthrough()
    if await trio.to_thread.run_sync(caller.has_own_umask):
        channel.want_umask()
    name = os.environ.get(NAME, "cachefs").replace("\\", "\\\\").replace(",", "\\,")  # fuse_opt_parse()
    options = {f"fsname={name}", "subtype=cachefs", "default_permissions"}
    if for_others:
        options.add("allow_other")
    try:
        pyfuse3.init(operations, str(mountpoint), options)
    except RuntimeError as error:
        raise CannotMount(f"cannot mount at {mountpoint}: {error}; libfuse has said why above") from error
    if channel.problem():
        log.warning("%s", channel.problem())
    made = await trio.to_thread.run_sync(mounts.mounted_at, mountpoint) if unmounts else None
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_close, made)


def _close(made: mounts.Mount | None) -> None:
    """End the session, and take its mount away if it is still there.

    Not by libfuse: since 3.17 it runs umount(8) and keeps the whole process waiting, and that child closes its copies
    of our files first, which hangs where a disk does. The closed session ends what still waits for the mount, but not
    while a thread of ours tells the kernel of a change, which may itself wait for those: so it is aborted, too.
    """
    now = mounts.topmost(mounts.all_now(), made.path) if made is not None else None
    pyfuse3.close(unmount=False)
    if made is None or now is None or (now.id, now.device_minor) != (made.id, made.device_minor):
        return  # unmounted from outside; in place, what is seen there now is the disk's own
    try:
        mounts.unmount(made.path, force=True)
    except UserError as error:
        log.warning("%s", error)


async def answer() -> None:
    """Answer the kernel until the mount is gone."""
    await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=_MAX_TASKS)
    log.info("the file system was unmounted")
