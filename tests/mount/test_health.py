"""``cachefs status --healthy`` and the word to the service manager: right at the right moments."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs import health
from cachefs.config import load
from tests.mount.lives import kill_both, settings_in, wait_until
from tests.standin.running import RunningCachefs

Start = Callable[[dict[str, Any]], RunningCachefs]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(b"film")
        yield made


def test_it_is_healthy_exactly_while_the_mount_and_the_server_answer(
    settings: dict[str, Any], start_mount: Start, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    running = start_mount(settings)
    healthy = running.run("status", "--healthy")
    assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "healthy\n", "")

    told = running.run("status", "--healthy", "--json")
    assert (told.returncode, json.loads(told.stdout)) == (0, {"healthy": True, "problem": ""})

    config = load(running.config, {})
    server = running.status().pid
    with monkeypatch.context() as patched:
        patched.setattr(health, "WITHIN_S", 0.2)
        os.kill(server, signal.SIGSTOP)
        assert "does not answer within 0.2 s" in health.problem(config)
        os.kill(server, signal.SIGCONT)
    assert health.problem(config) == ""

    kill_both(running)
    dead = running.run("status", "--healthy")
    assert (dead.returncode, dead.stderr) == (1, "")
    assert "unhealthy: the mount at" in dead.stdout
    assert "is dead" in dead.stdout

    again = start_mount(settings)
    wait_until(again, lambda: health.problem(config) == "", "it is healthy again")
    assert again.terminate() == 0
    assert f"is not mounted at {again.mountpoint}" in health.problem(config)


def test_without_a_usable_configuration_it_is_unhealthy_too(tmp_path: Path) -> None:
    """Container engines know 0 and 1 only."""
    nothing = tmp_path / "none.yaml"
    running = RunningCachefs(tmp_path, nothing, tmp_path, nothing, None)  # type: ignore[arg-type]
    assert running.run("status", "--healthy").returncode == 1
