"""The store on a real folder: what it serves, what it may take, and who wins which race."""

from __future__ import annotations

from pathlib import Path

from tests.engine.cachekit import cached, content, key, opened


async def test_published_copy_is_served_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await cached(store, "Show/a.mkv", b"hello")
        assert content(store, entry) == b"hello"
        assert store.file_of(entry) == str(tmp_path / "cache/files/Media/Show/a.mkv")
    async with opened(tmp_path / "cache") as store:
        again = store.get(key("Show/a.mkv"))
        assert again == entry
        assert store.recovery.kept == 1
