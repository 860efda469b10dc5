"""The way back to a client, and what we rely on of aiohttp without its promise, over real sockets.

When a new aiohttp release fails here, `llmgateway/http/downstream.py` is what has to follow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web
from msgspec.structs import replace

from llmgateway.api.dialect import SSE
from llmgateway.errors import UPSTREAM_ERROR, GatewayError
from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd
from llmgateway.http.downstream import ClientConnection
from llmgateway.http.headers import AnswerHead, answer_head
from llmgateway.http.server import ClientServer
from tests.guard import HANG_S
from tests.journey import KEY, eventually
from tests.raw_client import Ending, RawClient, Response, request

Work = Callable[[Client, web.BaseRequest], Awaitable[None]]
JSON = AnswerHead(b"Content-Type: application/json\r\n", None)
EVENTS = AnswerHead(b"Content-Type: text/event-stream\r\n", None, SSE, may_grow=True)
GET = request("GET", "/")
PATIENT = Patience()


class Serving:
    """A server with one handler, and the connection that a test looks at."""

    def __init__(self, server: ClientServer, port: int) -> None:
        self.port = port
        self._server = server

    async def connection(self) -> Any:
        """The one connection, with everything in it that is nobody's business."""
        await eventually(lambda: self._server.connections)
        return cast(ClientConnection, self._server.connections[0])


