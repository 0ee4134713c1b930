"""The command line as a process: exit codes, streams, pipes, and a daemon that answers on a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click.testing
import pytest
import trio

from cachefs import cli, fstab, keeper, mounts
from cachefs.announce import Announcer
from cachefs.control import wire
from cachefs.control.api import listen
from cachefs.errors import CannotMount
from cachefs.model import CacheEntry, Explanation, FileKey, Pin, Plan, Status, Visible
from cachefs.restoration import HomeReport, NotHome
from cachefs.verification import Finding, Flaw, Report
from tests.engine.fake_engine import LATIN1, LONG, MEDIA, FakeEngine, FakeRestoration, FakeVerification, serve

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A configuration whose folders exist, and where it is."""

    folder: Path
    file: Path
    mountpoint: Path
    socket: Path

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``cachefs`` as a process of its own."""
        return subprocess.run(
            command(*arguments),
            cwd=self.folder,
            env=environment(**environ),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cachefs", *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CACHEFS_")}
    return kept | {"PYTHONPATH": os.fspath(ROOT), "PYTHONUTF8": "1"} | more


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path, tmp_path / "cachefs.yaml", tmp_path / "mnt", tmp_path / "run" / "c.sock")
    for name in ("mnt", "media", "ssd"):
        (tmp_path / name).mkdir()
    (tmp_path / "media" / "film.mkv").write_text("film")
    found.file.write_text(
        f"mountpoint: {found.mountpoint}\nsources: [{{path: {tmp_path}/media, name: Media}}]\n"
        f"cache: {{path: {tmp_path}/ssd}}\ncontrol: {{socket: {found.socket}}}\n"
    )
    return found


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


class Here:
    """``cachefs`` in this process: as good as one of its own where no stream, signal or exit matters, and faster."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        code = cli.run(arguments)
        said = self._capsys.readouterr()
        return Outcome(code, said.out, said.err)


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(place.folder)
    for name in [name for name in os.environ if name.startswith("CACHEFS_")]:
        monkeypatch.delenv(name)
    return Here(capsys)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@asynccontextmanager
async def daemon(engine: FakeEngine, place: Place) -> AsyncIterator[None]:
    engine.answer_status = replace(engine.answer_status, mountpoint=str(place.mountpoint))
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, engine, place.socket))
            yield
            nursery.cancel_scope.cancel()


async def ask(place: Place, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return await trio.to_thread.run_sync(partial(place.run, *arguments, **environ), abandon_on_cancel=True)


# --- without a daemon ------------------------------------------------------------------------------------------------


def test_version_is_said(place: Place) -> None:
    done = place.run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("cachefs ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["ls"],
        ["pin", "--list"],
        ["pin", "x"],
        ["unpin", "x"],
        ["evict", "x"],
        ["copy", "x"],
        ["explain", "x"],
        ["verify"],
        ["verify", "x", "--content", "--repair", "--json"],
    ],
)
def test_no_daemon_is_said_and_is_two(place: Place, here: Here, arguments: list[str]) -> None:
    done = here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cachefs: no cachefs daemon answers on {place.socket}; `cachefs mount` starts one\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stat"], "No such command"),
        (["pin"], "name what to pin, or say --list"),
        (["pin", "--list", "x"], "name what to pin, or say --list"),
        (["status", "--watch", "--healthy"], "say --watch or --healthy, not both"),
        (["evict"], "Missing argument"),
        (["ls", "-c", "none.yaml"], "none.yaml: there is no such file"),
    ],
)
def test_wrong_usage_is_two(place: Place, here: Here, arguments: list[str], said: str) -> None:
    done = here(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_every_problem_of_the_configuration_is_said_at_once(place: Place, here: Here) -> None:
    place.file.write_text("mountpoint: ''\nsource: []\n")
    done = here("status")
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("cachefs: ")]) >= 3
    assert "sources" in done.stderr


def test_no_configuration_at_all_says_where_it_was_looked_for(place: Place, here: Here) -> None:
    place.file.unlink()
    done = here("ls")
    assert done.returncode == 2
    assert "neither cachefs.yaml nor /etc/cachefs/cachefs.yaml exists" in done.stderr


