"""One connection to a provider, byte by byte: no half answer passes for a whole one.

The provider here is a bare socket: a test decides which bytes come together, and how the connection ends.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from llmgateway.config.load import build
from llmgateway.errors import ProviderBroke, ProviderFailed, ProviderTimedOut
from llmgateway.fleet.address import Address
from llmgateway.fleet.dialing import Dialer
from llmgateway.fleet.names import look_up
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.trust import Trust
from llmgateway.fleet.upstream import Pool
from llmgateway.http.connection import MAX_INTERIM_ANSWERS, Connection, _judge_again, _size_line
from llmgateway.http.exchange import BUFFER_BYTES, Deadlines, Exchange
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import eventually
from tests.script import answer, cut, interim, play, raw, reset

Segment = tuple[bytes, bool]
"""Bytes of an answer, and whether they are its body (or else framing)."""


@dataclass(frozen=True)
class Answer:
    """A valid answer in segments of framing and body."""

    name: str
    segments: tuple[Segment, ...]
    until_close: bool = False

    @property
    def whole(self) -> bytes:
        return b"".join(data for data, _ in self.segments)

    def body(self, size: int | None = None) -> bytes:
        """The part of the body that is in the first `size` bytes."""
        found, left = b"", len(self.whole) if size is None else size
        for data, is_body in self.segments:
            found += data[:left] if is_body else b""
            left = max(0, left - len(data))
        return found

    def framing(self) -> Iterator[int]:
        """Where the bytes of the framing stand, but for fields that would make it another valid answer."""
        position = 0
        for data, is_body in self.segments:
            if not is_body and not data.lower().startswith((b"transfer-encoding", b"content-length")):
                yield from range(position, position + len(data))
            position += len(data)


def answer_of(name: str, *segments: bytes | Segment, until_close: bool = False) -> Answer:
    """Segments given as bare bytes are framing."""
    pairs = ((segment, False) if isinstance(segment, bytes) else segment for segment in segments)
    return Answer(name, tuple(pairs), until_close)


def body(data: bytes) -> Segment:
    return data, True


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ANSWERS = (
    answer_of("length", OK, b"X-A: b\r\n", b"Content-Length: 11\r\n", b"\r\n", body(b"hello world")),
    answer_of("empty", OK, b"Content-Length: 0\r\n", b"\r\n"),
    answer_of(
        "chunked", OK, CHUNKED, b"\r\n5\r\n", body(b"hello"), b"\r\n1\r\n", body(b"\n"), b"\r\n0\r\n\r\n"
    ),
    answer_of(
        "extensions and trailers",
        OK,
        CHUNKED,
        b"\r\n00B;a=b;c\r\n",
        body(b"hello\r\nworl"[:11]),
        b'\r\n3;q="x yz"\r\n',
        body(b"0\r\n"),
        b"\r\n0;last\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    ),
    answer_of("until close", OK, b"X-A: b\r\n\r\n", body(b"hello\r\n\r\nworld"), until_close=True),
    answer_of("1.0 until close", b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\n", body(b"hello"), until_close=True),
    answer_of("1.0 length", b"HTTP/1.0 200 OK\r\n", b"Content-Length: 5\r\n", b"\r\n", body(b"hello")),
    answer_of("204", b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"),
    answer_of("304", b"HTTP/1.1 304 Not Modified\r\n", b"Content-Length: 5\r\n", b"\r\n"),
    answer_of(
        "1xx before",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n",
        OK,
        b"Content-Length: 5\r\n",
        b"\r\n",
        body(b"hello"),
    ),
)
each_answer = pytest.mark.parametrize("good", ANSWERS, ids=lambda good: good.name)


class Watched(Connection):
    """A connection that says how much has come in."""

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.lost = asyncio.Event()
        self.seen = 0
        self.news = asyncio.Event()
        super().__init__(self.idle.append, lambda _: self.lost.set())

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.seen += len(data)
        self.news.set()

    async def has_seen(self, size: int) -> None:
        async with asyncio.timeout(HANG_S):
            while self.seen < size and not self.lost.is_set():
                self.news.clear()
                await self.news.wait()


@dataclass
class Line:
    """Both ends of one connection, with an exchange under way on ours."""

    ours: Watched
    theirs: socket.socket
    exchange: Exchange
    sent: int = 0

    async def say(self, *pieces: bytes) -> None:
        """Send each piece as a packet of its own."""
        for piece in pieces:
            try:
                self.theirs.sendall(piece)
            except ConnectionError:
                return
            self.sent += len(piece)
            await self.ours.has_seen(self.sent)

    def finish(self) -> None:
        self.theirs.shutdown(socket.SHUT_WR)  # closing with the request unread would be a reset

    def reset(self) -> None:
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    def ask_again(self) -> Exchange:
        self.exchange = Exchange("rig", self.ours, self.ours.loop)
        self.ours.send(self.exchange, b"POST / HTTP/1.1\r\n\r\n", b"")
        return self.exchange


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        _, ours = await asyncio.get_running_loop().create_connection(Watched, "127.0.0.1", port)
        theirs, _ = listener.accept()
    exchange = Exchange("rig", ours, ours.loop)
    ours.send(exchange, b"POST / HTTP/1.1\r\n\r\n", b"")
    try:
        yield Line(ours, theirs, exchange)
    finally:
        ours.abort()
        theirs.close()
        async with asyncio.timeout(HANG_S):
            await ours.lost.wait()


@dataclass
class Kept:
    """What an exchange handed on, and how it ended."""

    body: bytes = b""
    finals: list[bool] = field(default_factory=list)
    failure: ProviderFailed | None = None
    full: bool = False

    def feed(self, data: bytes, *, final: bool) -> None:
        assert self.failure is None
        self.body += data
        self.finals.append(final)

    def feed_chunk(self, data: bytes, framed: bytes, now: float) -> None:
        assert framed == b"%x\r\n%b\r\n" % (len(data), data)
        self.feed(data, final=False)

    @property
    def complete(self) -> bool:
        return bool(self.finals) and self.finals[-1]


async def received(exchange: Exchange, begun: asyncio.Event | None = None) -> Kept:
    """Take an answer as the relay does."""
    kept = Kept()
    try:
        await exchange.first_byte(Deadlines(HANG_S))
        if begun:
            begun.set()
        await exchange.relay(kept, HANG_S)
    except ProviderFailed as failure:
        kept.failure = failure
    assert sum(kept.finals) == (kept.failure is None) == exchange.complete, "the end is told once"
    return kept


@each_answer
async def test_an_answer_split_anywhere_is_the_same_answer(good: Answer) -> None:
    for at in range(len(good.whole)):
        async with line() as this:
            taking = asyncio.create_task(received(this.exchange))
            await this.say(*filter(None, (good.whole[:at], good.whole[at:])))
            if good.until_close:
                this.finish()
            kept = await taking
            assert (kept.body, kept.complete) == (good.body(), True), at


@each_answer
async def test_an_answer_that_comes_byte_by_byte_is_the_same_answer(good: Answer) -> None:
    async with line() as this:
        taking = asyncio.create_task(received(this.exchange))
        await this.say(*(good.whole[at : at + 1] for at in range(len(good.whole))))
        if good.until_close:
            this.finish()
        assert (await taking).body == good.body()


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@each_answer
async def test_an_answer_cut_anywhere_is_never_complete(good: Answer, ending: str) -> None:
    head = good.whole.index(b"\r\n\r\n") + 4
    for size in range(len(good.whole) + good.until_close):
        async with line() as this:
            begun = asyncio.Event()
            taking = asyncio.create_task(received(this.exchange, begun))
            await this.say(good.whole[:size])
            if good.body(size):
                async with asyncio.timeout(HANG_S):
                    await begun.wait()
            this.finish() if ending == "FIN" else this.reset()
            kept = await taking
            ends_well = good.until_close and ending == "FIN" and size >= head
            assert kept.complete is ends_well, size
            assert ends_well or isinstance(kept.failure, ProviderBroke), (size, kept.failure)
            assert kept.body == good.body(size), size


@each_answer
async def test_what_came_together_with_the_break_is_not_lost_after_the_start(good: Answer) -> None:
    if not good.body() or good.until_close:
        return
    start = good.whole.index(good.body()[:5]) + 1
    async with line() as this:
        begun = asyncio.Event()
        taking = asyncio.create_task(received(this.exchange, begun))
        await this.say(good.whole[:start])
        await begun.wait()
        this.theirs.sendall(good.whole[start:-1])
        this.finish()
        kept = await taking
        assert isinstance(kept.failure, ProviderBroke)
        assert kept.body == good.body(len(good.whole) - 1)


@each_answer
async def test_an_answer_with_a_spoiled_byte_is_the_same_or_broken(good: Answer) -> None:
    for at in good.framing():
        original = good.whole[at]
        for spoiled in {0x00, 0x0A, 0x0D, 0x20, 0x30, 0x3A, 0x3B, 0x78, 0xFF, original ^ 1} - {original}:
            async with line() as this:
                taking = asyncio.create_task(received(this.exchange))
                await this.say(good.whole[:at] + bytes([spoiled]) + good.whole[at + 1 :])
                this.finish()
                kept = await taking
                where = (good.whole[:at], spoiled, kept)
                assert isinstance(kept.failure, ProviderBroke) or kept.body == good.body(), where


LENGTH_2 = OK + b"Content-Length: 2\r\n"
ENDLESS = b"x" * 20_000


@pytest.mark.parametrize(
    "said",
    [
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"\x00" * 64],
        [b"HTTP/1.1 099 Low\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 600 High\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"raw"],
        [b"HTTP/1.1 101 Switching Protocols\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * (MAX_INTERIM_ANSWERS + 1),
        [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000],
        [OK + b"X: " + b"x" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok"],
        [
            OK
            + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1_000) for n in range(70))
            + b"Content-Length: 2\r\n\r\nok"
        ],
        [OK + b"X: ", *[ENDLESS] * 8],
        [b"HTTP/1.1 200 ", *[ENDLESS] * 8],
        [OK + CHUNKED + b"\r\n2\r\nok\r\n0\r\nX: ", *[ENDLESS] * 8],
        [OK + CHUNKED + b"\r\n2\r\nok\r\n0\r\n", *[b"X: y\r\n" * 4_000] * 8],
        [OK + CHUNKED + b"\r\n2;", *[ENDLESS] * 8],
        [OK + CHUNKED + b"\r\n" + b"0" * 20 + b"2\r\n", b"f" * 40 + b"\r\n"],
        [OK + CHUNKED + b"\r\n-2\r\nok\r\n0\r\n\r\n"],
        [OK + CHUNKED + b"\r\n2\r\nokay\r\n0\r\n\r\n"],
        [OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        [OK + b"Transfer-Encoding: identity\r\n\r\nok"],
        [b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n"],
        [OK + CHUNKED + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        [LENGTH_2 + b"Content-Length: 3\r\n\r\nok!"],
        [OK + b"Content-Length: 2, 3\r\n\r\nok!"],
        [OK + b"Content-Length: -2\r\n\r\nok"],
        [OK + b"Content-Length: 99999999999999999999999\r\n\r\nok"],
        [LENGTH_2 + b"X-A : b\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\r\n folded\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\x00c\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\x01c\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\x1b[2Jc\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\x7fc\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\rX-B: c\r\n\r\nok"],
        [LENGTH_2 + b"X-A: b\nX-B: c\r\n\r\nok"],
    ],
    ids=lambda said: repr(said[0][:44]),
)
async def test_what_is_not_an_answer_is_broken_and_ends_the_connection(said: list[bytes]) -> None:
    async with line() as this:
        taking = asyncio.create_task(received(this.exchange))
        await this.say(*said)
        assert isinstance((await taking).failure, ProviderBroke)
        async with asyncio.timeout(HANG_S):
            await this.ours.lost.wait()


@pytest.mark.parametrize(
    "behind", [b"x", b"HTTP/1.1 500 Forged\r\nX-Forged: 1\r\nContent-Length: 3\r\n\r\nbad", b"\x00", OK]
)
async def test_data_behind_an_answer_spoils_the_connection_but_not_the_answer(behind: bytes) -> None:
    async with line() as this:
        await this.say(LENGTH_2 + b"X-A: b\r\n\r\nok" + behind)
        kept = await received(this.exchange)
        assert (kept.body, kept.complete) == (b"ok", True)
        assert (this.exchange.status, this.exchange.reason) == (200, b"OK")
        assert this.exchange.head.lines == b"X-A: b\r\n"
        assert not this.ours.idle
        assert not this.ours.usable


async def test_data_that_comes_later_than_an_answer_ends_the_idle_connection() -> None:
    async with line() as this:
        await this.say(LENGTH_2 + b"\r\nok")
        assert (await received(this.exchange)).complete
        assert this.ours.idle
        await this.say(b"x")
        assert not this.ours.usable


@pytest.mark.parametrize(
    ("said", "reused"),
    [
        (LENGTH_2 + b"\r\nok", True),
        (LENGTH_2 + b"Keep-Alive: timeout=5, max=100\r\n\r\nok", True),
        (LENGTH_2 + b"Keep-Alive: timeout=5, max=1\r\n\r\nok", False),
        (LENGTH_2 + b"Connection: close\r\n\r\nok", False),
        (LENGTH_2 + b"Connection: X, Close\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", True),
        (LENGTH_2 + b"Keep-Alive: max=" + b"9" * 5_000 + b"\r\n\r\nok", True),
    ],
)
async def test_a_connection_is_kept_only_if_the_provider_keeps_it(said: bytes, reused: bool) -> None:
    async with line() as this:
        await this.say(said)
        assert (await received(this.exchange)).body == b"ok"
        assert (this.ours.idle == [this.ours]) is this.ours.usable is reused


async def test_nothing_of_one_answer_shows_up_in_the_next() -> None:
    async with line() as this:
        await this.say(
            b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + CHUNKED + b"\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        assert (await received(this.exchange)).complete
        assert this.exchange.head.lines == b""
        this.ask_again()
        await this.say(b"HTTP/1.1 404 \r\nContent-Length: 3\r\nX-B: 2 \t\r\n\r\nno!")
        assert (await received(this.exchange)).body == b"no!"
        assert (this.exchange.status, this.exchange.reason) == (404, b"")
        assert this.exchange.head.lines == b"X-B: 2\r\n"


def test_a_packet_that_is_one_whole_chunk_is_known_by_its_size() -> None:
    sizes = [*range(1, 70_000), 0xFFFFF, 0x100000, 0xFFFFFF]
    packets = {size: len(b"%x\r\n" % size) + size + 2 for size in sizes}
    assert all(_size_line(packet) == b"%x\r\n" % size for size, packet in packets.items())
    others = set(range(70_000)) - set(packets.values())
    assert others == {0, 1, 2, 3, 4, 5, 21, 262, 4103, 65544}
    assert {_size_line(packet) for packet in others} == {None}


@pytest.mark.parametrize("size", [3, 5, 20, 21, 22, 262, 263, 4103])
async def test_what_is_no_chunk_between_two_is_never_passed_on(size: int) -> None:
    for junk in (b"no chunk", b"None", b""):
        packet = junk[: size - 2].ljust(size - 2, b"x") + b"\r\n"
        async with line() as this:
            taking = asyncio.create_task(received(this.exchange))
            await this.say(OK + CHUNKED + b"\r\n2\r\nok\r\n", b"2\r\nok\r\n", packet)
            this.finish()
            kept = await taking
            assert isinstance(kept.failure, ProviderBroke), packet
            assert kept.body == b"okok"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"xx", b"x\n", b"\r0"])
async def test_a_packet_of_the_size_of_a_chunk_that_does_not_end_like_one_is_none(end: bytes) -> None:
    async with line() as this:
        taking = asyncio.create_task(received(this.exchange))
        await this.say(OK + CHUNKED + b"\r\n2\r\nok\r\n", b"2\r\nok\r\n", b"5\r\nhello" + end)
        this.finish()
        kept = await taking
        assert isinstance(kept.failure, ProviderBroke)
        assert "not valid HTTP" in kept.failure.message


@pytest.mark.parametrize("length", [10**18, 10**19, 2**64 - 1])
async def test_an_answer_that_is_shorter_than_it_said_is_broken_however_much_it_said(length: int) -> None:
    async with line() as this:
        taking = asyncio.create_task(received(this.exchange))
        await this.say(OK + b"Content-Length: %d\r\n\r\nok" % length)
        this.finish()
        kept = await taking
        assert isinstance(kept.failure, ProviderBroke)
        assert kept.body == b"ok"


async def test_those_who_wait_are_timed_out_one_by_one_and_those_served_are_not() -> None:
    async with line() as early, line() as served, line() as late:
        deadlines = Deadlines(0.5)
        first, second, third, _ = await asyncio.gather(
            *(each.exchange.first_byte(deadlines) for each in (early, served, late)),
            served.say(OK + b"Content-Length: 2\r\n\r\nok"),
            return_exceptions=True,
        )
        assert isinstance(first, ProviderTimedOut) and isinstance(third, ProviderTimedOut)
        assert second is None and served.exchange.complete


async def test_a_silent_provider_times_out_before_its_first_byte_and_between_two() -> None:
    async with line() as this:
        await this.say(OK + CHUNKED + b"\r\n")  # a head alone is no answer yet
        with pytest.raises(ProviderTimedOut, match="first_byte"):
            await this.exchange.first_byte(Deadlines(0.05))
        async with asyncio.timeout(HANG_S):
            await this.ours.lost.wait()
    async with line() as this:
        await this.say(OK + CHUNKED + b"\r\n2\r\nok\r\n")
        await this.exchange.first_byte(Deadlines(HANG_S))
        kept = Kept()
        with pytest.raises(ProviderTimedOut, match="idle"):
            await this.exchange.relay(kept, 0.05)
        assert (kept.body, kept.complete) == (b"ok", False)


async def test_what_nobody_takes_yet_is_held_back_in_bounded_memory() -> None:
    async with line() as this:
        this.theirs.setblocking(False)
        this.theirs.send(OK + b"Content-Length: 50000000\r\n\r\n")
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(this.theirs, b"x" * 50_000_000))
        await eventually(lambda: this.exchange.paused)
        held, whole = await this.exchange.read(BUFFER_BYTES, 0.05)
        assert (len(held) < 1_000_000, whole) == (True, False)
        kept = await received(this.exchange)
        assert (len(kept.body), kept.complete) == (50_000_000, True)
        await sending


async def test_a_sink_that_is_full_from_the_start_holds_the_provider_back() -> None:
    async with line() as this:
        this.theirs.setblocking(False)
        this.theirs.send(OK + b"Content-Length: 50000000\r\n\r\n")
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(this.theirs, b"x" * 50_000_000))
        await this.exchange.first_byte(Deadlines(HANG_S))
        kept = Kept(full=True)
        relaying = asyncio.create_task(this.exchange.relay(kept, HANG_S))
        await eventually(lambda: bool(kept.finals))
        assert this.exchange.paused
        early = len(kept.body)
        assert not sending.done() and early < 1_000_000
        kept.full = False
        this.exchange.resume()
        await relaying
        await sending
        assert (len(kept.body), kept.complete) == (50_000_000, True)


async def test_others_have_their_turn_between_two_large_packets_of_a_fast_provider() -> None:
    size, seen, largest = 8_000_000, 0, 0
    loop = asyncio.get_running_loop()

    def turn() -> None:
        nonlocal largest, seen
        largest, seen = max(largest, this.ours.seen - seen), this.ours.seen
        if seen < size:
            loop.call_soon(turn)

    async with line() as this:
        this.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        await this.say(OK + b"Content-Length: %d\r\n\r\n" % size)
        relaying = asyncio.create_task(received(this.exchange))
        loop.call_soon(turn)
        await asyncio.to_thread(this.theirs.sendall, b"x" * size)
        kept = await relaying
        assert (len(kept.body), kept.complete) == (size, True)
        assert largest <= 256 * 1024


async def test_a_provider_is_held_back_where_a_sink_has_filled_in_its_turn_of_rest() -> None:
    async with line() as this:
        this.theirs.setblocking(False)
        this.theirs.send(OK + b"Content-Length: 50000000\r\n\r\nx")
        await this.exchange.first_byte(Deadlines(HANG_S))
        kept = Kept(full=False)
        relaying = asyncio.create_task(this.exchange.relay(kept, HANG_S))
        await asyncio.sleep(0)
        this.exchange.rest()
        kept.full = True
        assert this.exchange.paused
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(this.theirs, b"x" * 49_999_999))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (this.exchange.paused, kept.body, sending.done()) == (True, b"x", False)
        kept.full = False
        this.exchange.resume()
        await relaying
        await sending
        assert (len(kept.body), kept.complete) == (50_000_000, True)


async def test_an_exchange_that_is_cut_ends_its_connection_at_once() -> None:
    async with line() as this:
        await this.say(OK + CHUNKED + b"\r\n2\r\nok\r\n")
        this.exchange.cut()
        async with asyncio.timeout(HANG_S):
            await this.ours.lost.wait()


# --- the pool: a stale connection ----------------------------------------------------------------------


@asynccontextmanager
async def pool_to(server: FakeProvider) -> AsyncIterator[Pool]:
    config = build({"providers": {"rig": {"url": server.url, "timeouts": {"first_byte": "5s"}}}})
    entry = config.providers["rig"]
    rig, address = Provider("rig", entry, config.health), Address(entry, "gateway")
    pool = Pool(rig, address, Dialer(rig, address, Trust(), look_up))
    try:
        yield pool
    finally:
        pool.close()


async def ask(pool: Pool) -> bytes:
    exchange = await pool.open(b"POST /v1/x HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"{}")
    return (await received(exchange)).body


@pytest.mark.parametrize("ending", [cut, reset])
async def test_a_stale_connection_is_replaced_by_a_fresh_one_once(ending: Callable[[], Script]) -> None:
    async with FakeProvider() as server, pool_to(server) as pool:
        server.once(answer(200, b"one"), ending(), answer(200, b"two"))
        assert await ask(pool) == b"one"
        assert await ask(pool) == b"two"
        assert [request.connection for request in server.requests] == [1, 1, 2]


@pytest.mark.parametrize("begun", [raw(b"H"), interim(103), raw(OK)])
async def test_a_connection_that_broke_after_a_byte_is_not_tried_again(begun: Script) -> None:
    async with FakeProvider() as server, pool_to(server) as pool:
        server.once(answer(200, b"one"), play(begun, cut()), answer(200, b"two"))
        assert await ask(pool) == b"one"
        with pytest.raises(ProviderBroke):
            await ask(pool)
        assert len(server.requests) == 2


async def test_a_fresh_connection_that_breaks_is_not_tried_again() -> None:
    async with FakeProvider() as server, pool_to(server) as pool:
        server.script = cut()
        with pytest.raises(ProviderBroke):
            await ask(pool)
        assert len(server.requests) == 1


async def test_a_head_that_is_too_large_is_refused_though_it_comes_in_one_packet() -> None:
    async with line() as this:
        lines = b"".join(b"A%d: %b\r\n" % (number, b"x" * 100) for number in range(700))
        this.ours.data_received(OK + lines + b"Content-Length: 2\r\n\r\nok")
        with pytest.raises(ProviderBroke, match="the head is too large"):
            await this.exchange.first_byte(Deadlines(HANG_S))


@pytest.mark.parametrize(("size", "looked_up"), [(100, 1), (10_000, 0)])
async def test_only_short_heads_are_remembered(size: int, looked_up: int) -> None:
    async with line() as this:
        before = _judge_again.cache_info()
        this.ours.data_received(OK + b"A: %b\r\nContent-Length: 2\r\n\r\nok" % (b"x" * size))
        await this.exchange.first_byte(Deadlines(HANG_S))
        after = _judge_again.cache_info()
        assert (after.hits + after.misses) - (before.hits + before.misses) == looked_up
