"""The gateway that `scripts/profile --instructions` counts, under callgrind.

All of the gateway is real but its sockets: client and provider are in memory, so that each step follows from
the one before. No timer that is set while it counts ever comes: what goes by time would come the more often
the busier the machine is. So neither the kernel counts nor what uvloop does for a socket. The client asks as
OpenAI's SDK does, the provider answers as llama.cpp does; both say the same every time.
"""

import asyncio
import gc
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from contextvars import Context
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVarTuple

import profile_hook  # type: ignore[import-not-found]  # compiled by profile_instructions
import uvloop

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from llmgateway.web import pressure

Arguments = TypeVarTuple("Arguments")

KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"
WARM_UP: Final = 50
SETTLED_S: Final = 1.0  # within this all timers from before have come, and what was booked has been written
NEVER_S: Final = 36_000.0
BOOKED_TOGETHER: Final = 6  # requests that end within a booking's pause, on a busy gateway
TURNS: Final = 3  # of the loop, in which what follows an answer is done
HEAD: Final = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway:8900\r\nAccept-Encoding: gzip, deflate\r\n"
    "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    "User-Agent: OpenAI/Python 1.99.1\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n"
    "X-Stainless-Package-Version: 1.99.1\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    f"X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer {KEY}\r\n"
)
ANSWER_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\nContent-Type: "
)
USAGE: Final = {"prompt_tokens": 231, "completion_tokens": 61, "total_tokens": 292}
ID: Final = {"id": "chatcmpl-PnH6u4R2Wv7n1W2kz", "created": 1_700_000_000, "model": "m"}


def whole(body: object) -> bytes:
    data = json.dumps(body).encode()
    return ANSWER_HEAD + b"application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def piece(delta: object, finish: str | None = None, **more: object) -> bytes:
    choice = {"finish_reason": finish, "index": 0, "delta": delta}
    tree = {"choices": [choice], **ID, "object": "chat.completion.chunk", **more}
    return framed(b"data: %b\n\n" % json.dumps(tree, separators=(",", ":")).encode())


def framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


MODELS: Final = whole({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "llamacpp"}]})
MESSAGE: Final = {"role": "assistant", "content": "Hello there. " * 20}
COMPLETION: Final = whole(
    {**ID, "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}], "usage": USAGE}
)
BEGIN: Final = (
    ANSWER_HEAD
    + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + piece({"role": "assistant", "content": None})
)
PIECES: Final = [
    piece({"content": f" {word}"}) for word in "so it goes and it went on as it had gone".split()
]
END: Final = piece({}, "stop", usage=USAGE) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def request(number: int, *, stream: bool) -> bytes:
    """One of a conversation of its own."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant. " * 8},
        {"role": "user", "content": f"Question {number:06d}: what is the meaning of this?"},
        {"role": "assistant", "content": "It means nothing much, I am afraid. " * 6},
        {"role": "user", "content": "And then? " * 20},
    ]
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    tree = {"model": "m", "messages": messages, "temperature": 0.7, "max_tokens": 512, **more}
    body = json.dumps(tree).encode()
    return f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body


# --- What is in the place of sockets ----------------------------------------------------------------


class Wire(asyncio.Transport):
    """One end of a connection, in memory: what is written goes to `hear`."""

    def __init__(self, protocol: asyncio.Protocol, hear: Callable[["Wire", bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8_900)})
        self.protocol = protocol
        self.hear = hear
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.hear(self, data)

    def writelines(self, list_of_data: Any) -> None:
        self.hear(self, b"".join(list_of_data))

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Listener:
    def close(self) -> None:
        pass


class Loop(uvloop.Loop):
    """Connects to nobody but the provider in memory, and hands out what would serve clients."""

    serve: Callable[[], asyncio.Protocol]
    provider: Wire
    """That which was asked last."""
    stands_still = False
    """Whether no timer comes that is set from now on."""

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something later; `call_at` comes here, too."""
        delay = NEVER_S if self.stands_still else delay
        return uvloop.Loop.call_later(self, delay, callback, *args, context=context)

    async def stand_still(self) -> None:
        """Let the timers come that are set already."""
        settled = self.create_future()
        self.call_later(SETTLED_S, settled.set_result, None)
        self.stands_still = True
        await settled

    async def create_server(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        self.serve = protocol_factory
        return Listener()

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        wire = Wire(protocol_factory(), self.provide)
        return wire, wire.protocol

    def provide(self, wire: Wire, data: bytes) -> None:
        self.provider = wire
        asked = data.startswith(b"GET")
        answer = MODELS if asked else BEGIN if b'"stream": true' in data else COMPLETION
        self.call_soon(wire.protocol.data_received, answer)


# --- The counting -----------------------------------------------------------------------------------


class Client:
    """Asks one request after another."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.answered = asyncio.Event()
        self.wire = Wire(loop.serve(), self.hear)

    def hear(self, wire: Wire, data: bytes) -> None:
        if not data.startswith((b"HTTP/1.1 200 ", b"data: ")) and b"data: " not in data:
            raise SystemExit(f"The gateway answered {data[:300]!r}.")
        self.answered.set()

    async def ask(self, request: bytes, chunks: int = 0) -> None:
        self.answered.clear()
        self.wire.protocol.data_received(request)
        await self.answered.wait()
        provider = self.loop.provider.protocol
        for number in range(chunks):
            provider.data_received(PIECES[number % len(PIECES)])
        if chunks:
            provider.data_received(END)
        for _ in range(TURNS):
            await asyncio.sleep(0)


async def main(folder: Path, apart: bool, requests: int, streams: int, chunks: int) -> None:
    vars(pressure)["BEHIND_S"] = math.inf  # all is late here, and nobody is to be turned away for that
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    config = {
        "server": {"host": "127.0.0.1", "port": 0},
        "log": {"requests": str(folder / "requests.jsonl")},
        "users": {"bench": {"keys": [f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"]}},
        "providers": {"one": {"url": "http://127.0.0.1:9/v1"}},
        "health": {"interval": 3_000},
        "streams": {"keepalive": 0},
    }
    async with Gateway(build(config)) as gateway:
        await gateway.ready.wait()
        settled = asyncio.create_task(loop.stand_still())
        client = Client(loop)
        numbers = count()
        for _ in range(WARM_UP):
            await client.ask(request(next(numbers), stream=True), chunks)
            await client.ask(request(next(numbers), stream=False))
        gateway.ledger.book()
        await settled
        gc.collect()
        gc.disable()
        for many, of_each in ((requests, 0), (streams, chunks), (streams, 2 * chunks)):
            asked = [request(next(numbers), stream=of_each > 0) for _ in range(many)]
            profile_hook.begin(apart)
            for number, each in enumerate(asked, 1):
                await client.ask(each, of_each)
                if number % BOOKED_TOGETHER == 0 or number == many:
                    gateway.ledger.book()
            profile_hook.end()
        os._exit(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=Loop) as runner:
        apart, *numbers = map(int, sys.argv[2:])
        runner.run(main(Path(sys.argv[1]), bool(apart), *numbers))
