"""What people said of single files goes where the names go, and is on the disk when it says so."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cachefs.cache.wishes import Wishes
from cachefs.fs import renaming
from cachefs.fs.operations import Operations
from cachefs.fs.rename import EXCHANGE, Moved, Step, carry_out
from cachefs.model import Asked, FileKey
from tests.engine.cachekit import key, opened
from tests.engine.fskit import TIMEOUT_S, Kernel, Rooms, rooms
from tests.engine.plankit import written

FILM, OTHER = "Films/Heat.mkv", "Films/Ronin.mkv"


@pytest.mark.parametrize(
    ("old", "new", "exchanged", "then"),
    [
        ("a/b/c", "d", False, {"d": 1.0, "a/e": 2.0, "a b": 3.0}),
        ("a", "z/y", False, {"z/y/b/c": 1.0, "z/y/e": 2.0, "a b": 3.0}),
        ("a/b/c", "a/e", False, {"a/e": 1.0, "a b": 3.0}),
        ("a/b/c", "a/e", True, {"a/e": 1.0, "a/b/c": 2.0, "a b": 3.0}),
        ("a/b", "x", True, {"x/c": 1.0, "a/e": 2.0, "a b": 3.0}),
        ("x", "a/b", True, {"x/c": 1.0, "a/e": 2.0, "a b": 3.0}),
        ("new", "a/e", False, {"a/b/c": 1.0, "a/e": 2.0, "a b": 3.0}),
        ("a/", "z", False, {"a/b/c": 1.0, "a/e": 2.0, "a b": 3.0}),
    ],
)
def test_a_wish_goes_where_its_name_goes(old: str, new: str, exchanged: bool, then: dict[str, float]) -> None:
    said = [Asked(key(path), at) for path, at in {"a/b/c": 1.0, "a/e": 2.0, "a b": 3.0}.items()]
    wishes = Wishes(said, written, lambda _: False)
    told = wishes.renamed(key(old), key(new), exchanged=exchanged)
    assert {asked.key.path: asked.at for asked in wishes.all()} == then
    assert told == (set(wishes.all()) != set(said))


@asynccontextmanager
async def with_wish(tmp_path: Path, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Rooms]:
    async with rooms(tmp_path, timeout_s=timeout_s) as fs:
        for path in (FILM, OTHER):
            (fs.folder / path).parent.mkdir(exist_ok=True)
            (fs.folder / path).write_bytes(b"0123456789")
        fs.store.wishes.add(Asked(fs.key(FILM), 1.0))
        await fs.store.wishes.save()
        yield fs


def said(fs: Rooms) -> dict[FileKey, float]:
    return {asked.key: asked.at for asked in fs.store.wishes.all()}


@pytest.mark.parametrize("moved", [False, True])
async def test_a_wish_follows_the_renaming_of_its_file_and_of_its_folder_even_if_a_kill_follows(
    tmp_path: Path, moved: bool
) -> None:
    ssd, killed = tmp_path / "ssd", tmp_path / "as the kill left it"
    async with with_wish(tmp_path) as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)
        if moved:
            await fs.moved(FILM)
        await trio.to_thread.run_sync(kernel.rename, FILM, "Films/Heat (1995).mkv")
        assert said(fs) == {fs.key("Films/Heat (1995).mkv"): 1.0}
        await trio.to_thread.run_sync(kernel.rename, "Films", "Old")
        assert said(fs) == {fs.key("Old/Heat (1995).mkv"): 1.0}
        await trio.to_thread.run_sync(kernel.rename, "Old/Heat (1995).mkv", "Old/Ronin.mkv", EXCHANGE)
        with pytest.raises(FileNotFoundError):
            await trio.to_thread.run_sync(kernel.rename, "Old/Ronin.mkv", "nowhere/Ronin.mkv")
        shutil.copytree(ssd, killed)
        last = {fs.key("Old/Ronin.mkv"): 1.0}
        assert said(fs) == last
    shutil.rmtree(ssd)
    killed.rename(ssd)
    async with rooms(tmp_path) as fs:
        assert said(fs) == last


@pytest.mark.expected_warnings("the cache folder .* is away")
async def test_what_is_said_while_the_ssd_is_away_is_written_once_it_is_back(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    async with opened(root) as store:
        root.rename(tmp_path / "unplugged")
        await store.probe()
        store.wishes.add(Asked(key("a"), 1.0))
        await store.wishes.save()
        (tmp_path / "unplugged").rename(root)
        with trio.fail_after(20):
            while store.away:
                await store.probe()
        await store.wishes.save()
    async with opened(root) as store:
        assert store.wishes.all() == (Asked(key("a"), 1.0),)


async def test_a_renaming_that_concerns_no_wish_writes_nothing(tmp_path: Path) -> None:
    async with with_wish(tmp_path) as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)
        before = os.stat(tmp_path / "ssd" / "index.sqlite-wal")
        await trio.to_thread.run_sync(kernel.rename, OTHER, "Films/other")
        after = os.stat(tmp_path / "ssd" / "index.sqlite-wal")
        assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


@pytest.mark.expected_warnings("is offline .no answer within")
async def test_a_wish_survives_a_renaming_that_its_source_carries_out_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(step: Step) -> Moved:
        moved = carry_out(step)
        go_on.wait(20)
        return moved

    go_on, new = threading.Event(), "Films/Heat (1995).mkv"
    monkeypatch.setattr(renaming, "carry_out", late)
    async with with_wish(tmp_path, timeout_s=1.0) as fs:
        kernel = Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)
        fs.store.wishes.add(Asked(fs.key(OTHER), 2.0))
        with pytest.raises(OSError, match="rror"):
            await trio.to_thread.run_sync(kernel.rename, FILM, new)
        assert said(fs) == {fs.key(FILM): 1.0, fs.key(new): 1.0, fs.key(OTHER): 2.0}
        for path in (FILM, new):
            assert not fs.store.wishes.gone(fs.key(path)), "nobody knows yet"
        go_on.set()
        [source] = fs.union.sources.values()
        with trio.fail_after(20):
            while not fs.store.wishes.gone(fs.key(FILM)):
                await source.probe_once()
        assert said(fs) == {fs.key(new): 1.0, fs.key(OTHER): 2.0}
