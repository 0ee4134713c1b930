"""When ``make soak`` says that something has grown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak import figures
from tests.soak.figures import MIB, Held, Sample

SERVER = Held(memory_bytes=100 * MIB, descriptors=30, threads=3)
KEEPER = Held(memory_bytes=60 * MIB, descriptors=6, threads=1)
REST = Sample(0.0, SERVER, KEEPER, entries=0, backing_files=0, open_files=0, used_bytes=0, index_bytes=0)


def server(**held: int) -> Sample:
    return replace(REST, server=replace(SERVER, **held))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (REST, ""),
        (server(memory_bytes=118 * MIB), ""),
        (server(memory_bytes=119 * MIB), "the server's memory: 100.0 MiB before, 119.0"),
        (server(memory_bytes=50 * MIB), ""),
        (server(descriptors=34), ""),
        (server(descriptors=35), "the server's descriptors: 30 before, 35"),
        (server(threads=8), "the server's threads: 3 before, 8"),
        (replace(REST, keeper=replace(KEEPER, descriptors=11)), "the keeper's descriptors: 6 before, 11"),
        (replace(REST, open_files=1), "nobody reads, but 1 files are open and 0 are backed"),
        (replace(REST, backing_files=2), "nobody reads, but 0 files are open and 2 are backed"),
    ],
)
def test_what_is_held_at_rest_after_the_load_was_held_before_it(after: Sample, said: str) -> None:
    assert figures.grown(REST, after) == ([said] if said else [])


def test_a_slow_rise_over_the_run_is_seen_though_its_first_quarter_is_a_warm_up() -> None:
    warming_up = [server(memory_bytes=number * 10 * MIB) for number in range(10)]
    steady = [server(memory_bytes=100 * MIB)] * 30
    rising = [server(memory_bytes=(100 + number) * MIB) for number in range(30)]
    assert figures.growing([*warming_up, *steady]) == []
    (said,) = figures.growing([*warming_up, *rising])
    assert said.startswith("the server's memory under load")


def test_descriptors_and_threads_that_rise_are_seen_as_well() -> None:
    rising = [server(descriptors=30 + number, threads=3 + number) for number in range(40)]
    assert [said.split(":")[0] for said in figures.growing(rising)] == [
        "the server's descriptors under load",
        "the server's threads under load",
    ]


def test_processes_are_at_rest_when_nothing_comes_or_goes() -> None:
    assert figures.alike([REST, server(memory_bytes=1), server(descriptors=33), replace(REST, at_s=5.0)])
    assert not figures.alike([REST, server(descriptors=35)])
    assert not figures.alike([server(threads=2), server(threads=7)])
    assert not figures.alike([REST, replace(REST, entries=1)])


def test_the_numbers_of_proc_are_read_by_name() -> None:
    text = "Name:\tcachefs 1\nPid:\t12\nVmRSS:\t  1024 kB\nThreads:\t7\nSigQ:\t0/1\nEmpty:\n"
    assert figures.parse_status(text) == {"Pid": 12, "VmRSS": 1024, "Threads": 7}
