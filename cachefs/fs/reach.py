"""How worker threads get at a file of a source: by folder descriptor and name, and only if it is still the one meant.

Everything here runs in a source's threads and gets plain values; nothing here knows nodes or the event loop.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachefs.descriptors import Descriptor
from cachefs.fs import devices
from cachefs.fs.folders import Folders
from cachefs.fs.leaves import Listing
from cachefs.fs.stat import Stat, look

PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Ref:
    """One file of a source as a request means it: where it was seen, and what it must be.

    ``paths`` are below the source, the likeliest first. ``orphan`` reaches it when no name leads there any more.
    """

    folders: Folders
    paths: tuple[str, ...]
    dev: int
    ino: int
    kind: int
    born_ns: int
    orphan: Descriptor | None = None
    anything: bool = False
    """Whatever has the name is meant: nobody but cachefs gives names there."""

    def means(self, seen: Stat) -> bool:
        """Whether what was just seen can be it. Its number alone says little: a file that is removed behind the mount
        leaves it to the next one, or to a folder, and the kernel gives up an inode that becomes another thing."""
        return self.anything or (seen.dev, seen.ino, st.S_IFMT(seen.mode), seen.birth_ns) == (
            self.dev,
            self.ino,
            self.kind,
            self.born_ns,
        )


def split(path: str) -> tuple[str, str]:
    """Folder and name; the source's own root is ``("", "")``, whose empty name is the folder itself."""
    folder, _, name = path.rpartition("/")
    return folder, name


@contextmanager
def folder_of(ref: Ref) -> Iterator[int]:
    """The folder that ``ref`` means, open, for use as ``dir_fd``; ESTALE when another one has its place."""
    if ref.paths:
        with ref.folders.at(ref.paths[0]) as folder:
            if _is(folder, ref):
                yield folder
                return
        ref.folders.forget(ref.paths[0])  # it was opened before something was moved behind the mount
        with ref.folders.at(ref.paths[0]) as folder:
            if not _is(folder, ref):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), ref.paths[0])
            yield folder
    elif ref.orphan is not None:
        with ref.orphan.use() as folder:
            yield folder
    else:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _is(folder: int, ref: Ref) -> bool:
    return _is_root(ref.paths[0]) or ref.means(look(folder))


def vouch(ref: Ref, folder: int, name: str) -> None:
    """That what is mounted at this name in the open folder that ``ref`` means is there; SourceError where it was lost.
    Nothing is mounted at most names."""
    if ref.paths:
        ref.folders.nested.vouch(folder, f"{ref.paths[0]}/{name}".lstrip("/"))


def _vouch_in(ref: Ref, folder: int) -> None:
    """The same for every name in it: called last, so that what was read is true."""
    if ref.paths:
        ref.folders.nested.vouch_in(folder, ref.paths[0])


def _tries(ref: Ref) -> Iterator[str]:
    """The names to look under. Of a moved file twice: the SSD's folder is removed when it is empty, and made again, and
    that may have happened just after it was opened."""
    yield from ref.paths
    if ref.anything:
        yield from ref.paths


def _is_root(path: str) -> bool:
    """The source's own folder is whatever the source takes for it, and may become another one."""
    return not path


def stat_node(ref: Ref) -> Stat:
    """Attributes of the file that ``ref`` means; ESTALE when its names lead elsewhere by now."""
    for path in _tries(ref):
        folder_path, name = split(path)
        try:
            with ref.folders.at(folder_path) as folder:
                ref.folders.nested.vouch(folder, path)
                seen = look(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if ref.means(seen) or _is_root(path):
            return seen
    if ref.orphan is not None:
        with ref.orphan.use() as place:
            return look(place)
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), ref.paths[0] if ref.paths else "")


@contextmanager
def place_of(ref: Ref) -> Iterator[int]:
    """An O_PATH descriptor on the very file that ``ref`` means, whatever its type; ESTALE when it is not there."""
    for path in _tries(ref):
        folder_path, name = split(path)
        try:
            with ref.folders.at(folder_path) as folder:
                ref.folders.nested.vouch(folder, path)
                place = os.open(name or ".", PLACE, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            seen = look(place)
            if ref.means(seen) or _is_root(path):
                yield place
                return
        finally:
            os.close(place)
    if ref.orphan is None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), ref.paths[0] if ref.paths else "")
    with ref.orphan.use() as place:
        yield place


