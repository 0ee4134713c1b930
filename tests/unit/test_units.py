"""Sizes, durations and rates: what people write is what they mean."""

from __future__ import annotations

from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.units import (
    Amount,
    Hours,
    format_duration,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_size,
)

GIB = 1024**3


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("500GiB", 500 * GIB),
        ("500 gib", 500 * GIB),
        ("500G", 500 * GIB),
        ("500GB", 500 * 10**9),
        ("1.5TiB", 3 * 1024**4 // 2),
        ("0.1KiB", 102),
        ("64MiB", 64 * 1024**2),
        ("10 B", 10),
        ("10", 10),
        (10, 10),
        (0, 0),
    ],
)
def test_size_is_read_as_people_write_it(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "lots", "5 GiBs", "-5GiB", -5, True, None, "1e9", "5%", ".", float("inf"), [1]]
)
def test_what_is_no_size_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="500GiB"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30),
        ("2h30m", 9000),
        ("2h 30m", 9000),
        ("60d", 60 * 86400),
        ("1w", 604800),
        ("1.5 hours", 5400),
        ("500ms", 0.5),
        ("10 Minutes", 600),
        ("1 day 2 hours", 93600),
        ("45", 45),
        (45, 45),
        (0.25, 0.25),
        ("0", 0),
    ],
)
def test_duration_is_read_as_people_write_it(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "soon", "-30s", -1, True, None, "2h30", "30 5s", "5y", float("nan"), float("inf")]
)
def test_what_is_no_duration_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="2h30m"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "rate"),
    [("100MiB/s", 100 * 1024**2), ("100 MB / s", 10**8), ("100M", 100 * 1024**2), (1000, 1000)],
)
def test_bandwidth_is_bytes_a_second(written: object, rate: int) -> None:
    assert parse_bandwidth(written) == rate


@pytest.mark.parametrize("written", ["100Mbit/s", "100Mbps", "100Mb/s", "0", "0MiB/s", "fast", None, -3])
def test_bandwidth_that_may_mean_bits_or_nothing_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="100MiB/s"):
        parse_bandwidth(written)


@pytest.mark.parametrize(
    ("written", "of_1000", "shown"),
    [("5%", 50, "5%"), ("12.5 %", 125, "12.5%"), ("100%", 1000, "100%"), ("2KiB", 2048, "2 KiB"), (300, 300, "300 B")],
)
def test_amount_is_bytes_or_a_share(written: object, of_1000: int, shown: str) -> None:
    amount = Amount.parse(written)
    assert amount.resolve(1000) == of_1000
    assert str(amount) == shown


@pytest.mark.parametrize("written", ["101%", "-5%", "%", "five"])
def test_amount_that_cannot_be_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"100%|500GiB"):
        Amount.parse(written)


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("01:00-07:00", ["01:00", "06:59"], ["00:59", "07:00", "23:00"]),
        ("22:30 - 6:00", ["22:30", "00:00", "05:59"], ["06:00", "22:29", "12:00"]),
    ],
)
def test_hours_begin_at_their_start_and_may_run_over_midnight(
    hours: str, inside: list[str], outside: list[str]
) -> None:
    parsed = Hours.parse(hours)
    assert all(parsed.contains(time.fromisoformat(moment)) for moment in inside)
    assert not any(parsed.contains(time.fromisoformat(moment)) for moment in outside)
    assert Hours.parse(str(parsed)) == parsed


@pytest.mark.parametrize("written", ["", "1-7", "25:00-07:00", "01:60-07:00", "01:00", None, 60])
def test_hours_that_cannot_be_are_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="01:00-07:00"):
        Hours.parse(written)


def test_hours_of_no_length_are_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        Hours.parse("01:00-01:00")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (500 * GIB, "500 GiB"),
        (1024**2 - 1, "1 MiB"),
        (-3 * GIB // 2, "-1.5 GiB"),
        (5000 * 1024**5, "5000 PiB"),
    ],
)
def test_size_is_shown_short(size: int, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.25, "0.2s"),
        (3.21, "3.2s"),
        (9.99, "10s"),
        (59.7, "1m"),
        (7500, "2h 5m"),
        (7200, "2h"),
        (86400 * 60, "60d"),
        (90061, "1d 1h"),
        (-90, "-1m 30s"),
        (float("inf"), "never"),
    ],
)
def test_duration_is_shown_short(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@given(st.integers(min_value=0, max_value=2**60))
def test_shown_size_reads_back_within_its_precision(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(1, size * 0.06)


@given(st.integers(min_value=0, max_value=10**9))
def test_shown_duration_reads_back_within_its_precision(seconds: int) -> None:
    shown = format_duration(seconds)
    assert abs(parse_duration(shown) - seconds) <= max(0.5, seconds * 0.05)
