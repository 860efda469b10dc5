"""Fuzzed: the answers of providers, as bytes on a connection, and what servers tell of themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import orjson

from llmgateway.http.connection import Connection
from llmgateway.http.exchange import Exchange
from llmgateway.http.headers import answer_head, keep_alive_limits, whole_number
from llmgateway.servers.kind import Facts, proves, quote, read_details
from llmgateway.servers.known import KINDS
from llmgateway.servers.models import NotAnLLMServer, model_entry, read_listing
from llmgateway.servers.refusals import REFUSALS, scope_of
from tests.answers import ANSWERS, DISPUTED
from tests.fuzz.target import Choices, Target, behind, pieces, words
from tests.fuzz.wire import LOOP, Line

# --- answers ---------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Taken:
    """A sink that keeps what it is fed."""

    full: bool = False
    body: bytes = b""
    final: int = 0
    framed: list[tuple[bytes, bytes]] = field(default_factory=list)

    def feed(self, data: bytes, *, final: bool) -> None:
        assert not self.final, "fed behind the end"
        self.body += data
        self.final += final

    def feed_chunk(self, data: bytes, framed: bytes, now: float) -> None:
        assert not self.final, "fed behind the end"
        self.body += data
        self.framed.append((data, framed))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an answer."""

    status: int
    complete: bool
    body: bytes
    lines: bytes
    reusable: bool


async def _carried(some: Sequence[bytes], *, relays: bool, resets: bool) -> Outcome:
    """Have these packets come, and then the end of the connection."""
    idle: list[Connection] = []
    lost: list[Connection] = []
    connection, line = Connection(idle.append, lost.append), Line()
    connection.connection_made(line)
    exchange, sink = Exchange("rig", connection, asyncio.get_running_loop()), Taken()
    connection.send(exchange, b"GET / HTTP/1.1\r\n\r\n", b"")
    for packet in some:
        if relays and exchange.sink is None and exchange._buffered:
            _relay(exchange, sink)
        if line.is_closing() or exchange.complete:
            break
        connection.data_received(packet)
    reusable = bool(idle)
    connection.connection_lost(ConnectionResetError() if resets else None)
    assert len(lost) == 1
    assert exchange.complete is not bool(exchange.failure), "it neither ended nor failed, or both"
    if exchange.sink is None:
        _relay(exchange, sink)
    assert sink.final == exchange.complete
    for data, framed in sink.framed:
        assert framed == b"%x\r\n%b\r\n" % (len(data), data), "a chunk is framed falsely"
    return Outcome(exchange.status, exchange.complete, sink.body, exchange.head.lines, reusable)


def _relay(exchange: Exchange, sink: Taken) -> None:
    """Do what `Exchange.relay` does at once."""
    exchange.sink = sink
    early, exchange._buffer, exchange._buffered = b"".join(exchange._buffer), [], 0
    if early or exchange.complete:
        sink.feed(early, final=exchange.complete)


def answer(data: bytes) -> None:
    """An answer is the same however it is cut, makes nothing up, and is what others read."""
    choices = Choices(data)
    relays, resets, cutting = choices.flag(), choices.flag(), choices.number()
    sent = choices.rest
    whole = LOOP.run_until_complete(_carried(pieces(sent, 0), relays=relays, resets=resets))
    assert _is_within(whole.body, sent), "bytes are made up"
    for way in (1, cutting):
        other = LOOP.run_until_complete(_carried(pieces(sent, way), relays=relays, resets=resets))
        assert (other.status, other.complete) == (whole.status, whole.complete), "it depends on the cuts"
        if whole.complete:
            assert (other.body, other.lines) == (whole.body, whole.lines)
        else:
            assert whole.body.startswith(other.body) or other.body.startswith(whole.body)
    if whole.complete:
        _check_against_h11(sent, whole)


def _is_within(body: bytes, sent: bytes) -> bool:
    left = iter(sent)
    return all(byte in left for byte in body)


def _check_against_h11(sent: bytes, whole: Outcome) -> None:
    """Where h11 takes it for an answer as well, it has the same status and body."""
    other = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    other.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    other.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        other.receive_data(sent)
        other.receive_data(b"")
        while True:
            match other.next_event():
                case h11.Response(status_code=code):
                    status = code
                case h11.Data(data=piece):
                    body += bytes(piece)
                case h11.EndOfMessage():
                    break
                case h11.InformationalResponse():
                    pass
                case _:
                    return
    except h11.RemoteProtocolError:
        return
    assert (status, body) == (whole.status, whole.body), "h11 reads another answer"


def _answer_seeds() -> Iterator[bytes]:
    small = [answer.whole for answer in ANSWERS if len(answer.whole) < 1_000]
    yield from behind(1, 0, 3)(small)
    yield from behind(0, 1, 5)(disputed.answer.whole for disputed in DISPUTED[::5])


