"""What was changed since, as far back as it is known."""

from __future__ import annotations

from cachefs.fs.touched import Touched
from cachefs.model import FileKey, SourceName


def key(name: str) -> FileKey:
    return FileKey(SourceName("Media"), name)


def test_what_was_touched_since_is_told_and_nothing_else() -> None:
    touched = Touched()
    touched.touch(key("a"))
    before = touched.count
    assert touched.since(before) == []
    touched.touch(key("b"))
    touched.touch(key("a"))
    assert set(touched.since(before) or ()) == {key("a"), key("b")}
    assert touched.since(touched.count - 1) == [key("a")]


def test_what_is_not_known_any_more_is_not_taken_for_nothing() -> None:
    touched = Touched(most=2)
    for name in "abc":
        touched.touch(key(name))
    assert touched.since(0) is None
    assert touched.since(1) == [key("c"), key("b")]
