"""What a server that keeps its responses says: a script for the fake provider, as OpenAI's API has it.

shelf = Shelf(provider)             # answers POST /v1/responses, and whatever is asked about what it made
shelf.made                          # ids, in the order in which they were made
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.script import SSE

ROOT = "/v1/responses"


class Shelf:
    """The responses of one fake provider, each with the text `TEXT of NAME`."""

    def __init__(self, provider: FakeProvider, *, text: str = "words") -> None:
        self.provider = provider
        self.text = text
        self.made: list[str] = []
        self.hold: asyncio.Event | None = None
        """Where set, a stream stops behind its first event until it is."""
        self.ids: list[str] = []
        """What the next responses are called, if not as usual."""
        provider.script = self.make

    async def make(self, exchange: Exchange) -> None:
        """Answer a POST with a new response."""
        asked = exchange.request.json
        made = self.ids.pop(0) if self.ids else f"resp_{self.provider.name}{len(self.made)}"
        self.made.append(made)
        for below in ("", "/input_items", "/cancel"):
            self.provider.on[f"{ROOT}/{made}{below}"] = self.recall
        response = self._response(made, asked)
        if asked.get("stream"):
            await self._stream(exchange, response)
        else:
            await exchange.answer(200, json.dumps(response).encode())

    async def recall(self, exchange: Exchange) -> None:
        """Answer what is asked about a response."""
        path, _, query = exchange.request.target.partition("?")
        made, _, below = path.removeprefix(f"{ROOT}/").partition("/")
        response = self._response(made, {})
        if exchange.request.method == "DELETE":
            response = {"id": made, "object": "response", "deleted": True}
        elif below == "input_items":
            item = {"id": "msg_0", "type": "message", "role": "user", "content": []}
            response = {"object": "list", "data": [item], "has_more": False, "first_id": "msg_0"}
        elif below == "cancel":
            response["status"] = "cancelled"
        elif "stream=true" in query:
            await self._stream(exchange, response)
            return
        await exchange.answer(200, json.dumps(response).encode())

    async def _stream(self, exchange: Exchange, response: dict[str, Any]) -> None:
        await exchange.head(200, SSE)
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        await exchange.event({"type": "response.created", "sequence_number": 0, "response": begun})
        if self.hold is not None:
            await self.hold.wait()
        delta = {"type": "response.output_text.delta", "sequence_number": 1, "delta": self.text}
        more = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        await exchange.event({**delta, **more})
        await exchange.event({"type": "response.completed", "sequence_number": 2, "response": response})
        await exchange.end()

    def _response(self, made: str, asked: dict[str, Any]) -> dict[str, Any]:
        words = {"type": "output_text", "text": f"{self.text} of {self.provider.name}", "annotations": []}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        return {
            "id": made,
            "object": "response",
            "created_at": 1_700_000_000,
            "status": "completed",
            "model": asked.get("model", "m"),
            "previous_response_id": asked.get("previous_response_id"),
            "output": [{**message, "content": [words]}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 12,
            },
        }
