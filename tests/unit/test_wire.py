"""Every value that crosses the control socket comes back equal, and nothing else comes back at all."""

from __future__ import annotations

import json
import os
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs import model
from cachefs.control.wire import WireError, dumps, from_wire, loads, to_wire
from cachefs.ranges import Ranges, Span

CARRIED = (model.Status, model.Plan, model.CacheEntry, model.Pin, model.Explanation, model.Inventory)


def any_value(form: Any) -> st.SearchStrategy[Any]:
    """Values of a type hint, names with undecodable bytes among them."""
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(min_value=-(2**63), max_value=2**64),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=6) | st.binary(max_size=6).map(os.fsdecode),
        Ranges: st.just(Ranges.of([(0, 4), (9, 12)])),
    }
    while isinstance(form, typing.NewType):
        form = form.__supertype__
    if form in plain:
        return plain[form]
    arguments = typing.get_args(form)
    if typing.get_origin(form) is types.UnionType:
        return st.none() | any_value(arguments[0])
    if typing.get_origin(form) is tuple:
        return st.lists(any_value(arguments[0]), max_size=2).map(tuple)
    if typing.get_origin(form) is frozenset:
        return st.frozensets(any_value(arguments[0]), max_size=2)
    if issubclass(form, Enum):
        return st.sampled_from(form)
    hints = typing.get_type_hints(form)
    return st.builds(form, **{item.name: any_value(hints[item.name]) for item in fields(form)})


@pytest.mark.parametrize("form", CARRIED)
def test_comes_back_equal(form: type[Any]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(any_value(form))
    def check(value: object) -> None:
        text = dumps(value)
        assert text.isascii()
        assert loads(form, text) == value

    assert is_dataclass(form)
    check()


def test_keys_are_field_names_and_enums_are_words() -> None:
    key = model.FileKey(model.SourceName("Media"), os.fsdecode(b"caf\xe9.mkv"))
    file = model.SourceFile(key, model.Fingerprint(8, 1_000), inode=7)
    want = model.Want(file, model.InterestKind.ON_DECK, 0, "on deck", 2.5, follows=key)
    assert to_wire(want) == {
        "file": {
            "key": {"source": "Media", "path": "caf\udce9.mkv"},
            "fingerprint": {"size": 8, "mtime_ns": 1000, "inode": None, "filesystem": None},
            "inode": 7,
            "links": 1,
        },
        "kind": "on_deck",
        "ahead": 0,
        "reason": "on deck",
        "since": 2.5,
        "users": [],
        "follows": {"source": "Media", "path": "caf\udce9.mkv"},
    }
    assert to_wire(Ranges((Span(0, 4),))) == {"spans": [{"start": 0, "end": 4}]}


def test_sets_are_sorted_so_that_the_output_is_stable() -> None:
    keys = frozenset(model.FileKey(model.SourceName("a"), str(number)) for number in range(9))
    paths = [item["path"] for item in json.loads(dumps(keys))]
    assert paths == [str(number) for number in range(9)]


def test_a_tuple_of_values_travels() -> None:
    pins = (model.Pin("TV/Show"), model.Pin("Heat", "77", 5.0))
    assert loads(tuple[model.Pin, ...], dumps(pins)) == pins


PIN: dict[str, object] = {"target": "a", "rating_key": "", "created_at": 0, "stood_for": []}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "is no object"),
        ({"target": "a"}, r"lacks \['created_at', 'rating_key', 'stood_for'\]"),
        (PIN | {"colour": "red"}, r"unknown keys \['colour'\]"),
        (PIN | {"target": 3}, "target: is no str: 3"),
        (PIN | {"created_at": True}, "created_at: is no float: True"),
        (PIN | {"created_at": "1"}, "created_at: is no float"),
        (PIN | {"created_at": float("nan")}, "created_at: is no float"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(data: object, said: str) -> None:
    with pytest.raises(WireError, match=said):
        from_wire(model.Pin, data)


def test_the_place_is_found_inside_lists_and_records() -> None:
    plan = typing.cast(dict[str, Any], to_wire(model.Plan(1.0, skips=(model.Skip("x", "no room"),))))
    plan["skips"][0]["reason"] = None
    with pytest.raises(WireError, match=r"^skips\[0\]\.reason: is no str"):
        from_wire(model.Plan, plan)


@pytest.mark.parametrize("data", ["CACHED", "moved", 1, None])
def test_only_the_members_of_an_enum_are_taken(data: object) -> None:
    with pytest.raises(WireError, match="is none of source, partial, cached"):
        from_wire(model.Visible, data)


@pytest.mark.parametrize(("form", "data"), [(int, True), (int, 1.0), (bool, 1), (str, None), (Path, 3)])
def test_nothing_is_converted(form: type[object], data: object) -> None:
    with pytest.raises(WireError):
        from_wire(form, data)


def test_broken_json_is_an_error_of_the_wire() -> None:
    with pytest.raises(WireError, match="is not JSON"):
        loads(model.Pin, b"{")


@dataclass(frozen=True)
class Foreign:
    things: dict[str, int]


def test_a_type_that_is_none_of_ours_is_a_bug_not_an_answer() -> None:
    with pytest.raises(TypeError, match="dict does not travel"):
        to_wire(Foreign({}))
    with pytest.raises(TypeError, match="does not travel"):
        from_wire(Foreign, {"things": {}})
