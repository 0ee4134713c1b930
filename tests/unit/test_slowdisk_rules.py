"""For which operations a rule of the slow disk is, and which rules a release ends."""

from __future__ import annotations

import pytest

from tests.standin.slowdisk_rules import Part, Slowness

READ = frozenset({"read"})
BOTH = frozenset({"read", "open"})


@pytest.mark.parametrize(
    ("part", "kind", "paths", "meets"),
    [
        (Part(""), "read", ("a",), True),
        (Part("a"), "read", ("a",), True),
        (Part("a"), "read", ("a/b",), True),
        (Part("a"), "read", ("ab",), False),
        (Part("a"), "rename", ("x", "a/b"), True),
        (Part("a", exact=True), "read", ("a",), True),
        (Part("a", exact=True), "read", ("a/b",), False),
        (Part("", exact=True), "opendir", ("",), True),
        (Part("", exact=True), "lookup", ("a",), False),
        (Part("", READ), "read", ("a",), True),
        (Part("", READ), "open", ("a",), False),
    ],
)
def test_a_part_is_what_it_says(part: Part, kind: str, paths: tuple[str, ...], meets: bool) -> None:
    assert part.meets(kind, paths) is meets


@pytest.mark.parametrize(
    ("part", "path", "kinds", "inside"),
    [
        (Part("a"), "", frozenset(), True),
        (Part("a"), "a", frozenset(), True),
        (Part("a/b"), "a", frozenset(), True),
        (Part("a"), "a/b", frozenset(), False),
        (Part("a", READ), "", frozenset(), True),
        (Part("a", READ), "", READ, True),
        (Part("a", READ), "", BOTH, True),
        (Part("a", BOTH), "", READ, False),
        (Part("a"), "", READ, False),
    ],
)
def test_a_release_ends_what_is_inside(part: Part, path: str, kinds: frozenset[str], inside: bool) -> None:
    assert part.is_inside(path, kinds) is inside


def test_what_needs_no_disk_waits_only_when_named() -> None:
    assert not Slowness(Part(""), 1.0).meets("flush", ("a",))
    assert Slowness(Part("", frozenset({"flush"})), 1.0).meets("flush", ("a",))


def test_a_throttle_is_shared_and_a_delay_is_not() -> None:
    slow = Slowness(Part(""), delay_s=1.0, bytes_per_s=10.0)
    assert [slow.book(100.0, 20), slow.book(100.0, 20)] == [103.0, 105.0]
