"""A mount that an earlier run left at the mountpoint: found in the mount table, cleared before a new one is made."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import trio

from cachefs import mounts
from cachefs.errors import CannotMount, UserError

log = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 5.0


async def clear(mountpoint: Path) -> None:
    """Take dead cachefs mounts at ``mountpoint`` away; ``CannotMount`` when a living one is there.

    Whether one lives is asked in a thread that may be left behind: a hung mount lets go of it once it is aborted.
    """
    while True:
        mount = await trio.to_thread.run_sync(mounts.mounted_at, mountpoint)
        if mount is None or not mount.is_cachefs:
            return
        if await answers(mountpoint):
            raise CannotMount(f"another cachefs is mounted at {mountpoint}; stop it, or choose another mountpoint")
        log.info("clearing the mount that an earlier run left at %s", mountpoint)
        try:
            await trio.to_thread.run_sync(mounts.unmount, mountpoint, True)
        except UserError as error:
            raise CannotMount(str(error)) from error


async def answers(mountpoint: Path) -> bool:
    """Whether somebody answers for the mount that is there."""
    with trio.move_on_after(_ANSWER_WITHIN_S):
        return await trio.to_thread.run_sync(_statfs, mountpoint, abandon_on_cancel=True)
    return False


def _statfs(mountpoint: Path) -> bool:
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True
