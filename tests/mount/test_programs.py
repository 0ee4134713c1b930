"""What programs other than Plex live from: they find in the mount what they find on a disk.

Programs are run as they are; one that is not installed fails its test and says so.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fileops import refused
from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import wait_until
from tests.mount.programs import run, scripts
from tests.mount.realfiles import GROUP, MASK, OTHER, OWNER, USER, mounted, set_acl
from tests.standin.running import RunningCachefs

CONTENT = random.Random(8).randbytes(4 * MIB)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[RunningCachefs, Path]]:
    """A mount that all tests here share, and its source."""
    with mounted("Media") as (running, base):
        yield running, base / "Media"


@pytest.fixture
def running(shared: tuple[RunningCachefs, Path]) -> RunningCachefs:
    return shared[0]


@pytest.fixture
def here(shared: tuple[RunningCachefs, Path], request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own in the mount."""
    folder = shared[0].mountpoint / "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    folder.mkdir()
    return folder


@pytest.fixture
def behind(shared: tuple[RunningCachefs, Path], here: Path) -> Path:
    """The same folder at its source."""
    return shared[1] / here.name


def cache(running: RunningCachefs, *paths: Path) -> None:
    """Copy files to the SSD, and return once they are there."""
    with running.client() as client:
        for path in paths:
            client.copy(str(path))
    wait_until(running, lambda: all(os.getxattr(path, STATE) == b"cached" for path in paths), f"{paths} are cached")


def a_tree(folder: Path) -> None:
    """What copying programs must carry: folders, links of both kinds, modes, times, attributes, a hole, odd names."""
    (folder / "Show" / "Season 01").mkdir(parents=True)
    for number in range(20):
        file = folder / "Show" / "Season 01" / f"S01E{number:02} ä.mkv"
        file.write_bytes(CONTENT[number : number + 10_000 * number])
        os.utime(file, ns=(1_500_000_000_123_456_789, 1_600_000_000_000_000_001 + number))
    first = folder / "Show" / "Season 01" / "S01E00 ä.mkv"
    os.link(first, folder / "linked.mkv")
    (folder / "leads away").symlink_to("../nowhere")
    os.mkfifo(folder / "pipe", 0o600)
    os.setxattr(folder / "linked.mkv", "user.title", b"Pilot")
    with (folder / "sparse").open("wb") as sparse:
        sparse.seek(3 * MIB)
        sparse.write(b"end")
    (folder / "sparse").chmod(0o640)
    (folder / "empty").touch()
    (folder / "Show").chmod(0o2750)
    os.utime(folder / "Show", ns=(1, 1_400_000_000_000_000_005))


def shown(folder: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that a copy of it must have."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = (
            seen.st_mode,
            seen.st_nlink,
            seen.st_uid,
            seen.st_gid,
            seen.st_mtime_ns,
            seen.st_size if regular else None,
            path.read_bytes() if regular else None,
            sorted((name, os.getxattr(path, name)) for name in os.listxattr(path))
            if regular or path.is_dir()
            else None,
        )
    return found


# --- programs --------------------------------------------------------------------------------------------------------


def test_git_makes_commits_and_clones_and_finds_nothing_changed(here: Path, tmp_path: Path) -> None:
    plain = {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(cwd: Path, *arguments: str) -> str:
        who = ("-c", "user.name=Anna", "-c", "user.email=anna@example.org", "-c", "init.defaultBranch=main")
        return run("git", *who, *arguments, cwd=cwd, env=plain)

    work = here / "work"
    work.mkdir()
    git(work, "init", "-q")
    for number in range(30):
        (work / f"file {number}").write_bytes(CONTENT[: 1000 * number])
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "first")
    (work / "file 3").write_bytes(b"changed")
    assert git(work, "status", "--porcelain") == ' M "file 3"\n'
    git(work, "commit", "-q", "-a", "-m", "second")
    git(here, "clone", "-q", "work", "clone")
    git(work, "gc", "-q")
    for checkout in ("work", "clone"):
        assert git(here / checkout, "status", "--porcelain") == ""
        git(here / checkout, "fsck", "--strict", "--full")
    assert (here / "clone" / "file 3").read_bytes() == b"changed"


_INSERT = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for number in range(200):
    database.execute("insert into plays values (?, ?)", (sys.argv[2], number))
