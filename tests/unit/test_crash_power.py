"""The pure parts of the power cut: what a disk may have kept of which calls, and what was promised by then."""

from __future__ import annotations

import random
import struct

import pytest

from tests.crash.powerloss.disk import PAGE, REMOVED, Choice, Stored, choices, left
from tests.crash.powerloss.facts import Fact, What, fact, promised
from tests.crash.powerloss.recording import Call, Kind, parse
from tests.crash.powerloss.worlds import Change, World, decode, encode, worlds

ALL = Choice("all", lambda _: True, lambda _: True)
NOTHING = Choice("nothing", lambda _: False, lambda _: False)

CREATE = Call(Kind.CREATE, "partial/1", file=1)
WRITE = Call(Kind.WRITE, file=1, number=0, data=b"abcd")
GROW = Call(Kind.TRUNCATE, file=1, number=6)
LABEL = Call(Kind.XATTR, "user.x", file=1, data=b"label")
SYNC = Call(Kind.SYNC, "partial/1", file=1)
FOLDER = Call(Kind.MKDIR, "files/a")
RENAME = Call(Kind.RENAME, "partial/1", "files/a/b")


def names_synced(*folders: str) -> tuple[Call, ...]:
    return tuple(Call(Kind.SYNC_FOLDER, folder) for folder in folders)


@pytest.mark.parametrize(
    ("calls", "files"),
    [
        ((CREATE, WRITE), {}),
        ((CREATE, WRITE, SYNC), {}),
        ((CREATE, WRITE, *names_synced("partial")), {"partial/1": b""}),
        ((CREATE, WRITE, SYNC, *names_synced("partial")), {"partial/1": b"abcd"}),
        ((CREATE, WRITE, SYNC, GROW, *names_synced("partial")), {"partial/1": b"abcd"}),
        ((CREATE, WRITE, SYNC, *names_synced("partial"), FOLDER, RENAME), {"partial/1": b"abcd"}),
        ((CREATE, WRITE, SYNC, FOLDER, RENAME, *names_synced("files/a")), {"files/a/b": b"abcd"}),
        ((CREATE, *names_synced("partial"), Call(Kind.UNLINK, "partial/1")), {"partial/1": b""}),
        ((CREATE, Call(Kind.UNLINK, "partial/1"), *names_synced("partial")), {}),
    ],
)
def test_only_what_was_synced_must_be_there(calls: tuple[Call, ...], files: dict[str, bytes]) -> None:
    assert {name: file.data for name, file in left(calls, NOTHING).files.items()} == files


def test_everything_may_be_there() -> None:
    found = left((CREATE, WRITE, GROW, LABEL, Call(Kind.TIMES, file=1, number=9), FOLDER, RENAME), ALL)
    assert found.files == {"files/a/b": Stored(b"abcd\0\0", (("user.x", b"label"),), 9)}
    assert found.folders == {"files/a"}


def test_name_that_is_kept_keeps_what_it_rests_on() -> None:
    calls = (CREATE, FOLDER, RENAME, Call(Kind.CREATE, "elsewhere/c", file=2))
    found = left(calls, Choice("the rename", lambda at: at == 2, lambda _: False))
    assert set(found.files) == {"files/a/b"}
    assert found.folders == {"files/a"}


def test_bytes_of_a_write_may_end_at_a_page() -> None:
    long = Call(Kind.WRITE, file=1, number=10, data=b"x" * 2 * PAGE)
    torn = Choice("torn", lambda _: True, lambda _: True, lambda _: 1)
    assert left((CREATE, long), torn).files["partial/1"].data == b"\0" * 10 + b"x" * (PAGE - 10)


def test_attributes_are_kept_in_their_order() -> None:
    later = Choice("the later", lambda _: True, lambda at: at != 1)
    assert left((CREATE, GROW, LABEL), later).files["partial/1"] == Stored()


def test_shared_memory_of_sqlite_counts_for_nothing() -> None:
    assert not left((Call(Kind.CREATE, "index.sqlite-shm", file=1),), ALL).files


def test_choices_begin_with_everything_and_nothing() -> None:
    names = [choice.name for choice in choices(random.Random(1), 2, 5)]
    assert names[:2] == ["all", "only what was synced"]
    assert len(names) == 6


def test_promises_are_taken_back_before_they_are_broken() -> None:
    steps = [
        Fact(What.COPYING, "a", 5),
        Fact(What.NOT_COPYING, "a"),
        Fact(What.CACHED, "a", 1),
        Fact(What.LEAVING, "a"),
        Fact(What.GONE, "a"),
        Fact(What.PINNED, "p"),
        Fact(What.UNPINNING, "p"),
        Fact(What.UNPINNED, "p"),
    ]
    found = [promised(steps[:count]) for count in range(len(steps) + 1)]
    assert [p.copying for p in found[:3]] == [{}, {"a": 5}, {}]
    assert [p.cached for p in found[2:5]] == [{}, {"a": 1}, {}]
    assert found[5].gone == {"a": 1}
    assert [p.pinned for p in found[6:8]] == [{"p"}, set()]
    assert found[8].unpinned == {"p"}


def test_mark_is_read_back() -> None:
    assert fact('{"what": "tag", "name": "disk", "number": 3}') == Fact(What.TAG, "disk", 3)


def recorded(kind: Kind, one: bytes = b"", other: bytes = b"", inode: int = 0, data: bytes = b"") -> bytes:
    return struct.pack("<IIIIQq", kind, len(one), len(other), len(data), inode, 0) + one + other + data


def test_number_of_a_file_is_its_own_although_its_inode_is_used_again() -> None:
    data = b"".join(
        (
            recorded(Kind.CREATE, b"/ssd/partial/1", inode=9),
            recorded(Kind.WRITE, inode=9, data=b"a"),
            recorded(Kind.UNLINK, b"/ssd/partial/1"),
            recorded(Kind.CREATE, b"/ssd/partial/2", inode=9),
            recorded(Kind.RENAME, b"/ssd/partial/2", b"/ssd/files/x"),
        )
    )
    calls = list(parse(data, "/ssd"))
    assert [call.file for call in calls] == [1, 1, 0, 2, 0]
    assert (calls[4].path, calls[4].new) == ("partial/2", "files/x")


def test_call_that_cannot_be_described_is_refused() -> None:
    with pytest.raises(ValueError, match="linkat /ssd/a"):
        list(parse(recorded(Kind.UNKNOWN, b"/ssd/a", b"linkat"), "/ssd"))


def test_an_attribute_that_was_taken_away_is_none() -> None:
    taken = Call(Kind.XATTR, "user.x", file=1, number=REMOVED)
    (found,) = left((CREATE, LABEL, taken), ALL).files.values()
    assert found.xattrs == ()


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ((), [{}]),
        ((Change({"a": 1}, sure=False),), [{}, {"a": 1}]),
        ((Change({"a": 1}, sure=False), Change({"a": 1}, sure=True)), [{"a": 1}]),
        ((Change({"a": 1}, sure=True), Change({"a": None, "b": 1}, sure=False)), [{"a": 1}, {"b": 1}]),
        ((Change({"a": 1}, sure=True), Change({"a": None}, sure=True)), [{}]),
    ],
)
def test_what_is_under_way_may_be_there_and_what_was_acknowledged_is(
    changes: tuple[Change, ...], possible: list[World]
) -> None:
    assert list(worlds(decode(encode(change).decode()) for change in changes)) == possible
