"""cachefs comes and goes: stopped, unmounted or killed at any moment, it leaves nothing mounted and loses no copy."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachefs.mounts import mounted_at
from tests.mount.failing import HANGING, PLANT
from tests.mount.kit import MIB, STATE
from tests.mount.lives import is_clean, kill_server, reading_for_ever, settings_in, wait_gone, wait_until
from tests.standin.running import REPOSITORY, RunningCachefs, wait_until_ready
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import SlowDiskSettings

Start = Callable[[dict[str, Any]], RunningCachefs]

STOPS_WITHIN_S = 5.0
CONTENT = random.Random(7).randbytes(MIB)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """One plain folder with a film in it."""
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(CONTENT)
        yield made


@pytest.fixture
def running(settings: dict[str, Any], start_mount: Start) -> RunningCachefs:
    return start_mount(settings)


def _film(running: RunningCachefs) -> Path:
    return running.mountpoint / "film.mkv"


def _close(number: int) -> None:
    """close(2) of a file whose mount may be gone."""
    with suppress(OSError):
        os.close(number)


def _cache_is_free(settings: dict[str, Any]) -> bool:
    with open(f"{settings['cache']['path']}/lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# --- stopped on purpose ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounted", ["elsewhere", "in place"])
def test_whoever_waits_for_the_mount_is_freed_although_a_thread_of_ours_waits_for_him(
    tmp_path: Path, settings: dict[str, Any], start_mount: Start, monkeypatch: pytest.MonkeyPatch, mounted: str
) -> None:
    """He holds a folder's lock while he waits for an answer, and the thread wants that lock to tell the kernel of a
    change in the folder: the connection ends for neither of them while the thread is in it."""
    monkeypatch.setenv("PYTHONPATH", os.fspath(PLANT))
    monkeypatch.setenv(HANGING, "cachefs.fs.changes:_create")
    (tmp_path / "media" / "known").touch()
    below = os.open(tmp_path / "media", os.O_PATH)
    if mounted == "in place":
        settings["mountpoint"] = str(tmp_path / "media")
    running = start_mount(settings)
    assert (running.mountpoint / "known").exists()
    server = running.status().pid
    create = [sys.executable, "-c", "open(__import__('sys').argv[1], 'x')", str(running.mountpoint / "new")]
    with subprocess.Popen(create, stderr=subprocess.PIPE, text=True) as creator:
        wait_until(running, lambda: "request_wait_answer" in _waits(creator.pid), "it waits for an answer")
        os.rename("known", "another", src_dir_fd=below, dst_dir_fd=below)
        wait_until(running, lambda: "fuse_reverse_inval_entry" in _waits(server), "a thread waits for the folder")
        assert running.terminate() == 0
        _, said = creator.communicate(timeout=STOPS_WITHIN_S)
        assert os.strerror(errno.ENOTCONN) in said
    wait_gone(server)
    assert is_clean(running)
    os.close(below)


def test_somebody_who_opens_a_file_that_is_leased_just_then_does_not_end_it(running: RunningCachefs) -> None:
    """What the kernel sends then would end any process that does not expect it: fcntl(2), F_SETLEASE."""
    server = running.status().pid
    os.kill(server, signal.SIGIO)
    assert _film(running).read_bytes() == CONTENT
    assert running.status().pid == server


def _waits(pid: int) -> set[str]:
    """Where in the kernel the threads of a process wait."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found.add((task / "wchan").read_text())
    return found


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(wake_up_s=0, seek_s=0, bytes_per_s=4e6)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_amid_copies_and_readers(
    slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start, number: signal.Signals
) -> None:
    for name in ("copied.mkv", "read.mkv"):
        (slow_disk.backing / name).write_bytes(random.Random(name).randbytes(16 * MIB))
    running = start_mount(cachefs_settings)
    server = running.status().pid
    with ExitStack() as stack:
        for name, flags in (("copied.mkv", os.O_RDONLY), ("new.mkv", os.O_WRONLY | os.O_CREAT)):
            stack.callback(_close, os.open(running.mountpoint / name, flags))
        readers = [stack.enter_context(reading_for_ever(running.mountpoint / "read.mkv")) for _ in range(3)]
        assert running.run("copy", "--no-wait", "copied.mkv").returncode == 0
        wait_until(running, lambda: any(c.done_bytes for c in running.status().copies), "a copy is under way")

        running.process.send_signal(number)

        assert running.process.wait(STOPS_WITHIN_S) == 0
        for reader in readers:
            assert reader.wait(STOPS_WITHIN_S) != 0
    wait_gone(server)
    assert is_clean(running)
    assert _cache_is_free(cachefs_settings)


