"""The index on a real file: every value comes back as it went in, and nothing is half done."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.cache import keepsake
from cachefs.cache.index import Index
from cachefs.cache.schema import MIGRATIONS, SCHEMA_VERSION
from cachefs.errors import CacheError, IndexDamaged
from cachefs.model import Asked, CacheEntry, EntryState, FileKey, Fingerprint, Pin, SourceFile, SourceName
from cachefs.ranges import Ranges


def entry(number: int, path: str = "a", **changes: object) -> CacheEntry:
    file = SourceFile(FileKey(SourceName("Media"), path), Fingerprint(100, 5, 7, "uuid"), 7)
    made = CacheEntry(number, file, EntryState.COPYING, Ranges.of([(0, 10), (20, 30)]), "because", 1.5)
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


def reopened(index: Index, path: str) -> Index:
    index.close()
    return Index(path)


@pytest.mark.parametrize(
    "changed",
    [
        entry(1),
        entry(1, ranges=Ranges()),
        entry(1, "x" * 255),
        entry(1, "S\udcff1/\udc80.mkv"),
        entry(1, "Señor 🎬\n'\"%.mkv", reason="after \udcff, naturally"),
        entry(1, state=EntryState.CACHED, ranges=Ranges.of([(0, 100)]), published_at=2.5),
        entry(1, last_read_at=3.0, last_wanted_at=4.0, watched_at=5.0),
        entry(1, source_file=SourceFile(FileKey(SourceName("M"), "a"), Fingerprint(0, -1), (1 << 64) - 1, 3)),
        entry(
            1,
            source_file=SourceFile(
                FileKey(SourceName("M"), "a"), Fingerprint(1, 1 << 70, (1 << 63) + 1, None), 1 << 63
            ),
        ),
    ],
    ids=lambda changed: ascii(changed.key.path)[:20],
)
def test_entry_comes_back_as_it_went_in(path: str, changed: CacheEntry) -> None:
    index = Index(path)
    index.insert(changed)
    expected = replace(changed, reason=changed.reason.encode("utf-8", "backslashreplace").decode())
    assert reopened(index, path).entries() == (expected,)


def test_insert_takes_the_name_of_a_dead_row_in_the_same_transaction(path: str) -> None:
    index = Index(path)
    index.insert(entry(1))
    with pytest.raises(CacheError, match="UNIQUE"):
        index.insert(entry(2))
    assert [kept.id for kept in index.entries()] == [1]
    index.insert(entry(2), gone=[1])
    assert [kept.id for kept in index.entries()] == [2]


def test_failed_insert_leaves_the_dead_row_too(path: str) -> None:
    index = Index(path)
    index.insert(entry(1, "a"))
    index.insert(entry(2, "b"))
    with pytest.raises(CacheError):
        index.insert(entry(3, "b"), gone=[1])
    assert [kept.id for kept in index.entries()] == [1, 2]


def test_id_is_never_used_twice(path: str) -> None:
    index = Index(path)
    assert index.next_id() == 1
    index.insert(entry(41))
    index.delete([41])
    assert reopened(index, path).next_id() == 42


def test_ranges_of_a_cached_entry_are_never_narrowed(path: str) -> None:
    index = Index(path)
    index.insert(entry(1))
    index.save_ranges(1, Ranges.of([(0, 50)]))
    assert index.entries()[0].ranges == Ranges.of([(0, 50)])
    index.publish(1, 9.0)
    index.save_ranges(1, Ranges.of([(0, 60)]))
    assert index.entries()[0].state is EntryState.CACHED
    assert index.entries()[0].ranges == Ranges.of([(0, 100)])


def test_publishing_a_row_that_has_gone_does_nothing(path: str) -> None:
    index = Index(path)
    index.publish(1, 9.0)
    assert index.entries() == ()


def test_details_are_saved(path: str) -> None:
    index = Index(path)
    index.insert(entry(1))
    file = replace(entry(1).source_file, inode=1 << 63, links=2)
    changed = entry(1, reason="other", last_read_at=1.0, last_wanted_at=2.0, watched_at=3.0, source_file=file)
    index.save_details([changed, entry(2, "gone")])
    assert reopened(index, path).entries() == (changed,)


def test_pins_are_kept_by_target_and_rating_key(path: str) -> None:
    index = Index(path)
    stood_for = (FileKey(SourceName("Media"), "Films/Heat \udcff.mkv"),)
    pins = [Pin("TV/\udcff", "", 1.0), Pin("Heat", "12", 2.0, stood_for), Pin("Heat", "13", 3.0)]
    for pin in pins:
        index.add_pin(pin)
    index.add_pin(Pin("Heat", "13", 3.0))
    index = reopened(index, path)
    assert index.pins() == tuple(pins)
    index.remove_pin("Heat")
    assert index.pins() == (pins[0],)


def test_devices_are_numbered_in_the_order_of_their_first_sight(path: str) -> None:
    index = Index(path)
    assert [index.device_tag(name) for name in ("main", "nested", "main", "third")] == [0, 1, 0, 2]
    assert reopened(index, path).device_tag("third") == 2


def test_what_people_said_of_files_is_kept_here_and_a_second_time(path: str, tmp_path: Path) -> None:
    said = (
        Asked(FileKey(SourceName("Media"), "Show/\udcff.mkv"), 1.5),
        Asked(FileKey(SourceName("B"), "b"), 2.5, True),
    )
    index = Index(path)
    assert index.asked() == ()
    index.set_asked((Asked(FileKey(SourceName("B"), "gone"), 0.5),))
    index.set_asked(said)
    index = reopened(index, path)
    assert index.asked() == said
    keepsake.save(str(tmp_path), index.keepsake())
    kept = keepsake.read(str(tmp_path))
    assert kept is not None
    assert kept.asked == said
    index.close()
    new = Index(str(tmp_path / "new"))
    new.rebuild("Media", (), kept)
    assert new.asked() == said


@pytest.mark.parametrize(
    "said", ['{"a": 1}', '[["Media", "../../precious", 1.0, false]]', '[["a"]]', "[", "[[1, 2, 3, 4]]"]
)
def test_what_nobody_can_have_said_is_damage(path: str, said: str) -> None:
    Index(path).close()
    change(path, f"INSERT INTO meta VALUES ('asked', CAST('{said}' AS BLOB))")
    with pytest.raises(IndexDamaged, match="makes no sense"):
        Index(path).asked()


def test_identity_is_remembered(path: str) -> None:
    index = Index(path)
    assert index.identity() is None
    index.set_identity("Media at /mnt/\udcff")
    assert reopened(index, path).identity() == "Media at /mnt/\udcff"


# --- versions --------------------------------------------------------------------------------------------------------


def change(path: str, *statements: str) -> None:
    """Do something to a closed index that cachefs would never do."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_newer_version_is_refused_and_left_alone(path: str) -> None:
    Index(path).close()
    change(path, "UPDATE meta SET value = CAST('99' AS BLOB) WHERE name = 'schema'")
    before = Path(path).read_bytes()
    with pytest.raises(
        CacheError, match=r"was made by a newer cachefs \(version 99; this one knows up to 4\)"
    ) as caught:
        Index(path)
    assert not isinstance(caught.value, IndexDamaged)
    assert Path(path).read_bytes() == before


