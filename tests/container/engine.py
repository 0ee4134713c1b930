"""podman and buildah as this trial uses them; nothing here knows what is tried. Errors say what the engine said."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLIENTS = ("podman", "buildah", "runc")
GRACE_S = 10
"""What Docker gives a container to end, and podman."""
_RUNTIME = ("--runtime", "runc")
_LIMITS = ("--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=2000:2000")
"""Machines that are containers themselves refuse to raise limits."""
_WITHIN_S = 60.0


class Failed(Exception):
    """Something is not as it must be."""


@dataclass(frozen=True, slots=True)
class Said:
    """The end of a command."""

    code: int
    out: str
    err: str
    took_s: float

    @property
    def all(self) -> str:
        return self.out + self.err


def run(*command: str | Path, check: bool = True) -> Said:
    began = time.monotonic()
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    said = Said(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
    if check and done.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said.all[-3000:]}")
    return said


def podman(*arguments: str | Path, check: bool = True) -> Said:
    return run("podman", *_RUNTIME, *arguments, check=check)


def build(image: str, folder: Path, options: Sequence[str]) -> None:
    """The Dockerfile in ``folder``; in the format that knows health checks."""
    isolation = ("--isolation", "chroot", "--network", "host", "--format", "docker")
    run("buildah", "bud", *isolation, *options, "-t", image, folder)


@dataclass(frozen=True, slots=True)
class Container:
    """One container, by its name."""

    name: str

    def execute(self, *command: str) -> Said:
        return podman("exec", self.name, *command, check=False)

    def stop(self) -> Said:
        return podman("stop", "-t", str(GRACE_S), self.name)

    def kill(self) -> None:
        """As a crash of the engine would; returns when it is over."""
        podman("kill", "-s", "KILL", self.name)
        podman("wait", self.name)

    def start(self) -> None:
        podman("start", self.name)

    def is_healthy(self) -> bool:
        return podman("healthcheck", "run", self.name, check=False).code == 0

    def exit_code(self) -> int:
        return int(podman("inspect", "--format", "{{.State.ExitCode}}", self.name).out)

    def log(self) -> str:
        return podman("logs", self.name, check=False).all

    def remove(self) -> None:
        podman("rm", "-f", "-t", str(GRACE_S), self.name, check=False)


@contextmanager
def container(name: str, image: str, options: Sequence[str | Path], command: Sequence[str] = ()) -> Iterator[Container]:
    """A running container, removed at the end."""
    made = Container(name)
    made.remove()
    try:
        podman("run", "-d", "--name", name, *_LIMITS, *options, image, *command)
        yield made
    finally:
        made.remove()


def attempt(image: str, options: Sequence[str | Path], command: Sequence[str] = ()) -> Said:
    """A container that ends by itself."""
    return podman("run", "--rm", *_LIMITS, *options, image, *command, check=False)


def variables(values: Mapping[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in ("-e", f"{name}={value}")]


def wait_until(condition: Callable[[], bool], what: str, running: Container) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {_WITHIN_S:g} s: {what}\n{running.log()[-3000:]}")
        time.sleep(0.2)
