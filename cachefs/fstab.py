"""``mount -t fuse.cachefs CONFIG MOUNTPOINT``, and a line of /etc/fstab: cachefs as mount(8) starts it.

mount(8) hands the type ``fuse.cachefs`` to mount.fuse3(8), which runs ``cachefs CONFIG MOUNTPOINT -o OPTIONS``. That
has to end with 0 once the mount answers, and to go on in the background.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cachefs import keeper, logs, mounts
from cachefs.announce import Announcer
from cachefs.config import Config
from cachefs.errors import UserError
from cachefs.fs import mounting

COMMAND = "fstab"

_MEANINGLESS = re.compile(
    r"""defaults|rw|(no)?(auto|user|dev|suid|exec|atime|diratime|relatime|strictatime|lazytime)|users|owner|group|nofail
    |_netdev|async|allow_other|default_permissions|comment|silent|loud|[xX]-.*""",
    re.VERBOSE,
)
"""What mount(8) deals with itself, or what cachefs does in any case."""


def as_command(arguments: Sequence[str]) -> list[str]:
    """The arguments with the command's name before them where mount.fuse3 left it out: no command has a slash in it."""
    from_mount = bool(arguments) and "/" in arguments[0]
    return [COMMAND, *arguments] if from_mount else list(arguments)


def refuse_options(text: str) -> None:
    """``UserError`` for what cannot be done, rather than a mount that is not what was asked for."""
    for option in filter(None, text.split(",")):
        name = option.partition("=")[0]
        if not _MEANINGLESS.fullmatch(name):
            raise UserError(f"mount option {name}: cachefs has no such option; its settings are in its configuration")


def mount(config_file: Path, config: Config, mountpoint: Path) -> int:
    """Run a keeper in the background; 0 once the mount answers, else what it ended with."""
    if mounts.resolve_now(mountpoint) != mounts.resolve_now(config.mountpoint):
        raise UserError(f"{config_file} says mountpoint: {config.mountpoint}, and not {mountpoint}; write the same")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writing)
        return 0 if os.read(reading, 1) else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    os.setsid()
    os.chdir("/")
    os.environ |= {logs.DETACHED: logs.WHEN_READY, mounting.NAME: os.fspath(config_file)}
    return keeper.run(config_file, Announcer(waiting=writing))
