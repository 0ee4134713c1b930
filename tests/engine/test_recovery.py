"""What a start leaves of a cache folder, after a crash at every step and with every kind of rubbish.

A crash is a photograph: the folder is copied while the store stands between two steps, and the copy is opened.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.cache.folder import Contents, Folder
from cachefs.cache.index import Index
from cachefs.cache.recovery import reconcile
from cachefs.cache.store import Hooks, Step, Store, Targets, open_store
from cachefs.errors import CacheBusy, CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, SourceName
from cachefs.ranges import Ranges
from tests.engine.cachekit import MEDIA, ROOMY, SOURCES, begun, cached, content, key, opened, source_file, write

DATA = b"0123456789"


def files_in(root: Path) -> set[str]:
    """Every file below files/ and partial/, as a person would list it."""
    return {
        str(path.relative_to(root))
        for folder in ("files", "partial")
        for path in (root / folder).rglob("*")
        if not path.is_dir()
    }


def rows_in(root: Path) -> list[tuple[str, EntryState]]:
    index = Index(str(root / "index.sqlite"))
    rows = [(entry.key.path, entry.state) for entry in index.entries()]
    index.close()
    return rows


def entry(number: int, path: str, state: EntryState, *, size: int = 10, done: int = 0) -> CacheEntry:
    ranges = Ranges.of([(0, size if state is EntryState.CACHED else done)])
    return CacheEntry(number, source_file(path, size), state, ranges, "because", 1.0)


# --- the decision, from values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "partial", "published", "kept"),
    [
        (entry(1, "a", EntryState.CACHED), {}, {"files/Media/a": 10}, True),
        (entry(1, "a", EntryState.CACHED), {}, {}, False),
        (entry(1, "a", EntryState.CACHED), {}, {"files/Media/a": 9}, False),
        (entry(1, "a", EntryState.CACHED), {}, {"files/Media/a": -1}, False),
        (entry(1, "a", EntryState.CACHED), {"partial/1": 10}, {}, False),
        (entry(1, "a", EntryState.COPYING, done=4), {"partial/1": 10}, {}, True),
        (entry(1, "a", EntryState.COPYING, done=4), {"partial/1": 3}, {}, False),
        (entry(1, "a", EntryState.COPYING, done=4), {}, {"files/Media/a": 10}, False),
        (entry(1, "a", EntryState.COPYING, done=4), {"partial/2": 10}, {}, False),
        (entry(1, "a", EntryState.COPYING, done=0), {"partial/1": 10}, {"files/Media/a": 10}, True),
    ],
)
def test_row_stays_only_with_its_file(
    row: CacheEntry, partial: dict[str, int], published: dict[str, int], kept: bool
) -> None:
    verdict = reconcile([row], Contents(published, partial), frozenset({MEDIA}))
    assert verdict.keep == ((row,) if kept else ())
    assert verdict.rows == (() if kept else (1,))
    own = {"partial/1"} if row.state is EntryState.COPYING else {"files/Media/a"}
    assert set(verdict.files) == {*partial, *published} - (own if kept else set())


def test_entries_of_sources_that_are_gone_go() -> None:
    row = entry(1, "a", EntryState.CACHED)
    verdict = reconcile([row], Contents({"files/Media/a": 10}, {}), frozenset({SourceName("Other")}))
    assert (verdict.keep, verdict.rows, verdict.files) == ((), (1,), ("files/Media/a",))


# --- a crash at every step of a publication --------------------------------------------------------------------


async def photograph(root: Path, step: Step, act: Callable[[Store], object]) -> Path:
    """The folder as a crash right after ``step`` would leave it."""
    picture = root.with_name(f"crashed at {step.name}")

    def take(done: Step) -> None:
        if done is step:
            shutil.copytree(root, picture)

    async with opened(root, hooks=Hooks(on_step=take)) as store:
        await act(store)  # type: ignore[misc]  # act is async
    return picture


async def publish_one(store: Store) -> None:
    await cached(store, "Show/a", DATA)


@pytest.mark.parametrize(
    ("step", "rows_found", "files_found", "files_left"),
    [
        (Step.LABELLED, [("Show/a", EntryState.COPYING)], {"partial/1"}, {"partial/1"}),
        (Step.FILE_SYNCED, [("Show/a", EntryState.COPYING)], {"partial/1"}, {"partial/1"}),
        (Step.RENAMED, [("Show/a", EntryState.COPYING)], {"files/Media/Show/a"}, set()),
        (Step.FOLDERS_SYNCED, [("Show/a", EntryState.COPYING)], {"files/Media/Show/a"}, set()),
        (Step.ROW_WRITTEN, [("Show/a", EntryState.CACHED)], {"files/Media/Show/a"}, {"files/Media/Show/a"}),
    ],
)
async def test_crash_during_publication(
    tmp_path: Path,
    step: Step,
    rows_found: list[tuple[str, EntryState]],
    files_found: set[str],
    files_left: set[str],
) -> None:
    picture = await photograph(tmp_path / "cache", step, publish_one)
    assert (rows_in(picture), files_in(picture)) == (rows_found, files_found)
    async with opened(picture) as store:
        assert files_in(picture) == files_left
        assert not [*(picture / "files/Media").rglob("*")] or files_left == {"files/Media/Show/a"}
        found = store.get(key("Show/a"))
        assert (found is not None) == bool(files_left)
        assert not store.is_fresh(key("Show/a"), 1e9)
        again = await cached(store, "Show/a", DATA) if found is None or found.state is EntryState.COPYING else found
        assert content(store, again) == DATA


async def test_steps_are_taken_in_the_promised_order(tmp_path: Path) -> None:
    steps: list[Step] = []
    async with opened(tmp_path / "cache", hooks=Hooks(on_step=steps.append)) as store:
        await publish_one(store)
    assert steps == [Step.LABELLED, Step.FILE_SYNCED, Step.RENAMED, Step.FOLDERS_SYNCED, Step.ROW_WRITTEN]


async def test_crash_between_a_drop_and_its_removal_leaves_no_file(tmp_path: Path) -> None:
    root, picture = tmp_path / "cache", tmp_path / "crashed"
    async with opened(root) as store:
        await cached(store, "a", DATA)
        await store.drop(Targets(keys=frozenset({key("a")})), DropCause.CHANGED)
        shutil.copytree(root, picture)
    assert (rows_in(picture), files_in(picture)) == ([], {"files/Media/a"})
    async with opened(picture) as store:
        assert store.get(key("a")) is None
        assert files_in(picture) == set()
        assert store.recovery.files_removed == 1


async def test_crash_while_copying_keeps_what_was_checkpointed(tmp_path: Path) -> None:
    root, picture = tmp_path / "cache", tmp_path / "crashed"
    async with opened(root) as store:
        begun_entry = await begun(store, source_file("a", 10))
        await write(store, begun_entry, DATA[:4])
        await store.checkpoint(begun_entry)
        await write(store, begun_entry, DATA[4:8], at=4)
        shutil.copytree(root, picture)
    async with opened(picture) as store:
        found = await begun(store, source_file("a", 10))
        assert (found.id, found.ranges) == (begun_entry.id, Ranges.of([(0, 4)]))
        await write(store, found, DATA[4:], at=4)
        published = await store.publish(found, source_file("a", 10))
        assert published is not None
        assert content(store, published) == DATA


async def test_copy_of_a_file_that_has_changed_since_is_begun_anew(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        old = await begun(store, source_file("a", 10))
        await write(store, old, DATA[:4])
        await store.checkpoint(old)
    async with opened(tmp_path / "cache") as store:
        new = await begun(store, source_file("a", 10, mtime_ns=2))
        assert new.id > old.id
        assert new.ranges == Ranges()


# --- the folder ----------------------------------------------------------------------------------------------------


async def test_rubbish_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    async with opened(root) as store:
        await cached(store, "Show/a", DATA)
    (root / "files/Media/Old/Deep").mkdir(parents=True)
    (root / "files/Media/Old/Deep/b").write_bytes(b"b")
    (root / "files/Media/Show/link").symlink_to("/etc/passwd")
    os.mkfifo(root / "partial/77")
    async with opened(root):
        assert files_in(root) == {"files/Media/Show/a"}
        assert not (root / "files/Media/Old").exists()


async def test_second_daemon_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache"):
        with pytest.raises(CacheBusy, match=f"process {os.getpid()}"):
            async with opened(tmp_path / "cache"):
                pytest.fail("two stores on one folder")
    async with opened(tmp_path / "cache") as store:
        assert store.recovery.kept == 0


async def test_folder_of_another_configuration_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    async with opened(root) as store:
        await cached(store, "a", DATA)
    with pytest.raises(CacheError, match=r"copies of Media at /mnt/media, not of Media at /mnt/else"):
        async with open_store(root, ROOMY, {MEDIA: "/mnt/else"}):
            pytest.fail("it was opened")
    with pytest.raises(CacheError, match="another configuration"):
        async with open_store(root, ROOMY, {SourceName("Films"): "/mnt/films"}):
            pytest.fail("it was opened")
    with pytest.raises(CacheError, match=r"not of Films at /mnt/media\. Either name /mnt/media Media again, or choose"):
        async with open_store(root, ROOMY, {SourceName("Films"): "/mnt/media"}):
            pytest.fail("it was opened")
    async with opened(root) as store:
        assert store.get(key("a")) is not None


async def test_source_may_come_and_go_beside_one_that_stays(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    films = SourceName("Films")
    async with open_store(root, ROOMY, {**SOURCES, films: "/mnt/films"}) as store:
        await cached(store, "a", DATA)
    async with open_store(root, ROOMY, SOURCES) as store:
        assert store.get(key("a")) is not None
    async with open_store(root, ROOMY, {**SOURCES, films: "/mnt/other"}) as store:
        assert store.get(key("a")) is not None


@pytest.mark.parametrize("name", ["files", "partial"])
async def test_folder_with_files_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("mine")
    with pytest.raises(CacheError, match="that cachefs did not make"):
        async with opened(tmp_path):
            pytest.fail("it was opened")
    assert (tmp_path / name / "precious").read_text() == "mine"


@pytest.mark.parametrize(("name", "said"), [("index.sqlite", "a 'files'"), ("lock", "a 'lock'")])
async def test_what_another_program_calls_as_we_do_makes_no_cache_of_its_folder(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "precious").write_text("mine")
    (tmp_path / name).write_text("another program's")
    with pytest.raises(CacheError, match=f"{said} that cachefs did not make"):
        async with opened(tmp_path):
            pytest.fail("it was opened")
    assert (tmp_path / "files" / "precious").read_text() == "mine"
    assert (tmp_path / name).read_text() == "another program's"


async def test_what_lies_beside_a_new_cache_is_named_once(
    tmp_path: Path, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("lost+found", ".Trash-1000", "holiday.jpg"):
        (tmp_path / name).mkdir()
    expected_warnings.append("holds 'holiday.jpg'")
    for _ in range(2):
        async with opened(tmp_path):
            pass
    assert caplog.text.count("holiday.jpg") == 1
    assert (tmp_path / "holiday.jpg").is_dir()


async def test_missing_parent_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is the SSD mounted"):
        async with opened(tmp_path / "no SSD here" / "cache"):
            pytest.fail("it was opened")
    assert not (tmp_path / "no SSD here").exists()


async def test_cache_is_private(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a", DATA)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache/files").stat().st_mode & 0o777 == 0o700


def test_ten_thousand_entries_are_recovered_within_two_seconds(tmp_path: Path) -> None:
    folder = Folder.take(str(tmp_path / "cache"))
    index = Index(folder.index)
    connection = index._connection
    connection.execute("BEGIN")
    (tmp_path / "one").write_bytes(DATA)
    for number in range(10_000):
        path = f"Show {number // 100}/{number}.mkv"
        if number % 100 == 0:
            os.makedirs(os.path.dirname(folder.published(key(path))))
        os.link(tmp_path / "one", folder.published(key(path)))  # cheaper to make than 10,000 files, same to find
        connection.execute(
            "INSERT INTO entries (id, source, path, size, mtime_ns, inode, links, state, ranges, reason, begun_at) "
            "VALUES (?, ?, ?, 10, '1', 1, 1, 'cached', x'', '', 0)",
            (number + 1, b"Media", path.encode()),
        )
    connection.execute("COMMIT")
    began = time.monotonic()
    verdict = reconcile(index.entries(), folder.contents(), frozenset({MEDIA}))
    took_s = time.monotonic() - began
    index.close()
    folder.close()
    assert len(verdict.keep) == 10_000
    assert not verdict.files
    assert took_s < 2


# --- what is not ours is never removed ------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's folder, which a link in the cache folder leads to."""
    folder = tmp_path / "victim"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"precious")
    (folder / "deep" / "b").write_bytes(b"precious")
    return folder


