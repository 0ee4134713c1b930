"""Plex in a container of its own, while cachefs is stopped, killed and started: it needs no restart, and never sees an
empty library.

A mount namespace stands in for each container; the container engine has a test of its own (``make container``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.mounts import all_now
from tests.mount.kit import MIB
from tests.mount.lives import kill_both, kill_server, settings_in, wait_until
from tests.mount.views import View, shared, view_of
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can share mounts")

LIBRARY = ["cached.mkv", "slow.mkv"]
ENDED = {"ENOTCONN", "ECONNABORTED"}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """The folder that the host shares with both containers."""
    (tmp_path / "host").mkdir()
    with shared(tmp_path / "host") as folder:
        yield folder


def _fill(library: Path) -> None:
    for name in LIBRARY:
        (library / name).write_bytes(random.Random(name).randbytes(MIB))


def _again(running: RunningCachefs, killed: int) -> Callable[[], bool]:
    def serves() -> bool:
        asked = running.run("status", "--json")
        return asked.returncode == 0 and f'"pid": {killed},' not in asked.stdout

    return serves


class Playing:
    """Plex plays two films, one of them from the SSD by the kernel itself."""

    def __init__(self, plex: View, running: RunningCachefs) -> None:
        assert running.run("copy", "cached.mkv").returncode == 0
        self.plex = plex
        self.offset = 0
        for name in LIBRARY:
            assert isinstance(plex.ask("hold", plex.data / "media" / name), int)
        assert running.status().reads.kernel_opens > 0
        assert self.goes_on() == [4096, 4096]

    def goes_on(self) -> list[int | str]:
        """What the next read of each gives."""
        self.offset += 64 * 1024
        return [self.plex.ask("read", self.plex.data / "media" / name, self.offset) for name in LIBRARY]


def test_at_a_separate_mountpoint_plex_sees_the_library_or_an_error_but_never_an_empty_folder(
    tmp_path: Path, host: Path, start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    with settings_in(tmp_path) as settings, view_of(host, tmp_path / "data", "slave") as plex:
        _fill(tmp_path / "media")
        settings["mountpoint"] = str(host / "media")
        assert plex.list("media") == "ENOENT"
        plex.ask("watch", plex.data / "media")

        running = start_mount(settings)
        playing = Playing(plex, running)
        killed = kill_server(running)
        wait_until(running, _again(running, killed), "another server is ready")
        assert plex.list("media") == LIBRARY
        assert playing.goes_on() == [4096, "ENOTCONN"]

        kill_both(running)
        assert playing.goes_on() == [4096, "ENOTCONN"]
        running = start_mount(settings)
        assert plex.list("media") == LIBRARY
        assert plex.ask("state", plex.data / "media" / "cached.mkv") == "cached"

        playing = Playing(plex, running)
        assert running.terminate() == 0
        assert playing.goes_on() == [4096, "ENOTCONN"]
        assert plex.list("media") == "ENOENT"
        seen = plex.ask("watched_so_far")
        assert [one for one in seen if one not in (LIBRARY, "ENOENT", *ENDED)] == []
        assert LIBRARY in seen
    assert os.listdir(host) == []
    assert [mount.path for mount in all_now() if host in mount.path.parents] == []


def test_in_place_plex_falls_back_to_the_slow_files(
    tmp_path: Path, host: Path, start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    library = host / "media"
    library.mkdir()
    _fill(library)
    with (
        settings_in(tmp_path, [library]) as settings,
        view_of(host, tmp_path / "slave", "slave") as plex,
        view_of(library, tmp_path / "private", "private") as private,
    ):
        settings["mountpoint"] = str(library)
        for view in (plex, private):
            view.ask("watch", view.data / ("media" if view is plex else ""))
        running = start_mount(settings)
        playing = Playing(plex, running)
        assert plex.ask("state", plex.data / "media" / "cached.mkv") == "cached"
        assert private.ask("state", private.data / "cached.mkv") in ("ENOTSUP", "EOPNOTSUPP", "ENODATA")

        killed = kill_server(running)
        wait_until(running, _again(running, killed), "another server is ready")
        assert plex.ask("state", plex.data / "media" / "cached.mkv") == "cached"
        assert playing.goes_on() == [4096, "ENOTCONN"]

        assert running.terminate() == 0
        assert plex.list("media") == LIBRARY
        assert plex.ask("state", plex.data / "media" / "cached.mkv") in ("ENOTSUP", "EOPNOTSUPP", "ENODATA")

        kill_both(start_mount(settings))
        assert plex.ask("hold", plex.data / "media" / "slow.mkv") in ENDED
        running = start_mount(settings)
        assert plex.list("media") == LIBRARY
        assert running.terminate() == 0
        assert [one for one in plex.ask("watched_so_far") if one not in (LIBRARY, *ENDED)] == []
        assert private.ask("watched_so_far") == [LIBRARY]
