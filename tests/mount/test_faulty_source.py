"""One of two sources hangs, errs, dies, or leaves an empty folder: what the rest notices, and what it keeps."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.mounts import mounted_at
from tests.mount.faultkit import (
    CACHED,
    CONTENT,
    IN_ROOT,
    IN_SHOW,
    TIMEOUT_S,
    WARNINGS,
    Scene,
    Start,
    fault_scene,
    fault_settings,
)
from tests.mount.kit import MIB, STATE, errno_of, read, took_s
from tests.mount.lives import Reader, kill_server, readers, wait_until
from tests.standin.slowdisk_control import SlowDisk

STOPS_WITHIN_S = 5.0
FAILS_FAST_S = 0.05
NOISE_S = 0.005
"""Two percentiles of a thousand calls below this do not differ: other programs run on this machine too."""
READ_BYTES = 128 << 10
ROUNDS = 1000
CALLERS = 30
TRY_AGAIN_S = 0.1
MOST_THREADS = 60


@pytest.fixture
def scene(tmp_path: Path, slow_disk: SlowDisk, start_mount: Start, expected_warnings: list[str]) -> Iterator[Scene]:
    expected_warnings += WARNINGS
    with fault_settings(tmp_path, slow_disk) as settings, fault_scene(settings, slow_disk, start_mount) as made:
        yield made


@pytest.fixture
def start_reader() -> Iterator[Callable[[Path], Reader]]:
    with readers() as start:
        yield start


# --- nothing hangs ---


def _p99_s(function: Callable[[], object]) -> float:
    return statistics.quantiles([took_s(function) for _ in range(ROUNDS)], n=100)[98]


def _reading(path: Path) -> Callable[[], bytes]:
    """A read of 128 KiB somewhere in an open file, by the daemon each time."""
    number = os.open(path, os.O_RDONLY)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
    offsets = random.Random(1)

    def read_somewhere() -> bytes:
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(number, READ_BYTES, offsets.randrange(0, len(CONTENT) - READ_BYTES))

    return read_somewhere


@pytest.fixture
def hung_callers(scene: Scene) -> Iterator[Callable[[], None]]:
    """Starts people who wait for the slow disk in all ways, and try again when they get an error."""
    over = threading.Event()

    def wait_for_it(number: int) -> None:
        calls = (lambda: read(scene.slow / "two.mkv"), lambda: os.listdir(scene.slow), (scene.slow / f"{number}").stat)
        while not over.wait(TRY_AGAIN_S):
            errno_of(calls[number % len(calls)])

    def start() -> None:
        for number in range(CALLERS):
            pool.submit(wait_for_it, number)

    with ThreadPoolExecutor(CALLERS) as pool:
        try:
            yield start
        finally:
            over.set()
            scene.disk.release()


MEASURED: dict[str, Callable[[Scene], Callable[[], object]]] = {
    "a cached file that is open": lambda scene: _reading(scene.slow / "one.mkv"),
    "a file of the other source": lambda scene: _reading(scene.media / "one.mkv"),
    "attributes at the other source": lambda scene: (scene.media / "one.mkv").stat,
    "attributes of a cached file": lambda scene: (scene.slow / "one.mkv").stat,
}


@pytest.mark.alone
@pytest.mark.parametrize("what", MEASURED)
def test_a_hung_source_slows_nobody_else(scene: Scene, hung_callers: Callable[[], None], what: str) -> None:
    function = MEASURED[what](scene)
    most_s = max(2 * _p99_s(function), NOISE_S)
    scene.disk.hang()
    hung_callers()
    scene.disk.wait_held()
    assert _p99_s(function) <= most_s, "while the first wait for their timeout"
    wait_until(scene.running, lambda: not scene.is_online(), "the source is offline")
    assert _p99_s(function) <= most_s, "afterwards"


def test_the_first_callers_wait_for_the_timeout_and_later_ones_fail_at_once(
    scene: Scene, start_reader: Callable[[Path], Reader]
) -> None:
    waiting = [start_reader(scene.slow / "two.mkv") for _ in range(4)]
    assert [reader.read(0) for reader in waiting] == [4096] * 4
    scene.disk.hang()
    began = time.monotonic()
    for number, reader in enumerate(waiting):
        reader.begin((number % 2 + 1) * MIB)
    assert [reader.result() for reader in waiting] == [-errno.EIO] * 4
    assert TIMEOUT_S <= time.monotonic() - began < 2 * TIMEOUT_S

    for _ in range(20):
        began = time.monotonic()
        assert errno_of(read, scene.slow / "three.mkv") == errno.EIO
        assert errno_of((scene.slow / "new.mkv").touch) == errno.EIO
        assert waiting[0].read(3 * MIB) == -errno.EIO
        assert time.monotonic() - began < 3 * FAILS_FAST_S

    scene.disk.release()
    wait_until(scene.running, scene.is_online, "the source is back")
    assert waiting[0].read(3 * MIB) == 4096
    assert read(scene.slow / "three.mkv") == CONTENT


def test_a_cached_film_is_opened_at_once_however_slow_its_source_is(scene: Scene) -> None:
    film = scene.slow / "one.mkv"
    assert read(film) == CONTENT
    scene.disk.slow_down(delay_s=TIMEOUT_S / 4)  # the source is asked four things, one after another
    for _ in range(3):
        assert took_s(read, film) < TIMEOUT_S / 2
    (scene.disk.backing / "one.mkv").write_bytes(CONTENT[1:])
    assert took_s(read, film) < TIMEOUT_S / 2, "the source is asked, and not waited for"
    wait_until(scene.running, lambda: "one.mkv" not in scene.cached(), "it is found to be another film")
    scene.disk.release()
    wait_until(scene.running, lambda: read(film) == CONTENT[1:], "which is seen")


def test_one_probe_at_a_time_looks_for_its_return(scene: Scene) -> None:
    scene.disk.hang()
    assert errno_of(read, scene.slow / "three.mkv") == errno.EIO
    held = scene.disk.counts().held + 1  # the first callers, and the probe, which leaves the source alone for a second
    scene.disk.wait_held(held)
    scene.disk.reset()
    for _ in range(200):
        assert errno_of(read, scene.slow / "three.mkv") == errno.EIO
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        errno_of(os.listdir, scene.slow)
    assert scene.disk.counts().total == 0
    assert scene.disk.counts().held == held


def test_the_daemon_s_threads_stay_bounded(scene: Scene, hung_callers: Callable[[], None]) -> None:
    tasks = Path(f"/proc/{scene.running.status().pid}/task")
    scene.disk.hang()
    hung_callers()
    scene.disk.wait_held()
    wait_until(scene.running, lambda: not scene.is_online(), "the source is offline")
    assert sum(1 for _ in tasks.iterdir()) <= 60
    assert max(source.threads_busy for source in scene.running.status().sources) <= 20


def test_the_cache_is_free_after_a_stop_though_threads_are_stuck(
    scene: Scene, start_reader: Callable[[Path], Reader]
) -> None:
    reader = start_reader(scene.slow / "two.mkv")
    assert reader.read(0) == 4096
    scene.disk.hang()
    reader.begin(2 * MIB)
    scene.disk.wait_held()
    scene.running.process.send_signal(signal.SIGTERM)
    assert scene.running.process.wait(STOPS_WITHIN_S) == 0
    assert mounted_at(scene.running.mountpoint) is None
    with open(f"{scene.settings['cache']['path']}/lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("who", ["keeper", "server"])
def test_either_process_killed_leaves_no_hanging_mount(
    scene: Scene, start_reader: Callable[[Path], Reader], expected_warnings: list[str], who: str
) -> None:
    expected_warnings += ["the server ended with signal SIGKILL", "could not start again"]
    reader = start_reader(scene.slow / "two.mkv")
    assert reader.read(0) == 4096
    scene.disk.hang()
    reader.begin(2 * MIB)
    scene.disk.wait_held()
    if who == "server":
        kill_server(scene.running)
    else:
        scene.running.kill()
    began = time.monotonic()
    assert reader.result() < 0
    # ECONNABORTED: it was asked for while the mount was ending
    assert errno_of(os.listdir, scene.running.mountpoint) in (0, errno.ENOTCONN, errno.ECONNABORTED)
    assert time.monotonic() - began < STOPS_WITHIN_S
    scene.disk.release()


# --- a root that was emptied ---


def _move_all(source: Path, target: Path) -> None:
    for path in list(source.iterdir()):
        path.rename(target / path.name)


@pytest.fixture
def aside(slow_disk: SlowDisk, tmp_path: Path) -> Path:
    (tmp_path / "aside").mkdir()
    return tmp_path / "aside"


def test_an_emptied_root_is_missing_and_forgets_nothing(scene: Scene, aside: Path) -> None:
    assert sorted(os.listdir(scene.slow)) == IN_ROOT
    _move_all(scene.disk.backing, aside)
    wait_until(scene.running, lambda: errno_of(read, scene.slow / "two.mkv") == errno.EIO, "it is missing")
    assert sorted(os.listdir(scene.slow)) == IN_ROOT
    assert read(scene.slow / "one.mkv") == CONTENT
    assert scene.cached() == set(CACHED)
    _move_all(aside, scene.disk.backing)
    wait_until(scene.running, lambda: errno_of(read, scene.slow / "two.mkv") == 0, "it is back")
    assert read(scene.slow / "one.mkv") == read(scene.slow / "two.mkv") == CONTENT
    assert os.getxattr(scene.slow / "one.mkv", STATE) == b"cached"


def test_an_emptied_folder_below_an_emptied_root_is_missing_too(scene: Scene, aside: Path) -> None:
    assert sorted(os.listdir(scene.slow / "Show")) == IN_SHOW
    _move_all(scene.disk.backing, aside)
    wait_until(scene.running, lambda: errno_of(read, scene.slow / "Show" / "five.mkv") == errno.EIO, "it is missing")
    assert sorted(os.listdir(scene.slow / "Show")) == IN_SHOW
    assert scene.cached() == set(CACHED)


def test_status_says_that_an_emptied_root_is_missing(scene: Scene, aside: Path) -> None:
    _move_all(scene.disk.backing, aside)
    errno_of(os.listdir, scene.slow)
    (slow,) = [source for source in scene.running.status().sources if source.name == "slow"]
    assert not slow.online
    assert "empty" in slow.problem
