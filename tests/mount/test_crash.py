"""A short run of ``make crash``: a working cachefs is killed a few times, and nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.crash.failpoints import Moment
from tests.crash.lives import Victim
from tests.crash.recovering import LEFTOVERS, measure
from tests.crash.rig import Rig
from tests.crash.rounds import Mishap, Strike
from tests.crash.stage import build

SEED = 20
STRIKES = (
    Strike(Victim.SERVER, step="folder.Folder.rename", moment=Moment.AFTER),
    Strike(Victim.BOTH, step="index.Index.delete", moment=Moment.AFTER),
    Strike(Victim.BOTH, after_s=0.5, mishap=Mishap.LOST_INDEX),
)


def test_nothing_is_lost_when_cachefs_is_killed_at_work() -> None:
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:  # a socket's address holds 107 bytes
        rig = Rig(build(Path(folder), SEED, files=10, writers=2))
        result = rig.run(STRIKES)
        assert not result.loss, result.loss
        assert set(result.steps) == {(strike.step, strike.moment) for strike in STRIKES if strike.step}
        assert rig.load.counts().changes > 0
        assert result.audited.files > len(STRIKES) * 20


def test_recovery_costs_about_what_looking_at_the_files_does(tmp_path: Path) -> None:
    """2 s for 10,000 entries is the promise; a machine that is busy with other tests says nothing about it."""
    measured = measure(tmp_path, entries=1_000)
    assert measured.found.kept == 1_000
    assert (measured.found.rows_dropped, measured.found.files_removed) == (LEFTOVERS, LEFTOVERS)
    assert measured.took_s < max(2.0, 40 * measured.listing_s)
