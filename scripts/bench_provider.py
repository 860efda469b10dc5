"""The fake provider of scripts/bench: a model list, a fixed completion, and paced streams."""

import asyncio
import re
import sys
from typing import Final


def plain(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def framed(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


MODELS: Final = plain("200 OK", b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"bench"}]}')
NOT_FOUND: Final = plain("404 Not Found", b'{"error":{"message":"not here"}}')
ANSWER: Final = plain("200 OK", b'{"choices":[{"index":0,"message":{"content":"%s"}}]}' % (b"x" * 970))
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_CHUNK: Final = framed(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 144))
STREAM_END: Final = framed(b"data: [DONE]\n\n") + framed(b"")


class FakeProvider(asyncio.Protocol):
    """Answers one request at a time per connection."""

    def __init__(self) -> None:
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not blank or len(body) < (int(length[1]) if length else 0):
            return
        self.received.clear()
        pace = re.search(rb'"chunks": (\d+), "every_s": ([\d.]+)', body)
        if pace:
            self.transport.write(STREAM_HEAD)
            self.stream(int(pace[1]), asyncio.get_running_loop().time(), float(pace[2]))
        elif head.startswith(b"POST"):
            self.transport.write(ANSWER)
        else:
            self.transport.write(MODELS if head.startswith(b"GET /v1/models ") else NOT_FOUND)

    def stream(self, left: int, due: float, every_s: float) -> None:
        """Write the next chunk. Each is due a fixed time after the one before, however late that one was."""
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(STREAM_END)
            return
        self.transport.write(STREAM_CHUNK)
        due += every_s
        asyncio.get_running_loop().call_at(due, self.stream, left - 1, due, every_s)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(FakeProvider, "127.0.0.1", 0, backlog=1024)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
