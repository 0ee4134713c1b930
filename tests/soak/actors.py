"""Who is busy in the mount besides the crash rig's actors: viewers at a viewer's pace, new folders all the time, and
whoever asks cachefs how it is."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Mapping, Sequence

from cachefs.control.client import Client
from cachefs.errors import NotRunning, UserError
from tests.crash.actors import Counts, Writer, read
from tests.crash.content import content, difference
from tests.crash.failures import Lost
from tests.crash.journal import Tree
from tests.crash.stage import KIB, Stage

PIECE = 128 * KIB
STATE = b"user.cachefs.state"


class Viewer:
    """Has one file open for a while, reads on or skips, and compares every byte."""

    def __init__(self, stage: Stage, number: int, stop: threading.Event, pause_s: float) -> None:
        self.counts = Counts()
        self._library: Mapping[str, bytes] = stage.library
        self._names = sorted(stage.library)
        self._chance = random.Random(f"{stage.seed}/viewer {number}")
        self._stop = stop
        self._pause_s = pause_s

    def act(self, root: int) -> None:
        name = self._chance.choice(self._names)
        right = self._library[name]
        number = os.open(name, os.O_RDONLY, dir_fd=root)
        try:
            self._watch(number, name, right)
        finally:
            os.close(number)
        self.counts.files += 1

    def _watch(self, number: int, name: str, right: bytes) -> None:
        place = 0 if self._chance.random() < 0.7 else self._chance.randrange(len(right))
        while place < len(right) and not self._stop.is_set():
            found = os.pread(number, PIECE, place)
            if wrong := difference(found, right[place : place + PIECE]):
                raise Lost(f"{name} from byte {place} on: {wrong}")
            self.counts.bytes += len(found)
            place += len(found)
            if self._chance.random() < 0.05:
                place = self._chance.randrange(len(right))
            self._stop.wait(self._chance.expovariate(1 / self._pause_s))


class FrugalWriter(Writer):
    """Remembers no bytes of files that are gone."""

    def act(self, root: int) -> None:
        super().act(root)
        tree = self.journal.tree
        named = set(tree.names.values())
        if len(tree.contents) > 2 * len(named) + 8:
            self.journal.tree = Tree(tree.names, {number: tree.contents[number] for number in named})


class Passer:
    """Makes a folder whose name was never there before, uses it, renames it, and takes it away."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.counts = Counts()
        self._seed = stage.seed
        self._socket = stage.socket
        self._mountpoint = stage.mountpoint
        self._chance = random.Random(f"{stage.seed}/passer {number}")
        self._number = number
        self._runs = 0

    def act(self, root: int) -> None:
        self._runs += 1
        old = f"{stage_folder(self._number)}/run {self._runs}"
        os.mkdir(old, dir_fd=root)
        files = {f"film {self._runs}-{each}.mkv": self._content(each) for each in range(3)}
        for name, data in files.items():
            self._write(root, f"{old}/{name}", data)
        with Client(self._socket) as client:
            self._copy(client, f"{old}/{next(iter(files))}")
        self._compare(root, old, files)
        new = f"{old} renamed"
        os.rename(old, new, src_dir_fd=root, dst_dir_fd=root)
        self._compare(root, new, files)
        shutil.rmtree(new, dir_fd=root)
        self.counts.changes += 6

    def _content(self, each: int) -> bytes:
        return content(self._seed, f"passing {self._number}", 10 * self._runs + each, self._chance.randrange(200 * KIB))

    def _write(self, root: int, name: str, data: bytes) -> None:
        number = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=root)
        with open(number, "wb") as file:
            file.write(data)

    def _copy(self, client: Client, name: str) -> None:
        try:
            client.copy(name)
        except NotRunning:
            raise
        except UserError:
            return  # no room for it just now

    def _compare(self, root: int, folder: str, files: Mapping[str, bytes]) -> None:
        if (found := sorted(_listed(root, folder))) != sorted(files):
            raise Lost(f"{folder} holds {found} instead of {sorted(files)}")
        for name, data in files.items():
            if wrong := difference(read(f"{folder}/{name}", root), data):
                raise Lost(f"{folder}/{name}: {wrong}")
            self.counts.files += 1


class Walker:
    """Looks around as a scan does: every folder and attribute, names that are not there, extended attributes."""

    def __init__(self, stage: Stage) -> None:
        self.counts = Counts()
        self._names = sorted(stage.library)
        self._chance = random.Random(f"{stage.seed}/walker")
        self._looks = 0

    def act(self, root: int) -> None:
        for folder in {os.path.dirname(name) for name in self._names}:
            for name in _listed(root, folder):
                os.stat(f"{folder}/{name}", dir_fd=root)
        self._looks += 1
        name = self._chance.choice(self._names)
        try:
            os.stat(f"{name}.{self._looks}.srt", dir_fd=root)
        except FileNotFoundError:
            pass
        else:
            raise Lost(f"{name}.{self._looks}.srt is there, and nobody made it")
        number = os.open(name, os.O_RDONLY, dir_fd=root)
        try:
            os.getxattr(number, STATE)
        finally:
            os.close(number)
        self.counts.files += 1


class Asker:
    """Asks what people ask cachefs."""

    def __init__(self, stage: Stage) -> None:
        self.counts = Counts()
        self._socket = stage.socket
        self._names = sorted(stage.library)
        self._chance = random.Random(f"{stage.seed}/asker")

    def act(self, root: int) -> None:
        with Client(self._socket) as client:
            what = self._chance.randrange(5)
            if what == 0:
                client.plan()
            elif what == 1:
                client.entries()
            elif what == 2:
                client.verify("", content=False, repair=False, show=lambda _: None)
            elif what == 3:
                client.explain(self._chance.choice(self._names))
            else:
                client.status()
        self.counts.commands += 1


def stage_folder(number: int) -> str:
    """Where a ``Passer`` is."""
    return f"passing-{number}"


def _listed(root: int, folder: str) -> Sequence[str]:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    try:
        return os.listdir(number)
    finally:
        os.close(number)
