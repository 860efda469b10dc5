"""What an answer cost, read off its bytes: every API's way to say so, however the bytes are cut."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.usage import FIRST_BYTES, LAST_BYTES, Meter, Tokens

GUESS = 77  # prompt tokens that the gateway guesses


def told(prompt: int, completion: int, cached: int = 0) -> Tokens:
    return Tokens(prompt, completion, cached, estimated=False)


def guessed(completion: int, prompt: int = GUESS) -> Tokens:
    return Tokens(prompt, completion, estimated=True)


def stream(*events: Any, done: bool = True, end: str = "\n\n") -> bytes:
    """An SSE stream; an event with a `type` is named by it, as Anthropic and Responses do."""
    lines = []
    for event in events:
        name = f"event: {event['type']}{end[: len(end) // 2]}" if "type" in event else ""
        lines.append(f"{name}data: {json.dumps(event)}{end}")
    return ("".join(lines) + (f"data: [DONE]{end}" if done else "")).encode()


def buffered(**body: Any) -> bytes:
    return json.dumps(body).encode()


def metered(pieces: Iterable[bytes], *, sse: bool) -> Tokens:
    meter = Meter(sse=sse)
    for piece in pieces:
        meter.feed(piece)
    return meter.tokens(GUESS)


def cost_of(body: bytes) -> Tokens:
    return metered([body], sse=body.startswith((b"data:", b"event:", b"\r", b"\n", b":")))


def chunk(content: str, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": content}}], **more}


CHUNKS = [chunk(word) for word in "the quick brown fox".split()]
CHAT = {"id": "c1", "choices": [{"message": {"content": "hi"}}]}
OPENAI = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
CACHED = {**OPENAI, "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0}}
TIMINGS = {"cache_n": 5, "prompt_n": 7, "prompt_ms": 30.9, "predicted_n": 34, "predicted_per_second": 52.4}
START = {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 12, "output_tokens": 1}}}
CACHED_START = {
    "type": "message_start",
    "message": {
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 4,
            "output_tokens": 1,
        }
    },
}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word"}}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 34}}
STOP = {"type": "message_stop"}
ANSWERED = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens": 34,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 46,
}
RESPONSES = [
    {"type": "response.created", "response": {"id": "r1", "usage": None}},
    {"type": "response.output_text.delta", "delta": "hi"},
    {"type": "response.completed", "response": {"id": "r1", "output": ["hi"] * 100, "usage": ANSWERED}},
]
OLLAMA = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}

ANSWERS = {
    "OpenAI, buffered": (buffered(**CHAT, usage=CACHED), told(12, 34, 5)),
    "OpenAI, pretty": (json.dumps({**CHAT, "usage": CACHED}, indent=4).encode(), told(12, 34, 5)),
    "OpenAI, streamed": (stream(*CHUNKS, {"choices": [], "usage": CACHED}), told(12, 34, 5)),
    "a null in every chunk": (
        stream(*(chunk("x", usage=None) for _ in range(9)), {"choices": [], "usage": OPENAI}),
        told(12, 34),
    ),
    "a count in every chunk": (
        stream(
            *(chunk("x", usage={"prompt_tokens": 12, "completion_tokens": n}) for n in range(35)), done=False
        ),
        told(12, 34),
    ),
    "null details": (buffered(**CHAT, usage={**OPENAI, "prompt_tokens_details": None}), told(12, 34)),
    "embeddings": (
        buffered(usage={"prompt_tokens": 12, "total_tokens": 12}, data=[0.5] * 9_000),
        told(12, 0),
    ),
    "llama.cpp, buffered": (buffered(**CHAT, usage=CACHED, timings=TIMINGS), told(12, 34, 5)),
    "llama.cpp, streamed": (stream(*CHUNKS, chunk("", timings=TIMINGS)), told(12, 34, 5)),
    "Anthropic, buffered": (
        buffered(type="message", content=[], usage={"input_tokens": 12, "output_tokens": 34}),
        told(12, 34),
    ),
    "Anthropic, streamed": (stream(START, *[TEXT] * 9, DELTA, STOP, done=False), told(12, 34)),
    "Anthropic, long": (stream(START, *[TEXT] * 900, DELTA, STOP, done=False), told(12, 34)),
    "Anthropic, cached": (stream(CACHED_START, *[TEXT] * 900, DELTA, STOP, done=False), told(12, 34, 5)),
    "Anthropic, CRLF": (stream(START, *[TEXT] * 9, DELTA, STOP, done=False, end="\r\n\r\n"), told(12, 34)),
    "Responses, buffered": (buffered(object="response", output=[], usage=ANSWERED), told(12, 34, 5)),
    "Responses, streamed": (stream(*RESPONSES, done=False), told(12, 34, 5)),
    "Ollama, buffered": (buffered(**CHAT, usage=OLLAMA), told(12, 34)),
    "Ollama, streamed": (stream(*CHUNKS, {"choices": [], "usage": OLLAMA}), told(12, 34)),
    "nothing told, streamed": (stream(*CHUNKS), guessed(4)),
    "nothing told, CRLF": (stream(*CHUNKS, end="\r\n\r\n"), guessed(4)),
    "nothing told, buffered": (buffered(**CHAT), guessed(0)),
    "nothing at all": (b"", guessed(0)),
    "Anthropic, broken off": (stream(START, *[TEXT] * 200, done=False), guessed(201, prompt=12)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_answer_tells_is_read(name: str) -> None:
    body, expected = ANSWERS[name]
    assert cost_of(body) == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_it_is_read_wherever_the_bytes_are_cut(name: str) -> None:
    body, expected = ANSWERS[name]
    sse = body.startswith((b"data:", b"event:"))
    assert metered((body[at : at + 1] for at in range(len(body))), sse=sse) == expected
    for at in range(0, len(body), max(1, len(body) // 400)):
        assert metered((body[:at], body[at:]), sse=sse) == expected


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 60_000), max_size=12))
def test_it_is_read_from_any_pieces(name: str, cuts: list[int]) -> None:
    body, expected = ANSWERS[name]
    ends = sorted(min(cut, len(body)) for cut in cuts)
    pieces = [body[a:b] for a, b in zip([0, *ends], [*ends, len(body)], strict=True)]
    assert metered(pieces, sse=body.startswith((b"data:", b"event:"))) == expected


# --- what only looks like it -------------------------------------------------------------------------

FAKES = [
    '"usage": {"prompt_tokens": 999, "completion_tokens": 999}',
    '{"usage": {"prompt_tokens": 999, "completion_tokens": 999}}',
    '"timings": {"prompt_n": 999, "predicted_n": 999}',
    '\\"usage\\": {\\"prompt_tokens\\": 999}',
    '"usage"',
    'it says "usage',
    "data: data: data:",
    '{"type": "message_start"}',
]


@pytest.mark.parametrize("fake", FAKES)
def test_a_chat_about_usage_is_not_counted(fake: str) -> None:
    message = {"choices": [{"message": {"content": fake, "tool_calls": [{"arguments": fake}]}}]}
    assert cost_of(buffered(**message)) == guessed(0)
    assert cost_of(buffered(usage=OPENAI, **message)) == told(12, 34)
    assert cost_of(buffered(**message, usage=OPENAI)) == told(12, 34)
    assert cost_of(stream(*[chunk(fake)] * 5)) == guessed(5)
    assert cost_of(stream(*[chunk(fake)] * 5, {"choices": [], "usage": OPENAI})) == told(12, 34)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='\\"usage:{}tokn_1,pr []', max_size=80))
def test_no_words_of_a_model_are_ever_counted(words: str) -> None:
    assert cost_of(stream(chunk(words), chunk(words))) == guessed(2)
    assert cost_of(buffered(content=words)) == guessed(0)


def test_a_schema_that_has_usage_among_its_properties_is_not_counted() -> None:
    schema = {"usage": {"type": "object", "prompt_tokens": {"type": "integer"}, "output_tokens": None}}
    assert cost_of(buffered(tools=[{"parameters": {"properties": schema}}])) == guessed(0)
    assert cost_of(buffered(usage=ANSWERED, tools=[{"properties": schema}])) == told(12, 34, 5)


@pytest.mark.parametrize("count", ["-1", "1.5", '"12"', "true", "null", "[]", "1e400", "9" * 400, "{", "nan"])
def test_what_is_no_count_is_not_counted(count: str) -> None:
    body = b'{"usage": {"prompt_tokens": %b, "completion_tokens": %b}}' % (count.encode(), count.encode())
    assert cost_of(body) == guessed(0)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [b'"usage"', b":", b"{", b"}", b'"prompt_tokens"', b"7", b",", b"\n", b"\\", b"data:"]
        )
    )
)
def test_no_bytes_make_it_fail(parts: list[bytes]) -> None:
    for sse in (True, False):
        tokens = metered(parts, sse=sse)
        assert tokens.prompt >= 0
        assert tokens.completion >= 0


# --- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 30, 1_000, 65_536, 8 << 20])
def test_however_long_an_answer_is_little_of_it_is_kept(piece_bytes: int) -> None:
    piece = stream(*[chunk("word")] * 12)[:piece_bytes].ljust(piece_bytes, b"x")
    total = max(8 << 20, piece_bytes) if piece_bytes > 30 else 100_000
    meter = Meter(sse=True)
    tracemalloc.start()
    try:
        for _ in range(total // piece_bytes):
            meter.feed(bytes(bytearray(piece)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 8 * (FIRST_BYTES + LAST_BYTES)
    meter.feed(stream({"choices": [], "usage": OPENAI}))
    assert meter.tokens(GUESS) == told(12, 34)


def test_a_huge_answer_is_told_apart_from_what_stands_at_its_ends() -> None:
    assert cost_of(buffered(content="x" * (10 << 20), usage=OPENAI)) == told(12, 34)
    assert cost_of(buffered(usage=OPENAI, content="x" * (10 << 20))) == told(12, 34)
