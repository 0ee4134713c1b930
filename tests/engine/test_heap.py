"""Free memory goes back to the system while there is work, and nobody is disturbed for it while there is none."""

from __future__ import annotations

import trio
import trio.testing

from cachefs import heap


async def test_free_memory_is_given_back_after_work_and_not_again_until_there_was_more(
    mock_clock: trio.testing.MockClock,
) -> None:
    work = 1.0
    given_back: list[float] = []
    asks, asked = trio.open_memory_channel[None](100)

    def worked_s() -> float:
        asks.send_nowait(None)
        return work

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heap.run, lambda _: given_back.append(work), worked_s)
        # A second look at the work each time that memory was given back.
        for work_by_then, looks in ((1.0, 2), (1.0, 1), (1.4, 1), (2.0, 2), (2.0, 1)):
            work = work_by_then
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(10.0)
            for _ in range(looks):
                await asked.receive()
        nursery.cancel_scope.cancel()
    assert given_back == [1.0, 2.0]


async def test_a_c_library_that_cannot_be_asked_is_let_be(autojump_clock: trio.abc.Clock) -> None:
    with trio.move_on_after(3600) as scope:
        await heap.run(None)
    assert scope.cancelled_caught
