"""The kernel-mode table against the kernel's own rules, every mode and wish."""

from __future__ import annotations

import itertools

import pytest

from cachefs.fs.modes import TABLE, Answer, Mode, Wish

POSSIBLE = [
    (mode, wish)
    for mode, wish in itertools.product(Mode, Wish)
    if not (wish is Wish.SAME and mode is not Mode.PASSTHROUGH)
]


def test_every_open_has_an_answer() -> None:
    assert set(TABLE) == set(POSSIBLE)


@pytest.mark.parametrize(("mode", "wish"), POSSIBLE)
def test_kernel_accepts_the_answer(mode: Mode, wish: Wish) -> None:
    """A plain open while passthrough is on fails with EIO, and the reverse too."""
    answer = TABLE[mode, wish].answer
    if mode is Mode.PASSTHROUGH:
        assert answer in (Answer.PASSTHROUGH, Answer.DIRECT)
    if mode is Mode.CACHING:
        assert answer is Answer.PLAIN


@pytest.mark.parametrize(("mode", "wish"), POSSIBLE)
def test_mode_after_the_open_is_what_the_kernel_was_told(mode: Mode, wish: Wish) -> None:
    step = TABLE[mode, wish]
    assert step.mode is (Mode.CACHING if step.answer is Answer.PLAIN else Mode.PASSTHROUGH)


@pytest.mark.parametrize("mode", Mode)
def test_a_writer_always_reaches_the_daemon(mode: Mode) -> None:
    assert TABLE[mode, Wish.WRITE].answer is not Answer.PASSTHROUGH


def test_an_idle_inode_with_a_complete_entry_is_the_kernels() -> None:
    assert TABLE[Mode.IDLE, Wish.PUBLISHED].answer is Answer.PASSTHROUGH


def test_a_second_backing_file_is_never_named() -> None:
    """One backing file per inode while anybody has it open; another one is EIO."""
    assert TABLE[Mode.PASSTHROUGH, Wish.PUBLISHED].answer is Answer.DIRECT
    assert TABLE[Mode.PASSTHROUGH, Wish.SAME].answer is Answer.PASSTHROUGH
