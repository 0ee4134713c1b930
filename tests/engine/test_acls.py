"""When the source is asked for an ACL, and when what is known of it will do."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from cachefs.fs.acls import ACCESS, Acls
from cachefs.model import FileKey, SourceName
from tests.engine.fskit import Rooms, rooms

_ENTRIES = ((1, 7, 2**32 - 1), (2, 4, 7001), (4, 0, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1))
NAMED = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in _ENTRIES)
"""Somebody else may read the file."""


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms(tmp_path) as made:
        (made.folder / "film").write_bytes(b"film")
        os.setxattr(made.folder / "film", ACCESS, NAMED)
        yield made


def reads(fs: Rooms) -> int:
    return fs.source.asked.count("_read")


async def learn(fs: Rooms, acls: Acls) -> None:
    """Until the source is not asked any more: what changed a moment ago may change again unseen."""
    node = await fs.node("film")
    with trio.fail_after(10):
        while True:
            before = reads(fs)
            await acls.access(node)
            if reads(fs) == before:
                return


async def test_an_acl_is_read_again_only_when_its_file_was_changed(fs: Rooms) -> None:
    acls = Acls(fs.union)
    node = await fs.node("film")
    assert await acls.access(node) == NAMED
    await learn(fs, acls)
    before = list(fs.source.asked)
    assert await acls.access(node) == NAMED
    assert fs.source.asked == before, "the source is not asked for anything within its ttl"
    os.removexattr(fs.folder / "film", ACCESS)
    await fs.union.attributes(node)
    assert await acls.access(node) == b""
    assert reads(fs) > before.count("_read")


@pytest.mark.parametrize("known", [True, False])
async def test_an_acl_of_a_source_that_is_away_is_the_last_one_known_and_asked_for_again(
    fs: Rooms, known: bool, expected_warnings: list[str]
) -> None:
    expected_warnings.append("is offline")
    acls = Acls(fs.union)
    node = await fs.node("film")
    if known:
        await learn(fs, acls)
        os.chmod(fs.folder / "film", 0o600)
        await fs.union.attributes(node)

    def away(_: str) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    fs.source.gate = away
    assert await acls.access(node) == (NAMED if known else b"")
    assert not fs.source.online
    fs.source.gate = lambda _: None
    await fs.source.probe_once()
    with trio.fail_after(10):
        assert await acls.guessed() == [node.number]
    assert (await acls.access(node))[:4] == NAMED[:4]


async def test_the_acls_of_cached_files_and_their_folders_are_known_before_anybody_asks(fs: Rooms) -> None:
    (fs.folder / "folder").mkdir()
    (fs.folder / "film").rename(fs.folder / "folder" / "film")
    acls = Acls(fs.union)
    fs.union.remembering.cached([FileKey(SourceName("gone"), "film"), fs.key("folder/film")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acls.run)
        for _ in range(1000):
            if reads(fs) == 3:
                break
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert reads(fs) == 3
