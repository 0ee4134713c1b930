"""``make soak``: half an hour with 200 readers, and whether cachefs ends with what it began with.

Ends with 0 when it does, 1 when something has grown or was wrong, 2 when it cannot run here, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cachefs import probes
from tests.soak import report
from tests.soak.figures import Sample
from tests.soak.soak import Outcome, Soak, Wishes
from tests.soak.stage import set_up
from tests.standin.running import CachefsFailed

_TOLD_EVERY_S = 30.0


def main(given: Sequence[str]) -> int:
    options = _parse(given)
    console = Console()
    if (obstacle := _why_not_here()) is not None:
        console.print(f"The soak cannot run here: {obstacle}.", markup=False, soft_wrap=True)
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: stop.set())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = Path(tempfile.mkdtemp(prefix="cachefs-soak-", dir=options.folder))
    console.print(f"Seed {options.seed}, {options.minutes:g} minutes, {options.readers} readers, mode {options.mode}.")
    try:
        outcome = _run(console, folder, options, stop)
    except CachefsFailed as error:
        console.print(f"WRONG: {error}\nEverything is kept in {folder}.", markup=False, soft_wrap=True)
        return 1
    console.print(report.table(outcome))
    return _conclude(console, outcome, folder, stopped=stop.is_set())


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make soak ARGS=…", description="See whether anything grows under load.")
    parser.add_argument("--minutes", type=float, default=30.0, help="of load; the warm-up before it is a tenth more")
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--mode", choices=("copy", "move"), default="copy", help="cache.mode")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--pause", type=float, default=0.4, help="a reader's, in seconds, between two reads")
    parser.add_argument("--folder", type=Path, help="where to work (200 MiB); the default is the temporary folder")
    options = parser.parse_args(given)
    options.seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    return options


def _why_not_here() -> str | None:
    if os.geteuid():
        return "it makes the kernel forget names, which is root's to do"
    problem = probes.look_at_fuse(os.geteuid()).device_problem
    return f"{probes.FUSE_DEVICE} {problem}" if problem else None


def _run(console: Console, folder: Path, options: argparse.Namespace, stop: threading.Event) -> Outcome:
    told_at = [float("-inf")]

    def tell(name: str, sample: Sample) -> None:
        if sample.at_s - told_at[0] >= _TOLD_EVERY_S:
            told_at[0] = sample.at_s
            console.print(report.line(name, sample), markup=False, highlight=False, soft_wrap=True)

    seconds = 60 * options.minutes
    wishes = Wishes(seconds, max(10.0, seconds / 10), options.readers, options.seed, options.pause)
    return Soak(set_up(folder, options.seed, options.mode), wishes, stop, tell).run()


def _conclude(console: Console, outcome: Outcome, folder: Path, *, stopped: bool) -> int:
    console.print(report.summary(outcome), markup=False, soft_wrap=True)
    if outcome.wrong or outcome.grown:
        for each in (*outcome.wrong, *outcome.grown):
            console.print(f"WRONG: {each}", style="red", markup=False, soft_wrap=True)
        console.print(f"Everything is kept in {folder}.", markup=False, soft_wrap=True)
        return 1
    shutil.rmtree(folder)
    if stopped:
        console.print("Stopped; nothing is left mounted and nothing is left behind.")
        return 130
    console.print("It ended with what it began with.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
