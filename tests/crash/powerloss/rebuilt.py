"""Makes the source and the SSD that a power cut has left, lets recovery at both, and looks for every file.

First what the start settles by itself, then everything is brought home: the source must have one of the possible
worlds then, with every byte and attribute, and the SSD nothing but copies of it. In between no file may be at two
places with different bytes. That includes what is asked of the state itself: a file's bytes must be where recovery
looks for them, or it could not bring them home.

The files of a rebuilt folder have other inode numbers than those recorded, which labels and rows speak of. So they are
known by size and time there, as cachefs does on a source whose numbers do not last over a remount; every version has a
time of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from cachefs.cache.places import Stays
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.fs import homes
from cachefs.fs.found import RESERVED
from cachefs.fs.homes import Homes
from cachefs.model import CacheEntry, EntryState, FileKey, Phase, SourceFile
from tests.crash.content import difference
from tests.crash.failures import Lost
from tests.crash.powerloss.disk import left
from tests.crash.powerloss.house import ATTRIBUTE, FOLDER, SSD, begin, data_of, house
from tests.crash.powerloss.recording import Call, Kind
from tests.crash.powerloss.replay import Cut, lose_index, make
from tests.crash.powerloss.worlds import ANY, World, decode, worlds
from tests.engine.fskit import Rooms

SCENARIO = "tests.crash.powerloss.moving"
_WITHIN_S = 60.0


class KnownBySizeAndTime(Homes):
    """See the module."""

    async def look(self, key: FileKey, *, durable: bool = False) -> homes.AtHome | None:
        found = await super().look(key, durable=durable)
        return replace(found, file=_without_number(found.file)) if found is not None else None

    async def identify(self, key: FileKey, returning: Descriptor) -> SourceFile:
        return _without_number(await super().identify(key, returning))


def _without_number(file: SourceFile) -> SourceFile:
    return replace(file, fingerprint=replace(file.fingerprint, inode=None, filesystem=None))


def different(calls: Sequence[Call], every: Iterable[Cut]) -> Iterator[Cut]:
    """The cuts that leave something else than those before."""
    seen = set()
    for cut in every:
        state = left(calls[: cut.calls], cut.choice)
        marks = sum(call.kind is Kind.MARK for call in calls[: cut.calls])
        known = hash((marks, state.folders, frozenset(state.files.items())))
        if known not in seen:
            seen.add(known)
            yield cut


def examine(calls: Sequence[Call], cut: Cut, folder: Path, *, lost_indexes: Sequence[bool] = (False, True)) -> None:
    """One power cut in an empty ``folder``, which is emptied again; with and without the index. Raises ``Lost``."""
    state = left(calls[: cut.calls], cut.choice)
    marks = (decode(call.path) for call in calls[: cut.calls] if call.kind is Kind.MARK)
    possible = worlds(marks)
    for index_lost in lost_indexes:
        root = folder / "root"
        begin(root)
        make(state, root)
        if index_lost:
            lose_index(root / SSD)
        try:
            trio.run(_recover, root, possible)
        except (Lost, CacheError, OSError) as error:
            raise Lost(f"{cut}{', and the index is lost, too' if index_lost else ''}: {error}") from error
        finally:
            shutil.rmtree(root)


async def _recover(root: Path, possible: Sequence[World]) -> None:
    async with house(root, KnownBySizeAndTime) as fs:
        await fs.movers.settle_all(_WITHIN_S)
        for entry in fs.store.inventory().entries:
            _look_at(fs, entry)
        for entry in fs.store.moves.all():
            try:
                await fs.movers.restore(entry.key)
            except (Stays, OSError) as error:
                raise Lost(f"{entry.key} cannot be brought home: {error}") from error
        _look_home(root, possible)
        for entry in fs.store.inventory().entries:
            _look_at(fs, entry)


def _look_at(fs: Rooms, entry: CacheEntry) -> None:
    """A file that is only on the SSD, or a copy that would be served."""
    home = fs.folders[entry.key.source] / entry.key.path
    if entry.home is not None:
        if entry.home.phase is not Phase.AWAY:
            raise Lost(f"{entry.key} is not settled: {entry.home.phase.value}")
        if home.exists():
            raise Lost(f"{entry.key} is on the SSD alone, and another one has its place")
    elif entry.state is EntryState.CACHED and home.exists():
        info = home.stat()
        if (info.st_size, info.st_mtime_ns) == (entry.size, entry.fingerprint.mtime_ns):
            copy = Path(fs.store.file_of(entry)).read_bytes()
            if wrong := difference(copy, home.read_bytes()):
                raise Lost(f"the copy of {entry.key} is not what its source has: {wrong}")


def _look_home(root: Path, possible: Sequence[World]) -> None:
    """The source has one of these worlds, and room for whatever is to come."""
    found = {
        os.path.relpath(os.path.join(above, name), root / FOLDER): Path(above, name)
        for above, _, names in os.walk(root / FOLDER)
        for name in names
    }
    kept = {name: path for name, path in found.items() if name.startswith(f"{RESERVED}/")}
    if full := [name for name, path in kept.items() if path.stat().st_size]:
        raise Lost(f"{full} take room at the source for ever")
    here = {name: path for name, path in found.items() if name not in kept}
    wrong = [_differs(here, world) for world in possible]
    if all(wrong):
        raise Lost(" / ".join(wrong))


def _differs(found: dict[str, Path], world: World) -> str:
    if found.keys() != world.keys():
        return f"there are {sorted(found)} instead of {sorted(world)}"
    for name, version in world.items():
        if version == ANY:
            continue
        at = found[name]
        if wrong := difference(at.read_bytes(), data_of(version)):
            return f"{name}, version {version}: {wrong}"
        if (at.stat().st_mtime_ns, os.getxattr(at, ATTRIBUTE)) != (version, b"%d" % version):
            return f"{name}, version {version}, has other attributes"
    return ""
