"""Tables and sentences for a terminal, built from the frozen values; ``cli`` prints them.

Pure: no file, no clock (``now`` is given), no output. Names are never trusted: what a terminal would obey or cannot
print is shown as an escape.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cachefs.check import CheckReport, Finding, Severity
from cachefs.doctor import DoctorReport
from cachefs.doctor import Finding as Remedy
from cachefs.model import (
    CacheEntry,
    ComponentHealth,
    CopyProgress,
    Explanation,
    FileKey,
    OpenFile,
    Pin,
    Plan,
    ReadCounters,
    Session,
    Skip,
    SourceHealth,
    Status,
    UserReport,
    Visible,
)
from cachefs.units import format_duration, format_size
from cachefs.verification import Finding as Flawed
from cachefs.verification import Flaw, Progress, Report

_TURNS = frozenset({"LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""The Unicode bidirectional algorithm's embeddings, overrides and isolates, and their ends (UAX #9)."""

Naming = Callable[[FileKey], str]
"""How a file is called for people; ``cli`` gives the path in the mount."""

GOOD, BUSY, BAD, DIM, HEAD = "green", "yellow", "red", "dim", "bold"
_STATE_STYLE = {Visible.CACHED: GOOD, Visible.PARTIAL: BUSY, Visible.SOURCE: DIM}
_SEVERITY_STYLE = {Severity.ERROR: BAD, Severity.WARNING: BUSY, Severity.NOTE: DIM}


def printable(text: str) -> str:
    """``text`` with everything escaped that is no printable character: control characters, those that turn the
    direction of what follows, and the surrogates that stand for undecodable bytes."""
    return "".join(_escape(char) if _is_obeyed(char) else char for char in text)


