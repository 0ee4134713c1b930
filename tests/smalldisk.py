"""Small file systems, for what happens when a disk is full. Only root can mount them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FREE_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.05


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[None]:
    """A tmpfs with these mount options (``size=8m``) at an empty folder. Fails at the end when somebody still has
    something open on it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", place], check=True)
    try:
        yield
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    """Whoever looks at all mounts of the machine, as a cachefs that starts elsewhere does, keeps each for a moment."""
    ends = time.monotonic() + _FREE_WITHIN_S
    while (said := subprocess.run(["umount", place], check=False, stderr=subprocess.PIPE, text=True)).returncode:
        assert time.monotonic() < ends, said.stderr
        time.sleep(_LOOK_EVERY_S)
