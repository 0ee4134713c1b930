"""``cachefs doctor``: what this machine can do for cachefs, what is missing, and what to do about it.

Called by the command line with a valid configuration, beside a running daemon or without one. Mounts nothing; looks at
everything at once, each in a worker thread under a deadline, so that a dead disk holds up nobody. Judges and words what
``probes`` and the running daemon say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs import check, leftover, mounts, probes, readahead
from cachefs.config import Config, SourceConfig
from cachefs.fs.backing import tells_of_mappings
from cachefs.model import Status
from cachefs.understood import Row
from cachefs.units import format_duration, format_size

_PASSTHROUGH_SINCE = (6, 9)
_CHANNEL_SINCE = (3, 13)
_FEW_WATCHES = 100_000
"""A library of a few thousand films and series has some ten thousand folders; other programs watch as well."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it could be. ``hinders``: people will notice, and can mend it."""

    hinders: bool
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything ``cachefs doctor`` says; what hinders first."""

    facts: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def hindered(self) -> bool:
        return any(finding.hinders for finding in self.findings)


@dataclass(slots=True)
class _Seen:
    """What the looks bring home; one task per look writes its own part. None: no answer in time."""

    machine: probes.Machine | None = None
    fuse: probes.Fuse | None = None
    status: Status | None = None
    answers: bool = False
    """Whether somebody answers for what is mounted at the mountpoint."""
    storage: probes.Storage | None = None
    sources: dict[int, probes.Folder | None] = field(default_factory=dict)
    table: tuple[mounts.Mount, ...] = ()
    places: dict[Path, Path] = field(default_factory=dict)
    """Paths with their symbolic links followed, where that was answered in time."""

    def mount_of(self, path: Path) -> mounts.Mount | None:
        return mounts.holding(self.table, self.places.get(path, path))


@dataclass(slots=True)
class _Pages:
    """The report while it is written."""

    facts: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def say(self, what: str, meaning: str) -> None:
        self.facts.append(Row(what, meaning))

    def hinders(self, message: str, remedy: str) -> None:
        self.findings.append(Finding(True, message, remedy))

    def note(self, message: str, remedy: str) -> None:
        self.findings.append(Finding(False, message, remedy))


async def examine(config: Config) -> DoctorReport:
    """Look at the machine, the disks and the running daemon, if there is one."""
    seen = await _look(config)
    pages = _Pages()
    _judge_machine(seen, pages)
    _judge_fuse(seen, pages)
    _judge_fast_path(config, seen, pages)
    _judge_cache(config, seen, pages)
    for index, source in enumerate(config.sources):
        _judge_source(config, source, index, seen, pages)
    _judge_watching(config, seen, pages)
    _judge_daemon(config, seen, pages)
    return DoctorReport(tuple(pages.facts), tuple(sorted(pages.findings, key=lambda finding: not finding.hinders)))


# --- looking ---------------------------------------------------------------------------------------------------------


async def _look(config: Config) -> _Seen:
    seen = _Seen()

    async def machine() -> None:
        seen.machine = await check.within(check.LOCAL_S, probes.look_at_machine)

    async def fuse() -> None:
        seen.fuse = await check.within(check.LOCAL_S, probes.look_at_fuse, probes.user())

    async def daemon() -> None:
        status = await check.within(check.LOCAL_S, probes.look_at_daemon, config.control.socket)
        if status is not None and status.mountpoint == str(config.mountpoint):
            seen.status = status
        else:
            seen.answers = await leftover.answers(config.mountpoint)

    async def follow(path: Path, limit: float = check.LOCAL_S) -> None:
        seen.places[path] = await check.within(limit, mounts.resolve_now, path) or path

    async def cache() -> None:
        seen.storage = await check.within(check.LOCAL_S, probes.look_at_cache, config.cache.path)

    async def source(index: int, path: SourceConfig) -> None:
        limit = min(path.timeout, check.LOCAL_S)
        await follow(path.path, limit)
        seen.sources[index] = await check.within(limit, probes.look_at_folder, path.path)

    async def table() -> None:
        seen.table = await check.within(check.LOCAL_S, mounts.all_now) or ()

    async with trio.open_nursery() as nursery:
        for look in (machine, fuse, daemon, cache, table):
            nursery.start_soon(look)
        for path in (config.cache.path, config.mountpoint):
            nursery.start_soon(follow, path)
        for index, item in enumerate(config.sources):
            nursery.start_soon(source, index, item)
    return seen


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge_machine(seen: _Seen, pages: _Pages) -> None:
    machine = seen.machine
    if machine is None:
        pages.hinders("the system does not answer questions about itself", "look at its log (dmesg); restart it")
        return
    pages.say("kernel", f"Linux {machine.kernel}")
    pages.say("libfuse", machine.libfuse or "not found")
    if not machine.libfuse:
        pages.hinders("libfuse 3 is not found", "install the package fuse3")
    pages.say("rights", _rights(machine))
    pages.say("names", f"are read as {machine.encoding}")
    if machine.encoding.lower().replace("-", "") != "utf8":
        pages.hinders(
            f"file names are read as {machine.encoding}: Plex's names with other letters are not found",
            "start cachefs with LC_ALL=C.UTF-8",
        )


def _rights(machine: probes.Machine) -> str:
    if machine.uid:
        return "an ordinary user's"
    return "root's" if machine.can_administrate else "root's, without CAP_SYS_ADMIN"


def _judge_fuse(seen: _Seen, pages: _Pages) -> None:
    fuse = seen.fuse
    if fuse is None:
        pages.hinders(f"{probes.FUSE_DEVICE} does not answer", "restart the machine")
        return
    pages.say("mounting", f"{probes.FUSE_DEVICE} {fuse.device_problem or 'is there'}")
    if fuse.device_problem:
        message, _, remedy = fuse.device_problem.partition("; ")
        pages.hinders(f"{probes.FUSE_DEVICE} {message}", remedy or "run: modprobe fuse")
    if fuse.right_missing:
        message, _, remedy = probes.RIGHT_MISSING.partition("; ")
        pages.hinders(message, remedy)
    if fuse.fusermount_missing:
        pages.hinders("fusermount3 is missing, which mounts for ordinary users", "install the package fuse3")
    if fuse.others_refused:
        pages.hinders(
            "only you can see into the mount; other users, such as Plex's, cannot",
            f"write user_allow_other into {probes.FUSE_CONF}, as root",
        )


def _judge_fast_path(config: Config, seen: _Seen, pages: _Pages) -> None:
    """Whether the kernel could read cached files by itself, each reason against it said once."""
    machine = seen.machine
    if machine is None:
        return
    if not machine.has_channel:
        pages.hinders(
            "cachefs's channel to the kernel is not built: one hung disk may hold up the whole mount",
            "install cachefs with pip where libfuse3-dev and gcc are",
        )
    elif machine.libfuse and _version(machine.libfuse) < _CHANNEL_SINCE:
        pages.hinders(
            f"libfuse {machine.libfuse} cannot carry the channel: one hung disk may hold up the whole mount",
            "use libfuse 3.13 or newer; Debian 12 and Ubuntu 24.04 have it",
        )
    mount = seen.mount_of(config.cache.path)
    obstacles = list(_obstacles(config, machine, mount.fstype if mount is not None else ""))
    for message, remedy in obstacles:
        pages.note(message, remedy)
    switched_off = config.fast_path == "off"
    if not machine.has_channel or len(obstacles) > switched_off:
        pages.say("fast path", "not possible here: cached files are read through the daemon")
    elif switched_off:
        pages.say("fast path", "switched off (fast_path: off): cached files are read through the daemon")
    else:
        pages.say("fast path", "possible: the kernel can read cached files by itself")


def _obstacles(config: Config, machine: probes.Machine, fstype: str) -> Iterator[tuple[str, str]]:
    if config.fast_path == "off":
        yield "the fast path is switched off", "write fast_path: auto, or leave it out"
    if _version(machine.kernel) < _PASSTHROUGH_SINCE:
        yield f"Linux {machine.kernel} does not read cached files by itself", "use Linux 6.9 or newer"
    if machine.uid or not machine.can_administrate:
        yield (
            "only root with CAP_SYS_ADMIN may let the kernel read cached files by itself",
            "run cachefs as root; in a container, start it with --cap-add SYS_ADMIN",
        )
    if not tells_of_mappings(fstype):
        yield (
            f"the cache folder is in memory ({fstype}): it is empty after a restart, and not read by the kernel itself",
            "put it on an SSD",
        )


def _judge_cache(config: Config, seen: _Seen, pages: _Pages) -> None:
    path, storage = config.cache.path, seen.storage
    if storage is None:
        pages.hinders(f"the cache folder {path} does not answer", "look whether the SSD is well (dmesg)")
        return
    mount = seen.mount_of(path)
    kind = mount.fstype if mount is not None else "unknown"
    pages.say("cache", f"{path} is on {kind}, with {format_size(storage.free_bytes)} free")
    if storage.folder.problem:
        pages.hinders(f"the cache folder {path} {storage.folder.problem}", "mend its rights, or choose another folder")
    if mount is None:
        return
    if mount.is_stacked:
        pages.hinders(
            f"the cache folder {path} is on a stacked file system ({kind}): the kernel cannot read it by itself",
            "in a container, make it a volume; else put it on the SSD's own file system",
        )
    for index, folder in seen.sources.items():
        if folder is not None and folder.device is not None and folder.device == storage.folder.device:
            pages.hinders(
                f"the cache folder {path} is on the same file system as the source {config.sources[index].path}",
                "put it on another disk, a faster one; it gains nothing there",
            )


def _judge_source(config: Config, source: SourceConfig, index: int, seen: _Seen, pages: _Pages) -> None:
    folder = seen.sources.get(index)
    mount = seen.mount_of(source.path)
    kind = mount.fstype if mount is not None else "unknown"
    where = "local" if mount is not None and mount.is_local else "not a local disk's"
    pages.say("source", f"{source.path} is on {kind}, {where}")
    if folder is None:
        pages.hinders(
            f"the source {source.path} does not answer", "look whether its disk or server is on, and its mount is well"
        )
    elif folder.problem:
        pages.hinders(f"the source {source.path} {folder.problem}", "mend that; cachefs check says more")
    if mount is not None and not mount.is_local and source.metadata != "remembered":
        pages.note(
            f"changes behind the mount in {source.path} cannot be watched there; they show after its ttl",
            f"nothing (the ttl is {format_duration(source.ttl)}); if all changes are made on this machine and by that "
            "path, metadata: remembered lets its disks sleep",
        )


def _judge_watching(config: Config, seen: _Seen, pages: _Pages) -> None:
    machine = seen.machine
    if machine is None or machine.most_watches is None:
        return
    pages.say("watching", f"at most {machine.most_watches} folders, for all programs of a user together")
    found = (seen.mount_of(source.path) for source in config.sources)
    if machine.most_watches < _FEW_WATCHES and any(mount is not None and mount.is_local for mount in found):
        pages.note(
            f"only {machine.most_watches} folders can be watched for changes",
            "for a large library run: sysctl fs.inotify.max_user_watches=524288",
        )


def _judge_daemon(config: Config, seen: _Seen, pages: _Pages) -> None:
    status = seen.status
    here = mounts.topmost(seen.table, seen.places[config.mountpoint])
    if status is None:
        is_mounted = here is not None and here.is_cachefs
        pages.say("daemon", "does not answer" if is_mounted and seen.answers else "does not run")
        if is_mounted and seen.answers:
            pages.hinders(
                f"a living cachefs is mounted at {config.mountpoint}, but does not answer on {config.control.socket}",
                "run this with the configuration, and as the user, that it was started with",
            )
        elif is_mounted:
            pages.hinders(f"a dead mount is at {config.mountpoint}", "run: cachefs unmount, or start cachefs again")
        return
    pages.say("daemon", f"cachefs {status.version} runs with pid {status.pid}")
    if status.fast_path:
        pages.say("reads", f"go through the daemon: {status.fast_path}")
    elif status.reads.kernel_opens:
        pages.say("reads", "of cached files are the kernel's own")
    else:
        pages.say("reads", "of cached files will be the kernel's own, as far as can be seen before the first")
    ahead = readahead.of(here) if here is not None and here.is_cachefs else None
    if ahead is not None:
        pages.say("read-ahead", format_size(ahead))
        if config.read_ahead and ahead < config.read_ahead:
            pages.note(
                f"the kernel reads only {format_size(ahead)} ahead, not {format_size(config.read_ahead)}",
                "run cachefs as root, with /sys writable; in a container, nothing",
            )


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version, such as 6.18.0-arm64."""
    parts = text.split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part.partition("-")[0])) or 0) for part in parts)
