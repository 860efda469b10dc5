"""LiteLLM as a library."""

import litellm
from harness import (
    EMBEDDINGS,
    HELLO,
    TEXTS,
    TOOL,
    has_model,
    has_pieces,
    has_text,
    has_vectors,
    is_the_call,
    tell,
)  # fmt: skip
from settings import gateway, model


def asked(**more: object) -> object:
    return litellm.completion(model=model, messages=HELLO, **gateway, **more)


def tools() -> None:
    answer = asked(tools=[TOOL], tool_choice="required", temperature=2, seed=1, max_tokens=400)
    call, *_ = answer.choices[0].message.tool_calls
    is_the_call(call.function.name, call.function.arguments)


def models() -> None:
    has_model(litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai", **gateway))


tell(
    models=models,
    chat=lambda: has_text(asked(max_tokens=32).choices[0].message.content),
    stream=lambda: has_pieces(part.choices[0].delta.content for part in asked(stream=True, temperature=0)),
    tools=tools,
    embeddings=lambda: has_vectors(
        each["embedding"] for each in litellm.embedding(f"openai/{EMBEDDINGS}", TEXTS, **gateway).data
    ),
)
