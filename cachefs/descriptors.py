"""File descriptors shared between tasks and worker threads.

An abandoned thread may still be inside a system call on a descriptor: closing the number then would hand it to the
next ``open`` and let the thread read or write somebody else's file. So a descriptor counts who uses it, and is closed
by whoever leaves last.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Descriptor:
    """One open file descriptor with a count of users.

    The creator holds one use until ``close``; threads take theirs through ``use``. Safe to call from any thread.
    """

    __slots__ = ("_lock", "_open", "_users", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._users = 1
        self._open = True
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor's number, guaranteed open inside the block; ``EBADF`` when closed already."""
        self.acquire()
        try:
            yield self.number
        finally:
            self.release()

    def acquire(self) -> None:
        """Take one use; ``release`` gives it back."""
        with self._lock:
            if not self._open:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1

    def release(self) -> None:
        """Give one use back; the last one closes the descriptor."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            os.close(self.number)

    def close(self) -> None:
        """Give the creator's use back. Safe to call twice. May block when it is the last use: call it in a thread
        for anything that lives on a source."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self.release()

    @property
    def closed(self) -> bool:
        return not self._open


def open_below(path: str, flags: int, mode: int = 0o600) -> int:
    """Open a file that is named from a place of ours (``/proc/self/fd/7/files/Media/a``): no link on the way from there
    is followed. Raises ``OSError``: ENOTDIR or ELOOP for one."""
    if not path.startswith("/proc/self/fd/"):
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    number, *above, name = path.split("/")[4:]
    place = os.open(f"/proc/self/fd/{number}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in above:
            deeper = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = deeper
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=place)
    finally:
        os.close(place)


def open_unreadable(number: int) -> int:
    """Open for reading what a place of ours (O_PATH) is: a file whose mode does not even let its owner, who we are. The
    mode is another one, but not for long. Raises ``OSError``."""
    itself, mode = f"/proc/self/fd/{number}", stat.S_IMODE(os.fstat(number).st_mode)
    os.chmod(itself, mode | stat.S_IRUSR)
    try:
        return os.open(itself, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.chmod(itself, mode)


def sync_names(folder: int) -> None:
    """Make the names in an open folder (also one of O_PATH) durable."""
    number = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that keep names durable by themselves say so
            raise
    finally:
        os.close(number)


def raise_limit() -> None:
    """Let this process have as many descriptors as it may: open files and folders need some each, and the usual limit
    of 1,024 is one for programs that call select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
