"""Streams pass piece by piece and byte for byte; one that breaks is told, one that ends is left alone."""

from __future__ import annotations

import asyncio
import json
import zlib

import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import chunk, cut, done, end, head, play, raw, reset, sse, stall, wait, word

EVENTS = (
    b": hello\n\n"
    b'data: {"choices":[{"delta":{"content":"na\xc3\xafve \xe2\x82\xac \xf0\x9f\xa6\x99"}}]}\n\n'
    b"event: odd\r\nid: 7\r\ndata: one\r\ndata:two\r\n\r\n"
    b"retry: 10\ndata:\n\n\n\n"
    b"data: \xff\xfe not UTF-8, and \x00\rdata: lone CR\r\r"
    b"data: [DONE]\n\n"
)


def old(message: bytes) -> bytes:
    """The same request as an HTTP/1.0 client sends it."""
    return message.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


def messages(*, stream: bool = True) -> bytes:
    """A request in Anthropic's dialect."""
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": [], "stream": stream}).encode()
    return request("POST", "/v1/messages", body=body)


def chunked(body: bytes, size: int) -> bytes:
    """A chunked body in chunks of `size`."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def ask(port: int, message: bytes) -> Response:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        await client.send(message)
        return await client.response()


# As it was sent, when it was sent.

FRAMINGS: dict[str, tuple[Script, bool]] = {  # the head; whether the body is chunked
    "SSE": (sse(), True),
    "SSE with a length": (head(200, {"Content-Type": "text/event-stream", "Content-Length": "16"}), False),
    "SSE until close": (head(200, {"Content-Type": "text/event-stream"}), False),
    "JSON in chunks": (
        head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}),
        True,
    ),
    "JSON with a length": (head(200, {"Content-Type": "application/json", "Content-Length": "16"}), False),
    "until close": (head(200), False),
}
PIECES = (b"data", b": \xe2", b"\x82\xac\n", b"\n", b"[1]\n\n")


@pytest.mark.parametrize(("start", "chunks"), FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_each_piece_arrives_before_the_next_one_is_sent(
    provider: FakeProvider, gateway_for: GatewayFor, start: Script, chunks: bool, version: str
) -> None:
    gates = [asyncio.Event() for _ in PIECES]
    steps = [
        play(chunk(piece) if chunks else raw(piece), wait(gate))
        for piece, gate in zip(PIECES, gates, strict=True)
    ]
    provider.script = play(start, *steps, end() if chunks else cut())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True) if version == "1.1" else old(chat(stream=True)))
        response = await client.head()
        for number, gate in enumerate(gates, 1):
            expected = b"".join(PIECES[:number])
            while len(response.body) < len(expected):
                assert await client.piece(response), f"it ended as {response.ending} after {response.body!r}"
            assert response.body == expected
            gate.set()
        assert await client.piece(response) == b""
    assert response.ending is (Ending.CLOSED if response.framing == "close" else Ending.COMPLETE)
    assert (response.framing == "chunked") <= (version == "1.1"), "HTTP/1.0 knows no chunks"


async def test_each_word_arrives_at_once_through_the_program_too(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    provider.script = play(sse(), *(play(word("x"), wait(gate)) for gate in gates), done())
    program = await program_for(provider)
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        for number, gate in enumerate(gates, 1):
            assert len(await client.events(response, number)) == number
            gate.set()
        assert (await client.events(response, 4))[-1] == "[DONE]"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
async def test_any_chunking_comes_out_as_the_same_bytes(
    provider: FakeProvider, gateway_for: GatewayFor, size: int
) -> None:
    """Every multi-byte character and every line end is cut in every place."""
    pieces = [EVENTS[at : at + size] for at in range(0, len(EVENTS), size)]
    provider.script = play(sse(), *map(chunk, pieces), end())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (bytes(response.body), response.ending) == (EVENTS, Ending.COMPLETE)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
async def test_chunks_may_be_cut_by_packets_anywhere(
    provider: FakeProvider, gateway_for: GatewayFor, size: int
) -> None:
    framed = chunked(EVENTS, 11)

    async def packets(exchange: Exchange) -> None:
        exchange.complete = True
        await raw(*(framed[at : at + size] for at in range(0, len(framed), size)))(exchange)

    provider.script = play(sse(), packets)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (bytes(response.body), response.ending) == (EVENTS, Ending.COMPLETE)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
async def test_a_line_of_a_megabyte_passes_whatever_ends_it(
    provider: FakeProvider, gateway_for: GatewayFor, newline: bytes
) -> None:
    line = b'data: {"b64_json":"' + b"\xe2\x82\xac" * 350_000 + b'"}' + newline * 2
    body = line + b"data: [DONE]" + newline * 2
    provider.script = play(sse(), chunk(body), end())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert bytes(response.body) == body
    assert response.ending is Ending.COMPLETE


async def test_a_compressed_stream_passes_as_it_is(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(b"data: %d\n\n" % n) + packer.flush(zlib.Z_SYNC_FLUSH) for n in range(3)]
    pieces.append(packer.flush())
    gates = [asyncio.Event() for _ in pieces]
    steps = [play(chunk(piece), wait(gate)) for piece, gate in zip(pieces, gates, strict=True)]
    provider.script = play(sse({"Content-Encoding": "gzip"}), *steps, end())
    gateway = await gateway_for(provider, streams={"keepalive": 0})
    async with RawClient(gateway.port) as client:
        await client.send(chat(None, "Accept-Encoding: gzip", stream=True))
        response = await client.head()
        assert response.header("content-encoding") == "gzip"
        for number, gate in enumerate(gates, 1):
            while len(response.body) < len(b"".join(pieces[:number])):
                assert await client.piece(response)
            gate.set()
        assert await client.piece(response) == b""
    assert bytes(response.body) == b"".join(pieces)
    assert response.ending is Ending.COMPLETE
    assert provider.requests[0].header("accept-encoding") == "gzip"


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream; charset=utf-8"])
async def test_proxies_in_between_are_told_not_to_hold_a_stream_back(
    provider: FakeProvider, gateway_for: GatewayFor, content_type: str
) -> None:
    provider.script = play(sse({"Content-Type": content_type}), done())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert response.header("x-accel-buffering") == "no"
    assert response.header("cache-control") == "no-cache"
    assert response.header("content-type") == content_type


async def test_what_the_provider_says_of_buffering_and_caching_is_kept(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse({"x-accel-buffering": "yes", "CACHE-CONTROL": "no-store"}), done())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (response.header("x-accel-buffering"), response.header("cache-control")) == ("yes", "no-store")


async def test_an_answer_that_is_no_stream_gets_no_such_headers(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert response.header("x-accel-buffering") is response.header("cache-control") is None


# Streams that end.

ENDS: dict[str, tuple[Script, Script]] = {
    "chunked": (sse(), play(chunk(b"data: 1\n\ndata: 2\n\n"), end())),
    "by its length": (
        head(200, {"Content-Type": "text/event-stream", "Content-Length": "18"}),
        raw(b"data: 1\n\ndata: 2\n\n"),
    ),
    "by closing": (
        head(200, {"Content-Type": "text/event-stream"}),
        play(raw(b"data: 1\n\ndata: 2\n\n"), cut()),
    ),
    "by closing, as HTTP/1.0": (
        raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"),
        play(raw(b"data: 1\n\ndata: 2\n\n"), cut()),
    ),
}


@pytest.mark.parametrize(("start", "rest"), ENDS.values(), ids=ENDS.keys())
async def test_a_stream_that_ends_properly_without_done_is_left_alone(
    provider: FakeProvider, gateway_for: GatewayFor, start: Script, rest: Script
) -> None:
    provider.script = play(start, rest)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert bytes(response.body) == b"data: 1\n\ndata: 2\n\n"
    assert (response.framing, response.ending) == ("chunked", Ending.COMPLETE)


async def test_a_stream_that_ends_in_half_an_event_is_left_alone_too(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse(), chunk(b"data: 1\n\ndata: ha"), end())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (bytes(response.body), response.ending) == (b"data: 1\n\ndata: ha", Ending.COMPLETE)


async def test_an_empty_stream_stays_empty(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = play(sse(), end())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (response.status, bytes(response.body), response.ending) == (200, b"", Ending.COMPLETE)


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_a_provider_may_end_a_buffered_answer_by_closing(
    provider: FakeProvider, gateway_for: GatewayFor, version: bytes
) -> None:
    body = b'{"object":"chat.completion"}'
    provider.script = play(raw(version + b" 200 OK\r\nContent-Type: application/json\r\n\r\n", body), cut())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert (bytes(response.body), response.ending) == (body, Ending.COMPLETE)


async def test_an_http_1_0_client_may_keep_its_connection_where_a_length_is_known(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for _ in range(2):
            await client.send(old(chat(None, "Connection: keep-alive")))
            response = await client.response()
            assert (response.framing, response.ending) == ("length", Ending.COMPLETE)


# Streams that break.

BREAKS: dict[str, Script] = {
    "FIN": cut(),
    "RST": reset(),
    "half a chunk size": play(raw(b"4"), cut()),
    "a bad chunk size": play(raw(b"zz\r\n"), stall()),
    "silence": stall(),
}
PLACES: dict[str, tuple[bytes, bytes]] = {  # what came before the break; what goes before the error event
    "between events": (b"data: 1\n\n", b""),
    "between CRLF events": (b"data: 1\r\n\r\n", b""),
    "between CR events": (b"data: 1\r\r", b""),
    "behind a comment": (b": ping\n\n", b""),
    "inside the first event": (b"data: {", b"\n\n"),
    "inside a later event": (b'data: 1\n\ndata: {"x', b"\n\n"),
    "behind one line of an event": (b"data: 1\n\nevent: x\n", b"\n\n"),
    "behind one line of a CRLF event": (b"data: 1\r\n\r\nevent: x\r\n", b"\n\n"),
    "inside a character": (b"data: \xe2\x82", b"\n\n"),
}


def assert_told(response: Response, sent: bytes, gap: bytes) -> str:
    """Exactly what came, the gap, one error event, and a proper end. Gives the message."""
    assert bytes(response.body).startswith(sent + gap + b'data: {"error"'), bytes(response.body)
    told = bytes(response.body).removeprefix(sent + gap)
    assert told.endswith(b"\n\n") and told.count(b"\n") == 2
    error = json.loads(told.removeprefix(b"data: "))["error"]
    message = error.pop("message")
    assert error == {"type": "upstream_error", "param": None, "code": "upstream_error"}
    assert response.status == 200
    assert isinstance(message, str) and "rig" in message
    return message


@pytest.fixture(params=BREAKS)
async def breaking(request: pytest.FixtureRequest, provider_for: ProviderFor) -> tuple[FakeProvider, Script]:
    """A provider, and a step that breaks its answer off; only silence takes a timeout to be noticed."""
    timeouts = {"idle": "400ms"} if request.param == "silence" else {}
    return await provider_for(timeouts=timeouts), BREAKS[request.param]


@pytest.mark.parametrize(("sent", "gap"), PLACES.values(), ids=PLACES.keys())
async def test_a_stream_that_breaks_ends_in_one_error_event(
    breaking: tuple[FakeProvider, Script], gateway_for: GatewayFor, sent: bytes, gap: bytes
) -> None:
    provider, break_off = breaking
    provider.once(play(sse(), chunk(sent), break_off))
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.response()
        assert (response.framing, response.ending) == ("chunked", Ending.COMPLETE)
        assert_told(response, sent, gap)
        await client.send(chat())
        assert (await client.response()).status == 200, "the client's connection is as good as before"


async def test_a_stream_that_breaks_before_any_byte_of_it_is_a_plain_502(
    breaking: tuple[FakeProvider, Script], gateway_for: GatewayFor
) -> None:
    provider, break_off = breaking
    provider.settings["timeouts"] = {"first_byte": "400ms"} if provider.settings["timeouts"] else {}
    provider.script = play(sse(), break_off)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (response.status, response.header("x-gateway-error")) == (502, "upstream_error")
    assert response.header("content-type") == "application/json"
    assert "rig" in response.json["error"]["message"]


async def test_a_stream_with_a_length_or_to_an_http_1_0_client_is_told_as_well(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    fields = {"Content-Type": "text/event-stream", "Content-Length": "99"}
    provider.script = play(head(200, fields), raw(b"data: 1\n\nda"), cut())
    gateway = await gateway_for(provider)
    new, aged = [await ask(gateway.port, message) for message in (chat(stream=True), old(chat(stream=True)))]
    assert (new.framing, new.ending) == ("chunked", Ending.COMPLETE)
    assert (aged.framing, aged.ending) == ("close", Ending.CLOSED)
    for response in (new, aged):
        assert_told(response, b"data: 1\n\nda", b"\n\n")


async def test_a_stream_until_close_breaks_by_a_reset(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(head(200, {"Content-Type": "text/event-stream"}), raw(b"data: 1\n\n"), reset())
    gateway = await gateway_for(provider)
    assert_told(await ask(gateway.port, chat(stream=True)), b"data: 1\n\n", b"")


async def test_on_messages_a_break_is_told_in_anthropics_shape(
    breaking: tuple[FakeProvider, Script], gateway_for: GatewayFor
) -> None:
    provider, break_off = breaking
    sent = b"event: message_start\ndata: {}\n\nevent: content_block_delta\nda"
    provider.script = play(sse(), chunk(sent), break_off)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, messages())
    told = bytes(response.body).removeprefix(sent + b"\n\nevent: error\ndata: ")
    error = json.loads(told)
    assert told.endswith(b"}\n\n") and told.count(b"\n") == 2
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "rig" in error["error"]["message"]
    assert error["request_id"] == response.header("x-request-id")
    assert response.ending is Ending.COMPLETE


@pytest.mark.parametrize("break_off", [cut(), reset(), raw(b"zz\r\n")], ids=["FIN", "RST", "bad chunk"])
async def test_all_that_came_in_one_breath_with_the_break_is_delivered(
    provider: FakeProvider, gateway_for: GatewayFor, break_off: Script
) -> None:
    sent = b"".join(b"data: %d\n\n" % n for n in range(3000))
    provider.script = play(sse(), raw(chunked(sent, 9).removesuffix(b"0\r\n\r\n")), break_off)
    gateway = await gateway_for(provider)
    assert_told(await ask(gateway.port, chat(stream=True)), sent, b"")


UNFINISHED: dict[str, tuple[Script, Script]] = {
    "a length": (head(200, {"Content-Type": "application/json", "Content-Length": "99"}), raw(b'{"half":')),
    "chunks": (
        head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}),
        chunk(b'{"half":'),
    ),
    "a compressed stream": (sse({"Content-Encoding": "gzip"}), chunk(b'{"half":')),
}


@pytest.mark.parametrize(("start", "half"), UNFINISHED.values(), ids=UNFINISHED.keys())
@pytest.mark.parametrize("aged", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
async def test_a_body_that_cannot_be_told_is_cut_behind_what_came(
    breaking: tuple[FakeProvider, Script], gateway_for: GatewayFor, start: Script, half: Script, aged: bool
) -> None:
    provider, break_off = breaking
    gate = asyncio.Event()
    provider.script = play(start, half, wait(gate), break_off)
    if start is UNFINISHED["a length"][0]:
        provider.script = play(start, half, wait(gate), stall() if provider.settings["timeouts"] else cut())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(old(chat()) if aged else chat())
        response = await client.head()
        assert await client.piece(response) == b'{"half":'
        gate.set()
        assert await client.piece(response) == b""
    assert (response.status, bytes(response.body)) == (200, b'{"half":')
    assert response.ending is (Ending.RESET if response.framing == "close" else Ending.CUT)
