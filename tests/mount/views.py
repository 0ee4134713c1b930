"""What another container sees: a process with a mount namespace of its own, as every container has, without an engine.

Its folder is bound as ``-v FOLDER:/data`` (private) or ``-v FOLDER:/data:rslave`` would be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_ENDS_WITHIN_S = 20.0

_SCRIPT = """
import errno, json, os, subprocess, sys, threading

propagation, folder, data = sys.argv[1:]
subprocess.run(["mount", "--make-r" + propagation, "/"], check=True)
subprocess.run(["mount", "--rbind", folder, data], check=True)
held, seen, watched = {}, [], threading.Event()

def listed(path):
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return errno.errorcode[error.errno]

def hold(path):
    held[path] = os.open(path, os.O_RDONLY)
    return len(held)

def read(path, offset):
    os.posix_fadvise(held[path], 0, 0, os.POSIX_FADV_DONTNEED)
    return len(os.pread(held[path], 4096, offset))

def watch(path):
    def look():
        while not watched.is_set():
            now = listed(path)
            if now not in seen:
                seen.append(now)
    threading.Thread(target=look, daemon=True).start()

def watched_so_far():
    watched.set()
    return seen

def state(path):
    return os.getxattr(path, "user.cachefs.state").decode()

for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = globals()[name](*arguments)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(json.dumps(answer), flush=True)
"""


class View:
    """One other container; every answer is a value, or the name of the errno that came instead."""

    def __init__(self, process: subprocess.Popen[str], data: Path) -> None:
        self._process = process
        self.data = data

    def ask(self, name: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *map(_plain, arguments)]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def list(self, path: str = "") -> list[str] | str:
        listed: list[str] | str = self.ask("listed", self.data / path)
        return listed

    def end(self) -> None:
        self._process.kill()
        self._process.wait(_ENDS_WITHIN_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, Path) else value


@contextmanager
def view_of(folder: Path, data: Path, propagation: str) -> Iterator[View]:
    """Another container with ``folder`` at ``data``, whose mounts are ``private`` or ``slave``."""
    data.mkdir()
    command = ["unshare", "-m", "--propagation", "unchanged", sys.executable, "-c", _SCRIPT]
    with ExitStack() as stack:
        process = subprocess.Popen(
            [*command, propagation, folder, data], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        view = View(process, data)
        stack.callback(view.end)
        view.list()  # it is there
        yield view


@contextmanager
def shared(folder: Path) -> Iterator[Path]:
    """``mount --bind FOLDER FOLDER; mount --make-rshared FOLDER``, undone at the end."""
    _run("mount", "--bind", folder, folder)
    try:
        _run("mount", "--make-private", folder)
        _run("mount", "--make-rshared", folder)
        yield folder
    finally:
        _run("umount", "-R", folder)


def _run(*command: str | Path, also: Sequence[int] = ()) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode in (0, *also), done.stderr
