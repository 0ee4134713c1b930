"""``cachefs check`` finds every fault of the surroundings at once, and a dead disk does not hold it up."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from cachefs import accepting, building, check, cli, leftover, mounts, nesting, probes
from cachefs.cache import keepsake
from cachefs.cache.folder import Folder
from cachefs.cache.metadata import Metadata, open_metadata
from cachefs.cache.store import Store, open_store
from cachefs.check import CheckReport, Finding, Severity
from cachefs.commands import machine, shared
from cachefs.config import Config, PlexConfig, build
from cachefs.errors import CacheError, CannotMount, PlexRefused, PlexUnreachable, UserError
from cachefs.model import FileKey, Home, Phase, SourceName, UserName, UserReport
from cachefs.plex.values import ServerFacts
from cachefs.resolving import PathNote
from tests.engine.cachekit import MEDIA, ROOMY, cached
from tests.engine.fake_engine import FakeEngine, serve
from tests.engine.test_remembered import packed
from tests.standin.plex import run_stand_in_plex

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
MOUNTABLE = probes.Fuse("", fusermount_missing=False, others_refused=False)


@dataclass(frozen=True)
class Folders:
    """Folders of a set-up that is fine but for sharing one disk."""

    root: Path

    def config(self, **changes: object) -> Config:
        data: dict[str, object] = {
            "mountpoint": f"{self.root}/mnt",
            "sources": [{"path": f"{self.root}/media"}],
            "cache": {"path": f"{self.root}/ssd", "min_free": "1"},
            "control": {"socket": f"{self.root}/c.sock"},
        }
        return build(data | changes, self.root, {}, "test")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    for name in ("mnt", "media", "ssd"):
        (tmp_path / name).mkdir()
    (tmp_path / "media" / "film.mkv").write_text("film")
    monkeypatch.setattr(probes, "look_at_fuse", lambda uid: MOUNTABLE)
    return Folders(tmp_path)


async def no_plex(plex: PlexConfig, token: str) -> ServerFacts:
    raise PlexUnreachable("Plex at http://127.0.0.1:1 does not answer")


async def examined(config: Config) -> CheckReport:
    with trio.fail_after(20):
        return await check.examine(config, no_plex)


def found(report: CheckReport, severity: Severity) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity is severity]


def only(report: CheckReport, severity: Severity, key: str) -> str:
    [finding] = [finding for finding in found(report, severity) if finding.key == key]
    return finding.message


async def test_a_good_set_up_can_mount(folders: Folders) -> None:
    report = await examined(folders.config())
    assert report.can_mount
    assert only(report, WARNING, "cache.path").endswith("it will gain nothing")  # the test has one disk only
    assert (
        only(report, NOTE, "plex")
        == "not configured; only what is pinned, or asked for with cachefs copy, will be copied"
    )
    meaning = {row.what: row.meaning for row in report.understood}
    assert meaning["mountpoint"] == f"{folders.root}/mnt, showing the content of media"
    assert meaning["socket"] == f"{folders.root}/c.sock"
    assert meaning["source"].endswith("; names and attributes are remembered on a local disk")
    assert meaning["reads"] == "the kernel reads cached files by itself where it can; others are read 1 MiB ahead"
    assert meaning["rights"].startswith("by owner, group and mode;")


async def test_all_faults_are_found_at_once(folders: Folders) -> None:
    (folders.root / "ssd").rmdir()
    (folders.root / "ssd").write_text("a file")
    (folders.root / "mnt").rmdir()
    (folders.root / "mnt").write_text("")
    (folders.root / "file").write_text("")
    sources = [{"path": f"{folders.root}/gone"}, {"path": f"{folders.root}/file"}]
    report = await examined(folders.config(sources=sources))
    assert not report.can_mount
    assert [(finding.key, finding.message.partition(" ")[2]) for finding in found(report, ERROR)] == [
        ("cache.path", "is no folder"),
        ("mountpoint", "is no folder"),
        ("sources[0].path", "does not exist"),
        ("sources[1].path", "is no folder"),
    ]


async def test_a_missing_mountpoint_is_made_by_root_in_a_folder_that_is_there(folders: Folders) -> None:
    (folders.root / "mnt").rmdir()
    report = await examined(folders.config())
    assert report.can_mount == (os.geteuid() == 0)
    if report.can_mount:
        assert only(report, NOTE, "mountpoint") == f"{folders.root}/mnt will be made, and goes with the mount"
    report = await examined(folders.config(mountpoint=f"{folders.root}/gone/mnt"))
    to_make = f"{folders.root}/gone (the mountpoint in it is made" if os.geteuid() == 0 else f"{folders.root}/gone/mnt"
    assert f"does not exist; run: mkdir -p {to_make}" in only(report, ERROR, "mountpoint")


# --- whose cache folder it is ----------------------------------------------------------------------------------------


async def use(folders: Folders) -> None:
    """Make the cache folder that of these folders' configuration."""
    sources = {SourceName("media"): f"{folders.root}/media"}
    async with open_store(folders.root / "ssd", ROOMY, sources):
        pass


