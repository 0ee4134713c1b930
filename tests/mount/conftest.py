"""Fixtures of the tests with real mounts: the slow disk, and cachefs itself as a subprocess.

Nothing is skipped: where FUSE is missing the tests fail and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin.slowdisk_control import FAST, SlowDisk, SlowDiskSettings
from tests.standin.slowdisk_control import slow_disk as started_slow_disk


@pytest.fixture(scope="session", autouse=True)
def _fuse_is_here() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.fail(
            "these tests mount for real and /dev/fuse is missing: load the module fuse, "
            "or run the container with --device /dev/fuse"
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        pytest.fail("these tests mount for real and fusermount3 is missing: install the package fuse3")


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
