"""``cachefs check``: what the configuration was understood to mean, and whether this machine can do it.

Called by ``cli`` with a valid configuration. All looks are taken at once, each in a worker thread under a deadline, so
that one dead disk hides nothing else; a thread that is stuck is left behind. Judges and words what ``probes`` found;
mounts nothing.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from cachefs import abroad, building, leftover, nesting, probes
from cachefs import place as place_of_mount
from cachefs.cache import keepsake
from cachefs.cache.belonging import Moved, knows, moved_in, not_alone, refusal
from cachefs.cache.folder import holder, strangers
from cachefs.cache.metadata import last_seen
from cachefs.config import Config, PlexConfig, SourceConfig
from cachefs.control.messages import another_mount
from cachefs.errors import ConfigError, PlexError, PlexRefused, Problem, UserError
from cachefs.model import UserReport
from cachefs.resolving import PathNote
from cachefs.understood import Row, understood
from cachefs.units import format_duration, format_size

T = TypeVar("T")

LOCAL_S = 10.0
"""For the SSD, the mountpoint and everything else that is no source."""


class Severity(enum.Enum):
    ERROR = 0
    """cachefs cannot mount."""
    WARNING = 1
    """It can, but not all will go as the user may expect."""
    NOTE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; ``key`` is the configuration's, empty when none is concerned."""

    severity: Severity
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything ``cachefs check`` says; the worst findings first."""

    understood: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def can_mount(self) -> bool:
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def refused(error: UserError) -> CheckReport:
    """The report on a configuration that cannot be used."""
    problems = error.problems if isinstance(error, ConfigError) else (Problem("", str(error)),)
    return CheckReport((), tuple(Finding(Severity.ERROR, problem.key, problem.message) for problem in problems))


class PlexFacts(Protocol):
    """What a Plex server says about itself."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def users(self) -> tuple[UserReport, ...]: ...


AskPlex = Callable[[PlexConfig, str], Awaitable[PlexFacts]]
"""Asks the server with this token; raises ``PlexError`` only."""

ReportPaths = Callable[[Config], Awaitable[tuple[PathNote, ...]]]
"""Says how Plex's paths are found; nothing when that cannot be asked."""


@dataclass(slots=True)
class _Looks:
    """What the looks bring home; one task per look writes its own part."""

    findings: list[Finding] = field(default_factory=list)
    sources: dict[int, probes.Folder] = field(default_factory=dict)
    cache: probes.Storage | None = None
    moved: Moved = field(default_factory=lambda: Moved({}))
    place: probes.Place | None = None
    nesting: nesting.Place | None = None
    plex: PlexFacts | None = None

    def add(self, severity: Severity, key: str, message: str) -> None:
        self.findings.append(Finding(severity, key, message))


async def examine(config: Config, ask_plex: AskPlex, report_paths: ReportPaths | None = None) -> CheckReport:
    """Look at everything the configuration names. ``report_paths`` says how Plex's paths are mapped, where known; it is
    asked last, for it knows nothing of the tags of devices, which are the whole process's."""
    looks = _Looks()
    for warning in config.warnings:
        looks.add(Severity.WARNING, "", warning)
    await _look_at_place(config, looks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_look_at_fuse, looks)
        nursery.start_soon(_look_at_sharing, config, looks)
        nursery.start_soon(_look_at_cache, config, looks)
        nursery.start_soon(_look_at_socket, config, looks)
        nursery.start_soon(_look_at_plex, config, ask_plex, looks)
        for index, source in enumerate(config.sources):
            nursery.start_soon(_look_at_source, config, index, source, looks)
    await _look_for_moved(config, looks)
    _compare(config, looks)
    if report_paths is not None and looks.plex is not None:
        await _look_at_paths(config, report_paths, looks)
    findings = sorted(looks.findings, key=lambda finding: (finding.severity.value, finding.key))
    space = (looks.cache.total_bytes, looks.cache.free_bytes) if looks.cache else None
    return CheckReport(understood(config, space, _server(looks.plex)), tuple(findings))


