"""fsync(2) of a large file: no single call to a source lasts as long as all its bytes take."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest

from cachefs.descriptors import Descriptor
from cachefs.fs import syncing
from cachefs.fs.source import Source
from cachefs.fs.syncing import PIECE_BYTES, sync
from cachefs.model import SourceName

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Disk:
    """The disk of one file, all of whose bytes are still to be written; stands in for the three system calls."""

    def __init__(self, size: int, *, knows_pieces: bool = True) -> None:
        self.dirty = [(0, size)]
        self.knows_pieces = knows_pieces
        self.written = 0
        self.synced: list[str] = []

    def sync_file_range(self, number: int, place: ctypes.c_int64, length: ctypes.c_int64, flags: int) -> int:
        assert flags == 7, "it waits for what is under way, writes, and waits"
        if not self.knows_pieces:
            ctypes.set_errno(errno.ENOSYS)
            return -1
        self._write(place.value, place.value + length.value)
        return 0

    def fsync(self, number: int) -> None:
        self._write(0, 1 << 62)
        self.synced.append("fsync")

    def fdatasync(self, number: int) -> None:
        self._write(0, 1 << 62)
        self.synced.append("fdatasync")

    def _write(self, begin: int, end: int) -> None:
        left: list[tuple[int, int]] = []
        for start, stop in self.dirty:
            self.written += max(0, min(stop, end) - max(start, begin))
            left += [(start, min(stop, begin)), (max(start, end), stop)]
        self.dirty = [(start, stop) for start, stop in left if start < stop]


class Counting(Source):
    """Notes how many bytes the disk wrote during each call."""

    def __init__(self, path: Path) -> None:
        super().__init__(SourceName("Media"), str(path), timeout_s=30.0, ttl_s=0.0, watch_changes=False)
        self.disk = Disk(0)
        self.calls: list[int] = []

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        before = self.disk.written
        result = await super().call(function, *args)
        self.calls.append(self.disk.written - before)
        return result


async def synced(folder: Path, disk: Disk, patch: pytest.MonkeyPatch, *, datasync: bool) -> list[int]:
    """How much each call wrote."""
    source = Counting(folder)
    await source.open()
    source.disk = disk
    source.calls.clear()
    patch.setattr(syncing, "_libc", disk)
    patch.setattr("cachefs.fs.syncing.os.fsync", disk.fsync)
    patch.setattr("cachefs.fs.syncing.os.fdatasync", disk.fdatasync)
    film = Descriptor(os.open(folder / "film.mkv", os.O_RDWR | os.O_CREAT))
    try:
        os.truncate(film.number, disk.dirty[-1][1])
        await sync(source, film, datasync=datasync)
    finally:
        film.close()
    return source.calls


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 1])
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
async def test_no_call_writes_more_than_a_piece_and_all_is_synced_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, call: str
) -> None:
    disk = Disk(size)
    calls = await synced(tmp_path, disk, monkeypatch, datasync=call == "fdatasync")
    assert max(calls) <= PIECE_BYTES
    assert (sum(calls), disk.dirty, disk.synced) == (size, [], [call])


async def test_a_small_file_takes_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(await synced(tmp_path, Disk(PIECE_BYTES), monkeypatch, datasync=False)) == 1


async def test_a_file_system_that_knows_no_pieces_is_synced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(2 * PIECE_BYTES, knows_pieces=False)
    assert sum(await synced(tmp_path, disk, monkeypatch, datasync=True)) == 2 * PIECE_BYTES
    assert (disk.dirty, disk.synced) == ([], ["fdatasync"])