print(database.execute("pragma journal_mode").fetchone()[0])
"""


def test_sqlite_in_wal_mode_loses_nothing_that_two_processes_write(here: Path, behind: Path) -> None:
    with closing(sqlite3.connect(here / "library.db", isolation_level=None)) as database:
        assert database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        database.execute("create table plays (who text, number integer)")
        with scripts(_INSERT, (here / "library.db", "anna"), (here / "library.db", "ben")) as writers:
            counted = 0
            while counted < 400:
                (now,) = database.execute("select count(*) from plays").fetchone()
                assert now >= counted
                counted = now
            assert [writer.says() for writer in writers] == ["wal", "wal"]
            for writer in writers:
                writer.ends()
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    with closing(sqlite3.connect(behind / "library.db")) as database:
        counts = database.execute("select who, count(*), sum(number) from plays group by who order by who").fetchall()
    assert counts == [("anna", 200, 19900), ("ben", 200, 19900)]


def test_pip_installs_a_package_that_can_be_imported(here: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "films-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("films/__init__.py", "title = 'Heat'\n")
        archive.writestr("films-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: films\nVersion: 1.0\n")
        archive.writestr("films-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("films-1.0.dist-info/RECORD", "films/__init__.py,,\nfilms-1.0.dist-info/METADATA,,\n")
    options = ("--no-index", "--no-deps", "--disable-pip-version-check", "--no-cache-dir", "--root-user-action=ignore")
    run(sys.executable, "-m", "pip", "install", "-q", *options, "--target", here / "site", wheel)
    told = run(sys.executable, "-c", "import films; print(films.title)", env={"PYTHONPATH": str(here / "site")})
    assert told == "Heat\n"


def test_cp_carries_a_tree_there_and_back_and_then_has_nothing_to_do(here: Path, tmp_path: Path) -> None:
    for name in ("there", "back"):
        (tmp_path / name).mkdir()
    a_tree(tmp_path / "there")
    wanted = shown(tmp_path / "there")

    def cp(old: Path, new: Path) -> list[str]:
        """What it did, but for a hard link of whichever name comes second: that it makes anew each time."""
        said = run("cp", "--reflink=auto", "-auv", f"{old}/.", new)
        return [line for line in said.splitlines() if "linked" not in line and "S01E00" not in line]

    assert cp(tmp_path / "there", here)
    assert shown(here) == wanted
    assert (here / "linked.mkv").stat().st_ino == (here / "Show" / "Season 01" / "S01E00 ä.mkv").stat().st_ino
    assert cp(here, tmp_path / "back")
    assert shown(tmp_path / "back") == wanted
    assert cp(tmp_path / "there", here) == []
    assert cp(here, tmp_path / "back") == []
    (here / "within").mkdir()
    run("cp", "--reflink=auto", "-a", f"{tmp_path}/there/.", here / "there")
    run("cp", "--reflink=auto", "-a", here / "there", here / "within")
    assert shown(here / "within" / "there") == wanted


def test_tar_packs_and_unpacks_and_finds_no_difference(here: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    options = ("--xattrs", "--sparse")
    for folder in ("tree", "again"):
        (here / folder).mkdir()
    a_tree(here / "tree")
    packed = here / "packed.tar"
    run("tar", *options, "-cf", packed, "-C", here / "tree", ".")
    run("tar", *options, "-df", packed, "-C", here / "tree")
    run("tar", *options, "-xpf", packed, "-C", here / "again")
    assert shown(here / "again") == shown(here / "tree")
    run("tar", *options, "-xpf", packed, "-C", tmp_path / "out")
    run("tar", *options, "-df", packed, "-C", tmp_path / "out")


def test_rsync_carries_a_tree_there_and_back_and_then_has_nothing_to_do(
    running: RunningCachefs, here: Path, tmp_path: Path
) -> None:
    """With everything that it can carry, and with all files cached on the way back."""
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    a_tree(there)
    linked, show = there / "linked.mkv", there / "Show"
    set_acl(linked, [(OWNER, 6, None), (USER, 4, 7001), (GROUP, 4, None), (MASK, 4, None), (OTHER, 0, None)])
    set_acl(show, [(OWNER, 7, None), (GROUP, 5, None), (OTHER, 0, None)], default=True)
    os.setxattr(show, "user.note", b"of a folder")
    os.utime(linked, ns=(-5, -1_000_000_007))
    for path in (there / "pipe", there / "leads away", show / "Season 01", show):
        os.utime(path, ns=(7, 1_300_000_000_000_000_009), follow_symlinks=False)  # within a second, rsync lets it be

    def rsync(old: Path, new: Path) -> str:
        return run("rsync", "-aHAX", "--itemize-changes", f"{old}/", f"{new}/")

    assert rsync(there, here)
    assert shown(here) == shown(there)
    assert rsync(there, here) == ""
    cache(running, *(path for path in here.rglob("*.mkv") if path.stat().st_size))
    assert rsync(there, here) == ""
    assert rsync(here, back)
    assert shown(back) == shown(there)
    assert rsync(here, back) == ""
    assert run("rsync", "-aHAXc", "--itemize-changes", f"{here}/", f"{there}/") == ""


# --- an import, as Sonarr does it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True], ids=["at its source", "cached"])
def test_an_import_by_hard_link_disturbs_no_stream(
    running: RunningCachefs, here: Path, behind: Path, cached: bool
) -> None:
    """The download and the episode that it replaces are both being watched when the one becomes the other."""
    downloads, season = here / "downloads", here / "Show" / "Season 01"
    downloads.mkdir()
    season.mkdir(parents=True)
    new, old = downloads / "show.s01e01.mkv", season / "S01E01.mkv"
    new.write_bytes(CONTENT)
    old.write_bytes(CONTENT[::-1])
    number = new.stat().st_ino
    if cached:
        cache(running, new)
        cache(running, old)
    with new.open("rb", buffering=0) as of_new, old.open("rb", buffering=0) as of_old:
        streamed, replaced = _stream(of_new.fileno(), 0), _stream(of_old.fileno(), 0)
        os.link(new, season / "S01E01.mkv.partial~")
        streamed, replaced = _stream(of_new.fileno(), streamed), _stream(of_old.fileno(), replaced, backwards=True)
        os.rename(season / "S01E01.mkv.partial~", old)
        streamed, replaced = _stream(of_new.fileno(), streamed), _stream(of_old.fileno(), replaced, backwards=True)
        assert (new.stat().st_nlink, os.fstat(of_old.fileno()).st_nlink) == (2, 0)
        new.unlink()
        while streamed < len(CONTENT):
            streamed = _stream(of_new.fileno(), streamed)
            replaced = _stream(of_old.fileno(), replaced, backwards=True)
        assert (os.read(of_new.fileno(), 1), os.read(of_old.fileno(), 1)) == (b"", b"")
        assert os.fstat(of_new.fileno()).st_nlink == 1
    assert read(old) == CONTENT
    assert (behind / "Show" / "Season 01" / "S01E01.mkv").read_bytes() == CONTENT
    assert old.stat().st_ino == number
    assert os.listdir(downloads) == []
    cache(running, old)
    assert read(old) == CONTENT


def _stream(handle: int, done: int, backwards: bool | None = None) -> int:
    """Read half a MiB and check it; how far it is then. The first call finds out which content it is."""
    data = os.read(handle, MIB // 2)
    wholes = (CONTENT, CONTENT[::-1]) if backwards is None else ((CONTENT, CONTENT[::-1])[backwards],)
    assert data
    assert any(data == whole[done : done + len(data)] for whole in wholes)
    return done + len(data)


# --- locks -----------------------------------------------------------------------------------------------------------

_FLOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""
_FCNTL = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
print("locked", flush=True)
sys.stdin.readline()
"""