def test_every_version_leads_to_the_next() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_index_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(path: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "index_v1.sql").read_text())
    connection.close()
    index = reopened(Index(path), path)
    media = SourceName("Media")
    assert index.entries() == (
        CacheEntry(
            3,
            SourceFile(FileKey(media, "Show/\udcff.mkv"), Fingerprint(10, 5, 7, "uuid"), (1 << 63) + 7, 2),
            EntryState.CACHED,
            Ranges.of([(0, 10)]),
            "on deck for Ann",
            1.5,
            2.5,
            3.5,
            4.5,
            5.5,
        ),
        CacheEntry(
            4,
            SourceFile(FileKey(media, "b"), Fingerprint(100, 1 << 70), 8),
            EntryState.COPYING,
            Ranges.of([(0, 10), (20, 30)]),
            "pinned",
            1.5,
        ),
    )
    assert index.next_id() == 10
    assert index.pins() == (Pin("TV/Show", "", 6.5), Pin("Heat", "12", 7.5))
    assert index.identity() == '{"Media": "/mnt/media"}'
    assert [index.device_tag(name) for name in ("ext4:aa", "fuse:bb", "new")] == [0, 1, 2]
    assert index.unlabelled() == {3}


def test_index_that_was_brought_up_to_date_has_the_tables_of_a_new_one(path: str, tmp_path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "index_v1.sql").read_text())
    connection.close()
    Index(path).close()
    Index(str(tmp_path / "new")).close()

    def tables(index: str) -> dict[str, list[object]]:
        connection = sqlite3.connect(index)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        connection.close()
        return found

    assert tables(path) == tables(str(tmp_path / "new"))


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: str, text: bytes, nth: int) -> None:
    """Change one letter of the n-th place where the file has this text."""
    data = bytearray(Path(path).read_bytes())
    places = [at for at in range(len(data)) if data.startswith(text, at)]
    data[places[nth]] ^= 1
    Path(path).write_bytes(data)


