"""What the tests of the file system share: a store, sources and operations over temporary folders, and no mount.

``Kernel`` is the part of the kernel that calls the operations: it walks paths, counts lookups and forgets them again,
and caches nothing. Its calls are blocking ones, made from a worker thread, so that scenarios read like programs.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, TypeVarTuple, cast

import pyfuse3
import pytest
import trio

from cachefs.cache.copying import read_attributes, write_attributes
from cachefs.cache.moving import Movers
from cachefs.cache.store import Refused, Store, open_store
from cachefs.descriptors import Descriptor
from cachefs.fs.changes import Changes
from cachefs.fs.elsewhere import Elsewhere
from cachefs.fs.homes import Homes
from cachefs.fs.inodes import ROOT, Node
from cachefs.fs.operations import Operations
from cachefs.fs.routing import Routing
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.model import CacheEntry, FileKey, SourceName, UnionPath
from cachefs.paths import Layout
from cachefs.status import Counters
from tests.engine.cachekit import ROOMY
from tests.fileops import Seen

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MEDIA = SourceName("Media")
TIMEOUT_S = 30.0
HANGS_S = 0.3
TTL_S = 5.0


class GatedSource(Source):
    """A source that notes what it is asked, and whose threads stop at ``gate`` before they do it."""

    def __init__(self, name: SourceName, path: str, *, timeout_s: float, ttl_s: float) -> None:
        super().__init__(name, path, timeout_s=timeout_s, ttl_s=ttl_s, watch_changes=False)
        self.asked: list[str] = []
        self.gate: Callable[[str], object] = _open_gate
        self._patience_s, self._hanging = timeout_s, ""

    def hang(self, name: str, go_on: threading.Event) -> None:
        """The function of this name waits until then, and nobody waits long for it."""
        self.gate = lambda function: go_on.wait(20) if function == name else None
        self._hanging = name

    def _waits_for(self, function: Callable[..., object]) -> None:
        hangs = self._hanging and getattr(function, "__name__", "") == self._hanging
        self._timeout_s = HANGS_S if hangs else self._patience_s

    def _gated(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        name = getattr(function, "__name__", repr(function))
        self.asked.append(name)
        self.gate(name)
        return function(*args)

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        self._waits_for(function)
        return await super().call(self._gated, function, *args)

    async def call_gently(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        self._waits_for(function)
        return await super().call_gently(self._gated, function, *args)

    async def change(self, finished: Callable[[], object], function: Callable[[*Ts], T], *args: *Ts) -> T:
        self._waits_for(function)
        return await super().change(finished, self._gated, function, *args)


def _open_gate(_: str) -> None:
    """Nothing is held up."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything behind the operations, as the daemon puts it together."""

    folders: dict[SourceName, Path]
    store: Store
    union: Union
    routing: Routing
    changes: Changes
    counters: Counters
    movers: Movers

    @property
    def folder(self) -> Path:
        """The folder of the first source."""
        return next(iter(self.folders.values()))

    @property
    def source(self) -> GatedSource:
        return cast(GatedSource, next(iter(self.union.sources.values())))

    def key(self, path: str) -> FileKey:
        found = self.union.layout.key(UnionPath(path))
        assert found is not None
        return found

    async def node(self, path: str) -> Node:
        """The node of a path, looked up as the kernel does, and never forgotten."""
        node = self.union.node(ROOT)
        for name in filter(None, path.split("/")):
            node = (await self.union.lookup(node, name)).node
            self.union.inodes.looked_up(node)
        return node

    async def begun(self, path: str) -> CacheEntry:
        """A copy of the file, with no byte of it on the SSD yet."""
        entry = await self.store.begin(await self.union.files.stat(self.key(path)), "because", now=100.0)
        assert not isinstance(entry, Refused)
        return entry

    async def copy(self, entry: CacheEntry, start: int, end: int, *, data: bytes | None = None) -> None:
        """Bring bytes of the source's file to the SSD, or ``data`` in their place."""
        content = (self.folders[entry.key.source] / entry.key.path).read_bytes()[start:end] if data is None else data
        target = await self.store.open_partial(entry)
        assert target is not None
        with target.use() as number:
            os.pwrite(number, content, start)
        target.close()
        self.store.record(entry.id, start, end)

    async def published(self, path: str, *, data: bytes | None = None) -> CacheEntry:
        """The file is cached; with ``data`` the SSD holds other bytes than the source, so that a test can tell."""
        entry = await self.begun(path)
        await self.copy(entry, 0, entry.size, data=data)
        cached = await self.store.publish(entry, await self.union.files.stat(entry.key))
        assert cached is not None
        return cached

    async def give_attributes(self, path: str) -> None:
        """The copy has what a copy gets besides its bytes."""
        key = self.key(path)
        source = await self.union.files.open(key)
        copy = Descriptor(os.open(self.store.file_of(cast(CacheEntry, self.store.get(key))), os.O_RDONLY))
        write_attributes(copy, read_attributes(source))
        source.close()
        copy.close()

    async def moved(self, path: str) -> FileKey:
        """The file is on the SSD alone."""
        await self.published(path)
        await self.give_attributes(path)
        await self.movers.move(self.key(path))
        assert self.store.moves.get(self.key(path)) is not None
        return self.key(path)


