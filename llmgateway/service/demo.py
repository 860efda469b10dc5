"""A tiny provider for the first minute: model `demo`, which streams a few words.

It runs when no LLM server is found.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from aiohttp import web

MODEL: Final = "demo"
_WORDS: Final = [
    "Hello",
    "from",
    "your",
    "own",
    "gateway.",
    "Add",
    "your",
    "LLM",
    "servers",
    "to",
    "config.yaml",
    "and",
    "I",
    "will",
    "make",
    "room",
    "for",
    "them.",
]
_PAUSE_S: Final = 0.05


@asynccontextmanager
async def demo_provider() -> AsyncIterator[str]:
    """Run the provider on a free port of this machine; gives its base URL."""
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def _models(_: web.Request) -> web.Response:
    listing = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "demo"}]}
    return _json(listing)


async def _chat(request: web.Request) -> web.StreamResponse:
    if not (await request.json()).get("stream"):
        message = {"role": "assistant", "content": " ".join(_WORDS)}
        usage = {"prompt_tokens": 1, "completion_tokens": len(_WORDS), "total_tokens": 1 + len(_WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _json(_answer("chat.completion", choice) | {"usage": usage})
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    for number, word in enumerate(_WORDS):
        await stream.write(_event({"content": word if number == 0 else f" {word}"}, None))
        await asyncio.sleep(_PAUSE_S)
    await stream.write(_event({}, "stop") + b"data: [DONE]\n\n")
    return stream


def _json(value: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps(_answer("chat.completion.chunk", choice)) + b"\n\n"


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-demo",
        "object": kind,
        "created": int(time.time()),
        "model": MODEL,
        "choices": [choice],
    }