async def test_a_cache_folder_of_these_sources_is_fine(folders: Folders) -> None:
    await use(folders)
    assert (await examined(folders.config())).can_mount


async def test_a_cache_folder_of_other_sources_is_refused_as_by_mount(folders: Folders) -> None:
    await use(folders)
    (folders.root / "other").mkdir()
    sources = [{"path": f"{folders.root}/other", "name": "media"}]
    said = only(await examined(folders.config(sources=sources)), ERROR, "cache.path")
    with pytest.raises(CacheError) as refused:
        async with open_store(folders.root / "ssd", ROOMY, {SourceName("media"): f"{folders.root}/other"}):
            pass
    assert said == str(refused.value)
    assert f"copies of media at {folders.root}/media, not of media at {folders.root}/other" in said


async def test_moved_files_are_counted_and_hold_a_source_that_is_gone(folders: Folders) -> None:
    (folders.root / "more").mkdir()
    paths = {MEDIA: f"{folders.root}/media", SourceName("more"): f"{folders.root}/more"}
    media, more = ({"name": name, "path": path} for name, path in paths.items())
    async with open_store(folders.root / "ssd", ROOMY, paths) as store:
        entry = await cached(store, "film.mkv", b"film")
        home = Home(entry.fingerprint, Phase.LEAVING, 0, reserved=False)
        assert await store.moves.leave(entry, home) is not None
    report = await examined(folders.config(sources=[media, more]))
    assert report.can_mount
    assert only(report, NOTE, "cache.mode") == (
        "the SSD holds the only copy of one file (4 B), moved earlier: that stays so in mode copy, too; "
        "cachefs restore --all brings all of it home"
    )
    report = await examined(folders.config(sources=[media], mountpoint=media["path"]))
    assert "while cachefs is stopped finds them gone; bring them home: cachefs restore --all" in only(
        report, WARNING, "cache.mode"
    )
    cache = {"path": f"{folders.root}/ssd", "min_free": "1", "mode": "move"}
    report = await examined(folders.config(sources=[more], cache=cache))
    assert "there is no source Media in the configuration" in only(report, ERROR, "cache.path")
    assert "the SSD holds the only copy of one file (4 B); cachefs restore" in only(report, NOTE, "cache.mode")
    [mode] = [row.meaning for row in report.understood if row.what == "mode"]
    assert mode.startswith("move: the SSD will hold the only file of what it caches")


async def test_a_cache_folder_of_a_newer_cachefs_is_refused_as_by_mount(folders: Folders) -> None:
    await use(folders)
    kept = keepsake.read(f"{folders.root}/ssd")
    assert kept is not None
    keepsake.save(f"{folders.root}/ssd", replace(kept, schema=99))
    with sqlite3.connect(folders.root / "ssd/index.sqlite") as index:
        index.execute("UPDATE meta SET value = CAST('99' AS BLOB) WHERE name = 'schema'")
    index.close()
    said = only(await examined(folders.config()), ERROR, "cache.path")
    with pytest.raises(CacheError) as refused:
        await use(folders)
    assert said == str(refused.value)


