"""A file is changed through the mount while its copy is under way on a slow disk: nothing old is ever published."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

CONTENT = random.Random(11).randbytes(2 * MIB)


@pytest.fixture
def running(
    slow_disk: SlowDisk, tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> Iterator[RunningCachefs]:
    """cachefs over a slow disk with the files ``film`` and ``other``."""
    for name, content in (("film", CONTENT), ("other", CONTENT[::-1])):
        (slow_disk.backing / name).write_bytes(content)
    with settings_in(tmp_path, (slow_disk.mountpoint,)) as settings:
        yield start_mount(settings)


def _write(film: Path) -> None:
    handle = os.open(film, os.O_WRONLY)
    os.pwrite(handle, b"changed", 5)
    os.close(handle)


def _append(film: Path) -> None:
    handle = os.open(film, os.O_WRONLY | os.O_APPEND)
    os.write(handle, b"more")
    os.close(handle)


def _rename_and_make_anew(film: Path) -> None:
    film.rename(film.with_name("renamed"))
    film.write_bytes(b"another film")


def _remove_and_make_anew(film: Path) -> None:
    film.unlink()
    film.write_bytes(b"another film")


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": _write,
    "append": _append,
    "truncate": lambda film: os.truncate(film, 1000),
    "replace": lambda film: film.with_name("other").rename(film),
    "rename": _rename_and_make_anew,
    "unlink": _remove_and_make_anew,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_a_change_overtakes_is_not_published(
    running: RunningCachefs, slow_disk: SlowDisk, change: str
) -> None:
    film = running.mountpoint / "film"
    with film.open("rb", buffering=0) as viewer:
        slow_disk.slow_down("film", ("read",), delay_s=0.4)
        slow_disk.reset()
        with running.client() as client:
            client.copy("film")
        slow_disk.wait_asked("read")
        CHANGES[change](film)
        slow_disk.release()
        source = (slow_disk.backing / "film").read_bytes()
        assert film.stat().st_size == len(source)
        assert read(film) == source
        wait_until(running, lambda: not running.status().copies, "the copy has ended")
        assert read(film) == source
        seen = viewer.read(2 * len(CONTENT))
        assert seen == (CONTENT if change in ("replace", "rename", "unlink") else source)[: len(seen)]
    assert os.getxattr(film, STATE) == b"source"
