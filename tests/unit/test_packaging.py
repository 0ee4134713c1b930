"""What cachefs is installed with: each variable is a key that there is, each layout is a whole configuration."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from cachefs.config import build

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TEMPLATE = ROOT / "packaging" / "unraid.xml"
PINS = dict(
    line.split("==")
    for line in (ROOT / "packaging" / "constraints.txt").read_text(encoding="utf-8").split("\n")
    if line and not line.startswith("#")
)
OWN = [name for name in COMPOSE if name.startswith("cachefs")]


@pytest.mark.parametrize("name", OWN)
def test_layout_is_a_whole_configuration_and_its_mountpoint_lies_in_what_is_shared(name: str) -> None:
    service = COMPOSE[name]
    config = build({}, Path("/"), service["environment"] | {"CACHEFS_PLEX_TOKEN": "token"}, name)
    [shared] = [volume.split(":") for volume in service["volumes"] if volume.endswith(":rshared")]
    assert config.mountpoint.is_relative_to(shared[1])
    assert str(config.mountpoint) != shared[1]  # else a dead mount could not be cleared
    plex = COMPOSE[name.replace("cachefs", "plex")]
    assert plex["depends_on"] == {name: {"condition": "service_healthy"}}
    assert f"{shared[0]}:/data:rslave" in plex["volumes"]
    assert plex["profiles"] == service["profiles"]


def test_unraid_template_is_a_whole_configuration() -> None:
    entries = ElementTree.parse(TEMPLATE).getroot().findall("Config")
    values = {entry.attrib["Target"]: entry.text or "token" for entry in entries if entry.attrib["Type"] == "Variable"}
    config = build({}, Path("/"), values, str(TEMPLATE))
    paths = {entry.attrib["Target"]: entry for entry in entries if entry.attrib["Type"] == "Path"}
    assert "shared" in paths[str(config.mountpoint.parent)].attrib["Mode"]
    assert {str(config.sources[0].path), str(config.cache.path)} <= paths.keys()


def test_every_dependency_is_locked_in_a_version_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    names = {re.split(r"[^a-z0-9-]", line.lower())[0] for line in asked}
    assert names <= PINS.keys()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values())


def test_image_ends_on_sigterm_and_knows_its_health() -> None:
    final = DOCKERFILE.split("FROM ${BASE}")[-1]
    assert "STOPSIGNAL SIGTERM" in final
    assert '["cachefs", "status", "--healthy"]' in final
    assert "gcc" not in final
