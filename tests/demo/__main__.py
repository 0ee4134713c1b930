"""``make demo``: everything cachefs is for, in a minute, on a sample library; needs nothing and leaves nothing behind.

Ends with 0 when the story really happened, 1 when a part of it did not (and says which), 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

from cachefs import probes
from cachefs.errors import CachefsError
from tests.demo.scene import scene
from tests.demo.screen import screen_for, speed
from tests.demo.stop import Stop, Stopped, stop_on_signals
from tests.demo.story import Measurement, Outcome, Story
from tests.standin.running import CachefsFailed
from tests.standin.slowdisk_process import SlowDiskFailed

INTRODUCTION = (
    "A sample library on a disk that sleeps (3 s to wake up, then 40 MB/s), a stand-in Plex server, and cachefs "
    "mounted over them. Everything is in a temporary folder and goes away at the end."
)
ORDINARY_USER = (
    "You are not root: the mounts are made by fusermount3 and only you can see into them (no allow_other), and cachefs "
    "answers every read itself, since the kernel serves files straight from the SSD for root only."
)


def main() -> int:
    console = Console()
    with stop_on_signals() as stop:
        console.print(INTRODUCTION)
        if (obstacle := why_not_here(os.geteuid())) is not None:
            console.print(f"The demo cannot run here: {obstacle}.", markup=False, soft_wrap=True)
            return 1
        if os.geteuid() != 0:
            console.print(ORDINARY_USER)
        try:
            outcome = perform(console, stop)
        except Stopped:
            console.print("Stopped; nothing is left mounted and nothing is left behind.")
            return 130
        except (CachefsFailed, SlowDiskFailed, CachefsError) as error:
            console.print(f"The demo could not go on: {error}", markup=False, soft_wrap=True)
            return 1
    return conclude(console, outcome)


def why_not_here(uid: int) -> str | None:
    """What keeps this user from mounting anything."""
    fuse = probes.look_at_fuse(uid)
    if fuse.device_problem:
        return f"{probes.FUSE_DEVICE} {fuse.device_problem}"
    return "fusermount3 is missing; install the package fuse3" if fuse.fusermount_missing else None


def perform(console: Console, stop: Stop) -> Outcome:
    """The whole story on a stage of its own, gone when this returns."""
    with scene(stop) as stage:
        with screen_for(console) as screen:
            outcome = Story(stage, screen, stop).tell()
        if outcome.missing:
            console.print("The end of cachefs's log:", stage.cachefs.tail(), sep="\n", markup=False, soft_wrap=True)
    return outcome


def conclude(console: Console, outcome: Outcome) -> int:
    """The table, the sentence, and the exit code."""
    if outcome.measurements:
        console.print(comparison(outcome.measurements))
    if outcome.missing:
        console.print("The demo did not show what it should have:", *outcome.missing, sep="\n  - ", markup=False)
        return 1
    console.print(
        "Shown: through one unchanged path, what people watch next is read from the SSD while the slow disk sleeps; a "
        "running stream moved there without noticing, and what was watched has made room again."
    )
    return 0


def comparison(measurements: tuple[Measurement, ...]) -> Table:
    table = Table(title="The same mount, two films of 40 MB")
    for heading in ("read from", "first byte", "then", "operations at the disk", "woke the disk"):
        table.add_column(heading, justify="left" if heading == "read from" else "right")
    for measured in measurements:
        table.add_row(
            measured.name,
            f"{measured.first_byte_s * 1000:,.1f} ms",
            speed(measured.bytes_per_s),
            str(measured.operations),
            "yes" if measured.wake_ups else "no",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
