"""System calls that few programs make: in the mount they do what they do on a disk, or are refused as the kernel
refuses them on a file system that does not know them. Never do they half work."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import wait_until
from tests.mount.realfiles import mounted
from tests.standin.running import RunningCachefs

PAGE = 4096
GIB = 1 << 30
CONTENT = random.Random(9).randbytes(MIB)
UNKNOWN = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EISDIR}
"""How the kernel says that a file system does not know a call; EISDIR: O_TMPFILE on one that never heard of it."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[RunningCachefs, Path]]:
    """A mount that all tests here share, and its source."""
    with mounted("Media") as (running, base):
        yield running, base / "Media"


@pytest.fixture(params=["at its source", "cached"])
def film(shared: tuple[RunningCachefs, Path], request: pytest.FixtureRequest) -> Path:
    """A file of the test's own in the mount, at its source alone or on the SSD as well."""
    running, _ = shared
    path = running.mountpoint / "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    path.write_bytes(CONTENT)
    if request.param == "cached":
        with running.client() as client:
            client.copy(str(path))
        wait_until(running, lambda: os.getxattr(path, STATE) == b"cached", "it is cached")
    return path


@pytest.fixture
def behind(shared: tuple[RunningCachefs, Path], film: Path) -> Path:
    return shared[1] / film.name


def known(call: Callable[[], object]) -> bool:
    """Whether the call worked; False when the file system does not know it. Any other error is raised."""
    try:
        call()
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        return False
    return True


def fallocate(handle: int, mode: int, start: int, length: int) -> None:
    if _libc.fallocate(handle, mode, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# --- large and sparse files ------------------------------------------------------------------------------------------


def test_a_file_of_more_than_4_gib_is_read_and_written_at_its_end(shared: tuple[RunningCachefs, Path]) -> None:
    running, source = shared
    with (source / "large").open("wb") as file:
        file.truncate(5 * GIB)
        file.seek(5 * GIB - 6)
        file.write(b"behind")
    large = running.mountpoint / "large"
    assert large.stat().st_size == 5 * GIB
    with large.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 100, 5 * GIB - 6) == b"behind"
        assert os.pread(file.fileno(), 100, 5 * GIB) == b""
        assert os.pread(file.fileno(), 4, 4 * GIB - 2) == bytes(4)
        assert os.pwrite(file.fileno(), b"across", 4 * GIB - 3) == 6
        assert os.pwrite(file.fileno(), b"further", 6 * GIB) == 7
        with mmap.mmap(file.fileno(), PAGE, offset=4 * GIB) as mapped:
            assert mapped[:3] == b"oss"
    assert large.stat().st_size == 6 * GIB + 7
    with (source / "large").open("rb") as file:
        assert os.pread(file.fileno(), 8, 4 * GIB - 4) == b"\0across\0"
        assert os.pread(file.fileno(), 8, 6 * GIB) == b"further"
    assert (source / "large").stat().st_blocks * 512 < GIB
    large.unlink()


def test_no_data_lies_where_a_hole_is_shown(film: Path) -> None:
    """A file system that does not know holes shows one at the end alone, as the kernel does for it."""
    with film.open("r+b", buffering=0) as file:
        file.truncate(0)
        file.truncate(8 * MIB)
        os.pwrite(file.fileno(), CONTENT, 4 * MIB)
        os.fsync(file.fileno())
        first = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert first <= 4 * MIB
        assert os.lseek(file.fileno(), 4 * MIB + 5, os.SEEK_DATA) == 4 * MIB + 5
        assert os.lseek(file.fileno(), 4 * MIB, os.SEEK_HOLE) in (5 * MIB, 8 * MIB)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError, match=r"No such device or address"):
                os.lseek(file.fileno(), 8 * MIB, whence)
        assert os.lseek(file.fileno(), -1, os.SEEK_END) == 8 * MIB - 1


# --- without a name, without the page cache --------------------------------------------------------------------------


