"""Open folder descriptors of one source: a bounded LRU, used by worker threads only.

Every call below a source is made relative to an open folder, never by a path string from the root: paths may be
longer than PATH_MAX, the mount may lie over the source itself, and no symlink inside a source is ever followed.
Descriptors close when idle, so that a source can be unmounted, and when old, so that a folder that was moved behind
our back is found again by its name. One that was removed is never believed: another may have been made in its place.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from cachefs.descriptors import Descriptor
from cachefs.fs.nested import Nested


class Folders:
    """The folders below ``root`` that are open now. Thread-safe; the lock is never held over a system call that may
    touch the source."""

    def __init__(self, root: Descriptor | None = None, *, most: int = 256, max_age_s: float = 5.0) -> None:
        """``root`` None: it is not there yet."""
        self._root = root
        self._most = most
        self._max_age_s = max_age_s
        self._open: OrderedDict[str, tuple[Descriptor, float]] = OrderedDict()
        self._lock = threading.Lock()
        self.nested = Nested(self.forget)
        self._forgotten = 0
        """How often folders were forgotten: one that was being opened meanwhile may have another name by now."""

    @contextmanager
    def at(self, path: str) -> Iterator[int]:
        """The open folder ``path``, for use as ``dir_fd``; OSError when it is none. Opens what is missing, name by
        name."""
        descriptor = self._take(path)
        try:
            yield descriptor.number
        finally:
            descriptor.release()

    def forget(self, path: str) -> None:
        """Close ``path`` and everything below it: it was renamed or removed."""
        below = path + "/"
        with self._lock:
            self._forgotten += 1
            gone = [key for key in self._open if key == path or key.startswith(below) or not path]
            doomed = [self._open.pop(key)[0] for key in gone]
        for descriptor in doomed:
            descriptor.close()

    def begin_at(self, root: Descriptor | None) -> Descriptor | None:
        """Another root, or none, from now on; returns the one before. Closes all folders below that one."""
        with self._lock:
            before, self._root = self._root, root
        self.forget("")
        return before

    def close_idle(self) -> None:
        """Close what is older than ``max_age_s``."""
        limit = time.monotonic() - self._max_age_s
        with self._lock:
            old = [key for key, (_, opened) in self._open.items() if opened < limit]
            doomed = [self._open.pop(key)[0] for key in old]
        for descriptor in doomed:
            descriptor.close()

    def _take(self, path: str) -> Descriptor:
        """A descriptor with one use taken."""
        forgotten = self._forgotten
        start, descriptor = self._nearest(path)
        while start and _is_removed(descriptor):  # those above it may be, too; none above one that is there can be
            descriptor.release()
            self.forget(start)
            forgotten = self._forgotten
            start, descriptor = self._nearest(path)
        for name in _names(path[len(start) :]):
            start = f"{start}/{name}" if start else name
            try:
                opened = Descriptor(self.nested.open(descriptor.number, start))
            finally:
                descriptor.release()
            opened.acquire()
            self._keep(start, opened, forgotten)
            descriptor = opened
        return descriptor

    def _nearest(self, path: str) -> tuple[str, Descriptor]:
        """The deepest open folder on the way to ``path``, with one use taken."""
        limit = time.monotonic() - self._max_age_s
        with self._lock:
            candidate = path
            while candidate:
                held = self._open.get(candidate)
                if held is not None and held[1] >= limit:
                    self._open.move_to_end(candidate)
                    held[0].acquire()
                    return candidate, held[0]
                candidate = candidate.rpartition("/")[0]
            root = self._root
            if root is None:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            root.acquire()
        return "", root

    def _keep(self, path: str, descriptor: Descriptor, forgotten: int) -> None:
        doomed = []
        with self._lock:
            if self._forgotten == forgotten:
                old = self._open.pop(path, None)
                if old is not None:
                    doomed.append(old[0])
                self._open[path] = (descriptor, time.monotonic())
            else:
                doomed.append(descriptor)
            while len(self._open) > self._most:
                doomed.append(self._open.popitem(last=False)[1][0])
        for descriptor_ in doomed:
            descriptor_.close()


def _is_removed(folder: Descriptor) -> bool:
    """Whether an open folder has no name any more, or cannot even be asked: then whoever opens it anew is told why."""
    try:
        return os.fstat(folder.number).st_nlink == 0
    except OSError:
        return True


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]
