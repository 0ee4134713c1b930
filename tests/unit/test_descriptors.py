"""A descriptor is closed by whoever leaves last, once, and never under a user's feet."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.descriptors import Descriptor, open_below


@pytest.fixture
def descriptor() -> Iterator[Descriptor]:
    reading, writing = os.pipe()
    os.close(writing)
    made = Descriptor(reading)
    yield made
    made.close()


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_close_closes(descriptor: Descriptor) -> None:
    descriptor.close()
    assert descriptor.closed
    assert not is_open(descriptor.number)


def test_closing_twice_closes_nobody_elses_descriptor(descriptor: Descriptor) -> None:
    descriptor.close()
    other = os.dup2(0, descriptor.number)
    descriptor.close()
    assert is_open(other)
    os.close(other)


def test_a_closed_descriptor_is_open_until_its_last_user_leaves(descriptor: Descriptor) -> None:
    with descriptor.use() as outer:
        with descriptor.use():
            descriptor.close()
        assert is_open(outer)
    assert not is_open(descriptor.number)


def test_a_closed_descriptor_takes_no_new_users(descriptor: Descriptor) -> None:
    with descriptor.use():
        descriptor.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)), descriptor.use():
            pytest.fail("it was used")


def test_a_user_that_fails_leaves_too(descriptor: Descriptor) -> None:
    with pytest.raises(ValueError, match="failed"), descriptor.use():
        raise ValueError("failed")
    descriptor.close()
    assert not is_open(descriptor.number)


def test_many_threads_close_it_exactly_once(descriptor: Descriptor) -> None:
    start = threading.Barrier(9)
    seen: list[bool] = []

    def uses() -> None:
        start.wait()
        for _ in range(200):
            try:
                with descriptor.use() as number:
                    seen.append(is_open(number))
            except OSError:
                return

    threads = [threading.Thread(target=uses) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    descriptor.close()
    for thread in threads:
        thread.join()
    assert all(seen)
    assert not is_open(descriptor.number)


def test_a_file_below_a_place_is_opened_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "ours" / "deep").mkdir(parents=True)
    (tmp_path / "ours" / "deep" / "a").write_bytes(b"ours")
    (tmp_path / "ours" / "folder").symlink_to("deep")
    (tmp_path / "ours" / "deep" / "link").symlink_to("a")
    place = os.open(tmp_path / "ours", os.O_PATH | os.O_DIRECTORY)
    try:
        number = open_below(f"/proc/self/fd/{place}/deep/a", os.O_RDONLY)
        assert os.read(number, 10) == b"ours"
        os.close(number)
        for name in ("folder/a", "deep/link"):
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                open_below(f"/proc/self/fd/{place}/{name}", os.O_RDONLY)
    finally:
        os.close(place)
