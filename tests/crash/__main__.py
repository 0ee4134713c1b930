"""``make crash``: kills a working cachefs hundreds of times and looks for what was lost.

Ends with 0 when nothing was, 1 at the first loss (with the seed that repeats the run), 2 when it cannot run here, 130
after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cachefs import probes
from tests.crash.failures import Lost
from tests.crash.powerloss import rebuilt, replay
from tests.crash.powerloss.house import begin
from tests.crash.powerloss.recording import record
from tests.crash.recovering import measure
from tests.crash.report import table
from tests.crash.rig import Result, Rig, Round
from tests.crash.rounds import plan
from tests.crash.stage import build
from tests.crash.steps import all_steps

_LIBRARY = 40
_WRITERS = 3
_SAMPLES = 2
"""Of what a power cut leaves, besides the four cases that are always tried."""


def main(given: Sequence[str]) -> int:
    options = _parse(given)
    console = Console()
    if (obstacle := _why_not_here()) is not None:
        console.print(f"The crash rig cannot run here: {obstacle}.", markup=False, soft_wrap=True)
        return 2
    console.print(f"Seed {options.seed}, {options.kills} kills.", highlight=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(tempfile.mkdtemp(prefix="cachefs-crash-", dir=options.folder))
    result = _run(console, folder, options, stop)
    recovery = None if result.loss or stop.is_set() else measure(folder)
    if not result.loss and not stop.is_set():
        result.loss = _cut_power(console, result, folder, options, stop)
    if not result.loss:
        shutil.rmtree(folder)
    console.print(table(result, recovery, options.mode))
    return _conclude(console, result, folder, options, stopped=stop.is_set())


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make crash ARGS=…", description="Kill cachefs, and look for what was lost.")
    parser.add_argument("--kills", type=int, default=500, help="at least so many, and every step's")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat it")
    parser.add_argument("--folder", type=Path, help="where to work (1 GiB); the default is the temporary folder")
    parser.add_argument("--mode", choices=("copy", "move", "both"), default="both", help="cache.mode")
    options = parser.parse_args(given)
    options.seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    return options


def _why_not_here() -> str | None:
    fuse = probes.look_at_fuse(os.geteuid())
    if fuse.device_problem:
        return f"{probes.FUSE_DEVICE} {fuse.device_problem}"
    return "fusermount3 is missing; install the package fuse3" if fuse.fusermount_missing else None


def _run(console: Console, folder: Path, options: argparse.Namespace, stop: threading.Event) -> Result:
    stage = build(folder, options.seed, _LIBRARY, _WRITERS, options.mode)
    rig = Rig(stage, stop)
    strikes = plan(options.seed, options.kills, all_steps(options.mode), every_step=True)
    with _progress(console) as progress:
        task = progress.add_task("kills", total=len(strikes))

        def tell(round_: Round) -> None:
            what = round_.strike.step or round_.strike.victim.value
            progress.update(task, advance=1, description=f"{what:40}"[:40])

        return rig.run(strikes, tell)


def _cut_power(
    console: Console, result: Result, folder: Path, options: argparse.Namespace, stop: threading.Event
) -> str:
    """Every power cut of both recordings. What was lost; empty when nothing was."""
    logging.disable(logging.WARNING)  # a lost index is told of, thousands of times
    recorded = folder / "recorded"
    (recorded / "ssd").mkdir(parents=True)
    calls = record(recorded / "ssd", recorded, replay.SCENARIO)
    every = replay.cuts(calls, options.seed, _SAMPLES)
    moved = folder / "moved"
    begin(moved / "root")
    moves = record(moved / "root", moved, rebuilt.SCENARIO)
    different = rebuilt.different(moves, replay.cuts(moves, options.seed, _SAMPLES))
    acts: list[Callable[[Path], None]] = [partial(replay.examine, calls, cut) for cut in every]
    acts += [partial(rebuilt.examine, moves, cut) for cut in different]
    with _progress(console) as progress, replay.quick_folder() as place:
        for act in progress.track(acts, description=f"{'power cuts':40}"):
            if stop.is_set():
                break
            try:
                act(place)
            except Lost as error:
                return str(error)
            result.power_cuts += 1
    return ""


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _conclude(console: Console, result: Result, folder: Path, options: argparse.Namespace, *, stopped: bool) -> int:
    if result.loss:
        again = f"make crash ARGS='--kills {options.kills} --seed {options.seed} --mode {options.mode}'"
        console.print(f"LOST: {result.loss}\n", style="red", markup=False, soft_wrap=True)
        console.print(f"Everything is kept in {folder}. Again: {again}", markup=False, soft_wrap=True)
        return 1
    if stopped:
        console.print("Stopped; nothing is left mounted and nothing is left behind.")
        return 130
    console.print(f"Nothing was lost in {result.kills:,} kills and {result.power_cuts:,} power cuts.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
