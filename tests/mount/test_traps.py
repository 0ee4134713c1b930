"""Where other file systems that show two places as one go wrong: what the copy on the SSD must never change."""

from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fileops import EXCHANGE, NOREPLACE, names, put, refused
from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.mount.realfiles import RealFiles, mounted
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

SEEN_WITHIN_S = 2.0
CONTENT = random.Random(10).randbytes(MIB)
LONG_AGO_NS = 1_000_000_000_000_000_007


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[RunningCachefs, Path]]:
    """A mount of two sources, ``Films`` and ``TV``, that all tests here share, and the folder that has both."""
    with mounted("Films", "TV") as made:
        yield made


@pytest.fixture
def running(shared: tuple[RunningCachefs, Path]) -> RunningCachefs:
    return shared[0]


@pytest.fixture
def files(shared: tuple[RunningCachefs, Path], request: pytest.FixtureRequest) -> RealFiles:
    """A folder of the test's own in ``Films``, which holds ``film`` alone."""
    running, base = shared
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    (running.mountpoint / "Films" / name).mkdir()
    made = RealFiles(running.mountpoint / "Films" / name, base / "Films" / name)
    (made.folder / "film").write_bytes(CONTENT)
    return made


def state(path: Path) -> str:
    return os.getxattr(path, STATE).decode()


def cache(running: RunningCachefs, *paths: Path) -> None:
    """Copy files to the SSD, and return once they are there."""
    with running.client() as client:
        for path in paths:
            client.copy(str(path))
    wait_until(running, lambda: all(state(path) == "cached" for path in paths), "all are cached")


def evict(running: RunningCachefs, path: Path) -> None:
    with running.client() as client:
        client.evict(str(path))
    wait_until(running, lambda: state(path) == "source", f"{path.name} is evicted")


