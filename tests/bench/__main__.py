"""``make bench``: measures cachefs beside the native folder and its peers, and writes JSON, a table and a chart.

Ends with 0 when it measured everything, 1 when something failed, 2 when it cannot run here, 130 after Ctrl-C. Whether
targets are reached is written, and is no failure: that depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cachefs import probes
from cachefs.errors import CachefsError
from tests.bench import machine
from tests.bench.chart import svg
from tests.bench.figures import Memory
from tests.bench.memory import measure_memory
from tests.bench.probe import ProbeFailed, System
from tests.bench.publishing import publish
from tests.bench.report import Report, as_ratio, missed
from tests.bench.rounds import measure, steps
from tests.bench.sample import FULL, QUICK
from tests.bench.stage import Choice, folder, stage
from tests.bench.table import amount, cost, markdown
from tests.bench.works import Work
from tests.demo.stop import Stop, Stopped, stop_on_signals
from tests.standin.running import CachefsFailed


def main() -> int:
    options = parse(sys.argv[1:])
    console = Console()
    if (obstacle := why_not_here()) is not None:
        console.print(f"The benchmark cannot run here: {obstacle}.", markup=False, soft_wrap=True)
        return 2
    with stop_on_signals() as stop:
        try:
            report = perform(console, choice_of(options), stop)
        except Stopped:
            console.print("Stopped; nothing is left mounted and nothing is left behind.")
            return 130
        except (ProbeFailed, CachefsFailed, CachefsError, OSError) as error:
            console.print(f"The benchmark could not go on: {error}", markup=False, soft_wrap=True)
            return 1
    write(report, options.out)
    if options.publish:
        publish(report, options.out)
    conclude(console, report, options.out)
    return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench ARGS=…", description="Measure cachefs beside its peers.")
    parser.add_argument("--quick", action="store_true", help="about a minute, for trying; the figures are coarse")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the results")
    parser.add_argument("--folder", type=Path, help="where to work (5 GiB); the default is the temporary folder")
    parser.add_argument("--rounds", type=int, help="at least 5")
    parser.add_argument("--entries", type=int, help="of the tree that memory is measured with; 0: do not")
    parser.add_argument(
        "--peer", type=_peer, action="append", default=[], metavar="NAME=MOUNTPOINT", help="that shows --folder, too"
    )
    parser.add_argument("--publish", action="store_true", help="put this run into README.md and tests/bench/results")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out a peer found here")
    options = parser.parse_args(given)
    if options.rounds is not None and options.rounds < 5:
        parser.error("a median needs at least 5 rounds")
    if options.peer and options.folder is None:
        parser.error("--peer needs --folder: the folder that its mountpoint shows")
    return options


def _peer(text: str) -> tuple[str, Path]:
    name, separator, mountpoint = text.partition("=")
    if not separator or not Path(mountpoint).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MOUNTPOINT of a mounted file system")
    return name, Path(mountpoint)


def choice_of(options: argparse.Namespace) -> Choice:
    amounts = QUICK if options.quick else FULL
    if options.rounds is not None:
        amounts = replace(amounts, rounds=options.rounds)
    if options.entries is not None:
        amounts = replace(amounts, entries=options.entries)
    return Choice(amounts, options.folder, tuple(options.peer), frozenset(options.without))


def why_not_here() -> str | None:
    """What keeps this user from it."""
    if os.geteuid() != 0:
        return "it needs root, to mount for everybody and to let the kernel read cached files by itself"
    fuse = probes.look_at_fuse(0)
    return f"{probes.FUSE_DEVICE} {fuse.device_problem}" if fuse.device_problem else None


def perform(console: Console, choice: Choice, stop: Stop) -> Report:
    """The whole run, in a folder of its own that is gone when this returns."""
    load = os.getloadavg()[0]
    if (warning := machine.busy()) is not None:
        console.print(f"Note: {warning}.", markup=False, soft_wrap=True)
    amounts = choice.amounts

    def say(text: str) -> None:
        console.print(f"… {text}", markup=False, highlight=False)

    with folder(choice.folder) as place:
        with stage(place, choice, say, stop) as ready, _progress(console) as progress:
            task = progress.add_task("", total=sum(1 for _ in steps(ready, amounts.rounds)))

            def step(work: Work, system: System, number: int) -> None:
                if not console.is_terminal and number == 0 and system is ready.systems[0]:
                    say(f"measuring {work.key}")
                progress.update(task, advance=1, description=f"{work.key}, round {number + 1}: {system.title}")

            measured = tuple(measure(ready, amounts.rounds, amounts.min_ms, step, stop))
        memory: Memory | None = None
        if amounts.entries:
            memory = measure_memory(place, ready.probe, amounts.entries, say, stop)
        say("removing the files")
        return Report(machine.facts(place, amounts, ready.fast_path, load), ready.systems, measured, memory)


def _progress(console: Console) -> Progress:
    shown = TextColumn("{task.description:<50}")
    return Progress(shown, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)


def write(report: Report, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    (out / "results.md").write_text(markdown(report))
    (out / "results.svg").write_text(svg(report))


def conclude(console: Console, report: Report, out: Path) -> None:
    console.print(on_screen(report))
    console.print(cost(report), markup=False, soft_wrap=True)
    for text in missed(report):
        console.print(f"Not at its target: {text}", markup=False, soft_wrap=True)
    console.print(f"Written: {out / 'results.json'}, {out / 'results.md'}, {out / 'results.svg'}", markup=False)


def on_screen(report: Report) -> Table:
    """The ratios, as narrow as they go."""
    table = Table("", "native", title="Ratios to the native folder")
    for system in report.compared:
        table.add_column(system.title.replace(", ", "\n"), justify="right")
    for row in report.rows():
        ratios = ["" if figure is None else as_ratio(figure.median) for figure in row.ratios]
        table.add_row(row.line.title, amount(row.native.median, row.line.unit), *ratios)
    seconds = ["" if seconds is None else f"{seconds:.3f}" for seconds in report.cpu_s_per_gib()]
    table.add_row("daemon, s per GiB", "", *seconds)
    return table


if __name__ == "__main__":
    sys.exit(main())