def test_a_terminal_that_closes_ends_it_and_is_named(running: RunningCachefs) -> None:
    os.kill(running.status().pid, signal.SIGHUP)
    running.process.send_signal(signal.SIGHUP)
    assert running.process.wait(STOPS_WITHIN_S) == 0
    assert is_clean(running)
    assert running.log.read_text().count("SIGHUP: stopping") == 1


def test_unmount_ends_it_and_says_so(running: RunningCachefs) -> None:
    unmounted = running.run("unmount")
    assert (unmounted.returncode, unmounted.stderr) == (0, "")
    assert "has unmounted" in unmounted.stdout
    assert "cachefs unmount: stopping" in running.log.read_text()
    assert mounted_at(running.mountpoint) is None
    assert running.process.wait(STOPS_WITHIN_S) == 0
    assert is_clean(running)
    assert "not running" in running.run("unmount").stdout


def test_a_start_right_after_unmount_is_not_refused(
    running: RunningCachefs, settings: dict[str, Any], start_mount: Start
) -> None:
    """As in ``cachefs unmount && cachefs mount``: whoever is told that it is unmounted may start the next."""
    assert running.run("unmount").returncode == 0
    assert _cache_is_free(settings)
    assert _film(start_mount(settings)).read_bytes() == CONTENT


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]])
def test_an_unmount_from_outside_ends_it_with_0(running: RunningCachefs, command: list[str]) -> None:
    if command == ["umount"] and os.geteuid() != 0:
        command = ["fusermount3", "-u", "-z"]
    server = running.status().pid
    subprocess.run([*command, running.mountpoint], check=True, timeout=STOPS_WITHIN_S)
    assert running.process.wait(STOPS_WITHIN_S) == 0
    wait_gone(server)
    assert is_clean(running)


def test_it_can_be_started_again_and_again(settings: dict[str, Any], start_mount: Start) -> None:
    for _ in range(2):
        running = start_mount(settings)
        assert _film(running).read_bytes() == CONTENT
        assert running.terminate() == 0
        assert is_clean(running)


