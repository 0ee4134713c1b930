"""Which writes a read waits for."""

from __future__ import annotations

import trio
import trio.testing

from cachefs.fs.underway import Underway


async def test_a_read_waits_for_the_writes_of_its_bytes_that_had_begun() -> None:
    underway, order = Underway(), list[str]()

    async def read(start: int, end: int) -> None:
        await underway.settled(start, end)
        order.append(f"{start}-{end}")

    async with trio.open_nursery() as nursery:
        with underway.writing(10, 20):
            for start, end in ((0, 10), (20, 30), (19, 25), (0, 11), (12, 13)):
                nursery.start_soon(read, start, end)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(order) == ["0-10", "20-30"]
            with underway.writing(0, 5):  # began later
                order.clear()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["0-11", "12-13", "19-25"]


async def test_a_write_that_fails_is_over() -> None:
    underway = Underway()
    try:
        with underway.writing(0, 10):
            raise OSError
    except OSError:
        await underway.settled(0, 10)
