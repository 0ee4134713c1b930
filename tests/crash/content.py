"""The bytes of every file, from a seed: whoever knows name and version knows the content (pure)."""

from __future__ import annotations

import random


def content(seed: int, name: str, version: int, size: int) -> bytes:
    """``size`` bytes that no other name, version or seed has."""
    return random.Random(f"{seed}/{name}/{version}").randbytes(size)


def difference(found: bytes, right: bytes) -> str:
    """For people: where ``found`` begins to be wrong; empty when it is right."""
    if found == right:
        return ""
    lengths = f"{len(found)} bytes instead of {len(right)}, " if len(found) != len(right) else ""
    common = common_prefix(found, right)
    wrong = sum(one != other for one, other in zip(found, right, strict=False))
    return f"{lengths}first difference at byte {common}, {wrong} bytes differ"


def common_prefix(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
