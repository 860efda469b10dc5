"""Bytes that no honest client sends, each on a connection of its own.

Whatever comes: every answer is HTTP and is the gateway's own refusal or the provider's answer; nothing
hangs; the provider sees only what is in the endpoint table, without the client's credentials; nobody
gets a traceback; the next client is served.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import httptools
import pytest

from llmgateway.api.endpoints import ENDPOINTS
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY
from tests.journeys.test_errors import OPENAI, anthropic_type, ask, refusal
from tests.raw_client import chat, request

QUIET_S = 0.3  # after which a client gives up on the rest of a request and closes
AT_ONCE = 40
PATHS = {endpoint.path for endpoint in ENDPOINTS}
KEY_LINE = f"Host: gateway\r\nAuthorization: Bearer {KEY}\r\n".encode()
BODY = b'{"model": "m"}'


def post(
    *lines: bytes, path: bytes = OPENAI.encode(), body: bytes = BODY, version: bytes = b"HTTP/1.1"
) -> bytes:
    """A request with the key and just these header lines."""
    head = b"POST " + path + b" " + version + b"\r\n" + KEY_LINE
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def sized(*lines: bytes, path: bytes = OPENAI.encode(), version: bytes = b"HTTP/1.1") -> bytes:
    """The same with a proper Content-Length."""
    return post(*lines, b"Content-Length: %d" % len(BODY), path=path, version=version)


CHUNKED = b"Transfer-Encoding: chunked"
ONE_CHUNK = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"


# What comes back.


@dataclass
class Answers:
    """Parses everything that came back on a connection, strictly."""

    statuses: list[int] = field(default_factory=list)
    headers: list[dict[bytes, bytes]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    whole: bool = True

    def on_message_begin(self) -> None:
        self.headers.append({})
        self.bodies.append(b"")
        self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[-1][name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        self.bodies[-1] += piece

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())

    def on_message_complete(self) -> None:
        self.whole = True

    def parse(self, data: bytes) -> Answers:
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)
        return self


async def said_to(port: int, message: bytes) -> bytes:
    """Send a message, hear what is said to it, close our side, and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    heard = b""
    try:
        async with asyncio.timeout(HANG_S):
            writer.write(message)
            try:
                while piece := await asyncio.wait_for(reader.read(65_536), QUIET_S):
                    heard += piece
            except TimeoutError:
                await ask(port, chat())  # who came later has been served: there is nothing to be waited for
                writer.write_eof()
                while piece := await reader.read(65_536):
                    heard += piece
    except ConnectionError:
        pass  # it may close on us while we still talk
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return heard


def judge(message: bytes, heard: bytes) -> list[int]:
    """Check what was said to a message; give the statuses."""
    answers = Answers().parse(heard)
    assert answers.whole, (message, heard)
    for status, headers, body in zip(answers.statuses, answers.headers, answers.bodies, strict=True):
        if status == 100:
            continue
        ours = headers.get(b"x-gateway-error")
        assert status < 500, (message, heard)
        if ours is not None:
            of_anthropic = body.startswith(b'{"type":"error"')
            told = anthropic_type(status).encode() if of_anthropic else ours
            assert b'"type":"' + told + b'"' in body, heard
        assert ours or headers.get(b"x-gateway-provider") == b"rig" or status == 200, (message, heard)
    return answers.statuses


@dataclass
class Ground:
    """A gateway, a provider behind it, and the log of both."""

    gateway: Gateway
    provider: FakeProvider
    caplog: pytest.LogCaptureFixture

    async def hears(self, message: bytes) -> list[int]:
        """Send one message; see to what is said to it, and that an honest client is served after it."""
        statuses = judge(message, await said_to(self.gateway.port, message))
        assert (await ask(self.gateway.port, chat())).status == 200, message
        return statuses

    async def hears_all(self, messages: Iterable[bytes]) -> list[list[int]]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def hear(message: bytes) -> list[int]:
            async with gate:
                return await self.hears(message)

        async with asyncio.TaskGroup() as group:
            hearings = [group.create_task(hear(message)) for message in messages]
        return [hearing.result() for hearing in hearings]

    def stayed_clean(self) -> None:
        """Check what the provider saw and what was logged."""
        for sent in self.provider.requests:
            assert sent.method == "POST"
            assert sent.target.partition("?")[0] in PATHS, sent
            assert sent.version == "HTTP/1.1"
            assert KEY not in str(sent)
            assert len([name for name, _ in sent.headers if name.lower() == "content-length"]) == 1
            assert sent.header("transfer-encoding") is None
        for record in self.caplog.records:
            assert record.levelno < logging.ERROR and not record.exc_info, record
            assert KEY not in str(vars(record))


