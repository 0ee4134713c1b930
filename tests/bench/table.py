"""The run as Markdown: the ratios, what was measured and how, and what is not at its target. Pure."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.bench.report import Report, Row, as_ratio, missed
from tests.bench.works import CPU_TARGET_S, MEMORY_TARGET_BYTES, MIB, Kind

METHOD = """\
Each figure is a ratio to the native folder in the same round, the median of all rounds; the smaller figures are the
lowest and the highest round. 1 is as fast as the native folder. *Cold*: the mount has never been asked for these names.
Pages of the mount are dropped before every pass that reads; what lies beneath stays in memory, so that the file
systems are compared and not the disk (but for the line *from the disk*). The native folder is always warm."""


def markdown(report: Report) -> str:
    """The whole page."""
    facts = "\n".join(f"- {name}: {value}" for name, value in report.facts.items())
    versions = "\n".join(f"- {system.title}: {system.version}" for system in report.compared)
    short = missed(report)
    verdict = "\n".join(f"- {text}" for text in short) if short else "Every line is at its target."
    return (
        "\n\n".join(
            [
                "# Benchmark",
                METHOD,
                grid(report),
                cost(report),
                "## Not at its target",
                verdict,
                "## Run",
                facts,
                versions,
            ]
        ).replace("\n\n\n", "\n\n")
        + "\n"
    )


def grid(report: Report, *, with_spread: bool = True) -> str:
    """The ratios as a table."""
    head = ["", "native", *(system.title for system in report.compared), "target"]
    lines = [_joined(head), _joined(["---", *["---:"] * (len(head) - 2), "---"])]
    lines += [_joined(_cells(row, with_spread=with_spread)) for row in report.rows()]
    lines.append(_joined(["daemon's processor seconds per GiB read", "", *map(_seconds, report.cpu_s_per_gib()), _cpu]))
    return "\n".join(lines)


_cpu = f"≤ {CPU_TARGET_S:g} cached"


def cost(report: Report) -> str:
    """The memory, in a sentence."""
    memory = report.memory
    if memory is None:
        return "The memory was not measured."
    return (
        f"Memory of cachefs: {memory.start_bytes / MIB:,.0f} MiB at its start, {memory.walked_bytes / MIB:,.0f} MiB "
        f"after a walk of {memory.entries:,} entries ({memory.bytes_per_entry:,.0f} bytes an entry, to be at most "
        f"{MEMORY_TARGET_BYTES}), {memory.forgotten_bytes / MIB:,.0f} MiB once the kernel has forgotten them "
        f"({memory.kept_bytes_per_entry:,.0f} bytes an entry)."
    )


def amount(per_s: float, unit: str) -> str:
    """A rate for people."""
    if unit == "B":
        return f"{per_s / 1e9:.1f} GB/s"
    return f"{per_s / 1000:,.0f} k {unit}/s" if per_s >= 10_000 else f"{per_s:,.0f} {unit}/s"


def _cells(row: Row, *, with_spread: bool) -> list[str]:
    ratios = [_ratio(figure, with_spread=with_spread) for figure in row.ratios]
    short = {Kind.CACHED: "cached", Kind.UNCACHED: "not cached"}
    targets = ", ".join(f"≥ {target:.3g} {short[kind]}" for kind, target in row.line.targets.items())
    return [row.line.title, amount(row.native.median, row.line.unit), *ratios, targets]


def _ratio(figure: Figure | None, *, with_spread: bool) -> str:
    if figure is None:
        return ""
    spread = f" <sub>{as_ratio(figure.low)}–{as_ratio(figure.high)}</sub>" if with_spread else ""  # noqa: RUF001
    return as_ratio(figure.median) + spread


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _joined(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