def places_of(path: str, text: bytes) -> int:
    return Path(path).read_bytes().count(text)


def test_damage_that_a_quick_look_misses_is_found_after_an_end_that_was_not_in_peace(path: str) -> None:
    """The name of a row is in the table and in the index over it: one of them is wrong."""
    index = Index(path)
    index.insert(entry(1, "quite-unique"))
    index.close()
    flip(path, b"quite-unique", 0)
    assert places_of(path, b"quite-unique") == 1
    Index(path).close()  # nobody had a reason to look closely
    change(path, "INSERT INTO meta VALUES ('open', x'')")
    with pytest.raises(IndexDamaged, match="is damaged"):
        Index(path)


def test_end_in_peace_is_remembered_and_any_other_is_not(path: str) -> None:
    def is_open() -> bool:
        connection = sqlite3.connect(path)
        found = connection.execute("SELECT 1 FROM meta WHERE name = 'open'").fetchone()
        connection.close()
        return found is not None

    index = Index(path)
    assert is_open()
    index.close()
    assert not is_open()


def test_index_that_was_found_damaged_does_not_end_in_peace(path: str) -> None:
    index = Index(path)
    index.insert(entry(1, "quite-unique"))
    index.close()
    flip(path, b"quite-unique", 0)
    index = Index(path)
    assert index.problem()
    index.close()
    with pytest.raises(IndexDamaged):
        Index(path)


@pytest.mark.parametrize(
    "nonsense",
    [
        "UPDATE entries SET mtime_ns = 'yesterday'",
        "UPDATE entries SET ranges = x'00'",
        "UPDATE entries SET size = 'big'",
        "UPDATE entries SET size = -1",
        "UPDATE entries SET path = CAST('../../precious' AS BLOB)",
        "UPDATE entries SET source = NULL",
    ],
)
def test_row_that_nobody_can_have_written_is_damage(path: str, nonsense: str) -> None:
    index = Index(path)
    index.insert(entry(1))
    index.close()
    change(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'entries'",
        "PRAGMA writable_schema = RESET",
        nonsense,
    )
    with pytest.raises(IndexDamaged, match="makes no sense"):
        Index(path).entries()


@pytest.mark.parametrize("said", ["NULL", "x''", "CAST('two' AS BLOB)", "CAST('0' AS BLOB)"])
def test_version_that_never_was_is_damage(path: str, said: str) -> None:
    Index(path).close()
    change(path, "DROP TABLE meta", "CREATE TABLE meta (name, value)", f"INSERT INTO meta VALUES ('schema', {said})")
    with pytest.raises(IndexDamaged, match="about its version"):
        Index(path)


def test_what_is_no_index_is_damaged(path: str) -> None:
    Path(path).write_bytes(b"nothing that SQLite wrote " * 100)
    with pytest.raises(IndexDamaged):
        Index(path)


def test_every_transaction_is_on_the_disk_when_it_returns(path: str) -> None:
    index = Index(path)
    settings = [index._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]
