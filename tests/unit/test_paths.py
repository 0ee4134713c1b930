"""Path mappings: each is exact, none leads out of its tree, and what cannot be decided is not decided."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import UserError
from cachefs.model import FileKey, LibraryFolder, PlexFile, PlexPath, SourceName, UnionPath
from cachefs.paths import Layout, Learned, PathMap, PathRule, Probe, argument, cache_path, candidates, choose, probes

MOUNT = Path("/mnt/cachefs")
ONE = Layout((SourceName("Media"),))
TWO = Layout((SourceName("Films"), SourceName("TV")))

names = st.text(alphabet="aB.\\ é\udcff", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
clean_paths = st.lists(names, min_size=1, max_size=4).map("/".join)
any_paths = st.text(alphabet="aB./\\:é\udcff\0", max_size=20)


def key(source: str, path: str) -> FileKey:
    return FileKey(SourceName(source), path)


def rule(plex: str, mount: str) -> PathRule:
    return PathRule(PlexPath(plex), UnionPath(mount))


def is_inside(path: str) -> bool:
    return not path.startswith("/") and all(part not in ("", ".", "..") for part in path.split("/"))


# --- union, source, cache file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "path", "expected"),
    [
        (ONE, "", key("Media", "")),
        (ONE, "TV/Show/E01.mkv", key("Media", "TV/Show/E01.mkv")),
        (ONE, "Media/x", key("Media", "Media/x")),
        (TWO, "", None),
        (TWO, "TV", key("TV", "")),
        (TWO, "TV/Show/E01.mkv", key("TV", "Show/E01.mkv")),
        (TWO, "Music/x", None),
        (TWO, "TV/", None),
        (ONE, "/TV", None),
        (ONE, "TV/../../etc", None),
        (ONE, "TV//x", None),
        (ONE, "TV/./x", None),
        (ONE, "TV/\0", None),
    ],
)
def test_union_path_belongs_to_one_source(layout: Layout, path: str, expected: FileKey | None) -> None:
    assert layout.key(UnionPath(path)) == expected


@given(st.sampled_from([ONE, TWO]), st.integers(0, 1), st.one_of(clean_paths, st.just("")))
def test_source_file_is_found_again_by_the_path_people_see(layout: Layout, number: int, path: str) -> None:
    of = FileKey(layout.sources[number % len(layout.sources)], path)
    assert layout.key(layout.union(of)) == of


def test_file_of_an_unknown_source_has_no_path() -> None:
    with pytest.raises(ValueError, match="Music"):
        TWO.union(key("Music", "x"))


@given(st.tuples(names, st.one_of(clean_paths, st.just(""))), st.tuples(names, st.one_of(clean_paths, st.just(""))))
def test_no_two_files_share_a_cache_file(first: tuple[str, str], second: tuple[str, str]) -> None:
    one, other = cache_path(key(*first)), cache_path(key(*second))
    assert (one == other) == (first == second)
    assert one.startswith("files/")
    assert is_inside(one)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("a/b", "c"),
        ("", "c"),
        ("..", "c"),
        (".", "c"),
        ("a", "/c"),
        ("a", "c/"),
        ("a", "b//c"),
        ("a", "../c"),
        ("a", "\0"),
    ],
)
def test_cache_file_that_would_lie_elsewhere_is_refused(source: str, path: str) -> None:
    with pytest.raises(ValueError, match="cache file"):
        cache_path(key(source, path))


# --- what a person types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layout", "expected"),
    [
        ("/mnt/cachefs/TV/Show", ONE, "TV/Show"),
        ("/mnt/cachefs/TV/Show/", ONE, "TV/Show"),
        ("TV/Show", ONE, "TV/Show"),
        ("./TV//Show/../Show", ONE, "TV/Show"),
        ("/mnt/cachefs", ONE, ""),
        (".", TWO, ""),
        ("TV/Show", TWO, "TV/Show"),
    ],
)
def test_argument_is_a_path_below_the_mount_or_relative_to_it(text: str, layout: Layout, expected: str) -> None:
    assert argument(text, MOUNT, layout) == expected


@pytest.mark.parametrize(
    ("text", "layout", "told"),
    [
        ("/mnt/other/TV", ONE, "is not below the mount /mnt/cachefs"),
        ("/mnt/cachefs2", ONE, "is not below the mount"),
        ("../x", ONE, "is not below the mount"),
        ("/mnt/cachefs/../cachefs2/x", ONE, "is not below the mount"),
        ("", ONE, "name a file or folder"),
        ("a\0b", ONE, "name a file or folder"),
        ("Music/x", TWO, "one of Films, TV"),
    ],
)
def test_argument_elsewhere_is_the_users_error(text: str, layout: Layout, told: str) -> None:
    with pytest.raises(UserError, match=told):
        argument(text, MOUNT, layout)


@given(st.sampled_from([ONE, TWO]), any_paths)
def test_no_path_of_the_union_leads_out_of_its_source(layout: Layout, path: str) -> None:
    found = layout.key(UnionPath(path))
    assert found is None or not found.path or is_inside(found.path)
    assert found is None or found.source in layout.sources


@given(
    st.sampled_from([ONE, TWO]),
    st.builds(str.__add__, st.sampled_from(["", "/", "/mnt/cachefs/", "/mnt/cachefs/TV/", "TV/", "../"]), any_paths),
)
def test_nothing_that_a_person_types_leads_out_of_the_sources(layout: Layout, text: str) -> None:
    try:
        path = argument(text, MOUNT, layout)
    except UserError:
        return
    found = layout.key(path)
    assert path == "" or (found is not None and (not found.path or is_inside(found.path)))


@given(st.one_of(any_paths, names), any_paths)
def test_no_key_leads_out_of_the_cache_folder(source: str, path: str) -> None:
    try:
        found = cache_path(key(source, path))
    except ValueError:
        return
    assert found.startswith("files/")
    assert is_inside(found)


# --- Plex → union ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "plex", "expected"),
    [
        ([("/data/tv", "TV")], "/data/tv/Show/E01.mkv", "TV/Show/E01.mkv"),
        ([("/data/tv/", "/TV/")], "/data//tv/./Show/E01.mkv", "TV/Show/E01.mkv"),
        ([("/data/tv", "TV")], "/data/tv", "TV"),
        ([("/data/tv", "TV")], "/data/tvs/x", None),
        ([("/data/tv", "TV")], "/DATA/tv/x", None),
        ([("/data", ""), ("/data/tv", "Series")], "/data/tv/x", "Series/x"),
        ([("/data/tv", "Series"), ("/data", "")], "/data/films/x", "films/x"),
        ([("/", "")], "/TV/x", "TV/x"),
        ([("/data", "")], "/data/../etc/passwd", None),
        ([("/data", "")], "/data/a\0b", None),
        ([("/data", "")], "data/x", None),
        ([("/data", "")], "/data/a\\b", "a\\b"),
        ([("D:\\Media", "")], "D:\\Media\\TV\\E01.mkv", "TV/E01.mkv"),
        ([("D:\\Media", "")], "d:/media/TV/E01.mkv", "TV/E01.mkv"),
        ([("D:\\", "x")], "D:\\TV", "x/TV"),
        ([("D:\\Media", "")], "E:\\Media\\TV", None),
        ([("D:\\Media", "")], "D:\\Media\\..\\x", None),
        ([("\\\\NAS\\media", "")], "\\\\nas\\Media\\TV\\E01.mkv", "TV/E01.mkv"),
        ([("\\\\NAS\\media", "")], "\\\\other\\media\\TV", None),
        ([("\\\\NAS\\media", "")], "/NAS/media/TV", None),
        ([], "/data/x", None),
    ],
)
def test_longest_rule_that_fits_says_where_a_plex_path_is(
    rules: list[tuple[str, str]], plex: str, expected: str | None
) -> None:
    assert PathMap(rule(*pair) for pair in rules).to_union(PlexPath(plex)) == expected


@given(
    st.sampled_from(["/", "/a", "/a/B", "a:\\", "a:\\B", "\\\\a\\B"]),
    st.one_of(
        any_paths, st.builds(str.__add__, st.sampled_from(["/", "/a/", "a:\\", "A:/B/", "\\\\a\\B\\"]), any_paths)
    ),
    st.sampled_from(["", "/", "TV", "/a/B/"]),
)
def test_no_plex_path_leads_out_of_the_mount(prefix: str, plex: str, mount: str) -> None:
    path = PathMap([rule(prefix, mount)]).to_union(PlexPath(plex))
    assert not path or is_inside(path)


@pytest.mark.parametrize(
    ("plex", "mount"), [("data", "/"), ("", "/"), ("/a/../b", "/"), ("/a", "/b/../.."), ("C:x", "/")]
)
def test_rule_that_cannot_hold_is_refused(plex: str, mount: str) -> None:
    with pytest.raises(ValueError, match=r"write it as Plex shows it|write a path from the mount's root"):
        rule(plex, mount)


# --- learning --------------------------------------------------------------------------------------------------------


def library(path: str, *files: tuple[str, int]) -> LibraryFolder:
    separator = "\\" if "\\" in path else "/"
    samples = (PlexFile(PlexPath(path + separator + name.replace("/", separator)), size) for name, size in files)
    return LibraryFolder("Library", PlexPath(path), tuple(samples))


def learn(folder: LibraryFolder, mount: dict[str, int], depth: int = 2) -> Learned:
    """What the caller does, with a mount that is a table of files and sizes."""
    folders = {"/".join(path.split("/")[:length]) for path in mount for length in range(1, path.count("/") + 1)}
    listed = [UnionPath(path) for path in sorted(folders) if path.count("/") < depth]
    found = [
        Probe(candidate, sum(mount.get(path) == size for path, size in probes(candidate, folder)))
        for candidate in candidates(folder, listed, MOUNT)
    ]
    return choose(found, MOUNT)


EPISODES = (("Show/S01/E01.mkv", 100), ("Show/S01/E02.mkv", 200), ("Other/S01/E01.mkv", 300))


@pytest.mark.parametrize(
    ("plex", "place"),
    [
        ("/data/tv", "TV"),
        ("/data/tv", ""),
        ("/data/tv", "tv"),
        ("/data/tv", "data/tv"),
        ("/data/tv", "Media/Series"),
        ("/data/tv", "Media/disk1/tv"),
        ("/tv", "Serien"),
        ("/", "TV"),
        ("/mnt/cachefs/TV", "TV"),
        ("/mnt/cachefs", ""),
        ("D:\\Media\\TV", "TV"),
        ("D:\\", "Media"),
        ("\\\\NAS\\share\\TV", "TV"),
        ("\\\\NAS\\share\\TV", ""),
    ],
)
def test_mapping_is_learned_wherever_the_library_is_in_the_mount(plex: str, place: str) -> None:
    mount = {f"{place}/{name}".lstrip("/"): size for name, size in EPISODES} | {
        "Films/Heat.mkv": 7,
        "Music/a/b.flac": 3,
    }
    folder = library(plex.rstrip("\\/") if plex != "/" else "", *EPISODES)
    folder = LibraryFolder(folder.library, PlexPath(plex), folder.samples)
    learned = learn(folder, mount)
    assert learned.rivals == ()
    assert learned.rule == rule(plex, place)


def test_files_at_the_top_of_a_library_are_enough() -> None:
    folder = library("/movies", ("Heat.mkv", 7))
    assert learn(folder, {"Films/Heat.mkv": 7, "TV/a/b.mkv": 1}).rule == rule("/movies", "Films")


def test_place_with_most_files_wins() -> None:
    mount = {f"TV/{name}": size for name, size in EPISODES} | {"Backup/Show/S01/E01.mkv": 100}
    assert learn(library("/data/shows", *EPISODES), mount).rule == rule("/data/shows", "TV")


def test_same_name_with_another_size_is_another_file() -> None:
    mount = {f"TV/{name}": size + 1 for name, size in EPISODES}
    assert learn(library("/data/tv", *EPISODES), mount) == Learned()


def test_two_places_that_fit_equally_are_not_decided() -> None:
    mount = {f"{place}/{name}": size for name, size in EPISODES for place in ("TV", "Backup")}
    learned = learn(library("/data/shows", *EPISODES), mount)
    assert learned.rule is None
    assert {candidate.mount for candidate in learned.rivals} == {"TV", "Backup"}


def test_plex_that_sees_the_mount_under_its_own_path_is_believed() -> None:
    mount = {f"{place}/{name}": size for name, size in EPISODES for place in ("TV", "Backup")}
    assert learn(library("/mnt/cachefs/TV", *EPISODES), mount).rule == rule("/mnt/cachefs/TV", "TV")


def test_of_rules_that_mean_the_same_the_longest_wins() -> None:
    found = [Probe(rule("/data", ""), 3), Probe(rule("/data/tv", "tv"), 3), Probe(rule("/", "x"), 0)]
    assert choose(found, MOUNT) == Learned(rule("/data/tv", "tv"))


def test_likely_places_come_first_and_impossible_ones_not_at_all() -> None:
    listed = [UnionPath(path) for path in ("Films", "Films/Heat", "Music", "TV", "TV/Show", "TV/Other")]
    places = [candidate.mount for candidate in candidates(library("/data/tv", *EPISODES), listed, MOUNT)]
    assert places[0] == "TV"
    assert "Films" not in places
    assert "Music" in places  # nothing is known of what is in it
    assert len(places) == len(set(places))
