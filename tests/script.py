"""What a fake provider can be told to do: steps, whole answers, and `play`, which strings them together.

    provider.script = stream("Hello", " world")
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    provider.script = play(sse(), word("Hel"), reset())

A script is `async def script(exchange)`; write one by hand where these do not reach.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.exchange import Exchange, Script

SSE = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}


def play(*scripts: Script) -> Script:
    """One script after the other."""

    async def played(exchange: Exchange) -> None:
        for script in scripts:
            await script(exchange)

    return played


# Steps.


def raw(*pieces: bytes) -> Script:
    """Exactly these bytes, each piece in a write of its own."""

    async def sent(exchange: Exchange) -> None:
        for piece in pieces:
            await exchange.send(piece)
            await asyncio.sleep(0)

    return sent


def packets(*pieces: bytes) -> Script:
    """Exactly these bytes, each piece in a packet of its own: a client of this loop that reads has read it
    before the next one is sent.
    """

    async def sent(exchange: Exchange) -> None:
        async with _all_is_read() as all_is_read:
            for piece in pieces:
                await exchange.send(piece)
                await all_is_read()

    return sent


@asynccontextmanager
async def _all_is_read() -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Wait, as often as wanted, until this loop has read what the loopback interface had taken before.

    A byte of our own takes the same way behind it: packets arrive there in the order in which they were sent,
    and the loop reads its sockets in the order in which something arrived.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far, _ = listener.accept()
    reader, writer = await asyncio.open_connection(sock=far)
    try:

        def come_back() -> Awaitable[object]:
            near.send(b".")
            return reader.readexactly(1)

        yield come_back
    finally:
        near.close()
        writer.transport.abort()


def drip(data: bytes, *, pause_s: float, size: int = 1) -> Script:
    """These bytes slowly: `size` at a time, with a pause after each."""

    async def dripped(exchange: Exchange) -> None:
        for start in range(0, len(data), size):
            await exchange.send(data[start : start + size])
            await asyncio.sleep(pause_s)

    return dripped


def flood(total: int, *, size: int = 65_536) -> Script:
    """So many bytes of body in chunks, as fast as the client takes them; watch `exchange.written`."""

    async def flooded(exchange: Exchange) -> None:
        for start in range(0, total, size):
            await exchange.chunk(b"x" * min(size, total - start))

    return flooded


def interim(status: int, headers: Mapping[str, str] | None = None) -> Script:
    """A 1xx answer before the real one."""
    return lambda exchange: exchange.head(status, headers)


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> Script:
    """A status line and headers; nothing about the body is added."""
    return lambda exchange: exchange.head(status, headers)


def sse(headers: Mapping[str, str] | None = None) -> Script:
    """The head of a chunked event stream."""
    return head(200, {**SSE, **(headers or {})})


def chunk(data: bytes) -> Script:
    """One HTTP chunk."""
    return lambda exchange: exchange.chunk(data)


def event(data: Any) -> Script:
    """One SSE event with this JSON."""
    return lambda exchange: exchange.event(data)


def word(text: str) -> Script:
    """One chat delta."""
    return lambda exchange: exchange.event(_delta(exchange, {"content": text}))


def end() -> Script:
    """The last chunk, which ends the body properly."""
    return lambda exchange: exchange.end()


def done() -> Script:
    """`data: [DONE]`, and the end of the body."""
    return play(chunk(b"data: [DONE]\n\n"), end())


def wait(gate: asyncio.Event) -> Script:
    """Go on when the gate opens."""

    async def waited(exchange: Exchange) -> None:
        await gate.wait()

    return waited


def stall() -> Script:
    """Do nothing more, for ever; it ends when the client leaves or the provider closes."""
    return lambda exchange: asyncio.get_running_loop().create_future()


def cut() -> Script:
    """Close the connection (FIN)."""

    async def closed(exchange: Exchange) -> None:
        exchange.cut()

    return closed


def reset() -> Script:
    """Reset the connection (RST)."""

    async def broken(exchange: Exchange) -> None:
        exchange.reset()

    return broken


# Whole answers.


def answer(status: int, body: bytes | Any = b"", headers: Mapping[str, str] | None = None) -> Script:
    """A whole answer with a Content-Length; a body that is not bytes is sent as JSON."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda exchange: exchange.answer(status, payload, headers)


def error(status: int, message: str = "it broke", type_: str = "server_error") -> Script:
    """An error as llama.cpp words it (its `code` is a number)."""
    return answer(status, {"error": {"message": message, "type": type_, "code": status}})


def loading() -> Script:
    """llama.cpp's answer while it loads a model."""
    return error(503, "Loading model", "unavailable_error")


def completion(text: str = "Hello world", *, prompt_tokens: int = 3, completion_tokens: int = 2) -> Script:
    """A buffered chat completion."""

    async def answered(exchange: Exchange) -> None:
        body = _completion(exchange, text, prompt_tokens, completion_tokens)
        await exchange.answer(200, json.dumps(body).encode())

    return answered


def zipped(text: str = "Hello world") -> Script:
    """A buffered chat completion in a gzip that the client has to undo."""

    async def answered(exchange: Exchange) -> None:
        body = gzip.compress(json.dumps(_completion(exchange, text, 3, 2)).encode(), mtime=0)
        await exchange.answer(200, body, {"Content-Encoding": "gzip"})

    return answered


def stream(*words: str, with_done: bool = True) -> Script:
    """A streamed chat completion, word by word; a usage event where the request asked for one."""

    async def streamed(exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        await exchange.event(_delta(exchange, {"role": "assistant", "content": None}))
        for text in words:
            await exchange.event(_delta(exchange, {"content": text}))
        await exchange.event(_delta(exchange, {}, finish_reason="stop"))
        if (_asked(exchange).get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
            await exchange.event({**_delta(exchange, {}), "choices": [], "usage": usage})
        if with_done:
            await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    return streamed


def polite() -> Script:
    """A good server's `Hello world`: streamed where the request asks for a stream, else buffered."""

    async def answered(exchange: Exchange) -> None:
        wants_stream = _asked(exchange).get("stream") is True
        await (stream("Hello", " world") if wants_stream else completion())(exchange)

    return answered


def listing(*models: str | Mapping[str, Any]) -> Script:
    """An answer to `GET /v1/models`; a model may be given as its name or as its whole entry."""
    entries = [
        {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
        if isinstance(model, str)
        else model
        for model in models
    ]
    return answer(200, {"object": "list", "data": entries})


def _asked(exchange: Exchange) -> dict[str, Any]:
    try:
        body = exchange.request.json
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _delta(exchange: Exchange, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": _asked(exchange).get("model"),
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _completion(exchange: Exchange, text: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": _asked(exchange).get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
