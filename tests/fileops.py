"""What people and programs do to files: scenarios as plain functions over a small interface.

``tests.engine.test_fileops`` runs them against the operations in process, ``tests.mount.test_fileops`` against a real
mount. A scenario has a folder of its own and finds the same folder at its source in ``files.behind``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

STATE = "user.cachefs.state"
NOREPLACE = 1
EXCHANGE = 2
MANY = 3000


@dataclass(frozen=True, slots=True)
class Seen:
    """What stat(2) shows, as far as scenarios look at it."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int


class Files(Protocol):
    """System calls on paths below one folder; they raise OSError. ``open`` takes ``O_CREAT`` and the rest."""

    @property
    def behind(self) -> Path: ...
    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int: ...
    def read(self, handle: int, size: int, offset: int = 0) -> bytes: ...
    def write(self, handle: int, data: bytes, offset: int | None = None) -> int:
        """At ``offset``, or where an append goes when it is None."""

    def close(self, handle: int) -> None: ...
    def fstat(self, handle: int) -> Seen: ...
    def ftruncate(self, handle: int, size: int) -> None: ...
    def fsync(self, handle: int, datasync: bool = False) -> None: ...
    def fsync_folder(self, path: str) -> None: ...
    def stat(self, path: str) -> Seen: ...
    def entries(self, path: str) -> list[tuple[str, int]]:
        """Names and inode numbers as readdir(3) gives them, ``.`` and ``..`` too."""

    def truncate(self, path: str, size: int) -> None: ...
    def mkdir(self, path: str, mode: int = 0o755) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str, flags: int = 0) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def mkfifo(self, path: str, mode: int = 0o644) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int) -> None: ...
    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None: ...
    def getxattr(self, path: str, name: str) -> bytes: ...
    def setxattr(self, path: str, name: str, value: bytes) -> None: ...
    def removexattr(self, path: str, name: str) -> None: ...
    def listxattr(self, path: str) -> list[str]: ...
    def statvfs(self, path: str) -> os.statvfs_result: ...


