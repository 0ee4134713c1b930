"""A source that is away: what the cache and the index know of it is still there, and says so."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mount.faultkit import (
    ATTRIBUTE,
    CACHED,
    CONTENT,
    FAULTS,
    FILES,
    IN_ROOT,
    IN_SHOW,
    UNCACHED,
    UNTRUE,
    VALUE,
    WARNINGS,
    Scene,
    Start,
    every_fault,
    fault_scene,
    fault_settings,
)
from tests.mount.kit import MIB, STATE, errno_of, read
from tests.mount.lives import wait_until
from tests.standin.slowdisk_control import SlowDisk


@pytest.fixture
def scene(tmp_path: Path, slow_disk: SlowDisk, start_mount: Start, expected_warnings: list[str]) -> Iterator[Scene]:
    expected_warnings += WARNINGS
    with fault_settings(tmp_path, slow_disk) as settings, fault_scene(settings, slow_disk, start_mount) as made:
        yield made


@every_fault
def test_what_is_known_is_shown_and_what_is_cached_is_played(scene: Scene, fault: str) -> None:
    with (scene.slow / "one.mkv").open("rb", buffering=0) as film:
        os.posix_fadvise(film.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead of the fault
        begin = film.read(MIB)
        scene.break_disk(fault)
        assert begin + b"".join(iter(lambda: film.read(MIB), b"")) == CONTENT
    for name in CACHED:
        assert (scene.slow / name).stat().st_size == len(CONTENT)
        assert read(scene.slow / name) == CONTENT
    assert sorted(os.listdir(scene.slow)) == IN_ROOT
    assert sorted(os.listdir(scene.slow / "Show")) == IN_SHOW
    assert sorted(os.listdir(scene.running.mountpoint)) == ["media", "slow"]
    for name in UNCACHED:
        assert (scene.slow / name).stat().st_size == len(CONTENT)
        assert errno_of(read, scene.slow / name) not in (0, *UNTRUE)
    assert read(scene.media / "one.mkv") == CONTENT
    wait_until(scene.running, lambda: not scene.is_online(), "status says it is away", within_s=5)
    listed = subprocess.run(["ls", "-laR", scene.slow], check=False, capture_output=True, text=True, timeout=20)
    assert (listed.returncode, listed.stderr) == (0, "")
    for name in CACHED:
        assert errno_of(os.getxattr, scene.slow / name, "security.selinux") == errno.ENODATA, "ls asks for it"
        assert os.listxattr(scene.slow / name) == [ATTRIBUTE]
        assert os.getxattr(scene.slow / name, ATTRIBUTE) == VALUE
    for name in UNCACHED:
        assert errno_of(os.listxattr, scene.slow / name) == errno.ENOTSUP, "who copies them is not told there are none"
    target = scene.slow / "one.mkv"
    changes: tuple[Callable[[], object], ...] = (
        lambda: os.utime(target),
        lambda: os.truncate(target, 0),
        lambda: target.rename(scene.slow / "renamed.mkv"),
        lambda: (scene.slow / "Show").rename(scene.slow / "Renamed"),
        lambda: os.link(target, scene.slow / "linked.mkv"),
        lambda: os.open(target, os.O_RDWR),
        target.unlink,
    )
    assert [errno_of(change) for change in changes] == [errno.EIO] * len(changes)
    assert all(read(scene.slow / name) == CONTENT for name in CACHED), "what did not happen changed nothing"
    (slow,) = [source for source in scene.running.status().sources if source.name == "slow"]
    assert slow.problem
    assert scene.cached() == set(CACHED)


@every_fault
def test_everything_works_again_without_a_restart(scene: Scene, fault: str) -> None:
    scene.break_disk(fault)
    scene.mend_disk(fault)

    def works() -> bool:
        return all(errno_of(read, scene.slow / name) == 0 for name in FILES)

    wait_until(scene.running, works, "everything can be read", within_s=10)
    assert sorted(os.listdir(scene.slow)) == IN_ROOT
    assert os.getxattr(scene.slow / "one.mkv", STATE) == b"cached"


@every_fault
def test_it_starts_while_a_source_is_away(scene: Scene, fault: str) -> None:
    assert scene.running.terminate() == 0
    FAULTS[fault](scene.disk)
    running = scene.start(scene.settings)
    assert read(running.mountpoint / "media" / "one.mkv") == CONTENT
    assert read(running.mountpoint / "slow" / "one.mkv") == CONTENT


@pytest.mark.parametrize("holds", ["nothing", "something else"])
def test_a_root_that_is_another_after_a_restart_forgets_nothing(
    scene: Scene, tmp_path: Path, holds: str, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source media .* is offline")
    scene.copy("media/one.mkv")
    media = tmp_path / "media"
    assert scene.running.terminate() == 0
    media.rename(tmp_path / "media.away")
    media.mkdir()
    if holds == "something else":
        (media / "other.mkv").write_bytes(b"other")
    again = replace(scene, running=scene.start(scene.settings))
    errno_of(os.listdir, again.media)
    errno_of((again.media / "one.mkv").stat)
    assert again.cached("media") == {"one.mkv"}
    assert read(again.media / "one.mkv") == CONTENT


@pytest.mark.parametrize("holds", ["nothing", "something else", "no folder at all"])
def test_a_root_that_is_moved_away_meanwhile_is_missing_until_it_is_back(
    scene: Scene, tmp_path: Path, holds: str, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source media .* is offline")
    scene.copy("media/one.mkv")
    media, away = tmp_path / "media", tmp_path / "media.away"
    names = sorted(os.listdir(scene.media))
    media.rename(away)
    if holds != "no folder at all":
        media.mkdir()
    if holds == "something else":
        (media / "other.mkv").write_bytes(b"other")

    def health() -> tuple[bool, str]:
        (found,) = [source for source in scene.running.status().sources if source.name == "media"]
        return found.online, found.problem

    wait_until(scene.running, lambda: not health()[0], "it is missing")
    assert sorted(os.listdir(scene.media)) == names
    assert read(scene.media / "one.mkv") == CONTENT
    assert errno_of((scene.media / "new.mkv").touch) != 0
    assert scene.cached("media") == {"one.mkv"}
    if holds != "no folder at all":
        media.rename(tmp_path / "media.other")
    away.rename(media)
    wait_until(scene.running, lambda: health()[0], "it is back")
    (scene.media / "new.mkv").write_bytes(b"new")
    assert (media / "new.mkv").read_bytes() == b"new"


@pytest.mark.parametrize("holds", ["nothing", "something else"])
def test_another_root_is_the_source_once_it_is_accepted(
    scene: Scene, tmp_path: Path, holds: str, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source media .* is offline")
    media = tmp_path / "media"
    assert scene.running.run("accept", "media").returncode == 2  # it is online
    assert scene.running.terminate() == 0
    media.rename(tmp_path / "media.away")
    _nothing_is_accepted(scene)
    media.mkdir()
    if holds == "something else":
        (media / "other.mkv").write_bytes(b"other")
    again = replace(scene, running=scene.start(scene.settings))
    assert sorted(os.listdir(again.media)) != os.listdir(media)
    media.rename(tmp_path / "media.later")
    _nothing_is_accepted(again)
    wait_until(again.running, lambda: _problem(again) == os.strerror(errno.ENOENT), "it was looked for")
    (tmp_path / "media.later").rename(media)
    wait_until(again.running, lambda: _problem(again) != os.strerror(errno.ENOENT), "it was looked at")
    assert _problem(again), "what comes after a refusal is judged as ever"
    assert again.running.run("accept", "media").returncode == 0
    wait_until(again.running, lambda: os.listdir(again.media) == os.listdir(media), "what is there now is shown")
    (media / "new.mkv").write_bytes(b"new")
    wait_until(again.running, lambda: os.path.exists(again.media / "new.mkv"), "and what comes")


def _problem(scene: Scene) -> str:
    (found,) = [source for source in scene.running.status().sources if source.name == "media"]
    return found.problem


def _nothing_is_accepted(scene: Scene) -> None:
    refused = scene.running.run("accept", "media")
    assert refused.returncode == 2
    assert "media is not there: mount its disk, or make the folder, first" in refused.stderr
