"""How each kill of a run is done: decided from the seed alone (pure).

Every step gets its kills, before and after, spread over the run; the others come at random moments.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.crash.failpoints import Moment
from tests.crash.lives import Victim


class Phase(enum.Enum):
    """When a step is taken."""

    LOAD = "while it works"
    START = "at a start"
    STOP = "on the way down"


class Mishap(enum.Enum):
    """What happens to the cache folder while cachefs is dead, for the steps that mend it."""

    NONE = "nothing"
    STRAY_FILES = "files without rows"
    ROWS_WITHOUT_FILES = "rows without files"
    LOST_INDEX = "the index is deleted"
    LOST_KEEPSAKE = "the facts that are written down a second time are deleted"
    DAMAGED_INDEX = "the index is damaged"
    FEWER_SOURCES = "a source has gone from the configuration"
    HALF_HOME = "a part of moved files has come home"
    NO_LABELS = "copies from before there were labels"


AT_START = {
    "folder.Folder.take": Mishap.NONE,
    "folder.Folder.remove": Mishap.STRAY_FILES,
    "folder.Folder.prune": Mishap.STRAY_FILES,
    "folder.Folder.label_published": Mishap.NO_LABELS,
    "folder.Folder.set_index_aside": Mishap.DAMAGED_INDEX,
    "index.Index.rebuild": Mishap.LOST_INDEX,
    "index.Index.set_identity": Mishap.FEWER_SOURCES,
    "index.Index.set_labelled": Mishap.NO_LABELS,
    "index.Index.device_tag": Mishap.NONE,
    "inside.refuse_links": Mishap.NONE,
    "keepings.trim": Mishap.HALF_HOME,
}
"""The steps of a start, and what brings them about. Recovery's other steps are those of an eviction, too."""
ALSO_AT_START = {
    "index.Index.delete": Mishap.ROWS_WITHOUT_FILES,
    "inside.unlink": Mishap.STRAY_FILES,
    "keepsake.save": Mishap.LOST_KEEPSAKE,
    "label.write": Mishap.NO_LABELS,
}
AT_STOP = frozenset({"index.Index.close", "folder.Folder.close"})


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill. Without a step: after ``after_s`` of work, of ``victim``."""

    victim: Victim
    after_s: float = 0.0
    step: str = ""
    moment: Moment = Moment.BEFORE
    count: int = 1
    phase: Phase = Phase.LOAD
    mishap: Mishap = Mishap.NONE


def plan(seed: int, kills: int, steps: Sequence[str], *, every_step: bool) -> tuple[Strike, ...]:
    """So many kills, in an order that only the seed decides. Not ``every_step``: half of the kills are at steps, some
    of each phase's."""
    chance = random.Random(f"{seed}/rounds")
    at_steps = list(_at_steps(steps, chance))
    if not every_step:
        at_steps = chance.sample(at_steps, min(kills // 2, len(at_steps)))
    others = [_at_random(chance) for _ in range(max(0, kills - len(at_steps)))]
    strikes = [*at_steps, *others]
    chance.shuffle(strikes)
    return tuple(strikes)


def _at_steps(steps: Iterable[str], chance: random.Random) -> Iterable[Strike]:
    for step in steps:
        for moment in Moment:
            if step in AT_STOP:
                yield Strike(Victim.SERVER, step=step, moment=moment, phase=Phase.STOP)
            elif step in AT_START:
                yield Strike(Victim.SERVER, step=step, moment=moment, phase=Phase.START, mishap=AT_START[step])
            else:
                victim = chance.choice((Victim.SERVER, Victim.BOTH))
                yield Strike(victim, step=step, moment=moment, count=chance.choice((1, 1, 2, 5)))
            if step in ALSO_AT_START:
                mishap = ALSO_AT_START[step]
                yield Strike(Victim.SERVER, step=step, moment=moment, phase=Phase.START, mishap=mishap)


def _at_random(chance: random.Random) -> Strike:
    victim = chance.choices(list(Victim), (4, 1, 4))[0]
    at_any_end = [mishap for mishap in Mishap if mishap is not Mishap.HALF_HOME]  # that is what only a crash leaves
    mishap = (
        chance.choices(at_any_end, [30, *[1] * (len(at_any_end) - 1)])[0]
        if victim is not Victim.SERVER
        else Mishap.NONE
    )
    return Strike(victim, after_s=chance.choice((0.05, 0.2, 0.5, 1.0)) * (0.5 + chance.random()), mishap=mishap)
