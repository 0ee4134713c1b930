"""Opens, writes, mappings, evictions, renames and unlinks of the same files at once, in every kernel mode.

Every block has an owner lock: a read under it must show exactly what was last written, whichever handle wrote it and
whoever serves the read (the kernel from the SSD, the daemon from the SSD or the source, a mapping).
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cachefs.control.client import Client
from cachefs.errors import UserError
from tests.mount.lives import wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

BLOCK = 4096
BLOCKS = 64
FILES = 8


def _content(file: int, block: int, version: int) -> bytes:
    return struct.pack("<III", file, block, version) * (BLOCK // 12) + bytes(BLOCK % 12)


@dataclass(slots=True)
class Shared:
    """One file that everybody works on. ``names`` is held by whoever renames or replaces it."""

    number: int
    path: Path
    versions: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    blocks: list[threading.Lock] = field(default_factory=lambda: [threading.Lock() for _ in range(BLOCKS)])
    names: threading.RLock = field(default_factory=threading.RLock)
    generation: int = 0
    """How often the file was replaced: an open of an earlier one goes on with what that was."""

    def whole(self) -> bytes:
        return b"".join(self.expected(block) for block in range(BLOCKS))

    def expected(self, block: int) -> bytes:
        return _content(self.number, block, self.versions[block])

    def open(self, flags: int) -> Opened:
        with self.names:
            return Opened(self, os.open(self.path, flags), self.generation)


@dataclass(frozen=True, slots=True)
class Opened:
    """A handle, and which of the files that had this name it is on."""

    shared: Shared
    handle: int
    generation: int

    def check(self, block: int, read: Callable[[int], bytes], who: str) -> None:
        shared = self.shared
        with shared.blocks[block]:
            data = read(block * BLOCK)
            assert shared.generation != self.generation or data == shared.expected(block), (
                f"{who}: block {block} of {shared.path.name} is version {struct.unpack('<III', data[:12])[2]} "
                f"instead of {shared.versions[block]}"
            )

    def change(self, block: int, write: Callable[[int, bytes], object]) -> None:
        shared = self.shared
        with shared.blocks[block]:
            if shared.generation == self.generation:
                shared.versions[block] += 1
                write(block * BLOCK, shared.expected(block))

    def close(self) -> None:
        os.close(self.handle)


Job = Callable[[random.Random, Shared], None]


def run_together(files: list[Shared], jobs: dict[str, Job], seconds: float) -> dict[str, int]:
    """Each job in a thread of its own, again and again until the time is over; how often each was done."""
    ends = time.monotonic() + seconds
    failed = threading.Event()

    def work(name: str) -> int:
        chance = random.Random(name)
        count = 0
        finished = False
        try:
            while time.monotonic() < ends and not failed.is_set():
                jobs[name](chance, chance.choice(files))
                count += 1
            finished = True
        finally:
            if not finished:
                failed.set()  # the others need not go on
        return count

    with ThreadPoolExecutor(len(jobs)) as threads:
        return dict(zip(jobs, threads.map(work, jobs), strict=True))


def _read(chance: random.Random, shared: Shared) -> None:
    with closing(shared.open(os.O_RDONLY)) as opened:
        for _ in range(chance.randrange(1, 300)):
            opened.check(chance.randrange(BLOCKS), lambda offset: os.pread(opened.handle, BLOCK, offset), "read")


def _map_and_read(chance: random.Random, shared: Shared) -> None:
    with (
        closing(shared.open(os.O_RDONLY)) as opened,
        mmap.mmap(opened.handle, BLOCK * BLOCKS, mmap.MAP_SHARED, mmap.PROT_READ) as mapped,
    ):
        for _ in range(chance.randrange(1, 10)):
            opened.check(chance.randrange(BLOCKS), lambda offset: mapped[offset : offset + BLOCK], "mapping")


def _write(chance: random.Random, shared: Shared) -> None:
    with closing(shared.open(chance.choice((os.O_WRONLY, os.O_RDWR)))) as opened:
        for _ in range(chance.randrange(1, 6)):
            opened.change(chance.randrange(BLOCKS), lambda offset, data: os.pwrite(opened.handle, data, offset))
        if chance.random() < 0.2:
            os.fsync(opened.handle)
    _let_copies_happen(chance)


def _map_and_write(chance: random.Random, shared: Shared) -> None:
    """Half of the time through a mapping that outlives its handle."""
    opened = shared.open(os.O_RDWR)
    with mmap.mmap(opened.handle, BLOCK * BLOCKS) as mapped:

        def write(offset: int, data: bytes) -> None:
            mapped[offset : offset + BLOCK] = data

        early = chance.random() < 0.5
        if early:
            opened.close()
        for _ in range(chance.randrange(1, 6)):
            opened.change(chance.randrange(BLOCKS), write)
        if not early:
            opened.close()
    _let_copies_happen(chance)


def _let_copies_happen(chance: random.Random) -> None:
    """A file that is written all the time is never cached."""
    threading.Event().wait(chance.random())


def _rename(chance: random.Random, shared: Shared) -> None:
    with shared.names:
        other = shared.path.with_suffix(f".{chance.randrange(3)}")
        if other != shared.path:
            os.rename(shared.path, other)
            shared.path = other
    threading.Event().wait(chance.random() * 0.3)


def _replace(chance: random.Random, shared: Shared) -> None:
    """As an upgrade does: the old file is unlinked by the rename while others read it, and lives on for them."""
    with shared.names, ExitStack() as stack:
        opened = stack.enter_context(closing(shared.open(os.O_RDONLY)))
        for lock in shared.blocks:
            stack.enter_context(lock)
        new = shared.path.with_name(f"new{shared.number}")
        new.write_bytes(shared.whole())
        os.rename(new, shared.path)
        shared.generation += 1
        assert os.pread(opened.handle, BLOCK, 0) == shared.expected(0)
    threading.Event().wait(2 * chance.random())


def _copy_or_evict(client_of: Callable[[], Client]) -> Job:
    def act(chance: random.Random, shared: Shared) -> None:
        with client_of() as client:
            try:
                client.copy(str(shared.path)) if chance.random() < 0.7 else client.evict(str(shared.path))
            except UserError:
                return  # renamed meanwhile, or nothing of it is cached

    return act


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("watched", "seconds"), [(False, 30.0), (True, 10.0)], ids=["network", "local"])
def test_every_byte_is_right_in_every_mode(
    cachefs_settings: dict[str, Any],
    slow_disk: SlowDisk,
    start_mount: Callable[[dict[str, Any]], RunningCachefs],
    watched: bool,
    seconds: float,
) -> None:
    """On a local source everything is heard once more as a change behind the mount, and told to the kernel."""
    cachefs_settings["policy"] = {"keep_watched": "1h"}
    if watched:
        cachefs_settings["sources"][0]["path"] = str(slow_disk.backing)
    running = start_mount(cachefs_settings)
    files = []
    for number in range(FILES):
        shared = Shared(number, running.mountpoint / f"film{number}.0")
        (slow_disk.backing / shared.path.name).write_bytes(b"".join(shared.expected(block) for block in range(BLOCKS)))
        files.append(shared)
    done = run_together(
        files,
        {
            "reader 1": _read,
            "reader 2": _read,
            "reader 3": _read,
            "mapper": _map_and_read,
            "writer": _write,
            "mapping writer": _map_and_write,
            "renamer": _rename,
            "replacer": _replace,
            "cachefs user": _copy_or_evict(running.client),
        },
        seconds,
    )
    assert all(done.values()), done
    for shared in files:
        assert shared.path.read_bytes() == shared.whole()
    wait_until(running, lambda: running.status().backing_files == 0, "no backing file is left")
    assert running.status().reads.kernel_opens > 0
    for shared in files:
        assert (slow_disk.backing / shared.path.name).read_bytes() == shared.path.read_bytes()


@pytest.fixture
def cached_film(
    cachefs_settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> RunningCachefs:
    """A mount with one cached file, ``film``, of three pages."""
    cachefs_settings["policy"] = {"keep_watched": "1h"}
    (slow_disk.backing / "film").write_bytes(bytes(3 * BLOCK))
    running = start_mount(cachefs_settings)
    assert running.run("copy", "film").returncode == 0
    return running


def test_who_writes_while_the_kernel_reads_an_earlier_copy_reaches_both(
    cached_film: RunningCachefs, slow_disk: SlowDisk
) -> None:
    """The first reader holds the first copy as its backing file; the second opens another copy of the same file."""
    film = cached_film.mountpoint / "film"
    with film.open("rb", buffering=0) as first:
        assert cached_film.run("evict", "film").returncode == 0
        assert cached_film.run("copy", "film").returncode == 0
        with film.open("rb", buffering=0) as second, film.open("r+b", buffering=0) as writer:
            writer.write(b"new")
            with mmap.mmap(writer.fileno(), 3 * BLOCK) as mapped:
                mapped[BLOCK : BLOCK + 6] = b"mapped"
            os.fsync(writer.fileno())
            for reader in (first, second):
                assert os.pread(reader.fileno(), 3, 0) == b"new"
                assert os.pread(reader.fileno(), 6, BLOCK) == b"mapped"
    wait_until(cached_film, lambda: cached_film.status().backing_files == 0, "no backing file is left")
    content = (slow_disk.backing / "film").read_bytes()
    assert (content[:3], content[BLOCK : BLOCK + 6], len(content)) == (b"new", b"mapped", 3 * BLOCK)


@pytest.mark.parametrize("reads_on", [True, False])
def test_who_opens_a_file_to_write_and_writes_nothing_undoes_no_change_behind_the_mount(
    cached_film: RunningCachefs, slow_disk: SlowDisk, reads_on: bool
) -> None:
    """The kernel reads the copy, and so would a mapping of the writer's; the source is changed in its place."""
    source = slow_disk.backing / "film"
    with (cached_film.mountpoint / "film").open("rb", buffering=0) as reader:
        with (cached_film.mountpoint / "film").open("r+b", buffering=0):
            _change_in_place(source)
        if not reads_on:
            reader.close()
        _until_no_mapping_is_followed(cached_film, source)
        assert source.read_bytes() == b"behind" + bytes(3 * BLOCK - 6) + b"appended"
    _until_no_mapping_is_followed(cached_film, source)
    assert source.read_bytes() == b"behind" + bytes(3 * BLOCK - 6) + b"appended"


