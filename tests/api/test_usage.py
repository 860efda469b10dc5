"""What an answer cost, read off its bytes: every API's way to say so, however the bytes are cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.api.usage import Meter, Tokens
from tests.llamacpp.fixtures import LlamaServer

GUESS = 77  # prompt tokens that the gateway guesses


def told(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Tokens:
    return Tokens(prompt, completion, cached, reasoning, estimated=False)


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
    meter = Meter(stream=sse)
    for piece in pieces:
        meter.feed(piece)
    return meter.tokens(GUESS)


def is_stream(body: bytes) -> bool:
    return body.startswith((b"data:", b"event:", b":"))


def cost_of(body: bytes) -> Tokens:
    return metered([body], sse=is_stream(body))


def chunk(content: str, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": content}}], **more}


CHUNKS = [chunk(word) for word in "the quick brown fox".split()]
CHAT = {"id": "c1", "choices": [{"message": {"content": "hi"}}]}
OPENAI = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
CACHED = {**OPENAI, "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0}}
THOUGHT = {**CACHED, "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0}}
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
PAUSED = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 12, "output_tokens": 9}}


def timed(index: int, tokens: int) -> dict[str, Any]:
    """The event with which llama.cpp ends one of several choices."""
    choice = {"finish_reason": "length", "index": index, "delta": {}}
    return {"choices": [choice], "timings": {"cache_n": 0, "prompt_n": 12, "predicted_n": tokens}}


ANSWERS = {
    "OpenAI, buffered": (buffered(**CHAT, usage=CACHED), told(12, 34, 5)),
    "OpenAI, with thoughts": (buffered(**CHAT, usage=THOUGHT), told(12, 34, 5, 20)),
    "OpenAI, with thoughts, streamed": (
        stream(*CHUNKS, {"choices": [], "usage": THOUGHT}),
        told(12, 34, 5, 20),
    ),
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
    "a count in every chunk, cut off": (
        stream(
            *(chunk("x", usage={"prompt_tokens": 12, "completion_tokens": n + 1}) for n in range(300)),
            done=False,
        ),
        told(12, 300),
    ),
    "zeros until the end, cut off": (
        stream(*(chunk("x", usage={"prompt_tokens": 12, "completion_tokens": 0}) for n in range(9))),
        guessed(9, prompt=12),
    ),
    "the last word counts": (
        stream(chunk("x", usage={**CACHED, "completion_tokens": 1}), {"choices": [], "usage": OPENAI}),
        told(12, 34),
    ),
    "more parts than the whole has": (
        buffered(usage={**OPENAI, "prompt_tokens_details": {"cached_tokens": 99}}),
        told(12, 34, 12),
    ),
    "null details": (buffered(**CHAT, usage={**OPENAI, "prompt_tokens_details": None}), told(12, 34)),
    "embeddings": (
        buffered(usage={"prompt_tokens": 12, "total_tokens": 12}, data=[0.5] * 9_000),
        told(12, 0),
    ),
    "rerank": (
        buffered(results=[{"index": 0}], usage={"prompt_tokens": 12, "total_tokens": 12}),
        told(12, 0),
    ),
    "rerank, only a total": (buffered(usage={"total_tokens": 12}, results=[]), told(12, 0)),
    "llama.cpp, buffered": (buffered(**CHAT, usage=CACHED, timings=TIMINGS), told(12, 34, 5)),
    "llama.cpp, streamed": (stream(*CHUNKS, chunk("", timings=TIMINGS)), told(12, 34, 5)),
    "llama.cpp, buffered, timings alone": (buffered(**CHAT, timings=TIMINGS), told(12, 34, 5)),
    "llama.cpp, timings in every event, cut off": (
        stream(*(chunk("x", timings={**TIMINGS, "predicted_n": n + 1}) for n in range(90)), done=False),
        told(12, 90, 5),
    ),
    "llama.cpp, two choices": (
        stream(*[chunk("x")] * 57, timed(1, 17), timed(0, 40)),
        guessed(57, prompt=12),
    ),
    "usage and timings": (
        stream(*CHUNKS, {"choices": [], "usage": OPENAI, "timings": {**TIMINGS, "predicted_n": 33}}),
        told(12, 34, 5),
    ),
    "Anthropic, buffered": (
        buffered(type="message", content=[], usage={"input_tokens": 12, "output_tokens": 34}),
        told(12, 34),
    ),
    "Anthropic, streamed": (stream(START, *[TEXT] * 9, DELTA, STOP, done=False), told(12, 34)),
    "Anthropic, long": (stream(START, *[TEXT] * 900, DELTA, STOP, done=False), told(12, 34)),
    "Anthropic, several counts": (stream(START, *[TEXT] * 9, PAUSED, TEXT, DELTA, STOP), told(12, 34)),
    "Anthropic, cached": (stream(CACHED_START, *[TEXT] * 900, DELTA, STOP, done=False), told(12, 34, 5)),
    "Anthropic, CRLF": (stream(START, *[TEXT] * 9, DELTA, STOP, done=False, end="\r\n\r\n"), told(12, 34)),
    "Responses, buffered": (buffered(object="response", output=[], usage=ANSWERED), told(12, 34, 5, 20)),
    "Responses, streamed": (stream(*RESPONSES, done=False), told(12, 34, 5, 20)),
    "Ollama, buffered": (buffered(**CHAT, usage=OLLAMA), told(12, 34)),
    "Ollama, streamed": (stream(*CHUNKS, {"choices": [], "usage": OLLAMA}), told(12, 34)),
    "nothing told, streamed": (stream(*CHUNKS), guessed(4)),
    "nothing told, CRLF": (stream(*CHUNKS, end="\r\n\r\n"), guessed(4)),
    "nothing told, buffered": (buffered(**CHAT), guessed(0)),
    "nothing at all": (b"", guessed(0)),
    "Anthropic, broken off": (stream(START, *[TEXT] * 200, done=False), guessed(200, prompt=12)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_answer_tells_is_read(name: str) -> None:
    body, expected = ANSWERS[name]
    assert cost_of(body) == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_it_is_read_wherever_the_bytes_are_cut(name: str) -> None:
    body, expected = ANSWERS[name]
    sse = is_stream(body)
    assert metered((body[at : at + 1] for at in range(len(body))), sse=sse) == expected
    for at in range(0, len(body), max(1, len(body) // 400)):
        assert metered((body[:at], body[at:]), sse=sse) == expected


# --- which events carry text ---------------------------------------------------------------------------


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}], "model": "m"}


def call(**function: str) -> dict[str, Any]:
    return delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": function}])


CONTENT: dict[str, Any] = {
    "text": delta(content="word"),
    "text that looks like an end": delta(content="}"),
    "a quote": delta(content='"'),
    "a role in every event": delta(role="assistant", content="word"),
    "a thought": delta(content=None, reasoning_content="hm"),
    "a thought, vLLM and Ollama": delta(content="", reasoning="hm"),
    "a thought, Mistral": delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
    "a refusal": delta(content=None, refusal="no"),
    "the name of a tool": call(name="get_weather", arguments=""),
    "its arguments": delta(tool_calls=[{"index": 0, "function": {"arguments": ' {"'}}]),
    "the last text, with its reason": {"choices": [{"delta": {"content": "."}, "finish_reason": "stop"}]},
    "no usage yet": {**delta(content="word"), "usage": None},
    "probabilities": {
        "choices": [
            {"delta": {"content": "word"}, "logprobs": {"content": [{"token": "word", "bytes": [1]}]}}
        ]
    },
    "a completion": {"choices": [{"text": "word", "index": 0, "logprobs": None, "finish_reason": None}]},
    "a completion, sorted": {"choices": [{"finish_reason": None, "index": 0, "text": "word"}]},
    "Anthropic's text": TEXT,
    "Anthropic's thought": {
        "type": "content_block_delta",
        "delta": {"type": "thinking_delta", "thinking": "hm"},
    },
    "Anthropic's arguments": {
        "type": "content_block_delta",
        "delta": {"type": "input_json_delta", "partial_json": "{"},
    },
    "Responses' text": {
        "type": "response.output_text.delta",
        "item_id": "i",
        "delta": "word",
        "logprobs": [],
    },
    "Responses' thought": {"type": "response.reasoning_text.delta", "delta": "hm"},
    "Responses' arguments": {"type": "response.function_call_arguments.delta", "delta": "{"},
}

NO_CONTENT: dict[str, Any] = {
    "the role": delta(role="assistant", content=None),
    "the role, with no text yet": delta(role="assistant", content=""),
    "the role, with no text nor thought": delta(role="assistant", content="", reasoning_content=""),
    "the reason to stop": {"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}]},
    "the reason, Ollama": {
        "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]
    },
    "the reason of a completion": {"choices": [{"text": "", "index": 0, "finish_reason": "length"}]},
    "no choices": {"choices": [], "model": "m"},
    "Anthropic's beginning": {"type": "message_start", "message": {"content": [], "role": "assistant"}},
    "a block begins": {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
    "a block with text begins": {
        "type": "content_block_start",
        "content_block": {"type": "text", "text": "x"},
    },
    "a block ends": {"type": "content_block_stop", "index": 0},
    "a signature": {
        "type": "content_block_delta",
        "delta": {"type": "signature_delta", "signature": "Zm9v"},
    },
    "Anthropic's end": {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": "text"},
    },
    "a ping": {"type": "ping"},
    "Responses' beginning": {"type": "response.created", "response": {"id": "r1", "output": []}},
    "a part is added": {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
    "a part is done": {"type": "response.content_part.done", "part": {"type": "output_text", "text": "word"}},
    "the text is done": {"type": "response.output_text.done", "text": "word"},
    "Responses' end": {
        "type": "response.completed",
        "response": {"output": [{"content": [{"type": "output_text", "text": "word"}]}]},
    },
    "an error": {"error": {"message": "it broke", "type": "server_error"}},
}


def written(event: Any) -> Iterator[bytes]:
    """An event as different servers write it: with blanks and without, keys in any order."""
    for separators in ((",", ":"), (", ", ": ")):
        for in_order in (event, json.loads(json.dumps(event), object_pairs_hook=_backwards)):
            yield b"data: " + json.dumps(in_order, separators=separators).encode() + b"\n\n"


def _backwards(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


@pytest.mark.parametrize("name", CONTENT)
def test_what_carries_text_counts_as_output(name: str) -> None:
    for event in written(CONTENT[name]):
        assert cost_of(event * 3) == guessed(3), event


@pytest.mark.parametrize("name", NO_CONTENT)
def test_what_carries_none_does_not(name: str) -> None:
    for event in written(NO_CONTENT[name]):
        assert cost_of(event * 3) == guessed(0), event


def test_comments_and_the_end_of_a_stream_are_no_output() -> None:
    body = b": ping\n\n" + stream(*CHUNKS, done=False) + b": data: ping\n\nretry: 3\n\n" + stream()
    assert cost_of(body) == guessed(len(CHUNKS))


def test_the_output_so_far_is_known_while_it_comes() -> None:
    meter = Meter(stream=True)
    assert meter.output_so_far == 0
    for number, event in enumerate(CHUNKS * 100, start=1):
        meter.feed(stream(event, done=False))
        assert meter.output_so_far == number
    meter.feed(stream(chunk("half"), done=False)[:-8])
    assert meter.output_so_far == 400
    assert meter.tokens(GUESS) == guessed(401)


@pytest.mark.parametrize("at_a_time", [1, 7, 1_000])
def test_a_choice_that_ended_long_before_the_others_has_ended(at_a_time: int) -> None:
    def said(first: str | None = None, second: str | None = None) -> dict[str, Any]:
        pairs = enumerate((first, second))
        return {"choices": [{"index": i, "delta": {"content": "word"}, "finish_reason": r} for i, r in pairs]}

    meter = Meter(stream=True)
    events = [said(), said("stop"), *[said()] * 400, said(second="length")]
    for start in range(0, len(events), at_a_time):
        assert not meter.has_ended()
        meter.feed(stream(*events[start : start + at_a_time], done=False))
    assert meter.has_ended()


def test_what_is_no_stream_has_no_output_so_far() -> None:
    meter = Meter(stream=False)
    meter.feed(stream(*CHUNKS))
    assert meter.output_so_far == 0


# --- what llama.cpp counts -----------------------------------------------------------------------------

SPOKEN = [{"role": "user", "content": "hello world"}]
LENGTH = 60
REQUESTS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": SPOKEN, "max_tokens": LENGTH},
    "/completions": {"prompt": "hello world", "max_tokens": LENGTH},
    "/messages": {"messages": SPOKEN, "max_tokens": LENGTH},
    "/responses": {"input": "hello world", "max_output_tokens": LENGTH},
}


async def asked(server: LlamaServer, path: str, **more: Any) -> bytes:
    body = {"model": server.model, "temperature": 0, **REQUESTS[path], **more}
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as answer:
        assert answer.status == 200
        return await answer.read()


def untold(body: bytes) -> bytes:
    """The same answer from a server that does not tell what it cost."""
    return re.sub(rb'"(usage|timings|input_tokens|output_tokens)":', b'"x":', body)


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_buffered_answer_costs_what_llama_cpp_says(llama_server: LlamaServer, path: str) -> None:
    body = await asked(llama_server, path)
    usage = json.loads(body)["usage"]
    tokens = cost_of(body)
    assert (tokens.completion, tokens.estimated) == (LENGTH, False)
    if "prompt_tokens" in usage:
        assert tokens.prompt == usage["prompt_tokens"]
    else:
        cached = usage.get("cache_read_input_tokens", 0)  # Anthropic's; Responses has them inside
        assert tokens.prompt == usage["input_tokens"] + cached


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_stream_costs_as_much_as_the_same_answer_in_one_piece(
    llama_server: LlamaServer, path: str
) -> None:
    buffered = cost_of(await asked(llama_server, path))
    streamed = cost_of(await asked(llama_server, path, stream=True))
    assert (streamed.prompt, streamed.completion) == (buffered.prompt, buffered.completion)
    assert not streamed.estimated


@pytest.mark.parametrize("path", REQUESTS)
async def test_an_estimate_is_what_llama_cpp_would_have_told(llama_server: LlamaServer, path: str) -> None:
    tokens = cost_of(untold(await asked(llama_server, path, stream=True)))
    assert tokens.estimated
    assert abs(tokens.completion - LENGTH) <= LENGTH / 10


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_stream_cut_off_anywhere_is_estimated_well(
    llama_endless: LlamaServer, temperature: int
) -> None:
    body = await asked(
        llama_endless,
        "/chat/completions",
        stream=True,
        timings_per_token=True,
        temperature=temperature,
        seed=1,
    )
    so_far, seen = b"", 0
    for event in body.split(b"\n\n"):
        so_far += event + b"\n\n"
        truth = re.search(rb'"predicted_n":(\d+)', event)
        if truth is None:
            continue
        seen += 1
        counted, guess = cost_of(so_far), cost_of(untold(so_far))
        assert (counted.completion, counted.estimated) == (int(truth[1]), False)
        assert guess.estimated
        assert abs(guess.completion - int(truth[1])) <= int(truth[1]) / 10
    assert seen >= LENGTH


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


@settings(max_examples=200)
@given(st.text(alphabet='\\"usage:{}tokn_1,pr []delc', min_size=1, max_size=80))
def test_no_words_of_a_model_are_taken_for_anything_else(words: str) -> None:
    assert cost_of(stream(chunk(words), chunk(words))) == guessed(2)
    assert cost_of(stream({**TEXT, "delta": {"type": "text_delta", "text": words}})) == guessed(1)
    assert cost_of(buffered(content=words)) == guessed(0)


@pytest.mark.parametrize(
    "last", [b"", b'data: {"usage":{"completion_tokens":8}}\n\n'], ids=["", "and the output"]
)
def test_usage_that_is_told_without_end_is_read_from_the_end(last: bytes) -> None:
    """Each time that it is told takes its time, and a provider may tell it in every few bytes."""
    events = b"".join(b'data: {"usage":{"prompt_tokens":%d}}\n\n' % each for each in range(2_000))
    meter = Meter(stream=True, writes=True)
    meter.feed(b'data: {"usage":{"completion_tokens":7}}\n\n' + events + last)
    tokens = meter.tokens(5)
    assert (tokens.prompt, tokens.completion) == (1_999, 8 if last else 0)


def test_a_schema_that_has_usage_among_its_properties_is_not_counted() -> None:
    schema = {"usage": {"type": "object", "prompt_tokens": {"type": "integer"}, "output_tokens": None}}
    assert cost_of(buffered(tools=[{"parameters": {"properties": schema}}])) == guessed(0)
    assert cost_of(buffered(usage=ANSWERED, tools=[{"properties": schema}])) == told(12, 34, 5, 20)


@pytest.mark.parametrize(
    "count", ["-1", "1.5", '"12"', "true", "null", "[]", "1e400", "9" * 400, "9" * 12, "{", "nan"]
)
def test_what_is_no_count_is_not_counted(count: str) -> None:
    body = b'{"usage": {"prompt_tokens": %b, "completion_tokens": %b}}' % (count.encode(), count.encode())
    assert cost_of(body) == guessed(0)


@pytest.mark.parametrize("words", [10, 3_000, 30_000])
@pytest.mark.parametrize("at_a_time", [100, 5_000, 1_000_000])
def test_an_error_is_found_however_much_it_says(words: int, at_a_time: int) -> None:
    told = b"event: error\ndata: " + b"x" * words + b"\n\n"
    body = stream(*CHUNKS * 100, done=False) + told + b"data: [DONE]\n\n"
    meter = Meter(stream=True)
    for start in range(0, len(body), at_a_time):
        meter.feed(body[start : start + at_a_time])
    error = meter.error()
    assert error is not None and set(error) == {ord("x")}