@asynccontextmanager
async def rooms(
    tmp_path: Path,
    *sources: str,
    timeout_s: float = TIMEOUT_S,
    ttl_s: float = TTL_S,
) -> AsyncIterator[Rooms]:
    """The file system over folders of these names, which are made when they are not there; one, ``Media``, if none."""
    folders = {SourceName(name): tmp_path / "sources" / name for name in sources or (MEDIA,)}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str(folder) for name, folder in folders.items()}
    async with open_store(tmp_path / "ssd", ROOMY, paths) as store:
        slow = [GatedSource(name, path, timeout_s=timeout_s, ttl_s=ttl_s) for name, path in paths.items()]
        for name in folders:
            store.make_place_of(name)
        elsewhere = Elsewhere(store.moves, store.place_of, folders)
        await elsewhere.open()
        union = Union(slow, Layout(tuple(folders)), store, store.device_tag, elsewhere=elsewhere)
        await union.open_sources()
        counters = Counters()
        routing = Routing(union, store, counters)
        movers = Movers(store, union.files, Homes(union), routing.hold, lambda: None, on=False)
        try:
            yield Rooms(folders, store, union, routing, Changes(union, routing, movers), counters, movers)
        finally:
            elsewhere.close()
            for source in slow:
                source.close()


# --- the kernel's part -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Handle:
    fh: int
    node: int
    flags: int


@dataclass(frozen=True, slots=True)
class Listed:
    """What the kernel is told of one name by readdirplus."""

    name: str
    number: int
    position: int


