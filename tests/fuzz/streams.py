"""Fuzzed: what is read off answers while they pass, which must not depend on how they were cut."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from llmgateway.api.dialect import LINES, SSE
from llmgateway.api.endings import ENDINGS_IN, TAIL_BYTES, ended_choices
from llmgateway.api.inflate import Inflater, TooMuch
from llmgateway.api.reading import FIRST_BYTES, LAST_BYTES
from llmgateway.api.usage import WORDS_IN, Meter, Tokens
from tests.fuzz.target import Choices, Target, behind, lengthened, pieces, words

_GUESS: Final = 77
_KEPT_BYTES: Final = FIRST_BYTES + LAST_BYTES
_MOST_HELD_BYTES: Final = 16 * _KEPT_BYTES
_MOST_TOKENS: Final = 10**9
_NO_CODING: Final = b""

Metered = tuple[Tokens, bool, bytes | None]
"""What an answer cost, whether it has ended, and its error."""

# --- usage -----------------------------------------------------------------------------------------


def usage(data: bytes) -> None:
    """An answer costs the same, and has the same end and error, however it is cut; nothing raises."""
    choices = Choices(data)
    streams, writes, is_packed = choices.flag(), choices.flag(), choices.flag()
    framing = choices.one_of(*WORDS_IN)
    coding = choices.one_of(_NO_CODING, b"gzip", b"deflate", b" X-GZIP", b"br", b"identity")
    cutting = choices.number()
    body = lengthened(choices.rest, _KEPT_BYTES)
    sent = _packed(body, coding) if is_packed else body

    def metered(way: int) -> Metered:
        shapes, endings = WORDS_IN[framing]
        meter = Meter(stream=streams, writes=writes, coding=coding, shapes=shapes, endings=endings)
        return _metered(meter, pieces(sent, way))

    whole = metered(0)
    for way in (1, cutting):
        told = metered(way)
        assert told[0] == whole[0], "the cost depends on the cuts"
        if len(body) <= TAIL_BYTES:
            assert told == whole, "the end, or the error, depends on the cuts"
    if sent == body and coding == _NO_CODING and not streams:
        _check_what_is_told(body, whole[0])


def _packed(body: bytes, coding: bytes) -> bytes:
    if coding.strip().lower() in (b"gzip", b"x-gzip"):
        return gzip.compress(body, 1, mtime=0)
    return zlib.compress(body, 1) if coding == b"deflate" else body


def _metered(meter: Meter, some: Sequence[bytes]) -> Metered:
    for piece in some:
        meter.feed(piece)
        assert _held_bytes(meter) <= _MOST_HELD_BYTES + len(piece), "it keeps too much"
    ended, error = meter.has_ended(), meter.error()
    tokens = meter.tokens(_GUESS)
    assert 0 <= tokens.cached <= tokens.prompt
    assert 0 <= tokens.reasoning <= tokens.completion
    return tokens, ended, error


def _held_bytes(meter: Meter) -> int:
    held = sum(map(sys.getsizeof, meter._fresh))
    if (reading := meter._reading) is not None:
        held += len(reading._buffer) + len(reading._tail) + len(reading._sample)
        held += 64 * len(reading._ended_choices)
    return held


def _check_what_is_told(body: bytes, tokens: Tokens) -> None:
    """Where JSON tells its usage once and plainly, that is what it cost."""
    if body.count(b'"usage"') != 1 or b"timings" in body or b"\\" in body or len(body) > FIRST_BYTES:
        return
    try:
        told = json.loads(body.decode())
    except (ValueError, RecursionError):
        return
    found = told.get("usage") if isinstance(told, dict) else None
    if not isinstance(found, dict) or set(found) != {"prompt_tokens", "completion_tokens"}:
        return
    if body.count(b"_tokens") == 2 and all(_counts(value) for value in found.values()):
        assert tokens == Tokens(found["prompt_tokens"], found["completion_tokens"], 0, 0, estimated=False)


def _counts(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST_TOKENS


def _answers() -> Iterator[bytes]:
    yield (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,'
        b'"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}\n\ndata: [DONE]\n\n'
    )
    yield (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":4}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":9}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    yield (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x"}\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":'
        b'{"input_tokens":5,"output_tokens":6,"output_tokens_details":{"reasoning_tokens":1}}}}\n\n'
    )
    yield b'data: {"error":{"message":"no","code":500}}\n\n'
    yield b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
    yield b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
    yield b'{"x":1,"timings":{"prompt_n":3,"predicted_n":5},"content":"\1"}'
    yield b'{"model":"m","message":{"content":"x"},"done":false}\n{"done":true,"eval_count":5}\n'
    yield b'data: {"choices":[{"text":"\1"}]}\n\ndata: {"usage":{"prompt_tokens":1\1}}\n\n'


_WORDS: Final = words(
    b"""data: event: "usage" "timings" "choices" "text" "delta" "content" "type" [DONE] "error" "stop"
    "index": "prompt_tokens": "completion_tokens": "input_tokens": "output_tokens": "cached_tokens":
    "message_start" "predicted_n": "prompt_n": "finish_reason": "message_stop" "response.completed"
    "response.failed" null "reasoning_tokens": "prompt_eval_count": "eval_count": "done":true "message"
    "response" "tool_calls" "arguments" "reasoning_content" error:""",
    b"\n\n",
    b"\r\n\r\n",
    b"data: ",
    b'"usage":{"prompt_tokens":7,"completion_tokens":3}',
)


def _usage_seeds() -> Iterator[bytes]:
    yield from behind(1, 1, 0, 0, 0, 2)(_answers())
    yield from behind(0, 1, 0, 0, 0, 3)(_answers())
    yield from behind(1, 0, 1, 1, 1, 4)(_answers())
    yield from behind(0, 1, 1, 0, 2, 5)(_answers())
    yield from behind(1, 1, 0, 1, 0, 6)(_answers())


USAGE: Final = Target("usage", usage, _usage_seeds, _WORDS, short_runs=1_000)

# --- endings ---------------------------------------------------------------------------------------


def endings(data: bytes) -> None:
    """Whatever a stream's last lines are, its end and error can be told; no words are taken for one."""
    choices = Choices(data)
    if choices.flag():
        _check_that_words_are_words(choices.rest)
        return
    done = {0} if choices.flag() else set()
    endings = choices.one_of(*ENDINGS_IN.values())
    tail, _, rest = choices.rest.partition(b"\0")
    assert endings.has_ended(tail, rest, done) in (True, False)
    error = endings.error(tail)
    assert error is None or error in tail
    assert all(type(index) is int for index in ended_choices(tail))


