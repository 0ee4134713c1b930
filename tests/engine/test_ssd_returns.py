"""An SSD that was away and is back: what was opened before is no file of it, though entries have the same ids."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.cache.filecopy import FileCopy, Outcome, Share
from cachefs.descriptors import Descriptor
from cachefs.fs.backing import Backing, Seen
from cachefs.fs.modes import Mode
from cachefs.fs.xattrs import Xattrs
from cachefs.model import EntryState
from tests.engine.fskit import Rooms, rooms
from tests.engine.test_moving import CONTENT, FILM, content, put
from tests.engine.test_routing import ME, SIZE, SRC, SSD, opened, read

AWAY = pytest.mark.expected_warnings("the cache folder .* is away")


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[Rooms]:
    async with rooms(tmp_path) as made:
        (made.folder / "a").write_bytes(SRC)
        yield made


async def replugged(fs: Rooms, change: Callable[[Path], object] = lambda root: None) -> None:
    """The SSD goes away, with every descriptor that was open, and the same folder comes back as another mount would."""
    root = fs.store._shelf.folder.root
    os.rename(root, f"{root}-gone")
    os.mkdir(root)
    await fs.store.probe()
    assert fs.store.away
    os.rmdir(root)
    shutil.copytree(f"{root}-gone", root)  # with extended attributes
    change(Path(root))
    with trio.fail_after(20):
        while fs.store.away:
            await fs.store.probe()


@AWAY
async def test_an_open_file_is_read_from_the_ssd_that_is_there(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    handle = await opened(fs)
    assert await read(fs, handle, 0, 6) == b"SOURCE"

    def change(root: Path) -> None:
        at, before = root / "files/Media/a", (root / "files/Media/a").stat()
        at.write_bytes(b"other!" * 100)
        os.utime(at, ns=(before.st_atime_ns, before.st_mtime_ns))

    await replugged(fs, change)
    await fs.union.files_asked.stat(fs.key("a"))
    assert await read(fs, handle, 0, 6) == b"other!"


@AWAY
async def test_a_copy_does_not_go_on_where_the_ssd_was(fs: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would write goes to a disk that is gone; what would be published are the holes in the new one."""
    entry = await fs.begun("a")
    copy = FileCopy(fs.store, fs.union.files, entry, share=lambda: Share(None, 1), stop=lambda: False)
    told: list[int] = []
    run = fs.union.files.run

    async def once_away(source: Any, function: Any, *args: Any) -> Any:
        result = await run(source, function, *args)
        if function.__name__ == "read_chunk" and not told:
            told.append(1)
            await replugged(fs)
        return result

    monkeypatch.setattr(fs.union.files, "run", once_away)
    outcome = await copy.run()
    assert told
    assert outcome is not Outcome.PUBLISHED
    now = fs.store.get(fs.key("a"))
    assert now is None or (now.state is EntryState.COPYING and not now.ranges.total)


@AWAY
async def test_a_file_that_is_written_after_the_return_does_not_come_home_with_older_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        newer = CONTENT[::-1]
        digest = fs.movers.carrying._digest_at_home
        once: list[int] = []

        async def meanwhile(*args: Any) -> str:
            found = await digest(*args)
            if not once:
                once.append(1)
                await replugged(fs)
                (Path(fs.store._shelf.folder.root) / "files/Media" / FILM).write_bytes(newer)
                await fs.store.moves.changed(key)
            return found

        monkeypatch.setattr(fs.movers.carrying, "_digest_at_home", meanwhile)
        await fs.movers.restore(key)
        assert once
        assert (fs.folder / FILM).read_bytes() == newer


@AWAY
async def test_what_the_kernel_read_of_it_is_given_to_nobody_who_opens_the_file_later(fs: Rooms) -> None:
    entry = await fs.published("a", data=SSD)
    handle = await opened(fs)
    inode = fs.routing._handles[handle].inode
    unbarred: list[int] = []
    spare = os.open(fs.store.file_of(entry), os.O_RDONLY)
    inode.mode = Mode.PASSTHROUGH
    inode.backing = Backing(7, entry.id, Descriptor(spare), home=Descriptor(os.dup(spare)))
    inode.backing.unbar.append(lambda: unbarred.append(1))
    await replugged(fs)
    assert (inode.backing.lost, inode.backing.is_truth, unbarred) == (True, False, [1])
    await fs.union.files_asked.stat(fs.key("a"))
    opening = await fs.routing.open(inode.node, os.O_RDONLY)
    assert opening.direct_io, "the daemon answers, from the SSD that is there"
    writer = await fs.routing.open(inode.node, os.O_RDWR)
    assert await fs.routing.write(writer.handle, 0, b"written") == 7
    assert (fs.folder / "a").read_bytes()[:7] == b"written"
    assert inode.backing.mirror is None
    inode.backing = None


# --- what is left of calls that nobody waits for ---


@AWAY
async def test_what_a_call_returns_too_late_is_closed(fs: Rooms) -> None:
    go_on, made = threading.Event(), Descriptor(os.open(os.devnull, os.O_RDONLY))

    def slow() -> Descriptor:
        go_on.wait(20)
        return made

    with pytest.raises(OSError, match="no answer"):
        await fs.store._shelf.presence.run(slow, within_s=0.01)
    go_on.set()
    with trio.fail_after(10):
        while not made.closed:  # noqa: ASYNC110  (a thread is waited for)
            await trio.sleep(0.01)


