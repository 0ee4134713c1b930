"""The command line: one function per command; those about the machine and the mount are in ``commands.machine``,
``verify`` in ``commands.verify``. The only part that prints.

Exit codes: 0 fine; 1 a bug (of ours or of the daemon); 2 the user can mend it; 3 cannot mount; 4 `verify` found
something, or `restore` left a file on the SSD; 130 interrupted; 141 nobody reads the output any more. Decides nothing
about the cache: it asks the daemon, or says that none runs.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import click
import trio
from rich.console import RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cachefs import __version__, accepting, daemon, fstab, health, show, terminal
from cachefs.commands import machine, restore, shared, verify
from cachefs.config import Config
from cachefs.control import wire
from cachefs.control.client import Client
from cachefs.errors import CacheError, CachefsError, CannotMount, NotRunning, PlexError, SourceError, UserError
from cachefs.model import FileKey, Plan, Skip, SourceName, Visible

_ASK_DISKS = frozenset({"accept", "check", "doctor", "plan", "--healthy"})
"""Commands that ask sources or the mount themselves, which may hang. A word too many here costs nothing."""
_POLL_S = 0.5
_WATCH_S = 1.0


# --- running ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """What ``cachefs`` runs."""
    sys.excepthook = _report_bug
    arguments = fstab.as_command(sys.argv[1:])
    if not _ASK_DISKS.intersection(arguments):
        terminal.leave(run(arguments))
    try:
        code = terminal.in_a_child(lambda: run(arguments))
    except KeyboardInterrupt:
        code = shared.INTERRUPTED
    terminal.leave(code)


def run(arguments: Sequence[str]) -> int:
    """Carry one command out; its exit code. An error that is nobody's but ours is raised."""
    terminal.prepare()
    terminal.stand_somewhere()
    try:
        outcome = commands.main(list(arguments), prog_name="cachefs", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return shared.USER
    except (click.Abort, KeyboardInterrupt):
        return shared.INTERRUPTED
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return shared.INTERRUPTED
    except terminal.NobodyReads:
        return shared.NOBODY_READS
    except CannotMount as error:
        return shared.fail(error, shared.MOUNT)
    except (UserError, CacheError, PlexError, SourceError) as error:
        return shared.fail(error, shared.USER)
    except CachefsError as error:
        return shared.fail(error, shared.BUG)
    return outcome if isinstance(outcome, int) else 0


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)
    shared.say(f"\ncachefs {__version__}: this is a bug in cachefs; please report it with the lines above.")


# --- commands --------------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cachefs", message="%(prog)s %(version)s")
def commands() -> None:
    """Plex reads one mount; what will be watched next is read from the SSD."""


for _command in (*machine.COMMANDS, *restore.COMMANDS, *verify.COMMANDS):
    commands.add_command(_command)


@commands.command()
@shared.config_option
@shared.json_option
def plan(config_file: Path | None, as_json: bool) -> None:
    """Show what would be copied and evicted now, and why.

    Changes nothing.
    """
    config = shared.load(config_file)
    try:
        with shared.client(config) as client:
            made, plex = client.plan(), client.status().plex
        if plex.problem:
            shared.say(f"plex: {show.printable(plex.problem)}")
    except NotRunning:
        shared.say("daemon not running; this is what it would plan")
        made = _plan_offline(config)
    if as_json:
        shared.show_json(made)
    else:
        shared.show_text(show.plan(made, shared.naming(config)))


@commands.command()
@shared.config_option
@shared.json_option
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option("--healthy", is_flag=True, help="Only whether the mount and the daemon answer: 0, or 1 and why not.")
def status(config_file: Path | None, as_json: bool, watch: bool, healthy: bool) -> int:
    """Show the mount, Plex, the sources, the cache, copies and reads."""
    if healthy and watch:
        raise click.UsageError("say --watch or --healthy, not both")
    if healthy:
        return _tell_health(config_file, as_json)
    config = shared.load(config_file)
    with shared.client(config) as client:

        def table() -> RenderableType:
            return show.status(client.status(), time.time(), shared.naming(config))

        if watch and not as_json and sys.stdout.isatty():
            _watch_live(table)
        while True:
            if as_json:
                terminal.write(wire.dumps(client.status(), indent=None if watch else 2) + "\n")
            else:
                shared.show_text(table())
            if not watch:
                return 0
            time.sleep(_WATCH_S)


def _tell_health(config_file: Path | None, as_json: bool) -> int:
    """Two outcomes only: container engines keep every other exit code for themselves."""
    try:
        problem = health.problem(shared.load(config_file))
    except UserError as error:
        problem = str(error)
    if as_json:
        shared.show_json(health.Health(not problem, problem))
    else:
        shared.show_line(f"unhealthy: {show.printable(problem)}" if problem else "healthy")
    return 1 if problem else 0


