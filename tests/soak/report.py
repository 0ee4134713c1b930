"""How a soak is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from tests.soak.figures import MIB, Sample
from tests.soak.soak import Outcome

_ROWS: Sequence[tuple[str, Callable[[Sample], float], str]] = (
    ("server: memory, MiB", lambda sample: sample.server.memory_bytes / MIB, ".1f"),
    ("server: descriptors", lambda sample: sample.server.descriptors, ".0f"),
    ("server: threads", lambda sample: sample.server.threads, ".0f"),
    ("keeper: memory, MiB", lambda sample: sample.keeper.memory_bytes / MIB, ".1f"),
    ("keeper: descriptors", lambda sample: sample.keeper.descriptors, ".0f"),
    ("keeper: threads", lambda sample: sample.keeper.threads, ".0f"),
    ("open files", lambda sample: sample.open_files, ".0f"),
    ("files read by the kernel", lambda sample: sample.backing_files, ".0f"),
    ("entries in the cache", lambda sample: sample.entries, ".0f"),
    ("cache, MiB", lambda sample: sample.used_bytes / MIB, ".1f"),
    ("databases, MiB", lambda sample: sample.index_bytes / MIB, ".1f"),
)


def table(outcome: Outcome) -> Table:
    """At rest before and after, and the median and most under load."""
    shown = Table(title="cachefs, soaked")
    for name in ("", "before", "under load", "most", "after"):
        shown.add_column(name, justify="left" if not name else "right")
    for name, value, form in _ROWS:
        under = sorted(map(value, outcome.samples))
        middle = [format(each, form) for each in (under[len(under) // 2], under[-1])] if under else ["", ""]
        shown.add_row(name, _one(outcome.before, value, form), *middle, _one(outcome.after, value, form))
    return shown


def line(name: str, sample: Sample) -> str:
    """One look, for people who watch it run."""
    server = sample.server
    return (
        f"{sample.at_s:6.0f} s  {name:10}  memory {server.memory_bytes / MIB:6.1f} MiB, {server.descriptors:4} "
        f"descriptors, {server.threads:3} threads, {sample.open_files:3} files open, {sample.entries:3} entries, "
        f"{sample.used_bytes / MIB:5.1f} MiB cached"
    )


def summary(outcome: Outcome) -> str:
    """All in one line."""
    counts = outcome.counts
    text = (
        f"{counts.files:,} files read, {counts.bytes / MIB:,.0f} MiB compared, {counts.changes:,} changes, "
        f"{counts.commands:,} commands and changes of plan"
    )
    if outcome.before is None or outcome.after is None:
        return text
    before, after = outcome.before.server, outcome.after.server
    return (
        f"{text}; memory {before.memory_bytes / MIB:.1f} → {after.memory_bytes / MIB:.1f} MiB, "
        f"descriptors {before.descriptors} → {after.descriptors}, threads {before.threads} → {after.threads}"
    )


def _one(sample: Sample | None, value: Callable[[Sample], float], form: str) -> str:
    return "" if sample is None else format(value(sample), form)
