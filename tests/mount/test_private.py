"""What is the owner's alone stays so, through a whole life of a daemon: the token, the folders, what lies outside."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.errors import UserError
from cachefs.model import EntryState
from tests.mount.kit import read
from tests.mount.lives import TOKEN, settings_in, wait_until
from tests.standin.library import build_library
from tests.standin.library_in_plex import put_in_plex
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.running import REPOSITORY, RunningCachefs, wait_until_ready

NEEDLE = TOKEN.encode()
FILM = "film.mkv"
LOOKS = (("doctor", "--json"), ("status", "--json"))
EVERYTHING = (
    *(("check",), *LOOKS, ("plan", "--json"), ("copy", FILM), ("explain", FILM), ("ls", "--json")),
    *(("pin", "No such title"), ("verify", "--content"), ("restore",)),
)


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex(token=TOKEN) as running:
        yield running


@pytest.fixture
def running(
    tmp_path: Path, plex: StandInPlex, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> Iterator[RunningCachefs]:
    """Started without a umask, over a source with links that lead out of it; its owner's files are nobody's yet."""
    library = build_library(tmp_path / "media")
    put_in_plex(library, plex)
    (tmp_path / "media" / FILM).write_bytes(b"film" * 1000)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.mkv").write_bytes(b"secret")
    os.symlink("../outside/secret.mkv", tmp_path / "media" / "link.mkv")
    os.symlink(tmp_path / "outside", tmp_path / "media" / "way")
    with settings_in(tmp_path) as settings:
        (tmp_path / "ssd").rmdir()
        settings["control"]["socket"] = str(Path(settings["control"]["socket"]).parent / "made" / "for" / "it.sock")
        settings["plex"] = {"url": plex.url, "token": TOKEN, "cloud_url": plex.url}
        before = os.umask(0)
        try:
            yield start_mount(settings)
        finally:
            os.umask(before)


@pytest.mark.expected_warnings(
    "server ended", "SIGABRT", "exit code", "signal", "killed", "dead", "started again", "SSD copy of"
)
def test_nothing_of_the_owners_is_anybody_elses(tmp_path: Path, running: RunningCachefs) -> None:
    told = [_said(running, *EVERYTHING), *_of_processes(running)]
    _links_lead_nowhere(tmp_path, running)
    _is_private(tmp_path / "ssd", running.socket)
    server = running.status().pid
    os.kill(server, signal.SIGABRT)
    wait_until(running, lambda: _pid(running) not in (None, server), "the keeper has started another server")
    wait_until_ready(running)
    told += [_said(running, *LOOKS), *_of_processes(running)]
    _is_private(tmp_path / "ssd", running.socket)
    assert running.terminate() == 0
    assert [text for text in told if NEEDLE in text] == []
    files = [path for path in (*tmp_path.rglob("*"), *REPOSITORY.glob("core*")) if path.is_file()]
    assert tmp_path / "cachefs.log" in files
    assert any(path.name == "index.sqlite" for path in files)
    assert [path.name for path in files if NEEDLE in path.read_bytes()] == ["cachefs.yaml"]


def _pid(running: RunningCachefs) -> int | None:
    made = running.run("status", "--healthy")
    return running.status().pid if made.returncode == 0 else None


def _said(running: RunningCachefs, *commands: tuple[str, ...]) -> bytes:
    """What these commands say."""
    said = ""
    for command in commands:
        made = running.run(*command)
        assert "Traceback" not in made.stderr
        said += made.stdout + made.stderr
    return said.encode()


def _of_processes(running: RunningCachefs) -> list[bytes]:
    """What can be seen of keeper and server from outside; and no crash leaves a picture of them."""
    seen = []
    for pid in (running.process.pid, running.status().pid):
        process = Path(f"/proc/{pid}")
        seen += [(process / name).read_bytes() for name in ("cmdline", "environ", "comm", "status")]
        (limit,) = [line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core file")]
        assert int(limit.split()[4]) <= 1
    return seen


def _is_private(ssd: Path, socket: Path) -> None:
    """That nobody else may look at, or into, anything that the daemon made for itself."""
    made = [ssd, *ssd.rglob("*"), socket, socket.parent, socket.parent.parent]
    assert {"index.sqlite", "keepsake.json", "lock", FILM} <= {path.name for path in made}
    ours = [path for path in made if not path.is_relative_to(ssd / "files" / "media") or path.is_dir()]
    assert {path: oct(mode) for path in ours if (mode := stat.S_IMODE(path.lstat().st_mode)) & 0o077} == {}


def _links_lead_nowhere(tmp_path: Path, running: RunningCachefs) -> None:
    assert os.readlink(running.mountpoint / "link.mkv") == "../outside/secret.mkv"
    with running.client() as client:
        for path in ("link.mkv", "way/secret.mkv", "../outside/secret.mkv", str(tmp_path / "outside" / "secret.mkv")):
            for act in (client.copy, client.explain):
                with pytest.raises(UserError):
                    act(path)
        cached = [entry.key.path for entry in client.entries() if entry.state is EntryState.CACHED]
    assert FILM in cached
    media = tmp_path / "ssd" / "files" / "media"
    shutil.rmtree(media)
    os.symlink(tmp_path / "outside", media)
    (tmp_path / "outside" / FILM).write_bytes(b"evil" * 1000)
    assert read(running.mountpoint / FILM) == b"film" * 1000
    wait_until(running, lambda: not _is_cached(running), "what cannot be read is dropped")
    assert running.run("copy", FILM).returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "outside").iterdir()} == {
        "secret.mkv": b"secret",
        FILM: b"evil" * 1000,
    }


def _is_cached(running: RunningCachefs) -> bool:
    with running.client() as client:
        return any(entry.key.path == FILM for entry in client.entries())
