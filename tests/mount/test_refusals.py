"""What cannot be mounted is refused at once: a text that says what to do, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cachefs.mounts import mounted_at
from tests.mount.lives import TOKEN, Attempt, attempt, attempt_file, settings_in
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]

CONFIGURATION, MOUNT = 2, 3
IN_A_NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
"""Mounts that the command line after it makes are its own and go with it."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(b"film")
        made["plex"] = {"url": "http://127.0.0.1:1", "token": TOKEN}
        yield made


@pytest.fixture
def refused(tmp_path: Path, settings: dict[str, Any]) -> Callable[..., Attempt]:
    """Run ``cachefs mount``, which must refuse; whatever it was refused for, it leaves nothing behind."""

    def run(before: Sequence[str] = ()) -> Attempt:
        held = _tree(tmp_path)
        mounts = _mounts_below(tmp_path)
        made = attempt(tmp_path / "cachefs.yaml", settings, before)
        assert TOKEN not in made.output
        assert "Traceback" not in made.output
        assert _mounts_below(tmp_path) == mounts
        assert not Path(settings["control"]["socket"]).exists()
        assert _tree(tmp_path) - held <= _ALLOWED
        return made

    return run


_ALLOWED = {"cachefs.yaml"} | {
    f"ssd/{name}"
    for name in ("lock", "index.sqlite", "keepsake.json", "folders.sqlite", "files", "files/media", "partial")
}


def _mounts_below(folder: Path) -> list[str]:
    """The lines of the mount table that name the folder; others may mount what they like meanwhile."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def _tree(folder: Path) -> set[str]:
    """Names of everything in the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _in_a_namespace(script: str) -> list[str]:
    """A prefix: run what follows after the shell commands, in a mount namespace of its own."""
    return [*IN_A_NAMESPACE, "sh", "-ec", f'{script}\nexec "$@"', "sh"]


# --- the mountpoint --------------------------------------------------------------------------------------------------


def test_a_missing_mountpoint_in_a_missing_folder(settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    settings["mountpoint"] += "/gone/mount"
    made = refused()
    assert made.code == MOUNT
    to_make = settings["mountpoint"] if os.geteuid() else os.path.dirname(settings["mountpoint"])
    assert f"run: mkdir -p {to_make}" in made.output


def test_a_mountpoint_that_is_a_file(settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    os.rmdir(settings["mountpoint"])
    Path(settings["mountpoint"]).touch()
    made = refused()
    assert made.code == MOUNT
    assert f"{settings['mountpoint']} is no folder" in made.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_mountpoint_where_something_else_is_mounted(
    settings: dict[str, Any], refused: Callable[..., Attempt]
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "other", settings["mountpoint"]], check=True)
    try:
        made = refused()
        still = mounted_at(Path(settings["mountpoint"]))
    finally:
        subprocess.run(["umount", "-l", settings["mountpoint"]], check=True)
    assert made.code == MOUNT
    assert f"{settings['mountpoint']} is in use: other (tmpfs)" in made.output
    assert still is not None
    assert still.fstype == "tmpfs"


def test_a_mountpoint_where_another_cachefs_lives(
    tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt], start_mount: Start
) -> None:
    """With another cache and another socket: only the mountpoint tells."""
    first = {
        **settings,
        "cache": {**settings["cache"], "path": str(tmp_path / "other")},
        "control": {"socket": f"{settings['control']['socket']}.other"},
    }
    del first["plex"]
    running = start_mount(first)
    made = refused()
    assert made.code == MOUNT
    assert f"another cachefs is mounted at {settings['mountpoint']}" in made.output
    assert (running.mountpoint / "film.mkv").read_bytes() == b"film"


def test_a_mountpoint_in_a_source_by_a_symbolic_link(
    tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt]
) -> None:
    (tmp_path / "media" / "below").mkdir()
    (tmp_path / "link").symlink_to("media/below")
    settings["mountpoint"] = str(tmp_path / "link")
    made = refused()
    assert made.code == CONFIGURATION
    assert "mountpoint" in made.output
    assert "really inside the source" in made.output

    (tmp_path / "same").symlink_to("media")
    settings["mountpoint"] = str(tmp_path / "same")
    made = refused()
    assert made.code == CONFIGURATION
    assert f"mountpoint: {tmp_path}/same is really the source {tmp_path}/media" in made.output


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_a_cache_in_a_source(
    tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt], exists: bool
) -> None:
    """By name, and by a symbolic link that only the disk knows."""
    below = tmp_path / "media" / "below"
    settings["cache"]["path"] = str(below / "cache")
    made = refused()
    assert made.code == CONFIGURATION
    assert f"cache.path: {below / 'cache'} lies in the source" in made.output

    below.mkdir()
    (tmp_path / "link").symlink_to("media/below")
    if exists:
        (below / "cache").mkdir()
    settings["cache"]["path"] = str(tmp_path / "link" / "cache")
    made = refused()
    assert made.code == CONFIGURATION
    assert f"cache.path: {tmp_path}/link/cache is really inside the source {tmp_path}/media" in made.output