async def test_a_folder_that_cachefs_did_not_make_is_refused(folders: Folders) -> None:
    (folders.root / "ssd/files").mkdir()
    (folders.root / "ssd/files/precious").write_text("mine")
    assert "that cachefs did not make" in only(await examined(folders.config()), ERROR, "cache.path")


async def test_what_lies_beside_a_new_cache_is_named(folders: Folders) -> None:
    (folders.root / "ssd/holiday.jpg").touch()
    said = [finding.message for finding in found(await examined(folders.config()), WARNING)]
    assert any("holds 'holiday.jpg'" in message for message in said)


async def test_a_cache_folder_that_another_daemon_has_is_refused(folders: Folders) -> None:
    taken = Folder.take(f"{folders.root}/ssd")
    try:
        said = only(await examined(folders.config()), ERROR, "cache.path")
    finally:
        taken.close()
    assert said.endswith(f"is in use by another cachefs (process {os.getpid()}); stop it, or choose another")
    assert (await examined(folders.config())).can_mount


async def test_a_cache_folder_that_our_own_daemon_has_is_fine(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    await use(folders)
    taken = Folder.take(f"{folders.root}/ssd")
    monkeypatch.setattr(probes, "look_at_mountpoint", lambda *_: probes.Place(None, os.getpid(), None))
    try:
        assert (await examined(folders.config())).can_mount
    finally:
        taken.close()


async def test_a_source_that_hangs_is_left_behind(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    look = probes.look_at_folder

    def hang(path: Path) -> probes.Folder:
        if path.name == "media":
            stuck.wait()
        return look(path)

    monkeypatch.setattr(probes, "look_at_folder", hang)
    sources = [{"path": f"{folders.root}/media", "timeout": "100ms"}, {"path": f"{folders.root}/gone"}]
    try:
        report = await examined(folders.config(sources=sources))
    finally:
        stuck.set()
    assert "does not answer within" in only(report, ERROR, "sources[0].path")
    assert only(report, ERROR, "sources[1].path").endswith("does not exist")


async def test_a_source_that_is_away_is_a_warning_once_it_was_seen(folders: Folders) -> None:
    away = folders.config(sources=[{"path": f"{folders.root}/gone"}])
    assert only(await examined(away), ERROR, "sources[0].path") == f"{folders.root}/gone does not exist"
    async with open_metadata(str(away.cache.path)) as metadata:
        metadata.note(FileKey(SourceName("gone"), ""), b"listing")
    report = await examined(away)
    assert report.can_mount
    assert "cachefs mounts without it" in only(report, WARNING, "sources[0].path")
    in_place = folders.config(sources=[{"path": f"{folders.root}/gone"}], mountpoint=f"{folders.root}/gone")
    assert not (await examined(in_place)).can_mount


async def test_an_empty_source_may_be_an_unmounted_disk(folders: Folders) -> None:
    (folders.root / "empty").mkdir()
    report = await examined(folders.config(sources=[{"path": f"{folders.root}/empty"}]))
    assert report.can_mount
    assert only(report, WARNING, "sources[0].path").endswith("is empty; is its disk mounted?")


@asynccontextmanager
async def memory_of(config: Config) -> AsyncIterator[tuple[Store, Metadata]]:
    """The cache folder, as a daemon has it."""
    sources = {source.name: str(source.path) for source in config.sources}
    async with open_store(config.cache.path, ROOMY, sources) as store, open_metadata(str(config.cache.path)) as memory:
        yield store, memory


async def start(config: Config, *, sees: bool = False) -> str:
    """What a start says against the only source; empty when nothing. ``sees``: it remembers what is in it."""
    async with memory_of(config) as (store, memory):
        try:
            async with building.open_union(config, store, store.device_tag, memory) as union:
                (source,) = union.sources.values()
                if sees:
                    memory.note(FileKey(source.name, ""), packed(Path(source.path)))
                return source.health().problem
        except CannotMount as refused:
            return str(refused)


def empty(media: Path) -> None:
    (media / "film.mkv").unlink()


def copy_to_its_place(media: Path) -> None:
    media.rename(media.with_name("the original"))
    shutil.copytree(media.with_name("the original"), media)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("change", [empty, copy_to_its_place])
async def test_a_source_that_is_another_than_before_is_judged_as_by_a_start(
    folders: Folders, change: Callable[[Path], None], in_place: bool, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source media .* is offline")
    media = folders.root / "media"
    config = folders.config(mountpoint=str(media)) if in_place else folders.config()
    assert await start(config, sees=True) == ""
    assert [finding.key for finding in (await examined(config)).findings if "source" in finding.key] == []
    change(media)
    report = await examined(config)
    said = await start(config)
    assert "(if that is meant: cachefs accept media)" in said
    assert report.can_mount is not in_place
    message = only(report, ERROR if in_place else WARNING, "sources[0].path")
    if in_place:
        assert said == f"a source cannot be opened: {message.removeprefix(f'{media}: ')}: {media}"
    else:
        assert message == f"{media}: {said}; until then cachefs mounts without it, and shows what it saw last"
    async with memory_of(config):
        beside_a_daemon = await examined(config)
    assert only(beside_a_daemon, ERROR if in_place else WARNING, "sources[0].path") == message


async def test_a_source_below_the_mount_of_a_living_daemon_is_not_judged(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = folders.root / "media"
    config = folders.config(mountpoint=str(media))
    assert await start(config, sees=True) == ""
    copy_to_its_place(media)  # as the mount is: another folder at the same path
    there = mounts.Mount(9, 1, 50, media, "fuse.cachefs", "it")
    monkeypatch.setattr(probes, "look_at_mountpoint", lambda *_: probes.Place(there, os.getpid(), None))
    assert (await examined(config)).can_mount


def make_links(folders: Folders) -> None:
    (folders.root / "media" / "inner").mkdir()
    (folders.root / "link").symlink_to(folders.root / "media" / "inner")


async def test_a_link_does_not_hide_that_the_cache_is_in_a_source(folders: Folders) -> None:
    make_links(folders)
    report = await examined(folders.config(cache={"path": f"{folders.root}/link"}))
    assert "is really inside the source" in only(report, ERROR, "cache.path")
    report = await examined(folders.config(cache={"path": f"{folders.root}/link/new"}))
    assert "is really inside the source" in only(report, ERROR, "cache.path")


async def test_a_link_does_not_hide_that_a_source_is_in_the_cache(folders: Folders) -> None:
    make_links(folders)
    config = folders.config(sources=[{"path": f"{folders.root}/link"}], cache={"path": f"{folders.root}/media"})
    assert "is really inside the cache" in only(await examined(config), ERROR, "sources[0].path")


@pytest.mark.parametrize(
    ("paths", "wrong", "said"),
    [
        (["media", "link"], 1, "link is really inside the source"),
        (["link", "media"], 0, "link is really inside the source"),
        (["media", "same"], 1, "same is really the source"),
    ],
)
async def test_a_link_does_not_hide_that_a_source_is_in_another(
    folders: Folders, paths: list[str], wrong: int, said: str
) -> None:
    make_links(folders)
    (folders.root / "same").symlink_to(folders.root / "media")
    config = folders.config(sources=[{"path": f"{folders.root}/{path}"} for path in paths])
    told = only(await examined(config), ERROR, f"sources[{wrong}].path")
    assert said in told
    with pytest.raises(UserError) as refused:
        await nesting.refuse(config)
    assert str(refused.value) == f"sources[{wrong}].path: {told}"


async def test_a_link_does_not_hide_that_the_mountpoint_is_in_a_source_or_a_source_itself(folders: Folders) -> None:
    make_links(folders)
    report = await examined(folders.config(mountpoint=f"{folders.root}/link"))
    assert "is really inside the source" in only(report, ERROR, "mountpoint")
    (folders.root / "same").symlink_to(folders.root / "media")
    report = await examined(folders.config(mountpoint=f"{folders.root}/same"))
    assert f"is really the source {folders.root}/media" in only(report, ERROR, "mountpoint")


async def test_a_cache_beside_the_source_may_still_be_made(folders: Folders) -> None:
    report = await examined(folders.config(cache={"path": f"{folders.root}/new"}))
    assert report.can_mount
    on_system = os.stat(folders.root).st_dev == os.stat("/").st_dev
    said = " on the system's own disk (is the SSD mounted?)" if on_system else ""
    assert only(report, NOTE, "cache.path").endswith(f"does not exist yet; it will be made{said}")
    assert sorted(os.listdir(folders.root)) == ["media", "mnt", "ssd"]


async def test_a_cache_below_a_folder_that_is_missing_may_be_an_unmounted_disk_and_is_refused_as_by_mount(
    folders: Folders,
) -> None:
    path = folders.root / "nossd/cachefs"
    said = only(await examined(folders.config(cache={"path": str(path)})), ERROR, "cache.path")
    with pytest.raises(CacheError) as refused:
        Folder.take(str(path))
    assert str(refused.value) == f"cache.path {said}"
    assert said.endswith(f"{path.parent} does not exist; is the SSD mounted? Where it is, run: mkdir -p {path.parent}")
    assert not path.parent.exists()


async def test_what_cannot_be_a_socket_is_refused(folders: Folders) -> None:
    root = folders.root
    (root / "file").write_text("kept")
    for socket, problem in (
        (root / "file", f"{root}/file exists and is no socket; remove it or choose another path"),
        (root / "media.txt" / "s", f"{root}/media.txt is no folder"),
        (Path("/proc/cachefs/s"), "/proc is on proc, which has no files"),
    ):
        (root / "media.txt").write_text("")
        report = await examined(folders.config(control={"socket": str(socket)}))
        assert only(report, ERROR, "control.socket") == problem
    report = await examined(folders.config(cache={"path": "/proc/cachefs"}))
    assert "/proc is on proc, which has no files" in only(report, ERROR, "cache.path")


async def test_the_socket_of_another_cachefs_is_refused(folders: Folders) -> None:
    config = folders.config()
    engine = FakeEngine()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, engine, config.control.socket))
        report = await examined(config)
        nursery.cancel_scope.cancel()
    said = only(report, ERROR, "control.socket")
    assert f"has mounted {engine.mountpoint}, not {folders.root}/mnt: give each cachefs" in said


async def test_no_room_at_all_is_said(folders: Folders) -> None:
    config = folders.config(cache={"path": f"{folders.root}/ssd", "min_free": "100%"})
    assert only(await examined(config), WARNING, "cache.min_free").startswith("nothing more can be copied")


async def test_a_mountpoint_with_files_is_warned_of_but_not_in_place(folders: Folders) -> None:
    (folders.root / "mnt" / "x").write_text("")
    assert "which the mount will hide" in only(await examined(folders.config()), WARNING, "mountpoint")
    report = await examined(folders.config(mountpoint=f"{folders.root}/media"))
    assert [finding for finding in report.findings if finding.key == "mountpoint"] == []


@pytest.mark.parametrize(
    ("fstype", "severity", "said"),
    [
        ("fuse.cachefs", NOTE, "will be cleared"),
        ("fuse.cachefs", ERROR, "a living cachefs is mounted"),
        ("ext4", ERROR, "is in use: it (ext4) is mounted there"),
    ],
)
async def test_what_is_mounted_at_the_mountpoint(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, fstype: str, severity: Severity, said: str
) -> None:
    async def answers(mountpoint: Path) -> bool:
        return severity is ERROR

    monkeypatch.setattr(leftover, "answers", answers)
    there = mounts.Mount(9, 1, 50, folders.root / "mnt", fstype, "it")
    monkeypatch.setattr(mounts, "mounted_at", lambda path: there)
    assert said in only(await examined(folders.config()), severity, "mountpoint")


async def test_what_mounting_needs_is_said(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = probes.Fuse("does not exist; run: modprobe fuse", fusermount_missing=True, others_refused=True)
    monkeypatch.setattr(probes, "look_at_fuse", lambda uid: fuse)
    report = await examined(folders.config())
    assert [finding.message.split(";")[0] for finding in found(report, ERROR)] == [
        "/dev/fuse does not exist",
        "fusermount3 is missing",
    ]
    assert "user_allow_other" in only(report, WARNING, "")


PLEX = {"url": "http://127.0.0.1:1", "token": "secret-token"}


async def test_plex_that_is_away_is_no_obstacle(folders: Folders) -> None:
    report = await examined(folders.config(plex=PLEX))
    assert report.can_mount
    assert "does not answer; cachefs mounts without Plex" in only(report, WARNING, "plex.url")


async def test_a_refused_token_is(folders: Folders) -> None:
    async def refuse(plex: PlexConfig, token: str) -> ServerFacts:
        assert token == "secret-token"
        raise PlexRefused("the token was not accepted")

    report = await check.examine(folders.config(plex=PLEX), refuse)
    assert only(report, ERROR, "plex.token") == "the token was not accepted"


async def test_a_user_who_is_left_out_is_named(folders: Folders) -> None:
    async def answer(plex: PlexConfig, token: str) -> ServerFacts:
        ann, bob = UserReport(UserName("Ann")), UserReport(UserName("Bob"), "a PIN is needed")
        return ServerFacts("Den", "1.40", UserName("Ann"), (ann, bob))

    async def paths(config: Config) -> tuple[PathNote, ...]:
        return (PathNote("/data is /", found=True),)

    report = await check.examine(folders.config(plex=PLEX), answer, paths)
    assert only(report, WARNING, "plex") == "Bob is left out: a PIN is needed"
    assert only(report, NOTE, "plex.path_map") == "/data is /"
    [row] = [row for row in report.understood if row.what == "plex"]
    assert "(Den 1.40, owner Ann, users Ann)" in row.meaning
    assert "secret-token" not in repr(report)


async def test_a_path_that_leads_nowhere_is_a_warning_unless_a_source_is_missing(folders: Folders) -> None:
    async def answer(plex: PlexConfig, token: str) -> ServerFacts:
        return ServerFacts("Den", "1.40", UserName("Ann"), ())

    async def paths(config: Config) -> tuple[PathNote, ...]:
        return (PathNote("/data is nowhere", found=False),)

    report = await check.examine(folders.config(plex=PLEX), answer, paths)
    assert only(report, WARNING, "plex.path_map") == "/data is nowhere"
    (folders.root / "media" / "film.mkv").unlink()
    report = await check.examine(folders.config(plex=PLEX), answer, paths)
    assert "not looked for while a source is missing" in only(report, NOTE, "plex.path_map")


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False)])
async def test_a_token_file_for_everybody_is_warned_of(folders: Folders, mode: int, warned: bool) -> None:
    file = folders.root / "token"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"secret-token\n")
    os.fchmod(descriptor, mode)
    os.close(descriptor)
    report = await examined(folders.config(plex={"url": "http://127.0.0.1:1", "token_file": str(file)}))
    assert [finding.key for finding in found(report, WARNING) if "token" in finding.key] == (
        ["plex.token_file"] if warned else []
    )