def test_the_environment_alone_is_enough(place: Place) -> None:
    place.file.unlink()
    done = place.run(
        "ls",
        CACHEFS_MOUNTPOINT=str(place.mountpoint),
        CACHEFS_SOURCES=f"[{{path: {place.folder}/media}}]",
        CACHEFS_CACHE__PATH=f"{place.folder}/ssd",
        CACHEFS_CONTROL__SOCKET=f"{place.folder}/other.sock",
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"cachefs: no cachefs daemon answers on {place.folder}/other.sock")


def test_a_plan_needs_no_daemon(place: Place, here: Here) -> None:
    done = here("plan")
    assert (done.returncode, done.stderr) == (0, "daemon not running; this is what it would plan\n")
    assert done.stdout == "copy: nothing\nevict: nothing\nkeep: nothing\n"


def test_unmount_of_nothing_says_so(place: Place, here: Here) -> None:
    done = here("unmount")
    assert (done.returncode, done.stdout) == (
        0,
        f"daemon not running, and nothing is mounted at {place.mountpoint}\n",
    )


@pytest.fixture
def foreign_mount(place: Place) -> Iterator[None]:
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "none", place.mountpoint], check=False).returncode:
        pytest.skip("no right to mount here")
    yield
    mounts.unmount(place.mountpoint, force=False)


@pytest.mark.usefixtures("foreign_mount")
def test_unmount_leaves_what_is_not_ours(place: Place, here: Here) -> None:
    done = here("unmount")
    assert done.returncode == 2
    assert "is tmpfs, not cachefs: left alone" in done.stderr
    assert mounts.mounted_at(place.mountpoint) is not None


