"""Where the command line's output goes, and what happens when nobody reads it any more.

Called by ``cli`` only, which alone decides what is printed. Without a terminal nothing is wrapped or cut, so that
paths can be piped on; characters that the stream's encoding lacks are escaped rather than refused.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType

from cachefs.errors import UserError

_UNWRAPPED = 100_000
"""Columns without a terminal: more than any path (4096 bytes) with its reasons."""
_CHUNK_CHARS = 16 * 1024


class NobodyReads(Exception):
    """Standard output was closed by its reader (``cachefs ls | head``)."""


def prepare() -> None:
    """Let both streams carry any name, and stand in for those that the caller has closed."""
    _hold_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stand_somewhere() -> None:
    """Relative paths need a folder to begin at: whoever's own was removed stands at the root."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def _hold_standard_streams() -> None:
    """Open what is closed of descriptors 0, 1 and 2, in this order: else the next file opened, the index say, becomes
    "standard error", and libraries print into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def console() -> Console:
    """A console that takes text literally: no markup, no emoji, no guesses at what to highlight."""
    width = None if sys.stdout.isatty() else _UNWRAPPED
    return Console(width=width, markup=False, emoji=False, highlight=False)


def rendered(what: RenderableType) -> str:
    """``what`` as text for standard output, without the blanks that fill table cells up."""
    target = console()
    with _told(), target.capture() as captured:  # which writes nothing there, as a write of its own
        target.print(what)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def write(text: str) -> None:
    """Write to standard output, now. Raises ``NobodyReads``, and ``UserError`` where it cannot be written."""
    # With PYTHONUNBUFFERED a write that the closing reader cuts short passes for a whole one; the next one fails.
    with _told():
        for start in range(0, len(text), _CHUNK_CHARS):
            sys.stdout.write(text[start : start + _CHUNK_CHARS])
        sys.stdout.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise NobodyReads from error
    except OSError as error:
        raise UserError(f"the output cannot be written: {error.strerror}") from error


def in_a_child(work: Callable[[], int]) -> int:
    """``work``'s exit code, as soon as it has one. To be called before there are threads.

    A thread that hangs in a disk keeps its process from ending, killed or not: the child is left behind then, and
    holds nothing that anybody waits for.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = work()
        _flush()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # whoever reads our output must not wait for its end
            os.dup2(null, stream)
        os.write(writing, bytes((code,)))
        os._exit(code)
    os.close(writing)
    told = os.read(reading, 1)
    return told[0] if told else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leave(code: int) -> None:
    """End the process although threads may be stuck in a disk: nobody waits for them. Returns only if it must."""
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a caller may have closed one
        try:
            stream.flush()
        except OSError:
            continue  # its reader is gone, or its disk is full: nothing is left to be told, and nobody to tell
