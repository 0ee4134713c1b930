"""Sets the stage: the sample, and over it cachefs twice (everything cached, nothing cached) and its peers.

Used by ``__main__`` and ``memory``. Leaving it ends every process, unmounts everything and removes the folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachefs import __version__
from cachefs.mounts import parse, unmount
from tests.bench import daemons, peers
from tests.bench.probe import ProbeFailed, Sample, System, compile_probe
from tests.bench.sample import Amounts, make_sample
from tests.bench.works import MIB, Kind
from tests.demo.stop import Stop
from tests.standin.running import RunningCachefs, start_cachefs

Say = Callable[[str], None]
SOURCE_NAME = "Media"


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user chose. ``more``: further file systems by name, mounted by the user over ``folder``."""

    amounts: Amounts
    folder: Path | None
    more: tuple[tuple[str, Path], ...]
    without: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stage:
    """``systems``: the native folder first."""

    probe: Path
    sample: Sample
    systems: tuple[System, ...]
    fast_path: str
    """Why the kernel does not read cached files by itself; empty when it does."""


@contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    """A place for everything, gone afterwards. It is never removed through a mount that was left behind."""
    with tempfile.TemporaryDirectory(prefix="cachefs-bench-", dir=parent) as name:
        place = Path(name).resolve()
        place.chmod(0o755)
        try:
            yield place
        finally:
            for mount in reversed(mounts_below(place)):
                unmount(mount, force=True)


def mounts_below(place: Path) -> list[Path]:
    """In the order in which they were made."""
    table = parse(Path("/proc/self/mountinfo").read_bytes())
    return [mount.path for mount in table if mount.path.is_relative_to(place)]


@contextmanager
def stage(place: Path, choice: Choice, say: Say, stop: Stop) -> Iterator[Stage]:
    """Everything mounted, and shown to have the same bytes; ``Stopped`` when somebody asked to end meanwhile."""
    source = place / "source"
    for name in ("source", "lists", "mounts"):
        (place / name).mkdir()
    with ExitStack() as stack:
        program = compile_probe(place)
        say("making the files")
        sample = make_sample(source, place / "lists", choice.amounts, stop)
        native = System("native", "native", Kind.NATIVE, source, source)
        say("mounting cachefs, with everything cached and with nothing cached")
        cached, fast_path = _cached(stack, place, sample, stop)
        uncached = _cachefs(stack, place, "uncached")
        systems = [native, cached, _system(uncached, Kind.UNCACHED, source), *_peers(stack, place, choice, stop)]
        for system in systems[1:]:
            say(f"comparing every byte: {system.title}")
            compare(native, system, sample, stop)
        yield Stage(program, sample, tuple(systems), fast_path)


def settings(place: Path, name: str, source: Path) -> dict[str, Any]:
    """What a user would write, and no more: the defaults are what is measured."""
    return {
        "mountpoint": os.fspath(place / "mounts" / name),
        "sources": [{"path": os.fspath(source), "name": SOURCE_NAME}],
        "cache": {"path": os.fspath(place / f"ssd-{name}"), "min_free": "100MiB"},
        "control": {"socket": os.fspath(place / f"{name}.sock")},
    }


def _cachefs(stack: ExitStack, place: Path, name: str) -> RunningCachefs:
    (place / "mounts" / name).mkdir()
    running = start_cachefs(place / f"{name}.yaml", place / f"{name}.log", settings(place, name, place / "source"))
    stack.callback(running.remove)
    return running


def _cached(stack: ExitStack, place: Path, sample: Sample, stop: Stop) -> tuple[System, str]:
    """cachefs with every film and clip copied, as ``cachefs copy`` does it."""
    running = _cachefs(stack, place, "cached")
    with running.client() as client:
        for name in (*sample.films, *sample.clips):
            stop.wait(0)
            client.copy(name)
    fast_path = running.status().fast_path
    return _system(running, Kind.CACHED, place / "ssd-cached" / "files" / SOURCE_NAME), fast_path


def _system(running: RunningCachefs, kind: Kind, beneath: Path) -> System:
    pids = daemons.family(running.process.pid)
    key = running.mountpoint.name
    return System(key, kind.value, kind, running.mountpoint, beneath, pids, __version__)


def _peers(stack: ExitStack, place: Path, choice: Choice, stop: Stop) -> Iterator[System]:
    source = place / "source"
    for peer in peers.found():
        if peer.name in choice.without:
            continue
        mountpoint = place / "mounts" / peer.name
        mountpoint.mkdir()
        pid = stack.enter_context(peers.mounted(peer, source, mountpoint, stop))
        version = peers.version(peer)
        yield System(peer.name, peer.name, Kind.PEER, mountpoint, source, daemons.family(pid), version)
    for name, mountpoint in choice.more:
        if choice.folder is None:
            raise ProbeFailed(f"--peer {name}: say with --folder which folder {mountpoint} shows")
        root = mountpoint / source.relative_to(choice.folder.resolve())
        yield System(name, name, Kind.PEER, root, source, version="mounted by the user")


def compare(native: System, system: System, sample: Sample, stop: Stop) -> None:
    """Read everything through both: whoever is fast must also be right. It warms up both, too."""
    for name in (*sample.films, *sample.clips):
        with (native.root / name).open("rb", buffering=0) as one, (system.root / name).open("rb", buffering=0) as other:
            while data := one.read(MIB):
                stop.wait(0)
                if other.read(MIB) != data:
                    raise ProbeFailed(f"{system.title} shows other bytes of {name} than there are")
            if other.read(1):
                raise ProbeFailed(f"{system.title} shows more bytes of {name} than there are")
