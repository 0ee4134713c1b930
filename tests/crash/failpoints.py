"""In the server: kill it before or after one named step, once, as the orders of the rig say.

The orders are a file that the rig replaces at any time; it is looked at whenever a step is reached.
"""

from __future__ import annotations

import enum
import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.crash.steps import AT_SOURCE, MODULES, steps_of

ENVIRONMENT = "CRASH_ORDERS"


class Moment(enum.Enum):
    """When, as seen from the step."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Orders:
    """Die at the ``count``-th time that ``step`` is reached from now on; the keeper first, where ``both``. ``number``
    tells these orders from those before."""

    number: int
    step: str
    moment: str
    count: int = 1
    both: bool = False


def give(path: Path, orders: Orders) -> None:
    """Put orders in the place of those before."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(orders)))
    new.rename(path)


def withdraw(path: Path) -> None:
    """Nobody is to die any more: orders that were not reached would kill a later server."""
    path.unlink(missing_ok=True)


def were_carried_out(path: Path, orders: Orders) -> bool:
    return _done(os.fspath(path), orders).exists()


class Failpoints:
    """What one server has reached."""

    def __init__(self, path: str, kill: Callable[[int, int], None] = os.kill) -> None:
        self._path = path
        self._kill = kill
        self._turn = threading.Lock()
        self._number = 0
        self._reached = 0

    def reach(self, step: str, moment: Moment) -> None:
        """Does not return when the orders are to die here."""
        try:
            with open(self._path, encoding="ascii") as file:
                orders = Orders(**json.load(file))
        except FileNotFoundError:
            return
        if (orders.step, orders.moment) != (step, moment.value) or _done(self._path, orders).exists():
            return
        with self._turn:
            self._reached = self._reached + 1 if orders.number == self._number else 1
            self._number = orders.number
            if self._reached == orders.count:
                self._die(orders)

    def _die(self, orders: Orders) -> None:
        _done(self._path, orders).touch()
        if orders.both:
            self._kill(os.getppid(), signal.SIGKILL)
        self._kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal takes a moment to reach this thread

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The step with a failpoint on either side."""

        @functools.wraps(function)
        def step(*args: Any, **kwargs: Any) -> Any:
            self.reach(name, Moment.BEFORE)
            result = function(*args, **kwargs)
            self.reach(name, Moment.AFTER)
            return result

        return step

    def put_into(self, module: ModuleType) -> None:
        for found in tuple(steps_of(module)):
            name = found.function.__name__
            wrapped: Any = self.around(found.name, found.function)
            if isinstance(vars(found.owner)[name], classmethod):
                wrapped = classmethod(wrapped)
            setattr(found.owner, name, wrapped)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules with steps as everybody does, and puts the failpoints in once they are executed: before any
    other module can take a function out of them."""

    def __init__(self, failpoints: Failpoints) -> None:
        self._failpoints = failpoints

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES and fullname not in AT_SOURCE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._failpoints)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, failpoints: Failpoints) -> None:
        self._loader = loader
        self._failpoints = failpoints

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._failpoints.put_into(module)


def install(path: str) -> None:
    """From now on every step that is imported looks for orders at ``path``."""
    sys.meta_path.insert(0, _Finder(Failpoints(path)))


def _done(path: str, orders: Orders) -> Path:
    return Path(f"{path}.done-{orders.number}")
