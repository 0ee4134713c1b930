"""What an earlier run left behind: its mount, found in the mount table and cleared before a new one is made, and what a
process still holds that was killed and cannot end."""

from __future__ import annotations

import errno
import logging
import os
import select
from pathlib import Path

import trio

from cachefs import mounts
from cachefs.config import Config
from cachefs.errors import CannotMount, UserError
from cachefs.processes import code_of_the_dead

log = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 5.0
_ENDS_WITHIN_S = 10.0


async def clear(mountpoint: Path, keep_dead: bool) -> None:
    """Take dead cachefs mounts at ``mountpoint`` away; ``CannotMount`` when a living one is there.

    ``keep_dead``: it stays where it is, until the next mount takes its place, but nobody waits for it any more.
    Whether one lives is asked in a thread that may be left behind: a hung mount lets go of it once it is aborted.
    """
    while True:
        mount = await trio.to_thread.run_sync(mounts.mounted_at, mountpoint)
        if mount is None or not mount.is_cachefs:
            return
        if await answers(mountpoint):
            raise CannotMount(f"another cachefs is mounted at {mountpoint}; stop it, or choose another mountpoint")
        if keep_dead:
            await trio.to_thread.run_sync(mounts.abort, mountpoint)
            return
        log.info("clearing the mount that an earlier run left at %s", mountpoint)
        try:
            await trio.to_thread.run_sync(mounts.unmount, mountpoint, True)
        except UserError as error:
            raise CannotMount(str(error)) from error


async def refuse_in_place(config: Config) -> None:
    """Raises ``UserError`` where a mount of cachefs is over a source, which cannot be asked then."""
    mountpoint = config.mountpoint
    mount = await trio.to_thread.run_sync(mounts.mounted_at, mountpoint)
    if mount is None or not mount.is_cachefs or all(source.path != mountpoint for source in config.sources):
        return
    if await answers(mountpoint):
        raise UserError(f"another cachefs is mounted at {mountpoint}, over the source: is it the same configuration?")
    raise UserError(f"a dead mount is at {mountpoint}, over the source: run cachefs unmount, or start cachefs")


async def is_over(pid: int, mountpoint: Path, keep_dead: bool) -> bool:
    """Whether a process of an earlier run that was killed has let go of everything by now; False for a living one.

    One of its threads may have been telling the kernel of a change in a folder (FUSE_NOTIFY_INVAL_ENTRY), and waits
    there for the folder's lock; whoever has that waits for an answer from the mount; and the mount stays without one
    for as long as that thread is there. Only aborting the mount ends it.
    """
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if code_of_the_dead(pid) is None:
            return False
        await clear(mountpoint, keep_dead)
        return await trio.to_thread.run_sync(_has_ended, number)
    finally:
        os.close(number)


def _has_ended(number: int) -> bool:
    return bool(select.select([number], (), (), _ENDS_WITHIN_S)[0])


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
