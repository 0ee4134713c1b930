"""What the commands share: their options, the configuration they read, and how they speak. Prints, decides nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click
from rich.console import RenderableType

from cachefs import show, terminal
from cachefs.config import Config, build
from cachefs.config import load as load_file
from cachefs.control import wire
from cachefs.control.client import Client
from cachefs.errors import CachefsError, UserError
from cachefs.paths import Layout

Command = TypeVar("Command", bound=Callable[..., object])

BUG, USER, MOUNT, UNSOUND, INTERRUPTED, NOBODY_READS = 1, 2, 3, 4, 130, 141
DEFAULT_FILES = (Path("cachefs.yaml"), Path("/etc/cachefs/cachefs.yaml"))
ENVIRONMENT_ONLY = Path(os.devnull)
"""Stands for "no file": an empty one, so that whoever is handed its name need not know."""

# --- speaking --------------------------------------------------------------------------------------------------------


def fail(error: CachefsError, code: int) -> int:
    for line in str(error).rstrip("\n").split("\n"):
        say(f"cachefs: {show.printable(line)}")
    return code


def say(text: str) -> None:
    """Something for the person, not for the pipe. Where that cannot be written, the exit code has to do."""
    with suppress(OSError):
        click.echo(text, err=True)


def show_text(what: RenderableType) -> None:
    terminal.write(terminal.rendered(what))


def show_line(text: str) -> None:
    """One sentence, which no terminal's width breaks."""
    terminal.write(f"{text}\n")


def show_json(value: object) -> None:
    terminal.write(wire.dumps(value, indent=2) + "\n")


# --- options and configuration ---------------------------------------------------------------------------------------


def config_option(command: Command) -> Command:
    text = f"The configuration file; by default {' or '.join(map(str, DEFAULT_FILES))}, then the environment alone."
    option = click.option("-c", "--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), help=text)
    return option(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="As JSON.")(command)


def find_config(given: Path | None) -> Path:
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


def load(given: Path | None) -> Config:
    path = find_config(given)
    if path == ENVIRONMENT_ONLY:
        return build({}, Path.cwd(), os.environ, "environment")
    return load_file(path, os.environ)


def client(config: Config) -> Client:
    return Client(config.control.socket, config.mountpoint)


def naming(config: Config) -> show.Naming:
    """Files by their path in the mount; those of a source that is configured no more by their key."""
    layout = Layout(tuple(source.name for source in config.sources))
    return lambda key: layout.union(key) if key.source in layout.sources else str(key)


def below_here(text: str, config: Config) -> str:
    """What was typed, made absolute when it leads into the mount from where the shell stands; else it is relative to
    the mount's root."""
    for here in filter(None, (os.environ.get("PWD"), os.getcwd())):
        path = os.path.normpath(os.path.join(here, text))
        if Path(path).is_relative_to(config.mountpoint):
            return path
    return text
