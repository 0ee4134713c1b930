"""A source whose quota is used up: who writes is told that, and what is to come home waits."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import errno_of, read
from tests.mount.lives import wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

CONTENT = b"a film of some bytes" * 10_000
MOVED, CACHED, PLAIN = "moved.mkv", "cached.mkv", "plain.mkv"


def _append(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(b"more")


@pytest.fixture
def running(
    slow_disk: SlowDisk,
    cachefs_settings: dict[str, Any],
    start_mount: Callable[[dict[str, Any]], RunningCachefs],
) -> RunningCachefs:
    for name in (MOVED, CACHED, PLAIN):
        (slow_disk.backing / name).write_bytes(CONTENT)
    (slow_disk.backing / "its other name").hardlink_to(slow_disk.backing / CACHED)
    cachefs_settings["cache"]["mode"] = "move"
    return start_mount(cachefs_settings)


def test_nothing_is_lost_over_a_quota(running: RunningCachefs, slow_disk: SlowDisk) -> None:
    with running.client() as client:
        for name in (MOVED, CACHED):
            client.copy(name)
    wait_until(running, lambda: not (slow_disk.backing / MOVED).exists(), "it has moved")
    wait_until(running, lambda: len(running.status().copies) == 0, "the other is copied")
    slow_disk.fail(errno.EDQUOT, kinds=("write", "create", "mkdir", "mknod"))
    for name in (CACHED, PLAIN):
        assert errno_of(_append, running.mountpoint / name) == errno.EDQUOT
        assert read(running.mountpoint / name) == CONTENT
    assert errno_of((running.mountpoint / "new.mkv").touch) == errno.EDQUOT
    restored = running.run("restore", MOVED)
    assert (restored.returncode, "Disk quota exceeded" in restored.stderr) == (4, True)
    assert "Disk quota exceeded" in repr(running.status())
    assert read(running.mountpoint / MOVED) == CONTENT
    slow_disk.release()
    assert running.run("restore", "--all").returncode == 0
    for name in (MOVED, CACHED, PLAIN):
        assert read(running.mountpoint / name) == (slow_disk.backing / name).read_bytes() == CONTENT