def test_what_a_mapping_writes_to_a_file_that_was_changed_behind_the_mount_is_all_that_changes(
    cached_film: RunningCachefs, slow_disk: SlowDisk
) -> None:
    source = slow_disk.backing / "film"
    film = cached_film.mountpoint / "film"
    with film.open("rb", buffering=0) as reader:
        _change_in_place(source)
        with film.open("r+b", buffering=0) as writer:
            with mmap.mmap(writer.fileno(), 3 * BLOCK) as mapped:
                assert mapped[:6] == b"behind"
                mapped[BLOCK : BLOCK + 6] = b"mapped"
            os.pwrite(writer.fileno(), b"written", 2 * BLOCK)
        expected = b"behind" + bytes(BLOCK - 6) + b"mapped" + bytes(BLOCK - 6) + b"written" + bytes(BLOCK - 7)
        assert source.read_bytes() == expected + b"appended"
        assert os.pread(reader.fileno(), 6, 0) == b"behind"
    _until_no_mapping_is_followed(cached_film, source)
    assert source.read_bytes() == expected + b"appended"


def test_what_the_ssd_has_lost_does_not_get_to_the_source(
    cachefs_settings: dict[str, Any], cached_film: RunningCachefs, slow_disk: SlowDisk
) -> None:
    (copy,) = Path(cachefs_settings["cache"]["path"]).glob("files/*/film")
    before = copy.stat()
    with copy.open("r+b") as damaged:
        damaged.write(b"rotten")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    film = cached_film.mountpoint / "film"
    with film.open("rb", buffering=0) as reader, film.open("r+b", buffering=0):
        assert os.pread(reader.fileno(), 6, 0) == b"rotten", "the kernel reads the copy"
    _until_no_mapping_is_followed(cached_film, slow_disk.backing / "film")
    assert (slow_disk.backing / "film").read_bytes() == bytes(3 * BLOCK)


