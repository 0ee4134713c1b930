"""Open folder descriptors: bounded, closed when old or moved, and never past a symlink."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.descriptors import Descriptor
from cachefs.fs import folders as module
from cachefs.fs.folders import Folders


class Clock:
    """``time`` as the folders see it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def root(tmp_path: Path, clock: Clock) -> Iterator[Descriptor]:
    for path in ("a/b/c", "d", "dd/e"):
        (tmp_path / path).mkdir(parents=True)
    before = set(os.listdir("/proc/self/fd"))
    made = Descriptor(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    yield made
    made.close()
    assert set(os.listdir("/proc/self/fd")) - before <= {str(made.number)}  # the listing's own may take its number


def inode(folders: Folders, path: str) -> int:
    with folders.at(path) as folder:
        return os.stat(folder).st_ino


def open_below(root: Descriptor, folder: Path) -> int:
    """How many descriptors this process has open below the root."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def test_a_folder_is_found_by_its_path(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root)
    for path in ("", "a", "a/b/c", "a/b", "dd/e"):
        assert inode(folders, path) == (tmp_path / path).stat().st_ino
    folders.forget("")


def test_at_most_so_many_are_open(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root, most=2)
    for path in ("a/b/c", "d", "dd/e"):
        inode(folders, path)
    assert open_below(root, tmp_path) == 2
    folders.forget("")
    assert open_below(root, tmp_path) == 0


def test_the_least_recently_used_goes_first(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root, most=2)
    for path in ("a", "d", "a", "dd"):
        inode(folders, path)
    os.rename(tmp_path / "a", tmp_path / "moved")
    inode(folders, "a")  # still open, for it was used last
    with pytest.raises(FileNotFoundError):
        inode(folders, "a/b/x")
    os.rename(tmp_path / "d", tmp_path / "moved too")
    with pytest.raises(FileNotFoundError):
        inode(folders, "d")
    folders.forget("")


def test_a_folder_in_use_stays_open_when_it_is_pushed_out_or_forgotten(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root, most=1)
    with folders.at("a/b") as folder:
        inode(folders, "d")
        folders.forget("a")
        assert os.stat(folder).st_ino == (tmp_path / "a/b").stat().st_ino
    folders.forget("")


def test_a_folder_moved_behind_the_mount_is_found_again_when_its_descriptor_is_old(
    root: Descriptor, tmp_path: Path, clock: Clock
) -> None:
    folders = Folders(root, max_age_s=5)
    inode(folders, "a/b")
    os.rename(tmp_path / "a", tmp_path / "elsewhere")
    clock.now += 5.1
    with pytest.raises(FileNotFoundError):
        inode(folders, "a/b")
    assert inode(folders, "elsewhere/b")
    folders.forget("")


def test_a_folder_that_was_removed_and_made_again_is_found_at_once_with_all_above_it(
    root: Descriptor, tmp_path: Path
) -> None:
    folders = Folders(root)
    inode(folders, "a/b/c")
    os.removedirs(tmp_path / "a/b/c")
    with pytest.raises(FileNotFoundError):
        inode(folders, "a/b/c")
    (tmp_path / "a/b/c").mkdir(parents=True)
    inode(folders, "a")
    inode(folders, "a/b")
    assert inode(folders, "a/b/c") == (tmp_path / "a/b/c").stat().st_ino
    with folders.at("a/b/c") as folder:
        os.removedirs(tmp_path / "a/b/c")
        (tmp_path / "a/b/c").mkdir(parents=True)
        assert inode(folders, "a/b/c") == (tmp_path / "a/b/c").stat().st_ino
        assert os.fstat(folder).st_nlink == 0, "whoever uses it keeps it"
    kept = open_below(root, tmp_path)
    inode(folders, "a/b/c")
    assert kept == open_below(root, tmp_path) == 3, "what was opened anew is kept open, and nothing else"
    folders.forget("")


def test_idle_folders_are_closed(root: Descriptor, tmp_path: Path, clock: Clock) -> None:
    folders = Folders(root, max_age_s=5)
    inode(folders, "a/b")
    clock.now += 3
    inode(folders, "d")
    folders.close_idle()
    assert open_below(root, tmp_path) == 3
    clock.now += 3
    folders.close_idle()
    assert open_below(root, tmp_path) == 1
    folders.forget("")


def test_a_forgotten_folder_takes_what_is_below_it_along_and_nothing_else(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root)
    for path in ("a/b/c", "d", "dd/e"):
        inode(folders, path)
    folders.forget("d")
    assert open_below(root, tmp_path) == 5
    folders.forget("a/b")
    assert open_below(root, tmp_path) == 3
    folders.forget("")
    assert open_below(root, tmp_path) == 0


def test_a_folder_renamed_while_it_was_being_opened_is_not_kept_under_its_old_name(
    root: Descriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(root)
    really_open = os.open

    def open_and_lose(path: str, flags: int, **where: int) -> int:
        opened = really_open(path, flags, **where)
        monkeypatch.undo()
        os.rename(tmp_path / "a", tmp_path / "moved")  # by another thread, as far as this one knows
        os.mkdir(tmp_path / "a")
        folders.forget("a")
        return opened

    monkeypatch.setattr(os, "open", open_and_lose)
    inode(folders, "a")
    assert inode(folders, "a") == (tmp_path / "a").stat().st_ino
    folders.forget("")


def test_paths_may_be_longer_than_path_max(root: Descriptor, tmp_path: Path) -> None:
    here, names = os.open(tmp_path, os.O_PATH), ["n" * 250] * 20
    for name in names:
        os.mkdir(name, dir_fd=here)
        deeper = os.open(name, os.O_PATH, dir_fd=here)
        os.close(here)
        here = deeper
    wanted = os.stat(here).st_ino
    os.close(here)
    folders = Folders(root)
    assert inode(folders, "/".join(names)) == wanted
    folders.forget("")


@pytest.mark.parametrize("path", ["link", "link/b", "a/up", "a/up/d", "a/file"])
def test_no_symlink_inside_a_source_is_followed(root: Descriptor, tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "file").touch()
    folders = Folders(root)
    with pytest.raises(NotADirectoryError):
        inode(folders, path)
    folders.forget("")


def test_a_missing_folder_is_enoent_and_leaves_nothing_open(root: Descriptor, tmp_path: Path) -> None:
    folders = Folders(root)
    with pytest.raises(FileNotFoundError):
        inode(folders, "a/b/missing/c")
    folders.forget("")
    assert open_below(root, tmp_path) == 0
