"""What comes into a pinned folder is on the SSD soon: through the mount, behind it, and however it got its name."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.kit import MIB, STATE
from tests.mount.lives import wait_until
from tests.mount.realfiles import mounted
from tests.standin.running import RunningCachefs


def test_what_is_new_below_a_pinned_folder_is_cached_without_another_word() -> None:
    with mounted("media") as (running, folder):
        media, mount = folder / "media", running.mountpoint
        (media / "TV/Show").mkdir(parents=True)
        (media / "TV/Show/1.mkv").write_bytes(b"first")
        (media / "new.mkv").write_bytes(b"elsewhere")
        with running.client() as client:
            client.pin("TV")
        _is_cached(mount / "TV/Show/1.mkv", running)
        with (mount / "TV/Show/2.mkv").open("wb") as new:
            for _ in range(4):
                new.write(b"2" * MIB)
        _is_cached(mount / "TV/Show/2.mkv", running)
        os.rename(mount / "TV/Show", mount / "TV/Show (2002)")
        os.rename(mount / "new.mkv", mount / "TV/3.mkv")
        os.link(mount / "TV/3.mkv", mount / "TV/4.mkv")
        for name in ("Show (2002)/1.mkv", "Show (2002)/2.mkv", "3.mkv", "4.mkv"):
            _is_cached(mount / "TV" / name, running)
        (media / "TV/5.mkv").write_bytes(b"behind the mount")
        _is_cached(mount / "TV/5.mkv", running)


def _is_cached(path: Path, running: RunningCachefs) -> None:
    wait_until(running, lambda: os.getxattr(path, STATE) == b"cached", f"{path.name} is cached")
