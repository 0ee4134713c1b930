"""Making the mount and answering the kernel until it is gone. Called by ``daemon``."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import trio

from cachefs.errors import CannotMount
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
        raise CannotMount(f"the mountpoint {mountpoint} is no folder; run: mkdir -p {mountpoint}")
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
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(pyfuse3.close, unmounts)


async def answer() -> None:
    """Answer the kernel until the mount is gone."""
    await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=_MAX_TASKS)
    log.info("the file system was unmounted")