def _watch_live(table: Callable[[], RenderableType]) -> None:
    with Live(table(), console=terminal.console(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(table(), refresh=True)


@commands.command("ls")
@shared.config_option
@shared.json_option
def list_entries(config_file: Path | None, as_json: bool) -> None:
    """List what is on the SSD: state, size, age, last read, reason."""
    config = shared.load(config_file)
    with shared.client(config) as client:
        entries, problem = client.entries(), client.status().cache_problem
    if problem:
        shared.say(f"cachefs: {show.printable(problem)}")
    if as_json:
        shared.show_json(entries)
    else:
        shared.show_text(show.entries(entries, time.time(), shared.naming(config), problem))


@commands.command()
@shared.config_option
@shared.json_option
@click.option("--list", "list_pins", is_flag=True, help="Show what is pinned.")
@click.argument("target", required=False)
def pin(config_file: Path | None, as_json: bool, list_pins: bool, target: str | None) -> None:
    """Keep TARGET on the SSD always.

    TARGET is a file, a folder, or the title of a show, season or film in Plex.
    """
    if (target is None) != list_pins:
        raise click.UsageError("name what to pin, or say --list, which shows all pins; not both")
    config = shared.load(config_file)
    with shared.client(config) as client:
        if target is None:
            pins = client.pins()
            shown = show.pins(pins, time.time())
        else:
            made = client.pin(_path_or_title(target, config))
            pins, shown = (made.pin,), f"pinned: {show.printable(made.pin.target or '/')}"
            if made.problem:
                shared.say(f"cachefs: {show.printable(made.problem)}")
    if as_json:
        shared.show_json(pins if target is None else pins[0])
    else:
        shared.show_text(shown)


@commands.command()
@shared.config_option
@click.argument("target")
def unpin(config_file: Path | None, target: str) -> None:
    """Let TARGET go again, which was pinned.

    TARGET is as `pin --list` shows it.
    """
    config = shared.load(config_file)
    with shared.client(config) as client:
        texts = dict.fromkeys((target, _path_or_title(target, config)))
        if not any(client.unpin(text) for text in texts):
            raise UserError(f"{show.printable(target)} is not pinned; cachefs pin --list shows what is")
    shared.show_line(f"no longer pinned: {show.printable(target)}")


def _path_or_title(text: str, config: Config) -> str:
    """In the mount, the name of something that is there is meant from there; anything else may be a title."""
    path = shared.below_here(text, config)
    return path if os.path.lexists(path) else text


@commands.command()
@shared.config_option
@shared.json_option
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def evict(config_file: Path | None, as_json: bool, paths: tuple[str, ...]) -> int:
    """Remove files, or those of folders, from the SSD now.

    Their sources keep them. What is pinned, or was moved, stays.
    """
    config = shared.load(config_file)
    name_of = shared.naming(config)
    evicted: list[FileKey] = []
    left: list[Skip] = []
    code = 0
    with shared.client(config) as client:
        for path in paths:
            try:
                made = client.evict(shared.below_here(path, config))
                evicted += made.keys
                left += made.left
            except NotRunning:
                raise
            except UserError as error:
                code = shared.fail(error, shared.USER)
    if as_json:
        shared.show_json(tuple(evicted))
    else:
        terminal.write("".join(f"evicted: {show.printable(name_of(key))}\n" for key in evicted))
    for skip in left:
        shared.say(f"cachefs: {show.printable(name_of(skip.key) if skip.key else skip.what)} stays: {skip.reason}")
    return code


@commands.command()
@shared.config_option
@click.option("--moved", is_flag=True, help="Also when the SSD holds the only copy of files of it.")
@click.argument("source")
def accept(config_file: Path | None, moved: bool, source: str) -> None:
    """Take SOURCE as it is now, changed on purpose.

    It was emptied, or its disk was replaced; its folder must be there. Without a running cachefs it holds for the next
    start.
    """
    config = shared.load(config_file)
    known = {item.name: item for item in config.sources}
    named = known.get(SourceName(source))
    if named is None:
        raise UserError(f"{source}: no such source; there are: {', '.join(known)}")
    try:
        with shared.client(config) as client:
            client.accept(source, moved=moved)
    except NotRunning:
        trio.run(partial(accepting.for_next_start, config, named, moved=moved))
    terminal.write(f"accepted: {show.printable(str(named.path))}, as it is now\n")
    homeless = accepting.homeless(config, named) if moved else ""
    if homeless:
        terminal.write(f"{homeless}\n")


@commands.command()
@shared.config_option
@click.option("--no-wait", is_flag=True, help="Return once the copy is ordered.")
@click.argument("path")
def copy(config_file: Path | None, no_wait: bool, path: str) -> None:
    """Copy a file to the SSD now, and wait for it.

    Its subtitles go with it.
    """
    config = shared.load(config_file)
    text = shared.below_here(path, config)
    with shared.client(config) as client:
        key = client.copy(text)
        name = show.printable(shared.naming(config)(key))
        if not no_wait:
            _wait_for_copy(client, key, text)
    shared.show_line(f"copying: {name}" if no_wait else f"cached: {name}")


def _wait_for_copy(client: Client, key: FileKey, text: str) -> None:
    """Show the copy's progress until the file is cached; ``UserError`` when the copy is given up."""
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(), disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task("", total=None)
        begun, said = False, ""
        while True:
            found = next((progress for progress in client.status().copies if progress.key == key), None)
            if found is not None:
                begun = True
                bar.update(task, total=found.size, completed=found.done_bytes)
            else:
                now = client.explain(text)
                if now.state is Visible.CACHED:
                    return
                begun = begun or now.state is Visible.PARTIAL
                if now.waiting and now.waiting != said:
                    said = now.waiting
                    shared.say(f"waiting: {show.printable(said)}")
                if begun and now.state is Visible.SOURCE:
                    why = "; ".join(now.reasons) or "its source changed, or there was no room"
                    raise UserError(f"{show.printable(text)} was not copied: {why}")
            time.sleep(_POLL_S)


@commands.command()
@shared.config_option
@shared.json_option
@click.argument("path")
def explain(config_file: Path | None, as_json: bool, path: str) -> None:
    """Say why a file is on the SSD, or why it is not."""
    config = shared.load(config_file)
    with shared.client(config) as client:
        explanation = client.explain(shared.below_here(path, config))
    if as_json:
        shared.show_json(explanation)
    else:
        shared.show_text(show.explanation(explanation))


def _plan_offline(config: Config) -> Plan:
    return trio.run(daemon.plan_once, config)
