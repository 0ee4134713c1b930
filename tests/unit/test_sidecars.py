"""The rules of cachefs.sidecars, as tables."""

from __future__ import annotations

import pytest

from cachefs.sidecars import is_video, sidecars_of, subtitle_folders, subtitles_in, videos_of

SAME_STEM = [
    f"Film (1995).{extension}"
    for extension in ("srt", "ass", "ssa", "sub", "idx", "vtt", "sup", "smi", "mks", "ttml", "nfo", "jpg", "png")
]


@pytest.mark.parametrize(
    "name",
    [
        *SAME_STEM,
        "Film (1995).en.srt",
        "Film (1995).en.forced.srt",
        "Film (1995).en.sdh.SRT",
        "Film (1995).pt-BR.ass",
        "Film (1995).JPG",
        "Film (1995).webp",
        "Film (1995).tbn",
        "Film (1995)-thumb.jpg",
        "Film (1995)-poster.jpg",
        "Film (1995)-Fanart2.png",
        "Film (1995)-landscape.jpg",
        "Film (1995)-clearlogo.png",
        "Film (1995).mka",
        "Film (1995).de.ac3",
    ],
)
def test_name_with_the_stem_goes_with_the_video(name: str) -> None:
    assert sidecars_of("Film (1995).mkv", ["Film (1995).mkv", name]) == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "Film (1995).mkv",
        "Film (1995).mp4",
        "Film (1995)srt",
        "Film (1995) 2.srt",
        "Film (1995)-trailer.jpg",
        "Film (1995)-trailer.srt",
        "Film (1995).part.jpg",
        "Film (1995).txt.bak",
        "film (1995).srt",
        "poster.jpg",
        ".srt",
        "Film (1995)",
        "",
    ],
)
def test_other_names_do_not_go_with_the_video(name: str) -> None:
    assert sidecars_of("Film (1995).mkv", ["Film (1995).mkv", name]) == ()


def test_longer_number_is_another_video() -> None:
    names = ["Show S01E01.mkv", "Show S01E010.mkv", "Show S01E01.srt", "Show S01E010.srt", "Show S01E010-thumb.jpg"]
    assert sidecars_of("Show S01E01.mkv", names) == ("Show S01E01.srt",)
    assert sidecars_of("Show S01E010.mkv", names) == ("Show S01E010.srt", "Show S01E010-thumb.jpg")


def test_longest_stem_owns_the_sidecar() -> None:
    names = ["Film.mkv", "Film.Extended.mkv", "Film.Extended.srt", "Film.Extended.en.srt", "Film.en.srt"]
    assert sidecars_of("Film.mkv", names) == ("Film.en.srt",)
    assert sidecars_of("Film.Extended.mkv", names) == ("Film.Extended.srt", "Film.Extended.en.srt")


def test_tagged_subtitle_is_the_shorter_videos_when_no_longer_one_exists() -> None:
    assert sidecars_of("Film.mkv", ["Film.mkv", "Film.Extended.srt"]) == ("Film.Extended.srt",)


def test_trailer_keeps_its_own_sidecars() -> None:
    names = ["Film.mkv", "Film-poster.mkv", "Film-poster.jpg"]
    assert sidecars_of("Film.mkv", names) == ()
    assert sidecars_of("Film-poster.mkv", names) == ("Film-poster.jpg",)


def test_versions_of_one_stem_share_their_sidecars() -> None:
    names = ["Film.mkv", "Film.mp4", "Film.srt"]
    assert sidecars_of("Film.mkv", names) == sidecars_of("Film.mp4", names) == ("Film.srt",)
    assert videos_of("Film.srt", names) == ("Film.mkv", "Film.mp4")


def test_videos_of_is_the_reverse_of_sidecars_of() -> None:
    names = ["A.mkv", "A.B.mkv", "A.srt", "A.B.en.srt", "A.C.srt", "A-thumb.jpg", "A.B-thumb.jpg", "B.srt"]
    forward = {(video, name) for video in ("A.mkv", "A.B.mkv") for name in sidecars_of(video, names)}
    backward = {(video, name) for name in names for video in videos_of(name, names)}
    assert forward == backward
    assert ("A.mkv", "A.C.srt") in forward


def test_undecodable_and_odd_names_are_names_like_others() -> None:
    assert sidecars_of("F\udcff.mkv", ["F\udcff.mkv", "F\udcff.srt"]) == ("F\udcff.srt",)
    assert sidecars_of("[x] (*).mkv", ["[x] (*).mkv", "[x] (*).srt", "[x] (a).srt"]) == ("[x] (*).srt",)


@pytest.mark.parametrize(("name", "expected"), [("a.MKV", True), ("a.ts", True), ("a.srt", False), (".mkv", False)])
def test_is_video(name: str, expected: bool) -> None:
    assert is_video(name) is expected


def test_subtitle_folders_in_every_case() -> None:
    assert subtitle_folders("Film.mkv", ["Subs", "SUBTITLES", "Extras", "Film", "Submarine"]) == (
        "Subs",
        "SUBTITLES",
        "Film",
    )


def test_only_video_owns_every_subtitle_of_the_folder() -> None:
    siblings = ["Film.mkv", "Film-trailer.mkv", "sample.mkv", "Film.nfo"]
    assert subtitles_in("Film.mkv", siblings, "Subs", ["2_English.srt", "x.idx", "info.txt"]) == (
        "2_English.srt",
        "x.idx",
    )


def test_one_of_several_videos_owns_only_fitting_subtitles() -> None:
    siblings = ["S01E01.mkv", "S01E010.mkv"]
    names = ["S01E01.en.srt", "S01E010.en.srt", "English.srt"]
    assert subtitles_in("S01E01.mkv", siblings, "Subs", names) == ("S01E01.en.srt",)


def test_folder_of_the_stem_owns_every_subtitle_in_it() -> None:
    siblings = ["S01E01.mkv", "S01E02.mkv"]
    assert subtitles_in("S01E01.mkv", siblings, "S01E01", ["2_English.srt"]) == ("2_English.srt",)
