"""What the demo says is new, from one look to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachefs.model import (
    CacheEntry,
    ComponentHealth,
    EntryState,
    FileKey,
    Fingerprint,
    InterestKind,
    Plan,
    PlannedCopy,
    ReadCounters,
    SourceFile,
    SourceName,
    Space,
    Status,
)
from cachefs.ranges import Ranges
from tests.demo.chronicle import Chronicle
from tests.demo.view import Audience, View
from tests.demo.viewing import Report
from tests.standin.slowdisk_control import DiskCounts

MB = 1_000_000


@dataclass
class FakeViewer:
    report: Report
    progress: float = 0.0


def status() -> Status:
    return Status(
        version="",
        mountpoint="",
        pid=1,
        started_at=0,
        plex=ComponentHealth("plex"),
        plex_url="",
        users=(),
        components=(),
        sources=(),
        space=Space(0, 0, 0, 0),
        entries_cached=0,
        entries_copying=0,
        copies=(),
        reads=ReadCounters(),
        sessions=(),
        open_files=(),
    )


def file(name: str, size: int) -> SourceFile:
    return SourceFile(FileKey(SourceName("Media"), f"TV/{name}"), Fingerprint(size, 1), 7)


def entry(name: str, size: int = 32 * MB, state: EntryState = EntryState.CACHED) -> CacheEntry:
    return CacheEntry(1, file(name, size), state, Ranges(), "because", 0.0)


EMPTY = View(status(), (), None, DiskCounts(), None)


def watching(state: str, progress: float = 0.0) -> View:
    viewer = FakeViewer(Report(state=state), progress)
    return replace(EMPTY, audience=Audience("Anna", "Slow Tides S01E01", viewer))  # type: ignore[arg-type]


def test_a_fact_is_told_once() -> None:
    chronicle = Chronicle()
    view = replace(EMPTY, entries=(entry("a.mkv"),))
    assert chronicle.news(view) == ["on the SSD: a (30.5 MiB)"]
    assert chronicle.news(view) == []


def test_files_beside_a_video_and_unfinished_copies_have_no_line() -> None:
    view = replace(EMPTY, entries=(entry("a.srt", 100), entry("b.mkv", state=EntryState.COPYING)))
    assert Chronicle().news(view) == []


def test_eviction_is_told_and_a_copy_after_it_again() -> None:
    chronicle = Chronicle()
    cached = replace(EMPTY, entries=(entry("a.mkv"),))
    chronicle.news(cached)
    assert chronicle.news(EMPTY) == ["evicted: a"]
    assert chronicle.news(cached) == ["on the SSD: a (30.5 MiB)"]


def test_plan_is_told_with_its_reason() -> None:
    copy = PlannedCopy(file("a.mkv", 32 * MB), InterestKind.PLAYING, "A S01E01: Anna is watching it")
    assert Chronicle().news(replace(EMPTY, plan=Plan(0.0, copies=(copy,)))) == ["planned: a: Anna is watching it"]


def test_stream_that_moves_is_told_with_its_position() -> None:
    chronicle = Chronicle()
    assert chronicle.news(watching("")) == ["Anna watches Slow Tides S01E01"]
    assert chronicle.news(watching("source")) == ["Slow Tides S01E01 is read from the slow disk"]
    assert chronicle.news(watching("source", 0.3)) == []
    assert chronicle.news(watching("cached", 0.6)) == ["Slow Tides S01E01 is read now, at 60%, from the SSD"]
    assert chronicle.news(EMPTY) == []
    assert chronicle.news(watching("cached"))[0] == "Anna watches Slow Tides S01E01"


def test_motor_is_heard_both_ways() -> None:
    chronicle = Chronicle()
    assert chronicle.news(EMPTY) == []
    assert chronicle.news(replace(EMPTY, disk=DiskCounts(asleep=True))) == ["the slow disk fell asleep"]
    assert chronicle.news(EMPTY) == ["the slow disk woke up"]
