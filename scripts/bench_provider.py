"""The fake provider of scripts/bench and scripts/profile: `bench_provider.py PORT`.

A model list, a fixed completion, and streams. A request says how its stream goes in fields that every proxy
passes on: `max_tokens` chunks, one every `seed` milliseconds. Streams start when they like; all that are due
in the same millisecond share one timer, so that a thousand cost little more than their writes.
"""

import asyncio
import re
import sys
from collections.abc import Iterator
from itertools import repeat
from typing import Final, cast

import uvloop

TICKS_PER_S: Final = 1000
ENDS_BYTES: Final = 1024  # a request's fields stand before its messages, or after them
BACKLOG: Final = 4096


def plain(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def framed(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


ID: Final = b'"id":"chatcmpl-bench0123456789","created":1700000000,"model":"m"'
USAGE: Final = b'"usage":{"prompt_tokens":25,"completion_tokens":100,"total_tokens":125}'
MODELS: Final = plain("200 OK", b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"bench"}]}')
HEALTHY: Final = plain("200 OK", b"{}")
NOT_FOUND: Final = plain("404 Not Found", b'{"error":{"message":"not here"}}')
ANSWER: Final = plain(
    "200 OK",
    b'{%s,"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},'
    b'"finish_reason":"stop"}],%s}' % (ID, b"x" * 750, USAGE),
)
EVENT: Final = b'data: {%s,"object":"chat.completion.chunk","choices":[{"index":0,"delta":{%s}%s}]%s}\n\n'
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_CHUNK: Final = framed(EVENT % (ID, b'"content":"%s"' % (b"x" * 40), b"", b""))  # 200 bytes
STREAM_END: Final = (
    framed(EVENT % (ID, b"", b',"finish_reason":"stop"', b"," + USAGE))
    + framed(b"data: [DONE]\n\n")
    + framed(b"")
)


class Wheel:
    """Calls streams at the tick they are due, all of one tick by one timer."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.due: dict[int, list[Stream]] = {}

    def now(self) -> int:
        return int(self.loop.time() * TICKS_PER_S)

    def at(self, tick: int, stream: "Stream") -> None:
        if tick in self.due:
            self.due[tick].append(stream)
            return
        self.due[tick] = [stream]
        self.loop.call_at(tick / TICKS_PER_S, self.turn, tick)

    def turn(self, tick: int) -> None:
        for stream in self.due.pop(tick):
            stream.go_on(tick)


class Stream:
    """One streamed answer. Each piece is due a fixed time after the one before, however late that one was."""

    def __init__(self, transport: asyncio.Transport, wheel: Wheel, chunks: int, gap_ticks: int) -> None:
        self.transport = transport
        self.wheel = wheel
        self.gap_ticks = gap_ticks
        self.pieces: Iterator[bytes] = repeat(STREAM_CHUNK, chunks)
        transport.write(STREAM_HEAD)
        self.go_on(wheel.now())

    def go_on(self, tick: int) -> None:
        if self.transport.is_closing():
            return
        piece = next(self.pieces, None)
        if piece is None:
            self.transport.write(STREAM_END)
            return
        self.transport.write(piece)
        self.wheel.at(tick + self.gap_ticks, self)


class FakeProvider(asyncio.Protocol):
    """Answers one request at a time per connection."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.received = bytearray()
        self.size_bytes = 0  # of the whole request; 0 until its head is here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.size_bytes:
            self.size_bytes = size_of_request(self.received)
        if self.size_bytes and len(self.received) >= self.size_bytes:
            request = bytes(self.received)
            self.received.clear()
            self.size_bytes = 0
            self.answer(request)

    def answer(self, request: bytes) -> None:
        if request.startswith(b"GET /v1/models "):
            self.transport.write(MODELS)
        elif request.startswith(b"GET /health "):
            self.transport.write(HEALTHY)
        elif not request.startswith(b"POST "):
            self.transport.write(NOT_FOUND)
        elif re.search(rb'"stream": ?true', fields := fields_of(request)):
            Stream(self.transport, self.wheel, number(fields, b"max_tokens"), number(fields, b"seed"))
        else:
            self.transport.write(ANSWER)


def size_of_request(received: bytearray) -> int:
    head_bytes = received.find(b"\r\n\r\n") + 4
    if head_bytes < 4:
        return 0
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", received[:head_bytes])
    return head_bytes + (int(length[1]) if length else 0)


def fields_of(request: bytes) -> bytes:
    body = request.partition(b"\r\n\r\n")[2]
    return body if len(body) < 2 * ENDS_BYTES else body[:ENDS_BYTES] + body[-ENDS_BYTES:]


def number(fields: bytes, name: bytes) -> int:
    found = re.search(rb'"%s": ?(\d+)' % name, fields)
    return int(found[1]) if found else 1


async def main(port: int) -> None:
    wheel = Wheel()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FakeProvider(wheel), "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
