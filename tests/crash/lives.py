"""cachefs of one run, from start to death, as often as it takes. Ends only what it has started, by pid."""

from __future__ import annotations

import enum
import os
import random
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cachefs.errors import CachefsError
from cachefs.mounts import mounted_at, unmount
from tests.crash.failpoints import ENVIRONMENT
from tests.crash.stage import Stage
from tests.standin.running import (
    POLL_S,
    READY_WITHIN_S,
    CachefsFailed,
    RunningCachefs,
    start_cachefs,
    wait_until_ready,
)

PLANT = Path(__file__).parent / "plant"
DIES_WITHIN_S = 20.0


class Victim(enum.Enum):
    """Who gets SIGKILL."""

    SERVER = "the server"
    KEEPER = "the keeper"
    BOTH = "both at once"


class Lives:
    """One cachefs after the other on the same stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._chance = random.Random(f"{stage.seed}/settings")
        self._running: RunningCachefs | None = None
        self._pid = 0
        self.restarts_by_keeper = 0
        """Of the keeper that lives; each is a longer wait for the next."""
        self.modes: Sequence[str] = ("copy", "move")
        """Of the next lives, where the stage tries both."""

    @property
    def log(self) -> Path:
        return self._stage.folder / "cachefs.log"

    @property
    def running(self) -> RunningCachefs:
        if self._running is None:
            raise RuntimeError("cachefs was not started")
        return self._running

    def start(self) -> None:
        """A keeper and a server of its own. ``CachefsFailed``."""
        self._free_ourselves()
        self._running = start_cachefs(
            self._stage.folder / "cachefs.yaml",
            self.log,
            self._stage.settings(self._chance, self.modes),
            variables={ENVIRONMENT: os.fspath(self._stage.orders), "PYTHONPATH": os.fspath(PLANT)},
        )
        self.restarts_by_keeper = 0
        try:
            self._pid = self._running.status().pid
        except CachefsError as error:
            self._running.kill()
            raise CachefsFailed(f"it was ready, and died: {error}\n{self._running.tail()}") from error

    def kill(self, victim: Victim) -> None:
        """SIGKILL, and wait until whoever shall be dead is."""
        if victim is not Victim.SERVER:
            self.running.process.kill()
        if victim is not Victim.KEEPER:
            with suppress(ProcessLookupError):  # a step has killed it just now
                os.kill(self._pid, signal.SIGKILL)
        self.wait_dead(keeper=victim is not Victim.SERVER)

    def stop(self) -> None:
        """SIGTERM to the keeper; the server may die on its way down."""
        self.running.process.send_signal(signal.SIGTERM)
        self.wait_dead(keeper=True)

    def wait_dead(self, *, keeper: bool) -> None:
        """Until the server is dead, and the keeper where that is to die, too.

        A thread that was telling the kernel of a change may wait there for somebody who waits for the server: it ends
        when the dead mount is cleared, and touches nothing of ours any more. Nobody may wait for that here.
        """
        if keeper:
            self.running.process.wait(DIES_WITHIN_S)
        deadline = time.monotonic() + DIES_WITHIN_S
        while not self.dies(POLL_S) and not all(place.startswith("fuse_") for place in self._places()):
            if time.monotonic() > deadline:
                raise CachefsFailed(f"the server {self._pid} does not die: {self._places()}\n{self.running.tail()}")

    def _places(self) -> list[str]:
        """Where in the kernel its threads are, but for the first, which is only waited for; all others are over."""
        tasks = Path(f"/proc/{self._pid}/task")
        places = []
        try:
            if (tasks / str(self._pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                return ["its first thread runs"]
            for task in tasks.iterdir():
                if task.name != str(self._pid):
                    places.append((task / "wchan").read_text())
        except OSError:
            return ["a thread ends just now"]
        return places

    def dies(self, within_s: float) -> bool:
        """Wait for the server's death; False when it lives on."""
        try:
            number = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([number], (), (), within_s)[0])
        finally:
            os.close(number)

    def revive(self) -> float:
        """Wait until the keeper has started a server again, or start both; the seconds that took."""
        began = time.monotonic()
        if self.running.process.poll() is None:
            self.restarts_by_keeper += 1
            self._wait_for_another()
        else:
            self.start()
        return time.monotonic() - began

    def _free_ourselves(self) -> None:
        """Where a remnant of the server keeps the dead mount from answering, a new process of ours would hang before it
        can start anything: it closes its copies of the files that the load has open there. Whoever starts cachefs from
        elsewhere has none, and its start clears the mount itself (``test_lifecycle``)."""
        if self._pid and not self.dies(0):
            unmount(self._stage.mountpoint, force=True)

    def _wait_for_another(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            wait_until_ready(self.running)
            try:
                pid = self.running.status().pid
            except CachefsError:
                pid = self._pid
            if pid != self._pid:
                self._pid = pid
                return
            if time.monotonic() > deadline:
                raise CachefsFailed(f"the keeper has not started another server\n{self.running.tail()}")
            time.sleep(POLL_S)

    def end(self) -> None:
        """Whatever state it is in: no process and no mount is left."""
        if self._running is not None:
            self._running.remove()
        while mounted_at(self._stage.mountpoint) is not None:
            unmount(self._stage.mountpoint, force=True)