@asynccontextmanager
async def serving(work: Work, patience: Patience = PATIENT) -> AsyncIterator[Serving]:
    async def answer(client: Client) -> None:
        client.request_id = "id-1"
        try:
            await work(client, client.request)
        except GatewayError as error:
            client.fail(error)

    server = ClientServer(answer, patience, Crowd(100, time.monotonic))
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Serving(server, listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        async with asyncio.timeout(HANG_S):
            await server.shutdown(1)
            await listener.wait_closed()


async def ask(work: Work, *sent: bytes, patience: Patience = PATIENT) -> Response:
    """Send these packets; give the answer."""
    async with serving(work, patience) as here, RawClient(here.port) as client:
        await client.send(*sent, pause_s=0.01)
        return await client.response()


async def talk(work: Work, *sent: bytes) -> tuple[Response, Ending]:
    """Send these packets; give the answer, and how the connection ended if it was not kept (OPEN)."""
    async with serving(work) as here, RawClient(here.port) as client:
        await client.send(*sent, pause_s=0.01)
        response = await client.response()
        ending = Ending.OPEN
        if (response.header("connection") or "").lower() == "close":
            ending = await client.closed()
        return response, ending


async def greet(client: Client, _: web.BaseRequest) -> None:
    client.respond(200, b'"hello"')


async def echo(client: Client, _: web.BaseRequest) -> None:
    client.respond(200, bytes(await client.body.read(1_000_000)))


# --- what aiohttp does not promise ---------------------------------------------------------------------


async def test_an_idle_connection_has_a_waiter_no_messages_and_no_request() -> None:
    async with serving(greet) as here, RawClient(here.port):
        connection = await here.connection()
        assert isinstance(connection, ClientConnection)
        await eventually(lambda: connection._waiter is not None)
        assert not cast(Any, connection)._waiter.done()
        assert not connection._messages
        assert connection._current_request is None
        assert connection._keepalive_timeout == PATIENT.silent_s


async def test_a_busy_connection_has_a_request_no_waiter_and_queues_what_follows() -> None:
    gate, busy = asyncio.Event(), asyncio.Event()

    async def work(client: Client, request: web.BaseRequest) -> None:
        connection: Any = request.protocol
        assert connection._current_request is client.body
        assert connection._waiter is None
        busy.set()
        await gate.wait()
        await greet(client, request)

    async with serving(work) as here, RawClient(here.port) as client:
        await client.send(GET)
        await busy.wait()
        await client.send(GET)
        connection = await here.connection()
        await eventually(lambda: len(connection._messages) == 1)
        gate.set()
        assert [(await client.response()).status for _ in range(2)] == [200, 200]


async def test_a_client_that_leaves_cancels_its_handler() -> None:
    busy, cancelled = asyncio.Event(), asyncio.Event()

    async def work(*_: object) -> None:
        busy.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(work) as here:
        async with RawClient(here.port) as client:
            await client.send(GET)
            await busy.wait()
        async with asyncio.timeout(HANG_S):
            await cancelled.wait()


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {KEY}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: x\r\nX: {KEY * 500}\r\n\r\n".encode(),
        f"GET /{KEY * 500} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"GET / HTTP/1.1 {KEY}\r\nHost: x\r\n\r\n".encode(),
        request("POST", "/", "Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n",
        request("POST", "/", "Content-Length: 2", "Content-Length: 3") + b"ok!",
        request("POST", "/", "Content-Length: -2"),
    ],
    ids=lambda sent: repr(sent[:40]),
)
async def test_what_is_not_http_gets_our_envelope_and_is_neither_quoted_nor_logged(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    response, ending = await talk(greet, sent)
    assert response.status == 400
    assert response.header("x-gateway-error") == response.json["error"]["type"] == "invalid_request"
    assert KEY.encode() not in response.body
    assert KEY not in caplog.text
    assert "Traceback" not in caplog.text
    assert ending in (Ending.CUT, Ending.RESET)


class Held:
    """A flow that says when it is held back."""

    def __init__(self) -> None:
        self.paused, self.resumed = asyncio.Event(), asyncio.Event()

    def pause(self) -> None:
        self.paused.set()

    def resume(self) -> None:
        self.resumed.set()


async def test_a_client_that_does_not_read_holds_the_flow_until_it_reads() -> None:
    flow = Held()
    size = 8_000_000

    async def work(client: Client, _: web.BaseRequest) -> None:
        with client.holding(flow):
            client.begin(200, b"", JSON)
            client.feed(b"x" * size, final=False)
            await flow.resumed.wait()
            client.feed(b"", final=True)

    async with serving(work) as here, RawClient(here.port, receive_buffer=4096) as client:
        await client.send(GET)
        async with asyncio.timeout(HANG_S):
            await flow.paused.wait()
        timer = (await here.connection())._stall_timer
        now = asyncio.get_running_loop().time()
        assert 0 < round(timer.when() - now, 3) <= PATIENT.stall_s  # which is told in milliseconds
        assert not flow.resumed.is_set()
        response = await client.response()
        assert (len(response.body), response.ending) == (size, Ending.COMPLETE)
        assert timer.cancelled()
        assert (await here.connection())._stall_timer is None


async def test_a_client_that_reads_nothing_for_too_long_is_dropped() -> None:
    cancelled = asyncio.Event()

    async def work(client: Client, _: web.BaseRequest) -> None:
        client.begin(200, b"", JSON)
        client.feed(b"x" * 20_000_000, final=False)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    impatient = Patience(stall_s=0.1)
    async with serving(work, impatient) as here, RawClient(here.port, receive_buffer=4096) as client:
        await client.send(GET)
        async with asyncio.timeout(HANG_S):
            await cancelled.wait()
        assert (await client.response()).ending in (Ending.CUT, Ending.RESET)


# --- how long a client may take -----------------------------------------------------------------------


async def test_a_head_that_takes_too_long_gets_408_and_the_connection_closes() -> None:
    async with serving(greet, Patience(head_s=1)) as here, RawClient(here.port) as client:
        connection = await here.connection()
        await client.send(GET)
        await client.response()
        assert connection._head_timer is None, "a keep-alive connection may be silent"
        await client.send(GET[:10])
        timer = await eventually(lambda: connection._head_timer)
        await client.send(*(bytes([byte]) for byte in GET[10:20]), pause_s=0.001)
        assert connection._head_timer is timer, "arriving bytes gain no time"
        response = await client.response()
        assert (response.status, response.header("x-gateway-error")) == (408, "request_timeout")
        assert await client.closed() is Ending.CUT


async def test_a_head_that_stops_in_its_first_packet_gets_408_too() -> None:
    impatient = Patience(head_s=0.3, keep_alive_s=2)
    async with serving(greet, impatient) as here, RawClient(here.port) as client:
        await client.send(GET[:10])
        assert (await client.response()).status == 408


async def test_the_clock_of_a_head_stops_when_the_head_is_complete() -> None:
    async with serving(echo) as here, RawClient(here.port) as client:
        connection = await here.connection()
        await eventually(lambda: connection._waiter is not None)
        asked = request("POST", "/", body=b"body")
        await client.send(asked[:10])
        timer = await eventually(lambda: connection._head_timer)
        await client.send(asked[10:-2])
        await eventually(timer.cancelled)
        assert connection._head_timer is None, "a body has another clock"
        await client.send(asked[-2:])
        assert (await client.response()).body == b"body"


async def test_a_client_that_leaves_in_its_head_leaves_no_clock_behind() -> None:
    async with serving(greet) as here, RawClient(here.port) as client:
        connection = await here.connection()
        await eventually(lambda: connection._waiter is not None)
        await client.send(GET[:10])
        timer = await eventually(lambda: connection._head_timer)
        client.leave()
        await eventually(timer.cancelled)


async def test_a_connection_that_stays_silent_is_closed() -> None:
    async with serving(greet, Patience(keep_alive_s=0.1)) as here, RawClient(here.port) as client:
        await client.send(GET)
        assert (await client.response()).status == 200
        assert await client.closed() is Ending.CUT


async def test_a_connection_that_has_sent_nothing_is_closed_without_a_word() -> None:
    async with serving(greet, Patience(silent_s=0.1)) as here, RawClient(here.port) as client:
        assert await client.closed() is Ending.CUT
        assert not client.recorded


async def test_one_that_has_begun_a_head_or_is_kept_is_not_silent() -> None:
    patience = Patience(silent_s=0.5, head_s=1)
    async with serving(greet, patience) as here, RawClient(here.port) as late, RawClient(here.port) as kept:
        await late.send(GET[:10])
        await kept.send(GET)
        assert (await kept.response()).status == 200
        assert (await late.response()).status == 408
        await kept.send(GET)
        assert (await kept.response()).status == 200


async def test_a_head_that_begins_late_on_a_kept_connection_has_its_time() -> None:
    patience = Patience(keep_alive_s=0.5, head_s=1)
    async with serving(greet, patience) as here, RawClient(here.port) as client:
        await client.send(GET)
        await client.response()
        await client.send(GET[:10])
        assert (await client.response()).status == 408


async def test_a_body_has_to_come_at_the_least_rate() -> None:
    async with serving(echo, Patience(rate_s=0.2)) as here, RawClient(here.port) as client:
        await client.send(request("POST", "/", "Content-Length: 200"))
        with contextlib.suppress(ConnectionError):
            await client.send(*[b"x"] * 200, pause_s=0.01)
        response = await client.response()
        assert (response.status, response.header("x-gateway-error")) == (408, "request_timeout")


async def test_a_body_that_comes_at_that_rate_may_take_long() -> None:
    async with serving(echo, Patience(rate_s=1)) as here, RawClient(here.port) as client:
        await client.send(request("POST", "/", "Content-Length: 40960"))
        await client.send(*[b"x" * 1024] * 40, pause_s=0.03)
        assert (await client.response()).status == 200


async def test_a_client_whose_body_is_not_read_is_not_slow() -> None:
    beginning, go = asyncio.Event(), asyncio.Event()

    async def reads_late(client: Client, request: web.BaseRequest) -> None:
        await client.body.next_piece(1_000_000)
        beginning.set()
        await go.wait()
        await echo(client, request)

    async with serving(reads_late, Patience(rate_s=0.1)) as here, RawClient(here.port) as client:
        await client.send(request("POST", "/", "Content-Length: 500000"), b"x" * 250_000)
        await beginning.wait()
        began = time.monotonic()
        await eventually(lambda: time.monotonic() > began + 0.2)
        go.set()
        await client.send(b"x" * 250_000)
        assert (await client.response()).status == 200


@pytest.mark.parametrize("patience", [Patience(rate_s=0.2), Patience(body_s=0.2)], ids=["pause", "whole"])
async def test_a_body_that_takes_too_long_gets_408(patience: Patience) -> None:
    response = await ask(echo, request("POST", "/", "Content-Length: 9"), b"body", patience=patience)
    assert (response.status, response.header("x-gateway-error")) == (408, "request_timeout")
    assert response.header("connection") == "close"


# --- the request's body -----------------------------------------------------------------------------------

CHUNKED = request("POST", "/", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "sent",
    [
        [request("POST", "/")],
        [request("POST", "/", body=b"body")],
        [request("POST", "/", body=b"body")[:-4], b"bo", b"dy"],
        [CHUNKED + b"4\r\nbody\r\n0\r\n\r\n"],
        [CHUNKED, b"2\r\nbo\r\n", b"2;x=y\r\ndy\r\n0\r\nX: y\r\n\r\n"],
    ],
    ids=lambda sent: repr(sent[-1][-30:]),
)
async def test_a_body_is_read_whole_however_it_comes(sent: list[bytes]) -> None:
    response, ending = await talk(echo, *sent)
    assert response.status == 200
    assert (ending is Ending.OPEN) is not sent[0].startswith(CHUNKED), (
        "aiohttp keeps a chunked body's trailers"
    )
    assert bytes(response.body) == (b"" if sent == [request("POST", "/")] else b"body")


@pytest.mark.parametrize(
    "broken",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"2\r\nokay\r\n",
        b"fffffffffffffffff\r\n",
        b"0\r\nX Y: 1\r\n\r\n",
        b"2\n\rok\n\r",
    ],
)
@pytest.mark.parametrize(
    "first", [[CHUNKED], [CHUNKED + b"2\r\nok\r\n"], [CHUNKED, b"2\r\nok\r\n"], []], ids=str
)
async def test_a_body_that_stops_making_sense_gets_exactly_one_400(
    first: list[bytes], broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    packets = [*first, broken] if first else [CHUNKED + broken]
    async with serving(echo) as here, RawClient(here.port) as client:
        await client.send(*packets, pause_s=0.01)
        response = await client.response()
        assert (response.status, response.header("x-gateway-error")) == (400, "invalid_request")
        with pytest.raises(EOFError):  # no second answer
            await client.head()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("sent", [b"GARBAGE\r\n\r\n", CHUNKED + b"zz\r\n"], ids=["head", "body"])
async def test_who_is_refused_while_still_sending_can_send_it_all_and_then_read_why(sent: bytes) -> None:
    async with serving(echo) as here, RawClient(here.port) as client:
        await client.send(sent)
        async with asyncio.timeout(HANG_S):
            await asyncio.to_thread(select.select, [client.fileno()], [], [])  # it has been answered
        await client.send(*[b"x" * 100_000] * 20)
        assert (await client.response()).status == 400
        with pytest.raises(EOFError):
            await client.head()


@pytest.mark.parametrize(
    "sent", [[request("POST", "/", "Content-Length: 1000001")], [CHUNKED + b"f4241\r\n", b"x" * 1_000_001]]
)
async def test_a_body_over_the_limit_gets_413(sent: list[bytes]) -> None:
    response = await ask(echo, *sent)
    assert (response.status, response.header("x-gateway-error")) == (413, "request_too_large")


async def test_a_length_written_absurdly_does_not_make_the_handler_fail() -> None:
    response = await ask(echo, request("POST", "/", "Content-Length: " + "0" * 5_000 + "4"), b"body")
    assert response.status in (200, 400)
    assert response.header("x-request-id") == "id-1", "it is aiohttp's answer to a handler that failed"


async def test_a_body_just_within_the_limit_is_read() -> None:
    response, _ = await talk(echo, request("POST", "/", body=b"x" * 1_000_000))
    assert (response.status, len(response.body)) == (200, 1_000_000)


async def test_a_wanted_body_is_invited() -> None:
    async with serving(echo) as here, RawClient(here.port) as client:
        await client.send(request("POST", "/", "Expect: 100-Continue", "Content-Length: 4"))
        assert await client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        assert (await client.response()).body == b"body"


async def test_an_unwanted_body_is_not_invited_and_the_connection_closes_at_once() -> None:
    sent = request("POST", "/", "Expect: 100-continue", "Content-Length: 100000000")
    async with asyncio.timeout(HANG_S):
        response, ending = await talk(greet, sent)
    assert (response.status, response.interim, ending) == (200, [], Ending.CUT)


async def test_http_1_0_knows_no_invitation() -> None:
    asked = request("POST", "/", "Expect: 100-continue", body=b"body").replace(b"HTTP/1.1", b"HTTP/1.0")
    response, _ = await talk(echo, asked)
    assert (response.interim, bytes(response.body)) == ([], b"body")


@pytest.mark.parametrize("packets", [1, 2])
async def test_who_asks_for_another_protocol_is_answered_in_this_one_and_not_left_waiting(
    packets: int,
) -> None:
    head = request("POST", "/", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 4")
    sent = [head + b"body"] if packets == 1 else [head, b"body"]
    async with serving(echo) as here, RawClient(here.port) as client:
        await client.send(*sent, pause_s=0.01)
        response = await client.response()
        assert (response.status, bytes(response.body)) == (200, b"body")
        assert response.header("connection") == "close"
        assert await client.closed() is Ending.CUT


# --- the answer -------------------------------------------------------------------------------------------


def pieces(*fed: bytes, head: AnswerHead = JSON, status: int = 200, reason: bytes = b"") -> Work:
    """A handler that passes on an answer in these pieces."""

    async def work(client: Client, _: web.BaseRequest) -> None:
        client.begin(status, reason, head, b"x-gateway-provider: rig\r\n")
        for piece in fed:
            client.feed(piece, final=False)
        client.feed(b"", final=True)

    return work


@pytest.mark.parametrize(
    ("line", "length", "framing", "kept"),
    [
        (b"HTTP/1.1", None, "chunked", True),
        (b"HTTP/1.1", 5, "length", True),
        (b"HTTP/1.1\r\nConnection: close", None, "chunked", False),
        (b"HTTP/1.1\r\nConnection: close", 5, "length", False),
        (b"HTTP/1.0", None, "close", False),
        (b"HTTP/1.0", 5, "length", False),
        (b"HTTP/1.0\r\nConnection: keep-alive", None, "close", False),
        (b"HTTP/1.0\r\nConnection: keep-alive", 5, "length", True),
    ],
)
async def test_an_answer_is_framed_as_its_client_understands(
    line: bytes, length: int | None, framing: str, kept: bool
) -> None:
    head = AnswerHead(JSON.lines, length)
    response, ending = await talk(pieces(b"he", b"", b"llo", head=head), GET.replace(b"HTTP/1.1", line))
    assert (bytes(response.body), response.framing, response.header("x-gateway-provider")) == (
        b"hello",
        framing,
        "rig",
    )
    assert response.ending is (Ending.CLOSED if framing == "close" else Ending.COMPLETE)
    assert (response.header("connection") == "close") is not kept
    assert (ending is Ending.OPEN) is kept
    if kept and line.startswith(b"HTTP/1.0"):
        assert response.header("connection") == "keep-alive"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_no_framing(status: int) -> None:
    response, ending = await talk(pieces(status=status, reason=b"As It Said"), GET)
    assert (response.status, response.header("content-length"), response.header("transfer-encoding")) == (
        status,
        None,
        None,
    )
    assert ending is Ending.OPEN


async def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    async with serving(greet) as here, RawClient(here.port) as client:
        await client.send(request("HEAD", "/"))
        response = await client.response(to="HEAD")
        assert (response.status, response.header("content-length"), bytes(response.body)) == (200, "7", b"")
        await client.send(GET)
        assert (await client.response()).body == b'"hello"'


async def test_every_answer_is_dated_once_and_carries_its_id() -> None:
    dates = ((b"X-Update", b"7"), (b"DATE", b"Mon, 01 Jan 2029 00:00:00 GMT"))
    for date in dates:
        response, _ = await talk(pieces(head=replace(answer_head([date]), content_length=0)), GET)
        assert [name.lower() for name, _ in response.headers].count("date") == 1
        assert response.header("x-request-id") == "id-1"


def broken(head: AnswerHead, *fed: bytes) -> Work:
    """A handler whose provider breaks after these pieces."""

    async def work(client: Client, _: web.BaseRequest) -> None:
        client.begin(200, b"", head)
        for piece in fed:
            client.feed(piece, final=False)
        raise GatewayError(UPSTREAM_ERROR, "Provider 'rig' broke")

    return work


@pytest.mark.parametrize(
    ("fed", "gap"),
    [
        ([b"data: 1\n\n"], b""),
        ([b"data: 1\n", b"\n"], b""),
        ([b"data: 1"], b"\n\n"),
        ([b"data: 1\r\n"], b"\n\n"),
    ],
)
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_a_broken_stream_ends_with_an_event_of_its_own(
    fed: list[bytes], gap: bytes, version: bytes
) -> None:
    response, _ = await talk(broken(EVENTS, *fed), GET.replace(b"HTTP/1.1", version))
    assert response.body.startswith(b"".join(fed) + gap + b'data: {"error":')
    assert response.events[-1]["error"]["type"] == "upstream_error"
    assert response.ending is (Ending.COMPLETE if version == b"HTTP/1.1" else Ending.CLOSED)


@pytest.mark.parametrize(
    ("version", "length", "ending"),
    [(b"HTTP/1.1", None, Ending.CUT), (b"HTTP/1.1", 9, Ending.CUT), (b"HTTP/1.0", None, Ending.RESET)],
)
async def test_what_is_no_stream_and_breaks_is_cut(
    version: bytes, length: int | None, ending: Ending
) -> None:
    work = broken(AnswerHead(JSON.lines, length), b"hell")
    response, _ = await talk(work, GET.replace(b"HTTP/1.1", version))
    assert response.ending is ending
    assert b"error" not in response.body


async def test_the_size_of_a_head_is_counted() -> None:
    sizes = []

    async def work(client: Client, request: web.BaseRequest) -> None:
        sizes.append(len(client.raw_path) + client.head.size)
        await greet(client, request)

    await talk(work, b"GET /abc HTTP/1.1\r\nHost: x\r\nA: 1\r\n\r\n")
    assert sizes == [len("/abc") + len("Host: x\r\n") + len("A: 1\r\n")]
