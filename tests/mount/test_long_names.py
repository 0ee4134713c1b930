"""Names that are longer than most disks can hold: CIFS, NTFS and FUSE file systems have them, with up to 765 bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachefs.errors import UserError
from tests.mount.kit import read
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import FAST

Start = Callable[[dict[str, Any]], RunningCachefs]

COPIES = 8
"""Of each kind: together they fill more than one page of names."""


@pytest.mark.parametrize("slow_disk_settings", [replace(FAST, long_tilde=length) for length in (250, 256, 511, 1000)])
@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_long_names_are_listed_found_read_and_not_cached(
    slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start, fast_path: str
) -> None:
    for number in range(COPIES):
        (slow_disk.backing / f"{number}~.mkv").write_bytes(b"film %d" % number)
        (slow_disk.backing / f"show~{number}").mkdir()
        (slow_disk.backing / f"show~{number}" / "~").write_bytes(b"episode %d" % number)
    running = start_mount(cachefs_settings | {"fast_path": fast_path})
    mount, source = running.mountpoint, slow_disk.mountpoint
    for _ in range(2):
        assert sorted(os.listdir(mount)) == sorted(os.listdir(source))
        assert len(os.listdir(mount)) == 2 * COPIES
    length = slow_disk.process.settings.long_tilde
    tildes = "~" * length
    for number in range(COPIES):
        assert read(mount / f"{number}{tildes}.mkv") == b"film %d" % number
        inside = mount / f"show{tildes}{number}"
        assert os.listdir(inside) == [tildes]
        assert read(inside / tildes) == b"episode %d" % number
    with running.client() as client:
        if length > 250:
            with pytest.raises(UserError, match="too long"):
                client.copy(f"0{tildes}.mkv")
