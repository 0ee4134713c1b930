"""What changes behind the mount is seen through it: at once on a local source, within the TTL on any other."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.lives import wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

SEEN_WITHIN_S = 2.0
_WALK = """
import os, sys
found = 0
for where, folders, files in os.walk(sys.argv[1]):
    for name in (*folders, *files):
        os.stat(os.path.join(where, name))
        found += 1
print(found)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A local source with a folder and a file, both known to the kernel for long by the time of the test."""
    folder = tmp_path / "source"
    (folder / "Show").mkdir(parents=True)
    (folder / "Show" / "S01E01.mkv").write_bytes(b"first")
    (folder / "film.mkv").write_bytes(b"film")
    return folder


@pytest.fixture
def mounted(source: Path, tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]) -> RunningCachefs:
    for name in ("ssd", "mount"):
        (tmp_path / name).mkdir()
    settings = {
        "mountpoint": str(tmp_path / "mount"),
        "sources": [{"path": str(source), "ttl": "1h"}],
        "cache": {"path": str(tmp_path / "ssd"), "min_free": "1MiB"},
        "control": {"socket": str(tmp_path / "control")},
    }
    running = start_mount(settings)
    walk(running.mountpoint)
    return running


def walk(folder: Path) -> list[str]:
    """All names, as ``find`` tells them, each file looked at."""
    found = []
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.stat(os.path.join(where, name))
            found.append(os.path.relpath(os.path.join(where, name), folder))
    return sorted(found)


def seen(running: RunningCachefs, condition: Callable[[], bool], what: str) -> None:
    wait_until(running, condition, what, SEEN_WITHIN_S)


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_that_the_kernel_had_forgotten_is_as_old_as_its_source(
    source: Path, tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs], several: bool
) -> None:
    """Programs that scan libraries look into a folder only when it is younger than before."""
    for name in ("ssd", "mount", "other"):
        (tmp_path / name).mkdir()
    (source / "Show" / "Season 01").mkdir()
    paths = (source, tmp_path / "other") if several else (source,)
    running = start_mount(
        {
            "mountpoint": str(tmp_path / "mount"),
            "sources": [{"path": str(path), "ttl": "1h"} for path in paths],
            "cache": {"path": str(tmp_path / "ssd"), "min_free": "1MiB"},
            "control": {"socket": str(tmp_path / "control")},
        }
    )
    shown = running.mountpoint / "source" if several else running.mountpoint
    folders = ["", "Show", "Show/Season 01"]

    def as_old() -> bool:
        return all((shown / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns for name in folders)

    def change(name: str) -> None:
        for folder in folders:
            (source / folder / name).touch()

    walk(running.mountpoint)
    change("one")
    seen(running, as_old, "they are as old")
    walk(running.mountpoint)  # all of it is remembered
    for name in ("two", "three"):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        seen(running, as_old, "they are as old, now that they are looked up again")
        change(name)
        seen(running, as_old, "they are as old")


def test_a_new_file_is_listed_and_read(mounted: RunningCachefs, source: Path) -> None:
    new = mounted.mountpoint / "Show" / "S01E02.mkv"
    assert not new.exists()
    (source / "Show" / "S01E02.mkv").write_bytes(b"second")
    seen(mounted, new.exists, "the new file is there")
    seen(mounted, lambda: "Show/S01E02.mkv" in walk(mounted.mountpoint), "the new file is listed")
    assert new.read_bytes() == b"second"


def test_who_makes_a_file_behind_the_mount_finds_it_in_the_mount_at_once(mounted: RunningCachefs, source: Path) -> None:
    """Not even a moment later; whoever remembers what is in a folder must know that something has happened there."""

    def make(name: str) -> None:
        for folder in ("", "Show"):
            for _ in range(3):
                assert not (mounted.mountpoint / folder / name).exists()
            (source / folder / name).write_bytes(b"new")
            assert (mounted.mountpoint / folder / name).read_bytes() == b"new"

    make("known by nobody")
    make("after a change")
    walk(mounted.mountpoint)
    make("after a listing")
    for film in ("film.mkv", "Show/S01E01.mkv"):
        assert mounted.run("copy", film).returncode == 0
    make("beside a cached file")
    walk(mounted.mountpoint)
    make("beside one, after a listing")


def test_a_changed_file_has_its_new_size_and_bytes(mounted: RunningCachefs, source: Path) -> None:
    film = mounted.mountpoint / "film.mkv"
    assert film.read_bytes() == b"film"
    with film.open("rb") as opened:
        (source / "film.mkv").write_bytes(b"another film")
        seen(mounted, lambda: os.fstat(opened.fileno()).st_size == 12, "an open handle sees the new size")
        assert opened.read() == b"another film"
    assert film.read_bytes() == b"another film"


def test_a_replaced_file_is_the_new_one(mounted: RunningCachefs, source: Path) -> None:
    film = mounted.mountpoint / "film.mkv"
    before = film.stat()
    (source / "new").write_bytes(b"mlif")
    os.utime(source / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(source / "new", source / "film.mkv")
    seen(mounted, lambda: film.stat().st_ino != before.st_ino, "the file has another number")
    assert film.read_bytes() == b"mlif"


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_a_file_that_gets_its_name_back_is_found_by_it_again(
    mounted: RunningCachefs, source: Path, tmp_path: Path, linked: bool, read: bool
) -> None:
    """As a restoration from a backup of hard links does."""
    film, aside = mounted.mountpoint / "film.mkv", (source if linked else tmp_path) / "aside"

    def shows(content: bytes) -> bool:
        return film.stat().st_size == len(content) and (not read or film.read_bytes() == content)

    assert shows(b"film")
    if linked:
        os.link(source / "film.mkv", aside)
        assert (mounted.mountpoint / "aside").stat().st_size == 4
    else:
        (source / "film.mkv").rename(aside)
    (tmp_path / "other").write_bytes(b"another film")
    (tmp_path / "other").rename(source / "film.mkv")
    seen(mounted, lambda: shows(b"another film"), "it is another one")
    aside.rename(source / "film.mkv")
    seen(mounted, lambda: shows(b"film"), "it is back")


def test_a_removed_file_is_gone(mounted: RunningCachefs, source: Path) -> None:
    (source / "film.mkv").unlink()
    seen(mounted, lambda: not (mounted.mountpoint / "film.mkv").exists(), "the file is gone")
    assert walk(mounted.mountpoint) == ["Show", "Show/S01E01.mkv"]


def test_a_renamed_folder_is_found_by_its_new_name_only(mounted: RunningCachefs, source: Path) -> None:
    (source / "Show").rename(source / "Series")
    seen(mounted, lambda: not (mounted.mountpoint / "Show").exists(), "the old name is gone")
    assert walk(mounted.mountpoint) == ["Series", "Series/S01E01.mkv", "film.mkv"]
    (source / "Series" / "S01E02.mkv").write_bytes(b"second")
    seen(mounted, (mounted.mountpoint / "Series" / "S01E02.mkv").exists, "it is still watched")


def test_rights_and_times_follow(mounted: RunningCachefs, source: Path) -> None:
    os.chmod(source / "film.mkv", 0o600)
    os.utime(source / "film.mkv", (1, 1))
    film = mounted.mountpoint / "film.mkv"
    seen(mounted, lambda: film.stat().st_mode & 0o777 == 0o600 and film.stat().st_mtime == 1, "mode and time")


def test_a_cached_copy_of_a_replaced_file_is_served_no_more(mounted: RunningCachefs, source: Path) -> None:
    film = mounted.mountpoint / "film.mkv"
    assert mounted.run("copy", "film.mkv").returncode == 0
    assert film.read_bytes() == b"film"
    (source / "new").write_bytes(b"mlif")
    os.replace(source / "new", source / "film.mkv")
    seen(mounted, lambda: film.read_bytes() == b"mlif", "the new bytes")
    assert os.getxattr(film, "user.cachefs.state") == b"source"


def test_lost_events_make_everything_be_looked_at_anew(mounted: RunningCachefs, source: Path) -> None:
    limit = Path("/proc/sys/fs/inotify/max_queued_events")
    os.kill(_server_of(mounted), signal.SIGSTOP)  # it cannot hear
    try:
        (source / "film.mkv").unlink()
        for number in range(int(limit.read_text()) + 100):
            name = source / "Show" / f"many{number % 500}"
            name.touch()
            name.unlink()
        (source / "Show" / "S01E02.mkv").write_bytes(b"second")
    finally:
        os.kill(_server_of(mounted), signal.SIGCONT)
    wait_until(mounted, lambda: walk(mounted.mountpoint) == ["Show", "Show/S01E01.mkv", "Show/S01E02.mkv"], "all", 10)


def test_what_a_scan_has_seen_is_not_asked_again(mounted: RunningCachefs, source: Path) -> None:
    """The daemon is stopped: the kernel must be able to do without it, listings included."""
    for _ in range(2):  # reading a folder for the first time makes the kernel forget when it was last read
        before = walk(mounted.mountpoint)
    os.kill(_server_of(mounted), signal.SIGSTOP)
    try:
        looking = subprocess.run(
            [sys.executable, "-c", _WALK, mounted.mountpoint], timeout=10, check=True, capture_output=True, text=True
        )
        assert int(looking.stdout) == len(before)
    finally:
        os.kill(_server_of(mounted), signal.SIGCONT)


def _server_of(running: RunningCachefs) -> int:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    return int(children[0])


def test_a_source_that_cannot_be_watched_is_asked_after_its_ttl(
    cachefs_settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    cachefs_settings["sources"][0]["ttl"] = "500ms"
    (slow_disk.backing / "film.mkv").write_bytes(b"film")
    running = start_mount(cachefs_settings)
    assert walk(running.mountpoint) == ["film.mkv"]
    (slow_disk.backing / "film.mkv").rename(slow_disk.backing / "movie.mkv")
    seen(running, lambda: walk(running.mountpoint) == ["movie.mkv"], "the new name")


# --- a name that becomes another kind of thing -----------------------------------------------------------------------


def _make(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
        (path / "inside").touch()
    elif kind == "file":
        path.write_bytes(b"content")
    else:
        path.symlink_to("/nowhere")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _used(path: Path) -> str:
    """What it is; used as that, as whoever has just looked would do."""
    mode = path.lstat().st_mode
    kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "link"
    try:
        if kind == "folder":
            assert os.listdir(path) == ["inside"]
        elif kind == "file":
            assert path.read_bytes() == b"content"
        else:
            assert os.readlink(path) == "/nowhere"
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENOENT):  # it has just become another
            raise
    return kind


def _becomes_another(running: RunningCachefs, source: Path) -> None:
    kinds = ("file", "folder", "link")
    for old, new in ((old, new) for old in kinds for new in kinds if old != new):
        name = f"{old} then {new}"
        _make(old, source / name)
        assert _used(running.mountpoint / name) == old
        _remove(source / name)
        _make(new, source / name)
        found: set[str] = set()

        def is_new(name: str = name, new: str = new, found: set[str] = found) -> bool:
            found.add(_used(running.mountpoint / name))
            return new in found

        wait_until(running, is_new, f"the {old} is a {new}")
        assert found <= {old, new}


def test_a_name_becomes_another_kind_of_thing_without_an_error(mounted: RunningCachefs, source: Path) -> None:
    _becomes_another(mounted, source)


def test_it_does_so_where_nothing_can_be_watched(
    cachefs_settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    cachefs_settings["sources"][0]["ttl"] = "200ms"
    _becomes_another(start_mount(cachefs_settings), slow_disk.backing)
