"""Fuzzed: what clients send before a body, as bytes on a connection and as header fields."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

import h11

from llmgateway.errors import GatewayError
from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd
from llmgateway.http.frames import Follower, close_frame, ping_frame
from llmgateway.http.handshake import require_handshake
from llmgateway.http.headers import NOT_FORWARDED, HeadReader, request_head
from llmgateway.http.peers import peer_of
from llmgateway.http.propriety import check_head
from llmgateway.http.server import ClientServer
from llmgateway.http.via import hops, refuse_loop
from tests.fuzz.target import Choices, Target, behind, pieces, words
from tests.fuzz.wire import LOOP, Line

_MOST_BODY_BYTES: Final = 1_000
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"
_LENGTH: Final = b"content-length"
_TURNS: Final = 6  # of the loop, in which a request that is here is answered

# --- requests --------------------------------------------------------------------------------------

Fields = tuple[tuple[bytes, bytes], ...]
Request = tuple[str, str, Fields, bytes]


@dataclass(slots=True)
class Heard:
    """What a connection took for requests, and what it answered."""

    requests: list[Request] = field(default_factory=list)
    refused: int = 0
    answers: bytes = b""


async def _heard(some: Sequence[bytes]) -> Heard:
    heard, line = Heard(), Line()

    async def answer(client: Client) -> None:
        try:
            check_head(client)
            body = client.body.at_hand(_MOST_BODY_BYTES)
            if body is None:
                body = await client.body.read(_MOST_BODY_BYTES)
        except GatewayError as error:
            heard.refused += 1
            client.fail(error)
        else:
            heard.requests.append((client.method, client.raw_path, client.fields, bytes(body)))
            client.respond(200, b"{}")

    connection = ClientServer(answer, Patience(), Crowd(100, asyncio.get_running_loop().time))()
    connection.connection_made(line)
    for packet in some:
        await _turns()
        if line.is_closing():
            break
        connection.data_received(packet)
    await _turns()
    connection.connection_lost(None)
    await _turns()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, "a task is left behind"
    heard.answers = line.written
    return heard


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def request(data: bytes) -> None:
    """The same requests are understood however they are cut, and they are what others understand."""
    choices = Choices(data)
    cutting, sent = choices.number(), choices.rest
    whole = LOOP.run_until_complete(_heard(pieces(sent, 0)))
    _check_answers(whole)
    for way in (1, cutting):
        other = LOOP.run_until_complete(_heard(pieces(sent, way)))
        _check_answers(other)
        shorter, longer = sorted((whole.requests, other.requests), key=len)
        assert longer[: len(shorter)] == shorter, "what is understood depends on the cuts"
    if whole.requests:
        _check_against_h11(sent, whole.requests[0])


def _check_answers(heard: Heard) -> None:
    count = heard.answers.count(b"HTTP/1.1 ")
    assert count >= len(heard.requests), "a request has no answer"
    assert not heard.answers or heard.answers.startswith(b"HTTP/1.1 ")


def _check_against_h11(sent: bytes, ours: Request) -> None:
    """Where h11 takes it for a request as well, it is the same."""
    other = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    body, target = b"", None
    try:
        other.receive_data(sent)
        while True:
            match other.next_event():
                case h11.Request(method=method, target=path):
                    target = method.decode(), path.decode()
                case h11.Data(data=piece):
                    body += bytes(piece)
                case h11.EndOfMessage():
                    break
                case _:
                    return
    except h11.RemoteProtocolError:
        return
    assert target == (ours[0], ours[1]), "h11 reads another request"
    assert body == ours[3], "h11 reads another body"


def _request_seeds() -> Iterator[bytes]:
    requests = (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n" + _CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + _CHUNKED + b"0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x/y?z HTTP/1.1\r\nHost: x\r\nX-A: caf\xe9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    yield from behind(3)(requests)


REQUEST: Final = Target(
    "request",
    request,
    _request_seeds,
    words(
        b"""GET POST OPTIONS CONNECT HEAD HTTP/1.1 HTTP/1.0 Host: Content-Length: Transfer-Encoding: gzip 0 5
        chunked Connection: close keep-alive Upgrade: websocket Expect: 100-continue""",
        b"\r\n",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b" HTTP/1.1\r\nHost: x\r\n",
    ),
    most_bytes=1_024,
    short_runs=2_000,
)

# --- WebSockets ------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """Frames end where they say, however they are cut, and what they hold is given whole."""
    choices = Choices(data)
    cutting, sent = choices.number(), choices.rest
    whole, held = _followed(pieces(sent, 0))
    for way in (1, cutting):
        other, same = _followed(pieces(sent, way))
        assert (other.between, other.closed, same) == (whole.between, whole.closed, held)
    assert (held, whole.between) == _as_it_stands(sent)
    began = Follower()
    began.pass_by(sent[: len(sent) // 2])
    rest = sent[len(sent) // 2 :]
    mine = began.rest_of_frame(rest)
    assert rest.startswith(mine)
    assert began.between or mine == rest


def _followed(some: Sequence[bytes]) -> tuple[Follower, bytes]:
    follower = Follower()
    held = b"".join(piece.payload for each in some for piece in follower.follow(each))
    assert len(follower._header) <= 14, "it keeps too much"
    return follower, held


def _as_it_stands(sent: bytes) -> tuple[bytes, bool]:
    """Read frames all at once; gives what data frames hold, and whether the last one is whole."""
    held, at = b"", 0
    while at < len(sent):
        short = sent[at + 1] & 0x7F if at + 1 < len(sent) else 0
        longer = {126: 2, 127: 8}.get(short, 0)
        masked = 4 if at + 1 < len(sent) and sent[at + 1] & 0x80 else 0
        start = at + 2 + longer + masked
        if start > len(sent):
            return held, False
        size = int.from_bytes(sent[at + 2 : at + 2 + longer]) if longer else short
        held += b"" if sent[at] & 0x08 else sent[start : start + size]
        at = start + size
    return held, at == len(sent)


def _frame_seeds() -> Iterator[bytes]:
    yield b"\3\x81\x05hello\x89\x00\x88\x02\x03\xe8"
    yield b"\5\x01\x83mask" + b"abc" + b"\x80\x7e\x00\x80" + b"x" * 128 + ping_frame(b"mask")
    yield b"\7\x82\x7f" + bytes(7) + b"\x03abc" + close_frame(1001, "going", b"mask")


FRAMES: Final = Target("frames", frames, _frame_seeds, (b"\x81\x7e", b"\x82\x7f", b"\x88\x00", b"\xff"))

# --- header fields ---------------------------------------------------------------------------------

_KEY: Final = b"A" * 22 + b"=="
_TRUSTED: Final = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def request_fields(data: bytes) -> None:
    """What passes on to a provider is what came, less what must not; reading it twice tells the same."""
    lines = [line.strip(b"\r") for line in data.split(b"\n")]
    some = [line.partition(b":") for line in lines]
    fields = tuple((name, value.strip(b" \t")) for name, _, value in some if name)
    head = request_head(fields)
    named = {token.strip() for token in head.named.get(b"connection", b"").lower().split(b",")}
    passed = [line.partition(b": ") for line in head.lines.split(b"\r\n")[:-1]]
    if b"\r" not in data and b": " not in data:
        for name, _, value in passed:
            assert name.lower() not in NOT_FORWARDED | named, "what must end here passes"
            assert (name, value) in fields or name.lower() == b"accept-encoding", "a field is made up"
    _check_reader(fields)
    via = head.named.get(b"via", b"")
    assert all(name.encode() in via for name in hops(via))
    try:
        refuse_loop(via, "llmgateway-0123456789abcdef")
    except GatewayError as error:
        assert error.kind.status == 508
    try:
        require_handshake(head.named, (1, 1))
    except GatewayError as error:
        assert error.kind.status in (400, 426)
    text = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.named.items()}
    peer = peer_of("10.0.0.1", text, _TRUSTED, over_tls=False)
    assert peer.proxied or str(peer.address) == "10.0.0.1"
    stranger = peer_of("192.0.2.1", text, _TRUSTED, over_tls=False)
    assert str(stranger.address) in ("192.0.2.1", "None"), "a stranger is believed"


def _check_reader(fields: Fields) -> None:
    reader, once = HeadReader(), request_head(fields)
    for length in (b"1", b"22", b"1"):
        again = tuple((name, length if name.lower() == _LENGTH else value) for name, value in fields)
        head = reader.read(again)
        assert head.lines == once.lines
        assert head.plain_lines == once.plain_lines
        assert head.named == {k: v for k, v in once.named.items() if k != _LENGTH}
    other = (*fields[:-1], (b"X-Other", b"1"))
    assert reader.read(other).lines == request_head(other).lines, "another head is taken for the same"


def _field_seeds() -> Iterator[bytes]:
    yield b"Host:x\nContent-Length:5\nConnection:close, X-A\nX-A:b\nX-Api-Key:x\nAccept-Encoding:br, gzip"
    yield b"Via:1.1 llmgateway-0123456789abcdef, 1.1 x\nX-Forwarded-For:1.2.3.4, [fd00::1]:5, 10.0.0.2"
    yield b"Connection:Upgrade\nUpgrade:websocket\nSec-WebSocket-Version:13\nSec-WebSocket-Key:" + _KEY
    yield b"accept-encoding:zstd;q=1, *;q=0\nTE:trailers\nX-Forwarded-Proto:https,http\nOrigin:null"


REQUEST_FIELDS: Final = Target(
    "request_fields",
    request_fields,
    _field_seeds,
    words(
        b"""Via: X-Forwarded-For: X-Forwarded-Proto: Connection: Content-Length: Accept-Encoding: gzip
        identity deflate br zstd ;q=0 llmgateway-0123456789abcdef ::ffff:10.0.0.1 fd00:: [::1]:5
        Sec-WebSocket-Key: Sec-WebSocket-Version:13 Upgrade:websocket Connection:Upgrade"""
    ),
)
