"""Compiles the measuring program and runs it. Knows how one work becomes one command; measures nothing itself."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bench.works import Files, Kept, Kind, Work
from tests.demo.stop import Stop

SOURCE = Path(__file__).with_name("probe.c")
AT_MOST_PASSES = 40
TREE_PASSES = 6
"""At least so many: the first is cold, the others are warm."""
_LOOK_EVERY_S = 0.05


class ProbeFailed(Exception):
    """The measuring program could not be compiled, or met an error."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The library that every system shows, as names relative to its root."""

    films: tuple[str, ...]
    clips: tuple[str, ...]
    trees: tuple[str, ...]
    """A stat and a walk need one that nobody has looked at yet in every round; see ``tree``."""
    lists: Path
    """The folder with the names of each tree's files, one a line."""

    def tree(self, work: Work, number: int) -> str:
        """The tree that is for this work in this round only."""
        return self.trees[number * 2 + (work.probe == "walk")]

    def list_of(self, tree: str) -> Path:
        return self.lists / f"{tree}.names"


@dataclass(frozen=True, slots=True)
class System:
    """A file system that shows the sample below ``root``, and the processes that do its work.

    ``beneath``: where its files really are, so that their pages can be dropped as well.
    """

    key: str
    title: str
    kind: Kind
    root: Path
    beneath: Path
    pids: tuple[int, ...] = ()
    version: str = ""


def compile_probe(folder: Path) -> Path:
    """The program, made by gcc (which cachefs needs to be installed, too)."""
    program = folder / "probe"
    command = ["gcc", "-O2", "-pthread", "-o", os.fspath(program), os.fspath(SOURCE)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise ProbeFailed(f"gcc cannot compile {SOURCE.name}: {made.stderr.strip()}")
    return program


def arguments(work: Work, system: System, sample: Sample, number: int, min_ms: int) -> list[str]:
    """What the program is told. A tree is walked once cold and then warm, in one run."""
    if work.files is Files.TREE:
        tree = sample.tree(work, number)
        what = ["-l", os.fspath(sample.list_of(tree))] if work.probe == "stat" else ["--", tree]
        return [work.probe, os.fspath(system.root), "-q", str(TREE_PASSES), "-p", str(TREE_PASSES), *what]
    films = sample.films[:1] if work.files is Files.FILM else sample.films
    files = sample.clips if work.files is Files.CLIPS else films
    command = [work.probe, os.fspath(system.root), "-m", str(min_ms), "-p", str(AT_MOST_PASSES), "-b", str(work.block)]
    if work.count:
        command += ["-n", str(work.count)]
    for path in dropped(work, system, files):
        command += ["-d", os.fspath(path)]
    return [*command, "--", *files]


def dropped(work: Work, system: System, files: tuple[str, ...]) -> list[Path]:
    """Whose pages the kernel is to drop before each pass: the mount's own first, or they would be read anew."""
    own = [] if system.kind is Kind.NATIVE else [system.root / name for name in files]
    beneath = [system.beneath / name for name in files]
    return {Kept.ALL: [], Kept.BENEATH: own, Kept.NOTHING: own + beneath}[work.kept]


def run(program: Path, told: list[str], stop: Stop) -> tuple[int, tuple[int, ...]]:
    """Units of a pass, and the nanoseconds of each. ``Stopped`` when somebody asked to end meanwhile."""
    process = subprocess.Popen(
        [program, *told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while True:
            try:
                said, complaint = process.communicate(timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                stop.wait(0)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise ProbeFailed(f"{' '.join(told[:2])}: {complaint.strip() or f'ended with {process.returncode}'}")
    units, *took = map(int, said.split())
    return units, tuple(took)
