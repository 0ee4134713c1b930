"""The bodies that only the control socket knows; every other one is a value of ``model`` or ``verification``."""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.restoration import HomeProgress, HomeReport
from cachefs.verification import Progress, Report


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