async def within(timeout_s: float, look: Callable[..., T], *args: object) -> T | None:
    """What ``look`` returns, or None when it takes longer; its thread is then left to itself."""
    with trio.move_on_after(timeout_s):
        # A limiter of its own: looks that are stuck must not keep the others waiting for a thread.
        return await trio.to_thread.run_sync(look, *args, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    return None


# --- one look each ---------------------------------------------------------------------------------------------------


async def _look_at_place(config: Config, looks: _Looks) -> None:
    mountpoint = config.mountpoint
    place = await within(LOCAL_S, probes.look_at_mountpoint, mountpoint, config.control.socket)
    looks.place = place
    looks.nesting = await within(LOCAL_S, nesting.look_at_mountpoint, mountpoint)
    if place is not None and place.other:
        socket = config.control.socket
        looks.add(Severity.ERROR, "control.socket", another_mount(socket, place.other, str(mountpoint)))
    if place is None:
        looks.add(Severity.ERROR, "mountpoint", f"{mountpoint} does not answer within {format_duration(LOCAL_S)}")
    elif place.mount is not None and place.mount.is_cachefs:
        if place.daemon_pid is None and await leftover.answers(mountpoint):
            message = (
                f"a living cachefs is mounted at {mountpoint}, but none answers on {config.control.socket}; "
                "is it the same configuration, and the same user?"
            )
            looks.add(Severity.ERROR, "mountpoint", message)
            return
        if place.daemon_pid is None:
            message = f"a mount left by a daemon that is gone is at {mountpoint}; it will be cleared"
        else:
            message = f"mounted now, by the daemon with pid {place.daemon_pid}"
        looks.add(Severity.NOTE, "mountpoint", message)
    elif place.mount is not None and not config.in_place:
        what = f"{place.mount.source} ({place.mount.fstype})"
        looks.add(Severity.ERROR, "mountpoint", f"{mountpoint} is in use: {what} is mounted there; choose another")
    elif place.folder is not None and not config.in_place:
        _judge_empty_place(place.folder, place.has_parent, place_of_mount.is_kept_full(config), looks)


def _judge_empty_place(folder: probes.Folder, has_parent: bool, is_made: bool, looks: _Looks) -> None:
    if folder.missing and has_parent and is_made:
        looks.add(Severity.NOTE, "mountpoint", f"{folder.path} will be made, and goes with the mount")
    elif folder.missing:
        looks.add(Severity.ERROR, "mountpoint", place_of_mount.missing(folder.path, is_made))
    elif folder.problem:
        looks.add(Severity.ERROR, "mountpoint", f"{folder.path} {folder.problem}")
    elif not folder.empty:
        looks.add(Severity.WARNING, "mountpoint", f"{folder.path} holds files, which the mount will hide")


async def _look_at_source(config: Config, index: int, source: SourceConfig, looks: _Looks) -> None:
    key = f"sources[{index}].path"
    if config.in_place and _dead_mount(looks.place):
        looks.add(Severity.NOTE, key, f"{source.path} cannot be seen until the dead mount over it is cleared")
        return
    folder = await within(source.timeout, probes.look_at_folder, source.path)
    if folder is None:
        within_s = format_duration(source.timeout)
        await _judge_away(config, key, source, f"does not answer within {within_s}; is its disk or server on?", looks)
        return
    looks.sources[index] = folder
    if folder.problem:
        await _judge_away(config, key, source, folder.problem, looks)
        return
    try:
        changed = await _changed(config, source, looks.place)
    except OSError as error:
        await _judge_away(config, key, source, f"cannot be read: {error.strerror}", looks)
        return
    if changed and config.in_place:
        looks.add(Severity.ERROR, key, f"{source.path}: {changed}")
    elif changed:
        message = f"{source.path}: {changed}; until then cachefs mounts without it, and shows what it saw last"
        looks.add(Severity.WARNING, key, message)
    elif folder.empty:
        looks.add(Severity.WARNING, key, f"{source.path} is empty; is its disk mounted?")


async def _changed(config: Config, source: SourceConfig, place: probes.Place | None) -> str:
    """What a start would say against the folder that is there; empty when nothing, or when a mount lies over it."""
    if config.in_place and (place is None or (place.mount is not None and place.mount.is_cachefs)):
        return ""
    root = str(config.cache.path)
    kept = await within(LOCAL_S, keepsake.read, root)
    listing = await within(LOCAL_S, last_seen, root, source.name)
    if kept is None or listing is None:
        return ""
    return await building.foresee(config, source, building.LastSeen(listing, kept.devices))


async def _judge_away(config: Config, key: str, source: SourceConfig, problem: str, looks: _Looks) -> None:
    """As a start does: where the source was seen before, cachefs mounts without it."""
    seen = await within(LOCAL_S, last_seen, str(config.cache.path), source.name)
    if seen is not None and not config.in_place:
        message = f"{source.path} {problem}; cachefs mounts without it, shows what it saw last, and probes for it"
        looks.add(Severity.WARNING, key, message)
    else:
        looks.add(Severity.ERROR, key, f"{source.path} {problem}")


async def _look_at_cache(config: Config, looks: _Looks) -> None:
    cache = config.cache
    storage = await within(LOCAL_S, probes.look_at_cache, cache.path)
    if storage is None:
        looks.add(Severity.ERROR, "cache.path", f"{cache.path} does not answer within {format_duration(LOCAL_S)}")
        return
    looks.cache = storage
    if storage.folder.problem:
        looks.add(Severity.ERROR, "cache.path", f"{cache.path} {storage.folder.problem}")
        return
    if storage.to_be_made:
        on = (
            " on the system's own disk (is the SSD mounted?)"
            if await within(LOCAL_S, probes.is_system, storage)
            else ""
        )
        looks.add(Severity.NOTE, "cache.path", f"{cache.path} does not exist yet; it will be made{on}")
    else:
        await _look_at_owner(config, looks)
        others = await within(LOCAL_S, strangers, str(cache.path))
        if others:
            looks.add(Severity.WARNING, "cache.path", not_alone(str(cache.path), others))
    kept = cache.min_free.resolve(storage.total_bytes)
    if kept >= storage.free_bytes:
        has = f"its file system has {format_size(storage.free_bytes)} free and {format_size(kept)} must stay free"
        looks.add(Severity.WARNING, "cache.min_free", f"nothing more can be copied: {has}")
    elif not cache.max_size.resolve(storage.total_bytes):
        looks.add(
            Severity.ERROR, "cache.max_size", f"{cache.max_size} of {format_size(storage.total_bytes)} is nothing"
        )


async def _look_at_owner(config: Config, looks: _Looks) -> None:
    """Whose cache folder it is: of these sources, and of no other daemon."""
    root = str(config.cache.path)
    moved = await within(LOCAL_S, moved_in, root)
    looks.moved = moved or Moved({}, all_known=False)
    sources = {source.name: str(source.path) for source in config.sources}
    refused = await within(LOCAL_S, refusal, root, sources, looks.moved)
    _judge_moved(config, moved, looks)
    if refused:
        looks.add(Severity.ERROR, "cache.path", refused)
    holding = await within(LOCAL_S, holder, root)
    if holding is not None and (looks.place is None or holding != looks.place.daemon_pid):
        message = (
            f"the cache folder {root} is in use by another cachefs (process {holding}); stop it, or choose another"
        )
        looks.add(Severity.ERROR, "cache.path", message)


async def _look_for_moved(config: Config, looks: _Looks) -> None:
    """As a start does: are there sources whose files have moved to an SSD that is not here?"""
    for index, source in enumerate(config.sources):
        answers = index in looks.sources and not looks.sources[index].problem
        kept = await within(LOCAL_S, abroad.count, source.path) if answers else 0
        if kept and await within(LOCAL_S, knows, str(config.cache.path), source.name, looks.moved) is False:
            message = abroad.refusal(config.cache.path, source.path, source.name, kept)
            looks.add(Severity.ERROR, "cache.path", message)


def _judge_moved(config: Config, moved: Moved | None, looks: _Looks) -> None:
    """Say what is on the SSD alone, whatever the mode is now."""
    if moved is None:
        looks.add(Severity.WARNING, "cache.path", f"it took too long to look for moved files in {config.cache.path}")
    elif moved.sizes:
        sizes = moved.sizes.values()
        stays = "" if config.cache.mode == "move" else ", moved earlier: that stays so in mode copy, too"
        message = f"{abroad.held(sizes)}{stays}; cachefs restore --all brings all of it home"
        missed = abroad.in_place(config, sizes)
        looks.add(Severity.WARNING if missed else Severity.NOTE, "cache.mode", missed or message)


async def _look_at_sharing(config: Config, looks: _Looks) -> None:
    if await within(LOCAL_S, probes.unseen_outside, config.mountpoint):
        looks.add(Severity.WARNING, "mountpoint", f"only this container will see the mount: {probes.NOT_SHARED}")


async def _look_at_fuse(looks: _Looks) -> None:
    fuse = await within(LOCAL_S, probes.look_at_fuse, os.geteuid())
    if fuse is None:
        looks.add(Severity.ERROR, "", f"{probes.FUSE_DEVICE} does not answer")
        return
    if fuse.device_problem:
        looks.add(Severity.ERROR, "", f"{probes.FUSE_DEVICE} {fuse.device_problem}")
    if fuse.right_missing:
        looks.add(Severity.ERROR, "", probes.RIGHT_MISSING)
    if fuse.fusermount_missing:
        looks.add(Severity.ERROR, "", "fusermount3 is missing; install the package fuse3, or run cachefs as root")
    if fuse.others_refused:
        message = f"only you will see the mount; for other users (Plex) add user_allow_other to {probes.FUSE_CONF}"
        looks.add(Severity.WARNING, "", message)


async def _look_at_socket(config: Config, looks: _Looks) -> None:
    problem = await within(LOCAL_S, probes.look_at_socket, config.control.socket)
    if problem:
        looks.add(Severity.ERROR, "control.socket", problem)


async def _look_at_plex(config: Config, ask_plex: AskPlex, looks: _Looks) -> None:
    plex = config.plex
    if plex is None:
        looks.add(
            Severity.NOTE, "plex", "not configured; only what is pinned, or asked for with cachefs copy, will be copied"
        )
        return
    try:
        token = await within(LOCAL_S, plex.read_token)
        if token is None:
            message = f"{plex.token_file} does not answer within {format_duration(LOCAL_S)}"
            looks.add(Severity.ERROR, "plex.token_file", message)
            return
        await _look_at_token_file(plex, looks)
        looks.plex = await ask_plex(plex, token)
    except ConfigError as error:
        looks.findings += [Finding(Severity.ERROR, item.key, item.message) for item in error.problems]
        return
    except PlexRefused as error:
        looks.add(Severity.ERROR, "plex.token", str(error))
        return
    except PlexError as error:
        looks.add(Severity.WARNING, "plex.url", f"{error}; cachefs mounts without Plex and asks again")
        return
    for user in looks.plex.users:
        if user.problem:
            looks.add(Severity.WARNING, "plex", f"{user.user} is left out: {user.problem}")


async def _look_at_paths(config: Config, report_paths: ReportPaths, looks: _Looks) -> None:
    if any(finding.key.startswith("sources[") and finding.severity is not Severity.NOTE for finding in looks.findings):
        looks.add(Severity.NOTE, "plex.path_map", "where Plex's paths lead is not looked for while a source is missing")
        return
    for note in await report_paths(config):
        looks.add(Severity.NOTE if note.found else Severity.WARNING, "plex.path_map", note.text)


async def _look_at_token_file(plex: PlexConfig, looks: _Looks) -> None:
    if plex.token_file is None:
        return
    if await within(LOCAL_S, probes.readable_by_everybody, plex.token_file):
        message = f"everybody may read {plex.token_file}; run: chmod o-r {plex.token_file}"
        looks.add(Severity.WARNING, "plex.token_file", message)


# --- what only shows when several are seen together ------------------------------------------------------------------


def _compare(config: Config, looks: _Looks) -> None:
    """Folders by identity, so that symbolic links and bind mounts hide nothing."""
    nested = list(nesting.of_sources(config, looks.sources))
    if looks.cache is not None:
        nested += nesting.of_cache(config, looks.sources, looks.cache)
    if looks.cache is not None and looks.nesting is not None:
        nested += nesting.of_mountpoint(config, looks.sources, looks.nesting)
    for problem in nested:
        looks.add(Severity.ERROR, problem.key, problem.message)
    if looks.cache is None:
        return
    for _, source in sorted(looks.sources.items()):
        if not nested and source.device is not None and source.device == looks.cache.folder.device:
            message = (
                f"{config.cache.path} is on the same file system as the source {source.path}; it will gain nothing"
            )
            looks.add(Severity.WARNING, "cache.path", message)


def _dead_mount(place: probes.Place | None) -> bool:
    return place is not None and place.mount is not None and place.mount.is_cachefs and place.daemon_pid is None


def _server(plex: PlexFacts | None) -> str:
    if plex is None:
        return ""
    users = ", ".join(user.user for user in plex.users if not user.problem)
    return f"{plex.name} {plex.version}, owner {plex.owner}" + (f", users {users}" if users else "")
