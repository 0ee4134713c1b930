"""Fixtures of the tests with real mounts: the slow disk, and cachefs itself as a subprocess.

Nothing is skipped: where FUSE is missing the tests fail and say so.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cachefs import probes
from tests.standin.running import RunningCachefs, start_cachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_control import slow_disk as started_slow_disk
from tests.standin.slowdisk_process import FAST, SlowDiskSettings


@pytest.fixture(scope="session", autouse=True)
def _fuse_is_here() -> None:
    fuse = probes.look_at_fuse(os.geteuid())
    if fuse.device_problem:
        pytest.fail(f"these tests mount for real, and {probes.FUSE_DEVICE} {fuse.device_problem}")
    if fuse.fusermount_missing:
        pytest.fail("these tests mount for real, and fusermount3 is missing: install the package fuse3")


@pytest.fixture(scope="session", autouse=True)
def _a_terminal_may_close() -> Iterator[None]:
    """Whoever runs the tests under nohup ignores SIGHUP, and what they start would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def slow_disk_settings() -> SlowDiskSettings:
    """How slow the disk is; tests override it by parametrizing. Not slow at all unless they do."""
    return FAST


@pytest.fixture
def slow_disk_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders: what is behind the slow disk, and where it is mounted."""
    backing, mountpoint = tmp_path / "backing", tmp_path / "slow"
    backing.mkdir()
    mountpoint.mkdir()
    return backing, mountpoint


@pytest.fixture
def slow_disk(slow_disk_settings: SlowDiskSettings, slow_disk_folders: tuple[Path, Path]) -> Iterator[SlowDisk]:
    """A running slow disk over an empty folder: write into its ``backing``, read at its ``mountpoint``."""
    with started_slow_disk(*slow_disk_folders, slow_disk_settings) as running:
        yield running


@pytest.fixture
def cachefs_settings(slow_disk: SlowDisk, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """``cachefs.yaml`` for one source, the slow disk's mountpoint, without Plex. Change it before cachefs starts."""
    for name in ("ssd", "mount"):
        (tmp_path / name).mkdir()
    with tempfile.TemporaryDirectory(prefix="cachefs-") as short:  # a socket's address holds 107 bytes
        yield {
            "mountpoint": str(tmp_path / "mount"),
            "sources": [{"path": str(slow_disk.mountpoint), "name": "Media"}],
            "cache": {"path": str(tmp_path / "ssd"), "max_size": "1GiB", "min_free": "1MiB"},
            "control": {"socket": f"{short}/control.sock"},
        }


@pytest.fixture
def start_mount(tmp_path: Path, expected_warnings: list[str]) -> Iterator[Callable[[dict[str, Any]], RunningCachefs]]:
    """Start ``cachefs mount`` with settings, as often as the test likes (the log goes on); ready when it returns.

    At the end everything is unmounted. A warning in the log that the test did not declare fails it.
    """
    log = tmp_path / "cachefs.log"
    with ExitStack() as stack:

        def start(settings: dict[str, Any]) -> RunningCachefs:
            running = start_cachefs(tmp_path / "cachefs.yaml", log, settings)
            stack.callback(running.remove)
            return running

        yield start
    lines = log.read_text(errors="backslashreplace").splitlines() if log.exists() else []
    warnings = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback", line)]
    undeclared = [line for line in warnings if not any(re.search(pattern, line) for pattern in expected_warnings)]
    assert not undeclared, "undeclared warnings in cachefs's log:\n" + "\n".join(undeclared)


@pytest.fixture
def mounted(
    start_mount: Callable[[dict[str, Any]], RunningCachefs], cachefs_settings: dict[str, Any]
) -> RunningCachefs:
    """cachefs over the slow disk, running and ready."""
    return start_mount(cachefs_settings)
