"""Whatever is written where a configuration should be: it is one, or every problem is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs import cli
from cachefs.config import Config, load
from cachefs.config_text import variables_of
from cachefs.errors import ConfigError
from cachefs.units import parse_bandwidth, parse_duration, parse_size

SECTIONS = ("cache", "plex", "policy", "copying", "control")
KEYS = sorted(
    {part.lower() for name in variables_of(Config) for part in name.removeprefix("CACHEFS_").split("__")}
    | {"path", "name", "timeout", "ttl", "metadata", "plex", "mount", "<<"}
)
GOOD = {
    "mountpoint": '"/m"',
    "sources": '[{"path": "/s"}]',
    "cache": '{"path": "/c"}',
    "plex": '{"url": "http://h", "token": "t"}',
}
HUGE = "9" * 400

a_few = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.one_of(
    st.sampled_from(["/a", "~", "~x", "~\0", "null", "auto", "move", "-1", "1e999", HUGE, f"{HUGE}%", f"{HUGE}GiB"]),
    st.sampled_from(["inf", "nan", f"{HUGE}d", "25:00-1:00", "http://[", "http://a:99999", "http://u:p@h", "../.."]),
    st.sampled_from(["/" + "x" * 5000, "\x85"]),
    st.text(max_size=10),
).map(json.dumps)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(st.sampled_from(KEYS).map(json.dumps), inner, max_size=4).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        ),
    ),
    max_leaves=12,
)
mappings = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
texts = st.text(alphabet="ab:-[]{}&*!|>'\"%@,#? \n\t<\0\x85é\ud800", max_size=60)
variables = st.dictionaries(
    st.lists(st.sampled_from([*KEYS, "0", "1", "99", "9" * 5000, "٣", ""]), min_size=1, max_size=4).map(
        lambda names: f"CACHEFS_{'__'.join(names).upper()}"
    ),
    values,
    max_size=4,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "cachefs.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    return path


def refusal(path: Path, environ: Mapping[str, str]) -> ConfigError | None:
    """Why it is no configuration; any other outcome is an exception."""
    try:
        load(path, environ)
    except ConfigError as error:
        return error
    return None


def is_refused(path: Path, environ: Mapping[str, str]) -> bool:
    """Whether there are problems, each of them a sentence with its key."""
    refused = refusal(path, environ)
    if refused is None:
        return False
    assert refused.problems
    assert all(problem.message for problem in refused.problems)
    assert all(f"{problem.key}: " in str(refused) for problem in refused.problems if problem.key)
    return True


def as_yaml(data: Mapping[str, str]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in data.items())


@a_few
@given(st.one_of(texts, values, mappings.map(as_yaml)))
def test_any_text_is_a_configuration_or_told_problems(tmp_path: Path, text: str) -> None:
    assert is_refused(written(tmp_path, text), {})


@a_few
@given(st.sampled_from([*SECTIONS, "sources", ""]), mappings)
def test_any_part_of_a_good_configuration_may_be_nonsense(tmp_path: Path, where: str, inner: dict[str, str]) -> None:
    flow = "{" + ", ".join(f"{key}: {value}" for key, value in inner.items()) + "}"
    put = {where: f"[{flow}]" if where == "sources" else flow} if where else inner
    is_refused(written(tmp_path, as_yaml({**GOOD, **put})), {})


@a_few
@given(variables)
def test_any_variables_are_overrides_or_told_problems(tmp_path: Path, environ: dict[str, str]) -> None:
    is_refused(written(tmp_path, as_yaml(GOOD)), environ)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(texts, mappings.map(as_yaml)))
def test_every_command_refuses_a_wrong_configuration_in_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = written(tmp_path, text)
    for command in (["status"], ["plan", "--json"], ["copy", "x"], ["restore"]):
        assert cli.run([command[0], "-c", str(path), *command[1:]]) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert told.err.count("cachefs") >= 4
    assert told.out == ""


@pytest.mark.parametrize("parse", [parse_size, parse_bandwidth, parse_duration])
@pytest.mark.parametrize("unit", ["", "M"])
def test_a_number_that_nothing_can_have_is_refused(parse: object, unit: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match="write it like"):
        parse(HUGE + unit)


def test_a_variable_with_thousands_of_digits_is_a_told_problem(tmp_path: Path) -> None:
    assert is_refused(written(tmp_path, as_yaml(GOOD)), {f"CACHEFS_SOURCES__{'9' * 5000}__PATH": "/a"})
