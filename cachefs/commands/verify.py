"""``cachefs verify``: asks the daemon, shows how far it is, and says what was found. Given to ``cli``'s group."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cachefs import show, terminal
from cachefs.commands import shared
from cachefs.verification import Progress as HowFar


@click.command()
@shared.config_option
@shared.json_option
@click.option("--content", is_flag=True, help="Compare every byte with the source, at a gentle pace.")
@click.option("--repair", is_flag=True, help="Drop what differs or is damaged, and remove what belongs to no copy.")
@click.argument("path", required=False)
def verify(config_file: Path | None, as_json: bool, content: bool, repair: bool, path: str | None) -> int:
    """Compare what is on the SSD with its sources.

    Everything, or what is below PATH.
    """
    config = shared.load(config_file)
    name_of = shared.naming(config)
    text = shared.below_here(path, config) if path is not None else ""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with (
        shared.client(config) as client,
        Progress(*columns, console=terminal.console(), disable=not sys.stdout.isatty(), transient=True) as bar,
    ):
        task = bar.add_task("", total=None)

        def tell(far: HowFar) -> None:
            done, total = (far.bytes_done, far.bytes) if content else (far.entries_done, far.entries)
            bar.update(task, description=show.how_far(far, name_of), completed=done, total=total)

        report = client.verify(text, content, repair, tell)
    if as_json:
        shared.show_json(report)
    else:
        shared.show_text(show.verification(report, name_of))
    return 0 if report.sound else shared.UNSOUND


COMMANDS = (verify,)
