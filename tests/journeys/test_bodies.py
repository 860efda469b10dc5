"""Request bodies: JSON with a model reaches the provider byte for byte, and what is wrong is named.

The limits of time are told by a clock that leaps: real sockets, and nobody waits.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProgramFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import answer, play, polite, sse, stall, word

MAX_BODY = 100_000_000


def big_body(size: int) -> bytes:
    """A chat request of exactly so many bytes."""
    head, tail = b'{"messages": "', b'", "model": "m"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def chunked(body: bytes, size: int = 65_536) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def chunked_head(path: str = OPENAI) -> bytes:
    return request("POST", path, "Transfer-Encoding: chunked")


# What is wrong is named.


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"not json", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "m"', "not valid JSON"),
        (b'{"model": "m"} x', "not valid JSON"),
        (b'{"model": "m", "a": tru}', "not valid JSON"),
        (b"{'model': 'm'}", "not valid JSON"),
        (b" ", "not valid JSON"),
        (b"\x00", "not valid JSON"),
        (b'{"model": "m"}' + b"\xef\xbb\xbf", "not valid JSON"),
        (b"[]", "object"),
        (b'[{"model": "m"}]', "object"),
        (b'"m"', "object"),
        (b"null", "object"),
        (b"3", "object"),
        (b"{}", "no 'model'"),
        (b'{"Model": "m"}', "no 'model'"),
        (b'{"messages": [{"model": "m"}]}', "no 'model'"),
        (b'{"model": 3}', "must be a string"),
        (b'{"model": null}', "must be a string"),
        (b'{"model": ["m"]}', "must be a string"),
        (b'{"model": {"a": "m"}}', "must be a string"),
        (b'{"model": true}', "must be a string"),
        (b'{"model": ""}', "must not be empty"),
        (b'{"model": "' + b"m" * 5000 + b'"}', "too long"),
        (b'{"model": "m", "x": "\xff"}', "UTF-8"),
        (b'{"model": "\xc3"}', "UTF-8"),
        (b'{"model": "m", "x": "\xed\xa0\x80"}', "UTF-8"),
        ('{"model": "m"}'.encode("utf-16"), "UTF-8"),
        (b"[" * 200_000, "object"),
        (b'{"model": "m", "x": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"model": "m", "x": ' + b'{"a":' * 200_000, "nested too deeply"),
        (b'{"model": "m", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"x": "' + b"\\" * 200_000, "not valid JSON"),
    ],
    ids=range(33),
)
async def test_a_body_that_is_wrong_is_400_and_says_why(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes, named: str
) -> None:
    gateway = await gateway_for(provider)
    for path in (OPENAI, ANTHROPIC):
        message = refusal(await ask(gateway.port, asking(path, body)), 400, "invalid_request", path)
        assert named in message
        assert len(message) < 200
    assert not provider.calls


async def test_no_body_at_all_is_400_and_says_so(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    for message in (
        request("POST", OPENAI),
        request("POST", OPENAI, "Content-Length: 0"),
        chunked_head() + chunked(b""),
    ):
        assert "empty" in refusal(await ask(gateway.port, message), 400, "invalid_request")


@pytest.mark.parametrize("coding", ["br", "BR", "compress", "gzip, br", "gzip, gzip"])
async def test_a_body_that_is_compressed_otherwise_than_we_know_is_refused(
    gateway_for: GatewayFor, provider: FakeProvider, coding: str
) -> None:
    gateway = await gateway_for(provider)
    body = gzip.compress(b'{"model": "m"}')
    for connection in range(2):
        response = await ask(gateway.port, asking(OPENAI, body, KEY, f"Content-Encoding: {coding}"))
        assert "compressed" in refusal(response, 400, "invalid_request"), connection
    assert not provider.calls


async def test_a_connection_serves_on_after_a_wrong_body(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for body in (b"{", b"[]", b"{}"):
            await client.send(asking(OPENAI, body))
            refusal(await client.response(), 400, "invalid_request")
        await client.send(chat())
        assert (await client.response()).status == 200


# What is right arrives as it was sent.

ODD = (
    b' \t\r\n{ "messages" :[ ] ,\n\n"model"\t:\r"m" } \n\n',
    b'{"model":"\\u006d","x":"\\ud83d\\ude00 \\u0000 \\/ \\u00E9"}',
    b'{"\\u006dodel": "m"}',
    '{"model": "m", "x": "é 模型 🦙 \u2028 \ufeff \x7f"}'.encode(),
    b'{"model": "m", "seed": 123456789012345678901234567890, "t": 0.1000000000000000055511151231257827}',
    b'{"model": "m", "a": 1e400, "b": -0.0, "c": 1E+2, "d": -0, "e": 1e-999}',
    b'{"model": "m", "cache_prompt": true, "id_slot": 0, "chat_template_kwargs": {"thinking": false}}',
    b'{"model": "x", "model": "m", "a": 1, "a": 2}',
    b'{"nested": {"model": "x", "deep": [{"model": 3}]}, "model": "m", "tools": [{"model": null}]}',
    b'{"model": "m", "x": "\\"model\\": \\"y\\""}',
    b'{"model": "m", "": {"": []}, "stream": "true", "max_tokens": null}',
    b'{"model": "m", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"model": "m", "x": "' + b"\\u00e9" * 20_000 + b'"}',
    big_body(300_001),
)


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
async def test_an_odd_body_reaches_the_provider_byte_for_byte(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes
) -> None:
    gateway = await gateway_for(provider)
    for message in (
        asking(OPENAI, body),
        asking(ANTHROPIC, body),
        chunked_head() + chunked(body, 7 if len(body) < 10_000 else 9_999),
    ):
        assert (await ask(gateway.port, message)).status == 200
    assert [sent.body for sent in provider.requests] == [body] * 3
    for sent in provider.requests:
        assert sent.header("content-length") == str(len(body))
        assert sent.header("transfer-encoding") is None


async def test_a_chunked_body_arrives_whole_however_its_chunks_are_cut_into_packets(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    body = b'{"model": "m", "messages": []}'
    framed = b"5;name=value\r\n" + body[:5] + b'\r\nA;x="y;z"\r\n' + body[5:15] + b"\r\n"
    framed += b"00f\r\n" + body[15:] + b"\r\n0;last\r\nX-Trailer: 1\r\n\r\n"
    message = chunked_head() + framed
    cuts = [[bytes([byte]) for byte in message]]
    cuts += [[message[:at], message[at:]] for at in range(len(message) - len(framed), len(message), 3)]
    for pieces in cuts:
        async with RawClient(gateway.port) as client:
            await client.send(*pieces)
            assert (await client.response()).status == 200
    assert {sent.body for sent in provider.requests} == {body}


async def test_a_trailer_is_never_a_header_of_this_request_or_of_the_next(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    trailed = chunked_head() + chunked(b'{"model": "m"}')[:-2] + b"X-Trailer: 1\r\nCookie: 2\r\n\r\n"
    async with RawClient(gateway.port) as client:
        await client.send(trailed)
        response = await client.response()
        assert response.status == 200
        if response.header("connection") != "close":  # to end the connection is as good
            await client.send(chat())
            assert (await client.response()).status == 200
    for sent in provider.requests:
        assert (sent.header("x-trailer"), sent.header("cookie")) == (None, None)


def form(*fields: tuple[str, bytes], boundary: str = "bound") -> bytes:
    parts = (
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + value
        for name, value in fields
    )
    return b"\r\n".join(parts) + f"\r\n--{boundary}--\r\n".encode()


NOISE = random.Random(1).randbytes(300_000)
FORM_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")
FORM_TYPE = "Content-Type: multipart/form-data; boundary=bound"


@pytest.mark.parametrize("path", FORM_PATHS)
@pytest.mark.parametrize(
    "fields",
    [
        [('name="file"; filename="a.wav"', NOISE), ('name="model"', b"m")],
        [('name="model"', b"m"), ('name="file"; filename="\xc3\xa9.wav"', NOISE)],
        [
            ("name=model", b"m"),
            ('name="prompt"', b'name="model"\r\n\r\nx'),
            ('name="file"', b"\r\n--boun\r\n"),
        ],
    ],
)
async def test_a_form_finds_its_model_and_arrives_byte_for_byte(
    gateway_for: GatewayFor, provider: FakeProvider, path: str, fields: list[tuple[str, bytes]]
) -> None:
    gateway = await gateway_for(provider)
    body = form(*fields)
    assert (await ask(gateway.port, asking(path, body, KEY, FORM_TYPE))).status == 200
    assert provider.requests[0].body == body
    assert provider.requests[0].header("content-type") == FORM_TYPE.partition(": ")[2]


@pytest.mark.parametrize(
    ("body", "content_type", "named"),
    [
        (form(('name="file"', b"x")), FORM_TYPE, "no field 'model'"),
        (form(('name="model"', b"")), FORM_TYPE, "must not be empty"),
        (form(('name="model"', b"\xff")), FORM_TYPE, "UTF-8"),
        (form(('name="model"', b"m"))[:-6], FORM_TYPE, "ends before"),
        (b"nonsense", FORM_TYPE, "not valid multipart"),
        (b'{"model": "m"}', "Content-Type: application/json", "multipart/form-data"),
        (form(('name="model"', b"m")), "Content-Type: multipart/form-data", "boundary"),
        (form(('name="model"', b"m")), "X-None: 1", "multipart/form-data"),
    ],
)
async def test_a_wrong_form_is_400_and_says_why(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes, content_type: str, named: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, asking(FORM_PATHS[0], body, KEY, content_type))
    assert named in refusal(response, 400, "invalid_request")


# Size.


def memory(pid: int, what: str) -> int:
    """Bytes of memory as the kernel counts them: `VmRSS` now, `VmHWM` at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition(f"{what}:")[2].split()[0])


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_the_largest_body_arrives_identical_in_about_twice_its_size_of_memory(
    provider: FakeProvider, program_for: ProgramFor, framing: str
) -> None:
    program = await program_for(provider)
    body = big_body(MAX_BODY)
    await ask(program.port, chat())
    before = memory(program.pid, "VmRSS")
    async with RawClient(program.port) as client:
        pieces = (chat(body),) if framing == "length" else (chunked_head(), chunked(body))
        await client.send(*pieces)
        assert (await client.response()).status == 200
    assert provider.requests[1].body == body
    assert memory(program.pid, "VmHWM") - before < 2.2 * MAX_BODY


