"""What clients receive through the gateway is what the plain client receives without it, byte for byte.

Every answer of `tests.answers`, in every way that packets can cut it, is asked for directly, and through the
gateway by several kinds of clients. The bodies, statuses and reasons must be the same; the header fields too,
in their order and spelling, but for what `Seen.end_to_end` leaves out. h11, which takes nothing that is not
HTTP, judges every byte of what a bare client receives.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import h11
import pytest
from aiohttp import HttpVersion10

from tests.answers import (
    ANSWERS,
    CUTTINGS,
    DISPUTED,
    ERROR,
    EVENT_TYPE,
    JSON_TYPE,
    ZIPPED,
    Answer,
    Disputed,
    Fate,
    chunked,
    closing,
    cuttings,
    pieces,
    sized,
)
from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journeys.test_errors import refusal
from tests.raw_client import Ending, RawClient, Response, request
from tests.script import cut, packets, play

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(  # RFC 9110 7.6.1; what `Connection` names is another
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade".split()
)
# How the end of a body is told is a matter of each connection as well.
FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
OURS: Final = frozenset(
    b"x-request-id x-gateway-provider x-gateway-affinity x-gateway-queue-wait x-gateway-error".split()
)
# Added to event streams that do not have them, so that proxies in between do not hold them back.
OF_STREAMS: Final = ((b"X-Accel-Buffering", b"no"), (b"Cache-Control", b"no-cache"))


@dataclass(frozen=True)
class Seen:
    """An answer as a client sees it."""

    status: int
    reason: str
    fields: Fields
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found.lower() == name]

    @property
    def end_to_end(self) -> Fields:
        """The fields that are neither the connection's nor the gateway's own."""
        named = {token.strip() for value in self.values(b"connection") for token in value.lower().split(b",")}
        left_out = HOP_BY_HOP | FRAMING | OURS | named
        return [(name, value) for name, value in self.fields if name.lower() not in left_out]


def assert_same(through: Seen, direct: Seen, answer: Answer) -> None:
    """Check what came through the gateway against what came without it."""
    reason = direct.reason if answer.reason is None else answer.reason
    assert (through.status, through.reason) == (direct.status, reason)
    assert through.body == direct.body
    added = [field for field in OF_STREAMS if answer.is_events and not direct.values(field[0].lower())]
    assert without_added_date(through, direct) == direct.end_to_end + added
    told = (through.values(name) for name in (b"x-gateway-provider", b"x-request-id", b"x-gateway-error"))
    assert [len(values) for values in told] == [1, 1, 0]


def without_added_date(through: Seen, direct: Seen) -> Fields:
    """The end-to-end fields; a `Date` must be there, and is left out where the provider sent none."""
    assert len(through.values(b"date")) == 1
    was_sent = bool(direct.values(b"date"))
    return [(name, value) for name, value in through.end_to_end if was_sent or name.lower() != b"date"]


def script(answer: Answer, cutting: str) -> Script:
    sent = packets(*answer.cut(CUTTINGS[cutting]))
    return play(sent, cut()) if answer.until_close else sent


# --- the clients -------------------------------------------------------------------------------------


async def plainly(session: aiohttp.ClientSession, port: int, answer: Answer) -> Seen:
    """What the plain client sees."""
    asking = session.post(
        f"http://127.0.0.1:{port}{answer.path}",
        data=answer.request,
        headers={"Content-Type": "application/json"},
        allow_redirects=False,
    )
    async with asyncio.timeout(HANG_S), asking as response:
        body = await response.read()
        return Seen(response.status, response.reason or "", list(response.raw_headers), body)


def judged(received: bytes, *, closed: bool = False) -> Iterator[Seen]:
    """The answers in these bytes, which are nothing but answers to requests of the API.

    `closed` says that the connection has ended behind them.
    """
    judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=100_000)
    judge.receive_data(received)
    if closed:
        judge.receive_data(b"")
    while True:
        judge.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
        judge.send(h11.EndOfMessage())
        response = judge.next_event()
        assert isinstance(response, h11.Response), response
        body = bytearray()
        while isinstance(event := judge.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), event
        assert not list(event.headers), "trailers end at the gateway"
        fields = [(bytes(name), bytes(value)) for name, value in response.headers.raw_items()]
        yield Seen(response.status_code, response.reason.decode("ascii"), fields, bytes(body))
        if judge.their_state is not h11.DONE or not judge.trailing_data[0]:
            assert judge.trailing_data[0] == b""
            return
        judge.start_next_cycle()


RAW_CLIENTS: Final[dict[str, tuple[bytes, tuple[str, ...]]]] = {
    "1.1": (b"HTTP/1.1", ()),
    "1.1, then close": (b"HTTP/1.1", ("Connection: close",)),
    "1.0": (b"HTTP/1.0", ()),
    "1.0, to stay": (b"HTTP/1.0", ("Connection: keep-alive",)),
}


async def barely(port: int, answer: Answer, kind: str) -> Seen:
    """What a bare client sees; it asks twice where the connection stays."""
    http, lines = RAW_CLIENTS[kind]
    message = request("POST", answer.path, *lines, body=answer.request).replace(b"HTTP/1.1", http, 1)
    async with RawClient(port, record=True) as client:
        await client.send(message)
        response = await client.response()
        assert response.framing == told_by(answer, http)
        connection = response.header("connection")
        if stays := kind == "1.1" or (kind == "1.0, to stay" and response.framing == "length"):
            assert connection == (None if http == b"HTTP/1.1" else "keep-alive")
            assert response.ending is Ending.COMPLETE
            await client.send(message)
            await client.response()
        else:
            assert connection == "close"
            assert response.ending is (Ending.CLOSED if response.framing == "close" else Ending.COMPLETE)
            assert await client.closed() is Ending.CUT
    seen, *again = judged(bytes(client.recorded), closed=not stays)
    assert [(each.status, each.body) for each in again] == [(seen.status, seen.body)] * stays
    return seen


def told_by(answer: Answer, http: bytes) -> str:
    """How a client is told the end of the body: by its length where that is known and must not change."""
    lines = answer.head.lower()
    grows = answer.is_events and b"\r\ncontent-encoding:" not in lines  # by an event, when it breaks
    if lines.split()[1] in (b"204", b"304") or (b"\r\ncontent-length:" in lines and not grows):
        return "length"
    return "chunked" if http == b"HTTP/1.1" else "close"


# --- all answers -------------------------------------------------------------------------------------

# How an answer came hardly matters to how it goes on: the other cuttings are for two clients only.
FOR_ALL_CLIENTS: Final = ("whole", "chunk by chunk", "odd places")
FOR_ALL_CUTTINGS: Final = ("plain", "1.1")


@pytest.fixture
async def plain_clients(http: aiohttp.ClientSession) -> AsyncIterator[dict[str, aiohttp.ClientSession]]:
    closing = aiohttp.ClientSession(headers={**http.headers, "Connection": "close"}, auto_decompress=False)
    old = aiohttp.ClientSession(headers=http.headers, auto_decompress=False, version=HttpVersion10)
    async with closing, old:
        yield {"plain": http, "plain, then close": closing, "plain 1.0": old}


@contextmanager
def noting(case: str) -> Iterator[None]:
    """Say in a failure which case it was."""
    try:
        yield
    except Exception as exc:
        exc.add_note(case)
        raise


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)
async def test_clients_receive_what_the_plain_client_receives(
    provider: FakeProvider,
    gateway_for: GatewayFor,
    plain_clients: dict[str, aiohttp.ClientSession],
    answer: Answer,
) -> None:
    provider.script = script(answer, "whole")
    direct = await plainly(plain_clients["plain"], provider.port, answer)
    assert direct.body == answer.body

    gateway = await gateway_for(provider)
    for cutting in cuttings(answer):
        provider.script = script(answer, cutting)
        for kind in (*plain_clients, *RAW_CLIENTS) if cutting in FOR_ALL_CLIENTS else FOR_ALL_CUTTINGS:
            with noting(f"packets: {cutting}; client: {kind}"):
                if session := plain_clients.get(kind):
                    through = await plainly(session, gateway.port, answer)
                else:
                    through = await barely(gateway.port, answer, kind)
                assert_same(through, direct, answer)


async def test_a_reason_that_packets_cut_is_whole(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    answer = sized(b"{}", status=b"418 Short, and stout")
    gateway = await gateway_for(provider)
    reasons = []
    for at in range(*answer.reason_span):
        provider.script = packets(answer.whole[:at], answer.whole[at:])
        reasons.append((await barely(gateway.port, answer, "1.1")).reason)
    assert set(reasons) == {"Short, and stout"}


@pytest.mark.parametrize(
    "answer",
    [
        sized(ERROR, JSON_TYPE, status=b"404 File Not Found"),
        chunked(pieces(ERROR, 9), JSON_TYPE, status=b"429 Slow Down", trailers=b"X-Sum: 1\r\n"),
        chunked([], status=b"404 Gone Fishing"),
        closing(b'data: {"error":{}}\n\n', EVENT_TYPE, status=b"429 Slow Down"),
        sized(gzip.compress(ERROR, mtime=0), JSON_TYPE, ZIPPED, status=b"404 Not Found"),
    ],
    ids=range(5),
)
async def test_an_answer_that_was_held_while_others_were_asked_is_the_same(
    provider_for: ProviderFor, gateway_for: GatewayFor, http: aiohttp.ClientSession, answer: Answer
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    rig.script = other.script = script(answer, "chunk by chunk")
    direct = await plainly(http, rig.port, answer)
    gateway = await gateway_for(rig, other)
    for kind in RAW_CLIENTS:
        assert_same(await barely(gateway.port, answer, kind), direct, answer)
    assert len(rig.calls) > 1 and len(other.calls) > 1


@pytest.mark.parametrize("target", ["/v1/models", "/v1/models/m", "/v1/models/unknown"])
async def test_head_is_answered_with_the_head_of_get_and_nothing_else(
    provider: FakeProvider, gateway_for: GatewayFor, target: str
) -> None:
    gateway = await gateway_for(provider)
    heads = []
    for method in ("GET", "HEAD"):
        async with RawClient(gateway.port, record=True) as client:
            await client.send(request(method, target, "X-Request-Id: same", "Connection: close"))
            await client.closed()
            sent_head, _, body = bytes(client.recorded).partition(b"\r\n\r\n")
            assert (body == b"") is (method == "HEAD")
            heads.append([line for line in sent_head.split(b"\r\n") if not line.startswith(b"Date: ")])
    assert heads[0] == heads[1]
    async with RawClient(gateway.port) as client:
        for method in ("HEAD", "GET", "HEAD", "GET"):
            await client.send(request(method, target))
            response = await client.response(to=method)
            assert (response.body == b"") is (method == "HEAD")


# --- where parsers differ ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", DISPUTED, ids=lambda case: case.answer.name)
async def test_what_not_everybody_takes_for_http_is_refused_or_visibly_broken_or_whole(
    provider: FakeProvider, gateway_for: GatewayFor, http: aiohttp.ClientSession, case: Disputed
) -> None:
    answer = case.answer
    # Whole, as a packet that breaks the framing later would let the plain client wait for ever.
    provider.script = script(answer, "whole")
    asking = plainly(http, provider.port, answer)
    if case.plain_client_takes_it:
        assert (await asking).body == answer.body
    else:
        with pytest.raises(aiohttp.ClientError):
            await asking

    provider.script = script(answer, "chunk by chunk")
    gateway = await gateway_for(provider)
    if case.fate is Fate.PASSES:
        assert_same(await barely(gateway.port, answer, "1.1"), next(judged(answer.whole)), answer)
        return
    async with RawClient(gateway.port) as client:
        await client.send(request("POST", answer.path, body=answer.request))
        response = await client.response()
    if case.fate is Fate.REFUSED:
        assert "not valid HTTP" in refusal(response, 502, "upstream_error")
    else:
        beginning = told_broken(response) if answer.is_events else visibly_cut(response)
        assert beginning and answer.body.startswith(beginning)


def told_broken(response: Response) -> bytes:
    """Give what came of a stream before the event that tells of its end."""
    assert response.ending is Ending.COMPLETE
    assert response.events[-1]["error"]["type"] == "upstream_error"
    return bytes(response.body).rpartition(b"data: {")[0].removesuffix(b"\n\n")


def visibly_cut(response: Response) -> bytes:
    """Give what came of a body that was cut."""
    assert response.ending is Ending.CUT
    return bytes(response.body)
