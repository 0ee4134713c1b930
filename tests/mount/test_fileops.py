"""The file-operation scenarios through a real mount, and what only a kernel in between can show."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fileops import MANY, SCENARIOS, Scenario, get, names, put, refused
from tests.mount.realfiles import (
    GROUP,
    MASK,
    OTHER,
    OWNER,
    USER,
    RealFiles,
    User,
    entries,
    mounted,
    opened_folder,
    refusal,
    set_acl,
)
from tests.standin.running import RunningCachefs, start_cachefs

ANNA = User(7001, 7001, (7100,))
BERT = User(7002, 7002)
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture(scope="module")
def one_source() -> Iterator[RealFiles]:
    """A mount that all tests here share."""
    with mounted("Media") as (running, base):
        yield RealFiles(running.mountpoint, base / "Media")


@pytest.fixture
def files(one_source: RealFiles, request: pytest.FixtureRequest) -> RealFiles:
    """A folder of the test's own in the shared mount."""
    name = re.sub(r"\W", "_", request.node.name)
    one_source.mkdir(name)
    return RealFiles(one_source.folder / name, one_source.behind / name)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_through_a_mount(scenario: Scenario, files: RealFiles) -> None:
    scenario(files)


# --- memory maps and listings ----------------------------------------------------------------------------------------


def test_a_file_can_be_mapped_read_and_written(files: RealFiles) -> None:
    put(files, "a", bytes(10_000))
    handle = files.open("a", os.O_RDWR)
    with mmap.mmap(handle, 10_000) as mapped:
        mapped[5000:5005] = b"first"
        assert files.read(handle, 5, 5000) == b"first"
        mapped.flush()
        assert (files.behind / "a").read_bytes()[5000:5005] == b"first"
        files.write(handle, b"second", 100)
        assert mapped[100:106] == b"second"
    files.close(handle)


def test_a_mapping_outlives_its_handle_and_its_name(files: RealFiles) -> None:
    put(files, "a", b"x" * 5000)
    handle = files.open("a")
    mapped = mmap.mmap(handle, 5000, prot=mmap.PROT_READ)
    files.close(handle)
    files.unlink("a")
    assert mapped[:] == b"x" * 5000
    mapped.close()


def test_a_folder_of_many_is_removed_with_all_that_is_in_it(files: RealFiles) -> None:
    files.mkdir("d")
    for index in range(MANY):
        (files.behind / "d" / f"{index}").touch()
    assert len(names(files, "d")) == MANY
    shutil.rmtree(files.folder / "d")
    assert os.listdir(files.behind) == []


def test_seekdir_finds_the_place_that_telldir_told(files: RealFiles) -> None:
    files.mkdir("d")
    for index in range(1500):
        (files.behind / "d" / f"{index}").touch()
    with opened_folder(files.folder / "d") as folder:
        for _ in range(1400):
            folder.next()
        position, rest = folder.tell(), folder.rest()
        assert len(rest) == 102
        folder.seek(0)
        assert folder.next() is not None
        folder.seek(position)
        assert folder.rest() == rest


