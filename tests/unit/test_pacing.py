"""When copies may run, and how they leave time for people: tables."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import pytest

from cachefs.cache.pacing import (
    CHUNK_BYTES,
    MAX_PAUSE_S,
    SHARED_CHUNK_BYTES,
    chunk_bytes,
    may_copy,
    pause_after,
)
from cachefs.model import InterestKind

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Night:
    start = datetime.time(1)

    def contains(self, moment: datetime.time, /) -> bool:
        return moment < datetime.time(6)


def at(hour: int) -> float:
    return datetime.datetime(2024, 5, 1, hour).timestamp()


@pytest.mark.parametrize(
    ("took_s", "copied", "bandwidth", "someone_reads", "copies", "pause"),
    [
        (0.1, 4 * MIB, None, False, 1, 0.0),
        (0.1, 4 * MIB, 10 * MIB, False, 1, 0.3),
        (1.0, 4 * MIB, 10 * MIB, False, 1, 0.0),
        (0.1, 1 * MIB, None, True, 1, 0.3),
        (0.1, 1 * MIB, None, True, 2, 0.7),
        (0.1, 1 * MIB, 1 * MIB, True, 1, 0.9),
        (0.1, 1 * MIB, 100 * MIB, True, 1, 0.3),
        (20.0, 1 * MIB, None, True, 1, MAX_PAUSE_S),
        (0.0, 0, 1, False, 1, 0.0),
    ],
)
def test_pause_after_a_chunk(
    took_s: float, copied: int, bandwidth: int | None, someone_reads: bool, copies: int, pause: float
) -> None:
    assert pause_after(took_s, copied, bandwidth, someone_reads, copies) == pytest.approx(pause)


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_copies_together_take_a_quarter_of_a_disk_that_is_read(copies: int) -> None:
    took_s = 0.05
    pause = pause_after(took_s, MIB, None, True, copies)
    assert copies * took_s / (took_s + pause) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("someone_reads", "bandwidth", "size"),
    [
        (False, None, CHUNK_BYTES),
        (True, None, SHARED_CHUNK_BYTES),
        (False, 100 * MIB, CHUNK_BYTES),
        (False, MIB // 2, MIB // 2),
        (True, 1, 64 << 10),
    ],
)
def test_chunks_are_small_when_others_wait(someone_reads: bool, bandwidth: int | None, size: int) -> None:
    assert chunk_bytes(someone_reads, bandwidth) == size


@pytest.mark.parametrize(
    ("kind", "hour", "allowed"),
    [
        (InterestKind.ON_DECK, 3, True),
        (InterestKind.ON_DECK, 12, False),
        (InterestKind.PINNED, 12, False),
        (InterestKind.PLAYING, 12, True),
    ],
)
def test_what_is_playing_is_exempt_from_hours(kind: InterestKind, hour: int, allowed: bool) -> None:
    assert may_copy(kind, Night(), at(hour)) is allowed


def test_no_hours_means_any_hour() -> None:
    assert may_copy(InterestKind.RECENTLY_ADDED, None, at(12))
