"""One run: load, kill, start again, audit, and so on through the plan; ends at the first loss.

Everybody who shows what happens gets each round's ``Round``. Leaves nothing mounted and no process, whatever happens.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from cachefs.mounts import mounted_at
from tests.crash import failpoints
from tests.crash.actors import Counts
from tests.crash.audit import audit
from tests.crash.failpoints import Moment, Orders
from tests.crash.failures import Lost
from tests.crash.lives import Lives, Victim
from tests.crash.load import Load
from tests.crash.mishaps import befall
from tests.crash.rounds import Mishap, Phase, Strike
from tests.crash.stage import Stage
from tests.crash.steps import ONLY_MOVING
from tests.standin.running import CachefsFailed

REACHED_WITHIN_S = 6.0
"""How long the load may take to bring a step about, before a kill at any moment counts instead."""
PATIENT_S = 20.0
"""The same, when it did not the first time."""
_MORE_TRIES = 3
_SETTLES_S = 1.0
"""What a start leaves to be done after it."""
_MOST_RESTARTS = 2
"""By one keeper: it waits a second longer each time."""


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one strike. ``reached``: the step that it was for was taken."""

    number: int
    strike: Strike
    reached: bool
    back_s: float


@dataclass(slots=True)
class Result:
    """What a run has done."""

    kills: int = 0
    rounds: list[Round] = field(default_factory=list)
    steps: Counter[tuple[str, Moment]] = field(default_factory=Counter)
    audited: Counts = field(default_factory=Counts)
    power_cuts: int = 0
    loss: str = ""


class Rig:
    """Kills what runs on a stage, as a plan says."""

    def __init__(self, stage: Stage, stop: threading.Event | None = None) -> None:
        self.result = Result()
        self.load = Load(stage)
        self._stage = stage
        self._lives = Lives(stage)
        self._rest = stop or threading.Event()
        self._orders = 0
        self._patience_s = REACHED_WITHIN_S

    def run(self, strikes: Sequence[Strike], tell: Callable[[Round], object] = lambda _: None) -> Result:
        """Until the plan is done, something is lost (``Result.loss``), or somebody has set ``stop``."""
        under_way: Strike | None = None
        try:
            self._lives.start()
            for strike in chain(strikes, self._again(strikes)):
                if self._rest.is_set():
                    break
                under_way = strike
                self.result.rounds.append(self._round(len(self.result.rounds), strike))
                tell(self.result.rounds[-1])
        except (Lost, CachefsFailed) as error:
            self.result.loss = f"round {len(self.result.rounds)}, {under_way}: {error}"
        finally:
            self._lives.end()
        if not self.result.loss:
            self.result.loss = self._left_behind()
        return self.result

    def _again(self, strikes: Sequence[Strike]) -> Iterator[Strike]:
        """What the load had not brought about when it was its turn, with more patience, and in the mode for it: what
        may move is hardly ever only a copy."""
        self._patience_s = PATIENT_S
        for mode in ("copy", "move") * _MORE_TRIES:
            self._lives.modes = (mode,)
            for strike in strikes:
                missed = strike.step and not self.result.steps[strike.step, strike.moment]
                if missed and strike.step.startswith(ONLY_MOVING) == (mode == "move"):
                    yield strike if strike.phase is not Phase.LOAD else replace(strike, victim=Victim.BOTH, count=1)

    def _round(self, number: int, strike: Strike) -> Round:
        self.load.begin()
        try:
            reached = self._strike(strike)
        except BaseException:
            self._lives.end()
            raise
        self.load.stop()
        self.load.meddle(number % 3)
        if strike.mishap is not Mishap.NONE:
            befall(self._stage, strike.mishap)
        if strike.phase is Phase.START:
            reached = self._die_at_start(strike)
        failpoints.withdraw(self._stage.orders)
        back_s = self._lives.revive()
        self.load.end(died=True)
        found = audit(self._stage, self.load)
        self.result.audited.files += found.files
        self.result.audited.bytes += found.bytes
        return Round(number, strike, reached, back_s)

    def _strike(self, strike: Strike) -> bool:
        """Return once whoever is to die is dead. Whether the step was reached, for a strike at one."""
        if strike.phase is Phase.START:
            self._rest.wait(0.2)
            self._kill(Victim.BOTH)
            return False
        if strike.phase is Phase.STOP:
            return self._die_at_stop(strike)
        if strike.step:
            return self._die_at_work(strike)
        self._rest.wait(strike.after_s)
        if self.load.troubled:
            self.load.end(died=False)
        restarts = self._lives.restarts_by_keeper
        alone = strike.victim is Victim.SERVER and restarts < _MOST_RESTARTS and strike.mishap is Mishap.NONE
        self._kill(Victim.SERVER if alone else Victim.BOTH if strike.victim is Victim.SERVER else strike.victim)
        return True

    def _die_at_work(self, strike: Strike) -> bool:
        both = strike.victim is not Victim.SERVER or self._lives.restarts_by_keeper >= _MOST_RESTARTS
        orders = self._order(strike, both=both)
        if self._lives.dies(self._patience_s):
            self._lives.wait_dead(keeper=both)
            return self._carried_out(orders)
        if self.load.troubled:
            self.load.end(died=False)
        self._kill(Victim.BOTH)
        return False

    def _die_at_stop(self, strike: Strike) -> bool:
        self._rest.wait(0.2)
        orders = self._order(strike, both=False)
        self._lives.stop()
        return failpoints.were_carried_out(self._stage.orders, orders) and self._carried_out(orders)

    def _die_at_start(self, strike: Strike) -> bool:
        orders = self._order(strike, both=False)
        try:
            self._lives.start()
        except CachefsFailed:
            if not failpoints.were_carried_out(self._stage.orders, orders):
                raise
            return self._carried_out(orders)
        if self._lives.dies(_SETTLES_S):
            self._lives.wait_dead(keeper=False)
            return self._carried_out(orders)
        self._kill(Victim.BOTH)
        return False

    def _order(self, strike: Strike, *, both: bool) -> Orders:
        self._orders += 1
        orders = Orders(self._orders, strike.step, strike.moment.value, strike.count, both)
        failpoints.give(self._stage.orders, orders)
        return orders

    def _carried_out(self, orders: Orders) -> bool:
        if not failpoints.were_carried_out(self._stage.orders, orders):
            raise Lost("the server died, and nobody had killed it")
        self.result.kills += 1
        self.result.steps[orders.step, Moment(orders.moment)] += 1
        return True

    def _kill(self, victim: Victim) -> None:
        self._lives.kill(victim)
        self.result.kills += 1

    def _left_behind(self) -> str:
        if mounted_at(self._stage.mountpoint) is not None:
            return "something is still mounted"
        lines = self._lives.log.read_text(errors="backslashreplace").splitlines()
        bad = [line for line in lines if " ERROR " in line or " CRITICAL " in line or "Traceback" in line]
        return f"cachefs's log: {bad[0]}" if bad else ""