async def test_large_bodies_leave_nothing_behind(provider: FakeProvider, program_for: ProgramFor) -> None:
    program = await program_for(provider)
    provider.script = answer(200, {})
    body = big_body(20_000_000)
    await ask(program.port, chat(body))
    before = memory(program.pid, "VmRSS")
    for _ in range(5):
        assert (await ask(program.port, chat(body))).status == 200
        del provider.calls[:]
    assert memory(program.pid, "VmHWM") - before < 3 * len(body)


async def test_a_declared_body_of_one_byte_more_is_413_before_it_is_sent(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    for expect in ((), ("Expect: 100-continue",)):
        head = request("POST", OPENAI, f"Content-Length: {MAX_BODY + 1}", *expect)
        async with RawClient(gateway.port) as client:
            await client.send(head)
            response = await client.response()
        refusal(response, 413, "request_too_large")
        assert response.interim == []
        assert response.header("connection") == "close"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_the_413_arrives_while_the_client_is_still_sending(
    gateway_for: GatewayFor, provider: FakeProvider, framing: str
) -> None:
    gateway = await gateway_for(provider, server={"max_body": "1MB"})
    head = chunked_head() if framing == "chunked" else request("POST", OPENAI, "Content-Length: 50000000")
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    async with RawClient(gateway.port) as client:
        await client.send(head)
        answering = asyncio.ensure_future(client.response())
        sent = 0
        while not answering.done() and sent < 100 * len(piece):
            await client.send(piece)
            sent += len(piece)
        refusal(await answering, 413, "request_too_large")
        await client.send(piece)  # it is still listened to, so that the answer is not lost in a reset
    assert sent < 100 * len(piece)
    assert not provider.calls


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_small_limit_holds_to_the_byte(
    gateway_for: GatewayFor, provider: FakeProvider, framing: str
) -> None:
    gateway = await gateway_for(provider, server={"max_body": 100_000})

    def message(size: int) -> bytes:
        body = big_body(size)
        return chat(body) if framing == "length" else chunked_head() + chunked(body, 30_000)

    assert (await ask(gateway.port, message(100_000))).status == 200
    refusal(await ask(gateway.port, message(100_001)), 413, "request_too_large")
    assert [len(sent.body) for sent in provider.requests] == [100_000]


@pytest.mark.parametrize("length", ["1" * 30, "18446744073709551617", "9223372036854775808"])
async def test_a_length_beyond_all_measure_is_refused(
    gateway_for: GatewayFor, provider: FakeProvider, length: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, request("POST", OPENAI, f"Content-Length: {length}"))
    assert response.status in (400, 413)
    assert response.header("x-gateway-error") in ("invalid_request", "request_too_large")


# Memory.


async def test_bodies_find_room_or_503_before_they_are_read_and_small_ones_always_do(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"bodies_memory": "1MB"})
    provider.script = stall()
    async with RawClient(gateway.port) as holder, RawClient(gateway.port) as other:
        await holder.send(chat(big_body(700_000)))
        await provider.next_call()
        for head in (
            request("POST", OPENAI, "Content-Length: 300001"),
            request("POST", OPENAI, "Content-Length: 300001", "Expect: 100-continue"),
        ):
            response = await ask(gateway.port, head)
            assert "memory" in refusal(response, 503, "overloaded")
            assert response.header("retry-after") == "5"
            assert (response.interim, response.header("connection")) == ([], "close")
        grown = chunked(big_body(400_000))
        refusal(await ask(gateway.port, chunked_head() + grown), 503, "overloaded")
        provider.script = polite()
        assert (await ask(gateway.port, chat(big_body(65_536)))).status == 200
        assert (await ask(gateway.port, chat(big_body(300_000)))).status == 200
        holder.leave()
        await provider.calls[0].hung_up()
        await other.send(chat(big_body(990_000)))
        assert (await other.response()).status == 200
    assert gateway._app._room.held_bytes == 0