async def test_a_token_file_that_hangs_is_an_error_and_keeps_nobody_waiting(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def paths(config: Config) -> tuple[PathNote, ...]:
        pytest.fail("they cannot be asked without a token")

    monkeypatch.setattr(check, "LOCAL_S", 0.2)
    file = folders.root / "token"
    os.mkfifo(file, 0o600)
    config = folders.config(plex={"url": "http://127.0.0.1:1", "token_file": str(file)})
    try:
        with trio.fail_after(20):
            report = await check.examine(config, no_plex, paths)
        assert "does not answer" in only(report, ERROR, "plex.token_file")
    finally:
        os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))  # who waits for a writer has had one


async def test_a_missing_token_file_is_an_error(folders: Folders) -> None:
    config = folders.config(plex={"url": "http://127.0.0.1:1", "token_file": f"{folders.root}/none"})
    report = await check.examine(config, no_plex, building.path_report)
    said = only(report, ERROR, "plex.token_file")
    assert said == f"{folders.root}/none cannot be read: No such file or directory"


async def test_the_real_plex_client_is_asked(folders: Folders) -> None:
    with run_stand_in_plex() as plex:
        settings = {"url": plex.url, "cloud_url": plex.url, "token": plex.token}
        report = await check.examine(folders.config(plex=settings), machine.ask_plex)
        assert found(report, ERROR) == []
        assert any(plex.owner in row.meaning for row in report.understood if row.what == "plex")
        refused = await check.examine(folders.config(plex=settings | {"token": "wrong"}), machine.ask_plex)
        assert [finding.key for finding in found(refused, ERROR)] == ["plex.token"]


