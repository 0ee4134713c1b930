"""Every background task of the daemon fails in turn, while somebody reads: it is told once, and nobody else notices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cachefs.errors import CachefsError
from cachefs.planning import COMPONENT, PLEX
from tests.mount.failing import ENVIRONMENT, PLANT, Failing
from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import ENDS_WITHIN_S, settings_in, wait_until
from tests.standin.plex import run_stand_in_plex
from tests.standin.running import RunningCachefs

FILMS = {name: os.urandom(MIB // 2) for name in ("cached.mkv", "slow.mkv", "later.mkv")}
_READ_AND_COMPARE = """
import os, sys
want = [open(path, "rb").read() for path in sys.argv[1::2]]
while True:
    for path, wanted in zip(sys.argv[2::2], want):
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        found = b"".join(iter(lambda: os.read(number, 65536), b""))
        os.close(number)
        assert found == wanted, path
    print(flush=True)
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failing:
    folder = tmp_path / "failing"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.fspath(PLANT))
    monkeypatch.setenv(ENVIRONMENT, os.fspath(folder))
    return Failing(folder)


@pytest.fixture
def running(
    tmp_path: Path, failing: Failing, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> Iterator[RunningCachefs]:
    """Two sources, so that nothing is in place, and a Plex: every task there is has something to do."""
    for name in ("media", "more"):
        (tmp_path / name).mkdir()
        for film, content in FILMS.items():
            (tmp_path / name / film).write_bytes(content)
    with run_stand_in_plex() as plex, settings_in(tmp_path, (tmp_path / "media", tmp_path / "more")) as settings:
        settings["plex"] = {"url": plex.url, "token": plex.token, "cloud_url": plex.url}
        settings["fast_path"] = "off"  # every read asks the daemon
        yield start_mount(settings)


class Reader:
    """A process that reads files again and again and compares every byte."""

    def __init__(self, pairs: dict[Path, Path]) -> None:
        paths = [os.fspath(path) for pair in pairs.items() for path in pair]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READ_AND_COMPARE, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def reads_on(self) -> bool:
        """Whether it read everything again, and rightly."""
        assert self._process.stdout is not None
        return bool(self._process.stdout.readline())

    def end(self) -> str:
        """What it complained of."""
        self._process.kill()
        _, said = self._process.communicate(timeout=ENDS_WITHIN_S)
        return said.decode()


@pytest.mark.expected_warnings("failed; please report this", "Traceback", "ZeroDivisionError", "ExceptionGroup")
def test_every_background_task_may_fail_while_somebody_reads(
    tmp_path: Path, running: RunningCachefs, failing: Failing
) -> None:
    mount, media = running.mountpoint / "media", tmp_path / "media"
    assert running.run("copy", "media/cached.mkv").returncode == 0
    tasks = failing.begun()
    shown = {component.name for component in running.status().components}
    assert failing.unsupervised() == []
    assert tasks.keys() == shown - {PLEX}
    assert len(tasks) >= 15
    reader = Reader({media / name: mount / name for name in ("cached.mkv", "slow.mkv")})
    try:
        for name in tasks:
            failing.tell(name)
            wait_until(running, partial(_is_shown, running, failing, name), f"status shows that {name} fails")
            assert reader.reads_on()
        wait_until(running, lambda: set(failing.begun().values()) == {2}, "everything is begun again")
        assert reader.reads_on()
        _works(running, media, mount)
    finally:
        complaint = reader.end()
    assert complaint == ""
    told = re.findall(r" ERROR (.+) failed; please report this; trying again", running.log.read_text())
    assert sorted(told) == sorted(tasks)


def _is_shown(running: RunningCachefs, failing: Failing, name: str) -> bool:
    try:
        problems = {component.name: component.problem for component in running.status().components}
    except CachefsError:  # it was the control socket that failed
        return False
    if name == COMPONENT and failing.begun()[name] == 2:  # which is well again once it has planned
        return True
    return problems[name] == f"ZeroDivisionError: planted in {name}"


def _works(running: RunningCachefs, media: Path, mount: Path) -> None:
    """What the tasks are there for is done by those that were begun again."""
    assert running.run("copy", "media/later.mkv").returncode == 0
    assert os.getxattr(mount / "later.mkv", STATE) == b"cached"
    assert running.run("evict", "media/cached.mkv").returncode == 0
    ssd = media.parent / "ssd" / "files" / "media" / "cached.mkv"
    wait_until(running, lambda: not ssd.exists(), "what was evicted is removed")
    (media / "later.mkv").write_bytes(b"another film")
    wait_until(running, lambda: read(mount / "later.mkv") == b"another film", "what changed behind is seen")
    (media / "new.mkv").write_bytes(b"new")
    wait_until(running, lambda: "new.mkv" in os.listdir(mount), "what is new is seen")
