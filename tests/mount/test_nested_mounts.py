"""A file system that is mounted below a source is lost: that part of the source is missing, and nothing of it is
forgotten."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cachefs.mounts import mounted_at, unmount
from tests.mount.faultkit import UNTRUE
from tests.mount.kit import STATE, errno_of, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]

FILES = {"Films/cached.mkv": b"cached" * 5000, "Films/other.mkv": b"other" * 5000, "top.mkv": b"top"}
UNCACHED = ("Films/other.mkv", "top.mkv")
WARNING = "source media: disk2 is missing"


@dataclass(frozen=True, slots=True)
class Scene:
    """cachefs over ``media``, with a disk at ``media/disk2``, of which one film is cached."""

    running: RunningCachefs
    media: Path
    disk: Path
    settings: dict[str, Any]
    start: Start

    @property
    def shown(self) -> Path:
        return self.running.mountpoint / "disk2"

    def lose(self, leaves: str) -> None:
        unmount(self.media / "disk2", force=False)
        if leaves == "another":
            _mount(self.media / "disk2", "proc")
        elif leaves == "no name":
            (self.media / "disk2").rmdir()

    def give_back(self) -> None:
        place = self.media / "disk2"
        unmount(place, force=False)
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", self.disk, place], check=True)

    def problem(self) -> str:
        (source,) = self.running.status().sources
        assert source.online
        return source.problem

    def entries(self) -> set[str]:
        with self.running.client() as client:
            return {entry.key.path for entry in client.entries()}

    def restarted(self) -> Scene:
        assert self.running.terminate() == 0
        return replace(self, running=self.start(self.settings))


def _mount(place: Path, kind: str) -> None:
    subprocess.run(["mount", "-t", kind, kind, place], check=True)


@pytest.fixture
def scene(tmp_path: Path, start_mount: Start, expected_warnings: list[str]) -> Iterator[Scene]:
    """The disk is a tmpfs that is bound to its place, so that it can be lost and come back as it was."""
    expected_warnings.append(WARNING)
    with settings_in(tmp_path) as settings:
        media, disk = tmp_path / "media", tmp_path / "disk"
        (media / "disk2").mkdir()
        disk.mkdir()
        (media / "mine.mkv").write_bytes(b"mine")
        _mount(disk, "tmpfs")
        try:
            for name, content in FILES.items():
                (disk / name).parent.mkdir(exist_ok=True)
                (disk / name).write_bytes(content)
            subprocess.run(["mount", "--bind", disk, media / "disk2"], check=True)
            made = Scene(start_mount(settings), media, disk, settings, start_mount)
            _use(made)
            yield made
        finally:
            while mounted_at(media / "disk2") is not None:
                unmount(media / "disk2", force=False)
            unmount(disk, force=False)


def _use(scene: Scene) -> None:
    """Everything is listed and one film is cached."""
    assert scene.running.run("copy", "disk2/Films/cached.mkv").returncode == 0
    wait_until(scene.running, lambda: os.getxattr(scene.shown / "Films/cached.mkv", STATE) == b"cached", "it is cached")
    _listed(scene)
    for folder in (scene.shown, scene.shown / "Films"):
        assert [(folder / name).stat() for name in os.listdir(folder)]


def _listed(scene: Scene) -> None:
    assert sorted(os.listdir(scene.running.mountpoint)) == ["disk2", "mine.mkv"]
    assert sorted(os.listdir(scene.shown)) == ["Films", "top.mkv"]
    assert sorted(os.listdir(scene.shown / "Films")) == ["cached.mkv", "other.mkv"]


def _is_missing(scene: Scene) -> None:
    """What is known is shown, what is cached is played, what is not gives an error that does not say that it is not
    there; nothing is made or removed in its place, and the rest goes on."""
    _listed(scene)
    assert read(scene.shown / "Films" / "cached.mkv") == FILES["Films/cached.mkv"]
    wait_until(scene.running, lambda: scene.problem().startswith("disk2 is missing"), "status names it")
    _listed(scene)
    assert read(scene.shown / "Films" / "cached.mkv") == FILES["Films/cached.mkv"]
    for name in UNCACHED:
        assert (scene.shown / name).stat().st_size == len(FILES[name])
        assert errno_of(read, scene.shown / name) not in UNTRUE  # it may be held for a while
    assert errno_of((scene.shown / "new.mkv").touch) != 0
    assert errno_of(scene.shown.rmdir) != 0
    assert errno_of(scene.shown.rename, scene.running.mountpoint / "disk3") != 0
    assert read(scene.running.mountpoint / "mine.mkv") == b"mine"
    (scene.running.mountpoint / "more.mkv").write_bytes(b"more")
    (scene.running.mountpoint / "more.mkv").unlink()
    assert scene.entries() == {"disk2/Films/cached.mkv"}


@pytest.mark.parametrize("leaves", ["an empty folder", "another", "no name"])
def test_a_lost_disk_below_a_source_is_missing_until_it_is_back(scene: Scene, leaves: str) -> None:
    numbers = [path.stat().st_ino for path in (scene.shown, scene.shown / "Films" / "cached.mkv")]
    scene.lose(leaves)
    _is_missing(scene)
    if leaves == "an empty folder":
        scene = scene.restarted()
        _is_missing(scene)
        assert all(errno_of(read, scene.shown / name) for name in UNCACHED)
        assert "disk2 is missing" in scene.running.run("status").stdout
    scene.give_back()
    wait_until(scene.running, lambda: not scene.problem(), "it is back")
    _listed(scene)
    assert read(scene.shown / "Films" / "other.mkv") == FILES["Films/other.mkv"]
    assert [path.stat().st_ino for path in (scene.shown, scene.shown / "Films" / "cached.mkv")] == numbers
    (scene.shown / "new.mkv").write_bytes(b"new")
    assert (scene.disk / "new.mkv").read_bytes() == b"new"


def test_a_lost_disk_is_given_up_once_that_is_accepted(scene: Scene) -> None:
    scene.lose("an empty folder")
    _is_missing(scene)
    assert scene.running.run("accept", "media").returncode == 0
    wait_until(scene.running, lambda: _is_empty(scene.shown), "the folder is empty")
    assert not scene.problem()
    assert errno_of((scene.shown / "top.mkv").stat) in UNTRUE
    scene.shown.rmdir()


def test_a_disk_that_is_mounted_while_cachefs_runs_is_seen_and_not_forgotten(scene: Scene) -> None:
    place = scene.media / "later"
    place.mkdir()
    shown = scene.running.mountpoint / "later"
    wait_until(scene.running, shown.exists, "the folder is seen")
    assert os.listdir(shown) == []
    subprocess.run(["mount", "--bind", scene.disk, place], check=True)
    try:
        marked = "a disk is mounted at later"
        wait_until(scene.running, lambda: marked in scene.running.log.read_text(), "the mount table was looked at")
        wait_until(scene.running, lambda: sorted(os.listdir(shown)) == ["Films", "top.mkv"], "it is seen")
    finally:
        unmount(place, force=False)
    assert sorted(os.listdir(shown)) == ["Films", "top.mkv"]


def _is_empty(folder: Path) -> bool:
    """False, too, in the moment in which the kernel still means the folder that was there before."""
    try:
        return os.listdir(folder) == []
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False
