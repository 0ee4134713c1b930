"""A folder's mtime: it changes when the names that the mount shows in it do, and not when a file of it moves.

Used by ``homes`` and ``movedfiles``, in a source's threads. Programs that scan libraries, and backups, go by it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from inotify_simple import INotify, flags

from cachefs.fs.reach import proc_path
from cachefs.fs.source import Source
from cachefs.fs.stat import look
from cachefs.fs.times import set_times

log = logging.getLogger(__name__)

_NAMES = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO


@contextmanager
def unseen(folder: int, name: str) -> Iterator[None]:
    """What becomes of this one name within leaves the open folder's mtime as it was. When anything else happens in the
    folder at the same time, that is to be seen; where nobody can tell, the mtime is what it is.

    The kernel notes what happens before whoever does it goes on. (Of a network file system, what this machine does.)
    """
    witness = _watch(folder)
    if witness is None:
        yield
        return
    with closing(witness):
        before = look(folder)
        yield
        if [event.name for event in witness.read(timeout=0)] != [name]:
            return
        try:
            set_times(proc_path(folder), None, before.mtime_ns)
            if any(event.mask & _NAMES for event in witness.read(timeout=0)):
                os.utime(proc_path(folder))
        except OSError as error:
            log.debug("the mtime of a folder stays what it is: %s", error)  # it is somebody else's, maybe


def _watch(folder: int) -> INotify | None:
    """None where the user's limit is reached."""
    try:
        witness = INotify(nonblocking=True)
    except OSError as error:
        log.debug("%s", error)
        return None
    try:
        witness.add_watch(proc_path(folder), _NAMES | flags.ATTRIB | flags.ONLYDIR)
    except OSError as error:
        log.debug("%s", error)
        witness.close()
        return None
    return witness


def touch(source: Source, path: str) -> None:
    """A name in this folder of a source has changed, of which the source knows nothing."""
    with source.folders.at(path) as folder:
        os.utime(proc_path(folder))