def test_flock_keeps_a_second_process_out_until_the_first_has_ended(here: Path) -> None:
    (here / "lock").touch()
    with scripts(_FLOCK, (here / "lock",)) as (holder,), (here / "lock").open("r+b") as file:
        assert holder.says() == "locked"
        with refused(11):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with refused(11):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder.tell()
        fcntl.flock(file, fcntl.LOCK_EX)
        holder.ends()


def test_fcntl_locks_ranges_and_names_who_holds_them(here: Path) -> None:
    (here / "lock").write_bytes(bytes(100))
    with scripts(_FCNTL, (here / "lock",)) as (holder,), (here / "lock").open("r+b") as file:
        assert holder.says() == "locked"
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
        with refused(11):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 100, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 0, 10, holder.process.pid)
        holder.tell()
        fcntl.lockf(file, fcntl.LOCK_EX, 20, 0)
        holder.ends()


# --- several processes, one file -------------------------------------------------------------------------------------

_APPEND = """
import os, sys
handle = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(1000):
    os.write(handle, b"%s %d %s\\n" % (sys.argv[2].encode(), number, sys.argv[2].encode() * (number % 300)))
"""


def test_lines_that_two_processes_append_are_neither_lost_nor_torn(here: Path, behind: Path) -> None:
    log = here / "log"
    log.touch()
    with scripts(_APPEND, (log, "a"), (log, "b")) as writers:
        for writer in writers:
            writer.ends()
    lines = log.read_bytes().splitlines()
    for who in (b"a", b"b"):
        wanted = [b"%s %d %s" % (who, number, who * (number % 300)) for number in range(1000)]
        assert [line for line in lines if line.startswith(who)] == wanted
    assert len(lines) == 2000
    assert (behind / "log").read_bytes() == log.read_bytes()


def test_a_shell_goes_on_with_a_file_whose_name_it_has_removed(here: Path) -> None:
    script = "exec 3<>note; rm note; echo one >&3; echo two >>/proc/self/fd/3; cat /proc/self/fd/3; ls"
    assert run("sh", "-c", script, cwd=here) == "one\ntwo\n"


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_who_truncates_a_cached_file_while_it_plays_ends_the_stream_there(passthrough: str) -> None:
    with mounted("Media", fast_path=passthrough) as (running, base):
        film = running.mountpoint / "film.mkv"
        film.write_bytes(CONTENT)
        cache(running, film)
        with film.open("rb", buffering=0) as player:
            assert running.status().reads.kernel_opens == (passthrough == "auto" and os.geteuid() == 0)
            assert player.read(MIB) == CONTENT[:MIB]
            writer = os.open(film, os.O_WRONLY | os.O_TRUNC)
            assert player.read(MIB) == b""
            assert os.fstat(player.fileno()).st_size == 0
            os.write(writer, b"new")
            assert os.pread(player.fileno(), MIB, 0) == b"new"
            os.close(writer)
            assert os.pread(player.fileno(), MIB, 0) == b"new"
            assert os.getxattr(film, STATE) == b"source"
        assert read(film) == b"new"
        assert (base / "Media" / "film.mkv").read_bytes() == b"new"