Scenario = Callable[[Files], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        yield
    assert os.strerror(caught.value.errno or 0) == os.strerror(number)


def put(files: Files, path: str, data: bytes = b"") -> None:
    handle = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if data:
        files.write(handle, data, 0)
    files.close(handle)


def get(files: Files, path: str) -> bytes:
    handle = files.open(path)
    data = files.read(handle, 1 << 20)
    files.close(handle)
    return data


def names(files: Files, path: str = "") -> set[str]:
    return {name for name, _ in files.entries(path)} - {".", ".."}


# --- content ---------------------------------------------------------------------------------------------------------


@scenario
def a_new_file_holds_what_is_written_here_and_at_its_source(files: Files) -> None:
    put(files, "a", b"hello")
    assert get(files, "a") == b"hello"
    assert (files.behind / "a").read_bytes() == b"hello"
    assert files.stat("a").size == 5


@scenario
def a_second_handle_reads_what_the_first_has_written(files: Files) -> None:
    writer = files.open("a", os.O_RDWR | os.O_CREAT)
    reader = files.open("a")
    files.write(writer, b"one", 0)
    assert files.read(reader, 10) == b"one"
    files.write(writer, b"two", 3)
    assert files.read(reader, 10) == b"onetwo"
    assert files.read(writer, 10) == b"onetwo"
    files.close(writer)
    files.close(reader)


@scenario
def a_write_past_the_end_leaves_zeros_between(files: Files) -> None:
    handle = files.open("a", os.O_RDWR | os.O_CREAT)
    files.write(handle, b"end", 5)
    assert files.read(handle, 20) == b"\0\0\0\0\0end"
    files.close(handle)


@scenario
def a_read_past_the_end_is_empty(files: Files) -> None:
    put(files, "a", b"12345")
    handle = files.open("a")
    assert files.read(handle, 10, 3) == b"45"
    assert files.read(handle, 10, 5) == b""
    assert files.read(handle, 10, 500) == b""
    files.close(handle)


@scenario
def an_append_goes_to_the_end(files: Files) -> None:
    put(files, "a", b"first ")
    handle = files.open("a", os.O_WRONLY | os.O_APPEND)
    files.write(handle, b"second ")
    files.write(handle, b"third")
    files.close(handle)
    assert get(files, "a") == b"first second third"


@scenario
def open_with_o_trunc_empties_the_file(files: Files) -> None:
    put(files, "a", b"something")
    handle = files.open("a", os.O_WRONLY | os.O_TRUNC)
    assert files.fstat(handle).size == 0
    files.close(handle)
    assert (files.behind / "a").read_bytes() == b""
    assert files.stat("a").size == 0


@scenario
def truncate_cuts_and_extends(files: Files) -> None:
    put(files, "a", b"0123456789")
    files.truncate("a", 4)
    assert get(files, "a") == b"0123"
    files.truncate("a", 6)
    assert get(files, "a") == b"0123\0\0"
    handle = files.open("a", os.O_RDWR)
    files.ftruncate(handle, 2)
    assert files.fstat(handle).size == 2
    assert files.read(handle, 10) == b"01"
    files.close(handle)
    assert (files.behind / "a").read_bytes() == b"01"


@scenario
def a_file_of_several_megabytes_is_the_same_here_and_there(files: Files) -> None:
    data = os.urandom(3 * (1 << 20) + 17)
    handle = files.open("a", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += files.write(handle, data[done : done + 100_000], done)
    files.close(handle)
    handle = files.open("a")
    found = b""
    while part := files.read(handle, 1 << 17, len(found)):
        found += part
    files.close(handle)
    assert found == data
    assert (files.behind / "a").read_bytes() == data


@scenario
def fsync_of_files_and_folders_succeeds(files: Files) -> None:
    files.mkdir("d")
    handle = files.open("d/a", os.O_RDWR | os.O_CREAT)
    files.write(handle, b"x", 0)
    files.fsync(handle)
    files.fsync(handle, datasync=True)
    files.close(handle)
    reader = files.open("d/a")
    files.fsync(reader)
    files.close(reader)
    files.fsync_folder("d")


# --- names -----------------------------------------------------------------------------------------------------------


@scenario
def a_missing_name_is_enoent(files: Files) -> None:
    with refused(2):
        files.stat("a")
    with refused(2):
        files.open("a")
    with refused(2):
        files.stat("no/such/folder")


@scenario
def o_excl_refuses_a_name_that_exists(files: Files) -> None:
    put(files, "a", b"kept")
    with refused(17):
        files.open("a", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert get(files, "a") == b"kept"
    files.close(files.open("b", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    assert names(files) == {"a", "b"}


@scenario
def a_folder_is_made_listed_and_removed(files: Files) -> None:
    files.mkdir("d", 0o750)
    assert stat.S_ISDIR(files.stat("d").mode)
    assert files.stat("d").mode & 0o7777 == 0o750
    put(files, "d/a")
    assert names(files, "d") == {"a"}
    with refused(39):
        files.rmdir("d")
    files.unlink("d/a")
    files.rmdir("d")
    with refused(2):
        files.stat("d")
    assert not (files.behind / "d").exists()


@scenario
def folders_count_their_subfolders_as_at_the_source(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("d/e")
    assert files.stat("d").nlink == (files.behind / "d").stat().st_nlink


@scenario
def mkdir_over_a_name_is_eexist(files: Files) -> None:
    put(files, "a")
    with refused(17):
        files.mkdir("a")
    with refused(20):
        files.rmdir("a")
    files.mkdir("d")
    with refused(21):
        files.unlink("d")


@scenario
def an_unlinked_name_is_free_for_another_file(files: Files) -> None:
    put(files, "a", b"old")
    files.unlink("a")
    with refused(2):
        files.stat("a")
    put(files, "a", b"new")
    assert get(files, "a") == b"new"


@scenario
def an_unlinked_file_lives_while_it_is_open(files: Files) -> None:
    handle = files.open("a", os.O_RDWR | os.O_CREAT)
    files.write(handle, b"still here", 0)
    number = files.fstat(handle).ino
    files.unlink("a")
    assert files.fstat(handle).nlink == 0
    assert files.fstat(handle).ino == number
    assert files.read(handle, 20) == b"still here"
    files.write(handle, b"STILL", 0)
    files.ftruncate(handle, 5)
    files.fsync(handle)
    assert files.read(handle, 20) == b"STILL"
    assert files.fstat(handle).size == 5
    put(files, "a", b"another")
    assert files.stat("a").ino != number
    assert files.read(handle, 20) == b"STILL"
    files.close(handle)
    assert get(files, "a") == b"another"


@scenario
def an_unlinked_file_that_is_open_for_reading_stays_readable(files: Files) -> None:
    put(files, "a", b"still here")
    reader = files.open("a")
    files.unlink("a")
    assert files.read(reader, 20) == b"still here"
    assert files.fstat(reader).nlink == 0
    files.close(reader)


@scenario
def the_numbers_of_removed_open_files_are_not_given_to_new_ones(files: Files) -> None:
    put(files, "first", b"first")
    reader = files.open("first")
    number = files.fstat(reader).ino
    files.unlink("first")
    for index in range(8):
        put(files, f"later {index}", b"later")
    assert number not in {number for _, number in files.entries("")}
    assert files.read(reader, 10) == b"first"
    files.close(reader)


@scenario
def a_file_in_a_removed_folder_lives_while_it_is_open(files: Files) -> None:
    files.mkdir("d")
    handle = files.open("d/a", os.O_RDWR | os.O_CREAT)
    files.write(handle, b"data", 0)
    files.unlink("d/a")
    files.rmdir("d")
    files.mkdir("d")
    assert files.read(handle, 10) == b"data"
    assert files.fstat(handle).nlink == 0
    files.close(handle)
    assert names(files, "d") == set()


@scenario
def a_listing_shows_every_one_of_many_names_once(files: Files) -> None:
    files.mkdir("d")
    wanted = [f"name {index:04}" for index in range(MANY)]
    for name in wanted:
        (files.behind / "d" / name).touch()
    listed = [name for name, _ in files.entries("d")]
    assert sorted(listed) == sorted([".", "..", *wanted])
    assert len(set(dict(files.entries("d")).values())) >= MANY


@scenario
def an_empty_folder_lists_itself_and_its_parent(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("d/e")
    listed = dict(files.entries("d/e"))
    assert listed == {".": files.stat("d/e").ino, "..": files.stat("d").ino}


@scenario
def names_may_be_255_bytes_long_and_no_longer(files: Files) -> None:
    name = "ä" * 127 + "x"
    put(files, name, b"long")
    assert get(files, name) == b"long"
    assert names(files) == {name}
    with refused(36):
        put(files, name + "x")


@scenario
def names_need_not_be_utf_8(files: Files) -> None:
    name, target = os.fsdecode(b"caf\xe9 \xff\xfe"), os.fsdecode(b"\xc3\x28")
    put(files, name, b"latin")
    assert names(files) == {name}
    assert os.listdir(os.fsencode(files.behind)) == [os.fsencode(name)]
    files.rename(name, target)
    assert get(files, target) == b"latin"
    files.symlink(name, "link")
    assert files.readlink("link") == name


@scenario
def a_new_name_at_the_source_is_found(files: Files) -> None:
    (files.behind / "sub").mkdir()
    (files.behind / "sub" / "a").write_bytes(b"from behind")
    assert get(files, "sub/a") == b"from behind"
    assert names(files, "sub") == {"a"}


# --- rename ----------------------------------------------------------------------------------------------------------


@scenario
def rename_moves_a_file_and_keeps_its_number(files: Files) -> None:
    put(files, "a", b"moved")
    files.mkdir("d")
    number = files.stat("a").ino
    files.rename("a", "d/b")
    assert names(files) == {"d"}
    assert files.stat("d/b").ino == number
    assert get(files, "d/b") == b"moved"
    with refused(2):
        files.rename("a", "c")


@scenario
def rename_over_a_file_replaces_it(files: Files) -> None:
    put(files, "old", b"old")
    put(files, "new", b"new")
    reader = files.open("old")
    number = files.stat("new").ino
    files.rename("new", "old")
    assert files.stat("old").ino == number
    assert get(files, "old") == b"new"
    assert files.read(reader, 10) == b"old"
    assert files.fstat(reader).nlink == 0
    files.close(reader)


@scenario
def rename_of_an_open_file_leaves_its_handle_alone(files: Files) -> None:
    handle = files.open("a", os.O_RDWR | os.O_CREAT)
    files.write(handle, b"one", 0)
    files.rename("a", "b")
    files.write(handle, b"two", 3)
    assert files.fstat(handle).size == 6
    files.ftruncate(handle, 4)
    assert get(files, "b") == b"onet"
    files.close(handle)


@scenario
def rename_of_a_folder_carries_what_is_in_it(files: Files) -> None:
    files.mkdir("d")
    files.mkdir("d/e")
    put(files, "d/e/a", b"inside")
    reader = files.open("d/e/a")
    number = files.stat("d/e/a").ino
    files.rename("d", "f")
    assert files.stat("f/e/a").ino == number
    assert files.fstat(reader).nlink == 1
    assert files.read(reader, 10) == b"inside"
    files.mkdir("d")
    assert names(files, "d") == set()
    put(files, "d/a", b"another")
    assert get(files, "f/e/a") == b"inside"
    files.close(reader)


@scenario
def rename_noreplace_refuses_a_name_that_exists(files: Files) -> None:
    put(files, "a", b"a")
    put(files, "b", b"b")
    with refused(17):
        files.rename("a", "b", NOREPLACE)
    files.rename("a", "c", NOREPLACE)
    assert (get(files, "b"), get(files, "c")) == (b"b", b"a")


@scenario
def rename_exchange_swaps_two_names(files: Files) -> None:
    files.mkdir("d")
    put(files, "d/inside", b"inside")
    put(files, "a", b"file")
    folder, file = files.stat("d").ino, files.stat("a").ino
    files.rename("d", "a", EXCHANGE)
    assert (files.stat("a").ino, files.stat("d").ino) == (folder, file)
    assert get(files, "a/inside") == b"inside"
    assert get(files, "d") == b"file"
    with refused(2):
        files.rename("a", "missing", EXCHANGE)


@scenario
def rename_over_a_folder_needs_it_empty(files: Files) -> None:
    files.mkdir("a")
    put(files, "a/in a")
    files.mkdir("b")
    put(files, "b/in b")
    with refused(39):
        files.rename("a", "b")
    assert names(files, "b") == {"in b"}
    files.unlink("b/in b")
    files.rename("a", "b")
    assert names(files) == {"b"}
    assert names(files, "b") == {"in a"}


@scenario
def a_folder_cannot_be_moved_into_itself(files: Files) -> None:
    files.mkdir("a")
    files.mkdir("a/b")
    with refused(22):
        files.rename("a", "a/b/c")


# --- links and special files -----------------------------------------------------------------------------------------


@scenario
def hard_links_are_one_file(files: Files) -> None:
    put(files, "a", b"shared")
    files.mkdir("d")
    files.link("a", "d/b")
    assert files.stat("a").ino == files.stat("d/b").ino
    assert (files.stat("a").nlink, files.stat("d/b").nlink) == (2, 2)
    handle = files.open("d/b", os.O_WRONLY)
    files.write(handle, b"SHARED", 0)
    files.close(handle)
    assert get(files, "a") == b"SHARED"
    files.unlink("a")
    assert get(files, "d/b") == b"SHARED"
    assert files.stat("d/b").nlink == 1
    files.mkdir("e")
    with refused(17):
        files.link("d/b", "e")


@scenario
def hard_links_made_at_the_source_have_one_number(files: Files) -> None:
    (files.behind / "x").write_bytes(b"x")
    os.link(files.behind / "x", files.behind / "y")
    assert files.stat("x").ino == files.stat("y").ino == dict(files.entries(""))["y"]


@scenario
def an_open_hard_link_outlives_its_other_name(files: Files) -> None:
    put(files, "a", b"shared")
    files.link("a", "b")
    reader = files.open("a")
    files.unlink("a")
    assert files.fstat(reader).nlink == 1
    assert files.read(reader, 10) == b"shared"
    files.unlink("b")
    assert files.fstat(reader).nlink == 0
    assert files.read(reader, 10) == b"shared"
    files.close(reader)


@scenario
def a_symlink_says_where_it_leads(files: Files) -> None:
    files.symlink("../some where/else", "link")
    assert files.readlink("link") == "../some where/else"
    assert stat.S_ISLNK(files.stat("link").mode)
    assert os.readlink(files.behind / "link") == "../some where/else"
    files.unlink("link")
    assert names(files) == set()


@scenario
def a_symlinks_own_attributes_can_be_set(files: Files) -> None:
    put(files, "target")
    before = files.stat("target")
    files.symlink("target", "link")
    files.set_times("link", 5, 7)
    files.chown("link", os.getuid(), os.getgid())
    assert (files.stat("link").atime_ns, files.stat("link").mtime_ns) == (5, 7)
    assert files.stat("target").mtime_ns == before.mtime_ns


@scenario
def a_fifo_is_a_fifo(files: Files) -> None:
    files.mkfifo("pipe", 0o600)
    assert stat.S_ISFIFO(files.stat("pipe").mode)
    assert files.stat("pipe").mode & 0o7777 == 0o600
    assert stat.S_ISFIFO((files.behind / "pipe").stat().st_mode)


# --- attributes ------------------------------------------------------------------------------------------------------


@scenario
def inode_numbers_are_the_same_however_they_are_asked(files: Files) -> None:
    put(files, "a")
    files.mkdir("d")
    listed = dict(files.entries(""))
    handle = files.open("a")
    assert listed["a"] == files.stat("a").ino == files.fstat(handle).ino
    assert listed["d"] == files.stat("d").ino == dict(files.entries("d"))["."]
    files.close(handle)


@scenario
def chmod_changes_the_mode_and_nothing_else(files: Files) -> None:
    put(files, "a", b"x")
    before = files.stat("a")
    files.chmod("a", 0o4701)
    after = files.stat("a")
    assert after.mode & 0o7777 == 0o4701
    assert (after.size, after.mtime_ns, after.ino) == (before.size, before.mtime_ns, before.ino)
    files.mkdir("d")
    files.chmod("d", 0o3770)
    assert files.stat("d").mode & 0o7777 == 0o3770


@scenario
def chown_changes_owner_and_group_each_alone(files: Files) -> None:
    put(files, "a")
    other = 4242 if os.geteuid() == 0 else os.getuid()
    files.chown("a", other, -1)
    assert (files.stat("a").uid, files.stat("a").gid) == (other, os.getgid())
    other_group = 4343 if os.geteuid() == 0 else os.getgid()
    files.chown("a", -1, other_group)
    assert (files.stat("a").uid, files.stat("a").gid) == (other, other_group)


@scenario
def times_are_kept_to_the_nanosecond_and_each_alone(files: Files) -> None:
    put(files, "a", b"x")
    atime, mtime = 1_600_000_000_123_456_789, 1_500_000_000_987_654_321
    files.set_times("a", atime, mtime)
    assert (files.stat("a").atime_ns, files.stat("a").mtime_ns) == (atime, mtime)
    files.set_times("a", None, mtime + 1)
    assert (files.stat("a").atime_ns, files.stat("a").mtime_ns) == (atime, mtime + 1)
    files.set_times("a", atime + 1, None)
    assert (files.stat("a").atime_ns, files.stat("a").mtime_ns) == (atime + 1, mtime + 1)
    assert (files.behind / "a").stat().st_mtime_ns == mtime + 1


@scenario
def times_before_1970_are_kept(files: Files) -> None:
    put(files, "a")
    files.set_times("a", -1_500_000_000, -1)
    assert (files.stat("a").atime_ns, files.stat("a").mtime_ns) == (-1_500_000_000, -1)


@scenario
def a_write_moves_the_time_of_modification(files: Files) -> None:
    put(files, "a", b"x")
    files.set_times("a", 1, 1)
    put(files, "a", b"y")
    assert files.stat("a").mtime_ns > 1


@scenario
def extended_attributes_are_the_sources(files: Files) -> None:
    put(files, "a")
    with refused(61):
        files.getxattr("a", "user.title")
    files.setxattr("a", "user.title", b"Heat")
    assert files.getxattr("a", "user.title") == b"Heat"
    assert os.getxattr(files.behind / "a", "user.title") == b"Heat"
    assert files.listxattr("a") == ["user.title"]
    files.removexattr("a", "user.title")
    assert files.listxattr("a") == []
    with refused(61):
        files.removexattr("a", "user.title")
    files.mkdir("d")
    files.setxattr("d", "user.title", b"Folder")
    assert files.getxattr("d", "user.title") == b"Folder"


@scenario
def the_state_is_answered_never_listed_and_cannot_be_set(files: Files) -> None:
    put(files, "a")
    files.mkdir("d")
    assert files.getxattr("a", STATE) == b"source"
    assert files.listxattr("a") == []
    with refused(1):
        files.setxattr("a", STATE, b"cached")
    with refused(1):
        files.removexattr("a", STATE)
    with refused(61):
        files.getxattr("d", STATE)


@scenario
def statvfs_shows_the_sources_file_system(files: Files) -> None:
    here, there = files.statvfs(""), os.statvfs(files.behind)
    assert (here.f_blocks, here.f_frsize, here.f_files) == (there.f_blocks, there.f_frsize, there.f_files)
    assert here.f_namemax == there.f_namemax
