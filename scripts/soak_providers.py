"""The providers of scripts/soak: good ones, slow ones, and such as cut, stall, lie, and come and go.

Each is a fake provider of the tests that writes down every exchange by the id it came with. What it does is
drawn from its manners, a table of scripts and weights.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from soak_books import CONTENT, Books, Served

from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.script import SSE, answer, error, listing, loading
from tests.websocket import echo, say, session

Manner = Callable[["Provider", Exchange, Served], Awaitable[None]]
Manners = Mapping[Manner, float]

_KEPT: Final = 2_000
_PROMPT: Final = 11


class Provider(FakeProvider):
    """A fake provider with manners."""

    def __init__(
        self,
        name: str,
        books: Books,
        chance: random.Random,
        *,
        manners: Manners,
        models: list[str],
        **more: Any,
    ) -> None:
        super().__init__(name, models=models, **more)
        self.books = books
        self.chance = chance
        self.manners = manners
        self.kept: dict[str, dict[str, Any]] = {}
        self.script = self._play
        self.on["/v1/realtime"] = self._converse

    def drop_idle(self) -> None:
        """Close every connection that is made."""
        for wire in [wire for wire in self._wires if wire.made.is_set()]:
            wire.transport.close()

    def _record(self, exchange: Exchange) -> None:
        """Keep nothing but the pages of the book, as a soak is long."""

    def _script_for(self, request: Any) -> Script:
        path = request.target.partition("?")[0]
        if path.startswith("/v1/responses/"):
            return self._recall
        return super()._script_for(request)

    async def _play(self, exchange: Exchange) -> None:
        served = self._page(exchange)
        manner = self.chance.choices([*self.manners], [*self.manners.values()])[0]
        await manner(self, exchange, served)
        served.whole = exchange.complete

    async def _recall(self, exchange: Exchange) -> None:
        """Answer for a response that was made here."""
        served = self._page(exchange)
        wanted = exchange.request.target.partition("?")[0].split("/")[3]
        found = self.kept.get(wanted)
        if exchange.request.method == "DELETE":
            self.kept.pop(wanted, None)
        served.status = 200 if found else 404
        body = found or {"error": {"message": "no such response", "type": "not_found_error"}}
        await exchange.answer(served.status, json.dumps(body).encode())
        served.whole = exchange.complete

    async def _converse(self, exchange: Exchange) -> None:
        served = self._page(exchange)
        served.status = 101
        try:
            await session(say('{"type":"session.created"}'), echo())(exchange)
        except EOFError:
            pass
        finally:
            served.whole = exchange.complete

    def _page(self, exchange: Exchange) -> Served:
        request = exchange.request
        got = zlib.crc32(request.body)
        return self.books.serve(Served(request.header("x-request-id") or "", self.name, got=got))


# --- Good manners -----------------------------------------------------------------------------------


def _asked(exchange: Exchange) -> dict[str, Any]:
    body = exchange.request.body
    try:
        if exchange.request.header("content-encoding") == "gzip":
            body = gzip.decompress(body)
        found = json.loads(body)
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _path(exchange: Exchange) -> str:
    return exchange.request.target.partition("?")[0]


async def polite(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Answer whatever was asked, as it should be."""
    asked = _asked(exchange)
    served.status = 200
    path, words = _path(exchange), asked.get("words") or provider.chance.randrange(1, 30)
    if path.startswith("/api/"):
        await _ollama(exchange, served, words, streams=asked.get("stream", True))
    elif path.endswith("/messages"):
        await (_anthropic_stream if asked.get("stream") else _anthropic)(exchange, served, words)
    elif path.endswith("/responses"):
        await _response(provider, exchange, served, words, streams=asked.get("stream") is True)
    elif path.endswith("/embeddings"):
        served.tokens = (_PROMPT, 0)
        await _whole(
            exchange,
            {"object": "list", "data": [{"embedding": [0.5] * 64}], "usage": {"prompt_tokens": _PROMPT}},
        )
    elif not path.endswith("completions"):
        await _whole(exchange, {"text": f"{len(exchange.request.body)} bytes"})
    elif asked.get("stream"):
        await _chat_stream(exchange, served, words, told=provider.chance.random() < 0.8)
    else:
        served.tokens = (_PROMPT, words)
        message = {"role": "assistant", "content": "so " * words}
        usage = {"prompt_tokens": _PROMPT, "completion_tokens": words}
        await _whole(exchange, {"id": "c", "choices": [{"index": 0, "message": message}], "usage": usage})


