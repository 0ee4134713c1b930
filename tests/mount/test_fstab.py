"""cachefs as mount(8) starts it, by hand or from /etc/fstab: back once the mount answers, or with what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachefs.control.client import Client
from cachefs.mounts import mounted_at, unmount
from tests.mount.lives import settings_in, wait_gone
from tests.standin.running import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount(8)")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(b"film")
        (tmp_path / "cachefs.yaml").write_text(yaml.safe_dump(made))
        yield made
        unmount(tmp_path / "mount", force=True)


def _mount(tmp_path: Path, options: str) -> subprocess.CompletedProcess[str]:
    """As ``mount -t fuse.cachefs CONFIG MOUNTPOINT`` does, but mount.fuse3(8) takes this checkout's program instead of
    the command ``cachefs``, which it looks for in the system's own folders only."""
    script = tmp_path / "program"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m cachefs "$@"\n')
    script.chmod(0o755)
    command = ["mount", "-t", "fuse", f"{script}#{tmp_path}/cachefs.yaml", str(tmp_path / "mount"), "-o", options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_mount_returns_when_the_mount_answers_and_umount_ends_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    done = _mount(tmp_path, "_netdev,nofail,x-systemd.requires=network-online.target")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mount" / "film.mkv").read_bytes() == b"film"
    mount = mounted_at(tmp_path / "mount")
    assert mount is not None
    assert mount.source == str(tmp_path / "cachefs.yaml")  # else `mount -a` would mount it again
    with Client(Path(settings["control"]["socket"])) as client:
        server = client.status().pid
    assert {os.readlink(f"/proc/{server}/fd/{number}") for number in range(3)} == {os.devnull}
    subprocess.run(["umount", str(tmp_path / "mount")], check=True, timeout=20)
    wait_gone(server)


def test_what_goes_wrong_is_said_and_returned(tmp_path: Path, settings: dict[str, Any]) -> None:
    refused = _mount(tmp_path, "uid=1000")
    assert "uid: cachefs has no such option" in refused.stderr
    assert refused.returncode == 2
    (tmp_path / "media" / "film.mkv").unlink()
    (tmp_path / "media").rmdir()
    (tmp_path / "media").touch()
    failed = _mount(tmp_path, "defaults")
    assert failed.returncode == 3, failed.stderr
    assert "a source cannot be opened" in failed.stderr
    settings["mountpoint"] = str(tmp_path / "other")
    (tmp_path / "cachefs.yaml").write_text(yaml.safe_dump(settings))
    other = _mount(tmp_path, "defaults")
    assert other.returncode == 2
    assert f"says mountpoint: {tmp_path}/other, and not {tmp_path}/mount" in other.stderr
