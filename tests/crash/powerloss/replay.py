"""Makes the cache folder that a power cut has left, lets recovery at it, and compares with what was promised."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.cache import keepsake, label
from cachefs.cache.recovery import Opened, open_folder
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, EntryState
from tests.crash.audit import check_index, read_rows, sizes, unaccounted
from tests.crash.content import difference
from tests.crash.failures import Lost
from tests.crash.powerloss.disk import Choice, Left, choices, left
from tests.crash.powerloss.facts import Promised, fact, promised
from tests.crash.powerloss.recording import Call, Kind
from tests.crash.powerloss.scenario import SOURCES, data_of

SCENARIO = "tests.crash.powerloss.scenario"


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut: after how many calls, and what the disk had kept by then."""

    calls: int
    choice: Choice

    def __str__(self) -> str:
        return f"the power goes after call {self.calls} ({self.choice.name})"


@contextmanager
def quick_folder() -> Iterator[Path]:
    """An empty folder, in memory where that takes extended attributes: a power cut costs 25 ms there, and 200 ms on a
    disk, which is asked to keep for good what is thrown away at once."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if _takes_attributes(memory) else None) as folder:
        yield Path(folder)


def _takes_attributes(folder: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.setxattr(file.fileno(), label.NAME, b"")
    except OSError:
        return False
    return True


def cuts(calls: Sequence[Call], seed: int, samples: int) -> Iterator[Cut]:
    """After every call, and after every acknowledgement, in every way that ``choices`` knows."""
    chance = random.Random(f"{seed}/power")
    for at in range(1, len(calls) + 1):
        for choice in choices(chance, samples, at):
            yield Cut(at, choice)


def examine(calls: Sequence[Call], cut: Cut, folder: Path) -> None:
    """One power cut in an empty ``folder``, which is emptied again. Raises ``Lost``."""
    before = calls[: cut.calls]
    state = left(before, cut.choice)
    for index_lost in (False, True):
        promise = promised(fact(call.path) for call in before if call.kind is Kind.MARK)
        ssd = folder / "ssd"
        make(state, ssd)
        try:
            if index_lost:
                lose_index(ssd)
                promise.lose_index()
            _recover(ssd, promise, f"{cut}{', and the index is lost, too' if index_lost else ''}")
        finally:
            shutil.rmtree(ssd)


def lose_index(ssd: Path) -> None:
    """As a person might who deletes what is broken."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        (ssd / f"index.sqlite{suffix}").unlink(missing_ok=True)


def make(state: Left, ssd: Path) -> None:
    """Write a state down."""
    ssd.mkdir(exist_ok=True)
    for name in sorted(state.folders):
        (ssd / name).mkdir()
    for name, file in state.files.items():
        path = ssd / name
        path.write_bytes(file.data)
        for attribute, value in file.xattrs:
            os.setxattr(path, attribute, value)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def _recover(ssd: Path, promise: Promised, when: str) -> None:
    try:
        opened = open_folder(os.fspath(ssd), SOURCES)
    except CacheError as error:
        raise Lost(f"{when}: recovery fails: {error}") from error
    try:
        problem = _problem(ssd, opened, promise)
        check_index(ssd)
    finally:
        opened.index.close()
        opened.folder.close()
    if problem:
        raise Lost(f"{when}: {problem}")


def _problem(ssd: Path, opened: Opened, promise: Promised) -> str:
    entries = {entry.key.path: entry for entry in opened.entries}
    for entry in opened.entries:
        if wrong := _wrong(ssd, entry):
            return wrong
    return (
        unaccounted(read_rows(ssd), sizes(ssd))
        or _not_kept(entries, promise)
        or _come_back(entries, promise)
        or _facts(ssd, opened, promise)
    )


def _wrong(ssd: Path, entry: CacheEntry) -> str:
    """Whether an entry's bytes are those of the version that it says it is of."""
    cached = entry.state is EntryState.CACHED
    place = f"files/{entry.key.source}/{entry.key.path}" if cached else f"partial/{entry.id}"
    found = (ssd / place).read_bytes()
    right = data_of(entry.key.path, entry.fingerprint.mtime_ns)
    for span in entry.ranges.spans:
        if wrong := difference(found[span.start : span.end], right[span.start : span.end]):
            return f"{place} is taken for version {entry.fingerprint.mtime_ns} of {entry.key.path}: {wrong}"
    return ""


def _not_kept(entries: dict[str, CacheEntry], promise: Promised) -> str:
    for path, version in promise.cached.items():
        entry = entries.get(path)
        if entry is None or entry.state is not EntryState.CACHED or entry.fingerprint.mtime_ns != version:
            return f"version {version} of {path} was published, and there is {entry}"
    for path, done in promise.copying.items():
        entry = entries.get(path)
        if entry is None or not entry.ranges.covers(0, done):
            return f"the first {done} bytes of {path} were copied for good, and there is {entry}"
    return ""


def _come_back(entries: dict[str, CacheEntry], promise: Promised) -> str:
    for path, version in promise.gone.items():
        entry = entries.get(path)
        if entry is not None and entry.state is EntryState.CACHED and entry.fingerprint.mtime_ns <= version:
            return f"version {version} of {path} was dropped, and there is {entry}"
    return ""


def _facts(ssd: Path, opened: Opened, promise: Promised) -> str:
    """Pins, what people asked for, and the tags of devices, in the index and beside it."""
    kept = keepsake.read(os.fspath(ssd))
    if kept is None or kept != opened.index.keepsake():
        return f"{keepsake.NAME} does not say what the index says: {kept}"
    pinned = {pin.target for pin in opened.pins}
    if promise.pinned - pinned or promise.unpinned & pinned:
        return f"pinned were {sorted(promise.pinned)}, let go {sorted(promise.unpinned)}; there are {sorted(pinned)}"
    asked = {asked.key.path for asked in opened.asked}
    if promise.asked - asked:
        return f"asked for by hand were {sorted(promise.asked)}; there are {sorted(asked)}"
    wrong = {name: tag for name, tag in promise.tags.items() if kept.devices.get(name) != tag}
    return f"tags of devices are lost: {wrong}" if wrong else ""
