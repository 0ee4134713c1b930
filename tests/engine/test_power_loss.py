"""The power goes after any call that the cache makes, and whatever the disk has kept, recovery loses nothing.

The recording is of the real store, SQLite included; a recording with a sync left out shows that a loss would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.crash.failures import Lost
from tests.crash.powerloss.recording import Call, Kind, record
from tests.crash.powerloss.replay import SCENARIO, Cut, cuts, examine, quick_folder

SEED = 3
EXAMINED = 150

pytestmark = pytest.mark.expected_warnings("A new one is made from what is on the SSD")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Call, ...]:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "ssd").mkdir()
    return record(folder / "ssd", folder, SCENARIO)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def test_whatever_a_power_cut_leaves_is_recovered(calls: tuple[Call, ...], folder: Path) -> None:
    chosen = random.Random(SEED).sample(list(cuts(calls, SEED, samples=2)), EXAMINED)
    _examine_all(calls, chosen, folder)


def _is_partial(call: Call) -> bool:
    return call.kind is Kind.SYNC and call.path.startswith("partial/")


def _is_name(call: Call) -> bool:
    return call.kind is Kind.SYNC_FOLDER and call.path.startswith(("files", "partial"))


def _is_index(call: Call) -> bool:
    return call.kind is Kind.SYNC and call.path.endswith("-wal")


def _is_keepsake(call: Call) -> bool:
    return call.kind is Kind.SYNC and call.path.startswith("keepsake")


@pytest.mark.parametrize("left_out", [_is_partial, _is_name, _is_index, _is_keepsake])
def test_a_sync_that_is_left_out_is_seen(
    calls: tuple[Call, ...], left_out: Callable[[Call], bool], folder: Path
) -> None:
    fewer = tuple(call for call in calls if not left_out(call))
    assert len(fewer) < len(calls)
    after_marks = [
        cut
        for cut in cuts(fewer, SEED, samples=0)
        if fewer[cut.calls - 1].kind is Kind.MARK and "only" in cut.choice.name
    ]
    with pytest.raises(Lost):
        _examine_all(fewer, after_marks, folder)


def _examine_all(calls: Sequence[Call], chosen: Iterable[Cut], folder: Path) -> None:
    for cut in chosen:
        examine(calls, cut, folder)