def _is_obeyed(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _TURNS


def status(value: Status, now: float, name_of: Naming = str) -> RenderableType:
    """Everything ``cachefs status`` says."""
    facts = _facts()
    facts.add_row("mount", _text(value.mountpoint))
    facts.add_row("daemon", _text(f"cachefs {value.version}, pid {value.pid}, up {_ago(value.started_at, now)}"))
    facts.add_row("plex", _health(value.plex, now, value.plex_url))
    for user in value.users:
        facts.add_row("  user", _user(user))
    for source in value.sources:
        facts.add_row("source", _source(source))
    facts.add_row("cache", _cache(value))
    if value.waiting and value.waiting != value.cache_problem:
        facts.add_row("copying", Text(printable(value.waiting), style=BUSY))
    facts.add_row("reads", _reads(value.reads))
    facts.add_row("kernel", _kernel(value))
    for session in value.sessions:
        facts.add_row("playing", _session(session))
    for component in value.components:
        if component.problem:
            facts.add_row(_text(component.name), _health(component, now))
    for note in value.notes:
        facts.add_row("note", _text(note))
    parts: list[RenderableType] = [facts]
    if value.copies:
        parts += [_heading("copying"), _copies(value.copies, name_of)]
    if value.open_files:
        parts += [_heading("open files"), _open_files(value.open_files)]
    return Group(*parts)


def plan(value: Plan, name_of: Naming = str) -> RenderableType:
    """What would be copied, evicted, kept and skipped, each with its reason."""
    parts: list[RenderableType] = []
    parts.append(_heading(_count("copy", [copy.file.size for copy in value.copies])))
    if value.copies and value.waiting:
        parts.append(_indented(Text(printable(value.waiting), style=BUSY)))
    if value.copies:
        table = _table(">#", ">size", "reason", "file")
        for place, copy in enumerate(value.copies, 1):
            table.add_row(str(place), format_size(copy.file.size), _text(copy.reason), _text(name_of(copy.key)))
        parts.append(_indented(table))
    parts.append(_heading(_count("evict", [eviction.size for eviction in value.evictions])))
    if value.evictions:
        table = _table(">size", "when", "reason", "file")
        for eviction in value.evictions:
            when = "for room" if eviction.for_space else "in any case"
            table.add_row(format_size(eviction.size), when, _text(eviction.reason), _text(name_of(eviction.key)))
        parts.append(_indented(table))
    parts.append(_heading(_count("keep", [want.file.size for want in value.kept])))
    if value.kept:
        table = _table(">size", "reason", "file")
        for want in value.kept:
            table.add_row(format_size(want.file.size), _text(want.reason), _text(name_of(want.key)))
        parts.append(_indented(table))
    if value.skips:
        parts += [_heading(f"skip: {_files(len(value.skips))}"), _indented(_skips(value.skips, name_of))]
    return Group(*parts)


def entries(values: Sequence[CacheEntry], now: float, name_of: Naming = str, problem: str = "") -> RenderableType:
    """The cache's entries by path, and their sum. ``problem``: what keeps it from being used."""
    if not values:
        return _text("nothing is cached now" if problem else "the cache is empty")
    table = _table("state", ">size", ">age", ">last read", "reason", "file")
    for entry in sorted(values, key=lambda entry: name_of(entry.key)):
        since = entry.begun_at if entry.published_at is None else entry.published_at
        read = "never" if entry.last_read_at is None else _ago(entry.last_read_at, now)
        table.add_row(
            _entry_state(entry),
            format_size(entry.size),
            _ago(since, now),
            read,
            _text(entry.reason),
            _text(name_of(entry.key)),
        )
    return Group(table, _heading(_count("in the cache", [entry.size for entry in values])))


def pins(values: Sequence[Pin], now: float) -> RenderableType:
    """The pins, oldest first."""
    if not values:
        return _text("nothing is pinned")
    table = _table("kind", ">age", "pinned")
    for pin in sorted(values, key=lambda pin: pin.created_at):
        table.add_row("title" if pin.rating_key else "path", _ago(pin.created_at, now), _text(pin.target or "/"))
    return table


def explanation(value: Explanation) -> RenderableType:
    """Why one file is or is not on the SSD."""
    facts = _facts()
    facts.add_row("file", _text(value.path or "/"))
    share = _share(value.on_ssd_bytes, value.size)
    state = "moved: the SSD holds the only file" if value.moved else value.state.value
    facts.add_row("state", Text(state, style=_STATE_STYLE[value.state]))
    facts.add_row("on the SSD", _text(f"{format_size(value.on_ssd_bytes)} of {format_size(value.size)} ({share})"))
    facts.add_row("wanted", "yes" if value.wanted else "no")
    if value.planned_position is not None:
        facts.add_row("planned", f"copy number {value.planned_position} from now")
    for reason in value.reasons:
        facts.add_row("because", _text(reason))
    return facts


def check(report: CheckReport) -> RenderableType:
    """What the configuration was understood to mean, and what was found wrong with its surroundings."""
    facts = _facts()
    for row in report.understood:
        facts.add_row(_text(row.what), _text(row.meaning))
    parts: list[RenderableType] = [facts]
    if report.findings:
        parts += [_heading("found"), *(_indented(_finding(finding)) for finding in report.findings)]
    errors = sum(finding.severity is Severity.ERROR for finding in report.findings)
    parts.append(_heading(f"{errors} to mend" if errors else "cachefs can mount"))
    return Group(*parts)


def doctor(report: DoctorReport) -> RenderableType:
    """What the machine can do, what is missing, and what to do."""
    facts = _facts()
    for row in report.facts:
        facts.add_row(_text(row.what), _text(row.meaning))
    parts: list[RenderableType] = [facts]
    hinders = [finding for finding in report.findings if finding.hinders]
    notes = [finding for finding in report.findings if not finding.hinders]
    for heading, findings, style in (("to mend", hinders, BAD), ("worth knowing", notes, DIM)):
        if findings:
            parts.append(_heading(heading))
            parts += [_indented(_remedy(finding, style)) for finding in findings]
    parts.append(_heading(f"{len(hinders)} to mend" if hinders else "nothing hinders cachefs on this machine"))
    return Group(*parts)


def verification(report: Report, name_of: Naming = str) -> RenderableType:
    """What was found wrong, what was done about it, and what a person can do."""
    parts: list[RenderableType] = []
    away = Counter(_uncompared(finding) for finding in report.findings)
    said: set[tuple[str, str]] = set()
    for finding in report.findings:
        group = _uncompared(finding)
        if group is None or away[group] == 1:
            parts += [_text(_place(finding, name_of)), _indented(_flaw(finding))]
        elif group not in said:
            said.add(group)
            parts += [_text(f"{_files(away[group])} of source {group[0]}"), _indented(_flaw(finding))]
    bytes_said = f", {format_size(report.compared_bytes)} compared" if report.compared_bytes else ""
    took = format_duration(report.took_s)
    found = len(report.findings)
    mended = sum(bool(finding.mended) for finding in report.findings)
    verdict = f"{found} found, {mended} mended" if found else "all well"
    parts.append(_heading(f"{_files(report.entries)} verified in {took}{bytes_said}: {verdict}"))
    return Group(*parts)


def how_far(far: Progress, name_of: Naming = str) -> str:
    """One line about a verification under way."""
    parts = [f"{far.entries_done} of {_files(far.entries)}"]
    if far.bytes:
        parts.append(f"{format_size(far.bytes_done)} of {format_size(far.bytes)}")
    if far.waiting:
        parts.append(f"waiting: {far.waiting}")
    elif far.key is not None:
        parts.append(name_of(far.key))
    return printable(", ".join(parts))


# --- parts -----------------------------------------------------------------------------------------------------------


def _facts() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=HEAD, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _table(*columns: str) -> Table:
    """A table without lines; a column whose name begins with ``>`` is right-aligned, the last one folds."""
    table = Table(box=None, pad_edge=False, header_style=DIM, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return table


def _heading(text: str) -> Text:
    return Text(text, style=HEAD)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2), expand=False)


