"""Puts a run where the README shows it: the table between two marks, the chart and the raw figures beside the code.

Called by ``__main__`` with ``--publish``. The sentences around the table are written by people.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.bench.probe import ProbeFailed
from tests.bench.report import Report
from tests.bench.table import cost, grid
from tests.standin.running import REPOSITORY

README = REPOSITORY / "README.md"
RESULTS = Path(__file__).with_name("results")
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
SHOWN = ("kernel", "processor", "software", "files", "rounds", "load before and after", "day")


def publish(report: Report, out: Path) -> None:
    """Raises ``ProbeFailed`` when the README has no place for it."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), shown(report)), encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    for name in ("results.json", "results.md", "results.svg"):
        shutil.copyfile(out / name, RESULTS / name)


def shown(report: Report) -> str:
    """The table without its spread, the memory, and what ran where."""
    where = "; ".join(report.facts[name] for name in SHOWN if name in report.facts)
    return f"{grid(report, with_spread=False)}\n\n{cost(report)}\n\n{where}."


def with_table(readme: str, table: str) -> str:
    """The README with this between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ProbeFailed(f"README.md has no {BEGIN} … {END} for the results")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
