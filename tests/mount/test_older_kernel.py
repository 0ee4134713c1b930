"""On a kernel that offers less than this one, cachefs serves all itself, and says once why (``older_kernel.c``)."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]

CONTENT = random.Random(6).randbytes(2 * MIB)
WHY = "this kernel has no passthrough, which came with Linux 6.9"
KERNELS = {"6.8.0": (39, (1 << 37) - 1), "5.0.0": (28, (1 << 24) - 1)}
"""The minor version of its FUSE, and the flags that it knew."""


@pytest.fixture(params=KERNELS)
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """For a cachefs that meets an older kernel."""
    older = tmp_path / "older.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", older, Path(__file__).with_name("older_kernel.c"), "-ldl"], check=True
    )
    minor, flags = KERNELS[request.param]
    monkeypatch.setenv("OLDER_RELEASE", request.param)
    monkeypatch.setenv("OLDER_MINOR", str(minor))
    monkeypatch.setenv("OLDER_FLAGS", str(flags))
    monkeypatch.setenv("LD_PRELOAD", str(older))
    with settings_in(tmp_path) as made:
        yield made


def test_an_older_kernel_is_served_by_the_daemon_which_says_once_why(
    settings: dict[str, Any], tmp_path: Path, start_mount: Start
) -> None:
    source = tmp_path / "media"
    (source / "film.mkv").write_bytes(CONTENT)
    (source / "Show").mkdir()
    running = start_mount(settings)
    wait_until(running, lambda: running.status().fast_path == WHY, "it is said before anything is read")
    assert os.listdir(running.mountpoint / "Show") == []
    assert running.run("copy", "film.mkv").returncode == 0
    wait_until(running, lambda: os.getxattr(running.mountpoint / "film.mkv", STATE) == b"cached", "it is cached")
    for _ in range(2):
        assert sorted(os.listdir(running.mountpoint)) == ["Show", "film.mkv"]
        assert read(running.mountpoint / "film.mkv") == CONTENT
    (source / "Show" / "new.mkv").write_bytes(b"new")
    wait_until(running, lambda: os.listdir(running.mountpoint / "Show") == ["new.mkv"], "what is new is listed")
    reads = running.status().reads
    assert (reads.source_reads, reads.kernel_opens) == (0, 0)
    assert reads.cache_bytes >= len(CONTENT)
    assert f"reads go through the daemon: {WHY}" in running.run("status").stdout
    doctor = running.run("doctor").stdout
    assert f"go through the daemon: {WHY}" in doctor
    assert doctor.count("does not read cached files by itself") == 1
    assert running.log.read_text().count(WHY) == 1
