"""What the meter keeps whatever comes: the same cost for any pieces, no exception, and bounds."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmgateway.api.dialect import LINES, SSE, Framing
from llmgateway.api.inflate import LOOK_BYTES, MOST_INFLATED_BYTES
from llmgateway.api.reading import FIRST_BYTES, LAST_BYTES
from llmgateway.api.usage import WORDS_IN, Meter, Tokens
from tests.api.test_usage import (
    ANSWERS,
    CHAT,
    CONTENT,
    GUESS,
    NO_CONTENT,
    OPENAI,
    RESPONSES,
    START,
    buffered,
    chunk,
    guessed,
    is_stream,
    stream,
    told,
)

KEPT_BYTES = FIRST_BYTES + LAST_BYTES
MOST_HELD_BYTES = 8 * KEPT_BYTES
USAGE = {"choices": [], "usage": OPENAI}
WORD = stream(chunk("word"), done=False)

# Parts that mean something to the meter, so that chance makes answers worth reading.
PARTS = [
    *(b'data: "usage" "timings" "choices" "text" "delta" "content" "type" message_start'.split()),
    *(b': { } [ ] , " \\ 7 \n \r\n "prompt_tokens":7 "completion_tokens":3 "predicted_n":5'.split(b" ")),
    *(b'"usage":{"prompt_tokens":7} "delta":{"content":"x"} "type":"message_start"'.split()),
    *(b'"choices":[{"text":"x"}] "usage":{"output_tokens":9,"input_tokens":4}'.split()),
    b'"timings":{"prompt_n":3}',
    b"x" * KEPT_BYTES,
    WORD * 50,
]


LINE_PARTS = [
    *(b'"message" "content" "response" "eval_count" "prompt_eval_count" "done" true'.split()),
    *(b': { } [ ] , " \\ 7 \n \r\n'.split(b" ")),
    *(b'"eval_count":7 "prompt_eval_count":3 "message":{"content":"x"} "response":"x"'.split()),
    b'{"message":{"content":"x"},"arguments":{"eval_count":5}}\n',
    b'{"done":true,"prompt_eval_count":3,"eval_count":9}\n',
    b"x" * KEPT_BYTES,
    b" " * 3 * KEPT_BYTES,
    b"1," * KEPT_BYTES,
]


def metered(
    body: bytes, *cuts: int, sse: bool, coding: bytes = b"", framing: Framing = SSE, writes: bool = False
) -> Tokens:
    meter = Meter(sse, coding, writes, *WORDS_IN[framing])
    ends = sorted(min(cut, len(body)) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(body)], strict=True):
        meter.feed(body[start:end])
    return meter.tokens(GUESS)


def deflated(body: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(body) + packer.flush()


# --- pieces ------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 60_000), max_size=12))
def test_an_answer_costs_the_same_in_any_pieces(name: str, cuts: list[int]) -> None:
    body, expected = ANSWERS[name]
    assert metered(body, *cuts, sse=is_stream(body)) == expected


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([*CONTENT.values(), *NO_CONTENT.values(), USAGE, *RESPONSES, START])),
    st.lists(st.integers(0, 60_000), max_size=12),
    st.integers(0, 20_000),
)
def test_a_stream_cut_off_anywhere_costs_the_same_in_any_pieces(
    events: list[object], cuts: list[int], end: int
) -> None:
    body = (stream(*events) * 3)[:end]
    assert metered(body, *cuts, sse=True) == metered(body, sse=True)


@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(PARTS) | st.binary(max_size=20), max_size=60),
    st.lists(st.integers(0, 200_000), max_size=12),
    st.booleans(),
)
@example([b'"usage":', b"\n", b'{"prompt_tokens":7}\n'], [9], True)
@example(
    [b"x" * KEPT_BYTES, b'"delta":{"content":"x"}', b"x" * 3 * KEPT_BYTES, b"\n"], [3 * KEPT_BYTES], True
)
@example([b'"usage":{"prompt_tokens":7', b"x" * 3 * KEPT_BYTES, b"}"], [KEPT_BYTES], False)
def test_any_bytes_cost_the_same_in_any_pieces(parts: list[bytes], cuts: list[int], sse: bool) -> None:
    body = b"".join(parts)
    whole = metered(body, sse=sse)
    assert metered(body, *cuts, sse=sse) == whole
    assert 0 <= whole.cached <= whole.prompt
    assert 0 <= whole.reasoning <= whole.completion


@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(LINE_PARTS) | st.binary(max_size=20), max_size=60),
    st.lists(st.integers(0, 200_000), max_size=12),
    st.booleans(),
    st.booleans(),
)
@example([b'{"a":{"eval_count":7},"b":"', b"x" * 3 * KEPT_BYTES, b'"}\n'], [5 * KEPT_BYTES // 2], True, False)
@example([b'{"a":{"eval_count":7},"b":"', b"x" * 3 * KEPT_BYTES, b'"}'], [5 * KEPT_BYTES // 2], False, False)
@example([b'{"b":"', b"x" * 3 * KEPT_BYTES, b'","a":{"eval_count":7}}\n'], [5 * KEPT_BYTES // 2], True, False)
@example([b'{"eval_count"', b" " * 3 * KEPT_BYTES, b":7}\n"], [5 * KEPT_BYTES // 2], True, True)
def test_any_lines_cost_the_same_in_any_pieces(
    parts: list[bytes], cuts: list[int], stream: bool, writes: bool
) -> None:
    body = b"".join(parts)
    whole = metered(body, sse=stream, framing=LINES, writes=writes)
    assert metered(body, *cuts, sse=stream, framing=LINES, writes=writes) == whole


@settings(max_examples=200)
@given(
    st.lists(st.binary(max_size=200), max_size=20),
    st.booleans(),
    st.sampled_from([b"", b"gzip", b"x-gzip", b"deflate", b"br", b"\xff, ,"]),
)
def test_no_bytes_make_it_fail(pieces: list[bytes], sse: bool, coding: bytes) -> None:
    meter = Meter(stream=sse, coding=coding)
    for piece in pieces:
        meter.feed(piece)
        assert meter.output_so_far >= 0
    assert meter.tokens(GUESS) == meter.tokens(GUESS)


# --- compressed answers ------------------------------------------------------------------------------

PACKED: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "GZip, oddly written": (b" GZip ", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "deflate without its header": (b"deflate", lambda body: deflated(body, -zlib.MAX_WBITS)),
    "identity": (b"identity", bytes),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_compressed_answer_is_read(answer: str, name: str) -> None:
    body, expected = ANSWERS[answer]
    coding, pack = PACKED[name]
    packed = pack(body)
    assert metered(packed, sse=is_stream(body), coding=coding) == expected
    assert metered(packed, *range(1, 200), sse=is_stream(body), coding=coding) == expected


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(ANSWERS)),
    st.sampled_from(sorted(PACKED)),
    st.lists(st.integers(0, 2_000), max_size=12),
)
def test_it_is_read_in_any_pieces(answer: str, name: str, cuts: list[int]) -> None:
    body, expected = ANSWERS[answer]
    coding, pack = PACKED[name]
    assert metered(pack(body), *cuts, sse=is_stream(body), coding=coding) == expected


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"nonsense"])
def test_what_cannot_be_decompressed_is_an_estimate(coding: bytes) -> None:
    assert metered(stream(USAGE), sse=True, coding=coding) == guessed(0)
    assert metered(buffered(**CHAT, usage=OPENAI), sse=False, coding=coding) == guessed(0)


def test_a_compressed_stream_that_breaks_off_is_an_estimate() -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    packed = packer.compress(WORD * 20) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert metered(packed, sse=True, coding=b"gzip") == guessed(20)
    assert metered(packed + b"no gzip at all", len(packed), sse=True, coding=b"gzip") == guessed(20)
    assert metered(b"no gzip at all", sse=True, coding=b"gzip") == guessed(0)


def test_what_a_broken_answer_tells_is_an_estimate() -> None:
    packed = bytearray(gzip.compress(stream(USAGE)))
    packed[-8] ^= 1  # of the checksum
    tokens = metered(bytes(packed), len(packed) - 10, sse=True, coding=b"gzip")
    assert tokens == Tokens(12, 34, estimated=True)


def test_what_follows_a_compressed_answer_is_not_kept() -> None:
    meter = Meter(stream=True, coding=b"gzip")
    meter.feed(gzip.compress(stream(USAGE)))
    assert held(meter, (bytes(65_536) for _ in range(100))) < MOST_HELD_BYTES
    assert meter.tokens(GUESS) == told(12, 34)


def test_a_bomb_is_read_up_to_a_bound() -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    words = WORD * 1_000
    bomb = b"".join(packer.compress(words) for _ in range(5 * MOST_INFLATED_BYTES // len(words)))
    bomb += packer.compress(stream(USAGE)) + packer.flush()
    meter = Meter(stream=True, coding=b"gzip")
    assert held(meter, (bomb[at : at + 8_192] for at in range(0, len(bomb), 8_192))) < MOST_HELD_BYTES
    tokens = meter.tokens(GUESS)
    assert tokens == guessed(MOST_INFLATED_BYTES // len(WORD))
    assert metered(bomb, *range(0, len(bomb), 777), sse=True, coding=b"gzip") == tokens


# --- bounds ------------------------------------------------------------------------------------------


def held(meter: Meter, pieces: Iterable[bytes]) -> int:
    """Feed pieces, and give the most bytes that were allocated meanwhile."""
    tracemalloc.start()
    try:
        for piece in pieces:
            meter.feed(piece)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sse", [True, False])
@pytest.mark.parametrize("piece_bytes", [1, 30, 1_000, 65_536])
def test_however_long_an_answer_is_little_of_it_is_held(piece_bytes: int, sse: bool) -> None:
    piece = (WORD * 1_000)[:piece_bytes]
    total = 8 << 20 if piece_bytes > 30 else 200_000
    meter = Meter(stream=sse)
    most = held(meter, (bytes(bytearray(piece)) for _ in range(total // piece_bytes)))
    assert most < MOST_HELD_BYTES + 8 * piece_bytes
    meter.feed(b"\n\n" + stream(USAGE))
    tokens = meter.tokens(GUESS)
    assert (tokens.prompt, tokens.completion) == (12, 34)


@pytest.mark.parametrize("sse", [True, False])
def test_of_a_line_without_end_little_is_held(sse: bool) -> None:
    meter = Meter(stream=sse)
    assert held(meter, (b"x" * 4_096 for _ in range(2_500))) < MOST_HELD_BYTES


def test_a_huge_answer_is_told_apart_from_what_stands_at_its_ends() -> None:
    huge = "x" * (10 << 20)
    for body in (
        buffered(content=huge, usage=OPENAI),
        buffered(content=huge, usage=OPENAI, tools="x" * (LAST_BYTES - 200)),
        buffered(usage=OPENAI, content=huge),
    ):
        assert metered(body, sse=False) == told(12, 34)
        assert metered(body, *range(0, len(body), 65_536), sse=False) == told(12, 34)


def test_a_huge_event_counts_once_and_tells_what_stands_at_its_end() -> None:
    huge = "x" * (10 << 20)
    done = {"type": "response.completed", "response": {"output": [huge], "usage": {"output_tokens": 34}}}
    body = stream(*[chunk("x")] * 9, chunk(huge), done)
    tokens = metered(body, sse=True)
    assert (tokens.prompt, tokens.completion) == (GUESS, 34)
    assert metered(body, *range(0, len(body), 10_000), sse=True) == tokens
    assert metered(stream(*[chunk("x")] * 9, chunk(huge)), sse=True) == guessed(10)


@pytest.mark.parametrize(
    "part",
    [
        b'"usage"',
        b'"usage":{',
        b'"usage":null,',
        b'"usage":{"output_tokens":1}',
        b'"usage":{{}{}{}',
        b'"timings":          ',
        b'"delta":{',
        b'"delta":{"content":"",',
        b'delta":{"type":"word","',
        b'"choices":[{',
        b'"text":"',
    ],
)
def test_a_byte_takes_no_longer_for_standing_in_a_long_line(part: bytes) -> None:
    def seconds(line_bytes: int) -> float:
        lines = (part * (line_bytes // len(part)) + b"\n") * (40 * KEPT_BYTES // line_bytes)
        start = process_time()
        metered(lines, *range(0, len(lines), LOOK_BYTES), sse=True)
        return process_time() - start

    short, long = (min(seconds(size) for _ in range(3)) for size in (KEPT_BYTES // 20, KEPT_BYTES))
    assert long < 5 * short + 0.01  # if reading were quadratic: 20 times