@dataclass(slots=True)
class Kernel:
    """``Files`` by calling the operations, from a worker thread of trio."""

    operations: Operations
    behind: Path
    caller: Any = field(
        default_factory=lambda: SimpleNamespace(umask=0, uid=os.getuid(), gid=os.getgid(), pid=os.getpid())
    )
    handles: dict[int, _Handle] = field(default_factory=dict)

    def call(self, handler: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run a handler on the event loop; OSError as the system call would give it."""
        try:
            return trio.from_thread.run(handler, *args)
        except pyfuse3.FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error

    @contextmanager
    def at(self, path: str) -> Iterator[int]:
        """The number of the file at ``path``, known to the operations inside the block."""
        known: list[int] = []
        number = ROOT
        try:
            for name in filter(None, path.split("/")):
                number = self.call(self.operations.lookup, number, os.fsencode(name), self.caller).st_ino
                known.append(number)
            yield number
        finally:
            self._forget(*known)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, bytes]]:
        folder, _, name = path.rpartition("/")
        with self.at(folder) as number:
            yield number, os.fsencode(name)

    def _forget(self, *numbers: int) -> None:
        self.call(self.operations.forget, [(number, 1) for number in numbers])

    def _made(self, handler: Callable[..., Awaitable[pyfuse3.EntryAttributes]], path: str, *args: object) -> None:
        with self.parent(path) as (folder, name):
            made = self.call(partial(handler, folder, name, *args, self.caller))
            self._forget(made.st_ino)

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        try:
            return self._open(path, flags)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        with self.parent(path) as (folder, name):
            info, seen = self.call(self.operations.create, folder, name, mode | 0o100000, flags, self.caller)
        return self._keep(info.fh, seen.st_ino, flags)

    def _open(self, path: str, flags: int) -> int:
        with self.at(path) as number:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            info = self.call(self.operations.open, number, flags & ~os.O_CREAT, self.caller)
            with self.parent(path) as (folder, name):
                self.call(self.operations.lookup, folder, name, self.caller)  # the open file keeps this one
        return self._keep(info.fh, number, flags)

    def _keep(self, fh: int, node: int, flags: int) -> int:
        self.handles[fh] = _Handle(fh, node, flags)
        return fh

    def read(self, handle: int, size: int, offset: int = 0) -> bytes:
        return bytes(self.call(self.operations.read, handle, offset, size))

    def write(self, handle: int, data: bytes, offset: int | None = None) -> int:
        at = self.fstat(handle).size if offset is None else offset
        return self.call(self.operations.write, handle, at, data)

    def close(self, handle: int) -> None:
        held = self.handles.pop(handle)
        self.call(self.operations.flush, handle)
        self.call(self.operations.release, handle)
        self._forget(held.node)

    def fstat(self, handle: int) -> Seen:
        return _seen(self.call(self.operations.getattr, self.handles[handle].node, self.caller))

    def ftruncate(self, handle: int, size: int) -> None:
        wanted = pyfuse3.EntryAttributes()
        wanted.st_size = size
        fields = _fields(update_size=True)
        self.call(self.operations.setattr, self.handles[handle].node, wanted, fields, handle, self.caller)

    def fsync(self, handle: int, datasync: bool = False) -> None:
        self.call(self.operations.fsync, handle, datasync)

    def fsync_folder(self, path: str) -> None:
        with self.at(path) as number:
            fh = self.call(self.operations.opendir, number, self.caller)
            self.call(self.operations.fsyncdir, fh, False)
            self.call(self.operations.releasedir, fh)

    def stat(self, path: str) -> Seen:
        with self.at(path) as number:
            return _seen(self.call(self.operations.getattr, number, self.caller))

    def entries(self, path: str) -> list[tuple[str, int]]:
        with self.at(path) as number:
            fh = self.call(self.operations.opendir, number, self.caller)
            found: list[Listed] = []
            while batch := self.read_folder(fh, found[-1].position if found else 0):
                found += batch
            self.call(self.operations.releasedir, fh)
        return [(listed.name, listed.number) for listed in found]

    def read_folder(self, fh: int, position: int, most: int = 100) -> list[Listed]:
        """One READDIRPLUS, whose answers are forgotten at once."""
        batch: list[Listed] = []

        def reply(_: object, name: bytes, seen: pyfuse3.EntryAttributes, next_id: int) -> bool:
            if len(batch) == most:
                return False
            batch.append(Listed(os.fsdecode(name), seen.st_ino, next_id))
            return True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pyfuse3, "readdir_reply", reply)
            self.call(self.operations.readdir, fh, position, cast(Any, object()))
        self._forget(*(listed.number for listed in batch if listed.name not in {".", ".."}))
        return batch

    def truncate(self, path: str, size: int) -> None:
        self._set(path, _fields(update_size=True), st_size=size)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._made(self.operations.mkdir, path, mode)

    def rmdir(self, path: str) -> None:
        with self.parent(path) as (folder, name):
            self.call(self.operations.rmdir, folder, name, self.caller)

    def unlink(self, path: str) -> None:
        with self.parent(path) as (folder, name), self.at(path):
            self.call(self.operations.unlink, folder, name, self.caller)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        with self.parent(old) as (old_folder, old_name), self.parent(new) as (new_folder, new_name), self.at(old):
            self.call(self.operations.rename, old_folder, old_name, new_folder, new_name, flags, self.caller)

    def link(self, old: str, new: str) -> None:
        with self.at(old) as number, self.parent(new) as (folder, name):
            made = self.call(self.operations.link, number, folder, name, self.caller)
            self._forget(made.st_ino)

    def symlink(self, target: str, path: str) -> None:
        self._made(self.operations.symlink, path, os.fsencode(target))

    def readlink(self, path: str) -> str:
        with self.at(path) as number:
            return os.fsdecode(self.call(self.operations.readlink, number, self.caller))

    def mkfifo(self, path: str, mode: int = 0o644) -> None:
        self._made(self.operations.mknod, path, mode | 0o010000, 0)

    def chmod(self, path: str, mode: int) -> None:
        kind = self.stat(path).mode & ~0o7777
        self._set(path, _fields(update_mode=True), st_mode=kind | mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        fields = _fields(update_uid=uid >= 0, update_gid=gid >= 0)
        self._set(path, fields, st_uid=max(uid, 0), st_gid=max(gid, 0))

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        fields = _fields(update_atime=atime_ns is not None, update_mtime=mtime_ns is not None)
        self._set(path, fields, st_atime_ns=atime_ns or 0, st_mtime_ns=mtime_ns or 0)

    def _set(self, path: str, fields: pyfuse3.SetattrFields, **values: int) -> None:
        wanted = pyfuse3.EntryAttributes()
        for name, value in values.items():
            setattr(wanted, name, value)
        with self.at(path) as number:
            self.call(self.operations.setattr, number, wanted, fields, None, self.caller)

    def getxattr(self, path: str, name: str) -> bytes:
        with self.at(path) as number:
            return self.call(self.operations.getxattr, number, os.fsencode(name), self.caller)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        with self.at(path) as number:
            self.call(self.operations.setxattr, number, os.fsencode(name), value, self.caller)

    def removexattr(self, path: str, name: str) -> None:
        with self.at(path) as number:
            self.call(self.operations.removexattr, number, os.fsencode(name), self.caller)

    def listxattr(self, path: str) -> list[str]:
        with self.at(path) as number:
            return [os.fsdecode(name) for name in self.call(self.operations.listxattr, number, self.caller)]

    def statvfs(self, path: str) -> os.statvfs_result:
        found = self.call(self.operations.statfs, self.caller)
        return cast(os.statvfs_result, found)


def _fields(**updated: bool) -> pyfuse3.SetattrFields:
    names = ("atime", "mtime", "ctime", "mode", "uid", "gid", "size")
    every = {f"update_{name}": False for name in names} | updated
    return cast(pyfuse3.SetattrFields, SimpleNamespace(**every))


def _seen(found: pyfuse3.EntryAttributes) -> Seen:
    return Seen(
        ino=found.st_ino,
        mode=found.st_mode,
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
    )