def _change_in_place(source: Path) -> None:
    with source.open("r+b", buffering=0) as other:
        other.write(b"behind")
    with source.open("ab", buffering=0) as other:
        other.write(b"appended")


def _until_no_mapping_is_followed(running: RunningCachefs, source: Path) -> None:
    """For as long as one may be there, the daemon has the source's file open for what it writes."""
    handles = Path(f"/proc/{running.status().pid}/fd")

    def follows() -> bool:
        found = list[str]()
        for handle in handles.iterdir():
            with suppress(FileNotFoundError):
                found.append(os.readlink(handle))
        return any(name.endswith(f"/{source.name}") and "/files/" not in name for name in found)

    wait_until(running, lambda: not follows(), "no mapping is followed any more")


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_mapping_of_a_handle_that_appends_writes_where_it_lies(
    cachefs_settings: dict[str, Any],
    slow_disk: SlowDisk,
    start_mount: Callable[[dict[str, Any]], RunningCachefs],
    fast_path: str,
) -> None:
    cachefs_settings["fast_path"] = fast_path
    (slow_disk.backing / "log").write_bytes(bytes(10_000))
    running = start_mount(cachefs_settings)
    handle = os.open(running.mountpoint / "log", os.O_RDWR | os.O_APPEND)
    with mmap.mmap(handle, BLOCK) as mapped:
        mapped[:6] = b"mapped"
        mapped.flush()
    os.write(handle, b"appended")
    os.close(handle)
    assert (slow_disk.backing / "log").read_bytes() == b"mapped" + bytes(9_994) + b"appended"


