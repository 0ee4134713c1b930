"""What ``df`` shows."""

from __future__ import annotations

import os
from dataclasses import astuple

import pytest

from cachefs.fs.space import Space, total


def status(
    fsid: int, *, frsize: int = 4096, blocks: int = 100, free: int = 50, namemax: int = 255
) -> os.statvfs_result:
    """bsize frsize blocks bfree bavail files ffree favail flag namemax fsid"""
    return os.statvfs_result((65536, frsize, blocks, free, free - 5, 1000, 900, 900, 0, namemax, fsid))


def test_one_source_shows_its_own_numbers_in_its_own_blocks() -> None:
    assert total([status(1, frsize=1024)]) == Space(1024, 100, 50, 45, 1000, 900, 255)


def test_several_file_systems_add_up_in_bytes() -> None:
    found = total([status(1, frsize=8192), status(2, frsize=1024)])
    assert found.blocks * found.block_bytes == 100 * 8192 + 100 * 1024
    assert found.free * found.block_bytes == 50 * 8192 + 48 * 1024  # whole blocks of 4 KiB
    assert (found.files, found.files_free) == (2000, 1800)


def test_two_sources_on_one_file_system_count_once() -> None:
    assert total([status(1), status(1)]) == total([status(1)])


def test_file_systems_without_an_id_are_told_apart_by_their_size() -> None:
    assert total([status(0, blocks=100), status(0, blocks=200)]).blocks == 300


def test_the_shortest_limit_of_names_holds_for_all() -> None:
    assert total([status(1, namemax=255), status(2, namemax=143)]).longest_name == 143


@pytest.mark.parametrize("frsize", [512, 4096, 1 << 20])
def test_no_number_is_negative(frsize: int) -> None:
    assert min(astuple(total([status(1, frsize=frsize), status(2)]))) >= 0
