"""File systems that are mounted below a source's folder, and whether each of them is there.

Where one is lost, what is left in its place is an empty folder, another file system, or no name at all: that part of
the source is *missing* then, until it is back or accepted. Used in the source's threads by whatever goes through a
folder (``folders``, ``reach``); ``roots`` keeps it up to date. Decides nothing about what is shown meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from cachefs import mounts
from cachefs.errors import SourceError
from cachefs.fs import devices

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How folders are opened: as a place only, which needs no right to read them."""
_COME_AND_GO = frozenset({"autofs", "nfs", "nfs4", "cifs", "smb3", "afs"})
"""Below these, mounts are made when somebody goes there, and taken away when nobody did for a while."""
_NOTHING = "what was mounted there is not any more"
_ANOTHER = "another file system is mounted there than before"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a file system is known by; ``ino`` is its own folder's number, None where these do not last."""

    identity: str
    ino: int | None


class Nested:
    """Those of one source, by their paths below it. Thread-safe: what is shared is replaced as a whole."""

    def __init__(self, lost: Callable[[str], object] = lambda _: None) -> None:
        """``lost`` is told of what is found missing: nobody may go on in what was mounted there."""
        self._tell_lost = lost
        self.marks: dict[str, Mark] = {}
        self.missing: dict[str, str] = {}
        """Why each of them is, as far as somebody has looked."""
        self._right: dict[str, tuple[int, int]] = {}

    def begin(self, saved: bytes) -> None:
        """As ``saved`` has it."""
        self.marks = {path: Mark(*mark) for path, mark in json.loads(saved or b"{}").items()}

    def saved(self) -> bytes:
        return json.dumps({path: astuple(mark) for path, mark in self.marks.items()}).encode()

    @property
    def problem(self) -> str:
        """What is missing and why; empty when nothing is."""
        return "; ".join(f"{path} is missing: {why}" for path, why in sorted(self.missing.items()))

    def are_in(self, folder: str) -> bool:
        """Whether anything is mounted in this folder itself."""
        return any(path.rpartition("/")[0] == folder for path in self.marks)

    def accept(self) -> list[str]:
        """What is missing is so from now on; returns it."""
        gone = list(self.missing)
        self.marks = {path: mark for path, mark in self.marks.items() if path not in gone}
        self.missing = {}
        return gone

    # --- in the source's threads ---

    def open(self, folder: int, path: str) -> int:
        """Open the folder at ``path``, a name in the open ``folder``, as a place. Raises SourceError where it is a
        mountpoint that has lost what was mounted there."""
        try:
            place = os.open(path.rpartition("/")[2], FOLDER, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            if path in self.marks:
                raise self._lost(path, _NOTHING) from error
            raise
        try:
            self._check(path, place, folder)
        except OSError:
            os.close(place)
            raise
        return place

    def _check(self, path: str, place: int, above: int) -> None:
        mark = self.marks.get(path)
        if mark is None:
            return
        seen = os.fstat(place)
        if self._right.get(path) != (seen.st_dev, seen.st_ino):
            if _mark(place) != mark:
                same = seen.st_dev == os.fstat(above).st_dev
                raise self._lost(path, _NOTHING if same else _ANOTHER)
            self._right[path] = (seen.st_dev, seen.st_ino)
        if path in self.missing:
            self.missing = {other: why for other, why in self.missing.items() if other != path}

    def _lost(self, path: str, why: str) -> SourceError:
        if path not in self.missing:
            self._tell_lost(path)
        self.missing = {**self.missing, path: why}
        return SourceError(errno.EIO, f"{path} is missing: {why}")

    def vouch(self, folder: int, path: str) -> None:
        """As ``open``, for a name that need be no folder: most are none that anything is mounted on."""
        if path in self.marks:
            os.close(self.open(folder, path))

    def vouch_in(self, folder: int, path: str) -> None:
        """The same for everything that is mounted in this open folder itself."""
        for mounted in self.marks:
            if mounted.rpartition("/")[0] == path:
                self.vouch(folder, mounted)

    def forget_right(self) -> None:
        """Mounts have changed: device numbers may be others' by now."""
        self._right = {}

    def add(self, path: str, place: int) -> None:
        """This is mounted at ``path``."""
        self.marks = {**self.marks, path: _mark(place)}


def _mark(place: int) -> Mark:
    device = devices.identify(place)
    return Mark(device.identity, os.fstat(place).st_ino if device.filesystem is not None else None)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What is mounted below a folder by the mount table; the latest of several at one path counts."""

    ids: dict[str, int]
    come_and_go: tuple[str, ...]
    """Where mounts are made and taken away by themselves, below these."""

    def goes_by_itself(self, path: str) -> bool:
        return any(not above or path == above or path.startswith(f"{above}/") for above in self.come_and_go)


def mounted_below(root: int) -> Mounted:
    """Reads the mount table only, and wakes no disk."""
    top = os.readlink(f"/proc/self/fd/{root}").rstrip("/")
    table = [mount for mount in mounts.all_now() if not mount.is_cachefs]
    ids: dict[str, int] = {}
    come_and_go: list[str] = []
    holding = mounts.holding(table, Path(top or "/"))
    if holding is not None and holding.fstype in _COME_AND_GO:
        come_and_go.append("")
    for mount in table:
        path = os.fspath(mount.path)
        if not path.startswith(f"{top}/") or path == f"{top}/":
            continue
        if mount.fstype in _COME_AND_GO:
            come_and_go.append(path[len(top) + 1 :])
        if mount.fstype != "autofs":
            ids[path[len(top) + 1 :]] = mount.id
    return Mounted(ids, tuple(come_and_go))
