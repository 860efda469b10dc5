"""One HTTP/1.1 connection to a provider: it writes a request, and hands its answer on to an exchange.

The response head is parsed by llhttp (through httptools), strictly; the body is handed on piece by piece,
synchronously, from `data_received` to a sink, so that no task wakes for a chunk. Rules:

- What had arrived before a connection broke is delivered before the break is told.
- Bounded: the head, and bytes that bring no body.
- A connection is used again only after a complete answer, a complete request, and nothing unasked behind it.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast

import httptools
from msgspec.structs import replace

from llmgateway.api.endpoints import Body
from llmgateway.http.exchange import BUFFER_BYTES, Exchange
from llmgateway.http.headers import NO_HEAD, AnswerHead, Field, answer_head, keep_alive_limits, whole_number
from llmgateway.http.upload import Cargo, Sending

MAX_HEAD_BYTES: Final = 64 * 1024
_SMALL_HEAD_BYTES: Final = 4 * 1024  # of one that is remembered: larger ones are rare, and would fill memory
IS_TLS: Final = "it is TLS"
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")  # an alert and a handshake, of whatever version
_LENGTH: Final = b"content-length"
_LENGTH_CHARACTERS: Final = len(_LENGTH)
MAX_INTERIM_ANSWERS: Final = 16
_LARGE_BYTES: Final = 128 * 1024  # of what comes at a time: half of what the loop reads
DEFAULT_IDLE_S: Final = 4.0  # uvicorn (vLLM) and llama.cpp close after 5 s; most do not say so
MAX_IDLE_S: Final = 60.0


@lru_cache(1024)
def _size_line(packet_bytes: int) -> bytes | None:
    """Give the first line of a packet that is one whole chunk, as the packet's size tells it.

    None for the few sizes that no such packet has.
    """
    for digits in range(1, 8):
        line = b"%x\r\n" % max(1, packet_bytes - digits - 4)
        if len(line) == digits + 2 and packet_bytes > digits + 4:
            return line
    return None


_USUAL_BYTES: Final = 1024
_SIZE_LINES: Final = tuple(map(_size_line, range(_USUAL_BYTES)))
"""Of the packets by which text comes."""
_CR, _LF = b"\r\n"  # to compare two numbers takes half as long as to ask for the end of the packet


def _judge(
    status: int, reason: bytes, version: str, fields: tuple[Field, ...]
) -> tuple[bytes, AnswerHead, str]:
    """Judge a head: its reason phrase, if that may be repeated, what its fields say, and what is wrong."""
    head = answer_head([(name, value.rstrip(b" \t")) for name, value in fields])
    fault = ""
    if version not in ("1.1", "1.0"):
        fault = "not HTTP/1.1"
    elif not 200 <= status <= 599:
        fault = "no such status"
    elif head.transfer_coding and (head.transfer_coding != b"chunked" or version == "1.0"):
        fault = "an unknown transfer coding"
    sane = reason.isascii() and reason.decode().isprintable()
    return reason if sane else b"", head, fault


# Heads of many servers differ in their length only, and once a second in their date.
_judge_again: Final = lru_cache(64)(_judge)


def _judge_long(
    status: int, reason: bytes, version: str, fields: tuple[Field, ...]
) -> tuple[bytes, AnswerHead, str]:
    """Judge a head that may be large."""
    size = sum(len(name) + len(value) + 4 for name, value in fields)
    if size > MAX_HEAD_BYTES:
        return b"", NO_HEAD, "the head is too large"
    return (_judge_again if size <= _SMALL_HEAD_BYTES else _judge)(status, reason, version, fields)


def _idle_s(keep_alive: bytes, served: int) -> float | None:
    """Give how long a connection may be idle, by what its provider says; None if it has served its last."""
    limit_s, most = keep_alive_limits(keep_alive)
    if most is not None and served >= most:
        return None
    return DEFAULT_IDLE_S if limit_s is None else min(limit_s - 1.0, MAX_IDLE_S)


class Connection(asyncio.Protocol):
    """One connection; belongs to an exchange, or is idle in its owner's pool.

    It is long as asyncio and the parser both call it, and a packet must not have to pass through two objects.
    """

    __slots__ = (
        "_barren_bytes",
        "_between_chunks",
        "_chunk_ended",
        "_complete",
        "_fault",
        "_fields",
        "_head_done",
        "_interim",
        "_keep_alive",
        "_length",
        "_now",
        "_on_idle",
        "_on_lost",
        "_packet_bytes",
        "_parser",
        "_pieces",
        "_reason",
        "_sending",
        "_served",
        "_status",
        "_transport",
        "_until_eof",
        "exchange",
        "idle_until",
        "loop",
        "reading_paused",
    )

    def __init__(
        self, on_idle: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]
    ) -> None:
        self.exchange: Exchange | None = None
        self.idle_until = 0.0
        self.reading_paused = False
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._sending: Sending | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.loop = asyncio.get_running_loop()
        self._now = self.loop.time
        self._served = 0
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._reason = b""
        self._fields: list[Field] = []
        self._length: bytes | None = None
        self._interim = 0
        self._head_done = False
        self._until_eof = False
        self._pieces: list[bytes] = []
        self._complete = False
        self._keep_alive = False
        self._chunk_ended = self._between_chunks = False
        self._fault = ""
        self._barren_bytes = self._packet_bytes = 0

    # -- for the pool and the exchange

    @property
    def usable(self) -> bool:
        """True while the other side has not hung up."""
        return self._transport is not None and not self._transport.is_closing()

    def fresh(self, now: float) -> bool:
        """Tell whether an idle connection can serve again: it is open, and not too old."""
        transport = self._transport
        return now < self.idle_until and transport is not None and not transport.is_closing()

    def send(self, exchange: Exchange, head: bytes, body: Body) -> None:
        """Start an exchange: write the request. The connection must be idle or new."""
        if self._served:
            self._reset()
        if self._transport is None:
            exchange.broke("closed the connection at once.")
            return
        self.exchange = exchange
        self._served += 1
        if len(body) <= BUFFER_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def send_cargo(self, exchange: Exchange, head: bytes, cargo: Cargo) -> Sending | None:
        """Start an exchange whose body is written piece by piece, as it comes and as it is read."""
        self.send(exchange, head, b"")
        if self._transport is not None:
            self._sending = cargo.upload.begin(self._transport, cargo.edit)
        return self._sending

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`."""
        if self._transport is not None and not self.reading_paused:
            self.reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> bool:
        """Read on; tells whether reading had been paused."""
        if self._transport is None or not self.reading_paused:
            return False
        self.reading_paused = False
        self._transport.resume_reading()
        return True

    def abort(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        self.exchange = None
        self._stop_sending()
        if self._transport is not None:
            self._transport.abort()

    def _stop_sending(self) -> bool:
        """Send no more of a body; tells whether that was all of it."""
        sending, self._sending = self._sending, None
        if sending is None:
            return True
        sending.stop()
        return sending.complete

    # -- asyncio.Protocol

    def pause_writing(self) -> None:
        """Learn that the provider does not read as fast as it is written to."""
        if self._sending is not None:
            self._sending.pause()

    def resume_writing(self) -> None:
        """Learn that it reads on."""
        if self._sending is not None:
            self._sending.resume()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was under way: a body that the close delimits is complete, any other is broken."""
        self._transport = None
        self._stop_sending()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            if self._until_eof and exc is None:
                exchange.received(b"", complete=True)
            else:
                exchange.lost, exchange.hung_up = True, exc is None
                exchange.broke("closed the connection before its answer was complete.")
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, hand the body on, then see whether the answer ended or went wrong."""
        exchange = self.exchange
        if exchange is None:
            self.abort()  # bytes that nobody asked for
            return
        if self._between_chunks and exchange.sink is not None:
            size = len(data)
            line = _SIZE_LINES[size] if size < _USUAL_BYTES else _size_line(size)
            if line is not None and data.startswith(line) and data[-1] == _LF and data[-2] == _CR:
                # One whole chunk, as most of a stream comes: the parser need not see it, its state is the
                # same after it as before, and the client can be sent it as it is.
                self._barren_bytes = 0
                exchange.last_byte = now = self._now()
                exchange.sink.feed_chunk(data[len(line) : -2], data, now)
                return
        exchange.untouched = False
        self._packet_bytes = size = len(data)
        if size >= _LARGE_BYTES:
            exchange.rest()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._behind_head(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._fault = self._fault or (IS_TLS if data.startswith(_TLS_RECORDS) else str(exc))
        # Behind a chunk only its own end, or a whole size line of the next one, can end in CRLF.
        self._between_chunks = self._chunk_ended and data.endswith(b"\r\n") and not self._fault
        pieces = self._pieces
        if pieces:
            self._pieces = []
            self._barren_bytes = 0
        else:
            self._count_barren(len(data))
        if self._complete:
            self._leave(exchange)
            exchange.received(b"".join(pieces), complete=True)
        elif pieces:
            exchange.received(b"".join(pieces), complete=False)
        if self._fault and not self._complete:
            exchange.broke(f"sent an answer that is not valid HTTP ({self._fault}).")

    def _behind_head(self, rest: bytes) -> None:
        """Take what came behind a head that changes the protocol: nobody has asked for that here."""
        self._fault = self._fault or "a change to another protocol"

    def _count_barren(self, size: int) -> None:
        """Bound what brings no body: interim answers, trailers, chunk extensions, a head that never ends."""
        self._barren_bytes += size
        if self._barren_bytes > MAX_HEAD_BYTES and not self._complete:
            self._fault = self._fault or "too many bytes without content"

    def _leave(self, exchange: Exchange) -> None:
        """Part from a complete exchange: back to the pool if the connection can serve again, else close."""
        self.exchange = None
        assert self._transport is not None
        keep_alive, request_sent = exchange.head.keep_alive, self._transport.get_write_buffer_size() == 0
        if self._sending is not None:
            request_sent = self._stop_sending() and request_sent
        idle_s = _idle_s(keep_alive, self._served) if keep_alive else DEFAULT_IDLE_S
        reusable = self._keep_alive and request_sent and not self._fault and not self._transport.is_closing()
        if idle_s is None or not reusable:
            self._transport.abort()
            return
        if self.reading_paused:
            self.resume_reading()
        self.idle_until = self.loop.time() + idle_s
        self._on_idle(self)

    # -- httptools

    def on_message_begin(self) -> None:
        """Refuse a second answer."""
        if self._complete:
            self._fault = "data behind the answer"

    def on_status(self, reason: bytes) -> None:
        """Keep a piece of the reason phrase."""
        if not self._head_done:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; those behind the body (trailers) end here."""
        if self._head_done:
            return
        if len(name) == _LENGTH_CHARACTERS and name.lower() == _LENGTH:
            if self._length is not None:
                self._fault = "two lengths"
            self._length = value
        else:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head: status and version must be known ones, the framing must be one we can follow."""
        exchange = self.exchange
        if self._complete or self._fault or exchange is None:
            return
        self._status = status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        version, fields = self._parser.get_http_version(), tuple(self._fields)
        most_bytes = self._barren_bytes + self._packet_bytes  # that the head may have
        judge = _judge_again if most_bytes <= _SMALL_HEAD_BYTES else _judge_long
        reason, head, fault = judge(status, self._reason, version, fields)
        if fault:
            self._fault = fault
            return
        if self._length is not None:
            head = replace(head, content_length=whole_number(self._length))
        elif not head.transfer_coding and status not in (204, 304):
            self._until_eof = True
        self._head_done = True
        self._fields = []  # the answer may take an hour
        exchange.status, exchange.reason, exchange.head = status, reason, head

    def on_body(self, piece: bytes) -> None:
        """Keep a piece until the whole packet is parsed."""
        if not self._complete and self._head_done and not self._fault:
            self._pieces.append(piece)

    def on_chunk_header(self) -> None:
        """Learn that a chunk has begun."""
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        """Learn that a chunk has ended."""
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        """End the answer, or forget an interim one."""
        if self._fault:
            return
        if self._head_done:
            if not self._complete:
                self._keep_alive = self._parser.should_keep_alive()
                self._complete = True
                self._chunk_ended = False
            return
        self._interim += 1
        self._fields, self._length, self._reason = [], None, b""
        if self._status == 101 or self._interim > MAX_INTERIM_ANSWERS:
            self._fault = "an interim answer that was not asked for"
