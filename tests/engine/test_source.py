"""A slow folder's calls: threads, deadlines, going away and coming back. Time is trio's mock clock, which moves only
when a test moves it; threads hang on ``threading.Event`` until a test lets them go."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError, SourceError, SourceOffline, SourceTimeout
from cachefs.fs.source import COPIERS, READERS, Root, Source
from cachefs.model import SourceName

TIMEOUT_S = 30.0
OFFLINE = pytest.mark.expected_warnings(r"source Media .* is offline .no answer within 30 s")


class Hung:
    """A function for a source's thread that does not return until it is let go."""

    def __init__(self, result: object = None) -> None:
        self.started = trio.Event()
        self.returned = trio.Event()
        self.calls = 0
        self._result = result
        self._go = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self) -> object:
        self.calls += 1
        self._token.run_sync_soon(self.started.set)
        self._go.wait(30)
        self._token.run_sync_soon(self.returned.set)
        return self._result

    async def let_go(self) -> None:
        """Return once the thread is leaving the function."""
        self._go.set()
        if self.started.is_set():
            await self.returned.wait()


class Closed:
    """A result that notes who closed it."""

    def __init__(self) -> None:
        self.closed_by: list[int] = []
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed_by.append(threading.get_ident())
        self.closed.set()


@pytest.fixture
async def source(tmp_path: Path) -> Source:
    opened = Source(SourceName("Media"), str(tmp_path), timeout_s=TIMEOUT_S, ttl_s=5)
    await opened.open()
    return opened


async def time_out(clock: MockClock, call: Callable[[], Awaitable[object]], hung: Hung) -> None:
    """``call`` hangs in ``hung`` and is given up."""

    async def giving_up() -> None:
        with pytest.raises(SourceTimeout) as caught:
            await call()
        assert caught.value.errno == errno.EIO

    async with trio.open_nursery() as nursery:
        nursery.start_soon(giving_up)
        await hung.started.wait()
        clock.jump(TIMEOUT_S)


async def test_a_call_runs_in_a_thread_and_returns_what_it_returns(source: Source) -> None:
    assert await source.call(threading.get_ident) != threading.get_ident()
    assert await source.call_gently(lambda: 42) == 42


async def test_a_calls_own_error_is_the_callers_and_no_sign_of_absence(source: Source) -> None:
    with pytest.raises(FileNotFoundError):
        await source.call(os.stat, "/no/such/path")
    assert source.online


@OFFLINE
async def test_past_the_deadline_the_caller_gets_eio_and_the_source_is_offline(
    source: Source, mock_clock: MockClock
) -> None:
    hung = Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    assert not source.online
    assert source.health().problem == "no answer within 30 s"
    await hung.let_go()


@OFFLINE
async def test_an_offline_source_fails_at_once_and_starts_nothing(source: Source, mock_clock: MockClock) -> None:
    hung = Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    other = Hung()
    for call in (source.call, source.call_gently):
        with pytest.raises(SourceOffline):
            await call(other)
    with pytest.raises(SourceOffline):
        await source.change(lambda: None, other)
    assert other.calls == 0
    await hung.let_go()


async def test_a_call_within_the_deadline_leaves_the_source_online(source: Source, mock_clock: MockClock) -> None:
    hung = Hung("slow, but there")
    answers = []
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            answers.append(await source.call(hung))

        nursery.start_soon(call)
        await hung.started.wait()
        mock_clock.jump(TIMEOUT_S - 1)
        await hung.let_go()
    assert answers == ["slow, but there"]
    assert source.online


# --- going away and coming back --------------------------------------------------------------------------------------


@OFFLINE
async def test_a_probe_brings_the_source_back(source: Source, mock_clock: MockClock) -> None:
    hung = Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.probe)
        await wait_all_tasks_blocked()
        assert not source.online
        await until(mock_clock, lambda: source.online)
        assert await source.call(lambda: "back") == "back"
        nursery.cancel_scope.cancel()
    await hung.let_go()


@OFFLINE
async def test_a_source_goes_away_and_comes_back_again_and_again(source: Source, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.probe)
        for _ in range(3):
            hung = Hung()
            await time_out(mock_clock, partial(source.call, hung), hung)
            await until(mock_clock, lambda: source.online)
            await hung.let_go()
        nursery.cancel_scope.cancel()


