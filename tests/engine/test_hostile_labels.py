"""What stands in the cache folder may have been written by anybody: nonsense in it is as if nothing were there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefs.cache import homes, keepsake, label
from cachefs.cache.adoption import adopt
from cachefs.cache.folder import Contents
from cachefs.cache.index import Index
from cachefs.cache.keepsake import Keepsake
from cachefs.cache.label import Label
from cachefs.model import Fingerprint, Home, Phase, Pin, SourceFile
from tests.engine.cachekit import MEDIA, cached, key, opened

NAME, DATA = "a.mkv", b"0123456789"
DEEP = "[" * 4000

absurd: st.SearchStrategy[object] = st.one_of(
    st.sampled_from([10**30, -(10**30), -1, 10**400, 1 << 63, 1 << 64, float("nan"), float("inf"), 1e300]),
    st.sampled_from([None, True, "\ud800", "", "12", [], {}, [[]], "away"]),
    st.text(max_size=4),
    st.integers(),
    st.floats(),
)


@contextmanager
def published(home: Home | None) -> Iterator[Path]:
    """A cache folder with one published file that has a good label; its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "files", MEDIA, NAME)
        path.parent.mkdir(parents=True)
        path.write_bytes(DATA)
        number = os.open(path, os.O_RDONLY)
        file = SourceFile(key(NAME), Fingerprint(len(DATA), 5, 7, "uuid"), 7)
        try:
            assert label.write(number, Label(file, 100.0, home, 3))
        finally:
            os.close(number)
        yield path


def indexed(path: Path) -> int:
    """How many entries a new index has that is made from what the cache folder says."""
    root = path.parents[2]
    contents = Contents({f"files/{MEDIA}/{NAME}": path.stat().st_size}, {})
    entries = tuple(adopt(str(root), contents, frozenset((MEDIA,)), 200.0))
    index = Index(str(root / "index.sqlite"))
    try:
        index.rebuild("Media", entries, keepsake.read(str(root)))
        assert [entry.key for entry in index.entries()] == [entry.key for entry in entries]
        assert [entry.fingerprint for entry in index.entries()] == [entry.fingerprint for entry in entries]
    finally:
        index.close()
    return len(entries)


HOMES = [None, Home(Fingerprint(len(DATA), 5, 7, "uuid"), Phase.AWAY, 9, True, "digest")]


@pytest.mark.parametrize("home", HOMES, ids=["copied", "moved"])
@settings(max_examples=30)
@given(st.data())
def test_any_value_in_a_label_is_an_entry_or_none(home: Home | None, data: st.DataObject) -> None:
    with published(home) as path:
        assert indexed(path) == 1
        (path.parents[2] / "index.sqlite").unlink()
        facts = json.loads(os.getxattr(path, label.NAME))
        within = json.loads(facts["home"]) if home is not None and data.draw(st.booleans()) else facts
        within[data.draw(st.sampled_from(sorted(within)))] = data.draw(absurd)
        if within is not facts:
            facts["home"] = json.dumps(within)
        os.setxattr(path, label.NAME, json.dumps(facts).encode())
        assert indexed(path) in (0, 1)


@settings(max_examples=30)
@example(DEEP.encode())
@example(json.dumps({"form": 2, "home": "[" * 3800}).encode())
@example(b"\xff\xfe{")
@given(st.one_of(st.binary(max_size=40), st.text(alphabet='{}[]":1e9,', max_size=20).map(str.encode)))
def test_any_bytes_in_a_label_are_none(value: bytes) -> None:
    with published(None) as path:
        os.setxattr(path, label.NAME, value)
        assert indexed(path) == 0


@settings(max_examples=100)
@example(DEEP)
@given(st.one_of(st.text(max_size=20), st.recursive(absurd, st.lists, max_leaves=4).map(json.dumps)))
def test_a_home_is_one_or_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        homes.decode(text)


GOOD = {
    "form": 1,
    "schema": 1,
    "identity": "Media",
    "devices": {"main": 0},
    "pins": [["Heat", "12", 2.0]],
    "asked": [["Media", "a", 1.0, False]],
}


@settings(max_examples=30)
@example("pins", [["\ud800", "1", 1.0]])
@example("pins", [["a", "\udcff", 1.0]])
@example("pins", [["a", "1", float("nan")]])
@example("pins", [["a", "1", 10**400]])
@example("devices", {"main": 1 << 64})
@example("asked", [["Media", "\ud800", 1.0, True]])
@example("asked", [["Media", "a", float("nan"), True]])
@example("devices", {"\ud800": 1})
@example("schema", float("inf"))
@given(
    st.sampled_from(sorted(GOOD)),
    st.one_of(absurd, st.lists(st.lists(absurd, min_size=3, max_size=3)), st.dictionaries(st.text(max_size=3), absurd)),
)
def test_any_keepsake_is_kept_or_is_none(name: str, value: object) -> None:
    with published(None) as path:
        (path.parents[2] / keepsake.NAME).write_text(json.dumps({**GOOD, name: value}))
        assert indexed(path) == 1


def test_a_keepsake_nested_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / keepsake.NAME).write_text("[" * 100_000)
    assert keepsake.read(str(tmp_path)) is None


def test_a_keepsake_holds_names_of_any_bytes(tmp_path: Path) -> None:
    pins = (Pin("TV/\udcff", "", 1.0), Pin("Heat", "12", 2.0, (key("Films/\udcff"),)))
    kept = Keepsake(1, "Media\udcff", {"main": 0}, pins)
    keepsake.save(str(tmp_path), kept)
    assert keepsake.read(str(tmp_path)) == kept


@pytest.mark.expected_warnings("the index .* is gone", "say nothing of themselves")
async def test_a_start_gets_over_a_label_of_nonsense(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    async with opened(root) as store:
        await cached(store, "good.mkv")
        await cached(store, NAME)
    os.setxattr(root / "files" / MEDIA / NAME, label.NAME, DEEP.encode())
    for suffix in ("", "-wal", "-shm"):
        (root / f"index.sqlite{suffix}").unlink(missing_ok=True)
    async with opened(root) as store:
        assert [entry.key for entry in store.inventory().entries] == [key("good.mkv")]
