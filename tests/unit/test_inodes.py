"""Numbers are identities: which number is which file, and what the kernel knows of it."""

from __future__ import annotations

import os
from stat import S_IFDIR, S_IFREG

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.fs.inodes import ROOT, Inodes, Link, Node, number_of
from cachefs.fs.leaves import Leaves
from cachefs.fs.stat import Stat

tags = st.integers(0, 70_000)
inos = st.one_of(st.integers(0, 1000), st.integers(2**48 - 2, 2**48 + 2), st.integers(0, 2**64 - 1))


def seen(ino: int, *, mode: int = S_IFREG | 0o644, nlink: int = 1, born: int = 1) -> Stat:
    return Stat(mode, ino, 42, nlink, 0, 0, 0, 0, 0, 4096, 0, 0, 0, born)


def folder(ino: int) -> Stat:
    return seen(ino, mode=S_IFDIR | 0o755, nlink=2)


def known(inodes: Inodes, number: int, found: Stat, parent: int, name: str) -> Node:
    """Met, and told to the kernel."""
    node = inodes.meet(number, found, Link(parent, name))
    inodes.looked_up(node)
    return node


@pytest.fixture
def inodes() -> Inodes:
    made = Inodes()
    made.looked_up(made.meet(ROOT, folder(2), None))
    return made


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_first_device_shows_its_own_numbers() -> None:
    assert [number_of(0, ino) for ino in (2, 77, 2**48 - 1)] == [2, 77, 2**48 - 1]


def test_other_devices_carry_their_tag_above_bit_48() -> None:
    assert number_of(1, 1) == 2**48 + 1
    assert number_of(3, 77) == 3 * 2**48 + 77


@pytest.mark.parametrize("ino", [0, 1])
def test_no_file_of_the_first_device_is_number_0_or_1(ino: int) -> None:
    assert number_of(0, ino) == 0x7FFF << 48 | ino


def test_numbers_too_large_for_a_tag_have_the_top_bit() -> None:
    assert number_of(0, 2**48) >> 63 == 1
    assert number_of(0, 2**48) != number_of(1, 2**48)


@given(st.lists(st.tuples(tags, inos), unique=True, max_size=20))
def test_different_files_have_different_numbers(files: list[tuple[int, int]]) -> None:
    assert len({number_of(tag, ino) for tag, ino in files}) == len(files)


@given(tags, inos)
def test_a_number_is_the_same_every_time_fits_64_bits_and_is_never_the_root(tag: int, ino: int) -> None:
    number = number_of(tag, ino)
    assert number == number_of(tag, ino)
    assert 1 < number < 2**64


@given(tags, inos)
def test_no_file_has_a_number_that_substitutes_use(tag: int, ino: int) -> None:
    assert number_of(tag, ino) >> 48 != 0x7FFE


# --- meeting files ---------------------------------------------------------------------------------------------------


def test_hard_links_are_one_node(inodes: Inodes) -> None:
    first = known(inodes, 10, seen(10, nlink=2), ROOT, "a")
    assert inodes.meet(10, seen(10, nlink=2), Link(ROOT, "b")) is first
    assert inodes.paths(first) == ("b", "a")


def test_a_file_with_one_link_has_only_the_name_seen_last(inodes: Inodes) -> None:
    node = known(inodes, 10, seen(10), ROOT, "a")
    inodes.meet(10, seen(10), Link(ROOT, "moved behind the mount"))
    assert inodes.paths(node) == ("moved behind the mount",)


@pytest.mark.parametrize("later", [seen(10, born=2), folder(10)], ids=["born later", "another type"])
def test_a_number_given_to_another_file_behind_the_mount_gets_a_substitute(inodes: Inodes, later: Stat) -> None:
    first = known(inodes, 10, seen(10), ROOT, "a")
    second = inodes.meet(10, later, Link(ROOT, "b"))
    assert second is not first
    assert second.number >> 48 == 0x7FFE
    assert inodes.get(10) is first
    assert inodes.paths(first) == ("a",)


def test_a_substitute_is_the_same_as_long_as_the_kernel_knows_it(inodes: Inodes) -> None:
    known(inodes, 10, seen(10), ROOT, "a")
    second = known(inodes, 10, seen(10, born=2), ROOT, "b")
    assert inodes.meet(10, seen(10, born=2), Link(ROOT, "b")) is second
    inodes.forgotten(10, 1)
    assert inodes.meet(10, seen(10, born=2), Link(ROOT, "b")) is second


def test_every_reuse_gets_a_substitute_of_its_own(inodes: Inodes) -> None:
    known(inodes, 10, seen(10), ROOT, "a")
    numbers = {known(inodes, 10, seen(10, born=born), ROOT, "a").number for born in range(2, 6)}
    assert len(numbers) == 4
    assert 10 not in numbers


