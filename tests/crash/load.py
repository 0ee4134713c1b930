"""All actors at once, over one mount, from the moment it is there until it is dead."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from cachefs.errors import CachefsError
from tests.crash.actors import Actor, Commander, Counts, Outside, Reader, Writer, is_death
from tests.crash.failures import Lost
from tests.crash.journal import short
from tests.crash.outsider import Outsider
from tests.crash.stage import Stage

ENDS_WITHIN_S = 30.0
_READERS = 2


@dataclass(slots=True)
class _Run:
    """One actor's life under one mount."""

    actor: Actor
    error: Exception | None = None
    thread: threading.Thread = field(init=False)


class Load:
    """``begin`` and ``end`` take turns, from one thread."""

    def __init__(self, stage: Stage) -> None:
        self.outsider = Outsider(stage)
        self.writers = [Writer(stage, number) for number in range(stage.writers)]
        self.commander = Commander(stage)
        readers = [Reader(stage, number, self.outsider) for number in range(_READERS)]
        self._actors: Sequence[Actor] = (*self.writers, *readers, self.commander, Outside(self.outsider))
        self._mountpoint = stage.mountpoint
        self._stop = threading.Event()
        self._runs: list[_Run] = []
        self._root = -1

    def begin(self) -> None:
        self._stop.clear()
        self._root = os.open(self._mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        self._runs = [_Run(actor) for actor in self._actors]
        for run in self._runs:
            run.thread = threading.Thread(target=self._act, args=(run,), daemon=True)
            run.thread.start()

    def stop(self) -> None:
        """Let nobody begin anything any more. Whoever waits for a dead mount is freed when that is cleared."""
        self._stop.set()

    def meddle(self, times: int) -> None:
        """Change files at the source after ``stop``, while cachefs is dead."""
        for run in self._runs:
            if isinstance(run.actor, Outside):
                run.thread.join(ENDS_WITHIN_S)
        for _ in range(times):
            self.outsider.act()

    def end(self, *, died: bool) -> None:
        """Stop everybody. Raises ``Lost`` for what somebody saw; errors of a dead mount are fine if it ``died``."""
        self.stop()
        for run in self._runs:
            run.thread.join(ENDS_WITHIN_S)
            if run.thread.is_alive():
                raise Lost(f"a call of {type(run.actor).__name__} hangs although cachefs runs again")
        os.close(self._root)
        for run in self._runs:
            if run.error is not None and not (died and is_death(run.error)):
                raise Lost(f"{_who(run.actor)}: {run.error!r}") from run.error

    @property
    def troubled(self) -> bool:
        """Whether somebody had to stop."""
        return any(run.error is not None for run in self._runs)

    def counts(self) -> Counts:
        total = Counts()
        for actor in self._actors:
            total.files += actor.counts.files
            total.bytes += actor.counts.bytes
            total.changes += actor.counts.changes
            total.commands += actor.counts.commands
        return total

    def _act(self, run: _Run) -> None:
        while not self._stop.is_set():
            try:
                run.actor.act(self._root)
            except (OSError, CachefsError, Lost) as error:
                run.error = error
                return


def _who(actor: Actor) -> str:
    if isinstance(actor, Writer):
        return f"the writer of {actor.folder}, in {short(actor.journal.in_flight)}"
    return f"a {type(actor).__name__.lower()}"