def _check_that_words_are_words(text: bytes) -> None:
    """Have a model say any words, in the middle of a stream of each dialect."""
    said = json.dumps(text.decode("latin-1"), ensure_ascii=len(text) % 2 == 0).encode()
    for framing, event in (
        (SSE, b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n'),
        (SSE, b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":%b}}\n\n'),
        (SSE, b'data: {"type":"response.output_text.delta","delta":%b}\n\n'),
        (LINES, b'{"message":{"role":"assistant","content":%b},"done":false}\n'),
        (LINES, b'{"response":%b}\n'),
    ):
        tail, endings = event % said, ENDINGS_IN[framing]
        assert endings.error(tail) is None, "words are taken for an error"
        assert not endings.has_ended(tail, b"", set()), "words are taken for an end"
        assert not list(ended_choices(tail))


def _ending_seeds() -> Iterator[bytes]:
    yield from behind(0, 1, 0)(_answers())
    yield from behind(0, 0, 1)(_answers())
    yield from behind(1)(_answers())
    yield b'\0\0\0data: {"choices":[]}\n\n\0data: [DONE]'


ENDINGS_TARGET: Final = Target("endings", endings, _ending_seeds, _WORDS)

# --- decompression ---------------------------------------------------------------------------------


def inflate(data: bytes) -> None:
    """It yields what zlib does, in any pieces; what zlib refuses is a beginning, and then an error."""
    choices = Choices(data)
    window = choices.one_of(zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS)
    is_packed, cutting = choices.flag(), choices.number()
    coding = b"gzip" if window > zlib.MAX_WBITS else b"deflate"
    body = lengthened(choices.rest, _KEPT_BYTES)
    sent = _deflated(body, window) if is_packed else choices.rest
    whole, failed = _inflated(sent, coding, 0)
    other, other_failed = _inflated(sent, coding, cutting)
    assert failed == other_failed
    assert (other == whole) or (failed and (whole.startswith(other) or other.startswith(whole)))
    if is_packed and window != -zlib.MAX_WBITS:
        assert (whole, failed) == (body, False)


def _deflated(body: bytes, window: int) -> bytes:
    packer = zlib.compressobj(1, wbits=window)
    return packer.compress(body) + packer.flush()


def _inflated(sent: bytes, coding: bytes, cutting: int) -> tuple[bytes, bool]:
    inflater, found = Inflater(coding), b""
    try:
        for piece in pieces(sent, cutting):
            found += b"".join(inflater.inflate(piece))
    except (zlib.error, TooMuch):
        return found, True
    return found, False


def _inflate_seeds() -> Iterator[bytes]:
    text = b"data: words, and words again; words\n\n"
    yield from (bytes((window, 1, 3)) + text for window in range(3))
    yield bytes((0, 0, 3)) + gzip.compress(text, mtime=0)
    yield bytes((0, 0, 2)) + gzip.compress(text, mtime=0) * 2
    yield bytes((1, 0, 3)) + zlib.compress(text)
    yield bytes((1, 0, 3)) + _deflated(text, -zlib.MAX_WBITS)


INFLATE: Final = Target("inflate", inflate, _inflate_seeds)
