"""Ctrl-C, as a value to wait for: every wait of the demo is a wait for this, too.

The handler only notes it (and is safe at any moment); the demo leaves at its next wait, so that whatever was being
started or ended then is finished, and nothing stays behind.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Somebody asked the demo to end."""


class Stop:
    """Set by a signal, once and for all."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def request(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. The pipe stays readable from now on; the signals that follow find it so."""
        os.write(self._write, b"!")
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def wait(self, seconds: float) -> None:
        """Wait so long, or raise ``Stopped``."""
        readable, _, _ = select.select([self._read], [], [], seconds)
        if readable:
            raise Stopped

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A ``Stop`` that SIGINT, SIGTERM and SIGHUP set; afterwards they do what they did before."""
    stop = Stop()
    before = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
