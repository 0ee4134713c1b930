"""Watching folders of a local source, so that the kernel may believe what it knows until something really changes.

Used by ``union`` (which folders) and ``behind`` (what happened). inotify(7) sees every change of a local file system,
whoever makes it, and nothing of what another machine does to a network file system: those are never watched.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import logging
import termios
import threading
from dataclasses import dataclass

from inotify_simple import Event, INotify, flags

from cachefs.fs.reach import proc_path
from cachefs.model import SourceName

log = logging.getLogger(__name__)

_MASK = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.EXCL_UNLINK
)


class Kind(enum.Enum):
    """What happened: NAMES to a name in a folder, CONTENT to the file or folder of that name, ITSELF to the folder
    (no name), END of the watch, LOST when the kernel dropped events: anything may have happened anywhere."""

    NAMES = "names"
    CONTENT = "content"
    ITSELF = "itself"
    END = "end"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened in the folder with this watch."""

    watch: int
    kind: Kind
    name: str = ""


class Watches:
    """The inotify instance of one source. ``add`` and ``remove`` may be called from any thread."""

    def __init__(self, source: SourceName) -> None:
        self._source = source
        self._inotify = INotify(nonblocking=True)
        self._full = threading.Event()

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    @property
    def is_full(self) -> bool:
        """Whether the user's limit was reached, and nothing was removed since."""
        return self._full.is_set()

    def add(self, folder: int) -> int | None:
        """Watch the open ``folder``; None when the user's limit is reached: its changes are then seen by asking."""
        if self._full.is_set():
            return None
        try:
            return int(self._inotify.add_watch(proc_path(folder), _MASK))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            self._full.set()
            log.info(
                "source %s: no more folders can be watched; raise fs.inotify.max_user_watches with sysctl", self._source
            )
            return None

    def remove(self, watch: int) -> None:
        """The kernel has forgotten the folder. A watch that ended by itself is fine."""
        self._full.clear()
        try:
            self._inotify.rm_watch(watch)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def has_news(self) -> bool:
        """Whether something has happened since the last ``read``: the kernel notes it before whoever did it goes on."""
        return bool(fcntl.ioctl(self.fileno(), termios.FIONREAD, bytes(4)).strip(b"\0"))

    def read(self) -> list[Change]:
        """What has happened since the last call, each thing once, in order. Never waits."""
        changes = (_change(event) for event in self._inotify.read(timeout=0))
        return list(dict.fromkeys(change for change in changes if change is not None))

    def close(self) -> None:
        self._inotify.close()


def _change(event: Event) -> Change | None:
    mask = event.mask
    if mask & flags.Q_OVERFLOW:
        return Change(-1, Kind.LOST)
    if mask & flags.IGNORED:
        return Change(event.wd, Kind.END)
    if not event.name:
        return Change(event.wd, Kind.ITSELF)
    if mask & (flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO):
        return Change(event.wd, Kind.NAMES, event.name)
    return Change(event.wd, Kind.CONTENT, event.name)