async def _whole(exchange: Exchange, body: Any) -> None:
    await exchange.answer(200, json.dumps(body).encode())


async def _end(exchange: Exchange, last: bytes) -> None:
    """Send what the API calls the end, and then that of the body, for which nobody need wait any more."""
    exchange.complete = True
    await exchange.chunk(last)
    await exchange.end()


def _delta(text: str) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}}],
    }


async def _chat_stream(
    exchange: Exchange, served: Served, words: int, *, told: bool, pause_s: float = 0.0
) -> None:
    await exchange.head(200, SSE)
    for number in range(words):
        await exchange.event(_delta(f"word{number} "))
        await asyncio.sleep(pause_s)
    last = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    await exchange.event(last)
    if told:
        served.tokens = (_PROMPT, words)
        await exchange.event(
            {"id": "c", "choices": [], "usage": {"prompt_tokens": _PROMPT, "completion_tokens": words}}
        )
    await _end(exchange, b"data: [DONE]\n\n")


async def _anthropic(exchange: Exchange, served: Served, words: int) -> None:
    served.tokens = (_PROMPT, words)
    usage = {"input_tokens": _PROMPT, "output_tokens": words}
    await _whole(exchange, {"type": "message", "content": [{"type": "text", "text": "so"}], "usage": usage})


async def _anthropic_stream(exchange: Exchange, served: Served, words: int) -> None:
    async def event(what: dict[str, Any]) -> None:
        await exchange.chunk(f"event: {what['type']}\ndata: {json.dumps(what)}\n\n".encode())

    served.tokens = (_PROMPT, words)
    await exchange.head(200, SSE)
    usage = {"input_tokens": _PROMPT, "output_tokens": 1}
    await event({"type": "message_start", "message": {"type": "message", "usage": usage}})
    for number in range(words):
        delta = {"type": "text_delta", "text": f"word{number} "}
        await event({"type": "content_block_delta", "index": 0, "delta": delta})
    await event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": words}})
    await _end(exchange, b'event: message_stop\ndata: {"type": "message_stop"}\n\n')


async def _response(
    provider: Provider, exchange: Exchange, served: Served, words: int, *, streams: bool
) -> None:
    made = f"resp_{provider.chance.getrandbits(96):024x}"
    usage = {"input_tokens": _PROMPT, "output_tokens": words, "total_tokens": _PROMPT + words}
    body = {"id": made, "object": "response", "status": "completed", "output": [], "usage": usage}
    while len(provider.kept) >= _KEPT:
        del provider.kept[next(iter(provider.kept))]
    provider.kept[made] = body
    served.tokens = (_PROMPT, words)
    if not streams:
        await _whole(exchange, body)
        return
    await exchange.head(200, SSE)
    begun = {"type": "response.created", "response": {"id": made, "status": "in_progress"}}
    await exchange.chunk(f"event: response.created\ndata: {json.dumps(begun)}\n\n".encode())
    for _ in range(words):
        await exchange.chunk(
            b"event: response.output_text.delta\n"
            b'data: {"type":"response.output_text.delta","delta":"so "}\n\n'
        )
    done = {"type": "response.completed", "response": body}
    await _end(exchange, f"event: response.completed\ndata: {json.dumps(done)}\n\n".encode())


async def _ollama(exchange: Exchange, served: Served, words: int, *, streams: bool) -> None:
    served.tokens = (_PROMPT, 0) if "embed" in exchange.request.target else (_PROMPT, words)
    last = {"done": True, "prompt_eval_count": _PROMPT, "eval_count": words}
    if "embed" in exchange.request.target:
        await _whole(exchange, {"embeddings": [[0.5]], "prompt_eval_count": _PROMPT})
        return
    if not streams:
        await _whole(exchange, {"message": {"content": "so"}, **last})
        return
    await exchange.head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"})
    for _ in range(words):
        await exchange.chunk(b'{"message":{"role":"assistant","content":"so "},"done":false}\n')
    await _end(exchange, json.dumps(last).encode() + b"\n")


