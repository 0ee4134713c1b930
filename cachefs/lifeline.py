"""What the server tells its keeper, through a pipe made for it.

One word a line. The pipe's end tells the keeper that the server is gone, but for threads that hang in a disk call: such
a process can neither end nor be reaped.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

DESCRIPTOR = "CACHEFS_KEEPER_PIPE"
KEEPER = "CACHEFS_KEEPER_PID"
_PR_SET_PDEATHSIG = 1


class Word(enum.Enum):
    """READY: the mount answers. STOPPING: somebody asked it to end. GONE: unmounted, lock, index and sockets given up;
    only stuck threads may be left."""

    READY = "ready"
    STOPPING = "stopping"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Lifeline:
    """The server's end; without a keeper (``None``) it says nothing."""

    descriptor: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Lifeline:
        text = environ.get(DESCRIPTOR, "")
        return cls(int(text)) if text.isdigit() else cls()

    def say(self, word: Word) -> None:
        """Tell the keeper; a keeper that is gone needs to hear nothing."""
        if self.descriptor is None:
            return
        try:
            os.write(self.descriptor, word.value.encode() + b"\n")
        except BrokenPipeError:
            return


def stop_signals() -> tuple[signal.Signals, ...]:
    """What ends keeper and server: SIGHUP too, which comes when a terminal closes, unless ``nohup`` ignores it."""
    always = (signal.SIGTERM, signal.SIGINT)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


def keeper_is_gone(environ: Mapping[str, str]) -> bool:
    """Whether a SIGTERM came from the kernel, see ``die_with_keeper``."""
    keeper = environ.get(KEEPER, "")
    return keeper.isdigit() and os.getppid() != int(keeper)


def die_with_keeper(environ: Mapping[str, str]) -> None:
    """Get SIGTERM when the keeper dies, so that a mount never outlives the one who would clear it (prctl(2))."""
    keeper = environ.get(KEEPER, "")
    if not keeper.isdigit():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != int(keeper):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
