"""The keeper's judgement of its server: what was said through the lifeline, and what follows from an end.

Real processes stand in for the server; nothing is mounted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefs import keeper, lifeline, logs
from cachefs.announce import Announcer
from cachefs.config import Config, build
from cachefs.errors import UserError
from cachefs.keeper import Keeper
from cachefs.lifeline import Lifeline, Word
from cachefs.processes import code_in


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = {
        "mountpoint": str(tmp_path / "mount"),
        "sources": [{"path": str(tmp_path / "media")}],
        "cache": {"path": str(tmp_path / "ssd")},
        "control": {"socket": str(tmp_path / "socket")},
    }
    return build(data, tmp_path, {}, "test")


class Scripted(Keeper):
    """A keeper whose servers are Python scripts, one after the other."""

    def __init__(self, config: Config, scripts: list[str], announcer: Announcer | None = None) -> None:
        super().__init__(Path("unused.yaml"), config, announcer)
        self.scripts = scripts

    def _start(self) -> keeper._Server:
        out, into = os.pipe2(os.O_CLOEXEC)
        environment = {**os.environ, lifeline.DESCRIPTOR: str(into)}
        script = f"import os, signal, sys\nsay = lambda *words: os.write({into}, ''.join(words).encode())\n"
        process = subprocess.Popen(
            [sys.executable, "-c", script + self.scripts.pop(0)], env=environment, pass_fds=(into,)
        )
        os.close(into)
        return keeper._Server(process, out)


Judge = Callable[..., int]


@pytest.fixture
def judge(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """Run a keeper over servers with these scripts to its end; all of them must be used."""
    monkeypatch.setattr(keeper, "_RESTART_AFTER_S", (0.0,))

    def run(*scripts: str) -> int:
        scripted = Scripted(config, list(scripts))
        code = scripted.run()
        assert not scripted.scripts
        return code

    yield run
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


READY, GONE = "say('ready\\n');", "say('gone\\n');"


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_server_that_never_was_ready_ends_the_keeper_with_its_code(judge: Judge, code: int) -> None:
    assert judge(f"sys.exit({code})") == code
    assert judge(f"{GONE} sys.exit({code})") == code


def test_a_server_that_is_killed_before_it_was_ready_is_one_with_a_word_of_it(
    judge: Judge, caplog: pytest.LogCaptureFixture, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server ended with signal SIGKILL; dmesg says whether")
    assert judge("os.kill(os.getpid(), signal.SIGKILL)") == 1
    assert "out of memory" in caplog.text


def test_a_configuration_that_can_be_read_once_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "set_up", lambda: None)  # the tests have a log of their own
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe, and each server that is started reads"):
        keeper.run(tmp_path / "pipe", Announcer())


def test_an_unmount_ends_the_keeper_with_0(judge: Judge) -> None:
    assert judge(f"{READY} {GONE} sys.exit(0)") == 0


def test_words_may_arrive_in_pieces(judge: Judge) -> None:
    assert judge("say('rea'); say('dy\\ngo'); say('ne\\n'); sys.exit(0)") == 0


def test_a_server_that_crashed_is_started_until_it_can_be(judge: Judge, expected_warnings: list[str]) -> None:
    expected_warnings += ["the server ended with exit code 1", "the server could not start again: .* exit code 3"]
    assert judge(f"{READY} {GONE} sys.exit(1)", "sys.exit(3)", "sys.exit(3)", f"{READY} {GONE}") == 0


def test_a_killed_server_is_started_again(judge: Judge, expected_warnings: list[str]) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    assert judge(f"{READY} os.kill(os.getpid(), signal.SIGKILL)", f"{READY} {GONE}") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_as_sigterm_and_ends_it_with_0(judge: Judge, number: signal.Signals) -> None:
    tell_keeper = f"os.kill(os.getppid(), {int(number)})"
    assert judge(f"{READY} {tell_keeper}; signal.pause()") == 0


def test_a_server_that_ignores_the_signal_is_killed(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the server did not stop within 0.2 s; taking the mount away")
    monkeypatch.setattr(keeper, "STOP_WITHIN_S", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGTERM)"
    assert judge(f"{READY} {deaf}\nwhile True: signal.pause()") == 0


def test_a_server_that_is_gone_but_cannot_end_is_not_waited_for(judge: Judge, expected_warnings: list[str]) -> None:
    expected_warnings.append("has unmounted and does not end")
    assert judge(f"{READY} {GONE} signal.pause()") == 0


def test_a_dead_first_thread_is_a_dead_process(tmp_path: Path) -> None:
    """Field 3 of proc_pid_stat(5) is the state, after a name that may hold anything; the last is what waitpid says."""
    stat = tmp_path / "stat"
    for text, code in (
        ("1 (a) S 0 0", None),
        ("1 (a) D 0 9", None),
        ("1 (a) Z) R 0 0", None),
        ("1 (a) Z 0 768", 3),
        ("1 (a) Z 0 9", -9),
        ("1 (a) X 0 0", 0),
    ):
        stat.write_text(text)
        assert code_in(stat) == code
    assert code_in(tmp_path / "nothing") is None


# --- the server's end of the line ------------------------------------------------------------------------------------


def test_without_a_keeper_the_line_is_silent() -> None:
    assert Lifeline.from_environment({}) == Lifeline(None)
    Lifeline().say(Word.READY)


def test_words_go_line_by_line_to_a_keeper_that_may_be_gone() -> None:
    out, into = os.pipe()
    line = Lifeline.from_environment({lifeline.DESCRIPTOR: str(into)})
    line.say(Word.READY)
    line.say(Word.GONE)
    assert os.read(out, 100) == b"ready\ngone\n"
    os.close(out)
    line.say(Word.GONE)
    os.close(into)


def test_a_server_whose_keeper_is_dead_already_gets_sigterm() -> None:
    """It died between starting the server and the server's wish to be told."""
    script = "import os; from cachefs import lifeline; lifeline.die_with_keeper({lifeline.KEEPER: '1'}); os.read(0, 1)"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        assert process.stdin is not None
        process.stdin.close()