def _text(text: str) -> Text:
    return Text(printable(text))


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{os.fsencode(char).hex()}"
    return char.encode("unicode_escape").decode("ascii")


def _ago(then: float, now: float) -> str:
    return format_duration(max(0.0, now - then))


def _share(part: float, whole: float) -> str:
    """A percentage that says 100 % only when nothing is missing."""
    if whole <= 0:
        return "100%"
    return f"{min(int(100 * part / whole), 100)}%"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _count(what: str, sizes: Sequence[int]) -> str:
    return f"{what}: {_files(len(sizes))}, {format_size(sum(sizes))}" if sizes else f"{what}: nothing"


def _health(component: ComponentHealth, now: float, when_well: str = "") -> Text:
    text = _text(when_well)
    if component.problem:
        times = "once" if component.failures == 1 else f"{component.failures} times"
        ago = f" for {_ago(component.since, now)}" if component.since else ""
        text.append(f"{' ' if when_well else ''}degraded{ago}, failed {times}: ", style=BAD)
        text.append(printable(component.problem))
    elif when_well:
        text.append(" ok", style=GOOD)
    return text if text else Text("not configured", style=DIM)


def _user(user: UserReport) -> Text:
    text = _text(user.user)
    return text.append(f": {printable(user.problem)}", style=BUSY) if user.problem else text


def _source(source: SourceHealth) -> Text:
    text = _text(f"{source.name}  {source.path} ")
    text.append("online" if source.online else "offline", style=GOOD if source.online else BAD)
    if source.problem:
        text.append(f": {printable(source.problem)}; its folders show what was seen last")
    if source.threads_busy:
        text.append(f" ({source.threads_busy} {'call' if source.threads_busy == 1 else 'calls'} under way)", style=DIM)
    return text


def _cache(value: Status) -> Text:
    if not value.cache_problem:
        return _space(value)
    return Text(printable(value.cache_problem), style=BAD)


def _space(value: Status) -> Text:
    space, copying = value.space, value.entries_copying
    files = _files(value.entries_cached + copying)
    used, limit = format_size(space.used_bytes), format_size(space.max_size_bytes)
    text = _text(f"{used} of {limit} ({_share(space.used_bytes, space.max_size_bytes)}) in {files}")
    if value.entries_moved:
        text.append(f", {value.entries_moved} of them moved ({format_size(value.moved_bytes)} only on the SSD)")
    if copying:
        text.append(f", {copying} being copied")
    free, kept = format_size(space.free_bytes), format_size(space.min_free_bytes)
    text.append(f"; the SSD has {free} free, {kept} stay free; ")
    if space.room_bytes >= 0:
        return text.append(f"room for {format_size(space.room_bytes)}")
    return text.append(f"{format_size(-space.room_bytes)} over its limits", style=BUSY)