def test_a_number_is_the_files_own_again_once_everything_is_forgotten(inodes: Inodes) -> None:
    known(inodes, 10, seen(10), ROOT, "a")
    second = known(inodes, 10, seen(10, born=2), ROOT, "b")
    inodes.forgotten(10, 1)
    inodes.forgotten(second.number, 1)
    assert inodes.meet(10, seen(10, born=2), Link(ROOT, "b")).number == 10


# --- what the kernel knows -------------------------------------------------------------------------------------------


def test_a_node_is_known_until_every_lookup_is_given_back(inodes: Inodes) -> None:
    node = known(inodes, 10, seen(10), ROOT, "a")
    inodes.looked_up(node)
    inodes.looked_up(node)
    assert inodes.forgotten(10, 2) is None
    assert inodes.get(10) is node
    assert inodes.forgotten(10, 1) is node
    assert inodes.get(10) is None


def test_the_root_is_never_forgotten(inodes: Inodes) -> None:
    assert inodes.forgotten(ROOT, 5) is None
    assert inodes.get(ROOT) is not None


def test_forgetting_what_is_not_known_does_nothing(inodes: Inodes) -> None:
    assert inodes.forgotten(99, 1) is None
    assert len(inodes) == 1


def test_two_who_met_a_file_at_once_count_on_one_node(inodes: Inodes) -> None:
    one, other = inodes.meet(10, seen(10), Link(ROOT, "a")), inodes.meet(10, seen(10), Link(ROOT, "a"))
    inodes.looked_up(one)
    inodes.looked_up(other)
    assert inodes.forgotten(10, 1) is None
    assert inodes.forgotten(10, 1) is one
    assert len(inodes) == 1


def test_meeting_a_file_is_not_knowing_it(inodes: Inodes) -> None:
    inodes.meet(10, seen(10), Link(ROOT, "a"))
    assert inodes.get(10) is None


# --- names -----------------------------------------------------------------------------------------------------------


def test_paths_go_through_folders_and_follow_their_renames(inodes: Inodes) -> None:
    outer = known(inodes, 20, folder(20), ROOT, "outer")
    inner = known(inodes, 21, folder(21), 20, "inner")
    file = known(inodes, 22, seen(22), 21, "file")
    assert [inodes.paths(node) for node in (outer, inner, file)] == [
        ("outer",),
        ("outer/inner",),
        ("outer/inner/file",),
    ]
    inodes.renamed(outer, Link(ROOT, "outer"), Link(ROOT, "new"))
    assert inodes.paths(file) == ("new/inner/file",)
    inodes.renamed(inner, Link(20, "inner"), Link(ROOT, "moved"))
    assert inodes.paths(file) == ("moved/file",)


def test_a_renamed_hard_link_keeps_its_other_names(inodes: Inodes) -> None:
    node = known(inodes, 10, seen(10, nlink=3), ROOT, "a")
    for name in ("b", "c"):
        inodes.meet(10, seen(10, nlink=3), Link(ROOT, name))
    inodes.renamed(node, Link(ROOT, "b"), Link(ROOT, "d"))
    assert inodes.paths(node) == ("d", "c", "a")


def test_an_unlinked_file_has_no_path(inodes: Inodes) -> None:
    node = known(inodes, 10, seen(10), ROOT, "a")
    inodes.unlinked(node, Link(ROOT, "other"))
    assert inodes.paths(node) == ("a",)
    inodes.unlinked(node, Link(ROOT, "a"))
    assert inodes.paths(node) == ()


def test_what_is_below_a_folder_that_is_gone_has_no_path(inodes: Inodes) -> None:
    gone = known(inodes, 20, folder(20), ROOT, "gone")
    file = known(inodes, 22, seen(22), 20, "file")
    inodes.unlinked(gone, Link(ROOT, "gone"))
    assert inodes.paths(file) == ()
    inodes.forgotten(20, 1)
    assert inodes.paths(file) == ()


def test_the_roots_path_is_empty(inodes: Inodes) -> None:
    root = inodes.get(ROOT)
    assert root is not None
    assert inodes.paths(root) == ("",)


def test_folders_that_seem_to_be_inside_each_other_have_no_path(inodes: Inodes) -> None:
    """Moved about behind the mount, seen at different times."""
    one = known(inodes, 20, folder(20), ROOT, "one")
    other = known(inodes, 21, folder(21), 20, "other")
    inodes.meet(20, folder(20), Link(21, "one"))
    assert inodes.paths(one) == inodes.paths(other) == ()


def test_names_need_not_be_utf_8(inodes: Inodes) -> None:
    name = os.fsdecode(b"\xff\xfe")
    assert inodes.paths(known(inodes, 10, seen(10), ROOT, name)) == (name,)


class _Told(Leaves):
    """The kernel has been told of every number twice, by listings."""

    def own(self, number: int) -> int:
        return 2


def test_what_listings_have_told_of_a_node_since_it_was_met_is_counted() -> None:
    inodes = Inodes(leaves=_Told())
    node = inodes.meet(7, seen(7), None)
    inodes.looked_up(node)
    assert inodes.forgotten(7, 2) is None
    assert inodes.forgotten(7, 1) is node
