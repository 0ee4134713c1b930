"""The pure parts of the crash rig: what may be there after a kill, which steps there are, when each is killed at."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.crash import failpoints
from tests.crash.audit import Row, unaccounted
from tests.crash.content import common_prefix, content, difference
from tests.crash.failpoints import Failpoints, Moment, Orders
from tests.crash.journal import Change, Create, Journal, Link, Rename, Seen, SeenFile, Truncate, Unlink, Write
from tests.crash.rounds import ALSO_AT_START, AT_START, AT_STOP, Phase, plan
from tests.crash.steps import (
    AT_SOURCE,
    CHANGES_NOTHING,
    MODULES,
    OUT_OF_REACH,
    PARTS_AND_OTHERS,
    all_steps,
    steps_of,
)

PACKAGE = Path(__file__).parents[2] / "cachefs"
CACHE = PACKAGE / "cache"

CHANGING = {
    *("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "rmtree", "ftruncate", "pwrite", "setxattr"),
    *("fsync", "fdatasync", "utime", "fchmod", "fchown", "symlink", "link", "truncate", "removexattr", "renameat2"),
}
NOT_THE_CACHES_TRUTH = {"metadata", "full"}
"""What it writes may be lost at any time: cache.metadata remembers what folders hold, cache.full only tries."""


# --- content and journal ---------------------------------------------------------------------------------------------


def test_content_differs_by_seed_name_and_version() -> None:
    all_ = {content(seed, name, version, 64) for seed in (1, 2) for name in "ab" for version in (0, 1)}
    assert len(all_) == 8
    assert content(1, "a", 0, 64) == content(1, "a", 0, 64)


@pytest.mark.parametrize(
    ("found", "right", "said"),
    [
        (b"abc", b"abc", ""),
        (b"abX", b"abc", "first difference at byte 2, 1 bytes differ"),
        (b"ab", b"abc", "2 bytes instead of 3, first difference at byte 2, 0 bytes differ"),
    ],
)
def test_difference_says_where_it_begins(found: bytes, right: bytes, said: str) -> None:
    assert difference(found, right) == said


@pytest.mark.parametrize(("one", "other", "length"), [(b"", b"a", 0), (b"ab", b"ab", 2), (b"abc", b"abd", 2)])
def test_common_prefix(one: bytes, other: bytes, length: int) -> None:
    assert common_prefix(one, other) == length


def journal(*changes: Change, in_flight: Change | None = None) -> Journal:
    made = Journal()
    for change in changes:
        made.begin(change)
        made.acknowledge()
    if in_flight is not None:
        made.begin(in_flight)
    return made


def seen(**files: bytes) -> Seen:
    return {name: SeenFile(number, 1, data) for number, (name, data) in enumerate(files.items(), 100)}


A = (Create("a", 1), Write("a", 0, b"01234"))


@pytest.mark.parametrize(
    ("changes", "in_flight", "found"),
    [
        (A, None, seen(a=b"01234")),
        (A, Write("a", 3, b"abc"), seen(a=b"01234")),
        (A, Write("a", 3, b"abc"), seen(a=b"012ab")),
        (A, Write("a", 3, b"abc"), seen(a=b"012abc")),
        (A, Truncate("a", 0), seen(a=b"")),
        (A, Truncate("a", 7), seen(a=b"01234\0\0")),
        (A, Rename("a", "b"), seen(b=b"01234")),
        (A, Unlink("a"), {}),
        (A, Create("b", 2), seen(a=b"01234", b=b"")),
        ((*A, Create("b", 2), Rename("b", "a")), None, seen(a=b"")),
        ((*A, Link("a", "b")), None, {"a": SeenFile(9, 2, b"01234"), "b": SeenFile(9, 2, b"01234")}),
    ],
)
def test_what_was_acknowledged_or_in_flight_may_be_there(
    changes: tuple[Change, ...], in_flight: Change | None, found: Seen
) -> None:
    made = journal(*changes, in_flight=in_flight)
    assert made.settle(found) == ""
    assert {name: made.tree.content(name) for name in made.tree.names} == {n: f.data for n, f in found.items()}
    assert made.in_flight is None


@pytest.mark.parametrize(
    ("changes", "in_flight", "found", "said"),
    [
        (A, None, {}, "missing: a"),
        (A, None, seen(a=b"0123"), "a: 4 bytes instead of 5"),
        (A, None, seen(a=b"01234", b=b""), "there, and should not be: b"),
        (A, Write("a", 3, b"abc"), seen(a=b"01b"), "a: 3 bytes instead of 5"),
        (A, Write("a", 3, b"abc"), seen(a=b"012xbc"), "a: 6 bytes instead of 5"),
        (A, Truncate("a", 0), seen(a=b"0"), "a: 1 bytes instead of 5"),
        (A, Rename("a", "b"), {}, "missing: a"),
        (A, Rename("a", "b"), seen(a=b"01234", b=b"01234"), "there, and should not be: b"),
        ((*A, Link("a", "b")), None, seen(a=b"01234", b=b"01234"), "a: 1 links instead of 2"),
    ],
)
def test_anything_else_is_a_loss(changes: tuple[Change, ...], in_flight: Change | None, found: Seen, said: str) -> None:
    assert said in journal(*changes, in_flight=in_flight).settle(found)


def test_inode_number_stays_over_restarts() -> None:
    made = journal(*A)
    assert made.settle({"a": SeenFile(7, 1, b"01234")}) == ""
    assert "inode number 8 instead of 7" in made.settle({"a": SeenFile(8, 1, b"01234")})


def test_names_of_one_file_show_one_inode_number() -> None:
    made = journal(*A, Link("a", "b"))
    assert "inode" in made.settle({"a": SeenFile(7, 2, b"01234"), "b": SeenFile(8, 2, b"01234")})


# --- steps -----------------------------------------------------------------------------------------------------------


def calls_of(module: Path) -> set[str]:
    """The functions of ``os`` and ``shutil`` that a module calls or hands on."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "shutil"):
            found.add(node.attr)
    return found


