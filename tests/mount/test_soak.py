"""A few seconds of ``make soak``: everybody at once, in a cache that is too small, and nobody sees a wrong byte."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from tests.soak.soak import Soak, Wishes
from tests.soak.stage import set_up

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes the kernel forget names"),
]

SEED = 7


def test_everybody_at_once_is_served_right_and_nothing_stays_open() -> None:
    """In move mode, where files are copied before they move. That nothing grows is for the whole run to see."""
    wishes = Wishes(seconds=2.0, warm_up_s=0.5, readers=25, seed=SEED, pause_s=0.02, every_s=0.5, looks_at_rest=1)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:  # a socket's address holds 107 bytes
        outcome = Soak(set_up(Path(folder), SEED, "move"), wishes, threading.Event(), lambda *_: None).run()
    assert not outcome.wrong
    assert outcome.samples
    assert outcome.after is not None
    assert min(outcome.counts.files, outcome.counts.changes, outcome.counts.commands) > 0