def _kernel(value: Status) -> Text:
    """What the daemon does not see: opens are counted, bytes cannot be."""
    if value.fast_path:
        return Text(f"reads go through the daemon: {value.fast_path}", style=DIM)
    opens = value.reads.kernel_opens
    return Text(
        f"{opens} opens of cached files ({format_size(value.reads.kernel_size)}) read by the kernel itself, "
        f"not counted above; {value.backing_files} open now, or until 3 s ago"
    )


def _reads(reads: ReadCounters) -> Text:
    total = reads.cache_bytes + reads.source_bytes
    if not reads.cache_reads + reads.source_reads:
        return Text("none yet")
    text = Text(f"{_share(reads.cache_bytes, total)} from the cache: {reads.cache_reads} reads ", style=GOOD)
    text.append(f"with {format_size(reads.cache_bytes)}")
    text.append(
        f"; from the source: {reads.source_reads} reads with {format_size(reads.source_bytes)}", style="default"
    )
    if reads.fallbacks:
        text.append(f"; {reads.fallbacks} reads the SSD failed", style=BAD)
    return text


def _session(session: Session) -> Text:
    place = _share(session.position_s, session.duration_s) if session.duration_s > 0 else "live"
    return _text(f"{session.user}: {session.title}, {session.state} at {place}")


def _copies(copies: Iterable[CopyProgress], name_of: Naming) -> Padding:
    table = _table(">done", ">size", ">speed", ">left", "reason", "file")
    for copy in copies:
        speed = f"{format_size(int(copy.bytes_per_s))}/s" if copy.bytes_per_s > 0 else "waiting"
        left = format_duration((copy.size - copy.done_bytes) / copy.bytes_per_s) if copy.bytes_per_s > 0 else "-"
        table.add_row(
            _share(copy.done_bytes, copy.size),
            format_size(copy.size),
            speed,
            left,
            _text(copy.reason),
            _text(name_of(copy.key)),
        )
    return _indented(table)


def _open_files(files: Iterable[OpenFile]) -> Padding:
    table = _table("served from", ">readers", ">writers", ">from cache", ">from source", "file")
    for file in files:
        table.add_row(
            Text(file.served_from.value, style=_STATE_STYLE[file.served_from]),
            str(file.readers),
            str(file.writers),
            format_size(file.cache_bytes),
            format_size(file.source_bytes),
            _text(file.path),
        )
    return _indented(table)


def _skips(skips: Iterable[Skip], name_of: Naming) -> Table:
    table = _table("reason", "what")
    for skip in skips:
        why = skip.reason if skip.want is None else f"{skip.want.reason}; but {skip.reason}"
        table.add_row(_text(why), _text(skip.what if skip.key is None else name_of(skip.key)))
    return table


def _entry_state(entry: CacheEntry) -> Text:
    if entry.state.is_whole:
        return Text(entry.state.value, style=GOOD)
    return Text(f"copying {_share(entry.ranges.total, entry.size)}", style=BUSY)


def _finding(finding: Finding) -> Text:
    text = Text(f"{finding.severity.name.lower()}: ", style=_SEVERITY_STYLE[finding.severity])
    return text.append(
        printable(f"{finding.key}: {finding.message}" if finding.key else finding.message), style="default"
    )


def _remedy(finding: Remedy, style: str) -> Text:
    text = Text(printable(finding.message), style=style)
    return text.append(f": {printable(finding.remedy)}", style="default")


def _place(finding: Flawed, name_of: Naming) -> str:
    return finding.place if finding.key is None else name_of(finding.key)


def _uncompared(finding: Flawed) -> tuple[str, str] | None:
    """What is the same for all files of a source that is away: one line is enough for them."""
    if finding.flaw is not Flaw.UNCOMPARED or finding.key is None:
        return None
    return finding.key.source, finding.detail


def _flaw(finding: Flawed) -> Text:
    style = GOOD if finding.mended else BUSY if finding.flaw is Flaw.UNCOMPARED else BAD
    detail = f" ({finding.detail})" if finding.detail else ""
    text = Text(printable(f"{finding.flaw.value}{detail}"), style=style)
    return text.append(f": {finding.mended or finding.flaw.remedy}", style="default")
