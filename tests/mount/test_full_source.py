"""A disk fills up below the mount: who writes is told what the disk says, and nothing is half there."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import STATE, errno_of, read
from tests.mount.lives import settings_in, wait_until
from tests.smalldisk import small_disk
from tests.standin.running import RunningCachefs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root only")

Start = Callable[[dict[str, Any]], RunningCachefs]

KIB = 1 << 10
CONTENT = random.Random(3).randbytes(256 * KIB)
FILES = ("cached.mkv", "uncached.mkv")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A source of 4 MiB and 40 files, and an SSD of 6 MiB; the same files in ``native`` and ``through``."""
    with settings_in(tmp_path) as made, ExitStack() as stack:
        for name, options in (("media", "size=4m,nr_inodes=40"), ("ssd", "size=6m")):
            stack.enter_context(small_disk(tmp_path / name, options))
        for folder in ("native", "through"):
            (tmp_path / "media" / folder).mkdir()
            for name in FILES:
                (tmp_path / "media" / folder / name).write_bytes(CONTENT)
        made["cache"] |= {"path": str(tmp_path / "ssd" / "cache"), "min_free": "64KiB"}
        yield made


def fill(folder: Path) -> Path:
    """Leave not one byte free."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (64 * KIB, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def use_up_inodes(folder: Path) -> list[Path]:
    made: list[Path] = []
    with suppress(OSError):
        while True:
            (folder / f"one of many {len(made)}").touch()
            made.append(folder / f"one of many {len(made)}")
    return made


def cached(running: RunningCachefs, name: str) -> None:
    with running.client() as client:
        client.copy(name)
    wait_until(running, lambda: os.getxattr(running.mountpoint / name, STATE) == b"cached", f"{name} is cached")


def write(path: Path, offset: int, size: int) -> int:
    """How much of it was written, or minus the errno of opening or writing it."""
    try:
        with path.open("r+b", buffering=0) as file:
            return os.pwrite(file.fileno(), b"new" * (size // 3), offset)
    except OSError as error:
        return -(error.errno or 0)


def outcomes(folder: Path) -> dict[str, int]:
    """What the writing calls come to in a folder of a full disk."""
    found: dict[str, int] = {}
    for name in FILES:
        found[f"append to {name}"] = write(folder / name, len(CONTENT), 300 * KIB)
        os.truncate(folder / name, len(CONTENT))
        found[f"write into {name}"] = write(folder / name, 1000, 100 * KIB)
        found[f"set an attribute of {name}"] = errno_of(os.setxattr, folder / name, "user.large", bytes(3000))
        found[f"rename {name}"] = errno_of(os.rename, folder / name, folder / f"other {name}")
        found[f"rename {name} back"] = errno_of(os.rename, folder / f"other {name}", folder / name)
    found["create"] = errno_of((folder / "new").touch)
    found["write to a new file"] = errno_of((folder / "new").write_bytes, bytes(100))
    found["make a folder"] = errno_of((folder / "folder").mkdir)
    found["make a link"] = errno_of(os.symlink, "target", folder / "link")
    for name in ("new", "link"):
        (folder / name).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        (folder / "folder").rmdir()
    return found


def test_who_writes_to_a_full_source_gets_exactly_its_error(
    settings: dict[str, Any], tmp_path: Path, start_mount: Start
) -> None:
    running = start_mount(settings)
    media, through = tmp_path / "media", running.mountpoint / "through"
    cached(running, "through/cached.mkv")
    with (through / "cached.mkv").open("rb", buffering=0) as reader:  # the kernel reads it by itself, where it can
        made = use_up_inodes(media)  # first: what is deleted through the mount gives its inode back a little later
        _is_the_same(through, media)
        for path in made:
            path.unlink()
        filler = fill(media)
        _is_the_same(through, media)
        assert errno.ENOSPC in {-result for result in outcomes(through).values()}
        os.truncate(filler, filler.stat().st_size - 64 * KIB)
        for name in FILES:
            written = write(media / "native" / name, len(CONTENT), 300 * KIB)
            os.truncate(media / "native" / name, len(CONTENT))
            assert write(through / name, len(CONTENT), 300 * KIB) == written == 64 * KIB, "as much as there is room"
            reader.seek(0)
            whole = CONTENT[:1000] + (b"new" * (100 * KIB // 3)) + CONTENT[1000 + 100 * KIB // 3 * 3 :]
            written_too = b"new" * (64 * KIB // 3 + 1)
            assert read(through / name) == read(media / "through" / name) == whole + written_too[: 64 * KIB]
            os.truncate(through / name, len(CONTENT))
        filler.unlink()
    cached(running, "through/uncached.mkv")
    (through / "new").write_bytes(CONTENT)
    assert read(through / "new") == read(media / "through" / "new") == CONTENT
    with running.client() as client:
        assert client.verify("", content=True, repair=False, show=lambda _: None).sound


def _is_the_same(through: Path, media: Path) -> None:
    native = outcomes(media / "native")
    assert outcomes(through) == native
    for name in FILES:
        assert read(through / name) == read(media / "through" / name) == read(media / "native" / name)


def test_a_moved_file_survives_a_full_ssd_and_waits_for_room_at_its_full_source(
    settings: dict[str, Any], tmp_path: Path, start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings += ["the cache folder .* fails: copying pauses"]
    settings["cache"]["mode"] = "move"
    running = start_mount(settings)
    media, ssd, film = tmp_path / "media", tmp_path / "ssd", running.mountpoint / "through" / "cached.mkv"
    cached(running, "through/cached.mkv")
    wait_until(running, lambda: not (media / "through" / "cached.mkv").exists(), "it has moved")
    filler = fill(ssd)
    assert -write(film, len(CONTENT), 300 * KIB) == errno.ENOSPC
    assert read(film) == CONTENT
    filler.unlink()
    assert write(film, len(CONTENT), 3 * KIB) == 3 * KIB
    grown = CONTENT + b"new" * KIB
    filler = fill(media)
    restored = running.run("restore", "through/cached.mkv")
    why = "its source has no room for it (No space left on device)"
    assert (restored.returncode, why in restored.stderr) == (4, True)
    assert why in repr(running.status())
    assert sum(path.stat().st_blocks for path in (media / ".cachefs-moved").iterdir()) == 0, "its room is given back"
    assert read(film) == grown
    filler.unlink()
    with running.client() as client:
        assert not client.restore("through/cached.mkv", lambda _: None).left
        assert client.verify("", content=True, repair=False, show=lambda _: None).sound
    assert read(film) == read(media / "through" / "cached.mkv") == grown
