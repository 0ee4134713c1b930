"""Small file systems, for what happens when a disk is full. Only root can mount them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        assert time.monotonic() < ends, f"{said.stderr}\n{_holders(place)}"
        time.sleep(_LOOK_EVERY_S)


def _holders(place: Path) -> str:
    """Which processes have what open there, work there, or have it mapped."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir(), *(process / "map_files").iterdir()]
            held = {link.name: target for link in links if (target := _target(link)).startswith(str(place))}
            if held:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{process.name} ({command}): {held}")
    return "\n".join(found) or "no process that can be seen holds it"


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
