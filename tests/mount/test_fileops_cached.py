"""The file-operation scenarios once more: on files that are cached and open, on files whose copies are under way, and
on files that have moved to the SSD.

Every file is copied as soon as it has bytes and nobody writes it, and a reader of it is kept open. Whatever happens
then, such a reader sees at the end what the file holds at its source.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest

from cachefs.control.client import Client
from tests.fileops import SCENARIOS, Scenario
from tests.mount.kit import STATE
from tests.mount.lives import wait_until
from tests.mount.realfiles import RealFiles, mounted
from tests.standin.running import CachefsFailed, RunningCachefs

UNCACHED = ("the_state_is_answered_never_listed_and_cannot_be_set",)
"""Says of a file that it is at its source."""
MOVED = ("renam", "unlink", "link", "trunc", "append", "several_megabytes", "extended", "number", "o_rdwr")
"""Of the scenarios, those that say the most of moved files; all of them are run in process."""
SOON_S = 1.0
SLOWLY = "100B/s"
"""A scenario's files have some bytes each, so copies end in the middle of it, or when it is over."""


@dataclass(frozen=True, slots=True)
class CachedFiles(RealFiles):
    """``waits``: for the copy, so that the kept reader is the kernel's own. Otherwise it was opened before the copy
    began, which goes on while the scenario does."""

    running: RunningCachefs
    client: Client
    waits: bool
    moves: bool = False
    writers: dict[int, str] = field(default_factory=dict)
    """Handles that can write, and what they opened."""
    readers: list[int] = field(default_factory=list)

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        if not flags & os.O_ACCMODE:
            self.put_on_ssd(path)
        handle = RealFiles.open(self, path, flags, mode)
        if flags & os.O_ACCMODE:
            self.writers[handle] = path
        return handle

    def close(self, handle: int) -> None:
        RealFiles.close(self, handle)
        path = self.writers.pop(handle, None)
        if path is not None:
            self.put_on_ssd(path)

    def put_on_ssd(self, path: str) -> None:
        """Copy the file, if there is one with something to copy that nobody writes and that is not there yet."""
        at = self._at(path)
        try:
            seen = os.lstat(at)
        except OSError:
            return
        written = any(seen.st_ino == os.fstat(handle).st_ino or path == name for handle, name in self.writers.items())
        if written or not stat.S_ISREG(seen.st_mode) or not seen.st_size or os.getxattr(at, STATE) != b"source":
            return
        if not self.waits:
            self.readers.append(os.open(at, os.O_RDONLY))
        self.client.copy(str(at))
        if self.waits and self._is_cached_soon(at):
            self.readers.append(os.open(at, os.O_RDONLY))

    def _is_cached_soon(self, at: Path) -> bool:
        """A copy of something that has just been changed may be put off."""
        with suppress(CachefsFailed):
            wait_until(self.running, lambda: self._is_there(at), f"{at} is cached", SOON_S)
        return self._is_there(at)

    def _is_there(self, at: Path) -> bool:
        if not self.moves:
            return os.getxattr(at, STATE) == b"cached"
        number = os.lstat(at).st_ino
        return any(entry.source_file.inode == number and entry.home is not None for entry in self.client.entries())

    def check_readers(self) -> None:
        """Each sees what its source has, unless that is gone."""
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(self.behind) for name in names]
        sources = {os.lstat(path).st_ino: path for path in paths}
        for reader in self.readers:
            path = sources.get(os.fstat(reader).st_ino)
            if path is not None:
                with open(path, "rb") as source:
                    assert os.pread(reader, 1 << 23, 0) == source.read(), path


class Home(type(Path())):  # type: ignore[misc]
    """A source's folder, where everybody who looks finds all files at home."""

    client: ClassVar[Client]

    def __fspath__(self) -> str:
        left = self.client.restore("", lambda far: None).left
        assert not left
        return str(self)


@pytest.fixture(scope="module", params=["cached", "in flight", "moved"])
def one_mount(request: pytest.FixtureRequest) -> Iterator[CachedFiles]:
    """A mount that all tests of one kind share."""
    waits, moves = request.param != "in flight", request.param == "moved"
    with (
        mounted(
            "Media", copying={"bandwidth": None if waits else SLOWLY}, cache={"mode": "move" if moves else "copy"}
        ) as (running, base),
        running.client() as client,
    ):
        yield CachedFiles(running.mountpoint, base / "Media", running, client, waits, moves)


@pytest.fixture
def files(one_mount: CachedFiles, request: pytest.FixtureRequest) -> Iterator[CachedFiles]:
    """A folder of the test's own in the shared mount."""
    name = re.sub(r"\W", "_", request.node.name)
    one_mount.mkdir(name)
    here, there = one_mount.folder / name, _behind(one_mount, name)
    made = replace(one_mount, folder=here, behind=there, writers={}, readers=[])
    try:
        yield made
        made.check_readers()
    finally:
        for reader in made.readers:
            os.close(reader)
        shutil.rmtree(made.folder)


def _behind(one_mount: CachedFiles, name: str) -> Path:
    Home.client = one_mount.client
    return Home(one_mount.behind / name) if one_mount.moves else one_mount.behind / name


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if each.__name__ not in UNCACHED], ids=lambda scenario: scenario.__name__
)
def test_of_cached_files(scenario: Scenario, files: CachedFiles) -> None:
    if not files.moves or any(word in scenario.__name__ for word in MOVED):
        scenario(files)


def test_most_of_them_were_read_by_the_kernel_itself(one_mount: CachedFiles) -> None:
    """Of the kept readers, that is: a scenario has one or two."""
    opens = one_mount.client.status().reads.kernel_opens
    assert opens > len(SCENARIOS) / 2 if one_mount.waits else opens >= 0