def _untouched(victim: Path) -> bool:
    return {path.name for path in victim.rglob("*")} == {"a", "deep", "b"}


@pytest.mark.parametrize("name", ["files", "partial"])
async def test_a_link_in_the_place_of_our_folder_is_refused(tmp_path: Path, victim: Path, name: str) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
    shutil.rmtree(tmp_path / "cache" / name)
    (tmp_path / "cache" / name).symlink_to(victim)
    with pytest.raises(CacheError, match="symbolic link"):
        async with opened(tmp_path / "cache"):
            pass
    assert _untouched(victim)


@pytest.mark.parametrize("name", ["lock", "index.sqlite", "index.sqlite-wal", "folders.sqlite", "keepsake.json"])
async def test_a_link_in_the_place_of_our_file_is_refused(tmp_path: Path, victim: Path, name: str) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
    (tmp_path / "cache" / name).unlink(missing_ok=True)
    (tmp_path / "cache" / name).symlink_to(victim / "a")
    with pytest.raises(CacheError, match="symbolic link"):
        async with opened(tmp_path / "cache"):
            pass
    assert (victim / "a").read_bytes() == b"precious"


@pytest.mark.parametrize("where", ["files/Media", "files/Media/Show", "partial/7"])
async def test_recovery_removes_a_link_and_not_what_it_leads_to(tmp_path: Path, victim: Path, where: str) -> None:
    async with opened(tmp_path / "cache"):
        pass
    link = tmp_path / "cache" / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    async with opened(tmp_path / "cache"):
        pass
    assert not link.is_symlink()
    assert _untouched(victim)


async def test_what_is_removed_later_is_not_looked_for_behind_a_link(tmp_path: Path, victim: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "deep/b")
        media = tmp_path / "cache" / "files" / "Media"
        shutil.rmtree(media)
        media.symlink_to(victim)
        await store.evict(key("deep/b"), force=True)
        await store.remove_doomed()
        assert _untouched(victim)
        await cached(store, "deep/b", b"anew")
        assert _untouched(victim)
        assert not media.is_symlink()