def test_it_runs_without_standard_streams(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A descriptor 0, 1 or 2 that is something else, the index say, would be written to by any library's message."""
    config = tmp_path / "cachefs.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "cachefs", "mount", "-c", str(config)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    nothing = tmp_path / "no.log"
    nothing.touch()
    running = RunningCachefs(
        Path(settings["mountpoint"]), config, Path(settings["control"]["socket"]), nothing, process
    )
    try:
        wait_until_ready(running)
        assert _film(running).read_bytes() == CONTENT
        for pid in (process.pid, running.status().pid):
            assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {os.devnull}
        assert running.terminate() == 0
    finally:
        running.remove()
    assert is_clean(running)


# --- killed ----------------------------------------------------------------------------------------------------------


def test_a_killed_server_is_started_again_and_keeps_its_cache(
    running: RunningCachefs, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    assert running.run("copy", "film.mkv").returncode == 0
    killed = kill_server(running)
    wait_until(running, lambda: _serves_anew(running, killed), "another server is ready")
    assert _film(running).read_bytes() == CONTENT
    assert os.getxattr(_film(running), STATE) == b"cached"
    assert running.status().reads.source_bytes == 0

    killed = kill_server(running)
    wait_until(running, lambda: _serves_anew(running, killed), "a third server is ready")
    assert _film(running).read_bytes() == CONTENT
    assert running.terminate() == 0
    assert is_clean(running)


def _serves_anew(running: RunningCachefs, killed: int) -> bool:
    if mounted_at(running.mountpoint) is None:
        return False
    asked = running.run("status", "--json")
    return asked.returncode == 0 and f'"pid": {killed},' not in asked.stdout


@pytest.mark.parametrize("befall", [os.unlink, lambda index: index.write_bytes(b"nonsense" * 512)], ids=["gone", "bad"])
def test_a_lost_index_costs_neither_copies_nor_pins_nor_inode_numbers(
    running: RunningCachefs,
    settings: dict[str, Any],
    start_mount: Start,
    expected_warnings: list[str],
    befall: Callable[[Path], object],
) -> None:
    expected_warnings.append("A new one is made from what is on the SSD: copies kept: 1; files that .*: 0")
    assert running.run("pin", "film.mkv").returncode == 0
    wait_until(running, lambda: running.status().entries_cached == 1, "the film is cached")
    number = _film(running).stat().st_ino
    assert running.terminate() == 0

    befall(Path(settings["cache"]["path"]) / "index.sqlite")
    again = start_mount(settings)

    assert os.getxattr(_film(again), STATE) == b"cached"
    assert _film(again).read_bytes() == CONTENT
    assert again.status().reads.source_bytes == 0
    assert _film(again).stat().st_ino == number
    assert "film.mkv" in again.run("pin", "--list").stdout
    assert again.run("verify", "--content").returncode == 0


def test_when_the_keeper_is_killed_the_server_unmounts(running: RunningCachefs) -> None:
    server = running.status().pid
    running.kill()
    wait_gone(server)
    assert is_clean(running)


def _kill_both(running: RunningCachefs) -> None:
    """The keeper and its server; what they have mounted stays."""
    server = running.status().pid
    os.kill(server, signal.SIGSTOP)  # so that the keeper's death cannot make it unmount
    running.kill()
    os.kill(server, signal.SIGKILL)
    wait_gone(server)
    assert mounted_at(running.mountpoint) is not None


def test_a_dead_mount_of_an_earlier_run_is_cleared(
    running: RunningCachefs, settings: dict[str, Any], start_mount: Start
) -> None:
    _kill_both(running)

    again = start_mount(settings)

    assert _film(again).read_bytes() == CONTENT
    assert again.terminate() == 0
    assert is_clean(again)


_HOLD_WHILE_MOUNTED = """
import ctypes, fcntl, os, sys, threading, time
lock, mountpoint = sys.argv[1:]
def wait():
    while mountpoint in open(f"/proc/{os.getpid()}/mountinfo").read():
        time.sleep(0.02)
    os._exit(0)
number = os.open(lock, os.O_RDWR)
fcntl.flock(number, fcntl.LOCK_EX)
os.ftruncate(number, 0)
os.pwrite(number, f"{os.getpid()}\\n".encode(), 0)
threading.Thread(target=wait).start()
print("held", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
"""A process that was killed and of which a thread waits in the kernel for the dead mount to be taken away."""


def test_a_killed_server_that_cannot_end_before_its_mount_is_cleared_is_no_obstacle(
    running: RunningCachefs, settings: dict[str, Any], start_mount: Start
) -> None:
    _kill_both(running)
    command = [sys.executable, "-c", _HOLD_WHILE_MOUNTED, f"{settings['cache']['path']}/lock", str(running.mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as remnant:
        assert remnant.stdout is not None
        assert remnant.stdout.readline() == b"held\n"

        again = start_mount(settings)

        assert remnant.wait(STOPS_WITHIN_S) == 0
    assert _film(again).read_bytes() == CONTENT


def test_unmount_clears_the_mount_of_a_daemon_that_died(running: RunningCachefs) -> None:
    server = running.status().pid
    os.kill(server, signal.SIGSTOP)
    running.kill()
    os.kill(server, signal.SIGKILL)
    wait_gone(server)
    unmounted = running.run("unmount")
    assert (unmounted.returncode, unmounted.stderr) == (0, "")
    assert "is cleared" in unmounted.stdout
    assert mounted_at(running.mountpoint) is None


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(wake_up_s=0, seek_s=0, bytes_per_s=60e6)])
def test_a_copy_cut_short_by_a_kill_goes_on_where_it_stopped(
    slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    size, durable = 112 * MIB, 64 * MIB
    content = random.Random(11).randbytes(size)
    (slow_disk.backing / "long.mkv").write_bytes(content)
    running = start_mount(cachefs_settings)
    assert running.run("pin", "long.mkv").returncode == 0
    wait_until(running, lambda: any(c.done_bytes > durable + 8 * MIB for c in running.status().copies), "72 MiB copied")

    killed = kill_server(running)
    slow_disk.reset()
    wait_until(running, lambda: _serves_anew(running, killed), "another server is ready")
    film = running.mountpoint / "long.mkv"
    wait_until(running, lambda: os.getxattr(film, STATE) == b"cached", "the copy is complete")

    assert 0 < slow_disk.counts().read_bytes <= size - durable + MIB
    assert hashlib.sha256(film.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert slow_disk.counts().read_bytes <= size - durable + MIB


def test_a_living_mount_of_another_socket_is_left_alone(
    settings: dict[str, Any], start_mount: Start, tmp_path: Path
) -> None:
    running = start_mount(settings)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(settings | {"control": {"socket": f"{settings['control']['socket']}.other"}}))
    for command in ("unmount", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "cachefs", command, "-c", str(other)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "a living cachefs is mounted" in done.stdout + done.stderr
    assert os.listdir(running.mountpoint) == os.listdir(tmp_path / "media")


def test_when_unmount_returns_the_process_has_let_go_of_everything(
    settings: dict[str, Any], start_mount: Start
) -> None:
    running = start_mount(settings)
    server = Path(f"/proc/{running.status().pid}")
    assert running.run("unmount").returncode == 0
    assert not server.exists()