@OFFLINE
async def test_one_probe_at_a_time_and_a_hung_one_keeps_the_source_offline(
    source: Source, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, probe = Hung(), Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    monkeypatch.setattr(source, "_look", probe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.probe)
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
        await probe.started.wait()
        for _ in range(5):
            mock_clock.jump(60)
            await wait_all_tasks_blocked()
        assert probe.calls == 1
        assert not source.online
        await probe.let_go()
        await until(mock_clock, lambda: source.online)
        nursery.cancel_scope.cancel()
    await hung.let_go()


async def until(clock: MockClock, condition: Callable[[], bool]) -> None:
    """Let probes happen until something is true; pytest's own timeout ends a test in which it never is."""
    while not condition():
        clock.jump(1)
        await trio.to_thread.run_sync(threading.get_ident)  # time for threads, which the mock clock does not wait for
        await wait_all_tasks_blocked()


# --- abandoned threads -----------------------------------------------------------------------------------------------


@OFFLINE
async def test_an_abandoned_thread_keeps_its_descriptor_until_it_returns(
    source: Source, mock_clock: MockClock, tmp_path: Path
) -> None:
    hung = Hung()
    descriptor = Descriptor(os.open(tmp_path, os.O_RDONLY))

    def use() -> None:
        with descriptor.use() as number:
            hung()
            os.fstat(number)

    await time_out(mock_clock, lambda: source.call(use), hung)
    descriptor.close()
    os.fstat(descriptor.number)  # the number is still taken
    await hung.let_go()
    await gone(descriptor.number)


async def gone(number: int) -> None:
    """Wait until a descriptor is closed; pytest's own timeout ends a test in which it never is."""
    while await trio.to_thread.run_sync(os.path.lexists, f"/proc/self/fd/{number}"):
        pass


@OFFLINE
async def test_a_late_result_is_closed_by_its_thread(source: Source, mock_clock: MockClock) -> None:
    result = Closed()
    hung = Hung(result)
    await time_out(mock_clock, lambda: source.call(hung), hung)
    assert result.closed_by == []
    await hung.let_go()
    assert await trio.to_thread.run_sync(result.closed.wait, 10)
    assert len(result.closed_by) == 1
    assert result.closed_by != [threading.get_ident()]


async def test_a_result_whose_caller_was_cancelled_is_closed(source: Source) -> None:
    result = Closed()
    hung = Hung(result)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.call, hung)
        await hung.started.wait()
        nursery.cancel_scope.cancel()
    await hung.let_go()
    assert await trio.to_thread.run_sync(result.closed.wait, 10)
    assert source.online


@OFFLINE
async def test_abandoned_threads_keep_their_places(source: Source, mock_clock: MockClock) -> None:
    hung = Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    assert source.health().threads_busy == 1
    await hung.let_go()
    while source.health().threads_busy:
        await trio.to_thread.run_sync(threading.get_ident)


@pytest.mark.parametrize(("share", "most"), [("call", READERS), ("call_gently", COPIERS)])
async def test_threads_are_bounded_and_nobody_else_waits_for_them(source: Source, share: str, most: int) -> None:
    hung = [Hung() for _ in range(most + 3)]
    async with trio.open_nursery() as nursery:
        for function in hung:
            nursery.start_soon(getattr(source, share), function)
        await wait_all_tasks_blocked()
        while sum(function.calls for function in hung) < most:
            await trio.to_thread.run_sync(threading.get_ident)
        await wait_all_tasks_blocked()
        assert sum(function.calls for function in hung) == most
        other = source.call_gently if share == "call" else source.call
        with trio.fail_after(10):
            assert await other(lambda: "at once") == "at once"
        for function in hung:
            await function.let_go()


async def test_the_loop_goes_on_while_every_thread_hangs(source: Source) -> None:
    hung = [Hung() for _ in range(READERS)]
    ticks = 0
    async with trio.open_nursery() as nursery:
        for function in hung:
            nursery.start_soon(source.call, function)
        for function in hung:
            await function.started.wait()
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
            ticks += 1
        for function in hung:
            await function.let_go()
    assert ticks == 1000


# --- changes: what they bar is free exactly once, and not before the thread has returned -----------------------------


async def test_a_change_that_returns_is_finished_once(source: Source) -> None:
    finished: list[str] = []
    assert await source.change(lambda: finished.append("now"), lambda: "done") == "done"
    assert finished == ["now"]


async def test_a_change_that_fails_is_finished_once(source: Source) -> None:
    finished: list[str] = []
    with pytest.raises(FileNotFoundError):
        await source.change(lambda: finished.append("now"), os.unlink, "/no/such/path")
    assert finished == ["now"]


@OFFLINE
@pytest.mark.parametrize("fails", [False, True])
async def test_a_late_change_is_finished_once_when_its_thread_returns(
    source: Source, mock_clock: MockClock, fails: bool
) -> None:
    finished = trio.Event()
    calls: list[int] = []

    def note() -> None:
        calls.append(threading.get_ident())
        finished.set()

    hung = Hung()

    def change() -> None:
        hung()
        if fails:
            raise OSError(errno.ENOSPC, "no room")

    await time_out(mock_clock, lambda: source.change(note, change), hung)
    await wait_all_tasks_blocked()
    assert calls == []
    await hung.let_go()
    await finished.wait()
    await wait_all_tasks_blocked()
    assert calls == [threading.get_ident()]


