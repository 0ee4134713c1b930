"""Tasks of a server that fail when they are told to: what ``plant`` puts in, and how a test uses it.

Nothing of it is in the product: ``plant`` replaces ``supervise`` in ``daemon``, so that whatever the daemon supervises
can be told to fail, and whatever it begins beside that is seen.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

import trio

from cachefs.status import HealthRegistry

PLANT = Path(__file__).parent / "plant"
ENVIRONMENT = "FAILING_TASKS"
HANGING = "HANGING_CALL"
_LOOK_EVERY_S = 0.02


class Failing:
    """The folder through which a test and the server talk."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def begun(self) -> dict[str, int]:
        """Every supervised task, and how often it was begun."""
        return {unquote(path.stem): path.stat().st_size for path in self._folder.glob("*.begun")}

    def unsupervised(self) -> list[str]:
        """What the daemon began beside its supervised tasks."""
        return [unquote(path.stem) for path in self._folder.glob("*.beside")]

    def tell(self, name: str) -> None:
        """Let the task fail."""
        self._path(name, "order").touch()

    def was_told(self, name: str) -> bool:
        """Whether it has failed since."""
        return not self._path(name, "order").exists()

    # --- in the server ---

    def note_begin(self, name: str) -> None:
        with self._path(name, "begun").open("ab") as file:
            file.write(b"+")

    def note_beside(self, name: str) -> None:
        self._path(name, "beside").touch()

    async def fail(self, name: str, task: trio.lowlevel.Task) -> None:
        """Raise in the task, where it waits, once that is told. As an error of its own: it is not cancelled."""
        while self.was_told(name):  # noqa: ASYNC110 - by another process
            await trio.sleep(_LOOK_EVERY_S)
        self._path(name, "order").unlink()
        raised = False

        def fail() -> NoReturn:
            nonlocal raised
            raised = True
            raise ZeroDivisionError(f"planted in {name}")

        while not raised:  # trio delivers KeyboardInterrupt in this way; what waits for a thread goes on waiting
            if task._abort_func is not None:
                task._attempt_abort(fail)
            await trio.sleep(_LOOK_EVERY_S)

    def _path(self, name: str, what: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{what}"


def install(folder: str) -> None:
    """Let everything fail that this server supervises."""
    from cachefs import daemon, supervision  # noqa: PLC0415 - only in a server

    failing, really = Failing(folder), supervision.supervise

    async def supervise(
        name: str, health: HealthRegistry, task: Callable[[], Awaitable[object]], follows: str = ""
    ) -> None:
        _look_beside(failing, supervise.__qualname__)
        await really(name, health, partial(_run, failing, name, task), follows)

    daemon.supervise = supervise  # type: ignore[attr-defined]


def hang(function: str) -> None:
    """Let every call of a function of the product, ``module:name``, wait for ever."""
    module, _, name = function.partition(":")
    setattr(importlib.import_module(module), name, lambda *_: threading.Event().wait())


async def _run(failing: Failing, name: str, task: Callable[[], Awaitable[object]]) -> None:
    failing.note_begin(name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing.fail, name, trio.lowlevel.current_task())
        await task()
        nursery.cancel_scope.cancel()


def _look_beside(failing: Failing, ours: str) -> None:
    nursery = trio.lowlevel.current_task().parent_nursery
    for task in nursery.child_tasks if nursery is not None else ():
        name = getattr(task.coro, "__qualname__", task.name)
        if name != ours:
            failing.note_beside(name)