class WriteUnderWay:
    """A page was written that the source has not taken yet: ``film``, of one page, is all ``new`` in the kernel."""

    def __init__(self, running: RunningCachefs, slow_disk: SlowDisk) -> None:
        self.film = running.mountpoint / "film"
        self.new = b"new!" * (BLOCK // 4)
        self._slow_disk = slow_disk
        self._threads = ThreadPoolExecutor(2)
        self._writer = os.open(self.film, os.O_RDWR)
        slow_disk.hang("film", ["write"])
        self._written = self._threads.submit(os.pwrite, self._writer, self.new, 0)
        slow_disk.wait_held()

    def reading(self, handle: int) -> Future[bytes]:
        """Begin to read; returns once the kernel waits for an answer, or has one."""
        thread = list[int]()

        def read() -> bytes:
            thread.append(threading.get_native_id())
            return os.pread(handle, BLOCK, 0)

        reading = self._threads.submit(read)
        while not reading.done() and not (thread and _waits_in_kernel(thread[0])):
            time.sleep(0)
        return reading

    def let_go(self) -> None:
        """The source takes it."""
        self._slow_disk.release("film", ["write"])
        assert self._written.result(timeout=20) == BLOCK
        os.close(self._writer)
        self._threads.shutdown()


def _waits_in_kernel(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "D"


@pytest.fixture
def write_under_way(
    cachefs_settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> WriteUnderWay:
    (slow_disk.backing / "film").write_bytes(bytes(BLOCK))
    slow_disk.settings(direct_io=True)  # else its own pages know of the write
    return WriteUnderWay(start_mount(cachefs_settings), slow_disk)


def test_who_opens_a_file_while_a_write_is_under_way_sees_what_is_written(write_under_way: WriteUnderWay) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        handle = os.open(write_under_way.film, flags)
        reading = write_under_way.reading(handle)
        assert reading.result(timeout=20) == write_under_way.new  # from the kernel: the source has not answered yet
        os.close(handle)
    write_under_way.let_go()
    assert write_under_way.film.read_bytes() == write_under_way.new


def test_a_page_that_is_lost_while_its_write_is_under_way_is_read_after_it(write_under_way: WriteUnderWay) -> None:
    """As it happens when memory is short. What is read too early would be the page from then on."""
    handle = os.open(write_under_way.film, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    reading = write_under_way.reading(handle)
    write_under_way.let_go()
    assert reading.result() == write_under_way.new
    assert os.pread(handle, BLOCK, 0) == write_under_way.new
    os.close(handle)
