"""The same file system for somebody who is not root: the scenarios and programs again, mounted and used by such a user.

The tests themselves are run once more, by a pytest of that user's. It lives in a mount namespace of its own, where
/dev/fuse is open to everybody, as it is on most machines. Nothing of the machine is changed, and what is mounted ends
with it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.standin.running import REPOSITORY

NOBODY = "65534"
"""fusermount3 wants a user with a name."""
_ENDS_WITHIN_S = 150.0
_IN_A_NAMESPACE = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
_OPEN_THE_DEVICE = 'test -e "$1" && mount --bind "$1" /dev/fuse; shift; exec "$@"'
_READS_PYTHON = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""The Python that runs this may lie in the home of root."""
_AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *_READS_PYTHON)
_WHAT = "test_through_a_mount or rsync or git"


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this is an ordinary user already")
@pytest.mark.timeout(180)
def test_an_ordinary_user_mounts_and_finds_the_same_file_system() -> None:
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        home, device = Path(folder) / "home", Path(folder) / "fuse"
        home.mkdir()
        os.chown(home, int(NOBODY), int(NOBODY))
        os.chmod(folder, 0o755)
        found = os.stat("/dev/fuse")
        if found.st_mode & 0o006 != 0o006:
            os.mknod(device, stat.S_IFCHR, found.st_rdev)
            os.chmod(device, 0o666)
        pytest_again = (
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"--basetemp={home}/tests",
        )
        tests = ("tests/mount/test_fileops.py", "tests/mount/test_programs.py", "-k", _WHAT)
        done = subprocess.run(
            [*_IN_A_NAMESPACE, _OPEN_THE_DEVICE, "sh", str(device), *_AS_NOBODY, *pytest_again, *tests],
            cwd=REPOSITORY,
            env={**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ENDS_WITHIN_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
