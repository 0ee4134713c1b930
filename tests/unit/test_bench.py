"""What the benchmark makes of its raw figures: medians, ratios, table and chart."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.__main__ import choice_of, parse
from tests.bench.chart import HIGHEST, LOWEST, svg, x_of
from tests.bench.figures import Figure, Measured, Memory, cpu_s_per_gib, rates, ratio
from tests.bench.probe import ProbeFailed, Sample, System, arguments, dropped
from tests.bench.publishing import BEGIN, END, README, shown, with_table
from tests.bench.report import Report, as_ratio, missed
from tests.bench.sample import files_for_entries
from tests.bench.stage import mounts_below
from tests.bench.table import amount, grid, markdown
from tests.bench.works import CPU_WORKS, GIB, LINES, WORKS, Files, Kept, Kind, Passes, Work

LINE = {line.key: line for line in LINES}
WORK = {work.key: work for work in WORKS}
SAMPLE = Sample(("films/a", "films/b"), ("clips/a",), ("t0", "t1", "t2", "t3"), Path("/lists"))


def system(key: str, kind: Kind, title: str = "") -> System:
    return System(key, title or key, kind, Path("/mnt") / key, Path("/beneath") / key)


SYSTEMS = (
    system("native", Kind.NATIVE),
    system("cached", Kind.CACHED, "cachefs, cached"),
    system("other", Kind.PEER, "R&B <fs>"),
)


def measured(work: str, key: str, number: int, *took_ns: int, units: int = 1000, cpu_s: float = 0.0) -> Measured:
    return Measured(work, key, number, units, took_ns, cpu_s)


def everything(slowness: int) -> tuple[Measured, ...]:
    """Each work on each system, in three rounds; all but the native folder take so many times as long."""
    return tuple(
        measured(work.key, s.key, number, *[1000 * (1 if s.kind is Kind.NATIVE else slowness)] * 3)
        for work in WORKS
        for s in SYSTEMS
        for number in range(3)
    )


def report(slowness: int = 1, memory: Memory | None = None) -> Report:
    return Report({"kernel": "Linux"}, SYSTEMS, everything(slowness), memory)


def test_rate_is_that_of_the_median_pass() -> None:
    one = measured("stat", "native", 0, 1_000, 1_000_000, 2_000_000, 9_000_000)
    assert one.rate(Passes.LATER) == pytest.approx(1000 / 2e-3)
    assert one.rate(Passes.FIRST) == pytest.approx(1000 / 1e-6)
    assert one.rate(Passes.EVERY) == pytest.approx(1000 / 1.5e-3)


def test_without_a_later_pass_there_is_no_warm_rate() -> None:
    assert rates([measured("stat", "native", 0, 5)], LINE["stat-warm"], "native") == {}


def test_ratio_compares_each_round_with_itself() -> None:
    found = ratio(
        [
            *(measured("streams", "native", number, took) for number, took in enumerate((100, 200, 400))),
            *(measured("streams", "cached", number, took) for number, took in enumerate((200, 200, 500))),
        ],
        LINE["streams"],
        "cached",
        "native",
    )
    assert found == Figure(median=0.8, low=0.5, high=1.0)


def test_ratio_leaves_out_rounds_that_one_of_them_lacks() -> None:
    found = [measured("streams", "native", 0, 100), *(measured("streams", "cached", n, 200) for n in range(2))]
    assert ratio(found, LINE["streams"], "cached", "native") == Figure(0.5, 0.5, 0.5)
    assert ratio(found, LINE["disk"], "cached", "native") is None


def test_processor_time_counts_every_pass_of_all_reading_works() -> None:
    found = [
        measured(CPU_WORKS[0], "cached", 0, 1, 1, units=GIB // 2, cpu_s=0.3),
        measured(CPU_WORKS[1], "cached", 0, 1, units=GIB, cpu_s=0.1),
        measured("walk", "cached", 0, 1, units=GIB, cpu_s=9.0),
        measured(CPU_WORKS[0], "other", 0, 1, units=GIB, cpu_s=9.0),
    ]
    assert cpu_s_per_gib(found, WORKS, "cached") == pytest.approx(0.2)
    assert cpu_s_per_gib(found, WORKS, "native") is None


def test_memory_is_counted_per_entry_above_the_start() -> None:
    memory = Memory(entries=1000, start_bytes=5_000, walked_bytes=605_000, forgotten_bytes=15_000)
    assert (memory.bytes_per_entry, memory.kept_bytes_per_entry) == (600, 10)


@pytest.mark.parametrize(("entries", "files"), [(1_000_000, 943_396), (106, 100)])
def test_tree_has_so_many_entries_with_its_folders(entries: int, files: int) -> None:
    assert files_for_entries(entries) == files
    folders = files // 20 + files // 100
    assert entries - 2 <= files + folders <= entries


@pytest.mark.parametrize(
    ("kept", "key", "paths"),
    [
        (Kept.ALL, "cached", []),
        (Kept.BENEATH, "cached", ["/mnt/cached/f"]),
        (Kept.BENEATH, "native", []),
        (Kept.NOTHING, "cached", ["/mnt/cached/f", "/beneath/cached/f"]),
        (Kept.NOTHING, "native", ["/beneath/native/f"]),
    ],
)
def test_pages_of_the_mount_go_before_those_beneath(kept: Kept, key: str, paths: list[str]) -> None:
    on = next(s for s in SYSTEMS if s.key == key)
    assert [str(path) for path in dropped(replace(WORK["disk"], kept=kept), on, ("f",))] == paths


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.key)
def test_every_system_is_asked_for_the_same(work: Work) -> None:
    asked = [arguments(replace(work, kept=Kept.ALL), on, SAMPLE, 1, 100) for on in SYSTEMS]
    assert [told[1] for told in asked] == [str(on.root) for on in SYSTEMS]
    assert all(told[2:] == asked[0][2:] for told in asked)


def test_no_tree_is_looked_at_twice() -> None:
    trees = [SAMPLE.tree(work, number) for work in WORKS if work.files is Files.TREE for number in range(2)]
    assert sorted(trees) == sorted(SAMPLE.trees)


def test_all_lines_are_of_works_that_are_done() -> None:
    assert {line.work for line in LINES} == set(WORK)
    assert set(CPU_WORKS) <= {key for key, work in WORK.items() if work.reads_whole_files}


def test_table_has_every_line_and_every_system() -> None:
    table = grid(report(slowness=4)).splitlines()
    assert {row.count("|") for row in table} == {6}
    for line in LINES:
        assert sum(row.startswith(f"| {line.title} |") for row in table) == 1
    assert "0.25 <sub>0.25" in table[2]
    assert "<sub>" not in grid(report(), with_spread=False)


def test_what_is_not_at_its_target_is_said() -> None:
    assert missed(report(slowness=1, memory=Memory(10, 0, 6000, 0))) == []
    told = missed(report(slowness=1000, memory=Memory(10, 0, 6010, 0)))
    assert "open, close, cachefs, cached: 0.001, to be at least 0.016" in told
    assert "memory: 601 bytes an entry, to be at most 600" in told
    assert not any("R&B" in text for text in told)
    assert all(text in markdown(report(slowness=1000, memory=Memory(10, 0, 6010, 0))) for text in told)


def test_slow_daemon_is_said() -> None:
    busy = measured(CPU_WORKS[0], "cached", 9, 1, units=GIB, cpu_s=0.5)
    assert any(text.startswith("processor time") for text in missed(replace(report(), measured=(busy,))))


@pytest.mark.parametrize(("value", "text"), [(1.0, "1.00"), (0.1, "0.10"), (0.0163, "0.016"), (12.345, "12.35")])
def test_small_ratios_keep_their_digits(value: float, text: str) -> None:
    assert as_ratio(value) == text


@pytest.mark.parametrize(
    ("per_s", "unit", "text"),
    [(9.44e9, "B", "9.4 GB/s"), (476_190, "files", "476 k files/s"), (950, "seeks", "950 seeks/s")],
)
def test_rates_are_for_people(per_s: float, unit: str, text: str) -> None:
    assert amount(per_s, unit) == text


def test_chart_is_well_formed_and_marks_every_figure() -> None:
    root = ElementTree.fromstring(svg(report(slowness=4)))
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    for other in SYSTEMS[1:]:
        assert sum(title.startswith(f"{other.title}: 0.25") for title in titles) == len(LINES)
    numbers = re.findall(r'(?:x|cx|x1|x2)="([\d.]+)"', svg(report(slowness=10**9)))
    assert all(0 <= float(number) <= 900 for number in numbers)


def test_chart_follows_light_and_dark_mode() -> None:
    assert "@media (prefers-color-scheme: dark)" in svg(report())


def test_scale_is_logarithmic_and_bounded() -> None:
    assert x_of(0.1) - x_of(0.01) == pytest.approx(x_of(1) - x_of(0.1), abs=0.2)
    assert x_of(0) == x_of(LOWEST) < x_of(1) < x_of(99) == x_of(HIGHEST)


def test_results_can_be_read_again() -> None:
    again = json.loads(json.dumps(report(memory=Memory(10, 0, 6000, 0)).as_json()))
    assert len(again["measured"]) == len(WORKS) * len(SYSTEMS) * 3
    assert again["lines"][0]["ratios"]["cached"]["median"] == 1.0


def test_table_replaces_the_one_before_and_nothing_else() -> None:
    readme = f"# A\n{BEGIN}\nold\n{END}\n## B\n"
    assert with_table(readme, "new") == f"# A\n{BEGIN}\nnew\n{END}\n## B\n"
    with pytest.raises(ProbeFailed, match="no <!-- make bench: begin"):
        with_table("# A\n", "new")


def test_readme_has_a_place_for_the_table() -> None:
    again = with_table(README.read_text(encoding="utf-8"), shown(report()))
    assert f"| {LINES[0].title} |" in again.partition(BEGIN)[2].partition(END)[0]


def test_mounts_are_found_below_a_folder_only() -> None:
    assert Path("/proc") in mounts_below(Path("/proc"))
    assert mounts_below(Path("/no/such/folder")) == []


@pytest.mark.parametrize("given", [["--rounds", "4"], ["--peer", "no-mountpoint"], ["--peer", "x=/"]])
def test_what_cannot_be_measured_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(given)
    assert capsys.readouterr().err


def test_options_change_the_amounts() -> None:
    choice = choice_of(parse(["--quick", "--rounds", "6", "--entries", "0", "--without", "bindfs"]))
    assert (choice.amounts.rounds, choice.amounts.entries, choice.without) == (6, 0, frozenset({"bindfs"}))
