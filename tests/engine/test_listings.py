"""Several who list one folder while it changes: what is there all the time is told to each of them exactly once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.fs.inodes import Node
from cachefs.fs.operations import Operations
from tests.engine.fskit import TIMEOUT_S, Kernel, Rooms, rooms
from tests.engine.wirekit import ROOT_NODE, Lister, WireKernel, wire_kernel

MANY = 1500
"""More than are looked at in one hop."""
SOME = 60
"""Several replies."""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[WireKernel]:
    (tmp_path / "sources" / "Media" / "Films").mkdir(parents=True)
    with wire_kernel(tmp_path) as made:
        yield made


def films(kernel: WireKernel, count: int) -> tuple[int, list[str]]:
    """The node of a folder, and what is in it all the time."""
    names = [f"film {number}, with the rather long name that films have.mkv" for number in range(count)]
    for name in names:
        (kernel.source / "Films" / name).write_bytes(name.encode())
    return kernel.look_up(ROOT_NODE, "Films"), sorted(names)


def test_who_reads_on_in_what_another_began_misses_no_name(kernel: WireKernel) -> None:
    folder, names = films(kernel, MANY)
    first, other = Lister(kernel, folder), Lister(kernel, folder)
    while len(first.names) < MANY * 2 // 3:
        first.go_on()
    (kernel.source / "Films" / "another").touch()
    other.go_on()
    first.finish()
    other.finish()
    for lister in (first, other):
        assert sorted(name for name in lister.names if name != "another") == names
    assert "another" in other.names


def test_a_name_has_its_place_whatever_comes_and_goes_before_it(kernel: WireKernel) -> None:
    folder, names = films(kernel, SOME)
    before, after = Lister(kernel, folder), Lister(kernel, folder)
    before.finish()
    for name in before.names[::2]:
        (kernel.source / "Films" / name).unlink()
    for number in range(SOME):
        (kernel.source / "Films" / f"new {number}").touch()
    after.finish()
    places = {told.name: told.place for told in before.told}
    stayed = [told for told in after.told if told.name in places]
    assert sorted(told.name for told in stayed if told.name in names) == sorted(before.names[1::2])
    assert all(told.place == places[told.name] for told in stayed)
    assert [told.place for told in after.told] == sorted(told.place for told in after.told)


@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_moves_or_comes_home_is_listed_once(kernel: WireKernel, seed: int) -> None:
    folder, names = films(kernel, SOME)
    chance = random.Random(seed)
    moving = chance.sample(names, 6)
    moved: set[str] = set()
    listers = [Lister(kernel, folder) for _ in range(8)]
    while going := [lister for lister in listers if not lister.is_done]:
        chance.choice(going).go_on()
        name = chance.choice(moving)
        (kernel.bring_home if name in moved else kernel.move)(f"Films/{name}")
        moved ^= {name}
    for lister in listers:
        assert sorted(lister.names) == names


def begun_without_its_last(kernel: WireKernel, folder: int) -> tuple[Lister, str]:
    """A lister who has been told all but the end of the folder, and a name that is still to come."""
    whole, lister = Lister(kernel, folder), Lister(kernel, folder)
    whole.finish()
    while len(lister.told) * 2 < len(whole.told):
        lister.go_on()
    last = whole.told[-1].name
    assert last not in lister.names
    return lister, last


def test_who_is_told_of_a_name_later_is_not_told_of_the_file_that_has_lost_it(kernel: WireKernel) -> None:
    folder, names = films(kernel, SOME)
    lister, last = begun_without_its_last(kernel, folder)
    old = kernel.look_up(folder, last)
    kernel.unlink(folder, last)
    new, handle = kernel.create(folder, last)
    kernel.release(new, handle)
    lister.finish()
    assert sorted(lister.names) == names
    assert {told.node for told in lister.told if told.name == last} <= {0, new}
    assert old != new == kernel.look_up(folder, last)


def test_who_is_told_of_a_file_later_is_not_told_the_size_that_it_had(kernel: WireKernel) -> None:
    folder, _ = films(kernel, SOME)
    old, last = begun_without_its_last(kernel, folder)
    kernel.unlink(folder, last)
    node, handle = kernel.create(folder, last)
    lister = Lister(kernel, folder)
    while lister.told[-1:] == [] or lister.told[-1].place < old.told[-1].place:
        lister.go_on()
    assert last not in lister.names
    kernel.write(node, handle, b"written since")
    lister.finish()
    kernel.release(node, handle)
    (told,) = [told for told in lister.told if told.name == last]
    assert told.node == 0 or told.size == len(b"written since")


def test_a_moved_file_that_was_deleted_is_not_told_as_it_was(kernel: WireKernel) -> None:
    folder, names = films(kernel, SOME)
    lister, last = begun_without_its_last(kernel, folder)
    kernel.move(f"Films/{last}")
    kernel.unlink(folder, last)
    node, handle = kernel.create(folder, last)
    kernel.release(node, handle)
    lister.finish()
    assert sorted(lister.names) == names
    assert {told.node for told in lister.told if told.name == last} <= {0, node}
    afterwards = Lister(kernel, folder)
    afterwards.finish()
    assert sorted(afterwards.names) == names


# --- name by name, where there is no channel -------------------------------------------------------------------------


async def by_name(fs: Rooms, scenario: Callable[[Kernel], None]) -> None:
    with trio.fail_after(TIMEOUT_S):
        await trio.to_thread.run_sync(scenario, Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder))


async def test_name_by_name_nobody_is_told_of_the_file_that_has_lost_its_name(tmp_path: Path) -> None:
    def list_while_it_is_written_anew(kernel: Kernel) -> None:
        with kernel.at("Films") as number:
            whole, slow = (kernel.call(kernel.operations.opendir, number, kernel.caller) for _ in range(2))
            last = kernel.read_folder(whole, 0)[-1].name
            found = kernel.read_folder(slow, 0, 10)
            deleted = kernel.open(f"Films/{last}")
            kernel.unlink(f"Films/{last}")
            kernel.close(kernel.open(f"Films/{last}", os.O_RDWR | os.O_CREAT))
            while batch := kernel.read_folder(slow, found[-1].position, 10):
                found += batch
        (told,) = [listed.number for listed in found if listed.name == last]
        assert told == kernel.stat(f"Films/{last}").ino != kernel.fstat(deleted).ino
        kernel.close(deleted)

    async with rooms(tmp_path) as fs:
        (fs.folder / "Films").mkdir()
        for number in range(SOME):
            (fs.folder / "Films" / f"film {number}").touch()
        await by_name(fs, list_while_it_is_written_anew)


async def test_name_by_name_a_file_that_comes_home_just_then_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rooms(tmp_path) as fs:
        (fs.folder / "Films").mkdir()
        (fs.folder / "Films" / "Heat.mkv").write_bytes(b"Heat")
        key = await fs.moved("Films/Heat.mkv")
        add_moved = fs.union.sightings.add_moved

        async def late(folder: Node, *args: Any) -> None:
            if folder.number != ROOT_NODE and fs.store.moves.get(key) is not None:
                await fs.movers.restore(key)
            await add_moved(folder, *args)

        monkeypatch.setattr(fs.union.sightings, "add_moved", late)
        listed: list[str] = []
        await by_name(fs, lambda kernel: listed.extend(name for name, _ in kernel.entries("Films")))
        assert sorted(listed) == [".", "..", "Heat.mkv"]
