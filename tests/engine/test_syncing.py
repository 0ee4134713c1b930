"""fsync(2) of a large file: no single call to a source lasts as long as all its bytes take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest

from cachefs.descriptors import Descriptor
from cachefs.fs.source import Source
from cachefs.fs.syncing import PIECE_BYTES, sync
from cachefs.model import SourceName

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Told(Source):
    """Notes what it is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(SourceName("Media"), str(path), timeout_s=30.0, ttl_s=0.0, watch_changes=False)
        self.asked: list[tuple[object, ...]] = []

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        asked: tuple[object, ...] = args
        self.asked.append((function.__name__, *asked[1:]))
        return await super().call(function, *args)


@pytest.fixture
async def source(tmp_path: Path) -> Told:
    made = Told(tmp_path)
    await made.open()
    made.asked.clear()
    return made


@pytest.fixture
def film(tmp_path: Path) -> Iterator[Descriptor]:
    descriptor = Descriptor(os.open(tmp_path / "film.mkv", os.O_RDWR | os.O_CREAT))
    yield descriptor
    descriptor.close()


async def test_a_large_file_is_synced_in_pieces_and_then_as_a_whole(source: Told, film: Descriptor) -> None:
    os.truncate(film.number, 2 * PIECE_BYTES + 1)
    await sync(source, film, datasync=True)
    pieces = [("_write_back", at * PIECE_BYTES) for at in range(3)]
    assert source.asked == [("_sync_if_small", True), *pieces, ("_sync", True)]


async def test_a_small_file_is_synced_by_one_call(source: Told, film: Descriptor) -> None:
    os.truncate(film.number, PIECE_BYTES)
    await sync(source, film, datasync=False)
    assert source.asked == [("_sync_if_small", False)]
