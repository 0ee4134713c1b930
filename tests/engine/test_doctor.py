"""``cachefs doctor`` says what a machine lacks, and what to do; a dead disk does not hold it up."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs import cli, doctor, leftover, mounts, probes, readahead
from cachefs.commands import shared
from cachefs.config import Config, build
from cachefs.doctor import DoctorReport
from tests.engine.fake_engine import FakeEngine, serve

ROOT_MOUNT = mounts.Mount(1, 0, 1, Path("/"), "ext4", "/dev/sda1")
MACHINE = probes.Machine("6.9.0-1-amd64", "3.14.0", True, 0, True, "utf-8", 500_000)
FUSE = probes.Fuse("", fusermount_missing=False, others_refused=False)


@dataclass
class Place:
    """Folders of a set-up, and a machine that lacks nothing; the tests take something away."""

    root: Path
    patch: pytest.MonkeyPatch

    def config(self, **changes: object) -> Config:
        data: dict[str, object] = {
            "mountpoint": f"{self.root}/mnt",
            "sources": [{"path": f"{self.root}/media"}],
            "cache": {"path": f"{self.root}/ssd"},
            "control": {"socket": f"{self.root}/c.sock"},
        }
        return build(data | changes, self.root, {}, "test")

    def machine(self, **changes: Any) -> None:
        self.patch.setattr(probes, "look_at_machine", lambda: replace(MACHINE, **changes))

    def fuse(self, **changes: Any) -> None:
        self.patch.setattr(probes, "look_at_fuse", lambda uid: replace(FUSE, **changes))

    def mounted(self, *more: mounts.Mount) -> None:
        self.patch.setattr(mounts, "all_now", lambda: (ROOT_MOUNT, *more))

    def answers(self, answer: bool) -> None:
        """Whether somebody answers for what is mounted."""

        async def of_mount(mountpoint: Path) -> bool:
            assert mountpoint == self.root / "mnt"
            return answer

        self.patch.setattr(leftover, "answers", of_mount)

    def mount(self, name: str, fstype: str) -> mounts.Mount:
        return mounts.Mount(2, 1, 77, self.root / name, fstype, "it")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("mnt", "media", "ssd"):
        (tmp_path / name).mkdir()
    made = Place(tmp_path, monkeypatch)
    made.machine()
    made.fuse()
    made.mounted()
    look = probes.look_at_folder
    # The test has one disk only: the source is shown as if on another one.
    monkeypatch.setattr(
        probes, "look_at_folder", lambda path: replace(look(path), identity=(9, 9) if path.name == "media" else (8, 8))
    )
    return made


async def examined(config: Config) -> DoctorReport:
    with trio.fail_after(20):
        return await doctor.examine(config)


def meaning(report: DoctorReport, what: str) -> str:
    return next(row.meaning for row in report.facts if row.what == what)


async def test_a_machine_that_lacks_nothing(place: Place) -> None:
    report = await examined(place.config())
    assert report.findings == ()
    assert not report.hindered
    assert meaning(report, "kernel") == "Linux 6.9.0-1-amd64"
    assert meaning(report, "fast path") == "possible: the kernel can read cached files by itself"
    assert meaning(report, "source") == f"{place.root}/media is on ext4, local"
    assert meaning(report, "daemon") == "does not run"


async def test_a_fast_path_that_the_user_switched_off_is_possible_all_the_same(place: Place) -> None:
    off = place.config(fast_path="off")
    report = await examined(off)
    assert meaning(report, "fast path").startswith("switched off (fast_path: off)")
    place.machine(kernel="5.10")
    assert meaning(await examined(off), "fast path").startswith("not possible here")


@pytest.mark.parametrize(
    ("changes", "hinders", "message", "remedy"),
    [
        ({"kernel": "6.8.12"}, False, "Linux 6.8.12 does not read cached files", "Linux 6.9"),
        ({"kernel": "5.10"}, False, "Linux 5.10 does not", "Linux 6.9"),
        ({"has_channel": False}, True, "channel to the kernel is not built", "with pip"),
        ({"libfuse": ""}, True, "libfuse 3 is not found", "fuse3"),
        ({"libfuse": "3.10.5"}, True, "libfuse 3.10.5 cannot carry", "3.13"),
        ({"uid": 1000, "can_administrate": False}, False, "only root with CAP_SYS_ADMIN", "as root"),
        ({"can_administrate": False}, False, "only root with CAP_SYS_ADMIN", "--cap-add SYS_ADMIN"),
        ({"encoding": "iso8859-1"}, True, "names are read as iso8859-1", "LC_ALL=C.UTF-8"),
        ({"most_watches": 8192}, False, "only 8192 folders", "sysctl fs.inotify.max_user_watches"),
    ],
)
async def test_what_the_machine_lacks(
    place: Place, changes: dict[str, Any], hinders: bool, message: str, remedy: str
) -> None:
    place.machine(**changes)
    report = await examined(place.config())
    [finding] = report.findings
    assert message in finding.message
    assert remedy in finding.remedy
    assert finding.hinders is report.hindered is hinders


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        ({"device_problem": "does not exist; run: modprobe fuse"}, "/dev/fuse does not exist", "run: modprobe fuse"),
        ({"device_problem": "may not be opened"}, "/dev/fuse may not be opened", "modprobe fuse"),
        ({"fusermount_missing": True}, "fusermount3 is missing", "install the package fuse3"),
        ({"others_refused": True}, "only you can see into the mount", "user_allow_other into /etc/fuse.conf"),
    ],
)
async def test_what_mounting_lacks(place: Place, changes: dict[str, Any], message: str, remedy: str) -> None:
    place.fuse(**changes)
    [finding] = (await examined(place.config())).findings
    assert finding.hinders
    assert message in finding.message
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("fstype", "hinders", "message"),
    [("overlay", True, "on a stacked file system (overlay)"), ("tmpfs", False, "in memory (tmpfs): it is empty after")],
)
async def test_what_the_cache_folder_is_on(place: Place, fstype: str, hinders: bool, message: str) -> None:
    place.mounted(place.mount("ssd", fstype))
    [finding] = (await examined(place.config())).findings
    assert message in finding.message
    assert finding.hinders is hinders


async def test_a_cache_on_the_sources_own_disk_gains_nothing(place: Place) -> None:
    found = probes.look_at_folder
    place.patch.setattr(probes, "look_at_folder", lambda path: replace(found(path), identity=(8, 8)))
    [finding] = (await examined(place.config())).findings
    assert finding.hinders
    assert finding.message.endswith(f"is on the same file system as the source {place.root}/media")


@pytest.mark.parametrize("fstype", ["nfs4", "cifs", "fuse.shfs", "fuse.mergerfs", "9p"])
async def test_a_network_source_cannot_be_watched(place: Place, fstype: str) -> None:
    place.mounted(place.mount("media", fstype))
    place.machine(most_watches=10)
    report = await examined(place.config())
    [finding] = report.findings
    assert not finding.hinders
    assert "cannot be watched" in finding.message
    assert meaning(report, "source") == f"{place.root}/media is on {fstype}, not a local disk's"


async def test_a_hung_source_is_said_and_left_behind(place: Place) -> None:
    stuck = threading.Event()
    look = probes.look_at_folder

    def hang(path: Path) -> probes.Folder:
        if path.name == "media":
            stuck.wait()
        return look(path)

    place.patch.setattr(probes, "look_at_folder", hang)
    try:
        report = await examined(place.config(sources=[{"path": f"{place.root}/media", "timeout": "100ms"}]))
    finally:
        stuck.set()
    assert [finding.message for finding in report.findings] == [f"the source {place.root}/media does not answer"]
    assert report.hindered


async def test_a_missing_source_and_an_unusable_cache(place: Place) -> None:
    (place.root / "media").rmdir()
    (place.root / "ssd").rmdir()
    (place.root / "ssd").write_text("a file")
    report = await examined(place.config())
    assert [finding.message for finding in report.findings] == [
        f"the cache folder {place.root}/ssd is no folder",
        f"the source {place.root}/media does not exist",
    ]


async def test_a_dead_mount_is_to_be_cleared(place: Place) -> None:
    place.mounted(place.mount("mnt", mounts.FSTYPE))
    place.answers(False)
    report = await examined(place.config())
    [finding] = report.findings
    assert (finding.message, finding.hinders) == (f"a dead mount is at {place.root}/mnt", True)
    assert "cachefs unmount" in finding.remedy
    assert meaning(report, "daemon") == "does not run"


@pytest.mark.parametrize("socket_of_another", [False, True])
async def test_a_living_mount_that_another_socket_belongs_to_is_not_called_dead(
    place: Place, socket_of_another: bool
) -> None:
    place.mounted(place.mount("mnt", mounts.FSTYPE))
    place.answers(True)
    config = place.config()
    async with trio.open_nursery() as nursery:
        if socket_of_another:
            await nursery.start(partial(serve, FakeEngine(), config.control.socket))
        report = await examined(config)
        nursery.cancel_scope.cancel()
    [finding] = report.findings
    assert f"a living cachefs is mounted at {place.root}/mnt, but does not answer on {place.root}/" in finding.message
    assert finding.hinders
    assert meaning(report, "daemon") == "does not answer"


@pytest.mark.parametrize(
    ("fast_path", "opens", "said"),
    [
        ("the daemon lacks CAP_SYS_ADMIN", 0, "go through the daemon: the daemon lacks CAP_SYS_ADMIN"),
        ("", 3, "of cached files are the kernel's own"),
        ("", 0, "of cached files will be the kernel's own, as far as can be seen before the first"),
    ],
)
async def test_what_the_running_daemon_says(place: Place, fast_path: str, opens: int, said: str) -> None:
    engine = FakeEngine()
    status = engine.answer_status
    engine.answer_status = replace(
        status,
        fast_path=fast_path,
        reads=replace(status.reads, kernel_opens=opens),
        mountpoint=str(place.root / "mnt"),
    )
    place.mounted(place.mount("mnt", mounts.FSTYPE))
    place.patch.setattr(readahead, "of", lambda mount: 128 << 10)
    config = place.config()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, engine, config.control.socket))
        report = await examined(config)
        nursery.cancel_scope.cancel()
    assert meaning(report, "reads") == said
    assert meaning(report, "daemon").startswith("cachefs ")
    [finding] = report.findings
    assert finding.message == "the kernel reads only 128 KiB ahead, not 1 MiB"


def test_it_is_two_until_all_is_mended(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.patch.setattr(shared, "load", lambda given: place.config())
    assert cli.run(["doctor", "-c", "x"]) == 0
    assert "nothing hinders cachefs on this machine" in capsys.readouterr().out
    place.machine(libfuse="")
    assert cli.run(["doctor", "-c", "x"]) == 2
    assert "libfuse 3 is not found: install the package fuse3\n1 to mend\n" in capsys.readouterr().out
    assert cli.run(["doctor", "-c", "x", "--json"]) == 2
    assert '"hinders": true' in capsys.readouterr().out


def test_this_machine_is_seen_as_it_is() -> None:
    machine = probes.look_at_machine()
    assert machine.libfuse.startswith("3.")
    assert machine.has_channel
    assert machine.encoding == "utf-8"
    assert machine.most_watches is not None


def test_the_libfuse_that_is_told_of_is_the_one_that_is_loaded() -> None:
    maps = """7f0a-7f0b r--p 00000000 fe:01 123   /usr/lib/x86_64-linux-gnu/libc.so.6
7f0c-7f0d r--p 00000000 fe:01 124                  /usr/lib/x86_64-linux-gnu/libfuse3.so.4.0.0
7f0e-7f0f rw-p 00000000 00:00 0
"""
    assert probes.loaded_libfuse(maps) == "/usr/lib/x86_64-linux-gnu/libfuse3.so.4.0.0"
    assert probes.loaded_libfuse("") == ""
