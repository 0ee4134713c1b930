"""POSIX ACLs in a mount that enforces them (``acl: on``): who may do what is what it is at the source."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.control.client import Client
from tests.mount.kit import STATE, errno_of
from tests.mount.lives import settings_in, wait_until
from tests.mount.realfiles import RealFiles, User, entries, mounted, refusal, set_acl
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk, slow_disk
from tests.standin.slowdisk_process import FAST
from tests.standin.slowdisk_rules import IN_MEMORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

ANNA = User(7001, 7001, (7100,))
BERT = User(7002, 7002)
ACCESS = "system.posix_acl_access"
CONTENT = b"film" * 100_000
AWAY = [r"is offline", r"is away", r"ENOTCONN|not connected"]
SEEN_WITHIN_S = 2.0

Start = Callable[[dict[str, Any]], RunningCachefs]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def one_mount() -> Iterator[tuple[RunningCachefs, Client, RealFiles]]:
    """A mount that all tests here share."""
    with mounted("Media", acl="on") as (running, base), running.client() as client:
        yield running, client, RealFiles(running.mountpoint, base / "Media")


@pytest.fixture
def files(one_mount: tuple[RunningCachefs, Client, RealFiles], request: pytest.FixtureRequest) -> RealFiles:
    """A folder of the test's own in the shared mount, with a file in it that is root's alone."""
    *_, shared = one_mount
    name = re.sub(r"\W", "_", request.node.name)
    shared.mkdir(name)
    made = RealFiles(shared.folder / name, shared.behind / name)
    (made.behind / "film").write_bytes(b"film")
    (made.behind / "film").chmod(0o600)
    return made


@pytest.fixture(params=["at its source", "cached", "cached and open"])
def film(
    files: RealFiles, one_mount: tuple[RunningCachefs, Client, RealFiles], request: pytest.FixtureRequest
) -> Iterator[RealFiles]:
    """The file, wherever its bytes are."""
    running, client, _ = one_mount
    path = files.folder / "film"
    if request.param != "at its source":
        client.copy(str(path))
        wait_until(running, lambda: os.getxattr(path, STATE) == b"cached", "it is cached")
    if request.param != "cached and open":
        yield files
        return
    with path.open("rb"):
        yield files


def test_an_acl_grants_and_refuses(film: RealFiles) -> None:
    here = film.folder / "film"
    assert [refusal(user, here) for user in (ANNA, BERT)] == [errno.EACCES, errno.EACCES]
    set_acl(here, entries(ANNA, 4))
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, errno.EACCES]
    assert refusal(ANNA, here, os.O_RDWR) == errno.EACCES
    set_acl(here, entries(BERT, 0, group=4, other=4))
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, errno.EACCES]
    os.removexattr(here, ACCESS)
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, 0]


def test_an_acl_that_is_set_shows_in_the_mode_at_once(film: RealFiles) -> None:
    here, there = film.folder / "film", film.behind / "film"
    for rights, mask in ((6, 6), (4, 4), (7, 2)):
        here.stat()
        set_acl(here, entries(ANNA, rights, mask=mask))
        assert mode(here) == mode(there) == 0o700 | mask << 3
        assert os.getxattr(here, ACCESS) == os.getxattr(there, ACCESS)


def test_the_mask_limits_users_and_groups_and_chmod_changes_it(film: RealFiles) -> None:
    here, there = film.folder / "film", film.behind / "film"
    os.chown(here, 0, BERT.gid)
    set_acl(here, entries(ANNA, 6, group=6, mask=4))
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, 0]
    assert [refusal(user, here, os.O_RDWR) for user in (ANNA, BERT)] == [errno.EACCES, errno.EACCES]
    here.chmod(0o700)
    assert [refusal(user, here) for user in (ANNA, BERT)] == [errno.EACCES, errno.EACCES]
    here.chmod(0o760)
    assert [refusal(user, here, os.O_RDWR) for user in (ANNA, BERT)] == [0, 0]
    assert os.getxattr(here, ACCESS) == os.getxattr(there, ACCESS)


def test_an_acl_that_is_set_behind_the_mount_counts_soon(
    film: RealFiles, one_mount: tuple[RunningCachefs, Client, RealFiles]
) -> None:
    here, there = film.folder / "film", film.behind / "film"
    assert refusal(ANNA, here) == errno.EACCES
    set_acl(there, entries(ANNA, 4))
    wait_until(one_mount[0], lambda: refusal(ANNA, here) == 0, "ANNA may read it", SEEN_WITHIN_S)
    set_acl(there, entries(ANNA, 0))
    wait_until(one_mount[0], lambda: refusal(ANNA, here) == errno.EACCES, "ANNA may not", SEEN_WITHIN_S)


def test_a_folder_is_entered_and_written_as_its_acl_says(files: RealFiles) -> None:
    here = files.folder / "folder"
    here.mkdir(0o700)
    (here / "file").write_bytes(b"file")
    assert refusal(ANNA, here / "file") == errno.EACCES
    set_acl(here, entries(ANNA, 5))
    assert mode(here) == 0o770
    assert [refusal(user, here / "file") for user in (ANNA, BERT)] == [0, errno.EACCES]
    assert refusal(ANNA, here / "new", os.O_RDWR | os.O_CREAT) == errno.EACCES
    set_acl(here, entries(ANNA, 7))
    ANNA.does(lambda: (here / "new").write_bytes(b"new"))
    assert (here / "new").stat().st_uid == ANNA.uid


def test_a_default_acl_is_handed_down_whatever_the_umask(files: RealFiles) -> None:
    here = files.folder / "folder"
    here.mkdir()
    set_acl(here, entries(BERT, 7))
    set_acl(here, entries(ANNA, 6, mask=7), default=True)

    def makes() -> None:
        for name in ("file", "sub/file"):
            os.close(os.open(here / name, os.O_WRONLY | os.O_CREAT, 0o666))

    BERT.does(lambda: os.mkdir(here / "sub", 0o777), umask=0o077)
    set_acl(here / "sub", entries(BERT, 7))
    BERT.does(makes, umask=0o077)
    set_acl(here, entries(ANNA, 5))
    set_acl(here / "sub", entries(ANNA, 5))
    for name in ("file", "sub/file"):
        assert mode(here / name) == 0o660, name
        assert refusal(ANNA, here / name, os.O_RDWR) == 0, name
    assert os.getxattr(here / "sub", "system.posix_acl_default") == os.getxattr(here, "system.posix_acl_default")


def test_only_the_owner_sets_an_acl_and_loses_the_bit_of_a_group_that_is_not_his(files: RealFiles) -> None:
    here = files.folder / "film"
    os.chown(here, ANNA.uid, BERT.gid)
    here.chmod(0o2750)
    BERT.does(lambda: _refused(lambda: set_acl(here, entries(BERT, 4))))
    assert mode(here) == 0o2750
    ANNA.does(lambda: set_acl(here, entries(ANNA, 7, group=5, mask=5)))
    assert mode(here) == 0o750
    os.chown(here, ANNA.uid, ANNA.groups[0])
    here.chmod(0o2750)
    ANNA.does(lambda: set_acl(here, entries(BERT, 7, group=5, mask=5)))
    assert mode(here) == 0o2750


def _refused(function: Callable[[], object]) -> None:
    with pytest.raises(PermissionError):
        function()


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def moving(base: Path) -> Iterator[dict[str, Any]]:
    """What is copied is moved."""
    with settings_in(base) as settings:
        settings["cache"]["mode"] = "move"
        yield settings | {"acl": "on"}


def test_an_acl_of_a_moved_file_is_the_one_that_counts(base: Path, moving: dict[str, Any], start_mount: Start) -> None:
    running = start_mount(moving)
    here, there = running.mountpoint / "film", base / "media" / "film"
    there.write_bytes(CONTENT)
    there.chmod(0o600)
    set_acl(there, entries(ANNA, 4))
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, errno.EACCES]
    assert running.run("copy", str(here)).returncode == 0
    wait_until(running, lambda: not there.exists(), "it is moved")
    assert [refusal(user, here) for user in (ANNA, BERT)] == [0, errno.EACCES]
    set_acl(here, entries(BERT, 4, mask=4))
    assert mode(here) == 0o740
    assert [refusal(user, here) for user in (ANNA, BERT)] == [errno.EACCES, 0]
    here.chmod(0o700)
    assert refusal(BERT, here) == errno.EACCES
    assert running.run("restore", str(here)).returncode == 0
    assert os.getxattr(here, ACCESS) == os.getxattr(there, ACCESS)
    here.chmod(0o740)
    assert [refusal(user, here) for user in (ANNA, BERT)] == [errno.EACCES, 0]


@pytest.fixture
def disk(base: Path) -> Iterator[tuple[SlowDisk, dict[str, Any]]]:
    """A slow disk, all of whose changes can be heard, of whose three films Anna alone may read one, and one
    can have no ACL; and its settings."""
    for name in ("backing/Films", "slow"):
        (base / name).mkdir(parents=True)
    for name, rights in (("hers.mkv", 0o600), ("all.mkv", 0o644), ("none.mkv", 0o644)):
        (base / "backing" / "Films" / name).write_bytes(CONTENT)
        (base / "backing" / "Films" / name).chmod(rights)
    set_acl(base / "backing" / "Films" / "hers.mkv", entries(ANNA, 4))
    with slow_disk(base / "backing", base / "slow", FAST) as made, settings_in(base, (made.mountpoint,)) as settings:
        made.fail(errno.ENOTSUP, "Films/none.mkv", ("getxattr",))
        settings["sources"][0]["metadata"] = "remembered"
        yield made, settings | {"acl": "on"}


def test_the_acl_of_a_cached_film_is_known_while_its_disk_sleeps_or_is_away(
    disk: tuple[SlowDisk, dict[str, Any]], start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings += AWAY
    slow, settings = disk
    running = start_mount(settings)
    films = running.mountpoint / "Films"
    assert [sorted(names) for _, _, names in os.walk(running.mountpoint)] == [[], ["all.mkv", "hers.mkv", "none.mkv"]]
    for film in films.iterdir():
        assert running.run("copy", str(film)).returncode == 0
    slow.wait_asked("getxattr", times=5)  # the films, and the two folders above

    def all_is_as_it_should_be() -> None:
        assert [refusal(user, films / "hers.mkv") for user in (ANNA, BERT)] == [0, errno.EACCES]
        assert [refusal(BERT, films / name) for name in ("all.mkv", "none.mkv")] == [0, 0]
        assert errno_of(os.getxattr, films / "none.mkv", ACCESS) == errno.ENODATA

    slow.reset()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    all_is_as_it_should_be()
    asked = {kind for kind, count in slow.counts().operations.items() if count}
    assert asked <= IN_MEMORY, "a sleeping disk sleeps on"
    slow.go_away()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    all_is_as_it_should_be()
    assert running.terminate() == 0
    running = start_mount(settings)
    assert refusal(BERT, films / "all.mkv") == 0, "nobody knows its ACL, so its mode counts"
    assert refusal(ANNA, films / "hers.mkv") == errno.EACCES
    slow.come_back()
    wait_until(running, lambda: refusal(ANNA, films / "hers.mkv") == 0, "the ACL is known again")
    all_is_as_it_should_be()
