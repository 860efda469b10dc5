"""Pydantic AI."""

import asyncio
from typing import Literal

from harness import TEXTS, has_pieces, has_text, has_vectors, is_the_call, tell
from pydantic import BaseModel
from pydantic_ai import Agent
from settings import embedder, model


class Weather(BaseModel):
    """What must be told by a call of a tool."""

    city: Literal["Oslo"]


async def streamed() -> list[str]:
    async with Agent(model).run_stream("hello world") as came:
        return [piece async for piece in came.stream_text(delta=True, debounce_by=None)]


def tools() -> None:
    told = Agent(model, output_type=Weather, retries=3).run_sync(
        "hello world", model_settings={"temperature": 2.0, "seed": 1, "max_tokens": 400}
    )
    is_the_call("weather", {"city": told.output.city})


tell(
    chat=lambda: has_text(Agent(model).run_sync("hello world").output),
    stream=lambda: has_pieces(asyncio.run(streamed())),
    tools=tools,
    embeddings=lambda: has_vectors(embedder.embed_documents_sync(TEXTS).embeddings),
)
