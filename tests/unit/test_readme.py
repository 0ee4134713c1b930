"""The README names every option, command and module that there is, and none that there is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cachefs.cli import commands
from cachefs.config import CacheConfig, Config, PlexConfig, SourceConfig, build
from cachefs.config_text import read_yaml
from cachefs.units import format_duration

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {"sources": SourceConfig, "cache": CacheConfig, "plex": PlexConfig}


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def options(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its default, dotted as the README writes it."""
    for name, field in model.model_fields.items():
        section = SECTIONS.get(name) if not prefix else None
        if section is None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
        if section is not None:
            yield from options(section, f"{prefix}{name}{'[]' if name == 'sources' else ''}.")
        else:
            yield f"{prefix}{name}", field.get_default()


DEFAULTS = dict(options(Config))


def test_every_option_is_in_the_table_once() -> None:
    named = [row[0].strip("`") for row in rows("Configuration")]
    assert sorted(named) == sorted({*DEFAULTS, "plex"})


def spellings(default: object) -> set[str]:
    """How a default may be written."""
    match default:
        case None:
            return {"null"}
        case bool():
            return {str(default).lower()}
        case float():
            return {format_duration(default), f"{default / 86400:g}d"}
        case _:
            return {str(default)}


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key.startswith(("policy.", "copying.", "cache.m"))])
def test_default_in_the_table_is_the_default(key: str) -> None:
    shown = next(row[1] for row in rows("Configuration") if row[0] == f"`{key}`")
    assert shown.strip("`") in spellings(DEFAULTS[key])


def test_example_is_a_valid_configuration() -> None:
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "mountpoint:" in block)
    data, problems = read_yaml(example)
    assert problems == ()
    assert str(build(data, Path("/"), {}, "README.md").mountpoint) == "/mnt/cachefs"


def test_every_command_is_in_the_table() -> None:
    named = {row[0].split()[1].strip("`") for row in rows("Commands") if row[0].startswith("`cachefs ")}
    assert named == {name for name, command in commands.commands.items() if not command.hidden}


def test_commands_marked_with_a_star_take_json() -> None:
    marked = {row[0].split()[1].strip("`") for row in rows("Commands") if row[0].endswith("*")}
    with_json = {
        name
        for name, command in commands.commands.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert marked == with_json


def test_every_module_in_the_table_exists() -> None:
    names = [name for row in rows("Where to look in the code") for name in re.findall(r"`([^`]+)`", row[0])]
    missing = [
        name
        for name in names
        if not (ROOT / name if name.startswith("tests/") else ROOT / "cachefs" / name).is_dir()
        and not (ROOT / "cachefs" / f"{name}.py").is_file()
    ]
    assert names
    assert missing == []