def test_where_nothing_can_be_written_it_is_two_and_no_bug(place: Place) -> None:
    program = [sys.executable, "-m", "cachefs", "check", "-c", str(place.file)]
    asked = partial(
        subprocess.run, program, env=environment(), stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = asked(stdout=full)
    assert (done.returncode, done.stderr) == (2, "cachefs: the output cannot be written: No space left on device\n")
    program[3:4] = ["unpin", "film.mkv"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert asked(stdout=full, stderr=full).returncode == 2
    done = asked(preexec_fn=lambda: os.close(1))
    assert "Traceback" not in done.stderr


def test_whoever_stands_in_a_folder_that_is_gone_is_answered(place: Place) -> None:
    gone = place.folder / "gone"
    gone.mkdir()
    here = ["sh", "-c", 'rmdir "$PWD"; exec "$0" -m cachefs "$@"', sys.executable]
    for arguments, said in (
        (["plan", "-c", "x.yaml"], "cachefs: /x.yaml: there is no such file"),
        (["evict", "film.mkv", "-c", str(place.file)], "cachefs: no cachefs daemon answers"),
    ):
        done = subprocess.run(
            here + arguments, cwd=gone, env=environment(), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith(said)
        gone.mkdir()


def test_a_bug_is_one_with_its_traceback_and_a_request_to_report_it(place: Place) -> None:
    program = (
        "import sys; from cachefs import cli; from cachefs.commands import shared; "
        "shared.load = lambda given: 1 / 0; sys.argv = ['cachefs', 'ls']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("this is a bug in cachefs; please report it with the lines above.")


def test_cannot_mount_is_three(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config_file: Path, announcer: Announcer) -> int:
        raise CannotMount(f"{config_file}: /dev/fuse is missing")

    monkeypatch.setattr(keeper, "run", refuse)
    assert cli.run(["mount", "-c", str(place.file)]) == 3
    assert capsys.readouterr().err == f"cachefs: {place.file}: /dev/fuse is missing\n"


# --- with a daemon ---------------------------------------------------------------------------------------------------


async def test_every_show_has_json_with_the_fields_names(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        status = await ask(place, "status", "--json")
        entries = await ask(place, "ls", "--json")
        made = await ask(place, "plan", "--json")
        pins = await ask(place, "pin", "--list", "--json")
        explanation = await ask(place, "explain", "--json", "film.mkv")
    assert wire.loads(Status, status.stdout) == engine.answer_status
    assert wire.loads(tuple[CacheEntry, ...], entries.stdout) == engine.answer_entries
    assert wire.loads(Plan, made.stdout) == engine.answer_plan
    assert made.stderr == "plex: no answer within 60 s\n", "on which the plan rests"
    assert wire.loads(tuple[Pin, ...], pins.stdout) == engine.answer_pins
    assert wire.loads(Explanation, explanation.stdout).path == "film.mkv"
    assert json.loads(entries.stdout)[1]["state"] == "copying"


async def test_tables_keep_long_paths_and_escape_the_rest(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "ls", PYTHONUTF8="0", LC_ALL="C", PYTHONIOENCODING="ascii:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert any(line.endswith(f"  {LONG}") for line in done.stdout.splitlines())
    assert any(line.endswith(r"  Films/Am\xe9lie.mkv") for line in done.stdout.splitlines())


async def test_a_cache_that_is_away_is_not_called_empty(engine: FakeEngine, place: Place) -> None:
    engine.answer_entries = ()
    engine.answer_status = replace(engine.answer_status, cache_problem="the SSD is away")
    async with daemon(engine, place):
        done = await ask(place, "ls")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is cached now\n", "cachefs: the SSD is away\n")


async def test_undecodable_names_reach_the_daemon_and_come_back(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "evict", LATIN1, "--json")
        text = await ask(place, "evict", LATIN1)
    assert engine.asked == [("evict", LATIN1)] * 2
    assert json.loads(done.stdout) == [{"source": "Media", "path": LATIN1}]
    assert text.stdout == "evicted: Films/Am\\xe9lie.mkv\n"


def test_what_a_terminal_would_obey_is_escaped_in_errors(place: Place, here: Here) -> None:
    done = here("evict", "a\x9b31m\u202eb", "-c", "no\x07such.yaml")
    assert done.returncode == 2
    assert r"no\x07such.yaml" in done.stderr


async def test_the_users_errors_are_two_and_the_rest_is_done(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "evict", "open.mkv", "other.mkv")
    assert done.returncode == 2
    assert done.stderr == "cachefs: open.mkv is open; it stays until it is closed\n"
    assert done.stdout == "evicted: other.mkv\n"


async def test_what_evict_leaves_and_what_a_pin_has_no_room_for_are_said(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        evicted = await ask(place, "evict", "Series")
        pinned = await ask(place, "pin", "large.mkv")
    assert (evicted.returncode, evicted.stdout) == (0, "evicted: Series\n")
    assert evicted.stderr == "cachefs: b.mkv stays: it is pinned\n"
    assert (pinned.returncode, pinned.stdout) == (0, "pinned: large.mkv\n")
    assert pinned.stderr == "cachefs: 1 pinned file cannot be copied now\n"


@pytest.mark.expected_warnings("Error in ASGI Framework")
async def test_a_bug_of_the_daemon_is_one(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "explain", "bug")
    assert done.returncode == 1
    assert done.stderr == "cachefs: ZeroDivisionError in the daemon; its log has the details\n"


async def test_the_whole_mount_is_pinned_under_the_name_that_the_list_shows(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        pinned = await ask(place, "pin", "")
    assert pinned.stdout == "pinned: /\n"


async def test_unpinning_what_is_not_pinned_is_two(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        fine = await ask(place, "unpin", "Series")
        wrong = await ask(place, "unpin", "Other")
    assert (fine.returncode, fine.stdout) == (0, "no longer pinned: Series\n")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "cachefs: Other is not pinned; cachefs pin --list shows what is\n",
    )


async def test_copy_waits_until_the_file_is_cached_and_says_once_why(engine: FakeEngine, place: Place) -> None:
    engine.answer_status = replace(engine.answer_status, copies=())
    engine.states = [Visible.SOURCE, Visible.PARTIAL, Visible.CACHED]
    engine.waiting = "the SSD fails"
    async with daemon(engine, place):
        done = await ask(place, "copy", "film.mkv")
    assert (done.returncode, done.stdout) == (0, "cached: film.mkv\n")
    assert engine.asked == [("copy", "film.mkv")] + [("explain", "film.mkv")] * 3
    assert done.stderr == "waiting: the SSD fails\n"


async def test_copy_that_is_given_up_is_two_with_the_reason(engine: FakeEngine, place: Place) -> None:
    engine.states = [Visible.PARTIAL, Visible.SOURCE]
    engine.answer_status = replace(engine.answer_status, copies=())
    async with daemon(engine, place):
        done = await ask(place, "copy", "film.mkv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "cachefs: film.mkv was not copied: on deck for Ann\n"


async def test_copy_need_not_wait(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "copy", "--no-wait", "film.mkv")
    assert (done.returncode, done.stdout) == (0, "copying: film.mkv\n")
    assert engine.asked == [("copy", "film.mkv")]


async def test_a_name_that_leads_into_the_mount_from_here_is_meant_so(engine: FakeEngine, place: Place) -> None:
    inside = replace(place, folder=place.mountpoint / "Films")
    inside.folder.mkdir()
    (inside.folder / "Heat.mkv").write_text("")
    async with daemon(engine, place):
        await ask(inside, "explain", "-c", str(place.file), "Heat.mkv", PWD="/")
        await ask(inside, "pin", "-c", str(place.file), "Heat.mkv", PWD="/")
        await ask(inside, "pin", "-c", str(place.file), "Severance", PWD="/")
        await ask(place, "explain", "mnt/Films/Heat.mkv", PWD="/")
    absolute = str(inside.folder / "Heat.mkv")
    assert engine.asked == [("explain", absolute), ("pin", absolute), ("pin", "Severance"), ("explain", absolute)]


UNSOUND = Finding(Flaw.UNEQUAL, "/ssd/files/Media/x", FileKey(MEDIA, LATIN1), "from byte 5 on")
MENDED = Finding(Flaw.LEFTOVER, "/ssd/partial/7", mended="removed")


@pytest.mark.parametrize(("findings", "code"), [((), 0), ((MENDED,), 0), ((MENDED, UNSOUND), 4)])
async def test_what_verify_finds_and_does_not_mend_is_four(
    engine: FakeEngine, place: Place, findings: tuple[Finding, ...], code: int
) -> None:
    engine.answer_verification = FakeVerification(*findings)
    async with daemon(engine, place):
        done = await ask(place, "verify")
        as_json = await ask(place, "verify", "--content", "--repair", "--json", "Films")
    assert (done.returncode, as_json.returncode, done.stderr) == (code, code, "")
    assert wire.loads(Report, as_json.stdout) == engine.answer_verification.report
    assert engine.asked == [("verify content=False repair=False", ""), ("verify content=True repair=True", "Films")]


async def test_verify_says_what_is_wrong_where_and_what_to_do(engine: FakeEngine, place: Place) -> None:
    engine.answer_verification = FakeVerification(UNSOUND, MENDED)
    async with daemon(engine, place):
        done = await ask(place, "verify")
    assert done.stdout.splitlines() == [
        "Films/Am\\xe9lie.mkv",
        "  its bytes are not those of its source (from byte 5 on): cachefs verify --repair drops the copy; it is made "
        "again if the file is still wanted",
        "/ssd/partial/7",
        "  no copy accounts for it: removed",
        "2 files verified in 1.5s, 10 B compared: 2 found, 1 mended",
    ]


@pytest.mark.parametrize(
    ("report", "arguments", "code", "said"),
    [
        (HomeReport((), ()), ["--all"], 0, "nothing is moved: every file is at its source\n"),
        (HomeReport((), ()), ["Films"], 0, "nothing below Films is moved\n"),
        (HomeReport((), ()), ["nope"], 2, "cachefs: nope: no such file or folder in the mount\n"),
        (HomeReport((FileKey(MEDIA, "a.mkv"),), ()), ["--all"], 0, "restored: a.mkv\n"),
        (
            HomeReport((), (NotHome(FileKey(MEDIA, "a.mkv"), "it is open"),)),
            ["a.mkv"],
            4,
            "cachefs: a.mkv stays on the SSD: it is open\n",
        ),
    ],
)
async def test_restore_says_what_came_of_it(
    engine: FakeEngine, place: Place, report: HomeReport, arguments: list[str], code: int, said: str
) -> None:
    engine.answer_restoration = FakeRestoration(report)
    async with daemon(engine, place):
        done = await ask(place, "restore", *arguments)
    assert (done.returncode, done.stdout + done.stderr) == (code, said)


@pytest.mark.parametrize(("mode", "warned"), [("copy", False), ("move", True)])
async def test_who_brings_everything_home_is_told_that_a_start_may_move_it_again(
    engine: FakeEngine, place: Place, mode: str, warned: bool
) -> None:
    engine.answer_restoration = FakeRestoration(HomeReport((FileKey(MEDIA, "a.mkv"),), ()))
    async with daemon(engine, place):
        done = await ask(place, "restore", "--all", CACHEFS_CACHE__MODE=mode)
    assert done.returncode == 0
    assert ("the next start may move files again" in done.stderr) is warned


async def test_unmount_stops_the_daemon(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        done = await ask(place, "unmount")
    assert (done.returncode, done.stdout) == (0, f"the daemon has unmounted {place.mountpoint}\n")
    assert engine.stopped.is_set()


async def test_a_closed_pipe_is_quiet(engine: FakeEngine, place: Place) -> None:
    engine.answer_entries = engine.answer_entries * 2000  # far more than a pipe holds
    shell = 'set -o pipefail; "$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    async with daemon(engine, place):
        done = await trio.to_thread.run_sync(
            partial(
                subprocess.run,
                ["bash", "-c", shell, "bash", *command("ls", "-c", str(place.file))],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=30,
            ),
            abandon_on_cancel=True,
        )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("state")
    assert done.stdout.splitlines()[1] == "141"


async def test_ctrl_c_is_130_without_a_word(engine: FakeEngine, place: Place) -> None:
    engine.answer_status = replace(engine.answer_status, copies=())
    engine.states = [Visible.PARTIAL]  # for ever
    async with daemon(engine, place):
        process = await trio.lowlevel.open_process(
            # A shell that runs the tests in the background has made them, and all they start, deaf to SIGINT.
            ["env", "--default-signal=INT", *command("explain", "-c", str(place.file), "hang")],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await engine.hang.wait()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        assert (await process.stderr.receive_some()).strip() == b""


async def test_watching_goes_on_until_the_daemon_ends(engine: FakeEngine, place: Place) -> None:
    async with daemon(engine, place):
        process = await trio.lowlevel.open_process(
            command("status", "--json", "--watch", "-c", str(place.file)),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        seen = b""
        while seen.count(b"\n") < 2:
            seen += await process.stdout.receive_some()
    with trio.fail_after(20):
        assert await process.wait() in (1, 2)
    assert [wire.loads(Status, line) for line in seen.splitlines()[:2]] == [engine.answer_status] * 2


def test_the_list_of_commands_says_each_in_one_whole_sentence() -> None:
    listed = (
        click.testing.CliRunner().invoke(cli.commands, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    )
    sentences = [line for line in listed.splitlines() if line.strip()]
    assert len(sentences) > 10
    assert all(line.endswith(".") and not line.endswith("...") for line in sentences)


def test_help_of_every_command_is_there(place: Place) -> None:
    runner = click.testing.CliRunner()
    for name, found in cli.commands.commands.items():
        outcome = runner.invoke(cli.commands, [name, "--help"])
        assert outcome.exit_code == 0
        assert found.help is not None
        assert ("CONFIG" if name == fstab.COMMAND else "--config FILE") in outcome.output


def test_a_stale_socket_is_no_daemon(place: Place) -> None:
    listen(place.socket).close()
    assert place.run("ls").returncode == 2