ANSWER: Final = Target(
    "answer",
    answer,
    _answer_seeds,
    words(
        b"""HTTP/1.1 HTTP/1.0 200 204 304 100 101 103 500 Content-Length: Transfer-Encoding: chunked 0 5 ;b=c
        Connection: close keep-alive Keep-Alive: timeout= max= Content-Encoding: gzip""",
        b"\r\n",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"Content-Type: text/event-stream\r\n",
    ),
    short_runs=4_000,
)

# --- header fields ---------------------------------------------------------------------------------


def answer_fields(data: bytes) -> None:
    """Whatever the fields of an answer say, it is sorted, and none is cut or joined."""
    lines = data.split(b"\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    head = answer_head(fields)
    passed = head.lines.split(b"\r\n")
    for line in passed[:-1]:
        name, _, value = line.partition(b": ")
        added = name in (b"X-Accel-Buffering", b"Cache-Control")
        assert added or (name, value) in fields or b"\r" in data or b": " in data, "a field is made up"
    idle_s, most = keep_alive_limits(head.keep_alive)
    assert idle_s is None or idle_s >= 0
    assert most is None or most >= 0
    number = whole_number(data)
    assert number is None or number == int(data)


def _field_seeds() -> Iterator[bytes]:
    yield b"Content-Type: text/event-stream\nConnection: x-a, close\nX-A: b\nKeep-Alive: timeout=5, max=0"
    yield b"content-encoding: GZIP\nTransfer-Encoding: chunked\ndate: x\ncontent-type: application/json"
    yield b"00000000000000000000017"


ANSWER_FIELDS: Final = Target(
    "answer_fields",
    answer_fields,
    _field_seeds,
    words(
        b"""Connection: Keep-Alive: timeout= max= Content-Type: text/event-stream Cache-Control: Set-Cookie:
        application/x-ndjson X-Accel-Buffering: Content-Encoding: identity Date:"""
    ),
)

# --- what servers tell of themselves ---------------------------------------------------------------


def servers(data: bytes) -> None:
    """Whatever a server tells of itself, it is taken in or said to be none; its models can be listed."""
    choices = Choices(data)
    kind = choices.one_of(*KINDS)
    listing_body, _, rest = choices.rest.partition(b"\0")
    assert len(quote(data, ["secret"])) <= 300
    try:
        listing = read_listing(listing_body)
    except NotAnLLMServer:
        return
    assert kind.wrote(listing) in (True, False)
    facts = Facts(listing.models)
    bodies = rest.split(b"\0")
    for details, body in zip((*kind.details, *kind.more(facts)), bodies, strict=False):
        facts = read_details(details, facts, body)
    if kind.proof is not None:
        assert proves(kind.proof, bodies[-1]) in (True, False)
    for details in kind.more(facts):
        facts = read_details(details, facts, bodies[0])
    assert kind.is_loading(503, rest) in (True, False)
    for status in REFUSALS:
        scope = scope_of(status, rest, "/v1/chat/completions", facts.models)
        assert scope in ("server", "model", None)
    for name, model in facts.models.items():
        assert model.id == name
        orjson.dumps(model_entry(model, owned_by=kind.name, created=1, by_way=True))
        kind.full_name(name)


def _listing(*names: str, **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, **more} for name in names]}).encode()


def _server_seeds() -> Iterator[bytes]:
    props = b'{"default_generation_settings":{"n_ctx":9},"total_slots":4,"is_sleeping":false,"role":"router"}'
    tags = b'{"models":[{"model":"m:latest","name":"m","size":5,"digest":"d","details":{"family":"f"}}]}'
    lm = b'{"data":[{"id":"m","state":"loaded","max_context_length":5,"type":"llm","arch":"a"}]}'
    for number in range(len(KINDS)):
        for body in (props, tags, lm, b'{"version":"0.1"}'):
            listing = _listing("m", "m:latest", owned_by=KINDS[number].name, created=3)
            yield bytes((number,)) + b"\0".join((listing, body, body, body))
    yield b"\0" + _listing("m", state="loaded", meta={"n_ctx": 9}, status={"value": "sleeping"}, via=["a"])
    yield b'\1{"data":null}\0{"models":[]}'


SERVERS: Final = Target(
    "servers",
    servers,
    _server_seeds,
    words(
        rb""""data" "id" "owned_by" "created" "via" "models" "model" "name" "state" "loaded" "status" "value"
        "sleeping" "meta" "n_ctx" "total_slots" "default_generation_settings" "role" "router" "version"
        "models_autoload" "is_sleeping" "context_length" "max_model_len" "llamacpp" "library" "vllm" "error"
        "message" "detail" "\ud800" NaN null true false"""
    ),
)
