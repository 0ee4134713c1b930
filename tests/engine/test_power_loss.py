"""The power goes after any call that the cache makes, and whatever the disks have kept, recovery loses nothing.

The recordings are of the real store, SQLite included, and of the real movers with a source; a recording with a sync
left out shows that a loss would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from cachefs.fs.found import RESERVED
from tests.crash.failures import Lost
from tests.crash.powerloss import rebuilt
from tests.crash.powerloss.house import FOLDER, begin
from tests.crash.powerloss.moving import COMING
from tests.crash.powerloss.recording import Call, Kind, record
from tests.crash.powerloss.replay import SCENARIO, Cut, cuts, examine, quick_folder

SEED = 3
EXAMINED = 150
MOVING_EXAMINED = 40
NEAR = 15
"""Within so many calls after a sync that was left out its loss shows; or when a name has gone, or is acknowledged."""

pytestmark = pytest.mark.expected_warnings(
    "A new one is made from what is on the SSD",
    "the index does not know it: it is found again",
    "files on the SSD that say nothing of themselves, and may be the only ones, are kept",
)


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


# --- files that move -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Call, ...]:
    folder = tmp_path_factory.mktemp("moving")
    begin(folder / "root")
    return record(folder / "root", folder, rebuilt.SCENARIO)


def test_whatever_a_power_cut_leaves_of_moved_files_comes_home(moving: tuple[Call, ...], folder: Path) -> None:
    chosen = random.Random(SEED).sample(list(cuts(moving, SEED, samples=2)), MOVING_EXAMINED)
    for cut in rebuilt.different(moving, chosen):
        rebuilt.examine(moving, cut, folder)


def _follows(calls: Sequence[Call], at: int, kind: Kind, *, back: int = 1) -> Call | None:
    """The call of this kind that the one at ``at`` comes right after, or at most so many later."""
    return next((call for call in reversed(calls[at - back : at]) if call.kind is kind), None)


def _ssd_bytes(calls: Sequence[Call], at: int) -> bool:
    return calls[at].kind is Kind.SYNC and calls[at].path.startswith(("ssd/partial/", "ssd/files/"))


def _label(calls: Sequence[Call], at: int) -> bool:
    return _ssd_bytes(calls, at) and _follows(calls, at, Kind.XATTR) is not None


def _ssd_name(calls: Sequence[Call], at: int) -> bool:
    return calls[at].kind is Kind.SYNC_FOLDER and calls[at].path.startswith("ssd/files/")


def _at_home(calls: Sequence[Call], at: int, kind: Kind) -> bool:
    return calls[at].kind is kind and calls[at].path.startswith(FOLDER)


def _taken_away(calls: Sequence[Call], at: int) -> bool:
    renamed = _follows(calls, at, Kind.RENAME)
    return renamed is not None and RESERVED in renamed.new and _at_home(calls, at, Kind.SYNC_FOLDER)


def _emptied(calls: Sequence[Call], at: int) -> bool:
    return _at_home(calls, at, Kind.SYNC) and _follows(calls, at, Kind.TRUNCATE) is not None


def _brought(calls: Sequence[Call], at: int) -> bool:
    return _at_home(calls, at, Kind.SYNC) and _follows(calls, at, Kind.TIMES, back=2) is not None


def _arrived(calls: Sequence[Call], at: int) -> bool:
    renamed = _follows(calls, at, Kind.RENAME, back=2)
    return renamed is not None and RESERVED in renamed.path and _at_home(calls, at, Kind.SYNC_FOLDER)


def _replaced(calls: Sequence[Call], at: int) -> bool:
    unlinked = _follows(calls, at, Kind.UNLINK)
    return unlinked is not None and RESERVED not in unlinked.path and _at_home(calls, at, Kind.SYNC_FOLDER)


def _yielded(calls: Sequence[Call], at: int) -> bool:
    renamed = _follows(calls, at, Kind.RENAME, back=2)
    inside = renamed is not None and renamed.path.startswith(FOLDER) and RESERVED not in renamed.path + renamed.new
    return inside and _at_home(calls, at, Kind.SYNC_FOLDER)


def _coming(calls: Sequence[Call], at: int) -> bool:
    return _at_home(calls, at, Kind.SYNC) and calls[at].path == f"{FOLDER}/{COMING}"


def _looked_at(calls: Sequence[Call], at: int) -> bool:
    """After a start, or before a file is brought home; nothing has happened there since."""
    before, after = calls[at - 1], calls[at + 1 : at + 3]
    alone = before.kind in (Kind.WRITE, Kind.SYNC, Kind.SYNC_FOLDER) and not before.path.startswith(FOLDER)
    return alone and _at_home(calls, at, Kind.SYNC_FOLDER) and not any(call.kind is Kind.MARK for call in after)


def _acknowledges(before: Call, call: Call) -> bool:
    return call.kind is Kind.MARK or (before.kind is Kind.UNLINK and call.kind is Kind.SYNC_FOLDER)


@pytest.mark.expected_warnings("another file has its place at its source", "it was removed behind cachefs")
@pytest.mark.parametrize(
    "left_out",
    [
        _ssd_bytes,
        _label,
        _ssd_name,
        _taken_away,
        _emptied,
        _brought,
        _arrived,
        _replaced,
        _yielded,
        _coming,
        _looked_at,
    ],
)
def test_a_sync_that_is_left_out_of_a_move_is_seen(
    moving: tuple[Call, ...], left_out: Callable[[Sequence[Call], int], bool], folder: Path
) -> None:
    places = [at for at in range(len(moving)) if left_out(moving, at)]
    assert places
    fewer = tuple(call for at, call in enumerate(moving) if at not in places)
    near = {at - gone + later for gone, at in enumerate(places) for later in range(NEAR)}
    near |= {at for at in range(places[0] + 2, len(fewer) + 1) if _acknowledges(fewer[at - 2], fewer[at - 1])}
    chosen = [cut for cut in cuts(fewer, SEED, samples=0) if cut.calls in near and "only" in cut.choice.name]
    with pytest.raises(Lost):
        _bring_all_home(fewer, chosen, folder, index_lost=left_out is _label)  # else the row knows what a label says


def _bring_all_home(calls: Sequence[Call], chosen: Iterable[Cut], folder: Path, *, index_lost: bool) -> None:
    for cut in rebuilt.different(calls, chosen):
        rebuilt.examine(calls, cut, folder, lost_indexes=(index_lost,))
