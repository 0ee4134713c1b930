"""renameat2(2) in a source's thread: Python's own rename has no flags."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from cachefs.descriptors import Descriptor, sync_names
from cachefs.fs import reach
from cachefs.fs.reach import Opened, Ref
from cachefs.fs.stat import Stat, look

NOREPLACE = 1
EXCHANGE = 2
"""linux/fs.h"""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Step:
    """One rename within a source."""

    old_parent: Ref
    old: str
    new_parent: Ref
    new: str
    flags: int
    durable: bool = False
    """Somebody else acts on it at once, on another disk."""
    onto_nothing: bool = False
    """As RENAME_NOREPLACE, also where a file system does not know that."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What moved, and what was at the new name before (held, so that its number stays its own)."""

    stat: Stat
    displaced: Opened | None
    exchanged: bool

    def close(self) -> None:
        if self.displaced is not None:
            self.displaced.close()


def carry_out(step: Step) -> Moved:
    """Rename, as rename(2) does or not at all."""
    with reach.folder_of(step.old_parent) as old_folder, reach.folder_of(step.new_parent) as new_folder:
        reach.vouch(step.old_parent, old_folder, step.old)
        reach.vouch(step.new_parent, new_folder, step.new)
        displaced = _hold(new_folder, step.new)
        try:
            if step.onto_nothing and displaced is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), step.new)
            moved = look(old_folder, step.old)
            _rename(old_folder, step.old, new_folder, step.new, step.flags, onto_nothing=step.onto_nothing)
            if step.durable:
                sync_names(new_folder)
                sync_names(old_folder)
        except OSError:
            if displaced is not None:
                displaced.close()
            raise
    if moved.is_folder or (displaced is not None and displaced.stat.is_folder):
        for parent, name in ((step.old_parent, step.old), (step.new_parent, step.new)):
            if parent.paths:
                parent.folders.forget(f"{parent.paths[0]}/{name}".lstrip("/"))
    if displaced is not None and (displaced.stat.dev, displaced.stat.ino) == (moved.dev, moved.ino):
        displaced.close()  # two names of one file: rename(2) does nothing, both names stay
        displaced = None
    return Moved(moved, displaced, exchanged=bool(step.flags & EXCHANGE))


def _hold(folder: int, name: str) -> Opened | None:
    try:
        descriptor = Descriptor(os.open(name, reach.PLACE, dir_fd=folder))
    except FileNotFoundError:
        return None
    try:
        return Opened(descriptor, look(descriptor.number))
    except OSError:
        descriptor.close()
        raise


def _rename(old_folder: int, old: str, new_folder: int, new: str, flags: int, *, onto_nothing: bool) -> None:
    if flags & ~(NOREPLACE | EXCHANGE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), old)
    every = flags | (NOREPLACE if onto_nothing else 0)
    if every and _libc.renameat2(old_folder, os.fsencode(old), new_folder, os.fsencode(new), every) != 0:
        number = ctypes.get_errno()
        if flags or number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), new if number == errno.EEXIST else old)
        every = 0
    if not every:
        os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
