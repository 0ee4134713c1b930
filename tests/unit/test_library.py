"""The sample library: its content can be known without reading it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin.library import BLOCK_BYTES, LibrarySizes, SampleFile, SampleLibrary, build_library

SIZE = 3 * BLOCK_BYTES + 100


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, SIZE),
        (0, 1),
        (BLOCK_BYTES - 1, BLOCK_BYTES + 1),
        (BLOCK_BYTES, 2 * BLOCK_BYTES),
        (SIZE - 1, SIZE + 50),
        (SIZE, SIZE + 1),
        (5, 5),
    ],
)
def test_any_range_is_that_range_of_the_whole(start: int, end: int) -> None:
    file = SampleFile("TV/a.mkv", SIZE)
    assert file.content(start, end) == file.content()[start:end]


def test_content_differs_between_files_and_blocks() -> None:
    one, other = SampleFile("a", SIZE), SampleFile("b", SIZE)
    assert len(one.content()) == SIZE
    assert one.content() != other.content()
    assert one.content(0, BLOCK_BYTES) != one.content(BLOCK_BYTES, 2 * BLOCK_BYTES)


def test_folder_holds_what_the_library_says(library: SampleLibrary) -> None:
    written = {str(path.relative_to(library.root)) for path in library.root.rglob("*") if path.is_file()}
    assert written == set(library.files)
    for path, file in library.files.items():
        assert (library.root / path).read_bytes() == file.content()


def test_sizes_are_the_caller_s(tmp_path: Path) -> None:
    library = build_library(tmp_path, LibrarySizes(episode_bytes=10_000, film_bytes=20_000))
    assert all(10_000 <= episode.video.size < 13_000 for show in library.shows for episode in show.episodes)
    assert all(20_000 <= film.video.size < 23_000 for film in library.films)


def test_wrong_bytes_are_recognised(library: SampleLibrary) -> None:
    file = library.show("Slow Tides").episodes[0].video
    assert library.is_right(file.path, 1000, file.content(1000, 3000))
    assert not library.is_right(file.path, 1001, file.content(1000, 3000))


def test_a_series_goes_on_in_its_next_season(library: SampleLibrary) -> None:
    names = [episode.name for episode in library.show("Slow Tides").episodes]
    assert names[2:4] == ["Slow Tides S01E03", "Slow Tides S02E01"]