@pytest.fixture
async def ground(gateway_for: GatewayFor, provider: FakeProvider, caplog: pytest.LogCaptureFixture) -> Ground:
    caplog.set_level(logging.DEBUG)
    return Ground(await gateway_for(provider), provider, caplog)


# The table: what is sent, and the statuses that may be said to it. An empty list: closed without a word.

BAD, GONE, DONE, METHOD = [[400]], [[404]], [[200]], [[405]]
SILENT: list[list[int]] = [[]]

ODD_PATHS = r"""
    /v1/../slots /v1/%2e%2e/slots /v1/..%2fslots /v1/./chat/completions /v1//chat/completions
    //v1/chat/completions /v1/chat/completions/ /v1/chat/completions; /v1/chat/completions;x=y
    /v1/chat/completions/../completions /V1/chat/completions /v1/Chat/completions /v1/chat%2fcompletions
    /v1/chat/%63ompletions /%76%31/chat/completions /v1/chat/completions%00 /v1/chat/completions%0d%0a
    /v1/chat/completions%20 /v1/chat/completions/x /v1/chat/completion /v1\chat\completions
    /v1/chat\..\completions /v1/%5c../slots /v1/slots /slots /props /v1/metrics /v1/load
    /v1/%c0%ae%c0%ae/slots /v1/%252e%252e/slots /v1/chat/completions/%2e%2e/%2e%2e/%2e%2e/slots /. /..
    // /v1/messages/../slots /v1/audio/../slots /v1/chat/completions:80 /v1/chat/completions#x
    http://other http://other/slots https://other/v1/../slots http:///slots http://x/v1/%2e%2e/slots
    ftp://x/v1/chat/completions @other/v1/chat/completions
""".split()
BAD_OR_GONE = [[400], [404]]

