"""The two bodies that only the control socket knows; every other one is a value of ``model``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """The body of every act that has an object: what the user typed."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The body of every answer that is not 200."""

    error: str
