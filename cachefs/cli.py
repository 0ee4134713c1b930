"""The command line: one function per command. The only module that prints.

Exit codes: 0 fine; 1 a bug (of ours or of the daemon); 2 the user can mend it; 3 cannot mount; 130 interrupted; 141
nobody reads the output any more. Decides nothing about the cache: it asks the daemon, or says that none runs.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import click
import trio
from rich.console import RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cachefs import __version__, check, daemon, keeper, logs, mounts, show, terminal
from cachefs.config import Config, PlexConfig, build, load
from cachefs.control import wire
from cachefs.control.client import Client
from cachefs.errors import CachefsError, CannotMount, NotRunning, UserError
from cachefs.model import FileKey, Plan, Visible
from cachefs.paths import Layout
from cachefs.plex.client import PlexClient, PlexSettings

Command = TypeVar("Command", bound=Callable[..., object])

BUG, USER, MOUNT, INTERRUPTED, NOBODY_READS = 1, 2, 3, 130, 141
DEFAULT_FILES = (Path("cachefs.yaml"), Path("/etc/cachefs/cachefs.yaml"))
ENVIRONMENT_ONLY = Path(os.devnull)
"""Stands for "no file": an empty one, so that whoever is handed its name need not know."""

_POLL_S = 0.5
_WATCH_S = 1.0
_STOP_S = 30.0
_PLEX_S = 30.0


# --- running ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """What ``cachefs`` runs."""
    sys.excepthook = _report_bug
    terminal.leave(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry one command out; its exit code. An error that is nobody's but ours is raised."""
    terminal.prepare()
    try:
        outcome = commands.main(list(arguments), prog_name="cachefs", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USER
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return INTERRUPTED
    except terminal.NobodyReads:
        return NOBODY_READS
    except CannotMount as error:
        return _fail(error, MOUNT)
    except UserError as error:
        return _fail(error, USER)
    except CachefsError as error:
        return _fail(error, BUG)
    return outcome if isinstance(outcome, int) else 0


def _fail(error: CachefsError, code: int) -> int:
    for line in str(error).splitlines():
        _say(f"cachefs: {line}")
    return code


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)
    _say(f"\ncachefs {__version__}: this is a bug in cachefs; please report it with the lines above.")


def _say(text: str) -> None:
    """Something for the person, not for the pipe."""
    click.echo(text, err=True)


def _show(what: RenderableType) -> None:
    terminal.write(terminal.rendered(what))


def _show_line(text: str) -> None:
    """One sentence, which no terminal's width breaks."""
    terminal.write(f"{text}\n")


def _show_json(value: object) -> None:
    terminal.write(wire.dumps(value, indent=2) + "\n")


# --- what commands share ---------------------------------------------------------------------------------------------


