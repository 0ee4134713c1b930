"""The named steps of publish, evict and recovery: every function of the cache's disk modules that changes something.

Found by looking into the modules, so that a step that is added there is killed at without being named here. What
changes nothing is named instead, and a unit test holds that against the code. Imports nothing of cachefs by itself: it
runs in the server while that is being imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType

MODULES = tuple(f"cachefs.cache.{name}" for name in ("copying", "folder", "index", "inside", "keepsake", "label"))
"""The modules of the cache that change what is on the SSD."""

CHANGES_NOTHING = frozenset(
    {
        *(f"copying.{name}" for name in ("look", "read_attributes", "read_chunk")),
        *(f"folder.{name}" for name in ("holder", "no_hook", "refuse_foreign", "token_of")),
        *(f"folder.Folder.{name}" for name in ("can_name", "contents", "look", "partial", "published", "space")),
        *(f"index.Index.{name}" for name in ("entries", "identity", "keepsake", "next_id", "pins", "problem")),
        "index.Index.unlabelled",
        *(f"inside.{name}" for name in ("folder", "is_folder", "open_file", "refuse_foreign", "sizes")),
        "keepsake.read",
        "label.read",
    }
)

OUT_OF_REACH = {
    "folder.Folder.take_again": "an SSD that was away is back",
    "folder.Folder.abandon": "an SSD goes away",
    "inside.remove_tree": "a folder stands where a copy is published, and recovery has not removed it",
}
"""Steps that the rig does not bring about, and when they happen: the tests of the store's parts stop there instead."""


@dataclass(frozen=True, slots=True)
class Found:
    """A step, and where its function is to be replaced."""

    name: str
    owner: ModuleType | type
    function: FunctionType


def steps_of(module: ModuleType) -> Iterator[Found]:
    """The steps of one module, by their place in it: ``folder.Folder.rename``."""
    short = module.__name__.rpartition(".")[2]
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            yield from _functions(value, f"{short}.{name}", module)
    yield from _functions(module, short, module)


def _functions(owner: ModuleType | type, prefix: str, module: ModuleType) -> Iterator[Found]:
    for name, value in vars(owner).items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        if f"{prefix}.{name}" not in CHANGES_NOTHING and not hasattr(function, "__wrapped__"):
            yield Found(f"{prefix}.{name}", owner, function)


def all_steps() -> tuple[str, ...]:
    """Every step that the rig kills at, in the order of the modules."""
    found = (found.name for name in MODULES for found in steps_of(importlib.import_module(name)))
    return tuple(name for name in found if name not in OUT_OF_REACH)
