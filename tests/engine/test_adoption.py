"""A lost index: what can say whose copy it is stays, what cannot goes, and nothing false is ever taken for a copy."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.cache import keepsake, label
from cachefs.cache.adoption import REASON
from cachefs.cache.copying import read_attributes
from cachefs.cache.folder import Folder
from cachefs.cache.index import Index
from cachefs.cache.store import Hooks, Refused, Step, open_store
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import DropCause, EntryState, Pin, SourceName, Targets
from tests.engine.cachekit import (
    MEDIA,
    ROOMY,
    SOURCES,
    begun,
    cached,
    content,
    key,
    listed,
    opened,
    source_file,
    write,
)

DATA = b"0123456789"
GONE = r"the index .*index\.sqlite is gone\. A new one is made from what is on the SSD"
DAMAGED = r"the index .*index\.sqlite .*; it is kept as .*index\.sqlite\.damaged\. A new one is made"
SAID = [GONE, DAMAGED]


def lose_index(root: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (root / f"index.sqlite{suffix}").unlink(missing_ok=True)


def spoil_index(root: Path) -> None:
    (root / "index.sqlite").write_bytes(b"not SQLite's" * 1000)


def published(root: Path, path: str) -> Path:
    return root / "files" / MEDIA / path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.expected_warnings(*SAID)
@pytest.mark.parametrize("befall", [lose_index, spoil_index])
async def test_losing_the_index_costs_no_copy_no_pin_and_no_device(
    root: Path, befall: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(root) as store:
        before = [await cached(store, path, DATA) for path in ("Show/a", "\udcff", "c")]
        await begun(store, source_file("unfinished"))
        await store.add_pin(Pin("TV/\udcff", created_at=1.0))
        await store.add_pin(Pin("Heat", "12", 2.0))
        await store.remove_pin("Heat")
        assert [await store.device_tag(name) for name in ("main", "nested")] == [0, 1]
    befall(root)
    async with opened(root) as store:
        for entry in before:
            after = store.get(entry.key)
            assert after is not None
            assert (after.source_file, after.state, after.begun_at) == (
                entry.source_file,
                EntryState.CACHED,
                entry.begun_at,
            )
            assert after.reason == REASON
            assert content(store, after) == DATA
        assert store.get(key("unfinished")) is None
        assert listed(root) == {f"files/Media/{path}" for path in ("Show/a", "\udcff", "c")}
        assert store.pins() == (Pin("TV/\udcff", created_at=1.0),)
        assert await store.device_tag("nested") == 1
        assert await store.device_tag("new") == 2
        new = await begun(store, source_file("new"))
        assert new.id > len(before)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "copies kept: 3" in warning
    assert "copies they are: 1. Lost is when the copies were read and wanted" in warning
    assert "pins" not in warning
    async with opened(root) as store:  # and from here on it is an index as any other
        assert store.recovery.kept == 4


@pytest.mark.expected_warnings(*SAID)
async def test_what_was_adopted_is_served_only_after_its_source_has_shown_the_very_file(root: Path) -> None:
    async with opened(root) as store:
        await cached(store, "same")
        await cached(store, "other")
    lose_index(root)
    async with opened(root) as store:
        assert not store.is_fresh(key("same"), 1e9)
        assert store.observe(source_file("same"))
        assert not store.observe(source_file("other", mtime_ns=2))
        assert store.get(key("other")) is None


@pytest.mark.expected_warnings(*SAID)
async def test_one_damaged_index_is_kept(root: Path) -> None:
    for text in (b"first" * 1000, b"second" * 1000):
        async with opened(root) as store:
            await cached(store, text.decode()[:5])
        (root / "index.sqlite").write_bytes(text)
    async with opened(root) as store:
        assert {entry.key.path for entry in store.inventory().entries} == {"first", "secon"}
    assert (root / "index.sqlite.damaged").read_bytes() == text
    assert [name for name in os.listdir(root) if name.startswith("index.sqlite.")] == ["index.sqlite.damaged"]


async def test_new_cache_is_not_worth_a_word(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(root):
        pass
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.expected_warnings(*SAID)
async def test_pins_that_are_lost_are_said_to_be(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(root) as store:
        await cached(store, "a")
        await store.add_pin(Pin("a"))
    lose_index(root)
    (root / keepsake.NAME).write_text("{")
    async with opened(root) as store:
        assert store.get(key("a")) is not None
        assert store.pins() == ()
    assert caplog.records[-1].getMessage().endswith("; pins must be set again")


@pytest.mark.expected_warnings(*SAID)
async def test_copies_published_before_there_were_labels_are_labelled_by_the_next_start(root: Path) -> None:
    async with opened(root) as store:
        await cached(store, "Show/\udcff.mkv", DATA)
    os.removexattr(published(root, "Show/\udcff.mkv"), label.NAME)
    index = Index(str(root / "index.sqlite"))
    index._connection.execute("UPDATE entries SET labelled = 0")
    index.close()
    async with opened(root):
        pass
    lose_index(root)
    async with opened(root) as store:
        assert store.get(key("Show/\udcff.mkv")) is not None


# --- what goes -------------------------------------------------------------------------------------------------------


def remove_label(path: Path) -> None:
    os.removexattr(path, label.NAME)


def write_to_it(path: Path) -> None:
    """As a person might, or a writer through the mount whose file the kernel read from the SSD."""
    with path.open("r+b") as file:
        file.write(b"X")


def cut_it(path: Path) -> None:
    before = path.stat()
    os.truncate(path, 5)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def give_it_another_name(path: Path) -> None:
    path.rename(path.with_name("b"))


def put_a_link_in_its_place(path: Path) -> None:
    path.rename(path.parents[3] / "moved")
    path.symlink_to(path.parents[3] / "moved")


def say(**changes: object) -> Callable[[Path], None]:
    def relabel(path: Path) -> None:
        facts = json.loads(os.getxattr(path, label.NAME)) | changes
        os.setxattr(path, label.NAME, json.dumps(facts).encode())

    return relabel


def write_nonsense(path: Path) -> None:
    os.setxattr(path, label.NAME, b"\xff[")


@pytest.mark.expected_warnings(*SAID)
@pytest.mark.parametrize(
    "befall",
    [
        write_to_it,
        cut_it,
        give_it_another_name,
        put_a_link_in_its_place,
        say(key="0" * 32),
        say(size=9),
        say(size="10"),
        say(mtime_ns=None),
        say(inode=[]),
        say(filesystem=7),
        say(begun_at="soon"),
    ],
)
async def test_file_that_cannot_prove_whose_copy_it_is_goes(root: Path, befall: Callable[[Path], None]) -> None:
    async with opened(root) as store:
        await cached(store, "a", DATA)
        await cached(store, "well", DATA)
    befall(published(root, "a"))
    lose_index(root)
    async with opened(root) as store:
        assert [entry.key.path for entry in store.inventory().entries] == ["well"]
    assert os.listdir(root / "files" / MEDIA) == ["well"]


UNLIKE = r"Media:a is not cached: files/Media/a in the cache folder may be an only copy, and has other bytes"
SILENT = r"files on the SSD that say nothing of themselves, and may be the only ones, are kept and not used: 1"


@pytest.mark.expected_warnings(*SAID, SILENT, UNLIKE)
@pytest.mark.parametrize("befall", [remove_label, write_nonsense, say(form=2)])
async def test_file_that_does_not_even_say_that_it_is_a_copy_stays_and_is_used_for_nothing(
    root: Path, befall: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(root) as store:
        await cached(store, "a", DATA)
        await cached(store, "well", DATA)
    befall(published(root, "a"))
    lose_index(root)
    for _ in range(3):
        async with opened(root) as store:
            assert [entry.key.path for entry in store.inventory().entries] == ["well"]
            assert await store.begin(source_file("a", 11), "because", 1.0) is Refused.KEPT_THERE
            assert await store.begin(source_file("a/b", 11), "because", 1.0) is Refused.KEPT_THERE
        assert published(root, "a").read_bytes() == DATA
    assert len([text for text in caplog.messages if "are kept and not used" in text]) == 1
    async with opened(root) as store:
        entry = await begun(store, source_file("a"))
        await write(store, entry, DATA[::-1])
        assert await store.publish(entry, entry.source_file) is None
        assert published(root, "a").read_bytes() == DATA, "the source's is another file"
        assert await store.begin(source_file("a", 10), "because", 1.0) is Refused.KEPT_THERE, "nor copied again"
    async with opened(root) as store:  # the source has it
        await cached(store, "a", DATA)
        await store.evict(key("a"))
        await store.remove_doomed()
        await cached(store, "a", DATA + b".")
    async with opened(root) as store:
        assert len(store.inventory().entries) == 2
        await store.evict(key("a"))
        await store.remove_doomed()
    assert listed(root) == {"files/Media/well"}


@pytest.mark.expected_warnings(*SAID)
async def test_copies_of_sources_that_are_gone_go(root: Path) -> None:
    films = SourceName("Films")
    async with open_store(root, ROOMY, {**SOURCES, films: "/mnt/films"}) as store:
        await cached(store, "a")
    lose_index(root)
    shutil.move(root / "files/Media", root / "files/Gone")
    async with open_store(root, ROOMY, {**SOURCES, films: "/mnt/films"}) as store:
        assert store.inventory().entries == ()
    assert listed(root) == set()


@pytest.mark.parametrize("befall", [lose_index, spoil_index])
@pytest.mark.expected_warnings(*SAID)
async def test_folder_of_another_configuration_is_refused_although_its_index_is_lost(
    root: Path, befall: Callable[[Path], None]
) -> None:
    async with opened(root) as store:
        await cached(store, "a")
    befall(root)
    with pytest.raises(CacheError, match=r"copies of Media at /mnt/media, not of Media at /mnt/else"):
        async with open_store(root, ROOMY, {MEDIA: "/mnt/else"}):
            pytest.fail("it was opened")
    async with opened(root) as store:
        assert store.get(key("a")) is not None


async def test_index_that_is_there_decides_alone(root: Path) -> None:
    """A label is no row: what was dropped stays dropped, although its file outlived a crash."""
    picture = root.with_name("crashed")
    async with opened(root) as store:
        await cached(store, "a")
        await store.drop(Targets(keys=frozenset({key("a")})), DropCause.CHANGED)
        shutil.copytree(root, picture)
    assert listed(picture) == {"files/Media/a"}
    async with opened(picture) as store:
        assert store.get(key("a")) is None
        assert listed(picture) == set()


# --- labels ----------------------------------------------------------------------------------------------------------


async def photograph(root: Path, step: Step) -> Path:
    """The folder as a crash right after ``step`` of a publication would leave it."""
    picture = root.with_name(f"crashed at {step.name}")

    def take(done: Step) -> None:
        if done is step:
            shutil.copytree(root, picture)

    async with opened(root, hooks=Hooks(on_step=take)) as store:
        await cached(store, "Show/a", DATA)
    return picture


@pytest.mark.expected_warnings(*SAID)
@pytest.mark.parametrize(
    ("step", "stays"),
    [
        (Step.LABELLED, False),
        (Step.FILE_SYNCED, False),
        (Step.RENAMED, True),
        (Step.FOLDERS_SYNCED, True),
        (Step.ROW_WRITTEN, True),
    ],
)
async def test_crash_during_publication_that_takes_the_index_along(root: Path, step: Step, stays: bool) -> None:
    picture = await photograph(root, step)
    lose_index(picture)
    async with opened(picture) as store:
        entry = store.get(key("Show/a"))
        assert (entry is not None) == stays
        assert listed(picture) == ({"files/Media/Show/a"} if stays else set())
        assert entry is None or content(store, entry) == DATA


def test_copy_of_a_file_that_not_even_its_owner_may_write_is_labelled_and_made_durable(ordinary_folder: Path) -> None:
    folder = Folder.take(str(ordinary_folder))
    folder.create_partial(1, 10)
    os.chmod(folder.partial(1), 0o444)
    assert folder.label(1, label.Label(source_file("a", 10), 1.0))
    folder.sync_data(1)
    folder.sync_file(1, 10)
    assert os.stat(folder.partial(1)).st_mode & 0o777 == 0o444
    folder.close()


async def test_only_whole_copies_are_labelled(root: Path) -> None:
    async with opened(root) as store:
        entry = await begun(store, source_file("a", 10))
        await write(store, entry, DATA)
        await store.checkpoint(entry)
        assert os.listxattr(store.file_of(entry)) == []
        assert await store.publish(entry, source_file("a", 10)) is not None
        assert os.listxattr(published(root, "a")) == [label.NAME]


def test_labels_of_the_source_are_not_copied(tmp_path: Path) -> None:
    """A source may be the cache folder of another cachefs, or a copy of one."""
    (tmp_path / "a").write_bytes(DATA)
    os.setxattr(tmp_path / "a", label.NAME, b"of another")
    os.setxattr(tmp_path / "a", "user.kept", b"yes")
    source = Descriptor(os.open(tmp_path / "a", os.O_RDONLY))
    assert read_attributes(source).xattrs == (("user.kept", b"yes"),)
    source.close()


@pytest.mark.expected_warnings(*SAID, SILENT)
@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSPC])
async def test_ssd_that_takes_no_label_caches_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as without:
        without.setattr(os, "setxattr", refuse)
        async with opened(root) as store:
            await cached(store, "a")
        async with opened(root) as store:
            assert store.get(key("a")) is not None
    lose_index(root)
    async with opened(root) as store:
        assert store.inventory().entries == ()
        assert listed(root) == {"files/Media/a"}  # for all that is known it may have been moved there


@pytest.mark.expected_warnings(*SAID)
async def test_crash_while_the_keepsake_is_written_leaves_the_old_one(root: Path) -> None:
    async with opened(root) as store:
        await cached(store, "a")
        await store.add_pin(Pin("a", created_at=1.0))
    (root / f"{keepsake.NAME}.new").write_text('{"form": 1, "sch')
    lose_index(root)
    async with opened(root) as store:
        assert store.pins() == (Pin("a", created_at=1.0),)


async def test_pin_is_taken_although_its_second_record_fails(root: Path) -> None:
    async with opened(root) as store:
        (root / f"{keepsake.NAME}.new").mkdir()
        await store.add_pin(Pin("a", created_at=1.0))
        assert store.pins() == (Pin("a", created_at=1.0),)
        (root / f"{keepsake.NAME}.new").rmdir()
        await store.add_pin(Pin("b", created_at=2.0))
    kept = keepsake.read(str(root))
    assert kept is not None
    assert kept.pins == (Pin("a", created_at=1.0), Pin("b", created_at=2.0))
