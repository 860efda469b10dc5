"""Answers that no honest server sends, broken at every byte: what a client may make of them.

A client gets the whole answer, identical; or a 502; or a stream whose last event is the error; or a body
that is visibly cut. Never a clean end with other content, never a hang, never a header that the provider
smuggled in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_errors import OPENAI, ask, asking, refusal
from tests.raw_client import Ending, RawClient, Response, request
from tests.script import completion, cut, play, raw, reset, stall

AT_ONCE = 24
SSE_BODY = b'data: {"a": 1}\n\ndata: two\r\n\r\n: ping\n\ndata: [DONE]\n\n'
JSON_BODY = b'{"object": "chat.completion", "x": "caf\xc3\xa9"}'


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@dataclass(frozen=True)
class Corpse:
    """A good answer that is going to be broken."""

    head: bytes
    framed: bytes
    body: bytes
    status: int = 200
    until_close: bool = False
    sse: bool = False

    @property
    def whole(self) -> bytes:
        return self.head + self.framed


JSON_TYPE, SSE_TYPE = b"Content-Type: application/json\r\n", b"Content-Type: text/event-stream\r\n"
OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
CORPUS = {
    "length": Corpse(OK + JSON_TYPE + b"Content-Length: %d\r\n\r\n" % len(JSON_BODY), JSON_BODY, JSON_BODY),
    "chunked": Corpse(OK + JSON_TYPE + CHUNKED, chunks(JSON_BODY[:5], JSON_BODY[5:]), JSON_BODY),
    "stream": Corpse(
        OK + SSE_TYPE + CHUNKED, chunks(SSE_BODY[:9], SSE_BODY[9:30], SSE_BODY[30:]), SSE_BODY, sse=True
    ),
    "stream with length": Corpse(
        OK + SSE_TYPE + b"Content-Length: %d\r\n\r\n" % len(SSE_BODY), SSE_BODY, SSE_BODY, sse=True
    ),
    "until close": Corpse(OK + JSON_TYPE + b"\r\n", JSON_BODY, JSON_BODY, until_close=True),
    "stream until close": Corpse(OK + SSE_TYPE + b"\r\n", SSE_BODY, SSE_BODY, until_close=True, sse=True),
    "refusal": Corpse(
        b"HTTP/1.1 422 No\r\nContent-Length: 13\r\n\r\n", b'{"error": 42}', b'{"error": 42}', 422
    ),
    "interim": Corpse(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n", b"{}", b"{}"),
    "trailers": Corpse(OK + CHUNKED, chunks(b"{}")[:-2] + b"X-T: 1\r\nX-U: 2\r\n\r\n", b"{}"),
    "nothing": Corpse(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", b"", b"", 204),
    "not modified": Corpse(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", b"", b"", 304),
}


def outcome(response: Response, corpse: Corpse) -> str:
    """Name what a client got of a broken answer; fail if it is none of what it may get."""
    body = bytes(response.body)
    if response.header("x-gateway-error"):
        refusal(response, 502, "upstream_error")
        return "502"
    assert response.status == corpse.status, response
    assert response.header("x-gateway-provider") == "rig"
    if response.ending in (Ending.CUT, Ending.RESET):
        return "cut"
    assert response.ending is Ending.COMPLETE
    if body == corpse.body:
        return "whole"
    if (
        corpse.sse
        and response.events
        and isinstance(response.events[-1], dict)
        and "error" in response.events[-1]
    ):
        assert response.events[-1]["error"]["type"] == "upstream_error"
        return "told"
    assert corpse.until_close, ("a clean end with other content", response)
    return "shorter"


class Operation:
    """Sends many requests at once; the provider answers each with the bytes prepared for it."""

    def __init__(self, gateway: Gateway, provider: FakeProvider) -> None:
        self.gateway = gateway
        self._prepared: list[Script] = []
        provider.script = self._perform

    async def _perform(self, exchange: Exchange) -> None:
        number = exchange.request.header("x-number")
        await (completion() if number is None else self._prepared[int(number)])(exchange)

    async def responses(self, scripts: Iterable[Script], *, http: bytes = b"HTTP/1.1") -> list[Response]:
        """What a client gets of each of these answers."""
        self._prepared = list(scripts)
        gate = asyncio.Semaphore(AT_ONCE)

        async def get(number: int) -> Response:
            message = asking(OPENAI, None, KEY, f"X-Number: {number}")
            async with gate:
                return await ask(self.gateway.port, message.replace(b"HTTP/1.1", http, 1))

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(get(number)) for number in range(len(self._prepared))]
        return [each.result() for each in asked]


@pytest.fixture
async def operation(
    provider: FakeProvider, gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> Operation:
    caplog.set_level(logging.ERROR)
    return Operation(await gateway_for(provider), provider)


async def still_serves(operation: Operation, caplog: pytest.LogCaptureFixture) -> None:
    """Check that nobody was hurt."""
    assert (await ask(operation.gateway.port, asking(OPENAI))).status == 200
    assert not caplog.records


@pytest.mark.parametrize("ending", [cut, reset])
@pytest.mark.parametrize("name", CORPUS)
async def test_an_answer_that_ends_at_any_byte_is_never_taken_for_a_whole_one(
    operation: Operation, caplog: pytest.LogCaptureFixture, name: str, ending: Callable[[], Script]
) -> None:
    corpse = CORPUS[name]
    whole = corpse.whole
    responses = await operation.responses(play(raw(whole[:size]), ending()) for size in range(len(whole) + 1))
    for size, response in enumerate(responses):
        got = outcome(response, corpse)
        body = bytes(response.body)
        if got in ("cut", "shorter"):
            assert corpse.body.startswith(body), (size, response)
        if got == "told":
            assert b"[DONE]" not in body or corpse.body in body
            told_at = body.rindex(b"data: {")
            assert corpse.body.startswith(body[:told_at].removesuffix(b"\n\n")) or corpse.body.startswith(
                body[:told_at]
            ), (size, response)
        if size < len(corpse.head):
            assert got == "502", (size, response)
        elif size == len(whole) and ending is cut:
            assert got == "whole", (size, response)
        elif corpse.until_close:
            assert ending is cut or got != "shorter", (size, response)
        elif corpse.framed and size < len(whole) and name != "trailers":
            ended = corpse.sse and b"[DONE]" in whole[:size]  # what is missing then is no content
            expected = ("502", "told") if corpse.sse else ("502", "cut")
            assert got in (("whole",) if ended else expected), (size, response)
    await still_serves(operation, caplog)


@pytest.mark.parametrize("name", ["length", "chunked", "stream"])
async def test_an_http_1_0_client_sees_a_break_as_a_reset(operation: Operation, name: str) -> None:
    corpse = CORPUS[name]
    sizes = range(len(corpse.head) + 1, len(corpse.whole))
    responses = await operation.responses(
        (play(raw(corpse.whole[:size]), cut()) for size in sizes), http=b"HTTP/1.0"
    )
    for response in responses:
        if response.header("x-gateway-error"):
            refusal(response, 502, "upstream_error")
        elif corpse.sse:
            assert response.ending is Ending.CLOSED
            if response.body == corpse.body:
                continue
            assert response.events[-1]["error"]["type"] == "upstream_error"
        else:
            assert response.ending in (Ending.RESET, Ending.CUT)


def corruptions(corpse: Corpse) -> list[bytes]:
    """The answer with one byte of its framing replaced, in every place and several ways."""
    framing, rest = [], corpse.framed
    while rest:  # the places of chunk sizes and of the ends of lines
        size, _, behind = rest.partition(b"\r\n")
        start = len(corpse.whole) - len(rest)
        length = int(size, 16)
        framing += [*range(start, start + len(size) + 2)]
        framing += [start + len(size) + 2 + length + i for i in (0, 1)]
        rest = behind[length + 2 :]
    framing += [len(corpse.head) - 1 - i for i in range(4)] + [*range(9, 17)]
    return [
        corpse.whole[:at] + bytes([byte]) + corpse.whole[at + 1 :]
        for at in framing
        for byte in b"\x00\x01 \r\n0179afgZ-+;\xff"
        if corpse.whole[at] != byte
    ]


@pytest.mark.parametrize("name", ["chunked", "stream"])
async def test_a_corrupted_framing_is_never_a_clean_end_with_other_content(
    operation: Operation, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    corpse = CORPUS[name]
    damaged = corruptions(corpse)
    responses = await operation.responses(play(raw(data), cut()) for data in damaged)
    got = []
    for data, response in zip(damaged, responses, strict=True):
        if not (response.status == int(data[9:12]) if data[9:12].isdigit() else False):
            refusal(response, 502, "upstream_error")
        elif data[9:12] == b"200":
            got.append(outcome(response, corpse))
    assert set(got) <= {"502", "told", "cut", "whole"}
    assert {"told" if corpse.sse else "cut", "whole"} <= set(got)
    await still_serves(operation, caplog)


BROKEN_LATER = (
    b"ZZ\r\n",
    b"5\r\nabc",
    b"\r\n",
    b"-1\r\n",
    b"5;\x00\r\n",
    b"fffffffffffffffffff\r\n",
    b"3\r\nabcd\r\n",
)


@pytest.mark.parametrize("broken", BROKEN_LATER, ids=range(len(BROKEN_LATER)))
@pytest.mark.parametrize("name", ["chunked", "stream"])
async def test_a_broken_chunk_in_a_later_packet_is_told_at_once_though_the_provider_stays(
    provider: FakeProvider, gateway_for: GatewayFor, name: str, broken: bytes
) -> None:
    corpse = CORPUS[name]
    gate = asyncio.Event()

    async def breaking(exchange: Exchange) -> None:
        await exchange.send(corpse.head + chunks(corpse.body[:9])[:-5])
        await gate.wait()
        await exchange.send(broken)
        await (stall() if broken != b"5\r\nabc" else cut())(exchange)

    provider.script = breaking
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(asking(OPENAI))
        response = await client.head()
        assert await client.piece(response) == corpse.body[:9]
        gate.set()
        while await client.piece(response):
            pass
        assert outcome(response, corpse) == ("told" if corpse.sse else "cut")
    await provider.calls[0].over()


def plain(
    *lines: bytes, first: bytes = b"HTTP/1.1 200 OK", body: bytes = b"{}", length: bool = True
) -> bytes:
    size = [b"Content-Length: %d" % len(body)] if length else []
    return b"\r\n".join((first, *lines, *size, b"", body))


EVIL = b"X-Evil: 1"
# Answers that are not to be passed on.
REFUSED = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "only NULs": bytes(500),
    "HTTP/2.0": plain(first=b"HTTP/2.0 200 OK"),
    "HTTP/1.2": plain(first=b"HTTP/1.2 200 OK"),
    "HTTP/0.9 in words": plain(first=b"HTTP/0.9 200 OK"),
    "status 99": plain(first=b"HTTP/1.1 99 OK"),
    "status 000": plain(first=b"HTTP/1.1 000 OK"),
    "status 600": plain(first=b"HTTP/1.1 600 OK"),
    "status 999": plain(first=b"HTTP/1.1 999 OK"),
    "status 2000": plain(first=b"HTTP/1.1 2000 OK"),
    "status in letters": plain(first=b"HTTP/1.1 two OK"),
    "minus status": plain(first=b"HTTP/1.1 -200 OK"),
    "return in the status line": plain(first=b"HTTP/1.1 200 OK\rX-Evil: 1"),
    "NUL in a value": plain(b"X-A: b\x00c"),
    "control in a value": plain(b"X-A: b\x01c"),
    "escape in a value": plain(b"X-A: \x1b[31m"),
    "DEL in a value": plain(b"X-A: b\x7fc"),
    "return in a value": plain(b"X-A: b\rX-Evil: 1"),
    "LF before a value's end": plain(b"X-A: b\n\r" + EVIL),
    "NUL in a name": plain(b"X\x00: 1"),
    "blank in a name": plain(b"X A: 1"),
    "blank before the colon": plain(b"X-A : 1"),
    "no name": plain(b": 1"),
    "no colon": plain(b"X-A"),
    "letter beyond ASCII in a name": plain(b"X\xe9: 1"),
    "two lengths": plain(b"Content-Length: 1"),
    "lengths in a list": plain(b"Content-Length: 2, 2", length=False),
    "minus length": plain(b"Content-Length: -2", length=False),
    "plus length": plain(b"Content-Length: +2", length=False),
    "hex length": plain(b"Content-Length: 0x2", length=False),
    "empty length": plain(b"Content-Length: ", length=False),
    "length beyond measure": plain(b"Content-Length: 99999999999999999999999", length=False),
    "length and chunks": plain(b"Transfer-Encoding: chunked", body=chunks(b"{}")),
    "gzip coding": plain(b"Transfer-Encoding: gzip", length=False),
    "gzip and chunked": plain(b"Transfer-Encoding: gzip, chunked", body=chunks(b"{}"), length=False),
    "chunked twice": plain(b"Transfer-Encoding: chunked, chunked", body=chunks(b"{}"), length=False),
    "chunked, and gzip in another line": plain(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", body=chunks(b"{}"), length=False
    ),
    "identity": plain(b"Transfer-Encoding: identity", length=False),
    "xchunked": plain(b"Transfer-Encoding: xchunked", body=chunks(b"{}"), length=False),
    "HTTP/1.0 with chunks": plain(
        b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK", body=chunks(b"{}"), length=False
    ),
    "a head of 70 KB": plain(*(b"X-%d: %b" % (i, b"y" * 1000) for i in range(70))),
    "a header of 70 KB": plain(b"X: " + b"y" * 70_000),
    "a name of 70 KB": plain(b"X" * 70_000 + b": y"),
    "10,000 headers": plain(*(b"X-%d: y" % i for i in range(10_000))),
    "a reason of 200 KB": plain(first=b"HTTP/1.1 200 " + b"K" * 200_000),
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n" + plain(),
    "a bare 101": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + plain(),
    "many interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + plain(),
    "many early hints": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 50 + plain(),
    "an interim answer with a body": b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n{}" + plain()[:9],
    "a body where none may be": b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r" + EVIL,
}


async def test_answers_that_are_not_http_are_502(
    operation: Operation, caplog: pytest.LogCaptureFixture
) -> None:
    responses = await operation.responses(play(raw(data), cut()) for data in REFUSED.values())
    passed = {
        name: (response.status, response.headers)
        for name, response in zip(REFUSED, responses, strict=True)
        if response.header("x-gateway-error") != "upstream_error"
    }
    assert passed == {}
    for response in responses:
        message = refusal(response, 502, "upstream_error")
        assert message.isprintable() and len(message) < 300
        assert response.header("x-evil") is None
    await still_serves(operation, caplog)


async def test_they_are_502_at_once_though_the_provider_stays(operation: Operation) -> None:
    ends_by_itself = {"HTTP/0.9", "an interim answer with a body", "a body where none may be"}
    staying = [data for name, data in REFUSED.items() if name not in ends_by_itself]
    for response in await operation.responses(play(raw(data), stall()) for data in staying):
        refusal(response, 502, "upstream_error")


# Odd, but to be passed on; what of the first headers the client is to see.
PASSED = {
    "reason beyond ASCII": plain(b"X-A: b", first=b"HTTP/1.1 200 caf\xe9"),
    "NUL in the reason": plain(b"X-A: b", first=b"HTTP/1.1 200 O\x00K"),
    "chunked in two lines": plain(b"X-A: b", *[CHUNKED[:-4]] * 2, body=chunks(b"{}"), length=False),
    "no reason": plain(b"X-A: b", first=b"HTTP/1.1 200"),
    "folded value": plain(b"X-A: b\r\n c"),
    "a folded line that looks like a header": plain(b"X-A: b\r\n X-Evil: 1"),
    "blanks around a value": plain(b"X-A: \t b \t"),
    "unknown status": plain(b"X-A: b", first=b"HTTP/1.1 299 Own"),
    "five interim answers": b"HTTP/1.1 103 Early Hints\r\nX-Evil: 1\r\n\r\n" * 5 + plain(b"X-A: b"),
    "an answer behind the answer": plain(b"X-A: b") + plain(EVIL),
    "rubbish behind the answer": plain(b"X-A: b") + b"\x00\xff rubbish",
    "percent-encoded ends of lines": plain(b"X-A: b%0d%0aX-Evil: 1"),
    "ends of lines before the answer": b"\r\n\r\n" + plain(b"X-A: b"),
}
# RFC 9112 5.2 and 6.1, and the letters of a reason.
MAY_BE_REFUSED = {
    "folded value",
    "a folded line that looks like a header",
    "chunked in two lines",
    "NUL in the reason",
}


@pytest.mark.parametrize("name", PASSED)
async def test_an_odd_answer_passes_without_what_does_not_belong_to_it(
    operation: Operation, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (response,) = await operation.responses([play(raw(PASSED[name]), cut())])
    if name in MAY_BE_REFUSED and response.status == 502:
        return
    assert response.status in (200, 299), response
    assert (bytes(response.body), response.ending) == (b"{}", Ending.COMPLETE)
    assert response.header("x-evil") is None
    value = response.header("x-a") or ""
    assert value.startswith("b") and "\r" not in value and "\n" not in value
    await still_serves(operation, caplog)


async def test_rubbish_behind_an_answer_is_not_taken_for_the_next_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.once(raw(plain(b"X-A: 1") + plain(EVIL, body=b"evil")))
    gateway = await gateway_for(provider)
    for _ in range(3):
        response = await ask(gateway.port, asking(OPENAI))
        assert response.status == 200
        assert response.header("x-evil") is None and b"evil" not in response.body


async def test_endless_interim_answers_are_502(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    async def endless(exchange: Exchange) -> None:
        while True:
            await exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(0)

    provider.script = endless
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, asking(OPENAI)), 502, "upstream_error")


@pytest.mark.parametrize(
    "endless_part",
    [
        b"X-A: b\r\n",
        b"X",
        b"Transfer-Encoding: chunked\r\n\r\n1;",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
    ids=["headers", "name", "extension", "trailers"],
)
async def test_what_never_becomes_a_body_is_bounded(
    provider: FakeProvider, gateway_for: GatewayFor, endless_part: bytes
) -> None:
    more = b"X-A: b\r\n" if endless_part.endswith(b"0\r\n") or endless_part[:2] == b"X-" else b"y"

    async def endless(exchange: Exchange) -> None:
        await exchange.send(OK + endless_part)
        while True:
            await exchange.send(more * 1000)

    provider.script = endless
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, asking(OPENAI)), 502, "upstream_error")
    await provider.calls[0].hung_up()


async def test_hostile_answers_to_probes_hurt_nobody(
    provider_for: Callable[..., object], gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with FakeProvider("good") as good:
        bad = [FakeProvider(f"bad-{number}") for number in range(len(REFUSED))]
        for provider, data in zip(bad, REFUSED.values(), strict=True):
            await provider.__aenter__()
            provider.on["/v1/models"] = play(raw(data), cut())
        try:
            gateway = await gateway_for(good, *bad)
            assert (await ask(gateway.port, asking(OPENAI))).header("x-gateway-provider") == "good"
            listed = await ask(gateway.port, request("GET", "/v1/models"))
            assert [entry["owned_by"] for entry in listed.json["data"]] == ["good"]
        finally:
            for provider in bad:
                await provider.__aexit__(None)
    assert not caplog.records