def test_every_module_that_changes_the_ssd_has_its_steps_found() -> None:
    changing = {path.stem for path in CACHE.glob("*.py") if calls_of(path) & CHANGING} - NOT_THE_CACHES_TRUTH
    assert changing | {"index"} == {name.rpartition(".")[2] for name in MODULES}


def public_functions(name: str) -> set[str]:
    """As a reader of the source would list them."""
    found = set()
    short = name.rpartition(".")[2]
    for node in ast.parse((CACHE / f"{short}.py").read_text()).body:
        if isinstance(node, ast.ClassDef):
            if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                continue
            found |= {f"{short}.{node.name}.{name}" for name in map(_public_function, node.body) if name}
        elif public := _public_function(node):
            found.add(f"{short}.{public}")
    return found


def _public_function(node: ast.stmt) -> str:
    """Its name; empty for anything else."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return ""
    decorators = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
    return "" if "property" in decorators else node.name


def test_every_function_of_the_disk_modules_is_a_step_or_said_to_change_nothing() -> None:
    there = set().union(*map(public_functions, MODULES))
    on_ssd = {found.name for name in MODULES for found in steps_of(importlib.import_module(name))}
    assert on_ssd | OUT_OF_REACH.keys() | CHANGES_NOTHING == there
    assert not CHANGES_NOTHING & {*all_steps("move"), *OUT_OF_REACH}


def test_what_is_said_to_change_nothing_calls_nothing_that_does() -> None:
    for name in CHANGES_NOTHING:
        short, *path = name.split(".")
        body: list[ast.stmt] = ast.parse((CACHE / f"{short}.py").read_text()).body
        for part in path:
            body = next(node for node in body if getattr(node, "name", "") == part).body  # type: ignore[attr-defined]
        called = {node.attr for statement in body for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
        assert not called & (CHANGING - {"replace", "remove"}), name


def changing_functions(module: Path) -> set[str]:
    """The functions of a module, outside of its classes, that call something that changes files."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            called = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if called & (CHANGING - {"replace", "remove"}):
                found.add(f"{module.stem}.{node.name}")
    return found


def test_every_function_that_changes_a_source_is_a_step_or_said_why_not() -> None:
    changing = set().union(*(changing_functions(path) for path in (PACKAGE / "fs").glob("*.py")))
    steps = {f"{name.rpartition('.')[2]}.{function}" for name, names in AT_SOURCE.items() for function in names}
    assert changing <= steps | PARTS_AND_OTHERS.keys()
    assert PARTS_AND_OTHERS.keys() <= changing


