"""Moved files that get the name of a file that is kept on the SSD: one that may be the only one, and says nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cachefs.cache import label
from cachefs.errors import CacheError
from tests.engine.cachekit import MEDIA
from tests.engine.fskit import Rooms, rooms
from tests.engine.test_adoption import lose_index
from tests.engine.test_moving import CONTENT, OTHER, kernel_of, put, shown

pytestmark = pytest.mark.expected_warnings(
    r"the index .* is gone", r"files on the SSD that say nothing of themselves, and may be the only ones, are kept"
)
COMES = "Casino.mkv"


def files_of(tmp_path: Path) -> Path:
    return tmp_path / "ssd" / "files" / MEDIA


async def _lose_what_is_known_of(tmp_path: Path, kept: str) -> None:
    """Two files move, and neither the index nor the file ``kept`` says afterwards that the latter did."""
    async with rooms(tmp_path) as fs:
        put(fs, kept, CONTENT)
        put(fs, COMES, OTHER)
        await fs.moved(kept)
        await fs.moved(COMES)
    os.removexattr(files_of(tmp_path) / kept, label.NAME)
    lose_index(tmp_path / "ssd")


async def _rename(fs: Rooms, new: str) -> None:
    await trio.to_thread.run_sync(kernel_of(fs).rename, COMES, new)


@pytest.mark.parametrize(
    ("kept", "folders", "new"),
    [
        ("Heat.mkv", (), "Heat.mkv"),
        ("Heat", ("Heat",), "Heat/Casino.mkv"),
        ("Heat/Disc 1/Heat.mkv", (), "Heat"),
    ],
    ids=["its name", "below its name", "the name of a folder above it"],
)
async def test_no_moved_file_that_is_renamed_takes_the_place_of_a_kept_one(
    tmp_path: Path, kept: str, folders: tuple[str, ...], new: str
) -> None:
    await _lose_what_is_known_of(tmp_path, kept)
    async with rooms(tmp_path) as fs:
        kernel = kernel_of(fs)
        for folder in ("Heat/Disc 1", "Heat"):
            if (fs.folder / folder).is_dir():
                await trio.to_thread.run_sync(kernel.rmdir, folder)
        for folder in folders:
            await trio.to_thread.run_sync(kernel.mkdir, folder)
        await _rename(fs, new)
        assert await shown(fs) == {new: OTHER}
        assert (fs.folder / new).read_bytes() == OTHER
        assert (files_of(tmp_path) / kept).read_bytes() == CONTENT
    async with rooms(tmp_path) as fs:
        assert await shown(fs) == {new: OTHER}
        assert (files_of(tmp_path) / kept).read_bytes() == CONTENT


async def test_the_store_itself_refuses_a_moved_file_the_name_of_a_kept_one(tmp_path: Path) -> None:
    await _lose_what_is_known_of(tmp_path, "Heat.mkv")
    async with rooms(tmp_path) as fs:
        with pytest.raises(CacheError, match="may be the only one"):
            await fs.store.moves.rename(fs.key(COMES), fs.key("Heat.mkv"))
        assert (files_of(tmp_path) / "Heat.mkv").read_bytes() == CONTENT
        assert await shown(fs) == {COMES: OTHER}