async def test_a_body_holds_no_memory_while_its_answer_comes(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"bodies_memory": "1MB"})
    provider.script = play(sse(), word("so"), stall())
    async with RawClient(gateway.port) as client:
        await client.send(chat(big_body(990_000)))
        head = await client.head()
        await client.events(head, 1)
        provider.script = polite()
        assert (await ask(gateway.port, chat(big_body(990_000)))).status == 200


async def test_another_bound_holds_for_what_comes_then(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"bodies_memory": "1MB"})
    refusal(await ask(gateway.port, chat(big_body(1_000_001))), 503, "overloaded")
    gateway.adopt(build(settings(provider, server={"bodies_memory": "2MB"})))
    assert (await ask(gateway.port, chat(big_body(1_000_001)))).status == 200


@pytest.mark.parametrize("ending", ["malformed", "unknown model", "broken off", "provider away"])
async def test_memory_is_given_back_whatever_becomes_of_a_request(
    gateway_for: GatewayFor, provider: FakeProvider, ending: str
) -> None:
    gateway = await gateway_for(provider)
    body = big_body(900_000)
    if ending == "provider away":
        await provider.refuse()
    if ending == "malformed":
        body = body[:-1] + b"]"
    if ending == "unknown model":
        body = body.replace(b'"m"', b'"n"')
    async with RawClient(gateway.port) as client:
        await client.send(chat(body)[: -1 if ending == "broken off" else None])
        room = gateway._app._room
        if ending == "broken off":
            await eventually(lambda: room.held_bytes)
            client.leave()
        else:
            assert (await client.response()).status in (400, 404, 502)
        await eventually(lambda: not room.held_bytes)


