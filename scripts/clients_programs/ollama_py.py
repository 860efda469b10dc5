"""Ollama's library for Python."""

from harness import (
    EMBEDDINGS,
    HELLO,
    MODEL,
    TEXTS,
    TOOL,
    has_model,
    has_pieces,
    has_text,
    has_vectors,
    is_the_call,
    tell,
)
from settings import client


def tools() -> None:
    call, *_ = client.chat(MODEL, HELLO, tools=[TOOL]).message.tool_calls
    is_the_call(call.function.name, dict(call.function.arguments))


tell(
    models=lambda: has_model(model.model for model in client.list().models),
    chat=lambda: has_text(client.chat(MODEL, HELLO).message.content),
    stream=lambda: has_pieces(part.message.content for part in client.chat(MODEL, HELLO, stream=True)),
    tools=tools,
    embeddings=lambda: has_vectors(client.embed(EMBEDDINGS, TEXTS).embeddings),
)
