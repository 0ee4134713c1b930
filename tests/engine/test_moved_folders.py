"""The folders of moved files: on the SSD, where they come and go, and at the source, which knows no such file."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.cache.places import Stays
from cachefs.cache.restoring import Restoration
from cachefs.fs import foldertimes
from cachefs.fs.foldertimes import unseen
from cachefs.fs.found import RESERVED
from cachefs.fs.homes import Homes
from cachefs.fs.times import set_times
from cachefs.model import SourceName
from cachefs.verification import Flaw
from tests.engine.fskit import Kernel, rooms
from tests.engine.test_moving import CONTENT, FILM, NEW, OTHER, content, kernel_of, put, verified
from tests.fileops import refused

LONG_AGO_NS = 10**18
EPISODES = [f"Shows/Fargo/Season 1/e{number}.mkv" for number in range(3)]


async def test_a_file_that_moves_to_folders_made_anew_is_reached_at_once(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        kernel, ssd = kernel_of(fs), tmp_path / "ssd/files/Media"
        for path in EPISODES:
            put(fs, path, CONTENT)
            await fs.moved(path)
            assert (await trio.to_thread.run_sync(kernel.stat, path)).size == len(CONTENT)
            await trio.to_thread.run_sync(kernel.chmod, path, 0o600)
            assert await content(fs, path) == CONTENT
            await trio.to_thread.run_sync(kernel.unlink, path)
            assert os.listdir(ssd) == [], "the folders went with the last file in them"


# --- the mtime of a folder at the source -----------------------------------------------------------------------------


def make_old(folder: Path) -> None:
    os.utime(folder, ns=(LONG_AGO_NS, LONG_AGO_NS))


def is_old(folder: Path) -> bool:
    return folder.stat().st_mtime_ns == LONG_AGO_NS


async def test_the_mtime_of_its_folders_does_not_tell_that_a_file_has_moved_or_come_home(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        films = put(fs, FILM, CONTENT).parent
        put(fs, "other", OTHER)
        make_old(films)
        make_old(fs.folder)
        for path in (FILM, "other"):
            key = await fs.moved(path)
            assert is_old(films)
            assert is_old(fs.folder), "a folder of cachefs's own was made, or removed, in it"
            await fs.movers.restore(key)
            assert (fs.folder / path).exists()
            assert is_old(films)
            assert is_old(fs.folder)
        assert (await trio.to_thread.run_sync(kernel_of(fs).stat, "Films")).mtime_ns == LONG_AGO_NS


TARGET = "Shows/Heat.mkv"
CHANGES: dict[str, tuple[Callable[[Kernel], object], tuple[str, ...]]] = {
    "unlink": (lambda kernel: kernel.unlink(FILM), ("Films",)),
    "rename": (lambda kernel: kernel.rename(FILM, NEW), ("Films",)),
    "rename to another folder": (lambda kernel: kernel.rename(FILM, TARGET + "2"), ("Films", "Shows")),
    "rename over a moved file": (lambda kernel: kernel.rename(FILM, TARGET), ("Films", "Shows")),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_the_mtime_of_its_folders_tells_that_a_moved_file_was_deleted_or_renamed(
    tmp_path: Path, what: str
) -> None:
    change, folders = CHANGES[what]
    async with rooms(tmp_path) as fs:
        for path in (FILM, TARGET):
            put(fs, path, CONTENT)
            await fs.moved(path)
        for name in ("Films", "Shows"):
            make_old(fs.folder / name)
        kernel = kernel_of(fs)
        await trio.to_thread.run_sync(change, kernel)
        seen = {name for name in ("Films", "Shows") if not is_old(fs.folder / name)}
        assert seen == set(folders)
        for name in folders:
            assert (await trio.to_thread.run_sync(kernel.stat, name)).mtime_ns > LONG_AGO_NS


async def test_a_source_that_cannot_be_told_keeps_nobody_from_deleting_a_moved_file(tmp_path: Path) -> None:
    def gate(name: str) -> None:
        if name == "touch":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        fs.source.gate = gate
        await trio.to_thread.run_sync(kernel_of(fs).unlink, FILM)
        assert "touch" in fs.source.asked
        assert not fs.store.moves.all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Long ago, a film was put in it."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "film").touch()
    make_old(made)
    return made


def act_unseen(folder: Path, act: Callable[[], object]) -> None:
    number = os.open(folder, os.O_PATH)
    try:
        with unseen(number, "film"):
            act()
    finally:
        os.close(number)


def test_what_somebody_else_does_in_the_folder_meanwhile_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act_unseen(folder, (folder / "film").unlink)
    assert is_old(folder)

    def meanwhile() -> None:
        (folder / "theirs").touch()
        (folder / "film").touch()

    def set_and_unlink() -> None:
        make_old(folder)
        (folder / "film").unlink()

    act_unseen(folder, meanwhile)
    assert not is_old(folder)
    make_old(folder)
    act_unseen(folder, set_and_unlink)
    assert not is_old(folder), "somebody has set it"
    make_old(folder)

    def late(path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        (folder / "late").touch()
        set_times(path, atime_ns, mtime_ns)

    monkeypatch.setattr(foldertimes, "set_times", late)
    act_unseen(folder, (folder / "film").touch)
    assert not is_old(folder)


def test_where_nobody_can_tell_what_happens_in_a_folder_its_mtime_is_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(**_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(foldertimes, "INotify", no_more)
        act_unseen(folder, (folder / "film").unlink)
    assert not is_old(folder)
    make_old(folder)
    with pytest.raises(FileNotFoundError):
        act_unseen(folder, (folder / "film").unlink)
    assert is_old(folder)


# --- what a source keeps ---------------------------------------------------------------------------------------------


def kept_at(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(f"{RESERVED}/*")}


async def test_who_restores_everything_leaves_nothing_of_deleted_files_at_any_source(
    tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("is offline")
    paths = {name: f"{name}/film" for name in ("Films", "Series", "Away")}
    async with rooms(tmp_path, *paths) as fs:
        for path in (*paths.values(), "Films/stays"):
            (tmp_path / "sources" / path).write_bytes(CONTENT)
            await fs.moved(path)
        for path in paths.values():
            await fs.node(path)  # the kernel knows it, as one that somebody has open
            await trio.to_thread.run_sync(kernel_of(fs).unlink, path)
        await Restoration(fs.movers, (), fs.union.sources).run()
        assert [len(kept_at(folder)) for folder in fs.folders.values()] == [2, 1, 1], "no other file gets their numbers"
        counted = [await Homes(fs.union).count_kept(source) for source in fs.union.sources.values()]
        assert counted == [1, 0, 0], "nobody takes them for files of an SSD that is not there"
    async with rooms(tmp_path, *paths) as fs:
        films, series, away = fs.folders.values()
        (films / RESERVED / "1000000").write_bytes(b"what could not be brought home")
        (films / RESERVED / "somebody's").touch()
        fs.union.sources[SourceName("Away")].doubt("it was pulled out")
        (entry,) = fs.store.moves.all()
        await Restoration(fs.movers, ()).run()
        assert len(kept_at(films)) == 4, "who restores a file looks after no other"
        await Restoration(fs.movers, (), fs.union.sources).run()
        assert kept_at(films) == {str(entry.source_file.inode), "1000000", "somebody's"}
        assert not (series / RESERVED).exists()
        assert len(kept_at(away)) == 1
        await fs.movers.restore(entry.key)
        assert (films / "stays").stat().st_ino == entry.source_file.inode & 0xFFFF_FFFF_FFFF


async def test_a_file_that_is_deleted_on_its_way_home_while_somebody_has_it_open_takes_no_room(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        number = (await fs.node(FILM)).number
        bring = fs.movers.carrying.bring

        async def late(*args: Any) -> None:
            await bring(*args)
            await trio.to_thread.run_sync(kernel_of(fs).unlink, FILM)

        with pytest.MonkeyPatch.context() as patch, suppress(Stays, OSError):
            patch.setattr(fs.movers.carrying, "bring", late)
            await fs.movers.restore(key)
        (kept,) = (fs.folder / RESERVED).iterdir()
        assert (kept.name, kept.stat().st_size) == (f"{number}.deleted", 0)
        assert not (fs.folder / FILM).exists()


# --- folders that are deleted behind the mount -----------------------------------------------------------------------


async def test_moved_files_whose_folder_was_deleted_at_its_source_are_named_until_they_are_restored(
    tmp_path: Path,
) -> None:
    async with rooms(tmp_path) as fs:
        for path in (EPISODES[0], FILM, "at the root"):
            put(fs, path, CONTENT)
            await fs.moved(path)
        assert await verified(fs) == set()
        shutil.rmtree(fs.folder / "Shows")
        with refused(errno.ENOENT):
            await trio.to_thread.run_sync(kernel_of(fs).stat, EPISODES[0])
        assert await verified(fs) == {(Flaw.HOMELESS, "")}
        ((key, why),) = fs.movers.problems()
        assert key == fs.key(EPISODES[0])
        assert "cachefs restore" in why
        as_open = (os.getuid(), 1000 if os.getuid() == 0 else os.getgid(), 0o750)
        os.chown(fs.folder, *as_open[:2])
        fs.folder.chmod(as_open[2])
        await fs.movers.restore(key)
        assert await content(fs, EPISODES[0]) == CONTENT
        assert not fs.movers.problems()
        assert await verified(fs) == set()
        for folder in (fs.folder / EPISODES[0]).relative_to(fs.folder).parents[:-1]:
            made = (fs.folder / folder).stat()
            assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == as_open, "as the one that it is in"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
async def test_a_folder_that_is_made_for_a_returning_file_is_open_though_it_can_be_given_no_owner(
    tmp_path: Path, number: int
) -> None:
    def refuse(folder: int, *of: int) -> None:
        """As NFS does for an owner whom the server does not know."""
        if stat.S_ISDIR(os.fstat(folder).st_mode):
            raise OSError(number, os.strerror(number))
        give(folder, *of)

    give = os.fchown
    async with rooms(tmp_path) as fs:
        put(fs, EPISODES[0], CONTENT)
        await fs.moved(EPISODES[0])
        shutil.rmtree(fs.folder / "Shows")
        fs.folder.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fchown", refuse)
            await fs.movers.restore(fs.key(EPISODES[0]))
        assert (fs.folder / EPISODES[0]).read_bytes() == CONTENT
        assert stat.S_IMODE((fs.folder / EPISODES[0]).parent.stat().st_mode) == 0o755


async def test_moved_files_whose_folder_is_back_are_named_no_more(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        films = put(fs, FILM, CONTENT).parent
        await fs.moved(FILM)
        films.rmdir()
        assert await verified(fs) == {(Flaw.HOMELESS, "")}
        films.touch()
        assert await verified(fs) == {(Flaw.UNCOMPARED, "")}, "a file has the name of its folder"
        films.unlink()
        films.mkdir()
        assert await verified(fs) == set()
        assert not fs.movers.problems()
        assert await content(fs, FILM) == CONTENT