def test_a_process_stays_in_a_folder_that_is_renamed(files: RealFiles) -> None:
    files.mkdir("d")
    here = os.open(files.folder / "d", os.O_RDONLY | os.O_DIRECTORY)
    files.rename("d", "e")
    os.close(os.open("a", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    assert names(files, "e") == {"a"}
    os.unlink("a", dir_fd=here)
    files.rmdir("e")
    with refused(errno.ENOENT):
        os.open("b", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    assert os.listdir(here) == []
    os.close(here)


def test_paths_may_be_longer_than_path_max(files: RealFiles) -> None:
    here = os.open(files.folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
    handle = os.open("a", os.O_RDWR | os.O_CREAT, dir_fd=here)
    os.write(handle, b"deep")
    assert os.pread(handle, 10, 0) == b"deep"
    os.close(handle)
    assert os.listdir(here) == ["a"]
    os.close(here)


# --- other users -----------------------------------------------------------------------------------------------------


@ROOT_ONLY
def test_what_an_ordinary_user_makes_is_that_users(files: RealFiles) -> None:
    files.chmod("", 0o777)

    def makes() -> None:
        put(files, "file")
        files.mkdir("folder", 0o777)
        files.symlink("file", "symlink")
        files.mkfifo("fifo", 0o666)

    ANNA.does(makes, umask=0o027)
    for name, mode in (("file", 0o640), ("folder", 0o750), ("symlink", 0o777), ("fifo", 0o640)):
        seen, there = files.stat(name), os.lstat(files.behind / name)
        assert (seen.uid, seen.gid, stat.S_IMODE(seen.mode)) == (ANNA.uid, ANNA.gid, mode), name
        assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (ANNA.uid, ANNA.gid, mode), name


@ROOT_ONLY
@pytest.mark.parametrize(("acl", "file", "folder"), [(None, 0o640, 0o750), (0o770, 0o660, 0o770)])
def test_umask_counts_where_no_default_acl_rules(files: RealFiles, acl: int | None, file: int, folder: int) -> None:
    files.chmod("", 0o777)
    if acl is not None:
        entries = ((OWNER, acl >> 6, None), (GROUP, acl >> 3 & 7, None), (OTHER, acl & 7, None))
        set_acl(files.behind, entries, default=True)

    def makes() -> None:
        files.close(files.open("file", os.O_WRONLY | os.O_CREAT, 0o666))
        files.mkdir("folder", 0o777)
        files.mkfifo("fifo", 0o666)
        files.symlink("file", "symlink")

    ANNA.does(makes, umask=0o027)
    for name, mode in (("file", file), ("folder", folder), ("fifo", file), ("symlink", 0o777)):
        assert stat.S_IMODE(files.stat(name).mode) == mode, name
        assert stat.S_IMODE(os.lstat(files.behind / name).st_mode) == mode, name


@ROOT_ONLY
def test_a_default_acl_and_a_setgid_folder_are_handed_down_as_at_the_source(files: RealFiles) -> None:
    files.chmod("", 0o777)
    entries = ((OWNER, 7, None), (USER, 6, BERT.uid), (GROUP, 5, None), (MASK, 6, None), (OTHER, 4, None))

    def makes(folder: Path) -> None:
        os.mkdir(folder / "folder", 0o777)
        for path in (folder / "file", folder / "folder" / "file"):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))

    def shown(folder: Path) -> list[tuple[object, ...]]:
        paths = [folder, folder / "folder", folder / "file", folder / "folder" / "file"]
        acls = [{name: os.getxattr(path, name) for name in os.listxattr(path)} for path in paths]
        return [
            (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid, acl)
            for path, acl in zip(paths, acls, strict=True)
        ]

    made = []
    for name, side in (("here", files.folder), ("there", files.behind)):
        folder = side / name
        folder.mkdir()
        os.chown(folder, 0, ANNA.groups[0])
        folder.chmod(0o3777)
        set_acl(folder, entries, default=True)
        set_acl(folder, [(tag, rights | 3, uid) for tag, rights, uid in entries])
        ANNA.does(lambda folder=folder: makes(folder), umask=0o077)  # type: ignore[misc]
        made.append(shown(folder))
    assert made[0] == made[1] == shown(files.behind / "here")


@ROOT_ONLY
def test_an_acl_does_not_count_unless_it_is_said_to(files: RealFiles) -> None:
    put(files, "film")
    here, there = files.folder / "film", files.behind / "film"
    here.chmod(0o600)
    set_acl(here, entries(ANNA, 4, mask=4))
    assert os.getxattr(here, "system.posix_acl_access") == os.getxattr(there, "system.posix_acl_access")
    assert refusal(ANNA, here) == errno.EACCES
    set_acl(here, entries(BERT, 0, other=4))
    assert stat.S_IMODE(os.stat(there).st_mode) == 0o774
    here.chmod(0o774)
    assert refusal(BERT, here) == 0


@ROOT_ONLY
def test_a_supplementary_group_opens_a_folder_and_setgid_hands_it_down(files: RealFiles) -> None:
    files.mkdir("shared")
    files.chown("shared", 0, ANNA.groups[0])
    files.chmod("shared", 0o2770)

    def makes() -> None:
        put(files, "shared/file")
        files.mkdir("shared/folder")

    ANNA.does(makes)
    assert (files.stat("shared/file").uid, files.stat("shared/file").gid) == (ANNA.uid, ANNA.groups[0])
    assert files.stat("shared/folder").gid == ANNA.groups[0]
    assert files.stat("shared/folder").mode & stat.S_ISGID

    def is_refused() -> None:
        with refused(errno.EACCES):
            put(files, "shared/other")
        with refused(errno.EACCES):
            files.entries("shared")

    BERT.does(is_refused)


@ROOT_ONLY
def test_nobody_may_do_through_the_mount_what_the_modes_forbid(files: RealFiles) -> None:
    files.chmod("", 0o1777)
    ANNA.does(lambda: put(files, "annas", b"private"))
    ANNA.does(lambda: files.chmod("annas", 0o600))

    def is_refused() -> None:
        with refused(errno.EACCES):
            get(files, "annas")
        with refused(errno.EACCES):
            files.open("annas", os.O_WRONLY | os.O_TRUNC)
        with refused(errno.EACCES):
            files.truncate("annas", 0)
        with refused(errno.EPERM):
            files.chmod("annas", 0o666)
        with refused(errno.EPERM):
            files.chown("annas", BERT.uid, -1)
        with refused(errno.EPERM):
            files.set_times("annas", 1, 1)
        with refused(errno.EPERM):
            files.unlink("annas")
        with refused(errno.EPERM):
            files.rename("annas", "berts")
        with refused(errno.EACCES):
            files.setxattr("annas", "user.x", b"y")
        with refused(errno.EACCES):
            files.getxattr("annas", "user.x")

    BERT.does(is_refused)
    assert get(files, "annas") == b"private"


@ROOT_ONLY
def test_a_write_by_another_user_takes_the_set_uid_bit_away(files: RealFiles) -> None:
    put(files, "program", b"#!/bin/sh")
    files.chmod("program", 0o6777)
    ANNA.does(lambda: put(files, "program", b"evil"))
    assert stat.S_IMODE(files.stat("program").mode) == 0o777
    assert stat.S_IMODE((files.behind / "program").stat().st_mode) == 0o777


@ROOT_ONLY
def test_it_does_so_while_the_kernel_reads_the_cached_file() -> None:
    with mounted("Media") as (running, base):
        program = running.mountpoint / "program"
        (base / "Media" / "program").write_bytes(b"good")
        program.chmod(0o6777)
        assert running.run("copy", "program").returncode == 0

        def overwrite() -> None:
            handle = os.open(program, os.O_WRONLY)
            assert os.pwrite(handle, b"evil", 0) == 4
            os.close(handle)

        with program.open("rb", buffering=0) as reader:
            assert running.status().reads.kernel_opens == 1
            ANNA.does(overwrite)
            assert reader.read(4) == b"evil"
        assert stat.S_IMODE((base / "Media" / "program").stat().st_mode) == 0o777


@ROOT_ONLY
def test_a_user_may_hand_a_file_to_an_own_group_only(files: RealFiles) -> None:
    files.chmod("", 0o777)

    def does() -> None:
        put(files, "a")
        files.chown("a", -1, ANNA.groups[0])
        with refused(errno.EPERM):
            files.chown("a", -1, BERT.gid)

    ANNA.does(does)
    assert files.stat("a").gid == ANNA.groups[0]


# --- mounts of other shapes ------------------------------------------------------------------------------------------


def test_several_sources_are_one_folder_each_and_nothing_moves_between_them() -> None:
    with mounted("Films", "TV") as (running, base):
        root = RealFiles(running.mountpoint, base)
        assert names(root) == {"Films", "TV"}
        put(root, "Films/a", b"film")
        put(root, "TV/a", b"series")
        assert ((base / "Films" / "a").read_bytes(), (base / "TV" / "a").read_bytes()) == (b"film", b"series")
        with refused(errno.EXDEV):
            root.rename("Films/a", "TV/b")
        with refused(errno.EXDEV):
            root.link("Films/a", "TV/b")
        for name in ("new", "Films/../new"):
            with refused(errno.EPERM):
                root.mkdir(name)
            with refused(errno.EPERM):
                put(root, name)
        with refused(errno.EPERM):
            root.rmdir("TV")
        with refused(errno.EPERM):
            root.rename("TV", "Series")
        shutil.move(running.mountpoint / "Films" / "a", running.mountpoint / "TV" / "b")
        assert names(root, "TV") == {"a", "b"}
        assert names(root, "Films") == set()


def test_in_place_the_folder_shows_itself_and_its_numbers_survive_a_remount() -> None:
    with mounted("Media", in_place=True) as (running, base):
        files = RealFiles(base / "Media", base / "Media")
        files.mkdir("d")
        put(files, "d/a", b"content")
        files.link("d/a", "b")
        numbers = [files.stat(path).ino for path in ("", "d", "d/a", "b")]
        assert running.terminate() == 0
        assert (base / "Media" / "d" / "a").read_bytes() == b"content"
        assert os.stat(base / "Media" / "d" / "a").st_ino == numbers[2]

        settings = {"mountpoint": str(base / "Media"), "control": {"socket": str(running.socket)}}
        again = start_cachefs(base / "again.yaml", running.log, _settings(running) | settings)
        try:
            assert [files.stat(path).ino for path in ("b", "d/a", "d", "")] == [
                numbers[3],
                *numbers[2:0:-1],
                numbers[0],
            ]
            assert dict(files.entries("d"))["a"] == numbers[2]
            assert get(files, "b") == b"content"
        finally:
            again.remove()


def _settings(running: RunningCachefs) -> dict[str, Any]:
    return dict(yaml.safe_load(running.config.read_text()))
