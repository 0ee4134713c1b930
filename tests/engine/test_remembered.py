"""What is remembered of a folder is what was seen of it last, whoever was answered first."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.fs import reach
from cachefs.fs.inodes import ROOT
from cachefs.fs.leaves import Listing
from cachefs.fs.reach import FolderRead
from cachefs.fs.remembered import NoMemory, Remembered
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.model import FileKey
from cachefs.paths import Layout
from tests.engine.test_behind import MEDIA, NoCache, tag

FOLDER, FILM = FileKey(MEDIA, ""), FileKey(MEDIA, "film")
AT_MOST_S = 20
MOST = 100


class Memory(NoMemory):
    """Of one folder; ``slowly`` is what it takes to recall it."""

    def __init__(self) -> None:
        self.packed: bytes | None = None
        self.slowly: trio.Event | None = None
        self.asked = trio.Event()

    def note(self, folder: FileKey, listing: bytes) -> None:
        self.packed = listing

    async def recall(self, folder: FileKey) -> bytes | None:
        packed, slowly, self.slowly = self.packed, self.slowly, None
        self.asked.set()
        if slowly is not None:
            await slowly.wait()
        return packed


def packed(folder: Path) -> bytes:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = Listing.read(opened, MOST).pack(opened)
    finally:
        os.close(opened)
    assert found is not None
    return found


async def test_what_was_read_before_a_change_does_not_replace_what_was_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film").touch()
    source = Source(MEDIA, str(tmp_path), timeout_s=AT_MOST_S, ttl_s=5)
    union = Union([source], Layout((MEDIA,)), NoCache(), tag, Memory())
    await union.open_sources()
    assert source.watches is not None, "this test needs a local file system"
    root, has_read, go_on, read_folder = union.node(ROOT), trio.Event(), threading.Event(), reach.read_folder

    def slowly(*args: Any) -> FolderRead:
        monkeypatch.setattr(reach, "read_folder", read_folder)
        found = read_folder(*args)
        trio.from_thread.run_sync(has_read.set)
        assert go_on.wait(AT_MOST_S)
        return found

    try:
        with trio.fail_after(AT_MOST_S):
            await union.contents.read(root, MOST)  # from now on it is watched, and known for certain
            union.touched((FILM,))
            monkeypatch.setattr(reach, "read_folder", slowly)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(union.contents.read, root, MOST)
                await has_read.wait()
                (tmp_path / "film").write_bytes(b"written through the mount")
                union.touched((FILM,))
                await union.contents.read(root, MOST)
                go_on.set()
            certain = await union.certainty.under(FOLDER)
        seen = certain.listing.named("film") if certain is not None else None
        assert seen is not None
        assert seen.size == len(b"written through the mount")
    finally:
        go_on.set()
        source.close()


async def test_what_is_remembered_while_it_is_recalled_is_what_counts(tmp_path: Path) -> None:
    memory = Memory()
    remembered = Remembered(memory)
    (tmp_path / "film").touch()
    memory.packed, memory.slowly = packed(tmp_path), (slowly := trio.Event())
    (tmp_path / "film").write_bytes(b"new")
    sizes = []

    async def recall() -> None:
        known = await remembered.folder(FOLDER)
        seen = known.listing.named("film") if known is not None else None
        sizes.append(seen.size if seen is not None else None)

    with trio.fail_after(AT_MOST_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await memory.asked.wait()
            remembered.remember(FOLDER, packed(tmp_path))
            slowly.set()
        await recall()
    assert sizes == [3, 3]