def everything(path: Path) -> dict[str, object]:
    """All that stat(2) shows of it, but for its device, and when it was last read: to copy is to read."""
    seen = os.lstat(path)
    names = (name for name in dir(seen) if name.startswith("st_") and "atime" not in name and name != "st_dev")
    return {name: getattr(seen, name) for name in names}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every name below it, and the bytes of files."""
    return {str(path.relative_to(folder)): read(path) if path.is_file() else None for path in folder.rglob("*")}


# --- what stat shows -------------------------------------------------------------------------------------------------


def test_numbers_and_times_stay_when_a_copy_appears_is_read_and_goes(running: RunningCachefs, files: RealFiles) -> None:
    film, folder = files.folder / "film", files.folder
    os.link(film, folder / "linked")
    os.utime(film, ns=(LONG_AGO_NS, LONG_AGO_NS + 5))

    def shown() -> list[object]:
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.inode()) for entry in entries)
        paths = (film, folder / "linked", folder, files.behind / "film", files.behind)
        return [listed, os.fstat(opened.fileno()).st_ctime_ns, *map(everything, paths)]

    with film.open("rb") as opened:
        before = shown()
        for _ in range(2):
            cache(running, film)
            assert shown() == before
            assert read(film) == CONTENT
            assert shown() == before
            evict(running, film)
            assert shown() == before


def test_a_folder_is_as_old_as_its_source(running: RunningCachefs, files: RealFiles) -> None:
    cache(running, files.folder / "film")
    steps: list[Callable[[], object]] = [
        (files.behind / "new").touch,
        lambda: (files.behind / "new").rename(files.behind / "renamed"),
        (files.behind / "renamed").unlink,
        lambda: os.utime(files.behind, ns=(LONG_AGO_NS, LONG_AGO_NS)),
    ]

    def is_as_old() -> bool:
        return files.stat("").mtime_ns == files.behind.stat().st_mtime_ns

    for step in steps:
        before = files.behind.stat().st_mtime_ns
        step()
        assert files.behind.stat().st_mtime_ns != before
        wait_until(running, is_as_old, "the folder is as old", SEEN_WITHIN_S)
    files.mkdir("through the mount")
    assert files.stat("").mtime_ns == files.behind.stat().st_mtime_ns != LONG_AGO_NS


def test_a_folder_that_cannot_be_watched_is_as_old_as_its_source_within_the_ttl(
    slow_disk: SlowDisk, tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    (slow_disk.backing / "Show").mkdir()
    with settings_in(tmp_path, (slow_disk.mountpoint,)) as settings:
        settings["sources"][0]["ttl"] = "1s"
        running = start_mount(settings)
        show = running.mountpoint / "Show"
        assert os.listdir(show) == []
        (slow_disk.backing / "Show" / "S01E01.mkv").touch()
        os.utime(slow_disk.backing / "Show", ns=(LONG_AGO_NS, LONG_AGO_NS))
        wait_until(running, lambda: show.stat().st_mtime_ns == LONG_AGO_NS, "the folder is as old", 1 + SEEN_WITHIN_S)
        wait_until(running, lambda: os.listdir(show) == ["S01E01.mkv"], "its file is listed", 1 + SEEN_WITHIN_S)


# --- folders that are not empty --------------------------------------------------------------------------------------


@pytest.fixture
def two_folders(running: RunningCachefs, files: RealFiles) -> RealFiles:
    """``old`` and ``new``, each with a cached file and one that is not."""
    for folder in ("old", "new"):
        files.mkdir(folder)
        for name in ("cached", "not cached"):
            (files.folder / folder / name).write_bytes(f"{folder} {name}".encode())
        cache(running, files.folder / folder / "cached")
    return files


@pytest.mark.parametrize("cached_only", [False, True], ids=["partly cached", "wholly cached"])
def test_no_folder_is_renamed_over_one_that_is_not_empty(two_folders: RealFiles, cached_only: bool) -> None:
    files = two_folders
    if cached_only:
        files.unlink("new/not cached")
    before = (tree(files.folder), tree(files.behind))
    for flags in (0, NOREPLACE):
        with refused(errno.EEXIST if flags else errno.ENOTEMPTY):
            files.rename("old", "new", flags)
    assert (tree(files.folder), tree(files.behind)) == before


@pytest.mark.parametrize("cached_only", [False, True], ids=["partly cached", "wholly cached"])
def test_no_folder_is_removed_that_is_not_empty(two_folders: RealFiles, cached_only: bool) -> None:
    files = two_folders
    if cached_only:
        files.unlink("new/not cached")
    before = (tree(files.folder), tree(files.behind))
    with refused(errno.ENOTEMPTY):
        files.rmdir("new")
    assert (tree(files.folder), tree(files.behind)) == before


@pytest.fixture
def new_is_empty(running: RunningCachefs, two_folders: RealFiles) -> RealFiles:
    """``two_folders``, where everything in ``new`` was removed behind the mount."""
    for path in list((two_folders.behind / "new").iterdir()):
        path.unlink()
    wait_until(running, lambda: not os.listdir(two_folders.folder / "new"), "they are gone", SEEN_WITHIN_S)
    return two_folders


def test_a_folder_whose_cached_files_were_removed_behind_the_mount_is_empty(new_is_empty: RealFiles) -> None:
    files = new_is_empty
    files.rmdir("new")
    files.mkdir("new")
    assert tree(files.folder / "new") == {}
    (files.folder / "new" / "cached").write_bytes(b"another one")
    assert tree(files.folder) == tree(files.behind)


def test_a_renamed_folder_has_its_own_files_and_its_old_name_shows_none_of_them(two_folders: RealFiles) -> None:
    files = two_folders
    with (files.folder / "old" / "cached").open("rb", buffering=0) as reader:
        files.rename("old", "newer")
        files.mkdir("old")
        (files.folder / "old" / "cached").write_bytes(b"another one")
        assert reader.read(100) == b"old cached"
    assert tree(files.folder / "newer") == {"cached": b"old cached", "not cached": b"old not cached"}
    assert tree(files.folder / "old") == {"cached": b"another one"}
    files.rename("newer", "new", EXCHANGE)
    assert tree(files.folder / "newer") == {"cached": b"new cached", "not cached": b"new not cached"}
    assert tree(files.folder / "new") == {"cached": b"old cached", "not cached": b"old not cached"}
    assert tree(files.folder) == tree(files.behind)


def test_a_file_is_moved_into_a_folder_that_has_nothing_on_the_ssd(running: RunningCachefs, files: RealFiles) -> None:
    (files.behind / "only at the source" / "deeper").mkdir(parents=True)
    cache(running, files.folder / "film")
    inside = "only at the source/deeper/film"
    wait_until(running, (files.folder / inside).parent.exists, "the folder is there", SEEN_WITHIN_S)
    files.rename("film", inside)
    assert read(files.folder / inside) == read(files.behind / inside) == CONTENT
    assert not (files.folder / "film").exists()


# --- two sources -----------------------------------------------------------------------------------------------------


def test_no_name_goes_from_one_source_to_another(
    running: RunningCachefs, files: RealFiles, shared: tuple[RunningCachefs, Path]
) -> None:
    root = RealFiles(running.mountpoint, shared[1])
    film = str((files.folder / "film").relative_to(running.mountpoint))
    cache(running, files.folder / "film")
    (root.behind / "TV" / "there").write_bytes(b"there")
    (root.behind / "TV" / "folder").mkdir()
    wait_until(running, (running.mountpoint / "TV" / "folder").exists, "it is there", SEEN_WITHIN_S)
    before = (tree(files.folder), tree(root.behind / "TV"))
    for new, flags in (("new", 0), ("there", 0), ("new", NOREPLACE), ("there", EXCHANGE)):
        with refused(errno.EXDEV):
            root.rename(film, f"TV/{new}", flags)
    for old, new in ((film, "TV/new"), ("TV/there", f"{film} linked")):
        with refused(errno.EXDEV):
            root.link(old, new)
    with refused(errno.EXDEV):
        root.rename("TV/folder", str(Path(film).parent / "folder"))
    assert (tree(files.folder), tree(root.behind / "TV")) == before
    assert state(files.folder / "film") == "cached"


def test_df_shows_each_source_in_its_folder_and_their_sum_at_the_root(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="cachefs-") as other:
        assert os.stat(other).st_dev != tmp_path.stat().st_dev, "this test needs /dev/shm to be another file system"
        places = {"Films": str(tmp_path), "TV": other}
        with mounted(sources=[{"path": path, "name": name} for name, path in places.items()]) as (running, _):
            shown = {name: os.statvfs(running.mountpoint / name) for name in places}
            for name, path in places.items():
                assert _size(shown[name]) == _size(os.statvfs(path))
            (running.mountpoint / "TV" / "deep").mkdir()
            assert _size(os.statvfs(running.mountpoint / "TV" / "deep")) == _size(shown["TV"])
            root = os.statvfs(running.mountpoint)
            assert _size(root) == tuple(map(sum, zip(*map(_size, shown.values()), strict=True)))
            assert 0 < root.f_bavail <= root.f_bfree <= root.f_blocks


def _size(shown: os.statvfs_result) -> tuple[int, int]:
    """What df(1) calls size, in bytes and in files."""
    return shown.f_blocks * shown.f_frsize, shown.f_files


@pytest.mark.parametrize("act", ["rename", "noreplace", "rmdir"])
def test_what_the_source_refuses_costs_no_copy(two_folders: RealFiles, act: str) -> None:
    files = two_folders
    with refused(errno.EEXIST if act == "noreplace" else errno.ENOTEMPTY):
        if act == "rmdir":
            files.rmdir("new")
        else:
            files.rename("old", "new", NOREPLACE if act == "noreplace" else 0)
    assert [state(files.folder / name / "cached") for name in ("old", "new")] == ["cached", "cached"]


def test_a_folder_that_replaces_an_empty_one_lists_its_own_names(files: RealFiles) -> None:
    for round_ in range(60):
        old, new = f"old {round_}", f"new {round_}"
        files.mkdir(old)
        files.mkdir(new)
        put(files, f"{old}/a", b"a")
        for _ in range(round_ % 20):
            assert names(files, new) == set()
            assert names(files, old) == {"a"}
        assert names(files, new) == set()
        files.rename(old, new)
        assert names(files, new) == {"a"}, f"round {round_}"


def test_two_folders_that_were_exchanged_list_their_own_names(files: RealFiles) -> None:
    for round_ in range(60):
        old, new = f"old {round_}", f"new {round_}"
        files.mkdir(old)
        files.mkdir(new)
        put(files, f"{old}/a", b"a")
        for _ in range(1 + round_ % 20):
            assert (names(files, old), names(files, new)) == ({"a"}, set())
        files.rename(old, new, EXCHANGE)
        assert (names(files, old), names(files, new)) == (set(), {"a"}), f"round {round_}"


def test_to_copy_a_film_is_not_to_watch_it(running: RunningCachefs, files: RealFiles) -> None:
    os.utime(files.folder / "film", ns=(LONG_AGO_NS, LONG_AGO_NS + 5))
    cache(running, files.folder / "film")
    assert (files.behind / "film").stat().st_atime_ns == LONG_AGO_NS


def test_a_folder_that_replaces_one_emptied_behind_the_mount_has_its_own_files(new_is_empty: RealFiles) -> None:
    files = new_is_empty
    files.rename("old", "new")
    assert tree(files.folder / "new") == {"cached": b"old cached", "not cached": b"old not cached"}


@pytest.mark.parametrize("how", ["write", "append", "truncate", "open with O_TRUNC"])
def test_what_was_written_is_seen_at_once_also_after_the_folder_was_listed(files: RealFiles, how: str) -> None:
    for round_ in range(5):
        folder = files.folder / f"{round_}"
        folder.mkdir()
        file, source = folder / "file", files.behind / f"{round_}" / "file"
        file.write_bytes(b"something")
        assert os.listdir(folder) == ["file"]
        if how == "truncate":
            os.truncate(file, 3)
        else:
            flag = {"append": os.O_APPEND, "open with O_TRUNC": os.O_TRUNC}.get(how, 0)
            handle = os.open(file, os.O_WRONLY | flag)
            os.write(handle, b"something longer")
            os.close(handle)
        assert file.stat().st_size == source.stat().st_size
        assert read(file) == source.read_bytes()


def test_a_truncated_file_stays_so_while_what_a_mapping_wrote_is_copied_back(
    running: RunningCachefs, files: RealFiles
) -> None:
    film, size = files.folder / "film", 1 << 20
    cache(running, film)
    with film.open("rb", buffering=0), film.open("r+b", buffering=0) as writer:
        for round_ in range(100):
            with mmap.mmap(writer.fileno(), size) as mapped:
                mapped[size - 5] = 1 + round_ % 255
            os.ftruncate(writer.fileno(), 5000)
            assert os.fstat(writer.fileno()).st_size == (files.behind / "film").stat().st_size == 5000, round_
            os.ftruncate(writer.fileno(), size)
