"""``cachefs mount`` as seen from outside: a small process that never touches a source, and its child, the server.

A thread in a hung disk call makes its process immortal, and the process's mount hangs rather than fails. So the one
that the user's shell, systemd or Docker waits for must be another: the keeper passes SIGTERM and SIGINT on, ends with
0 once the mount is gone whatever threads are stuck, and clears the mount and starts the server again when that dies.

Plain blocking code without trio: signals, one pipe, one child.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cachefs import lifeline, logs, mounts, place, secrecy
from cachefs.announce import Announcer
from cachefs.config import Config, load
from cachefs.errors import UserError
from cachefs.processes import code_of_the_dead

log = logging.getLogger(__name__)

STOP_WITHIN_S = 4.0
"""From SIGTERM to the moment when the keeper takes the mount away itself; Docker kills after 10 s."""
CLEAR_WITHIN_S = 0.8
"""For taking a mount away: together with the above, less than five seconds from SIGTERM to the end."""
_RESTART_AFTER_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_ENDS_WITHIN_S = 1.0
"""From GONE to the end of a server that nothing holds up."""
_REAPED_WITHIN_S = 0.2
"""From the end of its first thread to that of a process of which no thread hangs."""
_KILLED = 1
_STEADY_S = 60.0
"""A server that ran so long did not fail at its start: begin again with the first delay."""
_ARENAS = {"MALLOC_ARENA_MAX": "2"}
"""For the server, unless the environment says otherwise. By itself glibc has a heap for every thread, up to eight for
each processor, and never makes them smaller. Measured after 20 minutes with 200 readers on two: 16 heaps of 4 MiB."""


@dataclass(slots=True)
class _Server:
    """One run of the server."""

    process: subprocess.Popen[bytes]
    pipe: int
    words: set[str] = field(default_factory=set)
    heard: bytes = b""
    pipe_open: bool = True
    started_at: float = field(default_factory=time.monotonic)
    gone_at: float = math.inf

    @property
    def was_ready(self) -> bool:
        return lifeline.Word.READY.value in self.words

    @property
    def was_stopping(self) -> bool:
        return lifeline.Word.STOPPING.value in self.words

    @property
    def is_gone(self) -> bool:
        return lifeline.Word.GONE.value in self.words

    def listen(self) -> None:
        """Take in what the server has said."""
        data = os.read(self.pipe, 4096)
        self.pipe_open = bool(data)
        *lines, self.heard = (self.heard + data).split(b"\n")
        self.words.update(line.decode() for line in lines)
        if self.is_gone:
            self.gone_at = min(self.gone_at, time.monotonic())

    def listen_to_the_end(self) -> None:
        """Take in what a server had said when it ended."""
        while self.pipe_open and select.select([self.pipe], (), (), 0)[0]:
            self.listen()


class Keeper:
    """Runs servers, one after the other, until told to stop."""

    def __init__(self, config_path: Path, config: Config, announcer: Announcer | None = None) -> None:
        self._config_path = config_path
        self._mountpoint = config.mountpoint
        self._kept_full = place.is_kept_full(config)
        self._announcer = announcer or Announcer()
        self._stop_at: float | None = None
        self._failures = 0
        self._was_ready = False
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """The exit code of ``cachefs mount``."""
        with self._signals():
            while True:
                server = self._start()
                code = self._watch(server)
                os.close(server.pipe)
                if code is not None:
                    return code
                self._clear_mount(for_good=False)
                self._wait_before_restart(server)
                if self._stop_at is not None:
                    self._clear_mount(for_good=True)
                    return 0

    def _start(self) -> _Server:
        out, into = os.pipe2(os.O_CLOEXEC)
        environment = {**_ARENAS, **os.environ, lifeline.DESCRIPTOR: str(into), lifeline.KEEPER: str(os.getpid())}
        command = [sys.executable, "-P", "-m", "cachefs", "serve", "-c", str(self._config_path)]
        process = subprocess.Popen(command, env=environment, pass_fds=(into,))
        os.close(into)
        return _Server(process, out)

    def _watch(self, server: _Server) -> int | None:
        """Until the server has ended. An exit code, or None when it is to be started again."""
        while True:
            self._wait(server)
            code = _exit_code(server.process)
            if code is not None:
                server.listen_to_the_end()
                return self._ended(server, code)
            if time.monotonic() >= server.gone_at + _ENDS_WITHIN_S:
                return self._left_behind(server)
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                return self._take_away(server)

    def _wait(self, server: _Server) -> None:
        timeout = 1.0 if self._stop_at is None else max(0.0, self._stop_at - time.monotonic())
        timeout = min(timeout, 0.05) if server.is_gone else timeout
        watched = [self._wake_out, server.pipe] if server.pipe_open else [self._wake_out]
        readable, _, _ = select.select(watched, (), (), min(timeout, 1.0))
        if server.pipe in readable:
            self._listen(server)
        if self._wake_out in readable:
            self._on_signals(server)

    def _listen(self, server: _Server) -> None:
        was_ready = server.was_ready
        server.listen()
        if server.was_ready and not was_ready:
            self._announcer.ready(f"mounted at {self._mountpoint}")

    def _on_signals(self, server: _Server | None) -> None:
        numbers = set(os.read(self._wake_out, 64))
        stopping = sorted(numbers & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        if stopping and self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_WITHIN_S
            self._announcer.stopping()
            if server is not None:
                server.process.send_signal(stopping[0])

    def _ended(self, server: _Server, code: int) -> int | None:
        if self._stop_at is not None:
            self._clear_mount(for_good=True)
            return 0
        if code == 0 and server.is_gone:
            return 0
        if server.was_stopping:
            self._clear_mount(for_good=True)
            return self._judge(code)
        if server.was_ready:
            log.warning("the server ended with %s; it is started again", _how(code))
        elif self._was_ready:
            log.warning("the server could not start again: it ended with %s; trying until it can", _how(code))
        else:
            return self._judge(code)
        self._announcer.status(f"the server ended with {_how(code)}; starting it again")
        self._was_ready = True
        return None

    def _judge(self, code: int) -> int:
        """The exit code for that of a server which is not started again."""
        if code >= 0:
            return code  # it has said why
        log.warning("the server ended with %s; dmesg says whether the machine was out of memory", _how(code))
        return _KILLED

    def _left_behind(self, server: _Server) -> int:
        """The server has given everything up, but does not end."""
        log.warning("process %s has unmounted and does not end: it is left behind", server.process.pid)
        server.process.kill()
        return 0

    def _take_away(self, server: _Server) -> int:
        log.warning("the server did not stop within %g s; taking the mount away", STOP_WITHIN_S)
        server.process.kill()
        self._clear_mount(for_good=True)
        return 0

    def _clear_mount(self, for_good: bool) -> None:
        """In a child of its own: where the mountpoint lies on a disk that hangs, the way to it hangs as well."""
        child = os.fork()
        if child == 0:
            try:
                self._unmount(for_good)
            finally:
                os._exit(0)
        number = os.pidfd_open(child)
        try:
            if select.select([number], (), (), CLEAR_WITHIN_S)[0]:
                os.waitpid(child, 0)
            else:
                log.warning("unmounting %s hangs; process %s goes on trying", self._mountpoint, child)
        finally:
            os.close(number)

    def _unmount(self, for_good: bool) -> None:
        """In place the slow files are below it. Elsewhere it is left to the next server, which puts its own there."""
        try:
            mount = mounts.mounted_at(self._mountpoint)
            if self._kept_full and not for_good:
                mounts.abort(self._mountpoint)
            elif self._kept_full:
                place.take_away(self._mountpoint, force=True)
            elif mount is not None and mount.is_cachefs:
                mounts.unmount(self._mountpoint, force=True)
        except UserError as error:
            log.warning("%s", error)

    def _wait_before_restart(self, server: _Server) -> None:
        if time.monotonic() - server.started_at > _STEADY_S:
            self._failures = 0
        delay = _RESTART_AFTER_S[min(self._failures, len(_RESTART_AFTER_S) - 1)]
        self._failures += 1
        if select.select([self._wake_out], (), (), delay)[0]:
            self._on_signals(None)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become bytes in a pipe; SIGCHLD only wakes."""
        numbers = (*lifeline.stop_signals(), signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """As ``poll``, but a process whose first thread has ended counts as ended.

    While another thread of it hangs in a disk call it cannot be waited for, and if it was killed its mount hangs too.
    """
    code = process.poll()
    if code is not None:
        return code
    code = code_of_the_dead(process.pid)
    if code is None:
        return None
    try:
        return process.wait(_REAPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        log.warning("a disk call still hangs in process %s; it ends when the disk answers", process.pid)
        return code


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run(config_path: Path, announcer: Announcer) -> int:
    """``cachefs mount``: keep a server running until a signal ends it; its exit code. Raises ``ConfigError``."""
    secrecy.leave_no_core()
    logs.set_up()
    if config_path.is_fifo():
        raise UserError(f"{config_path} is a pipe, and each server that is started reads the configuration: use a file")
    return Keeper(config_path, load(config_path, os.environ), announcer).run()