async def slow(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Think, and then write slowly."""
    await asyncio.sleep(provider.chance.uniform(0.05, 0.6))
    if _asked(exchange).get("stream") and "chat" in _path(exchange) and "/api/" not in _path(exchange):
        served.status = 200
        words = provider.chance.randrange(2, 25)
        await _chat_stream(exchange, served, words, told=True, pause_s=provider.chance.uniform(0.01, 0.12))
    else:
        await polite(provider, exchange, served)


# --- Bad manners ------------------------------------------------------------------------------------


def _scripted(status: int, script: Script) -> Manner:
    """A manner that is one script of the tests."""

    async def manner(provider: Provider, exchange: Exchange, served: Served) -> None:
        served.status, served.lies = status, status in CONTENT
        await script(exchange)

    return manner


async def _begun(exchange: Exchange, served: Served) -> None:
    """Begin a stream, with some words."""
    served.status = 200
    await exchange.head(200, SSE)
    await exchange.event(_delta("Hel"))
    await exchange.event(_delta("lo"))


async def cuts(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Begin a stream, and hang up in the middle of an event."""
    await _begun(exchange, served)
    await exchange.send(b'40\r\ndata: {"choices":[{"del')
    (exchange.cut if provider.chance.random() < 0.5 else exchange.reset)()


async def cuts_at_once(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Hang up without a word."""
    (exchange.cut if provider.chance.random() < 0.5 else exchange.reset)()


async def stalls(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Say nothing, or nothing more; for longer than the gateway waits."""
    if provider.chance.random() < 0.5:
        await _begun(exchange, served)
    await asyncio.get_running_loop().create_future()


async def complains(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Tell an error within a stream."""
    await _begun(exchange, served)
    served.lies = True
    await exchange.event({"error": {"message": "out of memory", "type": "server_error", "code": 500}})
    await exchange.end()


async def falls_short(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Promise more bytes than come."""
    served.status = 200
    await exchange.head(200, {"Content-Type": "application/json", "Content-Length": "5000"})
    await exchange.send(b'{"id":"c","choices":[]')
    exchange.cut()


async def babbles(provider: Provider, exchange: Exchange, served: Served) -> None:
    """Send more bytes than were promised."""
    served.status, served.lies, exchange.complete = 200, True, True
    await exchange.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}{}{}{}"
    )


GOOD: Final[Manners] = {polite: 1}
QUICK: Final[Manners] = {polite: 4, slow: 1}
SLOW: Final[Manners] = {slow: 3, polite: 1}
MOODY: Final[Manners] = {
    polite: 60,
    slow: 15,
    cuts: 5,
    cuts_at_once: 4,
    stalls: 2,
    complains: 3,
    falls_short: 2,
    babbles: 2,
    _scripted(500, error(500)): 3,
    _scripted(503, loading()): 2,
    _scripted(429, error(429, "slow down")): 1,
    _scripted(404, error(404, "model not found", "not_found_error")): 1,
    _scripted(401, error(401, "who are you")): 1,
    _scripted(307, answer(307, b"", {"Location": "/elsewhere"})): 1,
    _scripted(200, answer(200, b"<html>It works!</html>", {"Content-Type": "text/html"})): 2,
    _scripted(200, answer(200, b'{"id":')): 2,
    _scripted(0, lambda exchange: exchange.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")): 1,
}


def with_ollama(provider: Provider) -> Provider:
    """Have it answer as Ollama does, where that is asked for what it has."""
    entries = [
        {"name": name, "model": name, "size": 1, "details": {"family": "x"}} for name in provider.models
    ]
    provider.on["/api/version"] = answer(200, {"version": "0.12.0"})
    provider.on["/api/tags"] = answer(200, {"models": entries})
    provider.on["/api/ps"] = answer(200, {"models": []})
    provider.on["/v1/models"] = listing(
        *({"id": name, "object": "model", "created": 1, "owned_by": "library"} for name in provider.models)
    )
    return provider


async def lives(provider: Provider, chance: random.Random, ending: asyncio.Event) -> None:
    """Go and come back, until the end; then be there."""
    while not ending.is_set():
        match chance.randrange(4):
            case 0:
                provider.drop_idle()
            case 1:
                await provider.stop_accepting()
                await _pause(ending, chance.uniform(0.1, 2))
                await provider.come_back()
            case 2:
                models = provider.models
                provider.models = []
                await _pause(ending, chance.uniform(0.5, 3))
                provider.models = models
            case _:
                await provider.refuse()
                await _pause(ending, chance.uniform(0, 3))
                await provider.come_back()
        await _pause(ending, chance.uniform(0.5, 6))


async def _pause(ending: asyncio.Event, for_s: float) -> None:
    try:
        async with asyncio.timeout(for_s):
            await ending.wait()
    except TimeoutError:
        pass
