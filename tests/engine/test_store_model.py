"""The store against a model of it: whatever happens in whatever order, a crash included, the disk holds what memory
says, and memory what was promised."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs.cache.store import Refused, Store
from cachefs.cache.upkeep import name_of
from cachefs.model import CacheEntry, DropCause, EntryState, SourceFile
from tests.engine.cachekit import content, key, listed, names, opened, source_file, write

PATHS = ("a", "a/b", "a/b/c", "d/e")
STEPS = ("begin", "write", "checkpoint", "publish")
ACTIONS = ("copy", "copy", *STEPS, "drop", "observe other", "remove", "restart", "crash")


@dataclass(slots=True)
class World:
    """The model: which version of each file the source has, and the promises made so far."""

    root: Path
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 1))
    durable: dict[str, int] = field(default_factory=dict)
    """Bytes that a crash may not take, by path."""
    crashes: int = 0

    def data(self, path: str) -> bytes:
        return f"{path} {self.versions[path]:03}".encode()

    def file(self, path: str) -> SourceFile:
        return source_file(path, len(self.data(path)), mtime_ns=self.versions[path])


async def act(world: World, store: Store, action: str, path: str) -> None:
    entry = store.get(key(path))
    if action == "begin":
        answer = await store.begin(world.file(path), "because", 1.0)
        assert answer is not Refused.NO_ROOM
    elif action == "copy":
        for step in ("begin", *["write"] * 4, "publish"):
            await act(world, store, step, path)
    elif action == "drop":
        await store.drop(names(path), DropCause.CHANGED)
        world.durable.pop(path, None)
    elif action == "observe other":
        world.versions[path] += 1
        store.observe(world.file(path))
        world.durable.pop(path, None)
    elif action == "remove":
        await store.remove_doomed()
    elif entry is not None and entry.state is EntryState.COPYING:
        await advance(world, store, action, entry)


async def advance(world: World, store: Store, action: str, entry: CacheEntry) -> None:
    path, data = entry.key.path, world.data(entry.key.path)
    if action == "write":
        at = entry.ranges.total
        await write(store, entry, data[at : at + 3], at=at)
    elif action == "checkpoint":
        await store.checkpoint(entry)
        world.durable[path] = entry.ranges.total
    elif action == "publish" and entry.ranges.covers(0, entry.size):
        assert await store.publish(entry, world.file(path)) is not None
        world.durable = {other: done for other, done in world.durable.items() if not conflict(other, path)}
        world.durable[path] = entry.size


def conflict(one: str, other: str) -> bool:
    return one.startswith(f"{other}/") or other.startswith(f"{one}/")


def check_memory(world: World, store: Store) -> None:
    """Every byte that would be served is the source's byte."""
    for entry in store.inventory().entries:
        path = entry.key.path
        assert entry.fingerprint.same_file(world.file(path).fingerprint)
        for span in entry.ranges.spans:
            assert content(store, entry)[span.start : span.end] == world.data(path)[span.start : span.end]


async def check_disk(world: World, store: Store) -> None:
    """The files of live entries, and no others."""
    await store.remove_doomed()
    entries = store.inventory().entries
    assert listed(world.root) == {name_of(entry) for entry in entries}
    assert store.space().used_bytes == sum(entry.size for entry in entries)


def check_promises(world: World, store: Store) -> None:
    """After a start: what was durable is there, and nothing that the source does not have is believed."""
    for path in PATHS:
        entry = store.get(key(path))
        found = entry.ranges.total if entry is not None else 0
        assert not store.is_fresh(key(path), 1e9)
        store.observe(world.file(path))
        assert found >= world.durable.get(path, 0)


async def live_through(world: World, actions: list[tuple[str, str]]) -> None:
    rest = iter([*actions, ("restart", "a")])
    while True:
        async with opened(world.root) as store:
            check_promises(world, store)
            check_memory(world, store)
            for action, path in rest:
                if action in ("restart", "crash"):
                    break
                await act(world, store, action, path)
                check_memory(world, store)
            else:
                return
            picture = world.root.with_name(f"crashed {world.crashes}")
            if action == "crash":
                shutil.copytree(world.root, picture)
            else:
                await check_disk(world, store)
        if action == "crash":
            world.root = picture
            world.crashes += 1


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(PATHS)), min_size=5, max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_disk_memory_and_promises_agree_whatever_happens(actions: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(live_through, World(Path(folder) / "cache"), actions)


def test_long_life_of_one_name() -> None:
    life = [
        ("begin", "a"),
        *[("write", "a")] * 2,
        ("checkpoint", "a"),
        ("crash", "a"),
        ("begin", "a"),
        ("publish", "a"),
    ]
    again = [("begin", "a"), *[("write", "a")] * 2, ("publish", "a"), ("crash", "a"), ("observe other", "a")]
    below = [("begin", "a/b"), *[("write", "a/b")] * 3, ("publish", "a/b"), ("crash", "a"), ("drop", "a/b")]
    with tempfile.TemporaryDirectory() as folder:
        trio.run(live_through, World(Path(folder) / "cache"), [*life, *again, *below, *again, *below])