def test_a_source_in_the_cache(tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    below = tmp_path / "ssd" / "media"
    below.mkdir()
    settings["sources"][0]["path"] = str(below)
    made = refused()
    assert made.code == CONFIGURATION
    assert f"sources[0].path: {below} lies in the cache" in made.output

    (tmp_path / "link").symlink_to("ssd/media")
    settings["sources"][0]["path"] = str(tmp_path / "link")
    made = refused()
    assert made.code == CONFIGURATION
    assert f"sources[0].path: {tmp_path}/link is really inside the cache {tmp_path}/ssd" in made.output


def test_a_cache_that_another_daemon_has(
    tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt], start_mount: Start
) -> None:
    (tmp_path / "other").mkdir()
    first = {
        **settings,
        "mountpoint": str(tmp_path / "other"),
        "control": {"socket": f"{settings['control']['socket']}.other"},
    }
    del first["plex"]
    running = start_mount(first)
    made = refused()
    assert made.code == MOUNT
    assert f"{settings['cache']['path']}" in made.output
    assert "another" in made.output
    assert (running.mountpoint / "film.mkv").read_bytes() == b"film"


def test_a_cache_of_other_sources(
    tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt], start_mount: Start
) -> None:
    """The same name, another folder: the copies are of other files."""
    plex = settings.pop("plex")
    running = start_mount(settings)
    assert running.run("copy", "film.mkv").returncode == 0
    assert running.terminate() == 0
    (tmp_path / "elsewhere").mkdir()
    settings["sources"][0]["path"] = str(tmp_path / "elsewhere")
    settings["plex"] = plex
    made = refused()
    said = f"it holds copies of media at {tmp_path}/media, not of media at {tmp_path}/elsewhere"
    assert made.code == MOUNT
    assert said in made.output
    checked = running.run("check")
    assert checked.returncode == CONFIGURATION
    assert said in checked.stdout
    assert (tmp_path / "ssd" / "files" / "media" / "film.mkv").read_bytes() == b"film"


def test_a_cache_that_cannot_be_written(settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    folder = settings["cache"]["path"]
    made = refused(_in_a_namespace(f"mount -t tmpfs -o ro none {folder}"))
    assert made.code == MOUNT
    assert f"cache.path {folder} cannot be used: Read-only file system" in made.output


def test_a_cache_that_is_a_file(tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    settings["cache"]["path"] = str(tmp_path / "file")
    (tmp_path / "file").touch()
    made = refused()
    assert made.code == MOUNT
    assert f"cache.path {tmp_path}/file cannot be used" in made.output


# --- sources, socket, the machine ------------------------------------------------------------------------------------


def test_a_missing_source(tmp_path: Path, settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    settings["sources"][0]["path"] = str(tmp_path / "nothing")
    made = refused()
    assert made.code == MOUNT
    assert "a source cannot be opened" in made.output
    assert str(tmp_path / "nothing") in made.output


def test_a_socket_that_cannot_be_made(settings: dict[str, Any], refused: Callable[..., Attempt]) -> None:
    folder = os.path.dirname(settings["control"]["socket"])
    made = refused(_in_a_namespace(f"mount -t tmpfs -o ro none {folder}"))
    assert made.code == CONFIGURATION
    assert f"control.socket: cannot listen on {settings['control']['socket']}: Read-only file system" in made.output


def test_a_machine_without_a_fuse_device(tmp_path: Path, refused: Callable[..., Attempt]) -> None:
    devices = tmp_path / "mount"
    script = f"""
        mount -t tmpfs none {devices}
        for name in null urandom; do touch {devices}/$name; mount --bind /dev/$name {devices}/$name; done
        mount --rbind {devices} /dev
        umount -l {devices}
    """
    made = refused(_in_a_namespace(script))
    assert made.code == MOUNT
    assert "/dev/fuse does not exist" in made.output
    assert "modprobe fuse" in made.output


def test_a_fuse_device_that_is_none(refused: Callable[..., Attempt]) -> None:
    made = refused(_in_a_namespace("mount --bind /dev/null /dev/fuse"))
    assert made.code == MOUNT
    assert "/dev/fuse is no FUSE device" in made.output


# --- the configuration -----------------------------------------------------------------------------------------------


def test_all_problems_of_a_configuration_are_told_at_once(
    settings: dict[str, Any], refused: Callable[..., Attempt]
) -> None:
    settings["mountpont"] = settings.pop("mountpoint")
    settings["cache"]["max_size"] = "plenty"
    settings["plex"]["url"] = "127.0.0.1"
    made = refused()
    assert made.code == CONFIGURATION
    for key in ("mountpoint", "cache.max_size", "plex.url"):
        assert f": {key}" in made.output


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    nothing, binary = tmp_path / "nothing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for config, said in ((nothing, "there is no such file"), (tmp_path, "Is a directory"), (binary, "no UTF-8 text")):
        made = attempt_file(config)
        assert made.code == CONFIGURATION
        assert said in made.output
        assert str(config) in made.output
