"""Where log lines go: stderr, one line each, as journald and Docker expect them."""

from __future__ import annotations

import logging
import os
import sys

_QUIET = ("hypercorn", "httpx", "httpcore", "urllib3", "requests", "plexapi", "trio_websocket", "pyfuse3")


class _OneLine(logging.Formatter):
    """A file's name may hold a newline or a terminal's escape sequences: a line of the log is one line of text."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def set_up(verbose: bool = False) -> None:
    """Log to stderr; libraries only what is a warning. Under systemd the journal has the time already."""
    timed = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{timed}%(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("cachefs").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
