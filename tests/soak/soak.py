"""One soak: warm-up, rest, the load, rest, and the comparison of both rests. Leaves nothing mounted and no process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.control.client import Client
from cachefs.errors import CachefsError, UserError
from cachefs.mounts import mounted_at, unmount
from tests.bench.forgetting import forget_names
from tests.crash.actors import Actor, Commander, Counts, Outside, Reader
from tests.crash.failures import Lost
from tests.crash.outsider import Outsider
from tests.crash.stage import Stage
from tests.soak import figures
from tests.soak import stage as scenery
from tests.soak.actors import Asker, FrugalWriter, Passer, Viewer, Walker, stage_folder
from tests.soak.figures import Sample
from tests.soak.people import People
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.running import RunningCachefs, start_cachefs

ENDS_WITHIN_S = 60.0
REST_S = 1.0
RESTS_WITHIN_S = 240.0
_PASSERS = 2
_SHARP_EYES = 10
"""Every so many readers, one reads what is changed behind the mount."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for on the command line."""

    seconds: float
    warm_up_s: float
    readers: int
    seed: int
    pause_s: float
    every_s: float = 3.0
    looks_at_rest: int = 15
    """So many, ``REST_S`` apart, that show no difference: idle descriptors and threads are given up within less."""


@dataclass(slots=True)
class Outcome:
    """What a soak has shown. ``wrong``: what nobody may see; ``grown``: of what there is more than before."""

    before: Sample | None = None
    after: Sample | None = None
    samples: list[Sample] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    wrong: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """An actor, and how long it rests between two acts."""

    actor: Actor
    rest_s: float