TABLE: dict[str, tuple[bytes, list[list[int]]]] = {
    "absolute form": (sized(path=b"http://other/v1/chat/completions"), DONE),
    "absolute form in capitals": (sized(path=b"HTTP://other/v1/chat/completions?x=1"), DONE),
    **{f"path {path}": (sized(path=path.encode()), BAD_OR_GONE) for path in ODD_PATHS},
    "relative path": (sized(path=b"v1/chat/completions"), BAD_OR_GONE),
    "no path": (sized(path=b""), BAD),
    "star": (sized(path=b"*"), BAD_OR_GONE),
    "NUL in the path": (sized(path=b"/v1/chat/completions\x00"), BAD),
    "blank in the path": (sized(path=b"/v1/chat/completions x"), BAD),
    "tab in the path": (sized(path=b"/v1/chat/completions\tx"), BAD),
    "return in the path": (sized(path=b"/v1/chat/completions\rX: y"), BAD),
    "latin-1 in the path": (sized(path=b"/v1/caf\xe9"), BAD_OR_GONE),
    "utf-8 in the path": (sized(path="/v1/模型".encode()), BAD_OR_GONE),
    "a long path": (sized(path=b"/v1/" + b"a" * 10_000), GONE),
    "a very long path": (sized(path=b"/v1/" + b"a" * 200_000), BAD),
    "a very long query": (sized(path=OPENAI.encode() + b"?" + b"a" * 200_000), BAD),
    "fragment in the query": (sized(path=OPENAI.encode() + b"?a#b"), [[400], [200]]),
    "bytes in the query": (sized(path=OPENAI.encode() + b"?\xff\xfe"), BAD),
    "NUL in the query": (sized(path=OPENAI.encode() + b"?\x00"), BAD),
    "quotes in the query": (sized(path=OPENAI.encode() + b'?"'), BAD),
    "HTTP/0.9": (b"GET /v1/models\r\n", [[400], []]),
    "HTTP/1.0": (sized(version=b"HTTP/1.0"), DONE),
    "HTTP/1.0 with chunks": (post(CHUNKED, body=ONE_CHUNK, version=b"HTTP/1.0"), BAD),
    "HTTP/1.2": (sized(version=b"HTTP/1.2"), BAD),
    "HTTP/2.0": (sized(version=b"HTTP/2.0"), BAD),
    "HTTP/11": (sized(version=b"HTTP/11"), BAD),
    "http/1.1": (sized(version=b"http/1.1"), BAD),
    "ICE/1.0": (sized(version=b"ICE/1.0"), BAD),
    "no version": (b"POST /v1/chat/completions\r\n" + KEY_LINE + b"\r\n", [[400], []]),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
    "TLS hello": (bytes.fromhex("16030100a5010000a10303") + bytes(range(154)), BAD),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", BAD),
    "SOCKS": (b"\x05\x01\x00", BAD),
    "no host": (sized().replace(b"Host: gateway\r\n", b""), [[400], [200]]),
    "two hosts": (sized(b"Host: other"), [[400], [200]]),
    "nothing": (b"", SILENT),
    "only ends of lines": (b"\r\n" * 20, [[], [400]]),
    "only NULs": (bytes(1000), BAD),
    "ends of lines before a request": (b"\r\n\r\n" + sized(), [[200], [400]]),
    "unknown method": (sized().replace(b"POST", b"BREW"), [[400], [405]]),
    "lower-case method": (sized().replace(b"POST", b"post"), [[400], [405]]),
    "a long method": (sized().replace(b"POST", b"P" * 20_000), BAD),
    "CONNECT": (
        b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n" + KEY_LINE + b"\r\n",
        [[400], [404], [405]],
    ),
    "CONNECT to an endpoint": (b"CONNECT /v1/models HTTP/1.1\r\n" + KEY_LINE + b"\r\n", [[400], [405]]),
    "TRACE": (b"TRACE /v1/models HTTP/1.1\r\n" + KEY_LINE + b"\r\n", METHOD),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + KEY_LINE + b"\r\n", [[400], [404]]),
    "upgrade to a web socket": (
        sized(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA=="),
        [[200], [400]],
    ),
    "upgrade to h2c": (
        sized(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        [[200], [400]],
    ),
    # Two ways to end a body.
    "length and chunks": (post(b"Content-Length: 3", CHUNKED, body=ONE_CHUNK), BAD),
    "chunks and length": (post(CHUNKED, b"Content-Length: 24", body=ONE_CHUNK), BAD),
    "two lengths": (post(b"Content-Length: 14", b"Content-Length: 3"), BAD),
    "twice the same length": (post(b"Content-Length: 14", b"Content-Length: 14"), [[400], [200]]),
    "lengths in a list": (post(b"Content-Length: 14, 14"), BAD),
    "plus length": (post(b"Content-Length: +14"), BAD),
    "minus length": (post(b"Content-Length: -14"), BAD),
    "hex length": (post(b"Content-Length: 0xe"), BAD),
    "length with a blank": (post(b"Content-Length: 1 4"), BAD),
    "length with an underscore": (post(b"Content-Length: 1_4"), BAD),
    "length with other digits": (post("Content-Length: ١٤".encode()), BAD),
    "empty length": (post(b"Content-Length:"), BAD),
    "a float": (post(b"Content-Length: 14.0"), BAD),
    "blank before the colon": (post(b"Content-Length : 14"), BAD),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=ONE_CHUNK), BAD),
    "chunked twice": (post(b"Transfer-Encoding: chunked, chunked", body=ONE_CHUNK), BAD),
    "chunked in two lines": (post(CHUNKED, CHUNKED, body=ONE_CHUNK), BAD),
    "chunked and identity": (post(b"Transfer-Encoding: chunked, identity", body=ONE_CHUNK), BAD),
    "gzip and chunked": (post(b"Transfer-Encoding: gzip, chunked", body=ONE_CHUNK), [[400], [200]]),
    "identity": (post(b"Transfer-Encoding: identity", b"Content-Length: 14"), BAD),
    "quoted chunked": (post(b'Transfer-Encoding: "chunked"', body=ONE_CHUNK), BAD),
    "chunked behind a control": (post(b"Transfer-Encoding: \x0bchunked", body=ONE_CHUNK), BAD),
    "folded coding": (post(b"Transfer-Encoding:\r\n chunked", body=ONE_CHUNK), BAD),
    "folded header": (sized(b"X-A: b\r\n c"), [[400], [200]]),
    "folded first header": (b"POST /v1/chat/completions HTTP/1.1\r\n X: y\r\n\r\n", BAD),
    "bare LF": (sized().replace(b"\r\n", b"\n"), [[400], [200]]),
    "bare CR": (sized().replace(b"\r\n", b"\r"), [[400], []]),
    "CR in a value": (sized(b"X-A: b\rX-C: d"), BAD),
    "NUL in a value": (sized(b"X-A: b\x00"), BAD),
    "control in a value": (sized(b"X-A: b\x01c"), BAD),
    "DEL in a value": (sized(b"X-A: b\x7fc"), [[400], [200]]),
    "NUL in a name": (sized(b"X\x00A: b"), BAD),
    "blank in a name": (sized(b"X A: b"), BAD),
    "letter beyond ASCII in a name": (sized(b"X\xe9: b"), BAD),
    "no name": (sized(b": b"), BAD),
    "no colon": (sized(b"X-A"), BAD),
    "chunk extension": (post(CHUNKED, body=b'e;a=b;c="d"\r\n' + BODY + b"\r\n0;e\r\n\r\n"), DONE),
    "LF in a chunk extension": (post(CHUNKED, body=b"e;a\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "bare CR in a chunk extension": (post(CHUNKED, body=b"e;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "a huge chunk": (post(CHUNKED, body=b"f" * 15 + b"\r\nx"), [[], [400], [413]]),
    "a chunk beyond measure": (post(CHUNKED, body=b"1" + b"0" * 16 + b"\r\nx"), BAD),
    "minus chunk": (post(CHUNKED, body=b"-e\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "plus chunk": (post(CHUNKED, body=b"+e\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "hex prefix of a chunk": (post(CHUNKED, body=b"0xe\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "blank before a chunk": (post(CHUNKED, body=b" e\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "empty size of a chunk": (post(CHUNKED, body=b"\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "a chunk too short": (post(CHUNKED, body=b"d\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "a chunk too long": (post(CHUNKED, body=b"f\r\n" + BODY + b"\r\n0\r\n\r\n"), BAD),
    "a broken trailer": (post(CHUNKED, body=ONE_CHUNK[:-2] + b"no colon\r\n\r\n"), [[400], [200]]),
    "a chunk of many zeros": (post(CHUNKED, body=b"0" * 100_000 + ONE_CHUNK), [[200], [400]]),
    "10,000 headers": (sized(*(b"X-%d: y" % i for i in range(10_000))), BAD),
    "a megabyte of headers": (sized(*(b"X-%d: " % i + b"y" * 10_000 for i in range(100))), BAD),
    "a header of a megabyte": (sized(b"X: " + b"y" * 1_000_000), BAD),
    "a name of a megabyte": (sized(b"X" * 1_000_000 + b": y"), BAD),
    "a head that never ends": (post(*(b"X: y" for _ in range(1_000)))[:-20], [[], [400]]),
    "many keys": (sized(*[b"x-api-key: a"] * 500), [[200], [400]]),
    "two bodies": (sized() + BODY, [[200], [400], [200, 400]]),
    "rubbish behind a request": (sized() + b"\x00\xff rubbish", [[200], [400], [200, 400]]),
    "a hidden second request": (
        post(b"Content-Length: 14", CHUNKED, body=b"0\r\n\r\nPOST /slots HTTP/1.1\r\n" + KEY_LINE + b"\r\n"),
        BAD,
    ),
}


async def test_hostile_requests_are_answered_as_the_table_says(ground: Ground) -> None:
    heard = await ground.hears_all(message for message, _ in TABLE.values())
    said = dict(zip(TABLE, heard, strict=True))
    assert {name: statuses for name, statuses in said.items() if statuses not in TABLE[name][1]} == {}
    ground.stayed_clean()


VALID = (
    request("POST", OPENAI, "X-Request-Id: abc", "Content-Type: application/json", body=BODY),
    post(CHUNKED, b"Trailer: X-T", path=b"/v1/embeddings", body=ONE_CHUNK[:-2] + b"X-T: 1\r\n\r\n"),
    request("POST", "/v1/messages?beta=true", "Expect: 100-continue", body=BODY),
    request("GET", "/v1/models/m", "Connection: keep-alive", "Accept: */*"),
)


@pytest.mark.parametrize("message", VALID, ids=range(len(VALID)))
async def test_a_request_that_ends_anywhere_leaves_nothing_behind(ground: Ground, message: bytes) -> None:
    async def leave_after(size: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ground.gateway.port)
        writer.write(message[:size])
        writer.write_eof()
        async with asyncio.timeout(HANG_S):
            heard = await reader.read()
            writer.close()
            await writer.wait_closed()
        answers = Answers().parse(heard)
        assert all(status < 500 for status in answers.statuses), (message[:size], heard)
        assert size == len(message) or answers.statuses in ([], [100], [400]), (message[:size], heard)

    for start in range(0, len(message) + 1, AT_ONCE):
        sizes = range(start, min(start + AT_ONCE, len(message) + 1))
        await asyncio.gather(*(leave_after(size) for size in sizes))
    assert (await ask(ground.gateway.port, chat())).status == 200
    ground.stayed_clean()


SPICE = (
    *(bytes([byte]) for byte in b'\x00\r\n \t:;,/%?#{"0\x7f\xff'),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"..",
        b"-1",
        b"99999999999999999999",
        b"chunked",
        b"Content-Length: 5\r\n",
        CHUNKED,
    ),
)


def mutated(chance: random.Random) -> bytes:
    """A valid request with a few things wrong."""
    message = bytearray(chance.choice(VALID))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(message))
        match chance.randrange(5):
            case 0:
                message[at] = chance.randrange(256)
            case 1:
                message[at:at] = chance.choice(SPICE)
            case 2:
                del message[at : at + chance.randrange(1, 8)]
            case 3:
                message[at : at + 1] = chance.choice(SPICE)
            case _:
                message[at:at] = message[chance.randrange(len(message)) :][: chance.randrange(1, 40)]
    return bytes(message)


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_requests_do_no_harm(ground: Ground, seed: int) -> None:
    chance = random.Random(seed)
    statuses = await ground.hears_all(mutated(chance) for _ in range(150))
    assert {status for heard in statuses for status in heard} >= {200, 400, 401, 404}
    ground.stayed_clean()


async def test_a_hundred_pipelined_requests_are_answered_in_their_order(ground: Ground) -> None:
    wanted = [200 if i % 3 else 400 for i in range(100)]
    messages = [request("POST", OPENAI, body=BODY if status == 200 else b"{") for status in wanted]
    heard = await said_to(ground.gateway.port, b"".join(messages))
    assert judge(messages[0], heard) == wanted
    ground.stayed_clean()


async def test_an_answer_to_options_or_head_does_not_shift_those_behind_it(ground: Ground) -> None:
    first = (
        b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n"
        + b"GET /slots HTTP/1.1\r\nX: yyyy\r\n\r\n"[:30]
    )
    heard = await said_to(ground.gateway.port, first + request("GET", "/healthz"))
    assert judge(first, heard) in ([405], [405, 200])
    ground.stayed_clean()


async def test_many_silent_connections_keep_nobody_out(ground: Ground) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", ground.gateway.port) for _ in range(300)]
    try:
        for index, (_, writer) in enumerate(silent):
            writer.write(sized()[: index % 100])
        refusal(
            await ask(ground.gateway.port, request("GET", "/v1/models", key=None)), 401, "invalid_api_key"
        )
        assert (await ask(ground.gateway.port, chat())).status == 200
    finally:
        for _, writer in silent:
            writer.transport.abort()
    ground.stayed_clean()
