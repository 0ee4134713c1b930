"""The folders of moved files: on the SSD, where they come and go, and at the source, which knows no such file."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from tests.engine.fskit import rooms
from tests.engine.test_moving import CONTENT, content, kernel_of, put

EPISODES = [f"Shows/Fargo/Season 1/e{number}.mkv" for number in range(3)]


async def test_a_file_that_moves_to_folders_made_anew_is_reached_at_once(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        kernel, ssd = kernel_of(fs), tmp_path / "ssd/files/Media"
        for path in EPISODES:
            put(fs, path, CONTENT)
            await fs.moved(path)
            assert (await trio.to_thread.run_sync(kernel.stat, path)).size == len(CONTENT)
            await trio.to_thread.run_sync(kernel.chmod, path, 0o600)
            assert await content(fs, path) == CONTENT
            await trio.to_thread.run_sync(kernel.unlink, path)
            assert os.listdir(ssd) == [], "the folders went with the last file in them"
