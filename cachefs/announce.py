"""Whom the keeper tells how far cachefs is: a service manager, by sd_notify(3), and whoever waits for ``mount`` to end.

One datagram to a socket, one byte into a pipe: nothing here can fail in a way that the mount should notice.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from cachefs import logs

log = logging.getLogger(__name__)

_SOCKET = "NOTIFY_SOCKET"


@dataclass(slots=True)
class Announcer:
    """``address``: of the service manager's socket, empty without one. ``waiting``: the pipe of the one who waits."""

    address: str = ""
    waiting: int | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], waiting: int | None = None) -> Announcer:
        """The address is taken out of the environment: the server is not to speak for the keeper."""
        return cls(environ.pop(_SOCKET, ""), waiting)

    def ready(self, status: str) -> None:
        self._notify("READY=1", f"STATUS={status}")
        if self.waiting is not None:
            logs.detach(os.environ)
            os.write(self.waiting, b"1")
            os.close(self.waiting)
            self.waiting = None

    def status(self, status: str) -> None:
        self._notify(f"STATUS={status}")

    def stopping(self) -> None:
        self._notify("STOPPING=1", "STATUS=unmounting")

    def _notify(self, *lines: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.debug("the service manager cannot be told: %s", error)