def test_check_is_two_until_all_is_mended(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = partial(cli.run, ["check", "-c", "x", "--json"])
    monkeypatch.setattr(shared, "load", lambda given: folders.config())
    assert run() == 0
    (folders.root / "media" / "film.mkv").unlink()
    (folders.root / "media").rmdir()
    assert run() == 2
    assert '"severity": "error"' in capsys.readouterr().out


def test_check_says_what_is_wrong_with_a_configuration_as_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cachefs.yaml"
    file.write_text("mountpont: /mnt\n")
    assert cli.run(["check", "--json", "-c", str(file)]) == shared.USER
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {
        "severity": "error",
        "key": "mountpont",
        "message": "there is no such key; did you mean mountpoint?",
    } in findings
    assert cli.run(["check", "--json", "-c", f"{tmp_path}/none.yaml"]) == shared.USER
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["message"].startswith("there is no such file")


async def test_a_container_whose_mount_nobody_else_would_see_is_warned_of(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "oci")
    here = mounts.Mount(1, 0, 0, Path("/"), "ext4", "disk")
    for is_shared in (False, True):
        monkeypatch.setattr(mounts, "all_now", lambda is_shared=is_shared: (replace(here, is_shared=is_shared),))
        told = [finding.message for finding in found(await examined(folders.config()), WARNING)]
        assert any("only this container will see the mount" in message for message in told) is not is_shared


async def test_a_container_without_the_right_to_mount_is_told(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "look_at_fuse", lambda uid: replace(MOUNTABLE, right_missing=True))
    assert "--cap-add SYS_ADMIN" in only(await examined(folders.config()), ERROR, "")


# --- accept, without a daemon ----------------------------------------------------------------------------------------


async def test_nothing_is_accepted_or_written_while_the_ssd_is_not_mounted(folders: Folders) -> None:
    config = folders.config()
    for is_there in (True, False):
        if not is_there:
            (folders.root / "ssd").rmdir()
        with pytest.raises(UserError, match="is the SSD mounted"):
            await accepting.for_next_start(config, config.sources[0], moved=True)
    (folders.root / "ssd").mkdir()
    assert os.listdir(folders.root / "ssd") == []
    async with open_store(config.cache.path, ROOMY, {SourceName("media"): str(config.sources[0].path)}):
        pass
    await accepting.for_next_start(config, config.sources[0], moved=True)
