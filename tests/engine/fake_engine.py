"""An engine with canned answers, and sample values, for the tests of the control socket, the tables and the CLI."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import trio

from cachefs.control import api
from cachefs.errors import PlexUnreachable, SourceTimeout, UserError
from cachefs.model import (
    CacheEntry,
    ComponentHealth,
    CopyProgress,
    EntryState,
    Evicted,
    Explanation,
    FileKey,
    Fingerprint,
    InterestKind,
    OpenFile,
    Pin,
    Pinned,
    Plan,
    PlannedCopy,
    PlannedEviction,
    PlexFile,
    PlexPath,
    ReadCounters,
    Session,
    Skip,
    SourceFile,
    SourceHealth,
    SourceName,
    Space,
    Status,
    UnionPath,
    UserName,
    UserReport,
    Visible,
    Want,
)
from cachefs.ranges import Ranges
from cachefs.restoration import HomeProgress, HomeReport
from cachefs.verification import Finding, Progress, Report

GIB = 1024**3
MEDIA = SourceName("Media")
LATIN1 = os.fsdecode(b"Films/Am\xe9lie.mkv")
"""A name that is not UTF-8."""
LONG = "Series/" + "A very long name of a show " * 12 + "/S01E01.mkv"


def file(path: str, size: int = 2 * GIB) -> SourceFile:
    return SourceFile(FileKey(MEDIA, path), Fingerprint(size, 1_700_000_000_000_000_000), inode=12)


def sample_entries(now: float) -> tuple[CacheEntry, ...]:
    cached = CacheEntry(
        1, file(LATIN1), EntryState.CACHED, Ranges.of([(0, 2 * GIB)]), "on deck for Ann", now - 7200, now - 7000
    )
    copying = CacheEntry(2, file(LONG, 4 * GIB), EntryState.COPYING, Ranges.of([(0, GIB)]), "playing now", now - 60)
    return (replace(cached, last_read_at=now - 30), copying)


def sample_plan(now: float) -> Plan:
    kept = Want(file(LATIN1), InterestKind.ON_DECK, 0, "on deck for Ann", now)
    return Plan(
        made_at=now,
        copies=(PlannedCopy(file(LONG, 4 * GIB), InterestKind.PLAYING, "Ann plays it"),),
        evictions=(PlannedEviction(FileKey(MEDIA, "Films/Old.mkv"), GIB, "watched 3 days ago", for_space=True),),
        skips=(Skip("/data/none.mkv", "the mount has no such file"),),
        kept=(kept,),
    )


def sample_status(now: float) -> Status:
    progress = CopyProgress(FileKey(MEDIA, LONG), 4 * GIB, GIB, 40e6, "playing now")
    playing = PlexFile(PlexPath("/data/x.mkv"), GIB)
    return Status(
        version="0.1.0",
        mountpoint="/mnt/cachefs",
        pid=os.getpid(),
        started_at=now - 3600,
        plex=ComponentHealth("plex", "no answer within 60 s", now - 120, 3),
        plex_url="http://127.0.0.1:32400",
        users=(UserReport(UserName("Ann")), UserReport(UserName("Bob"), "no token for this user")),
        components=(ComponentHealth("watcher"), ComponentHealth("copiers", "the SSD is full", now - 60, 1)),
        sources=(SourceHealth(MEDIA, "/mnt/user/Media", online=False, problem="no answer", threads_busy=2),),
        space=Space(500 * GIB, 50 * GIB, 125 * GIB, 300 * GIB),
        entries_cached=61,
        entries_copying=1,
        copies=(progress,),
        reads=ReadCounters(900, 9 * GIB, 100, GIB, 2),
        sessions=(Session("1", UserName("Ann"), "Heat (1995)", (playing,), now - 600, 1800, 7200, "playing"),),
        open_files=(OpenFile(UnionPath(LATIN1), Visible.CACHED, 1, 0, GIB, 0),),
        notes=("Plex's /data is the mount's /",),
    )


class FakeRestoration:
    """Ends at once."""

    def __init__(self, report: HomeReport) -> None:
        self.progress = HomeProgress(2, 1, 10, 5, FileKey(MEDIA, LATIN1))
        self.report = report

    async def run(self) -> HomeReport:
        await trio.lowlevel.checkpoint()
        return self.report


class FakeVerification:
    """Ends at once with its report, or raises ``error``, or with ``endless`` waits; ``cancelled`` once it was."""

    def __init__(self, *findings: Finding) -> None:
        self.progress = Progress(2, 1, 10, 5, FileKey(MEDIA, LATIN1))
        self.report = Report(2, 10, findings, 1.5)
        self.error: Exception | None = None
        self.endless = False
        self.running, self.cancelled = trio.Event(), trio.Event()

    async def run(self) -> Report:
        self.running.set()
        if self.error is not None:
            raise self.error
        try:
            if self.endless:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return self.report


class FakeEngine:
    """Satisfies ``control.api.Engine``; ``asked`` holds the texts of the acts in order."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.asked: list[tuple[str, str]] = []
        self.stopped = trio.Event()
        self.hang = trio.Event()
        """Set once somebody waits for the explanation of ``hang``, which never comes."""
        self.answer_status = sample_status(now)
        self.answer_entries = sample_entries(now)
        self.answer_plan = sample_plan(now)
        self.answer_pins = (Pin("Series", "", now), Pin("Heat (1995)", "77", now))
        self.answer_verification = FakeVerification()
        self.answer_restoration = FakeRestoration(HomeReport((FileKey(MEDIA, LATIN1),), ()))
        self.states = [Visible.CACHED]
        """What ``explain`` says, one after the other; the last one stays."""
        self.waiting = ""

    @property
    def mountpoint(self) -> Path:
        return Path(self.answer_status.mountpoint)

    def status(self) -> Status:
        return self.answer_status

    async def plan(self) -> Plan:
        return self.answer_plan

    def entries(self) -> tuple[CacheEntry, ...]:
        return self.answer_entries

    def pins(self) -> tuple[Pin, ...]:
        return self.answer_pins

    async def pin(self, text: str) -> Pinned:
        self.asked.append(("pin", text))
        if text == "away":
            raise PlexUnreachable("Plex does not answer at http://127.0.0.1:32400")
        return Pinned(Pin(text, "", 5.0), "1 pinned file cannot be copied now" if text == "large.mkv" else "")

    async def unpin(self, text: str) -> bool:
        self.asked.append(("unpin", text))
        return text == "Series"

    async def evict(self, text: str) -> Evicted:
        self.asked.append(("evict", text))
        if text == "open.mkv":
            raise UserError("open.mkv is open; it stays until it is closed")
        left = (Skip("b.mkv", "it is pinned", FileKey(MEDIA, "b.mkv")),) if text == "Series" else ()
        return Evicted((FileKey(MEDIA, text),), left)

    async def accept(self, name: str, *, moved: bool) -> SourceHealth:
        self.asked.append(("accept", name))
        return SourceHealth(SourceName(name), f"/mnt/{name}")

    async def copy(self, text: str) -> FileKey:
        self.asked.append(("copy", text))
        if text == "slow.mkv":
            raise SourceTimeout("Media", 30)
        return FileKey(MEDIA, text)

    async def explain(self, text: str) -> Explanation:
        self.asked.append(("explain", text))
        if text == "hang":
            self.hang.set()
            await trio.sleep_forever()
        if text == "bug":
            raise ZeroDivisionError("seven")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        done = GIB if state is Visible.CACHED else 0
        return Explanation(UnionPath(text), state, GIB, done, ("on deck for Ann",), True, 1, self.waiting)

    def verification(self, text: str, content: bool, repair: bool) -> FakeVerification:
        self.asked.append((f"verify content={content} repair={repair}", text))
        if text == "nothing":
            raise UserError("nothing: nothing of it is cached")
        return self.answer_verification

    async def restoration(self, text: str) -> FakeRestoration:
        self.asked.append(("restore", text))
        if text == "nope":
            raise UserError("nope: no such file or folder in the mount")
        return self.answer_restoration

    def request_stop(self) -> None:
        self.stopped.set()


async def serve(
    engine: api.Engine, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Open the control socket and answer on it, until cancelled."""
    async with api.listening(path) as listener:
        await api.serve(engine, listener, task_status=task_status)
