"""What is below the mount at a separate mountpoint: cachefs's own folder, which goes with the mount, or a user's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.mounts import mounted_at
from tests.mount.lives import attempt, kill_both, settings_in
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mount namespaces")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(b"film")
        yield made


def test_a_folder_that_cachefs_made_goes_with_the_mount_and_a_users_stays(
    settings: dict[str, Any], start_mount: Start, tmp_path: Path
) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.chmod(0o711)
    os.chown(mountpoint, 1234, 2345)
    kill_both(start_mount(settings))
    assert start_mount(settings).terminate() == 0
    below = mountpoint.stat()
    assert (stat.S_IMODE(below.st_mode), below.st_uid, below.st_gid) == (0o711, 1234, 2345)

    mountpoint.rmdir()
    running = start_mount(settings)
    assert (mountpoint / "film.mkv").read_bytes() == b"film"
    kill_both(running)
    unmounted = running.run("unmount")
    assert "is cleared" in unmounted.stdout
    assert not mountpoint.exists()

    mountpoint.mkdir(mode=0)  # left by a power cut
    assert start_mount(settings).terminate() == 0
    assert sorted(os.listdir(tmp_path)) == ["cachefs.log", "cachefs.yaml", "media", "ssd"]


def test_files_below_the_mount_are_hidden_and_stay(
    settings: dict[str, Any], start_mount: Start, tmp_path: Path
) -> None:
    (tmp_path / "mount" / "mine").touch()
    kill_both(start_mount(settings))
    running = start_mount(settings)
    assert os.listdir(running.mountpoint) == ["film.mkv"]
    assert running.terminate() == 0
    assert os.listdir(tmp_path / "mount") == ["mine"]


def test_a_failed_start_leaves_a_dead_mount_where_it_gives_errors(
    settings: dict[str, Any], start_mount: Start, tmp_path: Path
) -> None:
    running = start_mount(settings)
    kill_both(running)
    (tmp_path / "media").rename(tmp_path / "away")
    (tmp_path / "media").write_text("no folder")
    made = attempt(running.config, settings)
    assert made.code == 3
    mount = mounted_at(tmp_path / "mount")
    assert mount is not None
    assert mount.is_cachefs