def proc_path(descriptor: int) -> str:
    """A path that leads to what the descriptor stands for, for calls that take no descriptor."""
    return f"/proc/self/fd/{descriptor}"


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file and what it was at that moment."""

    descriptor: Descriptor
    stat: Stat

    def close(self) -> None:
        self.descriptor.close()


def open_node(ref: Ref, flags: int) -> Opened:
    """Open the file that ``ref`` means; ``flags`` as in open(2), O_CREAT and O_EXCL ignored."""
    kept = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) | os.O_CLOEXEC
    with place_of(ref) as place:
        descriptor = Descriptor(os.open(proc_path(place), kept))
    try:
        return Opened(descriptor, look(descriptor.number))
    except OSError:
        descriptor.close()
        raise


class FolderWatcher(Protocol):
    """What can watch an open folder; None when it cannot."""

    def add(self, folder: int) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Looked:
    """A name in a folder: its attributes (None: there is no such name), the watch that was put on the folder just
    before, and the folder itself, where it was wanted."""

    stat: Stat | None
    watch: int | None
    place: Descriptor | None

    def close(self) -> None:
        if self.place is not None:
            self.place.close()


def look_up(ref: Ref, name: str, watcher: FolderWatcher | None, keep: bool) -> Looked:
    """Attributes of ``name`` in the folder that ``ref`` means; ``keep``: and the folder, open."""
    with folder_of(ref) as folder:
        watch = watcher.add(folder) if watcher is not None else None
        try:
            seen: Stat | None = look(folder, name)
        except FileNotFoundError:
            seen = None
        vouch(ref, folder, name)
        return Looked(seen, watch, Descriptor(os.dup(folder)) if keep else None)


class Child(NamedTuple):
    """One entry of a folder."""

    name: str
    stat: Stat


@dataclass(frozen=True, slots=True)
class Listed:
    """A folder's own attributes, all its names in the file system's order (without ``.`` and ``..``), the attributes
    of the first of them, and the watch that was put on it just before."""

    stat: Stat
    names: list[str]
    children: list[Child]
    watch: int | None


def list_folder(ref: Ref, most: int, watcher: FolderWatcher | None) -> Listed:
    """What is in the folder that ``ref`` means, with the attributes of at most ``most`` names."""
    with folder_of(ref) as folder:
        watch = watcher.add(folder) if watcher is not None else None
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            names = os.listdir(readable)
            children = _stat_all(readable, names[:most])
            _vouch_in(ref, folder)
            return Listed(look(readable), names, children, watch)
        finally:
            os.close(readable)


@dataclass(frozen=True, slots=True)
class FolderRead:
    """A folder's own attributes, its names (``packed``: to be remembered, if all of them were looked at), and as
    ``Looked``."""

    stat: Stat
    listing: Listing
    packed: bytes | None
    watch: int | None
    place: Descriptor | None

    def close(self) -> None:
        if self.place is not None:
            self.place.close()


def read_folder(ref: Ref, most: int, watcher: FolderWatcher | None, keep: bool) -> FolderRead:
    """What is in the folder that ``ref`` means, with the attributes of at most ``most`` names."""
    with folder_of(ref) as folder:
        watch = watcher.add(folder) if watcher is not None else None
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            listing = Listing.read(readable, most)
            packed = listing.pack(readable)
            _vouch_in(ref, folder)
            return FolderRead(look(readable), listing, packed, watch, Descriptor(os.dup(folder)) if keep else None)
        finally:
            os.close(readable)


def look_on(ref: Ref, listing: Listing, begin: int, most: int) -> bytes | None:
    """Attributes of the next names of a listing; when these were the last, what is to be remembered."""
    with folder_of(ref) as folder:
        listing.look(folder, begin, most)
        _vouch_in(ref, folder)
        return listing.pack(folder)


def stat_names(ref: Ref, names: Sequence[str]) -> list[Child]:
    """Attributes of several names of one folder; a name that is gone by now is left out."""
    with folder_of(ref) as folder:
        found = _stat_all(folder, names)
        for name in names:
            vouch(ref, folder, name)
        return found


def _stat_all(folder: int, names: Sequence[str]) -> list[Child]:
    found = []
    for name in names:
        try:
            found.append(Child(name, look(folder, name)))
        except FileNotFoundError:
            continue
    return found


def read_exactly(descriptor: Descriptor, size: int, offset: int) -> bytes:
    """Up to ``size`` bytes at ``offset``; fewer only at the end of the file."""
    with descriptor.use() as number:
        data = os.pread(number, size, offset)
        if len(data) in (0, size):
            return data
        parts = [data]
        done = len(data)
        while done < size and (data := os.pread(number, size - done, offset + done)):
            parts.append(data)
            done += len(data)
    return b"".join(parts)


def identify_child(ref: Ref, name: str) -> devices.Device:
    """The file system that a name in the folder that ``ref`` means is on."""
    with folder_of(ref) as folder:
        place = os.open(name, PLACE, dir_fd=folder)
    try:
        return devices.identify(place)
    finally:
        os.close(place)
