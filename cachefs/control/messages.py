"""The bodies that only the control socket knows; every other one is a value of ``model`` or ``verification``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cachefs.restoration import HomeProgress, HomeReport
from cachefs.verification import Progress, Report

MOUNTPOINT_HEADER = "cachefs-mountpoint"
"""For which mount a question is meant: the percent-encoded bytes of its path."""


def another_mount(socket: Path, there: str, meant: str) -> str:
    """What is said where another cachefs answers than the one that is meant."""
    return (
        f"the cachefs that answers on {socket} has mounted {there}, not {meant}: give each cachefs a control.socket of "
        "its own; if it is the same one with an older configuration, stop it first (SIGTERM)"
    )


@dataclass(frozen=True, slots=True)
class Accepting:
    """The body of ``accept``. ``moved``: files of that source that have moved may come home to what is there now."""

    text: str
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The body of every act that has an object: what the user typed."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The body of every answer that is not 200."""

    error: str


@dataclass(frozen=True, slots=True)
class VerifyWish:
    """The body of ``verify``. ``text``: what the user typed; empty for everything."""

    text: str
    content: bool
    repair: bool


@dataclass(frozen=True, slots=True)
class VerifyLine:
    """One line of the answer to ``verify``: how far it is, again and again, then its report or why there is none."""

    progress: Progress | None = None
    report: Report | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RestoreLine:
    """One line of the answer to ``restore``, as ``VerifyLine``."""

    progress: HomeProgress | None = None
    report: HomeReport | None = None
    failure: Failure | None = None
