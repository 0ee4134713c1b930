"""Sizes, percentages, durations, rates and hours as people write them, and back.

Called by the configuration for what it reads and by everything that shows a number to a person. Pure. Every
``ValueError`` says what to write instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import time
from decimal import Decimal

_MOST = 1 << 63  # the size of a file, or of a file system, fits into 63 bits
_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) *(?:([kmgtp])(i?b?)|(b|bytes)?)", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) *%", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]*)\s*", re.ASCII)
_HOURS = re.compile(r"((?:[01]?[0-9]|2[0-3]):[0-5][0-9])\s*-\s*((?:[01]?[0-9]|2[0-3]):[0-5][0-9])", re.ASCII)
_SECONDS = {
    name: seconds
    for names, seconds in (
        ("ms millisecond milliseconds", Decimal("0.001")),
        ("s sec secs second seconds", Decimal(1)),
        ("m min mins minute minutes", Decimal(60)),
        ("h hr hrs hour hours", Decimal(3600)),
        ("d day days", Decimal(86400)),
        ("w week weeks", Decimal(604800)),
    )
    for name in names.split()
}


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of bytes, or a share of a file system that is resolved when its size is known."""

    bytes: int = 0
    percent: float | None = None

    @classmethod
    def parse(cls, value: object) -> Amount:
        """``500GiB``, ``5%`` or a plain number of bytes."""
        if isinstance(value, Amount):
            return value
        matched = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
        if matched is None:
            return cls(bytes=parse_size(value))
        percent = float(matched[1])
        if percent > 100:
            raise ValueError(f"{value} is more than there is; write at most 100%")
        return cls(percent=percent)

    def resolve(self, total_bytes: int) -> int:
        """Bytes on a file system of ``total_bytes``."""
        return self.bytes if self.percent is None else int(total_bytes * self.percent / 100)

    @property
    def is_zero(self) -> bool:
        return not self.bytes and not self.percent

    def __str__(self) -> str:
        return format_size(self.bytes) if self.percent is None else f"{self.percent:g}%"


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of every day in local time, from ``start`` until before ``end``; it may run over midnight."""

    start: time
    end: time

    @classmethod
    def parse(cls, value: object) -> Hours:
        """``01:00-07:00``."""
        if isinstance(value, Hours):
            return value
        matched = _HOURS.fullmatch(value.strip()) if isinstance(value, str) else None
        if matched is None:
            raise ValueError(f"{value!r} is no part of a day; write it like 01:00-07:00")
        start, end = (time.fromisoformat(moment.zfill(5)) for moment in matched.groups())
        if start == end:
            raise ValueError(f"{value} ends when it begins; write null for the whole day")
        return cls(start, end)

    def contains(self, local: time) -> bool:
        """Whether a local time of day lies in it."""
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def parse_size(value: object) -> int:
    """Bytes. ``GiB`` and a bare ``G`` count in 1024 as ``df -h`` does, ``GB`` in 1000; no unit means bytes."""
    matched = _SIZE.fullmatch(_text(value))
    if matched is None:
        raise ValueError(f"{value!r} is no size; write it like 500GiB, 1.5TB or a number of bytes")
    number, letter, tail, _ = matched.groups()
    base = 1000 if letter and tail.lower() == "b" else 1024
    size = int(Decimal(number) * base ** ("kmgtp".index(letter.lower()) + 1 if letter else 0))
    if size >= _MOST:
        raise ValueError("is more than any disk has; write it like 500GiB, 1.5TB or a number of bytes")
    return size


def parse_duration(value: object) -> float:
    """Seconds. ``30s``, ``2h30m``, ``1.5 hours``, ``60d``; a plain number is seconds."""
    text = _text(value).lower()
    total = Decimal(0)
    position = 0
    while position < len(text):
        matched = _DURATION_PART.match(text, position)
        unit = None if matched is None else _unit(matched, text)
        if matched is None or unit is None:
            break
        total += Decimal(matched[1]) * unit
        position = matched.end()
    if not text or position < len(text):
        raise ValueError(f"{value!r} is no duration; write it like 30s, 2h30m or 60d")
    if not math.isfinite(seconds := float(total)):
        raise ValueError("is longer than time itself; write it like 30s, 2h30m or 60d")
    return seconds


def parse_bandwidth(value: object) -> int:
    """Bytes a second. ``100MiB/s``; the ``/s`` may be left out."""
    text = _text(value)
    amount = re.sub(r"\s*(/\s*s|/\s*sec|/\s*second)$", "", text)
    if re.search(r"[0-9]\s*[kKmMgGtT]b(its?)?$|bit|ps$", amount):
        raise ValueError(f"{value!r} may mean bits; write bytes a second, like 100MiB/s")
    try:
        rate = parse_size(amount)
    except ValueError:
        raise ValueError(f"{value!r} is no bandwidth; write it like 100MiB/s") from None
    if rate <= 0:
        raise ValueError(
            "a bandwidth of nothing would never finish a copy; write it like 100MiB/s, or null for no limit"
        )
    return rate


def format_size(size: int) -> str:
    """``1.5 GiB``; three significant digits or so, in units of 1024."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in _BINARY:
        value /= 1024
        shown = f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
        if abs(float(shown)) < 1024 or unit == _BINARY[-1]:
            break
    return f"{shown.removesuffix('.0')} {unit}"


def format_duration(seconds: float) -> str:
    """``2h 5m``: the two largest units; below ten seconds with a tenth."""
    if not math.isfinite(seconds):
        return "never" if seconds > 0 else "unknown"
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 9.95:
        return f"{sign}{seconds:.1f}".removesuffix(".0") + "s"
    rest = round(seconds)
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next(index for index, (_, length) in enumerate(units) if rest >= length)
    parts = []
    for unit, length in units[first : first + 2]:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return sign + " ".join(parts)


def _unit(matched: re.Match[str], text: str) -> Decimal | None:
    """How many seconds the unit of one part is; a number without a unit must stand alone."""
    if matched[2]:
        return _SECONDS.get(matched[2])
    return Decimal(1) if matched[0].strip() == text else None


def _text(value: object) -> str:
    """A number or a text as text; everything else, and what is negative or endless, as something no pattern takes."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "?"
    return f"{value:f}" if isinstance(value, float) else str(value)
