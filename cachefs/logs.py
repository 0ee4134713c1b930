"""Where log lines go: stderr, one line each, as journald and Docker expect them.

Started by mount(8), cachefs goes on when that has ended; from then on its lines go to the system's log.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from logging.handlers import SysLogHandler

_QUIET = ("hypercorn", "httpx", "httpcore", "urllib3", "requests", "plexapi", "trio_websocket", "pyfuse3")

DETACHED = "CACHEFS_DETACHED"
WHEN_READY, NOW = "when-ready", "now"
_SYSTEM_LOG = "/dev/log"


class _OneLine(logging.Formatter):
    """A file's name may hold a newline or a terminal's escape sequences: a line of the log is one line of text."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def set_up(verbose: bool = False) -> None:
    """Log to stderr; libraries only what is a warning. Under systemd the journal has the time already."""
    timed = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{timed}%(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    if os.environ.get(DETACHED) == NOW:
        handler = _system_log()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("cachefs").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def detach(environ: MutableMapping[str, str]) -> None:
    """Let go of the terminal or pipe that cachefs was started with, if it was started to do so."""
    if DETACHED not in environ:
        return
    environ[DETACHED] = NOW
    logging.getLogger().handlers[:] = [_system_log()]
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def _system_log() -> logging.Handler:
    """On a machine without one, nobody is told."""
    if not os.path.exists(_SYSTEM_LOG):
        return logging.NullHandler()
    handler = SysLogHandler(_SYSTEM_LOG, SysLogHandler.LOG_DAEMON)
    handler.ident = f"cachefs[{os.getpid()}]: "
    handler.setFormatter(_OneLine("%(levelname)s %(message)s"))
    return handler
