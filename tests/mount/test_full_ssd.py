"""cachefs starts on an SSD that is full to the last byte, serves, says so, and copies again when there is room."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.smalldisk import small_disk
from tests.standin.running import RunningCachefs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root only")

CACHED, OTHER = random.Random(1).randbytes(MIB), random.Random(2).randbytes(MIB)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Two films, and an SSD of 8 MiB."""
    with settings_in(tmp_path) as made, small_disk(tmp_path / "ssd", "size=8m"):
        (tmp_path / "media" / "cached.mkv").write_bytes(CACHED)
        (tmp_path / "media" / "other.mkv").write_bytes(OTHER)
        made["cache"]["path"] = str(tmp_path / "ssd" / "cache")
        yield made


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.expected_warnings("the SSD is full: the cache folder")
def test_a_restart_on_a_full_ssd_serves_and_copies_again_when_there_is_room(
    settings: dict[str, Any], tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    first = start_mount(settings)
    assert first.run("pin", "cached.mkv").returncode == 0
    wait_until(first, lambda: os.getxattr(first.mountpoint / "cached.mkv", STATE) == b"cached", "it is cached")
    assert first.terminate() == 0
    filler = tmp_path / "ssd" / "filler"
    _fill(filler)

    running = start_mount(settings)

    assert os.getxattr(running.mountpoint / "cached.mkv", STATE) == b"cached"
    assert read(running.mountpoint / "cached.mkv") == CACHED
    assert read(running.mountpoint / "other.mkv") == OTHER
    assert "the SSD is full" in running.log.read_text()

    filler.unlink()
    assert running.run("copy", "other.mkv").returncode == 0
    assert os.getxattr(running.mountpoint / "other.mkv", STATE) == b"cached"
