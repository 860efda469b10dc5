"""The SDK of OpenAI for Python."""

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
)  # fmt: skip
from settings import client

chats = client.chat.completions


def tools() -> None:
    answer = chats.create(
        model=MODEL,
        messages=HELLO,
        tools=[TOOL],
        tool_choice="required",
        temperature=2,
        seed=1,
        max_tokens=400,
    )
    call, *_ = answer.choices[0].message.tool_calls
    is_the_call(call.function.name, call.function.arguments)


def stream() -> None:
    chunks = chats.create(model=MODEL, messages=HELLO, stream=True, max_tokens=32, temperature=0)
    has_pieces(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)


tell(
    models=lambda: has_model(model.id for model in client.models.list()),
    chat=lambda: has_text(
        chats.create(model=MODEL, messages=HELLO, max_tokens=32, temperature=0).choices[0].message.content
    ),
    stream=stream,
    tools=tools,
    embeddings=lambda: has_vectors(
        each.embedding for each in client.embeddings.create(model=EMBEDDINGS, input=TEXTS).data
    ),
    responses=lambda: has_text(
        client.responses.create(
            model=MODEL, input="hello world", max_output_tokens=32, temperature=0
        ).output_text
    ),
)
