"""What people see: every fact and reason is there, names are escaped, and nothing is wrapped without a terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import RenderableType

from cachefs import show, terminal
from cachefs.check import CheckReport, Finding, Severity
from cachefs.model import (
    ComponentHealth,
    Explanation,
    FileKey,
    Pin,
    Plan,
    ReadCounters,
    Skip,
    Space,
    UnionPath,
    Visible,
)
from cachefs.understood import Row
from cachefs.verification import Finding as Found
from cachefs.verification import Flaw, Report
from tests.engine.fake_engine import GIB, LATIN1, LONG, MEDIA, sample_entries, sample_plan, sample_status

NOW = 1_700_000_000.0


def path(key: FileKey) -> str:
    return key.path


def lines(what: RenderableType) -> list[str]:
    return terminal.rendered(what).splitlines()


def line_with(what: RenderableType, *parts: str) -> str:
    """The one line that holds all the parts."""
    found = [line for line in lines(what) if all(part in line for part in parts)]
    assert len(found) == 1, lines(what)
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Heat (1995).mkv", "Heat (1995).mkv"),
        ("Amélie ❤.mkv", "Amélie ❤.mkv"),
        (LATIN1, r"Films/Am\xe9lie.mkv"),
        ("a\nb\t\x1b[31mred\x7f", r"a\nb\t\x1b[31mred\x7f"),
        ("a\u202egpj.exe\u202c \u2066b", r"a\u202egpj.exe\u202c \u2066b"),
        ("\u05d0\u200f \u0645\u200c\u0646", "\u05d0\u200f \u0645\u200c\u0646"),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
    ],
)
def test_names_are_shown_as_they_are_or_as_escapes(name: str, shown: str) -> None:
    assert show.printable(name) == shown
    skips = replace(sample_plan(NOW), skips=(), kept=(), evictions=(), copies=())
    value = Explanation(UnionPath(name), Visible.CACHED, 1, 1, (), wanted=False)
    assert lines(show.plan(skips)) == ["copy: nothing", "evict: nothing", "keep: nothing"]
    assert line_with(show.explanation(value), "file ").endswith(f"  {shown}")


def test_long_paths_stay_on_one_line_without_a_terminal() -> None:
    assert line_with(show.entries(sample_entries(NOW), NOW, path), "copying").endswith(LONG)
    assert line_with(show.plan(sample_plan(NOW), path), "Ann plays it").endswith(LONG)


def test_no_line_ends_in_blanks() -> None:
    for what in (show.status(sample_status(NOW), NOW), show.plan(sample_plan(NOW))):
        assert all(line == line.rstrip() for line in lines(what))


def test_entries_say_state_size_age_last_read_and_reason() -> None:
    shown = show.entries(sample_entries(NOW), NOW, path)
    assert cells(line_with(shown, "cached")) == [
        "cached", "2 GiB", "1h 56m", "30s", "on deck for Ann", r"Films/Am\xe9lie.mkv",
    ]  # fmt: skip
    assert cells(line_with(shown, "copying")) == ["copying 25%", "4 GiB", "1m", "never", "playing now", LONG]
    assert lines(shown)[-1] == "in the cache: 2 files, 6 GiB"


def test_an_empty_cache_says_so() -> None:
    assert lines(show.entries((), NOW)) == ["the cache is empty"]
    assert lines(show.pins((), NOW)) == ["nothing is pinned"]


def test_plan_says_what_why_and_how_much() -> None:
    shown = show.plan(sample_plan(NOW), path)
    assert "copy: 1 file, 4 GiB" in lines(shown)
    assert "evict: 1 file, 1 GiB" in lines(shown)
    assert "keep: 1 file, 2 GiB" in lines(shown)
    assert line_with(shown, "Films/Old.mkv", "for room", "watched 3 days ago")
    assert line_with(shown, "/data/none.mkv", "the mount has no such file")


def test_an_eviction_that_needs_no_reason_of_room_says_so() -> None:
    eviction = replace(sample_plan(NOW).evictions[0], for_space=False)
    assert line_with(show.plan(Plan(NOW, evictions=(eviction,))), "in any case")


def test_status_shows_every_part() -> None:
    shown = show.status(sample_status(NOW), NOW, path)
    assert line_with(shown, "daemon", "up 1h")
    assert line_with(shown, "plex ", "degraded for 2m, failed 3 times: no answer within 60 s")
    assert line_with(shown, "user", "Bob: no token for this user")
    away = "offline: no answer; its folders show what was seen last (2 calls under way)"
    assert line_with(shown, "source ", f"/mnt/user/Media {away}")
    assert line_with(shown, "cache ", "125 GiB of 500 GiB (25%) in 62 files, 1 being copied", "room for 250 GiB")
    assert line_with(
        shown, "90% from the cache: 900 reads with 9 GiB", "100 reads with 1 GiB", "2 reads the SSD failed"
    )
    assert line_with(shown, "playing", "Ann: Heat (1995), playing at 25%")
    assert line_with(shown, "copiers", "the SSD is full")
    assert line_with(shown, "note", "Plex's /data is the mount's /")
    assert line_with(shown, "25%", "4 GiB", "38.1 MiB/s", "1m 21s", LONG)
    assert line_with(shown, r"Films/Am\xe9lie.mkv", "cached")


def test_what_is_well_is_not_called_degraded() -> None:
    well = replace(sample_status(NOW), plex=ComponentHealth("plex"), components=(ComponentHealth("copiers"),))
    assert line_with(show.status(well, NOW), "plex ").endswith("http://127.0.0.1:32400 ok")
    assert not [line for line in lines(show.status(well, NOW)) if "degraded" in line]


def test_limits_already_passed_are_said() -> None:
    over = replace(sample_status(NOW), space=Space(100 * GIB, GIB, 101 * GIB, 50 * GIB), reads=ReadCounters())
    assert line_with(show.status(over, NOW), "101 GiB of 100 GiB").endswith("1 GiB over its limits")
    assert line_with(show.status(over, NOW), "reads").endswith("none yet")


def test_a_copy_is_complete_only_when_nothing_is_missing() -> None:
    copy = replace(sample_status(NOW).copies[0], size=1000 * GIB, done_bytes=1000 * GIB - 1, bytes_per_s=0.0)
    shown = show.status(replace(sample_status(NOW), copies=(copy,)), NOW, path)
    assert line_with(shown, "99%", "waiting", LONG)


def test_explanation_says_state_and_reasons() -> None:
    value = Explanation(UnionPath("a.mkv"), Visible.PARTIAL, 4 * GIB, GIB, ("on deck", "no room"), True, 3)
    shown = show.explanation(value)
    assert line_with(shown, "state", "partial")
    assert line_with(shown, "1 GiB of 4 GiB (25%)")
    assert line_with(shown, "planned", "copy number 3")
    assert [cells(line)[1] for line in lines(shown) if line.startswith("because")] == ["on deck", "no room"]


def test_moved_files_are_said_to_be_the_only_ones() -> None:
    value = Explanation(UnionPath("a.mkv"), Visible.CACHED, GIB, GIB, ("on deck",), True, moved=True)
    assert line_with(show.explanation(value), "state").endswith("moved: the SSD holds the only file")
    moved = replace(sample_status(NOW), entries_moved=3, moved_bytes=2 * GIB)
    assert line_with(show.status(moved, NOW), "cache ", "in 62 files, 3 of them moved (2 GiB only on the SSD), 1 being")
    assert "moved" not in line_with(show.status(sample_status(NOW), NOW), "cache ", "room for")


def test_pins_say_whether_they_are_paths_or_titles() -> None:
    shown = show.pins((Pin("Heat", "77", NOW - 60), Pin("", "", NOW - 3600)), NOW)
    assert [line.split()[0] for line in lines(shown)] == ["kind", "path", "title"]
    assert line_with(shown, "path").endswith("/")


def test_check_ends_with_its_verdict() -> None:
    row = Row("mountpoint", "/mnt/cachefs")
    fine = CheckReport((row,), (Finding(Severity.WARNING, "plex.url", "no answer"),))
    assert line_with(show.check(fine), "warning: plex.url: no answer")
    assert lines(show.check(fine))[-1] == "cachefs can mount"
    broken = CheckReport((row,), (Finding(Severity.ERROR, "", "fusermount3 is missing"),))
    assert line_with(show.check(broken), "error: fusermount3 is missing")
    assert lines(show.check(broken))[-1] == "1 to mend"


def test_a_file_of_a_source_is_named_by_its_key_when_no_name_is_given() -> None:
    assert line_with(show.entries(sample_entries(NOW), NOW), "copying").endswith(str(FileKey(MEDIA, LONG)))


def test_a_skip_says_why_the_file_is_wanted_all_the_same() -> None:
    [kept] = sample_plan(NOW).kept
    skip = Skip(str(kept.key), "needs 2 GiB, only 1 GiB can be freed for it", kept.key, kept)
    assert line_with(show.plan(Plan(NOW, skips=(skip,)), path), "on deck for Ann; but needs 2 GiB, only 1 GiB")


def test_a_source_that_is_away_is_one_line_of_a_verification() -> None:
    flaws = tuple(
        Found(Flaw.UNCOMPARED, f"/ssd/{name}", FileKey(MEDIA, name), "source Media is offline") for name in "abc"
    )
    gone = Found(Flaw.GONE, "/ssd/d", FileKey(MEDIA, "d"))
    assert lines(show.verification(Report(4, 0, (*flaws, gone), 1.0), path)) == [
        "3 files of source Media",
        f"  it cannot be compared now (source Media is offline): {Flaw.UNCOMPARED.remedy}",
        "d",
        f"  its source has no such file: {Flaw.GONE.remedy}",
        "4 files verified in 1s: 4 found, 0 mended",
    ]


def test_status_says_what_keeps_the_ssd_from_being_used_and_why_copies_wait() -> None:
    closed = replace(sample_status(NOW), waiting="copies begin at 01:00")
    assert cells(line_with(show.status(closed, NOW), "copying  ")) == ["copying", "copies begin at 01:00"]
    away = replace(sample_status(NOW), waiting="it is away", cache_problem="it is away")
    assert cells(line_with(show.status(away, NOW), "it is away")) == ["cache", "it is away"]
    assert line_with(show.plan(replace(sample_plan(NOW), waiting="copies begin at 01:00")), "copies begin")
