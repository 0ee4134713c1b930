"""The few facts that only the index has and nobody could find out again, written down a second time.

Pins, what people asked for, the tags of devices (inode numbers in the mount depend on them), the sources that the
cache was made for, and those of them from which files have moved. Only read when the index is lost, and by ``cachefs
check``, which must not open the index. Blocks; raises ``OSError``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from cachefs.cache import wishes
from cachefs.cache.written import files_of, names_of
from cachefs.model import Asked, Pin, SourceName
from cachefs.ownership import ours

N = TypeVar("N", int, float)

NAME = "keepsake.json"
_FORM = 1
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Keepsake:
    """``schema``: the version of the index it was taken from. ``identity``: see ``belonging.identity_of``.
    ``moved_from``: see ``schema``."""

    schema: int
    identity: str
    devices: Mapping[str, int]
    pins: tuple[Pin, ...]
    asked: tuple[Asked, ...] = ()
    moved_from: frozenset[SourceName] = frozenset()


def save(root: str, kept: Keepsake) -> None:
    """Durable when it returns; a crash leaves the old one or the new one."""
    facts = {
        "form": _FORM,
        "schema": kept.schema,
        "identity": kept.identity,
        "devices": dict(kept.devices),
        "pins": [[pin.target, pin.rating_key, pin.created_at] for pin in kept.pins],
        "stood_for": {pin.rating_key: names_of(pin.stood_for) for pin in kept.pins if pin.stood_for},
        "asked": wishes.rows_of(kept.asked),
        "moved_from": sorted(kept.moved_from),
    }
    new = f"{root}/{NAME}.new"
    number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(number, "w", encoding="ascii") as file:
        ours().give(number, 0o600)
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(number)
    os.rename(new, f"{root}/{NAME}")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(root: str) -> Keepsake | None:
    """None when there is none that can be understood."""
    try:
        number = os.open(f"{root}/{NAME}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, encoding="ascii") as file:
            facts = json.loads(file.read(_MOST_BYTES))
        if facts["form"] != _FORM:
            return None
        stood_for = facts.get("stood_for", {})  # earlier versions did not keep it, nor what follows below
        pins = tuple(
            Pin(_name(target), _text(key), _number(float(at)), files_of(stood_for.get(key, [])))
            for target, key, at in facts["pins"]
        )
        devices = {_name(name): _number(int(tag)) for name, tag in facts["devices"].items()}
        asked = wishes.from_rows(facts.get("asked", []))
        moved_from = frozenset(SourceName(_name(name)) for name in facts.get("moved_from", []))
        return Keepsake(int(facts["schema"]), _name(facts["identity"]), devices, pins, asked, moved_from)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


# What follows raises ``ValueError`` for what the index cannot hold.


def _name(value: object) -> str:
    return os.fsdecode(os.fsencode(str(value)))


def _text(value: object) -> str:
    return str(value).encode().decode()


def _number(value: N) -> N:
    if not abs(value) < 1 << 63:  # nor is that true of what is no number at all
        raise ValueError("too much for the index")
    return value
