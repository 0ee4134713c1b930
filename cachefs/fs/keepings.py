"""What a source keeps of moved files, in a folder of ours at its root, which the mount never shows: for each an empty
file, by its inode number in the mount, which is its very inode where that could be kept.

Used by ``homes``, in a source's threads. Which of them are needed is not decided here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from cachefs.descriptors import Descriptor, sync_names
from cachefs.fs.foldertimes import unseen
from cachefs.fs.found import RESERVED
from cachefs.fs.source import Source, is_empty

DELETED = ".deleted"
"""What follows the number of a file that was deleted while somebody had it open."""
LEAVING = ".leaving"
"""What follows that of a file which is about to go: its inode cannot be kept, since nobody can tell who has it open."""
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def opened(source: Source, *, make: bool = True) -> Iterator[int]:
    """The folder of what is kept, open; never what a link in its place leads to. ``FileNotFoundError`` where there is
    none, unless it is to be made."""
    with source.folders.at("") as root:
        if make:
            with suppress(FileExistsError):
                with unseen(root, RESERVED):
                    os.mkdir(RESERVED, 0o700, dir_fd=root)
                sync_names(root)
        number = os.open(RESERVED, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        yield number
    finally:
        os.close(number)


def remove_folder(source: Source) -> bool:
    """Whether that has left the source empty."""
    with source.folders.at("") as root:
        try:
            with unseen(root, RESERVED):
                os.rmdir(RESERVED, dir_fd=root)
        except OSError:  # something is in it, or it is not there
            return False
        return is_empty(root)


def open_one(source: Source, kept: int) -> Descriptor:
    with opened(source) as folder:
        number = os.open(str(kept), os.O_RDWR | os.O_CREAT | _FILE, 0o600, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EEXIST, f"{source.path}/{RESERVED}/{kept} is no file")
        return Descriptor(number)


def make_place(reserved: int, name: str) -> None:
    """What an earlier way of a file has left of itself, and is empty, is in nobody's way."""
    with suppress(FileNotFoundError):
        if not os.stat(name, dir_fd=reserved, follow_symlinks=False).st_size:
            os.unlink(name, dir_fd=reserved)


def left(source: Source, kept: int) -> None:
    """The file is gone. An empty one in the place of the inode that could not be kept: the source is known by it to
    have files that moved, and is not taken for an empty mountpoint when that was its last one."""
    with opened(source) as reserved:
        os.close(os.open(str(kept), os.O_WRONLY | os.O_CREAT | _FILE, 0o600, dir_fd=reserved))
        os.unlink(f"{kept}{LEAVING}", dir_fd=reserved)
        sync_names(reserved)


def trim(source: Source, kept: int) -> None:
    with suppress(FileNotFoundError), opened(source, make=False) as folder:
        for name in (str(kept), f"{kept}{DELETED}"):
            with suppress(FileNotFoundError):
                _empty(folder, name)


def _empty(folder: int, name: str) -> None:
    number = os.open(name, os.O_WRONLY | _FILE, dir_fd=folder)
    try:
        info = os.fstat(number)
        if info.st_size and info.st_nlink == 1:  # another name would be its own: it is at home
            os.ftruncate(number, 0)
            os.fsync(number)
    finally:
        os.close(number)


def let_go(source: Source, kept: int) -> bool:
    """As ``remove_folder``."""
    with suppress(FileNotFoundError), opened(source, make=False) as folder:
        try:
            os.unlink(f"{kept}{DELETED}", dir_fd=folder)
        except FileNotFoundError:
            os.unlink(str(kept), dir_fd=folder)
        sync_names(folder)
    return remove_folder(source)


def set_aside(source: Source, kept: int) -> None:
    with suppress(FileNotFoundError), opened(source, make=False) as folder:
        os.rename(str(kept), f"{kept}{DELETED}", src_dir_fd=folder, dst_dir_fd=folder)


def count(source: Source) -> int:
    with source.folders.at("") as root:
        return _count_names(root)


def _count_names(root: int) -> int:
    try:
        folder = os.open(RESERVED, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return 0
    try:
        return sum(name.isdigit() for name in os.listdir(folder))
    finally:
        os.close(folder)


def sizes(source: Source) -> dict[str, int]:
    """What is kept, by its name there."""
    with suppress(FileNotFoundError), opened(source, make=False) as folder:
        found = {name: os.stat(name, dir_fd=folder, follow_symlinks=False) for name in os.listdir(folder)}
        ours = {name: info for name, info in found.items() if name.removesuffix(DELETED).isdigit()}
        return {name: info.st_size for name, info in ours.items() if stat.S_ISREG(info.st_mode)}
    return {}


def remove(source: Source, spare: Set[str]) -> bool:
    """As ``remove_folder``."""
    with suppress(FileNotFoundError), opened(source, make=False) as folder:
        for name in spare:
            with suppress(FileNotFoundError):
                if not (name.isdigit() and os.stat(name, dir_fd=folder, follow_symlinks=False).st_size):
                    os.unlink(name, dir_fd=folder)
    return remove_folder(source)


def kept_in(source: Path) -> int:
    """How many files the source in this folder keeps places for. Blocks; raises ``OSError``."""
    number = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _count_names(number)
    finally:
        os.close(number)
