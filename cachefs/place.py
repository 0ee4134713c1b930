"""How the mount comes to its place and leaves it: at a separate mountpoint nobody ever sees an empty folder.

An empty folder is what Plex takes for a library of which everything was deleted. So the folder below the mount is there
only as long as the mount is, unless a user made it: cachefs makes it with mode 000, by which it knows it again. A dead
mount stays, and gives errors, until the next one takes its place. Both happen in one step, by renaming a folder and
what is mounted on it: whoever is in a mount namespace where nothing is mounted there may do that, for all others.
(Removing or replacing such a folder would take its mounts away too, but for a moment it could be seen dead and empty.)

Called by ``daemon`` and ``keeper``, never for a mount in place: below that are the slow files. All but ``held`` blocks
and needs root; where it cannot be done, the mount is made and cleared the plain way.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs import mounts
from cachefs.config import Config
from cachefs.errors import CannotMount

log = logging.getLogger(__name__)

_OURS = 0o000
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2)
_CLONE_NEWNS = 0x20000  # unshare(2)
_MS_REC = 0x4000  # mount(2)
_MS_PRIVATE = 0x40000


@dataclass(frozen=True, slots=True)
class _Below:
    """The folder that a mount hides."""

    mode: int
    uid: int
    gid: int
    empty: bool

    @property
    def is_ours(self) -> bool:
        return self.mode == _OURS and self.empty


def is_kept_full(config: Config) -> bool:
    """Whether nobody must ever see an empty folder at this mountpoint, and this user can see to that."""
    return os.geteuid() == 0 and all(source.path != config.mountpoint for source in config.sources)


def missing(mountpoint: Path, is_made: bool) -> str:
    """What is said of a mountpoint that is not there; ``is_made``: cachefs makes it where the folder above it is."""
    if is_made:
        above = mountpoint.parent
        return f"{above} does not exist; run: mkdir -p {above} (the mountpoint in it is made, and goes with the mount)"
    return f"{mountpoint} does not exist; run: mkdir -p {mountpoint}"


@asynccontextmanager
async def held(at: Path, mountpoint: Path) -> AsyncIterator[None]:
    """The mount that was made at ``at`` is at the mountpoint for the length of the block, and gone after it."""
    if at != mountpoint:
        try:
            await trio.to_thread.run_sync(put, at, mountpoint)
        except OSError as error:
            await trio.to_thread.run_sync(discard, at)
            raise CannotMount(f"cannot mount at {mountpoint}: {error.strerror}") from error
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(take_away, mountpoint, True)


def prepare(mountpoint: Path) -> Path:
    """The folder to mount at: the mountpoint itself, or a new neighbour of it that ``put`` brings there.

    A dead mount at the mountpoint is left there if the neighbour can take its place, and cleared if not.
    """
    path = mounts.resolve_now(mountpoint)
    stack = [mount for mount in mounts.all_now() if mount.path == path]
    if not stack and os.path.lexists(path):
        return mountpoint
    try:
        below = _look_below(path) if all(mount.is_cachefs for mount in stack) else None
        if below is None:
            below = None if stack else _Below(_OURS, 0, 0, empty=True)
        if below is not None and below.empty:
            return _make_neighbour(path, below)
    except OSError as error:
        log.debug("%s is mounted the plain way: %s", mountpoint, error)
    while (mount := mounts.mounted_at(path)) is not None and mount.is_cachefs:
        mounts.unmount(path, force=True)
    return mountpoint


def put(neighbour: Path, mountpoint: Path) -> None:
    """Bring the mount at ``neighbour`` to its place, for everybody and in one step; a dead one there goes."""
    path = mounts.resolve_now(mountpoint)

    def move() -> None:
        _unmount_all(neighbour)
        _unmount_all(path)
        if not (os.path.lexists(path) and _exchange(neighbour, path)):
            os.rename(neighbour, path)

    _apart(move)
    discard(neighbour)


def take_away(mountpoint: Path, force: bool) -> None:
    """Take the mount away, in one step with the folder below it if that is ours. Raises ``UserError``.

    ``force`` as for ``mounts.unmount``. It takes the mount being there, so it comes first: one that is unmounted, while
    it is in use, can be aborted no more. Nothing mounted there is fine.
    """
    path = mounts.resolve_now(mountpoint)
    if force:
        cut_off(path)
    neighbour = _neighbour(path)
    try:
        if all(mount.is_cachefs for mount in mounts.all_now() if mount.path == path) and _moved_away(path, neighbour):
            discard(neighbour, force)
    except OSError as error:
        log.debug("%s is unmounted the plain way: %s", mountpoint, error)
    while (mount := mounts.mounted_at(path)) is not None and mount.is_cachefs:
        mounts.unmount(path, force)


def cut_off(mountpoint: Path) -> None:
    """Let nobody wait any more for the mount that is there: whoever does, or would, gets an error at once."""
    mount = mounts.mounted_at(mountpoint)
    if mount is not None and mount.is_cachefs:
        mounts.abort(mountpoint)


def discard(neighbour: Path, force: bool = True) -> None:
    """Remove the neighbour and what is mounted there, if there is one."""
    while mounts.mounted_at(neighbour) is not None:
        mounts.unmount(neighbour, force)
    if os.path.lexists(neighbour):
        os.rmdir(neighbour)


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}.cachefs")


def _make_neighbour(path: Path, below: _Below) -> Path:
    """A folder beside ``path`` that looks like the one below it."""
    neighbour = _neighbour(path)
    discard(neighbour)
    os.mkdir(neighbour)
    os.chown(neighbour, below.uid, below.gid)
    os.chmod(neighbour, below.mode)
    return neighbour


def _look_below(path: Path) -> _Below | None:
    """The folder below the mounts at ``path``; None where there is none."""
    seen: list[_Below] = []

    def look() -> None:
        _unmount_all(path)
        seen.extend(filter(None, [_below(path)]))

    _apart(look)
    return seen[0] if seen else None


def _moved_away(path: Path, neighbour: Path) -> bool:
    """Whether the folder at ``path`` was ours; it is at ``neighbour`` then, with its mounts."""
    moved: list[Path] = []

    def move() -> None:
        _unmount_all(path)
        below = _below(path)
        if below is not None and below.is_ours:
            os.rename(path, neighbour)
            moved.append(neighbour)

    _apart(move)
    return bool(moved)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places; False where the file system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = [ctypes.c_char_p(os.fsencode(path)) for path in (one, other)]
    done: int = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def _below(path: Path) -> _Below | None:
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            return None
        with os.scandir(path) as listing:
            return _Below(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, next(listing, None) is None)
    except FileNotFoundError:
        return None


def _apart(work: Callable[[], None]) -> None:
    """Do ``work`` in a thread of its own whose mount namespace is its own too; nothing unmounted there is unmounted
    elsewhere. Raises its ``OSError``."""
    failed: list[OSError] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            _checked(libc.unshare(_CLONE_NEWNS))
            _checked(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
            work()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="mount namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _unmount_all(path: Path) -> None:
    while (error := mounts.umount2(path, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)) == 0:
        pass
    if error not in (errno.EINVAL, errno.ENOENT):  # no mount, no folder
        raise OSError(error, os.strerror(error), os.fspath(path))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
