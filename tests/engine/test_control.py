"""The control socket: a real unix socket, the real hypercorn, the real client, and a fake engine behind them."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from cachefs.control.api import MAX_BODY_BYTES, listen
from cachefs.control.client import Client
from cachefs.errors import CacheError, CachefsError, NotRunning, UserError
from cachefs.model import Evicted, FileKey, Visible
from cachefs.verification import Finding, Flaw, Progress
from tests.engine.fake_engine import LATIN1, LONG, MEDIA, FakeEngine, FakeVerification, serve

T = TypeVar("T")


class Asker:
    """Asks the served engine something through a client of its own, in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __call__(self, question: Callable[[Client], T]) -> T:
        return await trio.to_thread.run_sync(self._blocking, question, abandon_on_cancel=True)

    def _blocking(self, question: Callable[[Client], T]) -> T:
        with Client(self._path) as client:
            return question(client)


@asynccontextmanager
async def served(engine: FakeEngine, path: Path) -> AsyncIterator[Asker]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, engine, path))
            yield Asker(path)
            nursery.cancel_scope.cancel()


def ignore(progress: Progress) -> None:
    """For those who do not watch."""


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def is_socket(path: Path) -> bool:
    return path.is_socket()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cachefs.sock"


async def test_every_show_comes_back_equal(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        assert await ask(Client.status) == engine.answer_status
        assert await ask(Client.plan) == engine.answer_plan
        assert await ask(Client.entries) == engine.answer_entries
        assert await ask(Client.pins) == engine.answer_pins


async def test_a_question_for_another_mount_is_refused_and_nothing_is_done(engine: FakeEngine, path: Path) -> None:
    def ask(mountpoint: str) -> None:
        with Client(path, Path(mountpoint)) as client:
            client.evict("film")

    async with served(engine, path):
        await trio.to_thread.run_sync(ask, str(engine.mountpoint))
        for other in ("/mnt/other", "/mnt/\udcff"):
            with pytest.raises(UserError, match=r"has mounted /mnt/cachefs, not .*control.socket of its own"):
                await trio.to_thread.run_sync(ask, other)
    assert engine.asked == [("evict", "film")]


def test_a_daemon_with_a_full_queue_is_no_daemon_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(os.fspath(path))
        listener.listen(0)
        code = 0
        while code == 0:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            code = waiting.connect_ex(os.fspath(path))
        assert code == errno.EAGAIN
        with Client(path) as client, pytest.raises(CachefsError, match="does not answer") as said:
            client.status(0.2)
    assert not isinstance(said.value, NotRunning)


@pytest.mark.parametrize("text", [LATIN1, LONG, "Tom & Jerry? 100% #1+é/ñ.mkv", "", "a\nb"])
async def test_any_name_reaches_the_engine_unchanged(engine: FakeEngine, path: Path, text: str) -> None:
    async with served(engine, path) as ask:
        explanation = await ask(lambda client: client.explain(text))
        assert (explanation.path, explanation.state) == (text, Visible.CACHED)
        assert (await ask(lambda client: client.pin(text))).pin.target == text
        assert await ask(lambda client: client.copy(text)) == FileKey(MEDIA, text)
        assert await ask(lambda client: client.evict(text)) == Evicted((FileKey(MEDIA, text),))
        assert (await ask(lambda client: client.accept(text))).name == text
    assert engine.asked == [(act, text) for act in ("explain", "pin", "copy", "evict", "accept")]


async def test_unpin_says_whether_there_was_such_a_pin(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        assert await ask(lambda client: client.unpin("Series")) is True
        assert await ask(lambda client: client.unpin("Nothing")) is False


async def test_stop_reaches_the_engine(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        await ask(Client.stop)
    assert engine.stopped.is_set()


async def test_the_users_error_comes_back_with_its_text(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        with pytest.raises(UserError, match=r"open\.mkv is open; it stays until it is closed"):
            await ask(lambda client: client.evict("open.mkv"))


async def test_a_known_failure_is_no_bug_and_has_its_text(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        with pytest.raises(UserError, match=r"^Plex does not answer"):
            await ask(lambda client: client.pin("away"))
        with pytest.raises(UserError, match=r"^source Media: no answer within 30 s$"):
            await ask(lambda client: client.copy("slow.mkv"))


async def test_a_verification_tells_how_far_it_is_and_then_its_report(engine: FakeEngine, path: Path) -> None:
    told: list[Progress] = []
    fake = engine.answer_verification = FakeVerification(Finding(Flaw.LEFTOVER, f"/ssd/{LATIN1}"))
    async with served(engine, path) as ask:
        report = await ask(lambda client: client.verify(LATIN1, True, False, told.append))
    assert report == fake.report
    assert told[0] == fake.progress
    assert engine.asked == [("verify content=True repair=False", LATIN1)]


async def test_a_verification_that_cannot_be_made_says_why(engine: FakeEngine, path: Path) -> None:
    engine.answer_verification.error = CacheError("the cache folder /ssd cannot be listed")
    async with served(engine, path) as ask:
        with pytest.raises(UserError, match=r"^the cache folder /ssd cannot be listed$"):
            await ask(lambda client: client.verify("", False, False, ignore))
        with pytest.raises(UserError, match=r"^nothing: nothing of it is cached$"):
            await ask(lambda client: client.verify("nothing", False, False, ignore))


async def test_a_verification_ends_with_its_client(engine: FakeEngine, path: Path) -> None:
    engine.answer_verification.endless = True
    body = b'{"text": "", "content": false, "repair": false}'
    request = b"POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with served(engine, path):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            connection.sendall(request)
            await engine.answer_verification.running.wait()
        await engine.answer_verification.cancelled.wait()


async def test_a_verification_under_way_does_not_hold_up_the_end(engine: FakeEngine, path: Path) -> None:
    engine.answer_verification.endless = True
    outcome: list[CachefsError] = []

    def verify() -> None:
        with Client(path) as client:
            try:
                client.verify("", False, False, ignore)
            except CachefsError as error:
                outcome.append(error)

    async with trio.open_nursery() as nursery:
        async with served(engine, path):
            nursery.start_soon(trio.to_thread.run_sync, verify)
            await engine.answer_verification.running.wait()
            began = trio.current_time()
        assert trio.current_time() - began < 5
    assert len(outcome) == 1


@pytest.mark.expected_warnings("Error in ASGI Framework")
async def test_a_bug_is_logged_once_with_its_traceback(
    engine: FakeEngine, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(engine, path) as ask:
        with pytest.raises(CachefsError, match="ZeroDivisionError in the daemon") as raised:
            await ask(lambda client: client.explain("bug"))
        assert not isinstance(raised.value, UserError)
        assert await ask(Client.status) == engine.answer_status
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert errors[0].exc_info[0] is ZeroDivisionError


async def test_nothing_is_logged_for_an_ordinary_request(
    engine: FakeEngine, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with served(engine, path) as ask:
        await ask(Client.status)
    assert [record.message for record in caplog.records if record.name.startswith(("cachefs", "hypercorn"))] == [
        f"control socket ready: {path}"
    ]


def exchange(path: Path, request: bytes) -> bytes:
    """What a foreign program that speaks HTTP gets."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(os.fspath(path))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def post(body: bytes) -> bytes:
    return b"POST /v1/pin HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("request_bytes", "status", "said"),
    [
        (post(b"x" * (MAX_BODY_BYTES + 1)), b"413", b"65536 bytes"),
        (post(b'{"text": 3}'), b"400", b"text: is no str"),
        (post(b"{"), b"400", b"is not JSON"),
        (post(b'{"text": "\xff"}'), b"400", b"is not JSON"),
        (b"GET /v1/pin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"405", b"Method Not Allowed"),
        (b"POST /v1/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"405", b"Method Not Allowed"),
        (b"GET /v2/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404", b"Not Found"),
        (b"GET /v1/explain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"400", b"needs one path"),
    ],
)
async def test_a_wrong_request_is_answered_not_obeyed(
    engine: FakeEngine, path: Path, request_bytes: bytes, status: bytes, said: bytes
) -> None:
    async with served(engine, path):
        answer = await trio.to_thread.run_sync(exchange, path, request_bytes, abandon_on_cancel=True)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'{"error": ' in answer
    assert said in answer
    assert engine.asked == []


async def test_whoever_ends_in_the_middle_of_a_question_is_no_bug(
    engine: FakeEngine, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def end_early() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            connection.sendall(post(b"{" + bytes(100))[:-50])

    async with served(engine, path) as ask:
        for _ in range(5):
            await trio.to_thread.run_sync(end_early)
        assert await ask(Client.status) == engine.answer_status
    assert engine.asked == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_socket_is_its_owners_only_and_gone_at_the_end(engine: FakeEngine, path: Path) -> None:
    path = path.parent / "deeper" / "s"
    before = os.umask(0)
    try:
        async with served(engine, path):
            assert mode(path) == 0o600
            assert [mode(folder) for folder in path.parents][:2] == [0o700, 0o700], "of all that were made for it"
    finally:
        os.umask(before)
    assert os.listdir(path.parent) == []


async def test_a_dead_daemons_socket_is_replaced(engine: FakeEngine, path: Path) -> None:
    listen(path).close()
    assert is_socket(path)
    async with served(engine, path) as ask:
        assert await ask(Client.status) == engine.answer_status


async def test_a_living_daemon_keeps_its_socket(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path) as ask:
        with pytest.raises(UserError, match="another cachefs daemon answers"):
            await serve(FakeEngine(), path)
        assert await ask(Client.status) == engine.answer_status


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(UserError, match="is no socket"):
        listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 200, "file/below.sock"])
def test_an_impossible_path_is_the_users_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"control\.socket: cannot listen"):
        listen(tmp_path / name)


@pytest.mark.parametrize("planted", ["anybody's", "a link"])
def test_a_folder_that_somebody_has_planted_where_all_may_make_one_is_refused(tmp_path: Path, planted: str) -> None:
    shared, ours = tmp_path / "shared", tmp_path / "ours"
    for folder, mode in ((shared, 0o1777), (ours, 0o700)):
        folder.mkdir()
        folder.chmod(mode)
    listen(shared / "by us" / "c.sock").close()
    folder = shared / "cachefs-1"
    if planted == "a link":
        folder.symlink_to(ours)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(UserError, match=r"control\.socket: .* is not a folder that only you can change"):
        listen(folder / "cachefs.sock")
    assert not [*folder.iterdir()]


async def test_a_successors_socket_is_not_removed(engine: FakeEngine, path: Path) -> None:
    async with served(engine, path):
        os.unlink(path)
        successor = listen(path)
    with successor:
        assert is_socket(path)


@pytest.mark.parametrize("leave_stale", [False, True])
def test_nobody_there_is_said(path: Path, leave_stale: bool) -> None:
    if leave_stale:
        listen(path).close()
    with Client(path) as client:
        for question in (Client.status, Client.stop):
            with pytest.raises(NotRunning, match="no cachefs daemon answers"):
                question(client)


async def test_an_answer_under_way_does_not_hold_up_the_end(engine: FakeEngine, path: Path) -> None:
    outcome: list[BaseException] = []
    told = threading.Event()

    def wait_for_answer() -> None:
        with Client(path) as client:
            try:
                client.explain("hang")
            except CachefsError as error:
                outcome.append(error)
        told.set()

    async with served(engine, path):
        thread = threading.Thread(target=wait_for_answer, daemon=True)
        thread.start()
        await engine.hang.wait()
        began = trio.current_time()
    assert trio.current_time() - began < 5
    assert await trio.to_thread.run_sync(told.wait, 5)
    assert len(outcome) == 1


async def test_a_client_that_stopped_reading_does_not_hold_up_the_end(engine: FakeEngine, path: Path) -> None:
    engine.answer_entries = engine.answer_entries * 20_000  # far more than a socket's buffer
    with socket.socket(socket.AF_UNIX) as connection:
        async with served(engine, path):
            connection.connect(os.fspath(path))
            connection.sendall(b"GET /v1/entries HTTP/1.1\r\nHost: x\r\n\r\n")
            reader = trio.socket.from_stdlib_socket(connection.dup())
            with reader:
                assert await reader.recv(1) == b"H"
            began = trio.current_time()
        assert trio.current_time() - began < 5
