"""The table at the end of a run."""

from __future__ import annotations

import statistics

from rich.table import Table

from tests.crash.failpoints import Moment
from tests.crash.recovering import Measured
from tests.crash.rig import Result
from tests.crash.steps import all_steps


def table(result: Result, recovery: Measured | None, mode: str) -> Table:
    shown = Table(title="cachefs, killed", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in _rows(result, recovery, mode):
        shown.add_row(name, value)
    return shown


def _rows(result: Result, recovery: Measured | None, mode: str) -> list[tuple[str, str]]:
    back = [one.back_s for one in result.rounds]
    wanted = [(step, moment) for step in all_steps(mode) for moment in Moment]
    missed = [f"{moment.value} {step}" for step, moment in wanted if not result.steps[step, moment]]
    rows = [
        ("kills", f"{result.kills:,}"),
        ("of these at a named step", f"{result.steps.total():,}"),
        ("steps covered (before and after)", f"{len(wanted) - len(missed)} of {len(wanted)}"),
        ("files compared after kills", f"{result.audited.files:,}"),
        ("bytes compared after kills", f"{result.audited.bytes:,}"),
    ]
    if back:
        rows.append(("back after, median and longest", f"{statistics.median(back):.1f} s, {max(back):.1f} s"))
    if recovery is not None:
        ratio = recovery.took_s / recovery.listing_s
        rows.append((f"recovery of {recovery.found.kept:,} entries", f"{recovery.took_s:.2f} s"))
        rows.append(("that is, times a look at their files", f"{ratio:.1f}"))
        rows.append(("power cuts recovered from", f"{result.power_cuts:,}"))
    if missed:
        rows.append(("not reached in this run", "\n".join(missed)))
    return rows
