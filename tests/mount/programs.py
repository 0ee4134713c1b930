"""Programs beside this one that work in the mount: found and run to their end, or fed with a script of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ENDS_WITHIN_S = 60.0


def run(program: str, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and give what it wrote; the test fails when it does, or is not installed."""
    if shutil.which(program) is None:
        pytest.fail(f"this test runs {program}, which is not installed: install the package of that name")
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"} | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"{program} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Script:
    """Python in a process of its own: it says a line and waits for one, as often as it likes."""

    def __init__(self, text: str, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        """Its next line; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "go on") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ends(self) -> None:
        """It has nothing more to say, and did not fail."""
        output, _ = self.process.communicate(timeout=ENDS_WITHIN_S)
        assert self.process.returncode == 0, output


@contextmanager
def scripts(text: str, *argument_lists: tuple[str | Path, ...]) -> Iterator[list[Script]]:
    """One process for each list of arguments, all ended with the block."""
    started: list[Script] = []
    try:
        for arguments in argument_lists:
            started.append(Script(text, *arguments))
        yield started
    finally:
        for script in started:
            script.process.kill()
            script.process.communicate()
