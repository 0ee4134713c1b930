"""What a service manager hears, by sd_notify(3): READY only when the mount answers, STOPPING as soon as it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs import fstab, keeper
from cachefs.announce import Announcer
from cachefs.config import Config
from cachefs.errors import UserError
from tests.engine.test_keeper import GONE, READY, Scripted, config

__all__ = ["config"]


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(path))
        self.environ = {"NOTIFY_SOCKET": os.fspath(path)}

    def heard(self) -> list[str]:
        told = []
        while True:
            try:
                told.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def _kept(config: Config, manager: Manager, *scripts: str) -> int:
    return Scripted(config, list(scripts), Announcer.from_environment(manager.environ)).run()


def test_ready_is_said_once_the_server_is_and_stopping_when_it_is_told_to_stop(
    config: Config, manager: Manager
) -> None:
    assert _kept(config, manager, f"{READY} os.kill(os.getppid(), signal.SIGTERM); signal.pause()") == 0
    ready, stopping = manager.heard()
    assert ready.split("\n") == ["READY=1", f"STATUS=mounted at {config.mountpoint}"]
    assert stopping.split("\n")[0] == "STOPPING=1"
    assert manager.environ == {}  # the server is not to speak for the keeper


def test_a_server_that_never_was_ready_is_never_said_to_be(config: Config, manager: Manager) -> None:
    assert _kept(config, manager, "sys.exit(3)") == 3
    assert manager.heard() == []


def test_a_crash_and_the_next_start_are_said(
    config: Config, manager: Manager, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with exit code 1")
    monkeypatch.setattr(keeper, "_RESTART_AFTER_S", (0.0,))
    assert _kept(config, manager, f"{READY} {GONE} sys.exit(1)", f"{READY} {GONE}") == 0
    told = manager.heard()
    assert told[1] == "STATUS=the server ended with exit code 1; starting it again"
    assert [text.startswith("READY=1") for text in told] == [True, False, True]


def test_an_abstract_address_is_understood_and_a_dead_one_does_not_matter() -> None:
    name = f"cachefs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        Announcer(f"@{name}").status("well")
        assert manager.recv(100) == b"STATUS=well"
    Announcer(f"@{name}").status("nobody hears")


@pytest.mark.parametrize("text", ["rw,_netdev,nofail,x-systemd.requires=mnt-user.mount,noatime", "", "dev,suid,noauto"])
def test_options_for_mount_itself_are_tolerated(text: str) -> None:
    fstab.refuse_options(text)


@pytest.mark.parametrize("text", ["ro", "rw,uid=1000", "remount"])
def test_options_that_cachefs_cannot_follow_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="cachefs has no such option"):
        fstab.refuse_options(text)
