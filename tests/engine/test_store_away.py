"""An SSD that goes away: what stands in its place is left alone, and what it held is used again when it is back."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.cache.folder import Folder, Mark
from cachefs.cache.metadata import last_seen, open_metadata
from cachefs.cache.shelf import FORGET_S
from cachefs.cache.store import Store
from cachefs.errors import CacheError
from cachefs.model import Asked, DropCause, FileKey, Pin
from tests.engine.cachekit import begun, cached, content, key, listed, names, opened, source_file
from tests.engine.copykit import FakeSource, plan_of, until_cached, working

AWAY = pytest.mark.expected_warnings("the cache folder .* is away")


class Socket:
    """Where the cache folder is plugged in; without it an empty folder stands there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unplugged = root.with_name("unplugged")

    def unplug(self) -> None:
        self.root.rename(self._unplugged)
        self.root.mkdir()

    def plug_in(self) -> None:
        shutil.rmtree(self.root)
        self._unplugged.rename(self.root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def socket(root: Path) -> Socket:
    return Socket(root)


async def until_back(store: Store) -> None:
    with trio.fail_after(20):
        while store.away:
            await store.probe()


async def until_refused(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Until what stands in the SSD's place was looked at, and is not it."""
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(20):
        while "is another folder than before" not in caplog.text:
            assert store.away
            await store.probe()


@AWAY
async def test_nothing_is_written_where_the_ssd_was(root: Path, socket: Socket) -> None:
    async with opened(root) as store:
        await cached(store, "held")
        socket.unplug()
        await cached(store, "before it is found out")
        assert os.listdir(root) == []
        await store.probe()
        with pytest.raises(CacheError):
            await begun(store, source_file("a"))
        with pytest.raises(CacheError):
            await store.device_tag("a disk")
        await store.drop(names("held"), DropCause.CHANGED)
        await store.remove_doomed()
    assert os.listdir(root) == []


@AWAY
async def test_an_ssd_that_is_away_holds_nothing_and_is_told_of_once(
    root: Path, socket: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[FileKey] = []
    async with opened(root) as store:
        await cached(store, "held")
        store.follow(told.append, tuple)
        socket.unplug()
        for _ in range(3):
            await store.trouble(CacheError("it fails"))
        assert store.get(key("held")) is None
        assert told == [key("held")]
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.WARNING]


@AWAY
async def test_what_it_held_is_used_again_but_for_what_was_changed(root: Path, socket: Socket) -> None:
    async with opened(root) as store:
        kept = await cached(store, "kept", b"kept")
        for path in ("changed", "in/deleted"):
            await cached(store, path)
        socket.unplug()
        await store.probe()
        await store.drop(names("changed"), DropCause.CHANGED)
        store.gone(key("in"))
        socket.plug_in()
        await until_back(store)
        assert {entry.key.path for entry in store.inventory().entries} == {"kept"}
        assert not store.is_fresh(key("kept"), 1e9), "its source has not been asked"
        assert content(store, kept) == b"kept"
        later = await cached(store, "later", b"later")
        assert later.id > kept.id
    assert listed(root) == {"files/Media/kept", "files/Media/later"}
    async with opened(root) as store:
        assert {entry.key.path for entry in store.inventory().entries} == {"kept", "later"}


@AWAY
async def test_a_number_is_never_given_to_a_second_copy(root: Path, socket: Socket) -> None:
    async with opened(root) as store:
        first = await begun(store, source_file("first"))
        shutil.rmtree(root / "partial")
        (root / "partial").touch()
        with pytest.raises(CacheError):
            await begun(store, source_file("no row has its number"))
        (root / "partial").unlink()
        socket.unplug()
        await store.probe()
        assert store.record(first.id, 0, 10) is None
        socket.plug_in()
        await until_back(store)
        assert (await begun(store, source_file("a"))).id == first.id + 2


@AWAY
async def test_another_cache_in_its_place_is_not_used(
    root: Path, socket: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(root) as store:
        await cached(store, "held")
        socket.unplug()
        async with opened(root) as other:
            await cached(other, "older")
        await store.probe()
        await until_refused(store, caplog)
        assert store.get(key("older")) is None
    assert listed(root) == {"files/Media/older"}


def test_an_empty_folder_on_another_disk_is_not_taken_for_the_ssd(root: Path) -> None:
    root.mkdir()
    with pytest.raises(CacheError, match="is the SSD mounted"):
        Folder.take_again(str(root), Mark("its mark", root.stat().st_dev + 1))
    assert os.listdir(root) == []


def test_a_folder_that_is_missing_is_not_made_on_another_disk(root: Path) -> None:
    with pytest.raises(CacheError, match="No such file"):
        Folder.take_again(str(root), Mark("its mark", root.parent.stat().st_dev + 1))
    assert not root.exists()


@AWAY
async def test_a_cache_folder_that_was_deleted_is_made_anew(root: Path) -> None:
    async with opened(root) as store:
        await cached(store, "held")
        shutil.rmtree(root)
        await store.probe()
        assert "No such file" in store.away
        await until_back(store)
        assert store.get(key("held")) is None
        await cached(store, "new")
    assert listed(root) == {"files/Media/new"}


@AWAY
async def test_copying_goes_on_when_the_ssd_is_back(root: Path, socket: Socket, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = FakeSource(tmp_path / "source")
    async with opened(root) as store, working(store, source) as copiers:
        socket.unplug()
        await store.probe()
        copiers.follow(plan_of(source.write("a", b"a"), source.write("b", b"b")))
        await wait_all_tasks_blocked()
        assert not copiers.progress()
        socket.plug_in()
        await until_back(store)
        await until_cached(store, "a", "b")


async def test_who_changes_a_file_does_not_wait_for_an_index_that_hangs(root: Path, mock_clock: MockClock) -> None:
    async with opened(root) as store:
        await cached(store, "a")
        await cached(store, "b")
        with closing(sqlite3.connect(root / "index.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else can write now
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.drop, names("a"), DropCause.CHANGED)
                await wait_all_tasks_blocked()
                mock_clock.jump(FORGET_S)
            await store.drop(names("b"), DropCause.CHANGED)  # it is known by now, so at once
            assert not store.away
        await store.remove_doomed()
    async with opened(root) as store:
        assert not store.inventory().entries


async def test_a_stop_does_not_wait_for_an_ssd_that_hangs(root: Path) -> None:
    answer = threading.Event()
    try:
        with trio.fail_after(10):
            async with opened(root) as store, trio.open_nursery() as nursery:
                nursery.start_soon(store.run_housekeeping)
                nursery.start_soon(_is_answered, store, answer)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    finally:
        answer.set()


async def _is_answered(store: Store, answer: threading.Event) -> None:
    with pytest.raises(OSError, match="no answer"):
        await store.on_ssd(answer.wait)


@AWAY
async def test_what_folders_hold_is_remembered_again(root: Path, socket: Socket) -> None:
    async with opened(root) as store:
        async with open_metadata(str(root)) as metadata:
            metadata.note(key("seen"), b"before")
            await metadata.save()
            socket.unplug()
            await store.probe()
            with closing(sqlite3.connect(root.with_name("unplugged") / "folders.sqlite")) as other:
                other.execute("DROP TABLE folders")
                other.commit()
            for listing in (b"lost", b"lost as well"):
                metadata.note(key("away"), listing)
                await metadata.save()
            assert os.listdir(root) == []
            socket.plug_in()
            await until_back(store)
            metadata.note(key("seen"), b"after")
            await metadata.save()
            assert await metadata.recall(key("seen")) == b"after"
        async with open_metadata(str(root)) as metadata:
            assert await metadata.recall(key("seen")) == b"after"


@AWAY
async def test_what_an_ssd_knew_of_folders_before_it_was_away_is_not_believed(root: Path, socket: Socket) -> None:
    """What was seen meanwhile is nowhere; what was written shortly before may not have got to the disk."""
    async with opened(root) as store:
        async with open_metadata(str(root)) as metadata:
            metadata.note(key("earlier"), b"from an earlier start")
        async with open_metadata(str(root)) as metadata:
            for name in ("changes", "stays"):
                metadata.note(key(name), b"before")
            await metadata.save()
            socket.unplug()
            await store.probe()
            metadata.note(key("changes"), b"meanwhile")
            await metadata.save()
            assert await metadata.recall(key("changes")) is None
            socket.plug_in()
            await until_back(store)
            recalled = [await metadata.recall(key(name)) for name in ("changes", "stays", "earlier")]
            assert recalled == [None, None, b"from an earlier start"]
            metadata.note(key("stays"), b"as before")
            await metadata.save()
            recalled = [await metadata.recall(key(name)) for name in ("changes", "stays")]
            assert recalled == [None, b"as before"]
        async with open_metadata(str(root)) as metadata:
            assert await metadata.recall(key("changes")) is None


@pytest.mark.parametrize("listing", ["no bytes", 7, b"other bytes"])
async def test_what_is_no_listing_is_remembered_by_nobody(tmp_path: Path, listing: object) -> None:
    """A damaged file may hold anything."""
    root, media = tmp_path / "cache", key("")
    async with opened(root), open_metadata(str(root)) as metadata:
        metadata.note(media, b"listing")
        await metadata.save()
        assert last_seen(str(root), media.source) == b"listing"
        with closing(sqlite3.connect(root / "folders.sqlite")) as damage:
            damage.execute("UPDATE folders SET listing = ?", (listing,))
            damage.commit()
        assert await metadata.recall(media) is None
        assert last_seen(str(root), media.source) is None


@AWAY
async def test_what_only_the_index_has_is_written_again_when_the_ssd_comes_back_without_it(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    pin, asked = Pin("Shows", "", 1.0), Asked(key("a"), 1.0)
    async with opened(root) as store:
        tags = {await store.device_tag(device) for device in ("disk", "other disk")}
        await store.add_pin(pin)
        store.wishes.add(asked)
        await store.wishes.save()
        shutil.rmtree(root)  # by somebody who wants an empty cache
        await store.probe()
        await until_back(store)
        assert await store.device_tag("a new disk") not in tags
    async with opened(root) as store:
        assert store.pins() == (pin,)
        assert store.wishes.all() == (asked,)
        assert {await store.device_tag(device) for device in ("disk", "other disk")} == tags
