"""What the demo shows: a live screen on a terminal, plain lines elsewhere. It draws views and decides nothing."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cachefs.model import EntryState
from cachefs.units import format_size
from tests.demo.chronicle import LARGE_BYTES, Chronicle, name_of, why
from tests.demo.view import View

NEWS_SHOWN = 5
PROGRESS_EVERY_S = 2.0
BAR_WIDTH = 24


class Screen(Protocol):
    """What the story speaks to; a context manager."""

    def __enter__(self) -> Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def act(self, title: str) -> None:
        """A new act begins."""

    def say(self, text: str) -> None:
        """One fact worth a line."""

    def show(self, view: View) -> None:
        """How things are now."""


def screen_for(console: Console) -> Screen:
    """Live on a terminal, lines otherwise."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


class PlainScreen:
    """Lines as things happen, and how copies get on every two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._chronicle = Chronicle()
        self._began = time.monotonic()
        self._progress_at = 0.0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def act(self, title: str) -> None:
        self._console.print(f"\n== {title}", markup=False, highlight=False)

    def say(self, text: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"{seconds:5.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, view: View) -> None:
        for line in self._chronicle.news(view):
            self.say(line)
        if time.monotonic() - self._progress_at > PROGRESS_EVERY_S:
            self._progress_at = time.monotonic()
            for copy in view.status.copies:
                if copy.size < LARGE_BYTES:
                    continue
                done = copy.done_bytes / copy.size
                self.say(f"copying {name_of(copy.key)}: {done:.0%} at {speed(copy.bytes_per_s)}")


class LiveScreen:
    """One picture, drawn again at every look; made to fit a terminal of 24 lines."""

    def __init__(self, console: Console) -> None:
        self._chronicle = Chronicle()
        self._news: deque[str] = deque(maxlen=NEWS_SHOWN)
        self._title = ""
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def act(self, title: str) -> None:
        self._title = title

    def say(self, text: str) -> None:
        self._news.append(text)

    def show(self, view: View) -> None:
        self._news.extend(self._chronicle.news(view))
        picture = Group(
            Text(self._title, style="bold cyan"),
            section("who watches", audience(view)),
            section("copying", copies(view)),
            section("on the SSD, and why", ssd(view)),
            section("where reads went", reads(view)),
            section("what happened", Text("\n".join(self._news), no_wrap=True, overflow="ellipsis")),
        )
        self._live.update(picture, refresh=True)


def section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 0, 2)))


def audience(view: View) -> RenderableType:
    """Who watches what, how far, and where their reads are served from."""
    if view.audience is None:
        return Text("nobody", style="dim")
    viewer = view.audience.viewer
    where = {"source": "slow disk", "partial": "slow disk and SSD", "cached": "SSD", "": "waiting"}[viewer.report.state]
    table = Table.grid(padding=(0, 2))
    table.add_row(
        f"{view.audience.user}: {view.audience.title}",
        ProgressBar(total=1.0, completed=viewer.progress, width=BAR_WIDTH),
        speed(viewer.report.bytes_per_s),
        Text(f"from {where}", style="green" if viewer.report.state == "cached" else "yellow"),
    )
    return table


def copies(view: View) -> RenderableType:
    """Copies in flight, then what is planned after them."""
    table = Table.grid(padding=(0, 2))
    for copy in view.status.copies:
        bar = ProgressBar(total=max(copy.size, 1), completed=copy.done_bytes, width=BAR_WIDTH)
        table.add_row(name_of(copy.key), bar, speed(copy.bytes_per_s), reason(why(copy.reason)))
    begun = {entry.key for entry in view.entries}  # the plan is a moment older
    for planned in view.plan.copies if view.plan else ():
        if planned.key not in begun and planned.file.size > LARGE_BYTES:
            table.add_row(name_of(planned.key), "planned", "", reason(why(planned.reason)))
    return table if table.row_count else Text("nothing", style="dim")


def ssd(view: View) -> RenderableType:
    """The complete videos on the SSD; what lies beside them is counted."""
    cached = [entry for entry in view.entries if entry.state is EntryState.CACHED]
    large = [entry for entry in cached if entry.size > LARGE_BYTES]
    table = Table.grid(padding=(0, 2))
    for entry in large:
        table.add_row(name_of(entry.key), format_size(entry.size), reason(why(entry.reason)))
    if len(cached) > len(large):
        table.add_row("and beside them", f"{len(cached) - len(large)} small", reason("subtitles, posters, .nfo"))
    return table if table.row_count else Text("nothing", style="dim")


def reason(text: str) -> Text:
    """Cut at the terminal's edge, never folded: the picture must not jump."""
    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")


def reads(view: View) -> RenderableType:
    """The two counters that matter, and the disk itself."""
    counters = view.status.reads
    motor = "[green]asleep[/]" if view.disk.asleep else "[yellow]spinning[/]"
    return Text.from_markup(
        f"SSD {format_size(counters.cache_bytes)} in {counters.cache_reads} reads, "
        f"and {counters.kernel_opens} whole files by the kernel itself · "
        f"slow disk {format_size(counters.source_bytes)} in {counters.source_reads} reads · "
        f"the disk is {motor}, {view.disk.total} operations"
    )


def speed(bytes_per_s: float) -> str:
    """``40.0 MB/s``: disks are sold in powers of ten."""
    return f"{bytes_per_s / 1e6:,.1f} MB/s" if bytes_per_s else ""