def config_option(command: Command) -> Command:
    text = f"The configuration file; by default {' or '.join(map(str, DEFAULT_FILES))}, then the environment alone."
    option = click.option("-c", "--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), help=text)
    return option(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="As JSON.")(command)


def _find_config(given: Path | None) -> Path:
    """The file to read; ``ENVIRONMENT_ONLY`` when there is none but variables say what to do."""
    if given is not None:
        return given.absolute()
    for candidate in DEFAULT_FILES:
        if candidate.exists():
            return candidate.absolute()
    if any(name.startswith("CACHEFS_") for name in os.environ):
        return ENVIRONMENT_ONLY
    looked = " nor ".join(str(path) for path in DEFAULT_FILES)
    raise UserError(f"there is no configuration: neither {looked} exists; name one with -c FILE")


def _load(given: Path | None) -> Config:
    path = _find_config(given)
    if path == ENVIRONMENT_ONLY:
        return build({}, Path.cwd(), os.environ, "environment")
    return load(path, os.environ)


def _client(config: Config) -> Client:
    return Client(config.control.socket)


def _naming(config: Config) -> show.Naming:
    """Files by their path in the mount; those of a source that is configured no more by their key."""
    layout = Layout(tuple(source.name for source in config.sources))
    return lambda key: layout.union(key) if key.source in layout.sources else str(key)


def _below_here(text: str, config: Config) -> str:
    """What was typed, made absolute when it leads into the mount from where the shell stands; else it is relative to
    the mount's root."""
    for here in filter(None, (os.environ.get("PWD"), os.getcwd())):
        path = os.path.normpath(os.path.join(here, text))
        if Path(path).is_relative_to(config.mountpoint):
            return path
    return text


# --- commands --------------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cachefs", message="%(prog)s %(version)s")
def commands() -> None:
    """Plex reads one mount; what will be watched next is read from the SSD."""


@commands.command()
@config_option
def mount(config_file: Path | None) -> int:
    """Mount, and stay until SIGTERM or Ctrl-C."""
    return keeper.run(_find_config(config_file))


@commands.command(hidden=True)
@config_option
def serve(config_file: Path | None) -> int:
    """The server half of `mount`, which starts it."""
    logs.set_up()
    return _serve(_load(config_file))


@commands.command("check")
@config_option
@json_option
def check_command(config_file: Path | None, as_json: bool) -> int:
    """Say what the configuration means, and whether this machine can do it."""
    report = trio.run(_examine, _load(config_file))
    if as_json:
        _show_json(report)
    else:
        _show(show.check(report))
    return 0 if report.can_mount else USER


@commands.command()
@config_option
@json_option
def plan(config_file: Path | None, as_json: bool) -> None:
    """Show what would be copied and evicted now, and why; change nothing."""
    config = _load(config_file)
    try:
        with _client(config) as client:
            made = client.plan()
    except NotRunning:
        _say("daemon not running; this is what it would plan")
        made = _plan_offline(config)
    if as_json:
        _show_json(made)
    else:
        _show(show.plan(made, _naming(config)))


@commands.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(config_file: Path | None, as_json: bool, watch: bool) -> None:
    """Show the mount, Plex, the sources, the cache, copies and reads."""
    config = _load(config_file)
    with _client(config) as client:

        def table() -> RenderableType:
            return show.status(client.status(), time.time(), _naming(config))

        if watch and not as_json and sys.stdout.isatty():
            _watch_live(table)
        while True:
            if as_json:
                terminal.write(wire.dumps(client.status(), indent=None if watch else 2) + "\n")
            else:
                _show(table())
            if not watch:
                return
            time.sleep(_WATCH_S)


def _watch_live(table: Callable[[], RenderableType]) -> None:
    with Live(table(), console=terminal.console(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(table(), refresh=True)


@commands.command("ls")
@config_option
@json_option
def list_entries(config_file: Path | None, as_json: bool) -> None:
    """List what is on the SSD: state, size, age, last read, reason."""
    config = _load(config_file)
    with _client(config) as client:
        entries = client.entries()
    if as_json:
        _show_json(entries)
    else:
        _show(show.entries(entries, time.time(), _naming(config)))


@commands.command()
@config_option
@json_option
@click.option("--list", "list_pins", is_flag=True, help="Show what is pinned.")
@click.argument("target", required=False)
def pin(config_file: Path | None, as_json: bool, list_pins: bool, target: str | None) -> None:
    """Keep TARGET on the SSD always: a file, a folder, or the title of a show, season or film in Plex."""
    if (target is None) != list_pins:
        raise click.UsageError("name what to pin, or use --list")
    config = _load(config_file)
    with _client(config) as client:
        if target is None:
            pins = client.pins()
            shown = show.pins(pins, time.time())
        else:
            made = client.pin(_path_or_title(target, config))
            pins, shown = (made,), f"pinned: {show.printable(made.target)}"
    if as_json:
        _show_json(pins if target is None else pins[0])
    else:
        _show(shown)


@commands.command()
@config_option
@click.argument("target")
def unpin(config_file: Path | None, target: str) -> None:
    """Let TARGET go again: what was pinned, as `pin --list` shows it."""
    config = _load(config_file)
    with _client(config) as client:
        texts = dict.fromkeys((target, _path_or_title(target, config)))
        if not any(client.unpin(text) for text in texts):
            raise UserError(f"{show.printable(target)} is not pinned; cachefs pin --list shows what is")
    _show_line(f"no longer pinned: {show.printable(target)}")


def _path_or_title(text: str, config: Config) -> str:
    """In the mount, the name of something that is there is meant from there; anything else may be a title."""
    path = _below_here(text, config)
    return path if os.path.lexists(path) else text


@commands.command()
@config_option
@json_option
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def evict(config_file: Path | None, as_json: bool, paths: tuple[str, ...]) -> int:
    """Remove files, or all files of folders, from the SSD now. Their sources keep them."""
    config = _load(config_file)
    name_of = _naming(config)
    evicted: list[FileKey] = []
    code = 0
    with _client(config) as client:
        for path in paths:
            try:
                evicted += client.evict(_below_here(path, config))
            except NotRunning:
                raise
            except UserError as error:
                code = _fail(error, USER)
    if as_json:
        _show_json(tuple(evicted))
    else:
        terminal.write("".join(f"evicted: {show.printable(name_of(key))}\n" for key in evicted))
    return code


@commands.command()
@config_option
@click.option("--no-wait", is_flag=True, help="Return once the copy is ordered.")
@click.argument("path")
def copy(config_file: Path | None, no_wait: bool, path: str) -> None:
    """Copy a file to the SSD now, and wait for it."""
    config = _load(config_file)
    text = _below_here(path, config)
    with _client(config) as client:
        key = client.copy(text)
        name = show.printable(_naming(config)(key))
        if not no_wait:
            _wait_for_copy(client, key, text)
    _show_line(f"copying: {name}" if no_wait else f"cached: {name}")


def _wait_for_copy(client: Client, key: FileKey, text: str) -> None:
    """Show the copy's progress until the file is cached; ``UserError`` when the copy is given up."""
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(), disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task("", total=None)
        begun = False
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
                if begun and now.state is Visible.SOURCE:
                    why = "; ".join(now.reasons) or "its source changed, or there was no room"
                    raise UserError(f"{show.printable(text)} was not copied: {why}")
            time.sleep(_POLL_S)


@commands.command()
@config_option
@json_option
@click.argument("path")
def explain(config_file: Path | None, as_json: bool, path: str) -> None:
    """Say why a file is on the SSD, or why it is not."""
    config = _load(config_file)
    with _client(config) as client:
        explanation = client.explain(_below_here(path, config))
    if as_json:
        _show_json(explanation)
    else:
        _show(show.explanation(explanation))


@commands.command()
@config_option
def unmount(config_file: Path | None) -> None:
    """Stop the daemon and wait until its mount is gone; clear the mount of a daemon that died."""
    config = _load(config_file)
    mountpoint = config.mountpoint
    try:
        with _client(config) as client:
            client.stop()
    except NotRunning:
        _show_line(_clear_mount(mountpoint))
        return
    deadline = time.monotonic() + _STOP_S
    while (left := mounts.mounted_at(mountpoint)) is not None and left.is_cachefs:
        if time.monotonic() > deadline:
            raise UserError(f"the daemon was told to stop, but {mountpoint} is still mounted after {_STOP_S:g} s")
        time.sleep(_POLL_S / 5)
    _show_line(f"the daemon has unmounted {show.printable(str(mountpoint))}")


def _clear_mount(mountpoint: Path) -> str:
    """Without a daemon; says what was done."""
    found = mounts.mounted_at(mountpoint)
    place = show.printable(str(mountpoint))
    if found is None:
        return f"daemon not running, and nothing is mounted at {place}"
    if not found.is_cachefs:
        raise UserError(f"daemon not running; what is mounted at {place} is {found.fstype}, not cachefs: left alone")
    mounts.unmount(mountpoint, force=True)
    return f"daemon not running; its mount at {place} is cleared"


# --- the other halves ------------------------------------------------------------------------------------------------


def _serve(config: Config) -> int:
    return daemon.serve(config)


def _plan_offline(config: Config) -> Plan:
    return trio.run(daemon.plan_once, config)


async def _examine(config: Config) -> check.CheckReport:
    return await check.examine(config, _ask_plex, await daemon.path_report(config))


async def _ask_plex(plex: PlexConfig, token: str) -> check.PlexFacts:
    settings = PlexSettings(plex.url, token, cloud_url=plex.cloud_url, deadline_s=_PLEX_S)
    return await PlexClient(settings).check()
