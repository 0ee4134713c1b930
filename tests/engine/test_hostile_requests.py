"""Whatever is sent to the control socket: it is answered or cut off, never obeyed by mistake, and never a bug."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefs.control.api import Engine
from tests.engine.fake_engine import FakeEngine, serve
from tests.engine.plankit import MEDIA, write
from tests.engine.test_engine import ALIEN, HEAT, daemon

ANSWERS_WITHIN_S = 20.0
SHOWS = ("status", "plan", "entries", "pins", "explain")
ACTS = ("pin", "unpin", "evict", "copy", "accept", "verify", "restore")


class Served:
    """An engine behind a control socket, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s"
        self._ready = threading.Event()
        self._end: trio.Event
        self._token: trio.lowlevel.TrioToken

    async def over(self, engine: Engine) -> None:
        self._end, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, engine, self.path))
            self._ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def run(self, main: Any) -> Iterator[Path]:
        thread = threading.Thread(target=trio.run, args=(main,))
        thread.start()
        assert self._ready.wait(ANSWERS_WITHIN_S)
        try:
            yield self.path
        finally:
            self._token.run_sync_soon(self._end.set)
            thread.join(ANSWERS_WITHIN_S)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def fake() -> Iterator[Path]:
    """A socket before an engine that takes anything."""
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        served = Served(Path(folder))
        yield from served.run(lambda: served.over(FakeEngine()))


@pytest.fixture(scope="module")
def real() -> Iterator[Path]:
    """A socket before the daemon's own engine, over a source with links that lead out of it."""
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        write(Path(folder) / MEDIA, HEAT, ALIEN)
        (Path(folder) / "secret").write_text("secret")
        os.symlink("../secret", Path(folder) / MEDIA / "out")
        os.symlink("..", Path(folder) / MEDIA / "up")
        served = Served(Path(folder))

        async def main() -> None:
            async with daemon(Path(folder)) as made:
                with trio.CancelScope():
                    await served.over(made.engine)

        yield from served.run(main)


def exchange(path: Path, request: bytes) -> bytes:
    """All that is answered before the daemon closes; a daemon that hangs is a ``TimeoutError``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWERS_WITHIN_S)
        connection.connect(os.fspath(path))
        answer = b""
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
        except (BrokenPipeError, ConnectionResetError):  # it was cut off
            pass
        return answer


def request(method: bytes, target: bytes, body: bytes = b"") -> bytes:
    head = b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % (method, target, len(body)) + body


def status_of(answer: bytes) -> int:
    """0 where no answer came at all."""
    return int(answer.split(None, 2)[1]) if answer.startswith(b"HTTP/") else 0


def is_well(path: Path) -> bool:
    return status_of(exchange(path, request(b"GET", b"/v1/status"))) == 200


@settings(max_examples=60)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda rest: b"POST /v1/pin HTTP/1.1\r\n" + rest)))
def test_any_bytes_are_answered_or_cut_off(fake: Path, sent: bytes) -> None:
    assert status_of(exchange(fake, sent)) in (0, *range(400, 500))
    assert is_well(fake)


@settings(max_examples=60)
@given(
    st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"X"]),
    st.one_of(
        st.sampled_from([b"*", b"/", b"/v1", b"//v1/pin", b"/v1/pin/", b"/v1/../v1/pin", b"http://x/v1/pin", b"/%00"]),
        st.binary(max_size=20).map(lambda name: b"/v1/" + quote_from_bytes(name).encode()),
        st.sampled_from(SHOWS).map(lambda name: f"/v1/{name}?path=x&path=y".encode()),
    ),
)
def test_any_method_and_path_are_answered(fake: Path, method: bytes, target: bytes) -> None:
    answer = exchange(fake, request(method, target, b'{"text": 1}'))
    assert status_of(answer) in (0, 200, *range(400, 500))
    assert (status_of(answer) == 200) <= (method in (b"GET", b"HEAD"))


bodies = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.dictionaries(st.sampled_from(["text", "content", "repair", "x"]), inner, max_size=3),
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=100)
@example("pin", b"[" * 60_000)
@example("verify", b'{"text":' * 7_000)
@example("evict", b'{"text": "\\ud800"}')
@example("copy", b'{"text": ' + b"9" * 5000 + b"}")
@given(st.sampled_from(ACTS), bodies)
def test_any_body_that_is_no_wish_is_refused(fake: Path, act: str, body: bytes) -> None:
    answer = exchange(fake, request(b"POST", f"/v1/{act}".encode(), body))
    assert status_of(answer) == 400 or (status_of(answer) == 200 and b'"text"' in body)


wishes = st.one_of(
    st.sampled_from(
        ["", ".", "/", "..", "../secret", "/etc/passwd", "/proc/self/mem", "out", "up", "up/secret", "Media"]
    ),
    st.sampled_from(
        [HEAT, f"{HEAT}/x", f"{HEAT}\0", "x" * 300, "x/" * 3000, "a\nb", "\udcff", "\ud800", "\udc00", "nul\0"]
    ),
    st.text(max_size=12),
)


@settings(max_examples=120)
@given(st.sampled_from(["explain", *ACTS]), wishes)
def test_any_wish_is_carried_out_or_refused_in_words(real: Path, act: str, text: str) -> None:
    if act == "explain":
        target = b"/v1/explain?path=" + quote_from_bytes(text.encode("utf-8", "surrogatepass")).encode()
        answer = exchange(real, request(b"GET", target))
    else:
        wish: dict[str, object] = {"text": text}
        if act == "verify":
            wish |= {"content": True, "repair": True}
        answer = exchange(real, request(b"POST", f"/v1/{act}".encode(), json.dumps(wish).encode()))
    assert status_of(answer) in (200, 400)
    assert status_of(answer) == 200 or b'{"error": "' in answer
    if act in ("explain", "copy", "evict", "verify") and any(name in text for name in ("secret", "etc", "proc", "out")):
        assert status_of(answer) == 400
