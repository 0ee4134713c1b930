"""``cachefs restore``: asks the daemon to bring moved files home, and shows how far it is. Given to ``cli``'s group."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cachefs import show, terminal
from cachefs.commands import shared
from cachefs.restoration import HomeProgress


@click.command()
@shared.config_option
@shared.json_option
@click.option("--all", "everything", is_flag=True, help="Bring every moved file home.")
@click.argument("path", required=False)
def restore(config_file: Path | None, as_json: bool, everything: bool, path: str | None) -> int:
    """Bring moved files home to their sources.

    PATH, all below it, or --all. The SSD keeps a copy.

    To be run before an uninstall. It can be interrupted and repeated. It ends with 4 when a file has to stay.
    """
    if everything == (path is not None):
        raise click.UsageError("name a PATH, or say --all; not both")
    config = shared.load(config_file)
    name_of = shared.naming(config)
    text = shared.below_here(path, config) if path is not None else ""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        shared.client(config) as client,
        Progress(*columns, console=terminal.console(), disable=not sys.stdout.isatty(), transient=True) as bar,
    ):
        task = bar.add_task("", total=None)

        def tell(far: HomeProgress) -> None:
            name = show.printable(name_of(far.key)) if far.key is not None else ""
            text = f"{far.files_done} of {far.files} {name}"
            bar.update(task, description=text, completed=far.bytes_done, total=far.bytes)

        report = client.restore(text, tell)
    if as_json:
        shared.show_json(report)
    else:
        for key in report.restored:
            shared.show_line(f"restored: {show.printable(name_of(key))}")
        for item in report.left:
            shared.say(f"cachefs: {show.printable(name_of(item.key))} stays on the SSD: {show.printable(item.why)}")
        if not report.restored and not report.left:
            shared.show_line(
                "nothing is moved: every file is at its source"
                if path is None
                else f"nothing below {show.printable(path)} is moved"
            )
    if config.cache.mode == "move" and everything:
        shared.say(
            "cachefs: cache.mode is move, so the next start may move files again. Before you uninstall, or delete the "
            "cache folder, set it to copy, start cachefs, and restore once more"
        )
    return shared.UNSOUND if report.left else 0


COMMANDS = (restore,)
