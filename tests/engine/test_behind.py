"""Listening to what changes behind the mount: what was heard is told, also when telling it failed at first."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import trio

from cachefs.fs.behind import Behind, Wrong
from cachefs.fs.inodes import ROOT
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.model import FileKey, SourceFile, SourceName
from cachefs.paths import Layout

MEDIA = SourceName("Media")


class NoCache:
    def observe(self, file: SourceFile) -> None: ...

    def gone(self, key: FileKey) -> None: ...

    def get(self, key: FileKey) -> None: ...

    def is_confirmed(self, key: FileKey, size: int, mtime_ns: int) -> bool:
        return False

    def holds_in(self, folder: FileKey) -> bool:
        return False


class Telling:
    """Fails the first time; then notes what is told."""

    def __init__(self) -> None:
        self.failed = False
        self.told: list[Wrong] = []
        self.done = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def tell(self, wrong: Iterable[Wrong]) -> None:
        if not self.failed:
            self.failed = True
            raise OSError("the kernel does not listen")
        self.told += wrong
        self._token.run_sync_soon(self.done.set)

    def end(self) -> None: ...


async def tag(identity: str) -> int:
    return 0


async def test_what_was_heard_and_not_told_is_told_after_a_new_start(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"film")
    source = Source(MEDIA, str(tmp_path), timeout_s=20, ttl_s=5)
    union = Union([source], Layout((MEDIA,)), NoCache(), tag)
    await union.open_sources()
    assert source.watches is not None, "this test needs a local file system"
    try:
        root = union.node(ROOT)
        film = (await union.contents.listing(root, 10)).children["film"].node
        union.inodes.looked_up(film)
        telling = Telling()
        behind = Behind(union, telling)
        with trio.fail_after(20):
            (tmp_path / "film").write_bytes(b"another film")
            await trio.lowlevel.wait_readable(source.watches.fileno())
            with pytest.raises(OSError, match="does not listen"):
                await behind.listen(source)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(behind.listen, source)
                await telling.done.wait()
                nursery.cancel_scope.cancel()
        assert Wrong(film.number, pages=True) in telling.told
        assert Wrong(ROOT, "film") in telling.told
    finally:
        source.close()


class Once:
    """Listings of which one has passed, and that no more."""

    def __init__(self) -> None:
        self._passed = [ROOT]

    async def passed(self) -> list[int]:
        if not self._passed:
            await trio.sleep_forever()
        return [self._passed.pop()]


async def test_a_listing_that_passed_is_taken_from_the_kernel_also_after_a_failure(tmp_path: Path) -> None:
    source = Source(MEDIA, str(tmp_path), timeout_s=20, ttl_s=5)
    telling = Telling()
    behind = Behind(Union([source], Layout((MEDIA,)), NoCache(), tag), telling)
    once = Once()
    with trio.fail_after(20):
        with pytest.raises(OSError, match="does not listen"):
            await behind.forget(once.passed, pages=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(behind.forget, once.passed, pages=True))
            await telling.done.wait()
            nursery.cancel_scope.cancel()
    assert telling.told == [Wrong(ROOT, pages=True)]