async def test_a_cancelled_change_is_finished_once_when_its_thread_returns(source: Source) -> None:
    finished = trio.Event()
    hung = Hung()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.change, finished.set, hung)
        await hung.started.wait()
        nursery.cancel_scope.cancel()
    assert not finished.is_set()
    await hung.let_go()
    await finished.wait()


@OFFLINE
async def test_a_change_that_never_begins_is_finished_at_once(source: Source, mock_clock: MockClock) -> None:
    hung = [Hung() for _ in range(READERS)]
    waiting = Hung()
    finished: list[str] = []
    timed_out: list[SourceError] = []

    async def call(function: Callable[[], object]) -> None:
        try:
            await source.call(function)
        except SourceError as error:
            timed_out.append(error)

    async def change() -> None:
        try:
            await source.change(lambda: finished.append("queued"), waiting)
        except SourceError as error:
            timed_out.append(error)

    async with trio.open_nursery() as nursery:
        for function in hung:
            nursery.start_soon(call, function)
        for function in hung:
            await function.started.wait()
        nursery.start_soon(change)
        await wait_all_tasks_blocked()
        mock_clock.jump(TIMEOUT_S)
    assert len(timed_out) == READERS + 1
    assert finished == ["queued"]
    with pytest.raises(SourceOffline):
        await source.change(lambda: finished.append("offline"), waiting)
    assert finished == ["queued", "offline"]
    for function in hung:
        await function.let_go()
    assert waiting.calls == 0
    assert finished == ["queued", "offline"]


# --- descriptors that are no longer needed ---------------------------------------------------------------------------


@OFFLINE
async def test_a_descriptor_discarded_while_offline_is_closed_on_return(
    source: Source, mock_clock: MockClock, tmp_path: Path
) -> None:
    hung = Hung()
    await time_out(mock_clock, lambda: source.call(hung), hung)
    descriptor = Descriptor(os.open(tmp_path, os.O_RDONLY))
    await source.discard(descriptor)
    assert not descriptor.closed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.probe)
        await until(mock_clock, lambda: descriptor.closed)
        nursery.cancel_scope.cancel()
    await gone(descriptor.number)
    await hung.let_go()


@OFFLINE
async def test_a_descriptor_whose_discarding_never_began_is_closed_on_return(
    source: Source, mock_clock: MockClock, tmp_path: Path
) -> None:
    hung = [Hung() for _ in range(READERS)]
    descriptor = Descriptor(os.open(tmp_path, os.O_RDONLY))

    async def call(function: Callable[[], object]) -> None:
        with pytest.raises(SourceTimeout):
            await source.call(function)

    async with trio.open_nursery() as nursery:
        for function in hung:
            nursery.start_soon(call, function)
        for function in hung:
            await function.started.wait()
        nursery.start_soon(source.discard, descriptor)
        await wait_all_tasks_blocked()
        mock_clock.jump(TIMEOUT_S)
    assert not descriptor.closed
    for function in hung:
        await function.let_go()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.probe)
        await until(mock_clock, lambda: descriptor.closed)
        nursery.cancel_scope.cancel()


async def test_a_closed_source_is_offline_to_whoever_still_asks(source: Source) -> None:
    source.close()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)), source.folders.at(""):
        pass


async def test_reading_since_is_the_last_read_that_somebody_waited_for(source: Source, mock_clock: MockClock) -> None:
    assert source.reading_since == float("-inf")
    mock_clock.jump(7)
    source.note_read()
    noted = trio.current_time()
    mock_clock.jump(7)
    assert source.reading_since == noted


@pytest.mark.expected_warnings("is offline")
async def test_a_folder_that_cannot_be_judged_is_not_taken_and_nothing_is_forgotten_or_left_open(
    tmp_path: Path,
) -> None:
    async def judge(root: Root) -> str:
        raise CacheError("a device that was never seen, while the SSD is away")

    source = Source(SourceName("Media"), str(tmp_path), timeout_s=TIMEOUT_S, ttl_s=1)
    await source.open()
    source.judge = judge
    source.doubt("another folder has its place")
    forgotten: list[str] = []
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(CacheError):
        await source.take(lambda: forgotten.append("what it was"))
    with pytest.raises(CacheError):
        await source.probe_once()
    assert forgotten == []
    assert os.listdir("/proc/self/fd") == open_before
    source.close()