class Soak:
    """Use from one thread."""

    def __init__(
        self, stage: Stage, wishes: Wishes, stop: threading.Event, tell: Callable[[str, Sample], None]
    ) -> None:
        self.outcome = Outcome()
        self._stage = stage
        self._wishes = wishes
        self._stop = stop
        self._tell = tell
        self._began = time.monotonic()
        self._over = threading.Event()
        """Ends one load; the actors look at it."""

    def run(self) -> Outcome:
        """All of it, or until something is wrong, or until ``stop`` is set."""
        for number in range(_PASSERS):
            (self._stage.source / stage_folder(number)).mkdir()
        with run_stand_in_plex() as plex:
            people = People(self._wishes.seed, plex, *scenery.put_in_plex(self._stage, plex))
            log = self._stage.folder / "cachefs.log"
            running = start_cachefs(self._stage.folder / "cachefs.yaml", log, scenery.settings(self._stage, plex))
            try:
                self._act(running, plex, people)
            except (Lost, CachefsError, OSError) as error:
                self.outcome.wrong.append(str(error) or repr(error))
            finally:
                self._over.set()
                running.remove()
        self._look_behind(log)
        return self.outcome

    def _act(self, running: RunningCachefs, plex: StandInPlex, people: People) -> None:
        parts = self._parts(people)
        commander = next(part.actor for part in parts if isinstance(part.actor, Commander))
        self._load(running, parts, self._wishes.warm_up_s, "warm-up")
        self._go_home(people, commander)
        self.outcome.before = self._rest(running, "at rest")
        self.outcome.samples = self._load(running, parts, self._wishes.seconds, "under load")
        self._go_home(people, commander)
        self.outcome.after = self._rest(running, "at rest")
        for part in parts:
            self.outcome.counts.files += part.actor.counts.files
            self.outcome.counts.bytes += part.actor.counts.bytes
            self.outcome.counts.changes += part.actor.counts.changes
            self.outcome.counts.commands += part.actor.counts.commands
        if not self._stop.is_set():
            self._judge(running)

    def _judge(self, running: RunningCachefs) -> None:
        if self.outcome.before is not None and self.outcome.after is not None:
            self.outcome.grown += figures.grown(self.outcome.before, self.outcome.after)
        self.outcome.grown += figures.growing(self.outcome.samples)
        full = max((sample.used_bytes for sample in self.outcome.samples), default=0)
        if full > scenery.CACHE_BYTES and self._stage.mode == "copy":  # moved files grow as their writers like
            self.outcome.wrong.append(f"the cache held {full} bytes, and may hold {scenery.CACHE_BYTES}")
        verified = running.run("verify", "--content", timeout_s=600)
        if verified.returncode:
            self.outcome.wrong.append(f"cachefs verify: {verified.stdout}{verified.stderr}")

    # --- the load -----------------------------------------------------------------------------------------------------

    def _parts(self, people: People) -> list[Part]:
        stage, pause_s = self._stage, self._wishes.pause_s
        outsider = Outsider(stage)
        parts = [Part(FrugalWriter(stage, number), 0.1) for number in range(stage.writers)]
        parts += [Part(Passer(stage, number), 0.3) for number in range(_PASSERS)]
        parts += [Part(Commander(stage), 0.2), Part(Asker(stage), 1.0), Part(Walker(stage), 1.0)]
        parts += [Part(Outside(outsider), 0.3), Part(people, 0.4)]
        for number in range(self._wishes.readers):
            if number % _SHARP_EYES == _SHARP_EYES - 1:
                parts.append(Part(Reader(stage, number, outsider), 4 * pause_s))
            else:
                parts.append(Part(Viewer(stage, number, self._over, pause_s), pause_s))
        return parts

    def _load(self, running: RunningCachefs, parts: list[Part], seconds: float, name: str) -> list[Sample]:
        """Everybody acts for so long. Raises what an actor has met."""
        samples = []
        troubles: list[str] = []
        self._over.clear()
        root = os.open(self._stage.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        threads = [threading.Thread(target=self._play, args=(part, root, troubles), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        try:
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at and not troubles and not self._stop.wait(self._wishes.every_s):
                samples.append(self._look(running))
                self._tell(name, samples[-1])
        finally:
            self._over.set()
            deadline = time.monotonic() + ENDS_WITHIN_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                os.close(root)
        if any(thread.is_alive() for thread in threads):
            troubles.append(f"a call in the mount did not end within {ENDS_WITHIN_S:g} s")
        if troubles:
            raise Lost("; ".join(troubles[:3]))
        return samples

    def _play(self, part: Part, root: int, troubles: list[str]) -> None:
        while not self._over.is_set():
            try:
                part.actor.act(root)
            except (OSError, CachefsError, Lost) as error:
                troubles.append(f"{type(part.actor).__name__}: {error!r}")
                return
            self._over.wait(part.rest_s)

    def _go_home(self, people: People, commander: Actor) -> None:
        """Nobody wants anything any more."""
        people.go_home()
        if isinstance(commander, Commander):
            with Client(self._stage.socket) as client:
                for name in sorted(commander.pinned):
                    _unpin(client, name)
            commander.pinned.clear()

    # --- looks --------------------------------------------------------------------------------------------------------

    def _rest(self, running: RunningCachefs, name: str) -> Sample:
        """Let the kernel forget its names, and wait until nothing comes or goes any more."""
        samples: list[Sample] = []
        deadline = time.monotonic() + RESTS_WITHIN_S
        while not self._stop.wait(REST_S):
            forget_names(self._stage.mountpoint)
            samples.append(self._look(running))
            self._tell(name, samples[-1])
            looks = self._wishes.looks_at_rest
            if len(samples) >= looks and figures.alike(samples[-looks:]):
                break
            if time.monotonic() > deadline:
                raise Lost(f"cachefs does not come to rest within {RESTS_WITHIN_S:g} s: {samples[-3:]}")
        return samples[-1] if samples else self._look(running)

    def _look(self, running: RunningCachefs) -> Sample:
        status = running.status()
        ssd = self._stage.ssd
        return Sample(
            at_s=time.monotonic() - self._began,
            server=figures.held(status.pid),
            keeper=figures.held(running.process.pid),
            entries=status.entries_cached + status.entries_copying,
            backing_files=status.backing_files,
            open_files=len(status.open_files),
            used_bytes=status.space.used_bytes,
            index_bytes=sum(path.stat().st_size for path in _databases(ssd)),
        )

    def _look_behind(self, log: Path) -> None:
        """What must not be left, and what must not be in the log."""
        while mounted_at(self._stage.mountpoint) is not None:
            self.outcome.wrong.append("something was still mounted")
            unmount(self._stage.mountpoint, force=True)
        lines = log.read_text(errors="backslashreplace").splitlines()
        bad = [line for line in lines if " ERROR " in line or " CRITICAL " in line or "Traceback" in line]
        if bad:
            self.outcome.wrong.append(f"cachefs's log: {bad[0]}")


def _databases(ssd: Path) -> list[Path]:
    return [path for path in ssd.iterdir() if ".sqlite" in path.name]


def _unpin(client: Client, name: str) -> None:
    try:
        client.unpin(name)
    except UserError:
        return  # its file is gone
