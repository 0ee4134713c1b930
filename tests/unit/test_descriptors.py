"""A descriptor is closed by whoever leaves last, once, and never under a user's feet."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from cachefs.descriptors import Descriptor


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
