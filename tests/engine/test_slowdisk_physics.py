"""How the slow disk's time passes, on a clock that jumps: motor, head, throughput, parts that are slower."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.standin.slowdisk_physics import Disk, Place
from tests.standin.slowdisk_process import SlowDiskSettings
from tests.standin.slowdisk_rules import Fault, Part, Slowness

MB = 1_000_000
SETTINGS = SlowDiskSettings(wake_up_s=3.0, idle_s=20.0, bytes_per_s=40 * MB, burst_bytes=0, seek_s=0.008)


@pytest.fixture
def disk() -> Disk:
    return Disk(SETTINGS)


async def time_of(disk: Disk, kind: str, path: str = "a", size: int = 0, offset: int | None = None) -> float:
    """How long the disk takes for one operation on inode 7."""
    began = trio.current_time()
    await disk.ask(kind, path, size=size, place=None if offset is None else Place(7, offset))
    return trio.current_time() - began


async def test_every_lookup_moves_the_head(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    assert await time_of(disk, "lookup") == pytest.approx(0.008)
    assert await time_of(disk, "lookup") == pytest.approx(0.008)


async def test_attributes_of_a_known_file_wake_the_disk_but_move_no_head(
    autojump_clock: trio.testing.MockClock, disk: Disk
) -> None:
    assert await time_of(disk, "getattr") == 0
    disk.sleep()
    assert await time_of(disk, "getattr") == pytest.approx(3.0)
    assert await time_of(disk, "getattr") == 0


async def test_a_stream_that_goes_straight_on_pays_one_seek(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    assert await time_of(disk, "read", size=4 * MB, offset=0) == pytest.approx(0.108)
    assert await time_of(disk, "read", size=4 * MB, offset=4 * MB) == pytest.approx(0.1)
    assert await time_of(disk, "read", size=4 * MB, offset=400 * MB) == pytest.approx(0.108)


async def test_two_readers_share_the_throughput(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(time_of, disk, "read", "a", 20 * MB, 0)
        nursery.start_soon(time_of, disk, "read", "a", 20 * MB, 20 * MB)
    assert trio.current_time() == pytest.approx(1.0, abs=0.02)


async def test_idle_disk_falls_asleep_and_wakes_for_whoever_comes(
    autojump_clock: trio.testing.MockClock, disk: Disk
) -> None:
    await disk.ask("lookup", "a")
    await trio.sleep(19)
    assert await time_of(disk, "lookup") < 0.1
    await trio.sleep(21)
    assert disk.asleep
    async with trio.open_nursery() as nursery:
        nursery.start_soon(time_of, disk, "lookup")
        nursery.start_soon(time_of, disk, "lookup")
    assert disk.wake_ups == 1
    assert trio.current_time() == pytest.approx(0.008 + 19 + 0.008 + 21 + 3 + 0.016)


@pytest.mark.parametrize("kind", ["statfs", "flush", "release", "forget"])
async def test_what_memory_answers_wakes_nobody(autojump_clock: trio.testing.MockClock, disk: Disk, kind: str) -> None:
    disk.sleep()
    assert await time_of(disk, kind) == 0
    assert disk.asleep
    assert disk.operations[kind] == 1


async def test_woken_disk_is_ready_at_once(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    disk.sleep()
    disk.wake()
    assert await time_of(disk, "lookup") == pytest.approx(0.008)


async def test_burst_makes_up_for_a_pause_but_not_for_a_seek(
    autojump_clock: trio.testing.MockClock, disk: Disk
) -> None:
    disk.change_settings({"burst_bytes": 4 * MB})
    await trio.sleep(5)
    assert await time_of(disk, "read", size=4 * MB, offset=0) == pytest.approx(0.008)
    assert await time_of(disk, "read", size=4 * MB, offset=4 * MB) == pytest.approx(0.1)


async def test_part_of_the_tree_can_be_slower(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    disk.slow_down(Slowness(Part("a/b"), 1.0))
    disk.slow_down(Slowness(Part("c"), 0.0, 1.0 * MB))
    assert await time_of(disk, "lookup", "a/bc") == pytest.approx(0.008)
    assert await time_of(disk, "lookup", "a/b/x") == pytest.approx(1.0)
    assert await time_of(disk, "read", "c", size=2 * MB, offset=0) == pytest.approx(2.0)
    disk.release("a", frozenset())
    assert await time_of(disk, "lookup", "a/b/x") == pytest.approx(0.008)


async def test_disk_that_goes_away_fails_who_is_waiting_already(
    autojump_clock: trio.testing.MockClock, disk: Disk
) -> None:
    disk.sleep()

    async def ask() -> None:
        with pytest.raises(OSError, match="not connected"):
            await disk.ask("lookup", "a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        disk.add_fault(Fault(Part(""), 107))


async def test_released_hang_lets_everybody_go_on(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    disk.add_fault(Fault(Part("a", frozenset({"read"})), None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(time_of, disk, "read", "a", 1, 0)
        nursery.start_soon(time_of, disk, "read", "a/b", 1, 0)
        await disk.until_held(2)
        await disk.ask("lookup", "a")
        disk.release("", frozenset())
    assert disk.held == 0


async def test_reset_forgets_counts_and_nothing_else(autojump_clock: trio.testing.MockClock, disk: Disk) -> None:
    await disk.ask("read", "a", size=100)
    disk.sleep()
    disk.reset()
    assert (dict(disk.operations), disk.read_bytes, disk.asleep) == ({}, 0, True)