def test_steps_have_their_place_in_the_plan() -> None:
    assert {*AT_START, *ALSO_AT_START, *AT_STOP} <= set(all_steps("move"))


# --- the plan --------------------------------------------------------------------------------------------------------


def test_full_run_kills_before_and_after_every_step_and_as_often_as_it_shall() -> None:
    strikes = plan(1, 500, all_steps(), every_step=True)
    assert len(strikes) == 500
    assert {(s.step, s.moment) for s in strikes if s.step} == {(step, m) for step in all_steps() for m in Moment}
    assert {s.victim for s in strikes if not s.step} == {s.victim for s in strikes if not s.step and s.after_s > 0}


def test_short_run_has_steps_and_random_moments() -> None:
    strikes = plan(1, 6, all_steps(), every_step=False)
    assert [bool(s.step) for s in strikes].count(True) == 3
    assert len(strikes) == 6


def test_same_seed_same_plan() -> None:
    assert plan(7, 50, all_steps(), every_step=True) == plan(7, 50, all_steps(), every_step=True)
    assert plan(7, 50, all_steps(), every_step=True) != plan(8, 50, all_steps(), every_step=True)


def test_steps_of_a_start_are_killed_at_a_start() -> None:
    strikes = plan(1, 0, ("folder.Folder.take",), every_step=True)
    assert {s.phase for s in strikes} == {Phase.START}


# --- failpoints ------------------------------------------------------------------------------------------------------


class Died(Exception):
    """In place of SIGKILL."""


@pytest.fixture
def armed(tmp_path: Path) -> Failpoints:
    def kill(pid: int, number: int) -> None:
        raise Died

    return Failpoints(str(tmp_path / "orders"), kill)


def test_orders_are_carried_out_once_at_their_step_moment_and_count(tmp_path: Path, armed: Failpoints) -> None:
    orders = Orders(1, "a.step", "after", count=2)
    done: list[str] = []
    step = armed.around("a.step", lambda: done.append("done"))
    step()
    failpoints.give(tmp_path / "orders", orders)
    armed.around("another.step", lambda: None)()
    step()
    assert not failpoints.were_carried_out(tmp_path / "orders", orders)
    with pytest.raises(Died):
        step()
    assert failpoints.were_carried_out(tmp_path / "orders", orders)
    step()
    assert done == ["done"] * 4


def test_before_a_step_it_is_not_taken(tmp_path: Path, armed: Failpoints) -> None:
    failpoints.give(tmp_path / "orders", Orders(1, "a.step", "before"))
    done: list[str] = []
    with pytest.raises(Died):
        armed.around("a.step", lambda: done.append("done"))()
    assert done == []


def test_orders_that_were_withdrawn_kill_nobody(tmp_path: Path, armed: Failpoints) -> None:
    orders = Orders(1, "a.step", "before")
    failpoints.give(tmp_path / "orders", orders)
    failpoints.withdraw(tmp_path / "orders")
    armed.around("a.step", lambda: None)()
    assert not failpoints.were_carried_out(tmp_path / "orders", orders)


def test_every_step_is_found_where_it_can_be_replaced() -> None:
    for name in (*MODULES, *AT_SOURCE):
        for found in steps_of(importlib.import_module(name)):
            assert found.function.__name__ in vars(found.owner)


# --- the cache folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"files/Media/a": 5, "partial/2": 7}, ""),
        ({"files/Media/a": 5, "partial/2": 7, "partial/3": 0}, "no row speaks of partial/3"),
        ({"files/Media/a": 5}, "there is no partial/2"),
        ({"files/Media/a": 4, "partial/2": 7}, "files/Media/a has 4 bytes, not 5"),
    ],
)
def test_every_file_has_its_row_and_every_row_its_file(found: dict[str, int], said: str) -> None:
    rows = (Row(1, "Media/a", 5, 1, 1, "cached"), Row(2, "Media/a", 7, 1, 1, "copying"))
    assert unaccounted(rows, found) == said


def test_moved_file_may_have_grown_since_its_row_was_written() -> None:
    assert unaccounted((Row(1, "Media/a", 5, 1, 1, "moved"),), {"files/Media/a": 9}) == ""
    assert unaccounted((Row(1, "Media/a", 5, 1, 1, "moved"),), {}) == "there is no files/Media/a"