async def test_a_provider_may_answer_before_it_has_read_the_body(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.before_body = answer(413, {"error": "too much for me"})
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(big_body(20_000_000)))
    assert (response.status, response.json) == (413, {"error": "too much for me"})


# Time.


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward; everything else is real."""

    ahead_s = 0.0

    def time(self) -> float:
        return time.monotonic() + self.ahead_s


async def leap(seconds: float) -> None:
    """Let what has been sent be read (on the loopback it is there already), then put the clock forward."""
    for _ in range(10):
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    loop.ahead_s += seconds


@asynccontextmanager
async def calm_gateway() -> AsyncIterator[tuple[Gateway, FakeProvider]]:
    """A gateway whose only timers are those of its clients."""
    async with FakeProvider() as provider:
        health = {"interval": "10d", "timeout": "10d"}
        async with Gateway(build(settings(provider, health=health))) as gateway:
            await gateway.ready.wait()
            yield gateway, provider


async def a_stalled_body(framing: Callable[[], tuple[bytes, bytes]]) -> None:
    head, some = framing()
    async with calm_gateway() as (gateway, provider), RawClient(gateway.port) as client:
        await client.send(head, some)
        await leap(9)
        await client.send(some)
        await leap(9)
        await client.send(some)
        await leap(3)
        response = await client.response()
        refusal(response, 408, "request_timeout")
        assert "body" in response.json["error"]["message"]
        assert response.header("connection") == "close"
        assert not provider.calls


async def a_slow_body() -> None:
    async with calm_gateway() as (gateway, provider), RawClient(gateway.port) as client:
        await client.send(request("POST", ANTHROPIC, "Content-Length: 10000000"))
        answer = asyncio.create_task(client.response(200 * HANG_S))
        rounds = 0
        while not answer.done():
            await client.send(b" " * 20 * 1024)
            await leap(19)
            rounds += 1
        assert rounds >= 3600 // 19
        refusal(await answer, 408, "request_timeout", ANTHROPIC)
        assert not provider.calls


async def a_trickling_body() -> None:
    async with calm_gateway() as (gateway, provider), RawClient(gateway.port) as client:
        await client.send(request("POST", OPENAI, "Content-Length: 1000"))
        for _ in range(19):
            await client.send(b" ")
            await leap(1)
        await client.send(b" ")
        await leap(2)
        refusal(await client.response(), 408, "request_timeout")
        assert not provider.calls


async def a_body_slow_but_within_the_limits() -> None:
    body = b'{"model": "m"}'.ljust(40 * 2048)
    async with calm_gateway() as (gateway, provider), RawClient(gateway.port) as client:
        await client.send(request("POST", OPENAI, f"Content-Length: {len(body)}"))
        await leap(19)
        for start in range(0, len(body), 2048):
            await client.send(body[start : start + 2048])
            await leap(1)
        assert (await client.response()).status == 200
        assert provider.requests[0].body == body


async def a_slow_head() -> None:
    async with calm_gateway() as (gateway, _), RawClient(gateway.port) as client:
        for byte in b"POST /v1":
            await client.send(bytes([byte]))
            await leap(1)
        await leap(3)
        refusal(await client.response(), 408, "request_timeout", malformed=True)
        assert await client.closed() is Ending.CUT


async def a_slow_second_head() -> None:
    async with calm_gateway() as (gateway, _), RawClient(gateway.port) as client:
        for _ in range(3):
            await client.send(chat())
            assert (await client.response()).status == 200
            await leap(60)
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
        await leap(9)
        await client.send(b"Host: x\r\n")
        await leap(2)
        refusal(await client.response(), 408, "request_timeout", malformed=True)


async def an_idle_connection() -> None:
    async with (
        calm_gateway() as (gateway, _),
        RawClient(gateway.port) as client,
        RawClient(gateway.port) as mute,
    ):
        await client.send(chat())
        assert (await client.response()).status == 200
        await leap(11)
        assert await mute.closed() is Ending.CUT
        await client.send(chat())
        assert (await client.response()).status == 200
        await leap(80)
        assert await client.closed() is Ending.CUT


def length_framed() -> tuple[bytes, bytes]:
    return request("POST", OPENAI, "Content-Length: 1000"), b"  "


def chunk_framed() -> tuple[bytes, bytes]:
    return chunked_head(), b"2\r\n  \r\n"


@pytest.mark.parametrize(
    "journey",
    [
        lambda: a_stalled_body(length_framed),
        lambda: a_stalled_body(chunk_framed),
        a_slow_body,
        a_trickling_body,
        a_body_slow_but_within_the_limits,
        a_slow_head,
        a_slow_second_head,
        an_idle_connection,
    ],
    ids=["stalled", "stalled-chunked", "slow", "trickling", "slow-enough", "head", "second-head", "idle"],
)
def test_a_client_that_takes_too_long_is_told_so_and_one_that_is_only_slow_is_served(
    journey: Callable[[], Awaitable[None]],
) -> None:
    async def limited() -> None:
        await journey()  # a coroutine, as the runner wants it

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(limited())