def test_a_file_without_a_name_can_be_given_one_or_is_refused(shared: tuple[RunningCachefs, Path]) -> None:
    running, source = shared
    before = sorted(os.listdir(source))

    def nameless() -> None:
        handle = os.open(running.mountpoint, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.write(handle, b"nameless")
            assert os.fstat(handle).st_nlink == 0
            assert sorted(os.listdir(source)) == before
            os.link(f"/proc/self/fd/{handle}", running.mountpoint / "named", follow_symlinks=True)
        finally:
            os.close(handle)
        assert (source / "named").read_bytes() == b"nameless"
        (running.mountpoint / "named").unlink()

    known(nameless)
    assert sorted(os.listdir(source)) == before


def test_o_direct_reads_and_writes_the_same_bytes(film: Path, behind: Path) -> None:
    handle = os.open(film, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 16 * PAGE) as pages:
            assert os.preadv(handle, [pages], PAGE) == 16 * PAGE
            assert pages[:] == CONTENT[PAGE : 17 * PAGE]
            pages[:] = CONTENT[: 16 * PAGE]
            assert os.pwritev(handle, [pages], 3 * PAGE) == 16 * PAGE
            assert os.preadv(handle, [pages], MIB - PAGE) == PAGE
            assert pages[:PAGE] == CONTENT[-PAGE:]
    finally:
        os.close(handle)
    wanted = CONTENT[: 3 * PAGE] + CONTENT[: 16 * PAGE] + CONTENT[19 * PAGE :]
    assert read(film) == behind.read_bytes() == wanted


def test_o_direct_and_an_ordinary_reader_see_the_same(film: Path) -> None:
    with film.open("rb", buffering=0) as reader, mmap.mmap(-1, PAGE) as page:
        assert reader.read(PAGE) == CONTENT[:PAGE]
        handle = os.open(film, os.O_WRONLY | os.O_DIRECT)
        page[:] = b"x" * PAGE
        assert os.pwritev(handle, [page], 0) == PAGE
        os.close(handle)
        assert os.pread(reader.fileno(), PAGE, 0) == b"x" * PAGE


# --- room and pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "start", "size", "content"),
    [
        (0, MIB, MIB + PAGE, CONTENT + bytes(PAGE)),
        (KEEP_SIZE, MIB, MIB, CONTENT),
        (PUNCH_HOLE | KEEP_SIZE, PAGE, MIB, CONTENT[:PAGE] + bytes(PAGE) + CONTENT[2 * PAGE :]),
        (ZERO_RANGE, PAGE, MIB, CONTENT[:PAGE] + bytes(PAGE) + CONTENT[2 * PAGE :]),
    ],
    ids=["allocate", "keep size", "punch hole", "zero range"],
)
def test_fallocate_does_all_of_its_work_or_nothing(
    film: Path, behind: Path, mode: int, start: int, size: int, content: bytes
) -> None:
    with film.open("r+b", buffering=0) as file, film.open("rb", buffering=0) as reader:
        done = known(lambda: fallocate(file.fileno(), mode, start, PAGE))
        assert os.fstat(reader.fileno()).st_size == (size if done else MIB)
        assert os.pread(reader.fileno(), 2 * MIB, 0) == (content if done else CONTENT)
    assert behind.read_bytes() == read(film) == (content if done else CONTENT)


def test_posix_fallocate_makes_room_in_one_way_or_the_other(film: Path, behind: Path) -> None:
    with film.open("r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), MIB - 5, PAGE)
    assert read(film) == behind.read_bytes() == CONTENT + bytes(PAGE - 5)


def test_copy_file_range_copies_within_the_mount(film: Path, behind: Path) -> None:
    new = film.with_suffix(".new")
    with film.open("r+b", buffering=0) as old, new.open("w+b", buffering=0) as file:
        done = 0
        while part := os.copy_file_range(old.fileno(), file.fileno(), MIB, done, done):
            done += part
        assert os.copy_file_range(file.fileno(), old.fileno(), PAGE, PAGE, 0) == PAGE
        assert os.pread(old.fileno(), PAGE, 0) == CONTENT[PAGE : 2 * PAGE]
    assert done == MIB
    assert read(new) == behind.with_suffix(".new").read_bytes() == CONTENT
    assert read(film) == behind.read_bytes() == CONTENT[PAGE : 2 * PAGE] + CONTENT[PAGE:]


def test_sendfile_sends_every_byte_to_a_socket_and_to_a_file(film: Path, tmp_path: Path) -> None:
    with film.open("rb") as file, (tmp_path / "sent").open("wb") as out:
        done = 0
        while part := os.sendfile(out.fileno(), file.fileno(), done, 300_000):
            done += part
        here, there = socket.socketpair()
        with closing(here), closing(there):
            assert os.sendfile(here.fileno(), file.fileno(), 1000, 50_000) == 50_000
            assert there.recv(50_000, socket.MSG_WAITALL) == CONTENT[1000:51_000]
    assert (tmp_path / "sent").read_bytes() == CONTENT


def test_splice_carries_bytes_from_a_film_and_into_one(film: Path, behind: Path) -> None:
    reading, writing = os.pipe()
    with film.open("r+b", buffering=0) as file:
        moved = os.splice(file.fileno(), writing, PAGE, offset_src=PAGE)
        assert os.splice(reading, file.fileno(), moved, offset_dst=10 * PAGE) == moved
        assert moved == PAGE
    os.close(reading)
    os.close(writing)
    assert read(film) == behind.read_bytes()
    assert read(film) == CONTENT[: 10 * PAGE] + CONTENT[PAGE : 2 * PAGE] + CONTENT[11 * PAGE :]
