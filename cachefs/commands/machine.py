"""The commands about the machine and the mount: mount, check, doctor, unmount. Given to ``cli``'s group."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import click
import trio

from cachefs import building, check, daemon, doctor, fstab, keeper, leftover, logs, mounts, place, show
from cachefs.announce import Announcer
from cachefs.commands import shared
from cachefs.config import Config, PlexConfig
from cachefs.errors import NotRunning, UserError
from cachefs.plex.client import PlexClient, PlexSettings

_POLL_S = 0.1
_STOP_S = 30.0
_END_S = 3.0
"""For the process to end once its mount is gone."""
_PLEX_S = 30.0


@click.command()
@shared.config_option
def mount(config_file: Path | None) -> int:
    """Mount, and stay until Ctrl-C, SIGTERM or SIGHUP."""
    return keeper.run(shared.find_config(config_file), Announcer.from_environment(os.environ))


@click.command(fstab.COMMAND, hidden=True)
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-o", "options", multiple=True)
def fstab_command(config_file: Path, mountpoint: Path, options: tuple[str, ...]) -> int:
    """What mount(8) runs for the type fuse.cachefs."""
    for text in options:
        fstab.refuse_options(text)
    return fstab.mount(config_file.absolute(), shared.load(config_file), mountpoint)


@click.command(hidden=True)
@shared.config_option
def serve(config_file: Path | None) -> int:
    """The server half of `mount`, which starts it."""
    logs.set_up()
    return daemon.serve(shared.load(config_file))


@click.command("check")
@shared.config_option
@shared.json_option
def check_command(config_file: Path | None, as_json: bool) -> int:
    """Say what the configuration means, and what is wrong.

    Looks whether this machine can do what it says, and whether Plex answers.
    """
    try:
        config = shared.load(config_file)
    except UserError as error:
        if not as_json:
            raise
        shared.show_json(check.refused(error))
        return shared.USER
    logging.getLogger("cachefs").addHandler(logging.NullHandler())  # the report says all of it
    report = trio.run(_examine, config)
    if as_json:
        shared.show_json(report)
    else:
        shared.show_text(show.check(report))
    return 0 if report.can_mount else shared.USER


@click.command("doctor")
@shared.config_option
@shared.json_option
def doctor_command(config_file: Path | None, as_json: bool) -> int:
    """Say what this machine can do for cachefs, and what is missing."""
    report = trio.run(doctor.examine, shared.load(config_file))
    if as_json:
        shared.show_json(report)
    else:
        shared.show_text(show.doctor(report))
    return shared.USER if report.hindered else 0


@click.command()
@shared.config_option
def unmount(config_file: Path | None) -> None:
    """Stop cachefs, and wait until its mount is gone.

    Clears the mount of a daemon that died.
    """
    config = shared.load(config_file)
    mountpoint = config.mountpoint
    try:
        with shared.client(config) as client:
            server = Path(f"/proc/{client.status().pid}")
            client.stop()
    except NotRunning:
        shared.show_line(_clear_mount(config))
        return
    began = time.monotonic()
    while _is_cachefs_at(mountpoint):
        if time.monotonic() > began + _STOP_S:
            raise UserError(f"the daemon was told to stop, but {mountpoint} is still mounted after {_STOP_S:g} s")
        time.sleep(_POLL_S)
    gone = time.monotonic()
    while server.exists() and time.monotonic() < gone + _END_S:  # longer, if a call hangs in a disk: its keeper says so
        time.sleep(_POLL_S)
    shared.show_line(f"the daemon has unmounted {show.printable(str(mountpoint))}")


def _is_cachefs_at(mountpoint: Path) -> bool:
    found = mounts.mounted_at(mountpoint)
    return found is not None and found.is_cachefs


def _clear_mount(config: Config) -> str:
    """Without a daemon; says what was done."""
    mountpoint = config.mountpoint
    found = mounts.mounted_at(mountpoint)
    where = show.printable(str(mountpoint))
    if found is None:
        return f"daemon not running, and nothing is mounted at {where}"
    if not found.is_cachefs:
        raise UserError(f"daemon not running; what is mounted at {where} is {found.fstype}, not cachefs: left alone")
    if trio.run(leftover.answers, mountpoint):
        raise UserError(
            f"a living cachefs is mounted at {where}, but none answers on {config.control.socket}: it is left alone; "
            "is it the same configuration, and the same user?"
        )
    if place.is_kept_full(config):
        place.take_away(mountpoint, force=True)
    else:
        mounts.unmount(mountpoint, force=True)
    return f"daemon not running; its mount at {where} is cleared"


async def _examine(config: Config) -> check.CheckReport:
    return await check.examine(config, ask_plex, building.path_report)


async def ask_plex(plex: PlexConfig, token: str) -> check.PlexFacts:
    settings = PlexSettings(plex.url, token, cloud_url=plex.cloud_url, deadline_s=_PLEX_S)
    return await PlexClient(settings).check()


COMMANDS = (mount, fstab_command, serve, check_command, doctor_command, unmount)
