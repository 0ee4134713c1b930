"""Whose the files are that the daemon itself writes, the cache folder and the control socket: ``PUID``, ``PGID`` and
``UMASK``, as containers of this ecosystem take them.

Without them only the daemon's own user can open what it writes. Files made through the mount belong to whoever makes
them, and are no concern of this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cachefs.errors import UserError

_UNCHANGED = -1  # chown(2)


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner of new files, and the rights they lack; without ``umask`` nobody but the owner has any."""

    uid: int = _UNCHANGED
    gid: int = _UNCHANGED
    umask: int = 0o077

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Ownership:
        """As the variables say. Raises ``UserError``."""
        return cls(
            _number(environ, "PUID", 10, _UNCHANGED),
            _number(environ, "PGID", 10, _UNCHANGED),
            _number(environ, "UMASK", 8, 0o077) & 0o077,
        )

    def make_folder(self, path: str | os.PathLike[str], dir_fd: int | None = None) -> None:
        """As mkdir(2)."""
        os.mkdir(path, 0o700, dir_fd=dir_fd)
        if self != _NOBODY_ELSES:
            with _itself(path, dir_fd) as folder:
                self._give(folder, 0o777)

    def give(self, file: int | str | os.PathLike[str], rights: int = 0o666) -> None:
        """A file that was just made and is the daemon's alone, by its descriptor or name; ``rights`` before UMASK. Who
        owns the folder may have put a link in the place of the name: OSError for that."""
        if isinstance(file, int):
            self._give(file, rights)
            return
        with _itself(file) as itself:
            self._give(itself, rights)

    def _give(self, file: int | str, rights: int) -> None:
        os.chmod(file, rights & ~self.umask)
        if self != _NOBODY_ELSES:
            os.chown(file, self.uid, self.gid)


@contextmanager
def _itself(path: str | os.PathLike[str], dir_fd: int | None = None) -> Iterator[str]:
    """A path that leads to what has this name now, and to nothing that gets it later."""
    number = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


_NOBODY_ELSES = Ownership()


def ours() -> Ownership:
    """This process's; an ordinary user's files are the user's."""
    return Ownership.of(os.environ if os.geteuid() == 0 else {})


def _number(environ: Mapping[str, str], name: str, base: int, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text, base)
    except ValueError:
        raise UserError(f"{name}={text} is no number; write it like {'022' if base == 8 else '1000'}") from None