@AWAY
async def test_a_file_is_closed_though_its_ssd_is_away(fs: Rooms) -> None:
    held = Descriptor(os.open(os.devnull, os.O_RDONLY))
    fs.store._shelf.presence.went_away("a test says so")
    await fs.store.close_on_ssd(held)
    with trio.fail_after(10):
        while not held.closed:  # noqa: ASYNC110  (a thread is waited for)
            await trio.sleep(0.01)


async def test_a_thread_that_cannot_be_started_blocks_nobody_later(fs: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    presence = fs.store._shelf.presence
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
        for _ in range(20):
            with pytest.raises(OSError, match="no thread") as told:
                await presence.run(time.time)
            assert told.value.errno == errno.EAGAIN
    assert await presence.run(lambda: 5) == 5
    assert not presence.overdue(0)


# --- what changes while somebody waits ---


async def test_a_file_that_comes_home_while_it_is_opened_is_no_moved_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        node = await fs.node(FILM)
        open_moved = fs.routing._ssd.open_moved

        async def meanwhile(*args: Any) -> tuple[int, int]:
            result = await open_moved(*args)
            await fs.movers.restore(key)
            return result

        monkeypatch.setattr(fs.routing._ssd, "open_moved", meanwhile)

        def backed(descriptor: Descriptor, entry_id: int, seen: Seen) -> Backing:
            return Backing(7, entry_id, Descriptor(os.dup(descriptor.number)), seen=seen)

        monkeypatch.setattr(fs.routing.backings, "open", backed)
        monkeypatch.setattr(fs.routing.backings, "close", lambda held: None)
        handle = (await fs.routing.open(node, os.O_RDONLY)).handle
        held = fs.routing._inodes[node.number].backing
        assert held is not None
        assert not held.same, "there is another side to write to"
        assert await content(fs, FILM) == CONTENT
        await fs.routing.release(handle)


async def test_a_change_behind_the_union_while_the_last_bytes_are_copied_is_seen(
    fs: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the union remembers of a watched folder may be a tenth of a second old."""
    entry = await fs.begun("a")
    before = await fs.union.files.stat(fs.key("a"))
    copy = FileCopy(fs.store, fs.union.files, entry, share=lambda: Share(None, 1), stop=lambda: False)
    run = fs.union.files.run

    async def remembered(key: object) -> object:
        return before

    async def change(source: Any, function: Any, *args: Any) -> Any:
        result = await run(source, function, *args)
        if function.__name__ == "read_chunk":
            (fs.folder / "a").write_bytes(b"other!" * 100)
        return result

    monkeypatch.setattr(fs.union.files, "run", change)
    monkeypatch.setattr(fs.union.files, "stat", remembered)
    assert await copy.run() is Outcome.CHANGED
    assert fs.store.get(fs.key("a")) is None


# --- attributes ---


@pytest.mark.expected_warnings("source Media .* is offline")
async def test_the_copy_has_the_attributes_that_its_source_was_given(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    node, xattrs = await fs.node("a"), Xattrs(fs.union, fs.routing)
    for name in ("user.kept", "user.gone"):
        await xattrs.set(node, name, b"1", ME)
    await xattrs.remove(node, "user.gone", ME)
    assert fs.store.get(fs.key("a")) is not None, "no byte of it has changed"
    fs.source._went_away("a test says so")
    assert await xattrs.names(node, is_root=True) == ["user.kept"]
    assert await xattrs.get(node, "user.kept") == b"1"


@pytest.mark.expected_warnings("source Media .* is offline")
async def test_an_attribute_that_comes_late_overtakes_no_later_one(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        (fs.folder / "a").write_bytes(SRC)
        node, xattrs, go_on = await fs.node("a"), Xattrs(fs.union, fs.routing), threading.Event()
        fs.source.hang("_set", go_on)
        with pytest.raises(OSError, match="no answer"):
            await xattrs.set(node, "user.x", b"late", ME)
        await fs.source.probe_once()
        with pytest.raises(OSError, match="an earlier change"):
            await xattrs.set(node, "user.x", b"later", ME)
        go_on.set()
        with trio.fail_after(10):
            while fs.routing._late:  # noqa: ASYNC110  (a thread is waited for)
                await trio.sleep(0.01)
        await xattrs.set(node, "user.x", b"later", ME)
        assert os.getxattr(fs.folder / "a", "user.x") == b"later"


# --- mappings ---


@pytest.mark.expected_warnings("source away .* is offline", "what was written to away:a is on the SSD only")
async def test_a_source_that_is_away_does_not_keep_what_others_get_waiting(tmp_path: Path) -> None:
    async with rooms(tmp_path, "away", "there") as fs:
        nodes = []
        for name in ("away", "there"):
            at = fs.folders[next(key for key in fs.folders if key == name)] / "a"
            at.write_bytes(SRC)
            node = await fs.node(f"{name}/a")
            handle = (await fs.routing.open(node, os.O_RDWR)).handle
            truth = tmp_path / f"{name}.mapped"
            truth.write_bytes(SSD)
            inode = fs.routing._handles[handle].inode
            inode.backing = Backing(
                7, 1, Descriptor(os.open(truth, os.O_RDONLY)), home=Descriptor(os.open(at, os.O_RDWR))
            )
            nodes.append(inode)
        fs.union.sources[nodes[0].source.name]._went_away("a test says so")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.routing.run)
            fs.routing.backings.kernel_is_there.set()
            with trio.fail_after(20):
                while (fs.folders[nodes[1].source.name] / "a").read_bytes() != SSD:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert (fs.folders[nodes[0].source.name] / "a").read_bytes() == SRC
        await fs.routing.close()
        for inode in nodes:
            inode.backing = None
    assert len(SRC) == SIZE
