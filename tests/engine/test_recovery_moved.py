"""What a start makes of moved files whose index, labels or modes are not what they were: nothing of them is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.cache import keepsake, label, moved_bytes
from cachefs.cache.index import Index
from cachefs.cache.store import Store, open_store
from cachefs.errors import CacheError, IndexFull
from cachefs.model import CacheEntry, DropCause, EntryState, Fingerprint, Home, Phase, SourceName
from tests.engine.cachekit import MEDIA, ROOMY, cached, content, key, names, opened, source_file

DATA = b"0123456789"
FOUND = "was moved to the SSD, and the index does not know it: it is found again"
LOST = "the index .* is gone"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def on_ssd(root: Path, path: str) -> Path:
    return root / "files" / MEDIA / path


async def moved(store: Store, path: str, data: bytes = DATA, *, inode: int | None = None) -> CacheEntry:
    entry = await cached(store, path, data, inode=inode)
    home = Home(Fingerprint(len(data), 1, 5, "uuid"), Phase.LEAVING, digest="d")
    leaving = await store.moves.leave(entry, home)
    assert leaving is not None
    away = await store.moves.set_home(leaving, Home(home.fingerprint, Phase.AWAY, digest="d"))
    assert away is not None
    return away


async def home_again(store: Store, entry: CacheEntry) -> None:
    assert await store.moves.returned(entry, source_file(entry.key.path, entry.size)) is not None


async def test_an_older_index_gives_no_two_moved_files_one_inode(root: Path, expected_warnings: list[str]) -> None:
    """A name had another moved file then, which has another name by now."""
    expected_warnings.append(FOUND)
    async with opened(root) as store:
        old = await moved(store, "a", b"the older one")
    older = index_of(root)
    async with opened(root) as store:
        assert await store.moves.rename(old.key, key("b"))
        await moved(store, "a", b"the newer", inode=4242)
        right = {entry.key: (entry.source_file.inode, entry.size) for entry in store.moves.all()}
    put_back(root, older)
    for _ in range(2):  # and what the files say has not been spoilt
        async with opened(root) as store:
            assert {entry.key: (entry.source_file.inode, entry.size) for entry in store.moves.all()} == right
            assert len({entry.id for entry in store.moves.all()}) == 2
        put_back(root, older)


async def test_an_older_index_swaps_no_two_moved_files(root: Path) -> None:
    async with opened(root) as store:
        a, b = await moved(store, "a", b"one"), await moved(store, "b", b"another")
    older = index_of(root)
    async with opened(root) as store:
        for old, new in ((a.key, "c"), (b.key, "a"), (key("c"), "b")):
            assert await store.moves.rename(old, key(new))
        right = {entry.key: (entry.source_file.inode, entry.size) for entry in store.moves.all()}
    put_back(root, older)
    async with opened(root) as store:
        assert {entry.key: (entry.source_file.inode, entry.size) for entry in store.moves.all()} == right


async def test_a_copy_of_a_moved_file_that_was_put_back_is_no_second_one(
    root: Path, expected_warnings: list[str]
) -> None:
    expected_warnings += [FOUND, "says that it is the very file that is Media:b"]
    async with opened(root) as store:
        old = await moved(store, "a", inode=4242)
        assert await store.moves.rename(old.key, key("b"))
    shutil.copy2(on_ssd(root, "b"), on_ssd(root, "a"))  # with its attributes, as cp -a does
    for _ in range(2):
        async with opened(root) as store:
            assert [entry.key for entry in store.moves.all()] == [key("b")]
            assert on_ssd(root, "a").read_bytes() == DATA
            assert store.moves.is_kept_from(key("a"))


@pytest.mark.parametrize("lost", ["b", "both"])
async def test_what_says_nothing_of_itself_stays_where_a_moved_file_is_missing(
    root: Path, expected_warnings: list[str], lost: str
) -> None:
    """Killed between the renaming of a moved file and its row; then the folder was copied without attributes."""
    expected_warnings += ["was moved to the SSD, and is not there", "say nothing of themselves"]
    async with opened(root) as store:
        await moved(store, "a")
        await cached(store, "copy", DATA)
    on_ssd(root, "a").rename(on_ssd(root, "b"))
    for path in (on_ssd(root, "b"), on_ssd(root, "copy")) if lost == "both" else (on_ssd(root, "b"),):
        os.removexattr(path, label.NAME)
    async with opened(root) as store:
        assert on_ssd(root, "b").read_bytes() == DATA
        assert store.moves.is_kept_from(key("b"))
        assert store.get(key("copy")) is not None


def index_of(root: Path) -> bytes:
    return (root / "index.sqlite").read_bytes()


def put_back(root: Path, index: bytes) -> None:
    for suffix in ("", "-wal", "-shm"):
        (root / f"index.sqlite{suffix}").unlink(missing_ok=True)
    (root / "index.sqlite").write_bytes(index)


def lose_index(root: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (root / f"index.sqlite{suffix}").unlink(missing_ok=True)


def state(store: Store, path: str) -> EntryState | None:
    entry = store.get(key(path))
    return None if entry is None else entry.state


# --- an older index --------------------------------------------------------------------------------------------------


@pytest.mark.expected_warnings(FOUND)
async def test_an_older_index_does_not_make_copies_of_moved_files(root: Path) -> None:
    async with opened(root) as store:
        await cached(store, "a")
        await cached(store, "b")
    older = index_of(root)
    async with opened(root) as store:
        for path in ("a", "b"):
            await store.evict(key(path))
        await store.remove_doomed()
        await moved(store, "a")
        await moved(store, "new")
    put_back(root, older)
    async with opened(root) as store:
        assert [state(store, path) for path in ("a", "b", "new")] == [EntryState.MOVED, None, EntryState.MOVED]
        store.gone(key("a"))
        await store.remove_doomed()
    async with opened(root) as store:
        assert [content(store, entry) for entry in store.moves.all()] == [DATA, DATA]


async def test_an_older_index_does_not_keep_what_has_come_home(root: Path) -> None:
    async with opened(root) as store:
        await moved(store, "a")
    older = index_of(root)
    async with opened(root) as store:
        (entry,) = store.moves.all()
        await home_again(store, entry)
    put_back(root, older)
    async with opened(root) as store:
        assert state(store, "a") is EntryState.CACHED
        assert not store.observe(source_file("a", 99))


@pytest.mark.expected_warnings(FOUND)
async def test_the_end_of_an_index_that_is_missing_is_read_off_the_files(root: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    async with opened(root) as store:
        await cached(store, "a")
        entry = store.get(key("a"))
        assert entry is not None
        before = index_of(root), (root / "index.sqlite-wal").read_bytes()
        home = Home(entry.fingerprint, Phase.LEAVING)
        assert await store.moves.leave(entry, home) is not None
        shutil.copytree(root, picture)
    put_back(picture, before[0])
    (picture / "index.sqlite-wal").write_bytes(before[1])
    async with opened(picture) as store:
        assert state(store, "a") is EntryState.MOVED


@pytest.mark.expected_warnings(FOUND)
async def test_what_says_that_it_was_moved_is_not_removed_whatever_memory_says(root: Path) -> None:
    async with opened(root) as store:
        await moved(store, "other")
        await cached(store, "a")
        said = os.getxattr(on_ssd(root, "other"), label.NAME)
        os.setxattr(on_ssd(root, "a"), label.NAME, said)
        await store.drop(names("a"), DropCause.GONE)
        await store.remove_doomed()
        assert state(store, "a") is EntryState.MOVED
        await store.moves.delete(key("other"))
    async with opened(root) as store:
        assert [content(store, entry) for entry in store.moves.all()] == [DATA]
        await store.moves.delete(key("a"))  # a person does it
        await store.remove_doomed()
        assert not on_ssd(root, "a").exists()


@pytest.mark.expected_warnings(FOUND)
async def test_no_copy_is_published_over_what_says_that_it_was_moved(root: Path) -> None:
    async with opened(root) as store:
        await moved(store, "other")
        await cached(store, "a")
        said = os.getxattr(on_ssd(root, "other"), label.NAME)
        os.setxattr(on_ssd(root, "a"), label.NAME, said)
        await store.drop(names("a"), DropCause.CHANGED)
        with pytest.raises(AssertionError):
            await cached(store, "a", b"anew", mtime_ns=2)
        assert on_ssd(root, "a").read_bytes() == DATA
        await store.remove_doomed()
        assert state(store, "a") is EntryState.MOVED


# --- labels that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.expected_warnings(LOST)
@pytest.mark.parametrize("mode", [0o000, 0o200])
async def test_a_moved_file_that_not_even_its_owner_may_read_is_found_again(ordinary_folder: Path, mode: int) -> None:
    async with opened(ordinary_folder) as store:
        await moved(store, "a")
    on_ssd(ordinary_folder, "a").chmod(mode)
    lose_index(ordinary_folder)
    async with opened(ordinary_folder) as store:
        assert state(store, "a") is EntryState.MOVED
    assert stat.S_IMODE(on_ssd(ordinary_folder, "a").stat().st_mode) == mode


@pytest.mark.expected_warnings(LOST, FOUND, "cannot be looked at .*: it may be an only copy, and is kept")
async def test_a_file_whose_label_the_ssd_cannot_read_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(root) as store:
        await moved(store, "a")
    lose_index(root)

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "getxattr", fail)
        async with opened(root) as store:
            assert state(store, "a") is None
    assert on_ssd(root, "a").read_bytes() == DATA
    async with opened(root) as store:
        assert state(store, "a") is EntryState.MOVED


@pytest.mark.parametrize("mode", [0o000, 0o200])
async def test_a_moved_file_that_not_even_its_owner_may_read_can_come_home(ordinary_folder: Path, mode: int) -> None:
    async with opened(ordinary_folder) as store:
        entry = await moved(store, "a")
        on_ssd(ordinary_folder, "a").chmod(mode)
        copy = moved_bytes.open_file(store.file_of(entry), os.O_RDONLY)
        assert moved_bytes.read_and_count(copy, 0, len(DATA), hashlib.sha256()).pieces[0].data == DATA
        copy.close()
        await home_again(store, entry)
        assert state(store, "a") is EntryState.CACHED
    assert stat.S_IMODE(on_ssd(ordinary_folder, "a").stat().st_mode) == mode


# --- labels that are lost --------------------------------------------------------------------------------------------


@pytest.mark.expected_warnings(LOST)
async def test_a_start_lets_moved_files_say_again_that_they_are_the_only_ones(root: Path) -> None:
    async with opened(root) as store:
        before = await moved(store, "a")
    os.removexattr(on_ssd(root, "a"), label.NAME)
    async with opened(root):
        pass
    lose_index(root)
    async with opened(root) as store:
        (entry,) = store.moves.all()
        assert entry.home is not None
        assert before.home is not None
        assert entry.home.digest == before.home.digest


# --- an index that has no room ---------------------------------------------------------------------------------------


@contextmanager
def full() -> Iterator[None]:
    """The index takes no change."""

    @contextmanager
    def refuse(index: Index) -> Iterator[None]:
        raise IndexFull("database or disk is full")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "_transaction", refuse)
        yield


@pytest.mark.expected_warnings("the SSD is full")
async def test_a_name_that_the_index_could_not_take_is_served_and_written_when_there_is_room(
    root: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture"
    async with opened(root) as store:
        await moved(store, "a")
        with full():
            assert await store.moves.rename(key("a"), key("b"))
            shutil.copytree(root, picture)
    with full():
        async with opened(picture) as store:
            (entry,) = store.moves.all()
            assert (entry.key, content(store, entry)) == (key("b"), DATA)
    async with opened(picture) as store:
        assert state(store, "b") is EntryState.MOVED
    index = Index(str(picture / "index.sqlite"))
    assert [row.key for row in index.entries()] == [key("b")]
    index.close()


@pytest.mark.expected_warnings("the cache folder .* fails")
@pytest.mark.parametrize("killed", [False, True])
async def test_a_file_comes_home_although_the_index_has_no_room(root: Path, tmp_path: Path, killed: bool) -> None:
    picture = tmp_path / "picture"
    async with opened(root) as store:
        entry = await moved(store, "a")
        with full():
            returning = await store.moves.set_home(entry, Home(entry.fingerprint, Phase.RETURNING))
            assert returning is not None
            await home_again(store, returning)
            assert state(store, "a") is EntryState.CACHED
            shutil.copytree(root, picture)
            await store._shelf.close()
    async with opened(picture if killed else root) as store:
        assert state(store, "a") is EntryState.CACHED
        await store.evict(key("a"))
        await store.remove_doomed()
        assert not on_ssd(picture if killed else root, "a").exists()


# --- a start that is refused -----------------------------------------------------------------------------------------


@pytest.mark.expected_warnings(LOST)
async def test_a_refused_start_leaves_the_cache_folder_to_its_own_sources(root: Path) -> None:
    async with opened(root) as store:
        await moved(store, "a")
    lose_index(root)
    (root / keepsake.NAME).unlink()
    for _ in range(2):
        with pytest.raises(CacheError, match="there is no source Media in the configuration"):
            async with open_store(root, ROOMY, {SourceName("Misspelled"): "/mnt/media"}):
                pytest.fail("it was opened")
    async with opened(root) as store:
        assert state(store, "a") is EntryState.MOVED


# --- moved files that somebody has taken away ------------------------------------------------------------------------


@pytest.mark.expected_warnings("it was removed behind cachefs")
async def test_a_moved_file_that_was_brought_home_by_hand_is_copied_again(root: Path) -> None:
    async with opened(root) as store:
        await moved(store, "a")
        await moved(store, "b")
    on_ssd(root, "a").unlink()
    on_ssd(root, "b").unlink()
    async with opened(root) as store:
        assert state(store, "a") is None
        await cached(store, "a")
        c = await moved(store, "c")
        assert await store.moves.rename(c.key, key("b"))
    async with opened(root) as store:
        assert [state(store, path) for path in ("a", "b")] == [EntryState.CACHED, EntryState.MOVED]
        assert store.recovery.kept == 2
