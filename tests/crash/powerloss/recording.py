"""What was done to a folder, call by call: made by ``scenario`` or ``moving`` under ``shim.c``, read back as values."""

from __future__ import annotations

import enum
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.standin.running import REPOSITORY

_HEAD = struct.Struct("<IIIIQq")


class Kind(enum.IntEnum):
    """``enum kind`` of the shim."""

    MARK = 0
    CREATE = 1
    MKDIR = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC = 5
    SYNC_FOLDER = 6
    RENAME = 7
    UNLINK = 8
    RMDIR = 9
    XATTR = 10
    TIMES = 11
    UNKNOWN = 12


@dataclass(frozen=True, slots=True)
class Call:
    """One call. ``path`` and ``new`` are below the recorded folder (empty: itself); ``file`` is a number that no other
    file of the recording has. ``number``: offset, size or time."""

    kind: Kind
    path: str = ""
    new: str = ""
    file: int = 0
    number: int = 0
    data: bytes = b""


def record(root: Path, folder: Path, scenario: str) -> tuple[Call, ...]:
    """Run a module under the shim, with the folder ``root`` as its argument: the empty cache folder, or what holds it
    and a source. The recording stays in ``folder``."""
    shim = build_shim(folder)
    out = folder / "recording"
    environ = {**os.environ, "LD_PRELOAD": os.fspath(shim), "CRASH_RECORD": os.fspath(out), "CRASH_ROOT": str(root)}
    environ["PYTHONPATH"] = os.fspath(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-m", scenario, os.fspath(root)],
        env=environ,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{scenario} ended with {done.returncode}:\n{done.stderr}")
    return tuple(parse(out.read_bytes(), os.fspath(root)))


def build_shim(folder: Path) -> Path:
    """Compile it. ``CalledProcessError`` without a compiler; cachefs itself needs one to be built."""
    shim = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        ["gcc", "-std=gnu11", "-Wall", "-O1", "-fPIC", "-shared", os.fspath(source), "-o", os.fspath(shim)], check=True
    )
    return shim


def parse(data: bytes, root: str) -> Iterator[Call]:
    """The calls of a recording. ``ValueError`` for one that the shim cannot describe."""
    files: dict[int, int] = {}
    at = created = 0
    while at < len(data):
        kind, *lengths, inode, number = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        one, other, blob = (data[start : start + length] for start, length in _spans(at, lengths))
        at += sum(lengths)
        if kind == Kind.UNKNOWN:
            raise ValueError(f"a call that the recording cannot describe: {os.fsdecode(other)} {os.fsdecode(one)}")
        if kind == Kind.CREATE:
            created += 1
            files[inode] = created
        named = kind in (Kind.MARK, Kind.XATTR)
        path, new = (os.fsdecode(text) if named else _below(os.fsdecode(text), root) for text in (one, other))
        yield Call(Kind(kind), path, new, files.get(inode, 0), number, blob)


def _spans(at: int, lengths: list[int]) -> Iterator[tuple[int, int]]:
    for length in lengths:
        yield at, length
        at += length


def _below(path: str, root: str) -> str:
    return path.removeprefix(root).removeprefix("/").removesuffix(" (deleted)")
