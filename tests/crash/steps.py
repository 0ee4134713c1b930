"""The named steps: every function that changes something on the SSD, and those that change a source.

The SSD's (publish, evict, recovery) are found by looking into the modules, so that a step that is added there is killed
at without being named here. What changes nothing is named instead, and a unit test holds that against the code. The
sources' are few and named; the test fails when one is missing. Imports nothing of cachefs by itself: it
runs in the server while that is being imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType

_NAMES = ("copying", "folder", "index", "inside", "keepsake", "label", "moved_bytes", "moved_disk")
MODULES = tuple(f"cachefs.cache.{name}" for name in _NAMES)
"""The modules of the cache that change what is on the SSD."""

AT_SOURCE = {
    "cachefs.fs.backing": ("write", "write_both"),
    "cachefs.fs.changes": ("_create", "_link", "_set_attributes"),
    "cachefs.fs.homes": ("_arrive", "_take_away"),
    "cachefs.fs.keepings": ("let_go", "open_one", "trim"),
    "cachefs.fs.losing": ("remove",),
    "cachefs.fs.rename": ("carry_out",),
    "cachefs.fs.syncing": ("_sync",),
    "cachefs.fs.writing": ("_truncate",),
}
"""What changes a source, in its threads."""

PARTS_AND_OTHERS = {
    **dict.fromkeys(("backing.write_at", "backing._bring_back", "backing._drop_set_id"), "a part of a write"),
    "rename._rename": "a part of carry_out",
    "losing.unlink_for_good": "a part of remove",
    **dict.fromkeys(("homes._remove", "keepings.make_place"), "parts of a move"),
    "keepings.left": "a source without leases",
    "keepings.remove_folder": "a part of a return",
    "keepings._empty": "a part of _trim",
    "keepings.set_aside": "it tells whoever looks for an SSD that is not there, and no file rests on it",
    **dict.fromkeys(("foldertimes.unseen", "foldertimes.touch"), "a folder's time, which is no part of any file"),
    **dict.fromkeys(("keepings.opened", "homes._rename_to_nothing"), "parts of a return"),
    **dict.fromkeys(("homes._make_folders", "homes._make_alike"), "parts of a return"),
    "keepings.remove": "it follows the restoration of a whole source",
    **dict.fromkeys(
        (f"backing.{name}" for name in ("begin_copy", "catch_up", "mark", "was_written")),
        "a program writes the file through a mapping; no writer of the rig does",
    ),
    **dict.fromkeys(("xattrs._set", "xattrs._remove"), "no writer of the rig sets attributes"),
    "changes._fsync_folder": "no writer of the rig syncs a folder",
}
"""What else changes a source, and why it is not killed at."""

CHANGES_NOTHING = frozenset(
    {
        *(f"copying.{name}" for name in ("look", "read_attributes", "read_chunk")),
        *(f"folder.{name}" for name in ("holder", "lacks_to_be_made", "names_in", "no_hook", "refuse_foreign")),
        *(f"folder.{name}" for name in ("strangers", "token_of")),
        *(f"folder.Folder.{name}" for name in ("can_name", "contents", "holds_the_same", "look", "partial")),
        *(f"folder.Folder.{name}" for name in ("published", "space")),
        *(f"index.Index.{name}" for name in ("entries", "identity", "keepsake", "next_id", "pins", "problem")),
        *(f"index.Index.{name}" for name in ("aside", "asked", "distrust", "moved_from", "start", "unlabelled")),
        *(f"inside.{name}" for name in ("attributes", "folder", "is_folder", "open_file", "refuse_foreign", "sizes")),
        "keepsake.read",
        *(f"moved_bytes.{name}" for name in ("difference", "is_equal", "nobody_writes", "open_file")),
        *(f"moved_bytes.{name}" for name in ("read_and_count", "state_at", "state_of")),
        *(f"label.{name}" for name in ("claims_to_be_moved", "read", "says_nothing")),
    }
)

ONLY_MOVING = (
    "moved_",
    "homes.",
    "keepings.",
    "index.Index.put",
    "index.Index.save_home",
    "folder.Folder.make_folders_of",
)
"""What happens to moved files only."""

OUT_OF_REACH = {
    "folder.Folder.take_again": "an SSD that was away is back",
    "folder.Folder.abandon": "an SSD goes away",
    "folder.unmake": "a plan is made without a daemon",
    "moved_bytes.sync_data": "a file of more than 64 MiB is on its way home",
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
    if module.__name__ in AT_SOURCE:
        yield from (Found(f"{short}.{name}", module, vars(module)[name]) for name in AT_SOURCE[module.__name__])
        return
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and not _is_protocol(value):
            yield from _functions(value, f"{short}.{name}", module)
    yield from _functions(module, short, module)


def _is_protocol(found: type) -> bool:
    return bool(vars(found).get("_is_protocol"))


def _functions(owner: ModuleType | type, prefix: str, module: ModuleType) -> Iterator[Found]:
    for name, value in vars(owner).items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        if f"{prefix}.{name}" not in CHANGES_NOTHING and not hasattr(function, "__wrapped__"):
            yield Found(f"{prefix}.{name}", owner, function)


def all_steps(mode: str = "copy") -> tuple[str, ...]:
    """Every step that the rig kills at with this ``cache.mode``, in the order of the modules."""
    modules = (*MODULES, *AT_SOURCE)
    found = (found.name for name in modules for found in steps_of(importlib.import_module(name)))
    moves = mode != "copy"
    return tuple(name for name in found if name not in OUT_OF_REACH and (moves or not name.startswith(ONLY_MOVING)))
