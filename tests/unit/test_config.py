"""The configuration: the defaults that are promised, every problem at once with its key, and no token in any text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config import Config, build, default_socket, load
from cachefs.errors import ConfigError
from cachefs.model import PlexPath, UnionPath
from cachefs.paths import PathRule
from cachefs.units import Amount, Hours

EXAMPLE = Path(__file__).parents[2] / "cachefs.yaml"
SECRET = "S3cr3tTok3n"
GIB = 1024**3

SMALLEST = """
mountpoint: /mnt/cachefs
sources: [{path: /mnt/user/Media}]
cache: {path: /mnt/ssd/cachefs}
"""


def written(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    path = tmp_path / "cachefs.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path, environ or {})


def problems(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text, environ)
    return {problem.key: problem.message for problem in caught.value.problems}


# --- what is understood ----------------------------------------------------------------------------------------------


def test_smallest_configuration_has_the_promised_defaults(tmp_path: Path) -> None:
    config = written(tmp_path, SMALLEST)
    (source,) = config.sources
    assert (source.name, source.timeout, source.ttl) == ("Media", 30, 5)
    assert config.cache.mode == "copy"
    assert (config.cache.max_size, config.cache.min_free) == (Amount(percent=100), Amount(percent=5))
    assert config.plex is None
    policy = config.policy
    assert (policy.playing.enabled, policy.playing.after, policy.playing.next_episodes) == (True, 30, 2)
    assert (policy.on_deck.enabled, policy.on_deck.next_episodes, policy.on_deck.max_age) == (True, 5, 60 * 86400)
    assert (policy.watchlist.enabled, policy.watchlist.episodes, policy.watchlist.max_age) == (True, 3, 90 * 86400)
    assert (policy.recently_added.enabled, policy.recently_added.max_age) == (False, 7 * 86400)
    assert (policy.keep_watched, policy.sidecars) == (12 * 3600, True)
    assert (config.copying.workers, config.copying.bandwidth, config.copying.hours) == (2, None, None)
    assert (config.fast_path, config.read_ahead, config.acl) == ("auto", 1 << 20, "off")
    assert config.warnings == ()


def test_example_file_shows_the_defaults(tmp_path: Path) -> None:
    example = load(EXAMPLE, {})
    assert example.model_dump(exclude={"plex"}) == written(tmp_path, SMALLEST).model_dump(exclude={"plex"})
    assert example.plex is not None
    assert example.plex.path_map == "auto"


def test_every_key_is_read_as_people_write_it(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        f"""
        mountpoint: /mnt/cachefs
        sources:
          - {{path: /mnt/disk1/Films, name: 2024, timeout: 1m, ttl: 0}}
          - {{path: /mnt/disk2/TV}}
        cache: {{path: /mnt/ssd/cachefs, mode: copy, max_size: 500GiB, min_free: 10%}}
        plex: {{url: "https://plex.lan:32400/", token: {SECRET}, path_map: [{{plex: /media, mount: /}}]}}
        policy:
          playing: {{enabled: no, after: 1m, next_episodes: 0}}
          recently_added: {{enabled: yes}}
          keep_watched: 2d
        copying: {{workers: 4, bandwidth: 100MiB/s, hours: 01:00-07:00}}
        control: {{socket: run/cachefs.sock}}
        """,
    )
    assert [source.name for source in config.sources] == ["2024", "TV"]
    assert (config.sources[0].timeout, config.sources[0].ttl) == (60, 0)
    assert (config.cache.max_size, config.cache.min_free) == (Amount(bytes=500 * GIB), Amount(percent=10))
    assert config.plex is not None
    assert (config.plex.url, config.plex.read_token()) == ("https://plex.lan:32400", SECRET)
    assert [str(rule) for rule in config.plex.path_map] == ["{plex: /media, mount: /}"]
    assert (config.policy.playing.enabled, config.policy.recently_added.enabled) == (False, True)
    assert config.copying.bandwidth == 100 * 1024**2
    assert config.copying.hours == Hours.parse("01:00-07:00")
    assert config.control.socket == tmp_path / "run/cachefs.sock"


def test_sections_left_empty_have_their_defaults(tmp_path: Path) -> None:
    emptied = "policy:\n  playing:\ncopying:\ncontrol:\nplex:\n"
    assert written(tmp_path, SMALLEST + emptied) == written(tmp_path, SMALLEST)


def test_token_made_of_digits_stays_as_written(tmp_path: Path) -> None:
    config = written(tmp_path, SMALLEST + "plex: {url: 'http://h', token: 0123_4}\n")
    assert config.plex is not None
    assert config.plex.read_token() == "0123_4"


def test_relative_path_begins_at_the_folder_of_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, "mountpoint: m\nsources: [{path: ../Media/}]\ncache: {path: ./ssd}\n")
    assert (config.mountpoint, config.cache.path) == (tmp_path / "m", tmp_path / "ssd")
    assert config.sources[0].path == tmp_path.parent / "Media"
    assert config.sources[0].name == "Media"


def test_token_file_is_read_when_asked_for(tmp_path: Path) -> None:
    config = written(tmp_path, SMALLEST + "plex: {url: 'http://h', token_file: token}\n")
    assert config.plex is not None
    with pytest.raises(ConfigError, match=r"plex\.token_file"):
        config.plex.read_token()
    (tmp_path / "token").write_text(f"{SECRET}\n")
    assert config.plex.read_token() == SECRET
    (tmp_path / "token").write_text(f"two {SECRET}\n")
    with pytest.raises(ConfigError, match="one word") as caught:
        config.plex.read_token()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "uid", "socket"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, 0, "/run/cachefs/cachefs.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/run/user/1000/cachefs/cachefs.sock"),
        ({}, 1000, "/tmp/cachefs-1000/cachefs.sock"),
    ],
)
def test_default_socket_is_one_folder_that_the_user_may_own(environ: dict[str, str], uid: int, socket: str) -> None:
    assert default_socket(environ, uid) == Path(socket)


def test_token_that_everybody_may_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "cachefs.yaml"
    path.write_text(SMALLEST + f"plex: {{url: 'http://h', token: {SECRET}}}\n")
    path.chmod(0o644)
    (warning,) = load(path, {}).warnings
    assert f"chmod o-r {path}" in warning
    assert SECRET not in warning
    path.chmod(0o640)
    assert load(path, {}).warnings == ()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_with_their_keys(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        """
        mountpont: /mnt/cachefs
        sources: [{path: /a, timeout: soon}, {name: b/c, path: ""}]
        cache: {path: /a/cache, mode: moved, max_size: 101%, min_free: lots}
        plex: {url: 127.0.0.1, path_map: [{plex: media, mount: /}, {plex: /m, mount: /a/../..}, {plex: /m, mont: /}]}
        policy: {on_deck: {max_age: -1d, next_episodes: few}, sidecars: perhaps, watchlist: 3}
        copying: {workers: 0, bandwidth: 100Mbit/s, hours: 1-7}
        """,
    )
    assert told == {
        "mountpoint": "is missing; write it like mountpoint: /mnt/cachefs",
        "mountpont": "there is no such key; did you mean mountpoint?",
        "sources[0].timeout": "'soon' is no duration; write it like 30s, 2h30m or 60d",
        "sources[1].name": "must be a folder's name, without a slash",
        "sources[1].path": "is no path; write one that begins with /",
        "cache.mode": "write copy or move",
        "cache.max_size": "101% is more than there is; write at most 100%",
        "cache.min_free": "'lots' is no size; write it like 500GiB, 1.5TB or a number of bytes",
        "cache.path": "/a/cache lies in the source /a; put the cache on the SSD, outside of sources",
        "plex": "has no token; write token or token_file, or set CACHEFS_PLEX_TOKEN",
        "plex.url": "is no web address; write it like http://127.0.0.1:32400",
        "plex.path_map[0]": "'media' is not a whole path on the Plex server; write it as Plex shows it",
        "plex.path_map[1]": "'/a/../..' leads out of the mount; write a path from the mount's root, such as /TV",
        "plex.path_map[2].mont": "there is no such key; did you mean mount?",
        "plex.path_map[2].mount": "is missing; write a value or remove the line",
        "policy.on_deck.max_age": "'-1d' is no duration; write it like 30s, 2h30m or 60d",
        "policy.on_deck.next_episodes": "write a whole number",
        "policy.sidecars": "write true or false",
        "policy.watchlist": "write keys and values below it",
        "copying.workers": "write a value of at least 1",
        "copying.bandwidth": "'100Mbit/s' may mean bits; write bytes a second, like 100MiB/s",
        "copying.hours": "'1-7' is no part of a day; write it like 01:00-07:00",
    }


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("mountpoint: [a\n", "", "line 2, column 1"),
        ("a: 1\nb: c: d\n", "", "line 2, column 5"),
        ("- a\n- b\n", "", "must hold keys and values"),
        ("just text\n", "", "must hold keys and values"),
        ("{[a]: b}\n", "", "line 1: a key must be one word"),
        ("null: b\n", "", "line 1: a key must be one word"),
        ("a: 1\n---\nb: 1\n", "", "line 2, column 1"),
        ("a: !!python/object:os.system x\n", "", "line 1, column 4"),
        ("cache:\n  path: /a\n  path: /b\n", "cache.path", "line 3: is written twice"),
        ("sources:\n- name: a\n  name: a\n", "sources[0].name", "line 3: is written twice"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_place(tmp_path: Path, text: str, key: str, told: str) -> None:
    assert problems(tmp_path, text)[key].startswith(told)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        "mountpoint: /m\ncache: {path: /c}\nsources:\n- &first {path: /a, ttl: 1s}\n- {<<: *first, path: /b}\n",
    )
    assert [(str(source.path), source.ttl) for source in config.sources] == [("/a", 1), ("/b", 1)]


def test_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"mountpoint: /m\xe9dia\n")
    (tmp_path / "folder").mkdir()
    told = {}
    for name in ("latin", "folder", "missing"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, {})
        told[name] = str(caught.value)
    assert "is no UTF-8 text (byte 14)" in told["latin"]
    assert "Is a directory" in told["folder"]
    assert "there is no such file" in told["missing"]


@pytest.mark.parametrize(
    ("mountpoint", "sources", "cache", "key"),
    [
        ("/m", ["/media"], "/media/cache", "cache.path"),
        ("/m", ["/media"], "/media", "cache.path"),
        ("/m", ["/ssd/media"], "/ssd", "sources[0].path"),
        ("/media/sub", ["/media"], "/ssd", "mountpoint"),
        ("/mnt", ["/mnt/media"], "/ssd", "mountpoint"),
        ("/a", ["/a", "/b"], "/ssd", "mountpoint"),
        ("/ssd", ["/media"], "/ssd", "cache.path"),
        ("/ssd/mount", ["/media"], "/ssd", "cache.path"),
        ("/m", ["/media"], "/m/ssd", "cache.path"),
        ("/m", ["/a/TV", "/b/TV"], "/ssd", "sources[1].name"),
        ("/m", ["/a", "/a/"], "/ssd", "sources[1].path"),
        ("/m", ["/a/TV", "/b", "/a"], "/ssd", "sources[0].path"),
    ],
)
def test_folders_that_lie_in_one_another_are_refused(
    tmp_path: Path, mountpoint: str, sources: list[str], cache: str, key: str
) -> None:
    data = {"mountpoint": mountpoint, "sources": [{"path": path} for path in sources], "cache": {"path": cache}}
    with pytest.raises(ConfigError) as caught:
        build(data, tmp_path, {}, "test")
    assert key in [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("mountpoint", "sources", "cache"),
    [
        ("/media", ["/media"], "/ssd"),
        ("/media2", ["/media"], "/media3"),
        ("/m", ["/a/TV", "/a/Films"], "/a/cache"),
    ],
)
def test_folders_beside_one_another_and_mounting_in_place_are_accepted(
    tmp_path: Path, mountpoint: str, sources: list[str], cache: str
) -> None:
    data = {"mountpoint": mountpoint, "sources": [{"path": path} for path in sources], "cache": {"path": cache}}
    assert len(build(data, tmp_path, {}, "test").sources) == len(sources)


def test_socket_that_the_kernel_would_refuse_or_the_mount_would_hide_is_refused(tmp_path: Path) -> None:
    assert "107 bytes" in problems(tmp_path, SMALLEST + f"control: {{socket: /{'x' * 107}}}\n")["control.socket"]
    inside = problems(tmp_path, SMALLEST + "control: {socket: /mnt/cachefs/s}\n")
    assert "lies in the mount" in inside["control.socket"]
    shown = problems(tmp_path, SMALLEST + "control: {socket: /mnt/user/Media/s}\n")
    assert "lies in the source /mnt/user/Media" in shown["control.socket"]
    kept = problems(tmp_path, SMALLEST + "control: {socket: /mnt/ssd/cachefs/s}\n")
    assert "lies in the cache /mnt/ssd/cachefs" in kept["control.socket"]


@pytest.mark.parametrize(
    "url", ["http://a b", "http://plex..local", f"http://{'x' * 64}.local", "ftp://plex", "http://"]
)
def test_a_host_that_no_request_can_go_to_is_refused(tmp_path: Path, url: str) -> None:
    told = problems(tmp_path, SMALLEST + f"plex: {{url: '{url}', token: {SECRET}}}\n")
    assert told == {"plex.url": "is no web address; write it like http://127.0.0.1:32400"}


@pytest.mark.parametrize(("size", "doubted"), [("500", True), ("1000KiB", True), ("1MiB", False), ("1%", False)])
def test_a_size_that_lacks_its_unit_is_doubted(tmp_path: Path, size: str, doubted: bool) -> None:
    data = {"mountpoint": "/m", "sources": [{"path": "/a"}], "cache": {"path": "/ssd", "max_size": size}}
    assert ["write a unit" in warning for warning in build(data, tmp_path, {}, "test").warnings] == [True] * doubted


def test_both_token_and_token_file_are_refused(tmp_path: Path) -> None:
    told = problems(tmp_path, SMALLEST + f"plex: {{url: 'http://h', token: {SECRET}, token_file: t}}\n")
    assert told == {"plex": "has both token and token_file; remove one of them"}


# --- the environment -------------------------------------------------------------------------------------------------


def test_environment_overrides_any_key(tmp_path: Path) -> None:
    environ = {
        "CACHEFS_MOUNTPOINT": "/elsewhere: #1",
        "CACHEFS_CACHE__MAX_SIZE": "10GiB",
        "CACHEFS_SOURCES__0__TTL": "1m",
        "CACHEFS_SOURCES__1__PATH": "/more",
        "CACHEFS_PLEX__URL": "http://plex",
        "CACHEFS_PLEX__TOKEN": SECRET,
        "CACHEFS_PLEX__PATH_MAP": "[{plex: /tv, mount: /TV}]",
        "CACHEFS_POLICY__SIDECARS": "false",
        "CACHEFS_COPYING__BANDWIDTH": "null",
        "CACHEFS_COPYING__HOURS": "'01:00-07:00'",
        "CACHEFS_CONFIG": "/not/ours",
        "CACHEFS_PORT": "not ours either",
        "CACHEFS_SERVICE_HOST": "nor this",
    }
    config = written(tmp_path, SMALLEST + "copying: {bandwidth: 1MiB/s}\n", environ)
    assert config.mountpoint == Path("/elsewhere: #1")
    assert config.cache.max_size == Amount(bytes=10 * GIB)
    assert [(str(source.path), source.ttl) for source in config.sources] == [("/mnt/user/Media", 60), ("/more", 5)]
    assert config.plex is not None
    assert config.plex.path_map == (PathRule(PlexPath("/tv"), UnionPath("TV")),)
    assert config.plex.read_token() == SECRET
    assert not config.policy.sidecars
    assert config.copying.bandwidth is None
    assert config.copying.hours is not None


def test_configuration_can_come_from_the_environment_alone(tmp_path: Path) -> None:
    sources = {f"CACHEFS_SOURCES__{number}__PATH": f"/disk{number}" for number in range(11)}
    environ = {"CACHEFS_MOUNTPOINT": "/m", "CACHEFS_CACHE__PATH": "ssd", **dict(reversed(sources.items()))}
    config = build({}, tmp_path, environ, "environment")
    assert config.cache.path == tmp_path / "ssd"
    assert [source.name for source in config.sources] == [f"disk{number}" for number in range(11)]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CACHEFS_MOUNTPONT", "CACHEFS_MOUNTPOINT"),
        ("CACHEFS_SORCE", "CACHEFS_SOURCES"),
        ("CACHEFS_CACHE_MAX_SIZE", "CACHEFS_CACHE__MAX_SIZE"),
        ("CACHEFS_POLICY_KEEP_WATCHED", "CACHEFS_POLICY__KEEP_WATCHED"),
        ("CACHEFS_PLEX_TOKN", "CACHEFS_PLEX_TOKEN"),
        ("CACHEFS_SOURCES_0_PATH", "CACHEFS_SOURCES__0__PATH"),
    ],
)
def test_a_misspelled_variable_is_refused_with_the_one_that_was_meant(
    tmp_path: Path, variable: str, meant: str
) -> None:
    told = problems(tmp_path, SMALLEST, {variable: "1"})
    assert told == {"": f"there is no variable {variable}; did you mean {meant}?"}


@pytest.mark.parametrize(
    ("variable", "value", "key", "told"),
    [
        ("CACHEFS_CACHE__MAX_SISE", "1GiB", "cache.max_sise", "did you mean max_size?"),
        ("CACHEFS_SORCES__0__PATH", "/a", "sorces", "did you mean sources?"),
        ("CACHEFS_CACHE", "/ssd", "cache", "write keys and values below it"),
        ("CACHEFS_SOURCES__2__PATH", "/a", "sources[2].path", "the next free number is 1"),
        ("CACHEFS_SOURCES__0__TIMEOUT", "soon", "sources[0].timeout", "is no duration"),
        ("CACHEFS_PLEX__PATH_MAP", "[{plex", "plex.path_map", "line 1"),
    ],
)
def test_wrong_override_is_refused_with_its_variable(
    tmp_path: Path, variable: str, value: str, key: str, told: str
) -> None:
    message = problems(tmp_path, SMALLEST, {variable: value})[key]
    assert told in message
    assert f"(from {variable})" in message


@pytest.mark.parametrize(
    ("in_file", "environ", "token"),
    [
        ("token: a", {"CACHEFS_PLEX_TOKEN": SECRET}, SECRET),
        ("token_file: nowhere", {"CACHEFS_PLEX_TOKEN": SECRET}, SECRET),
        ("token_file: nowhere", {"CACHEFS_PLEX__TOKEN": SECRET}, SECRET),
        ("token: a", {"CACHEFS_PLEX__TOKEN_FILE": "here"}, "from file"),
        ("token: a", {"CACHEFS_PLEX__TOKEN": SECRET, "CACHEFS_PLEX_TOKEN": "b"}, SECRET),
        ("token: a", {"CACHEFS_PLEX_TOKEN": ""}, "a"),
    ],
)
def test_token_of_the_environment_wins(tmp_path: Path, in_file: str, environ: dict[str, str], token: str) -> None:
    (tmp_path / "here").write_text("from-file")
    config = written(tmp_path, SMALLEST + f"plex: {{url: 'http://h', {in_file}}}\n", environ)
    assert config.plex is not None
    assert config.plex.read_token() == token.replace(" ", "-")


def test_token_without_a_plex_section_is_a_warning(tmp_path: Path) -> None:
    config = written(tmp_path, SMALLEST, {"CACHEFS_PLEX_TOKEN": SECRET})
    assert config.plex is None
    assert ["CACHEFS_PLEX_TOKEN" in warning for warning in config.warnings] == [True]


def test_data_given_to_build_is_not_changed(tmp_path: Path) -> None:
    data = {"mountpoint": "/m", "sources": [{"path": "/a"}], "cache": {"path": "/c"}}
    build(data, tmp_path, {"CACHEFS_SOURCES__0__PATH": "/b"}, "test")
    assert data == {"mountpoint": "/m", "sources": [{"path": "/a"}], "cache": {"path": "/c"}}


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plex",
    [
        f"{{url: 'http://h', token: [{SECRET}]}}",
        f"{{url: 'http://h', token: {{a: {SECRET}}}}}",
        f"{{url: 'http://h', token: 'a {SECRET}'}}",
        f"{{url: 'http://h?X-Plex-Token={SECRET}', token: {SECRET}}}",
        f"{{url: 'http://user:{SECRET}@h', token: {SECRET}}}",
        f"{{url: 'http://[{SECRET}', token: {SECRET}}}",
        f"{{url: 'http://h:{SECRET}', token: {SECRET}}}",
        f"{{url: 'http://h', token: *{SECRET}}}",
        f"{{url: 'http://h', token: !{SECRET}}}",
        f"{{url: 'http://h', token: \"{SECRET}\\q\"}}",
        f"{{url: 'http://h', token: {SECRET}: x}}",
        f"{{url: 'http://h', token: %{SECRET}}}",
        f"{{url: 'http://h', token: &{SECRET} &{SECRET} x}}",
    ],
)
def test_token_is_in_no_text_of_what_is_refused(tmp_path: Path, plex: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, SMALLEST + f"plex: {plex}\n")
    assert SECRET not in str(caught.value) + repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_token_is_in_no_text_of_what_is_accepted(tmp_path: Path) -> None:
    config = written(tmp_path, SMALLEST + f"plex: {{url: 'http://h', token: {SECRET}}}\n")
    assert config.plex is not None
    assert config.plex.read_token() == SECRET
    assert SECRET not in f"{config!r} {config} {config.plex} {config.model_dump()} {config.model_dump_json()}"


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@,#? \n\t\0\x85é1", max_size=40))
def test_any_text_is_a_configuration_or_a_problem(text: str) -> None:
    from_environment = {"CACHEFS_PLEX__PATH_MAP": text, "CACHEFS_POLICY__KEEP_WATCHED": text}
    with pytest.raises(ConfigError):
        build({}, Path("/"), from_environment, "test")


@pytest.mark.parametrize(("written_as", "size"), [("2MiB", 2 << 20), ("524288", 1 << 19), ("0", 0), ("null", None)])
def test_read_ahead_is_a_size_or_the_kernels_own(tmp_path: Path, written_as: str, size: int | None) -> None:
    assert written(tmp_path, SMALLEST + f"read_ahead: {written_as}\n", {}).read_ahead == size
    assert written(tmp_path, SMALLEST, {"CACHEFS_READ_AHEAD": written_as}).read_ahead == size


@pytest.mark.parametrize("acl", ["on", "off"])
def test_acls_are_switched_by_plain_words(tmp_path: Path, acl: str) -> None:
    assert written(tmp_path, SMALLEST + f"acl: {acl}\n", {}).acl == acl
    assert written(tmp_path, SMALLEST, {"CACHEFS_ACL": acl}).acl == acl


@pytest.mark.parametrize("text", ["[" * 50_000, "{a: " * 3_000, "- " * 5_000])
def test_a_file_nested_without_end_is_one_clear_problem(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cachefs.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"nested|line \d+"):
        load(file, {})
