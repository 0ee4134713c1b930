"""``cachefs verify`` against a running cachefs: what was damaged on the SSD behind its back is found, and mended."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

UNSOUND = 4
CONTENT = random.Random(5).randbytes(2 * MIB)
FILMS = ("bit.mkv", "lost.mkv", "well.mkv")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with settings_in(tmp_path) as made:
        for name in FILMS:
            (tmp_path / "media" / name).write_bytes(CONTENT)
        yield made


def _flaws(running: RunningCachefs, *arguments: str) -> dict[str, str]:
    """What is found, by the last part of its place on the SSD."""
    report = json.loads(running.run("verify", "--json", *arguments).stdout)
    return {Path(finding["place"]).name: finding["flaw"] for finding in report["findings"]}


def test_damage_on_the_ssd_is_found_and_mended_while_cachefs_runs(settings: dict[str, Any], start_mount: Start) -> None:
    running = start_mount(settings)
    for name in FILMS:
        assert running.run("copy", name).returncode == 0
    assert running.run("verify", "--content").returncode == 0

    files = Path(settings["cache"]["path"]) / "files" / "media"
    with (files / "bit.mkv").open("r+b") as file:
        file.seek(MIB)
        file.write(bytes((CONTENT[MIB] ^ 4,)))
    os.unlink(files / "lost.mkv")
    (files / "left.mkv").write_bytes(b"left")
    (files / "link.mkv").symlink_to("well.mkv")

    told = running.run("verify", "--content", "bit.mkv")
    assert told.returncode == UNSOUND
    assert "its bytes are not those of its source (from byte 1048576 on)" in told.stdout
    assert _flaws(running) == {"lost.mkv": "missing", "left.mkv": "leftover", "link.mkv": "foreign"}
    os.unlink(files / "link.mkv")
    assert _flaws(running, "--content", "--repair") == {
        "bit.mkv": "unequal",
        "lost.mkv": "missing",
        "left.mkv": "leftover",
    }

    assert not (files / "left.mkv").exists()
    for name in FILMS:
        assert read(running.mountpoint / name) == CONTENT
    # They were asked for with `cachefs copy`, so they are copied again.
    wait_until(running, lambda: running.status().entries_cached == len(FILMS), "they are cached again")
    assert {(files / name).read_bytes() == CONTENT for name in FILMS} == {True}
    assert running.run("verify", "--content").returncode == 0


def test_copies_of_a_source_that_does_not_answer_are_kept(
    slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source Media .* is offline")
    cachefs_settings["sources"][0] |= {"timeout": "1s", "ttl": "0s"}
    for name in FILMS:
        (slow_disk.backing / name).write_bytes(CONTENT)
    running = start_mount(cachefs_settings)
    for name in FILMS:
        assert running.run("copy", name).returncode == 0
    slow_disk.hang()
    assert _flaws(running, "--content", "--repair") == dict.fromkeys(FILMS, "uncompared")
    assert running.run("verify").returncode == UNSOUND
    slow_disk.release()
    wait_until(running, lambda: all(source.online for source in running.status().sources), "the source is back")
    assert running.run("verify", "--content").returncode == 0
    assert running.status().entries_cached == len(FILMS)
