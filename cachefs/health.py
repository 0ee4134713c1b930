"""``cachefs status --healthy``: whether Plex can read through the mount now, within seconds.

Asks the kernel's mount table, the mount and the server, never a disk: a source that is away is no reason to restart
anything, and ``cachefs status`` says so.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs import check, mounts
from cachefs.config import Config
from cachefs.control.client import Client
from cachefs.errors import CachefsError
from cachefs.fs.operations import STATE

WITHIN_S = 5.0
"""For each answer; container engines wait 30 s for the command as a whole."""


@dataclass(frozen=True, slots=True)
class Health:
    """What ``--json`` shows."""

    healthy: bool
    problem: str


def problem(config: Config) -> str:
    """What is wrong, in one sentence; empty when all is well."""
    mount = mounts.mounted_at(config.mountpoint)
    if mount is None or not mount.is_cachefs:
        return f"cachefs is not mounted at {config.mountpoint}"
    silence = trio.run(_silence, config.mountpoint)
    if silence:
        return f"the mount at {config.mountpoint} {silence}"
    try:
        with Client(config.control.socket, config.mountpoint) as client:
            client.status(WITHIN_S)
    except CachefsError as error:
        return str(error)
    return ""


async def _silence(mountpoint: Path) -> str:
    answer = await check.within(WITHIN_S, _ask, mountpoint)
    return f"does not answer within {WITHIN_S:g} s" if answer is None else answer


def _ask(mountpoint: Path) -> str:
    """One request that the server answers from memory: the state of a folder, which has none."""
    try:
        os.getxattr(mountpoint, STATE)
    except OSError as error:
        return "" if error.errno == errno.ENODATA else f"is dead: {error.strerror}"
    return ""
