"""Who has a file open, as the kernel tells it to root without CAP_LEASE, as in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachefs import leases
from cachefs.leases import READ, WRITE, Lease

ASK = """
import os, sys
from cachefs import leases
number = os.open(sys.argv[1], os.O_RDWR)
try:
    print(leases.take(number, leases.WRITE).name, leases.holds(number, leases.WRITE), os.stat(sys.argv[1]).st_uid)
except OSError as error:
    print(error)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "film.mkv"
    path.write_bytes(b"x")
    return path


def test_a_lease_is_granted_where_nobody_is_in_the_way(file: Path) -> None:
    number = os.open(file, os.O_RDONLY)
    assert leases.take(number, READ) is Lease.GRANTED
    assert leases.holds(number, READ)
    leases.give_back(number)
    with file.open("ab"):
        assert leases.take(number, READ) is Lease.REFUSED
    other = os.open(file, os.O_RDWR)
    assert leases.take(other, WRITE) is Lease.REFUSED
    os.close(number)
    assert leases.take(other, WRITE) is Lease.GRANTED
    os.close(other)


def test_where_there_are_none_nobody_knows(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert leases.take(number, READ) is Lease.UNKNOWN
    os.close(number)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_needs_no_right_of_its_own_for_somebody_elses_file(file: Path) -> None:
    os.chown(file, 12345, 12345)
    done = subprocess.run(
        ["setpriv", "--bounding-set=-lease", "--inh-caps=-lease", sys.executable, "-c", ASK, file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["GRANTED", "True", "12345"]), done.stderr
