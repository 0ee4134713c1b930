"""A short run of ``make crash``: a working cachefs is killed a few times, and nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.crash.recovering import ENTRIES, measure
from tests.crash.rig import Rig
from tests.crash.rounds import plan
from tests.crash.stage import build
from tests.crash.steps import all_steps

SEED = 20
KILLS = 4


def test_nothing_is_lost_when_cachefs_is_killed_at_work() -> None:
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:  # a socket's address holds 107 bytes
        rig = Rig(build(Path(folder), SEED, files=10, writers=2))
        result = rig.run(plan(SEED, KILLS, all_steps(), every_step=False))
        assert not result.loss, result.loss
        assert result.kills >= KILLS
        assert rig.load.counts().changes > 0
        assert result.audited.files > KILLS * 20


def test_recovery_of_ten_thousand_entries_costs_about_what_looking_at_their_files_does(tmp_path: Path) -> None:
    """2 s is the promise; what a machine that is busy with other tests takes says nothing about it."""
    measured = measure(tmp_path)
    assert measured.found.kept == ENTRIES
    assert (measured.found.rows_dropped, measured.found.files_removed) == (100, 100)
    assert measured.took_s < max(2.0, 40 * measured.listing_s)
