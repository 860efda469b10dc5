"""What is read off JSON bodies: bytes in, values out."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmgateway.api.peek import Peek, peek_json
from llmgateway.api.turns import is_marked
from llmgateway.errors import INVALID_REQUEST, GatewayError

SLICE_BYTES = 1 << 16


def refusal(body: bytes | bytearray) -> str:
    """The words of the 400 that this body gets."""
    with pytest.raises(GatewayError) as caught:
        peek_json(body)
    assert caught.value.kind == INVALID_REQUEST
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b"nonsense", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'[{"model": "m"}]', "must be a JSON object"),
        (b'"model"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "has no 'model'"),
        (b'{"Model": "m"}', "has no 'model'"),
        (b'{"options": {"model": "m"}}', "has no 'model'"),
        (b'{"model": 3}', "must be a string"),
        (b'{"model": null}', "must be a string"),
        (b'{"model": {"model": "m"}}', "must be a string"),
        (b'{"model": ""}', "must not be empty"),
        (b'{"model": "%b"}' % (b"m" * 1_001), "too long"),
        (b'{"model": "\xff"}', "not valid UTF-8"),
        (b'{"model": "m", "skipped": "\xff"}', "not valid UTF-8"),
        (b'{"model": "m", "\xff": 1}', "not valid UTF-8"),
        (b'{"model": "m", "skipped": "\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"model": "m", "skipped": "\xc3', "not valid UTF-8"),
        (b'{"model": "m"', "not valid JSON"),
        (b'{"model": "m"} x', "not valid JSON"),
        (b'{"model": "m"}{"model": "n"}', "not valid JSON"),
        (b'{"model": "m",}', "not valid JSON"),
        (b'{"model": "m", "n": nan}', "not valid JSON"),
        (b'{"model": "m", "n": --Infinity}', "not valid JSON"),
        (b'{"model": "m", "n": 01}', "not valid JSON"),
        (b"{'model': 'm'}", "not valid JSON"),
        (b'{\xef\xbb\xbf"model": "m"}', "not valid JSON"),
        (b"[" * 200_000, "must be a JSON object"),
        (b'{"model": "m", "deep": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"model": "m", "deep": ' + b'{"a":' * 200_000, "nested too deeply"),
        (b'{"model": ' + b"[" * 200_000, "nested too deeply"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
def test_a_body_that_cannot_be_routed_is_refused_in_words_that_name_the_trouble(
    body: bytes, words: str
) -> None:
    assert words in refusal(body)
    assert words in refusal(bytearray(body))


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "m"}', "m"),
        (b' \r\n\t{"model":"m"}\n ', "m"),
        (b'{"model": "%b"}' % (b"m" * 1_000), "m" * 1_000),
        (b'{"mod\\u0065l": "\\u006d"}', "m"),
        (b'{"model": "a\\"b\\\\\\/\\n"}', 'a"b\\/\n'),
        (b'{"model": "\\ud83d\\ude00"}', "😀"),
        ('{"model": "Qwen/größe 😀"}'.encode(), "Qwen/größe 😀"),
        (b'{"model": "m", "n": %b, "e": 1e999999, "f": -0.0}' % (b"9" * 10_000), "m"),
        (b'{"a": {"model": "x"}, "model": "m", "b": [{"model": "y"}]}', "m"),
        (b'{"model": "first", "model": "last"}', "last"),
        (b'{"model": 3, "model": "last"}', "last"),
        (b'{"messages": "\\"model\\": \\"x\\"", "model": "m"}', "m"),
    ],
)
def test_the_model_is_read_as_the_provider_will_read_it(body: bytes, model: str) -> None:
    assert peek_json(body) == peek_json(bytearray(body))
    seen = peek_json(body)
    assert (seen.model, seen.streams) == (model, None)


@pytest.mark.parametrize(
    ("value", "streams"),
    [
        ("true", True),
        (" true ", True),
        ("false", False),
        ('"true"', False),
        ("1", False),
        ("null", None),
        ("[true]", False),
    ],
)
def test_only_true_asks_for_a_stream(value: str, streams: bool | None) -> None:
    assert peek_json(f'{{"model": "m", "stream":{value}}}'.encode()).streams is streams


@pytest.mark.parametrize("length", [2, 3, 4])
@pytest.mark.parametrize("cut", range(5))
def test_characters_and_bad_bytes_at_the_edge_of_a_slice_are_told_apart(length: int, cut: int) -> None:
    character = {2: "é", 3: "€", 4: "😀"}[length].encode()
    start = b'{"model": "m", "x": "'
    before = start + b"a" * (SLICE_BYTES - len(start) - cut)
    assert peek_json(before + character + b'"}') == Peek("m", streams=None, system=[], said=[])
    assert "UTF-8" in refusal(before + character[:-1] + b'"}')


def test_bad_utf_8_is_found_in_the_last_slice() -> None:
    start = b'{"model": "m", "x": "\xc3\xa9'
    for size in (SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES):
        assert "UTF-8" in refusal(start + b"a" * (size - len(start) - 1) + b"\xc3")


@pytest.mark.parametrize("filler", [b"[],", b"1,", b'"\xc3\xa9",'])
def test_peeking_at_a_large_body_takes_no_memory(filler: bytes) -> None:
    body = b'{"model": "m", "x": [' + filler * (30_000_000 // len(filler)) + b"0]}"
    tracemalloc.start()
    try:
        assert peek_json(body) == Peek("m", streams=None, system=[], said=[])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON), st.text(min_size=1), st.booleans(), st.booleans())
def test_any_object_with_a_model_is_understood(
    extra: dict[str, Any], model: str, streams: bool, ascii_only: bool
) -> None:
    body = json.dumps({**extra, "model": model, "stream": streams}, ensure_ascii=ascii_only).encode()
    seen = peek_json(body)
    assert (seen.model, seen.streams) == (model, streams)


@given(st.binary() | st.binary().map(lambda middle: b'{"model": "m", "x": ' + middle + b"}"))
def test_any_bytes_are_peeked_at_or_refused(body: bytes) -> None:
    try:
        assert peek_json(body).model
    except GatewayError as error:
        assert error.kind == INVALID_REQUEST


def test_half_an_emoji_is_json_all_the_same() -> None:
    assert peek_json(rb'{"x": "\ud83d", "model": "m", "stream": true}') == Peek(
        "m", streams=True, system=[], said=[]
    )
    assert peek_json(rb'{"model": "m", "x": "cut \uD83D here"}').model == "m"


@pytest.mark.parametrize(
    ("written", "model"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\ud83d\ude00", "\N{GRINNING FACE}"),
        (rb"\ud83d\ude00\ude00", "\N{GRINNING FACE}\ufffd"),
        (rb"\\ud83d", r"\ud83d"),
        (rb"\\\ud83d", "\\\ufffd"),
        (rb"\\ud83d\ude00", "\\ud83d\ufffd"),
        (rb"\\" * 20 + rb"\ud83d", "\\" * 20 + "\ufffd"),
        (rb"\\" * 20 + rb"ud83d", "\\" * 20 + "ud83d"),
    ],
)
def test_only_half_an_emoji_is_read_as_another_character(written: bytes, model: str) -> None:
    assert peek_json(b'\xef\xbb\xbf{"model": "' + written + b'"}').model == model


def test_halves_of_emojis_without_end_are_refused_and_take_no_memory() -> None:
    body = b'{"model": "m", "x": "' + rb"\ud83d" * 2_000_000 + b'"}'
    tracemalloc.start()
    try:
        assert "surrogate" in refusal(body)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


# --- what was said ---------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "be brief"}
HI = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "hello"}


def spoken(**fields: Any) -> list[tuple[bool, Any]]:
    """What a request says: whether a user has spoken by then, and what stands there."""
    seen = peek_json(json.dumps({"model": "m", **fields}).encode())
    system, said = (
        [json.loads(bytes(content)) for content in contents] for contents in (seen.system, seen.said)
    )
    return [*((False, content) for content in system), *((True, content) for content in said)]


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({}, []),
        ({"messages": []}, []),
        ({"messages": [HI]}, [(True, HI)]),
        ({"messages": [SYSTEM, HI, HELLO]}, [(False, SYSTEM), (True, HI), (True, HELLO)]),
        (
            {"messages": [{"role": "developer", "content": "x"}, HI]},
            [(False, {"role": "developer", "content": "x"}), (True, HI)],
        ),
        ({"system": "be brief", "messages": [HI]}, [(False, "be brief"), (True, HI)]),
        ({"messages": [HI], "system": [{"text": "x"}]}, [(False, [{"text": "x"}]), (True, HI)]),
        ({"system": None, "messages": [HI]}, [(True, HI)]),
        ({"instructions": "be brief", "input": "hi"}, [(False, "be brief"), (True, "hi")]),
        (
            {"instructions": "be brief", "input": [HI, HELLO]},
            [(False, "be brief"), (True, HI), (True, HELLO)],
        ),
        ({"input": ["a", "b"]}, [(True, "a"), (True, "b")]),
        ({"prompt": "once"}, []),
    ],
    ids=str,
)
def test_what_was_said_is_given_message_by_message_system_first(
    fields: dict[str, Any], turns: list[tuple[bool, Any]]
) -> None:
    assert spoken(**fields) == turns


def test_a_message_is_given_as_it_stands() -> None:
    said = b'{ "role":"user",\t"content": "gr\\u00f6\xc3\x9fe" }'
    (turn,) = peek_json(b'{"model": "m", "messages": [ %b ]}' % said).said
    assert bytes(turn) == said


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('"once upon"', b"once upon"),
        ('""', b""),
        ('["a", "b"]', b""),
        ("[1, 2]", b""),
        ("null", b""),
        ("3", b""),
    ],
)
def test_a_plain_prompt_is_text(prompt: str, text: bytes) -> None:
    assert bytes(peek_json(f'{{"model": "m", "prompt": {prompt}}}'.encode()).text) == text


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 8}, 8),
        ({"max_completion_tokens": 9}, 9),
        ({"max_output_tokens": 10}, 10),
        ({"max_tokens": 8, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 8, "max_completion_tokens": -1}, 8),
        ({"max_tokens": 0}, 0),
        *(({"max_tokens": odd}, None) for odd in (None, -1, 1.5, 1e3, "8", True, [8], 10**10, 10**400)),
        *(({"max_completion_tokens": odd}, None) for odd in (None, -1, 1.5, "8", True, 10**9, 10**400)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [{}, {"messages": []}, {"messages": [], "input": "x"}], ids=str)
def test_the_limit_of_the_output_is_read(
    kind: dict[str, Any], fields: dict[str, Any], limit: int | None
) -> None:
    assert peek_json(json.dumps({"model": "m", **kind, **fields}).encode()).output_limit == limit


@pytest.mark.parametrize("kind", ["", '"messages": [], '])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_limit_of_absurdly_many_digits_is_none(kind: str, sign: str) -> None:
    body = f'{{"model": "m", {kind}"max_tokens": {sign}{"9" * 5_000_000}}}'.encode()
    assert peek_json(body).output_limit is None


def test_a_message_is_the_same_with_and_without_the_mark_of_a_cache() -> None:
    def content(mark: str) -> bytes:
        said = f'{{"role": "user", "content": [{{"type": "text", "text": "hi"{mark}}}]}}'
        (turn,) = peek_json(f'{{"model": "m", "messages": [{said}]}}'.encode()).said
        return bytes(turn)

    marks = (
        ', "cache_control": {"type": "ephemeral"}',
        ',"cache_control" : { "type":"ephemeral","ttl":"1h" }',
    )
    assert {content(mark) for mark in marks} == {content("")}
    words = json.dumps({"role": "user", "content": 'write "cache_control": {"type": "ephemeral"}'})
    (turn,) = peek_json(f'{{"model": "m", "messages": [{words}]}}'.encode()).said
    assert bytes(turn) == words.encode()


ODD = JSON | st.sampled_from([[SYSTEM], [HI, 3, None], [[HI]], HI, "hi", [{"role": 3}], [{"role": "\ud800"}]])
SPOKEN = (
    "messages system instructions input prompt max_tokens max_completion_tokens max_output_tokens".split()
)


@given(st.dictionaries(st.sampled_from(SPOKEN), ODD), st.booleans())
@example({"messages": [{"role": "\ud800", "content": "half an emoji"}]}, True)
def test_malformed_messages_never_fail_a_request(fields: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps({"model": "m", **fields}, ensure_ascii=ascii_only).encode("utf-8", "replace")
    seen = peek_json(body)
    assert (seen.model, seen.streams) == ("m", None)
    assert isinstance(seen.output_limit, int | None)
    listed = [value for value in (fields.get("messages"), fields.get("input")) if isinstance(value, list)]
    strings = [value for value in (fields.get("messages"), fields.get("input")) if isinstance(value, str)]
    systems = [value for value in (fields.get("system"), fields.get("instructions")) if value is not None]
    assert len(seen.system) + len(seen.said) == sum(map(len, listed)) + len(strings) + len(systems)


@pytest.mark.parametrize("shape", ["%s", "[%s]", '[{"role": "user", "content": %s}]', '[{"role": %s}]'])
@pytest.mark.parametrize("key", ["messages", "input", "system"])
def test_deep_messages_are_read_or_refused(key: str, shape: str) -> None:
    for depth in range(2, 1_200):
        body = f'{{"model": "m", "{key}": {shape % ("[" * depth + "]" * depth)}}}'.encode()
        try:
            seen = peek_json(body)
            assert seen.system or seen.said
        except GatewayError as error:
            assert "nested too deeply" in error.message


def test_a_body_of_absurdly_many_messages_takes_no_memory_and_has_no_turns() -> None:
    for element in (b"1", b"{}", b'""'):
        body = b'{"model": "m", "messages": [' + (element + b",") * 2_000_000 + element + b"]}"
        tracemalloc.start()
        try:
            assert peek_json(body) == Peek("m", streams=None, system=[], said=[])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


def test_a_long_conversation_takes_little_memory() -> None:
    said = json.dumps({"role": "user", "content": "word " * 200})
    body = f'{{"model": "m", "messages": [{", ".join([said] * 20_000)}]}}'.encode()
    tracemalloc.start()
    try:
        assert len(peek_json(body).said) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body)


@pytest.mark.parametrize("filler", [" ", "\\n", ",", ", ", '\\"cache_control\\":{'])
def test_looking_for_marks_of_a_cache_takes_linear_time(filler: str) -> None:
    """Where it were quadratic, this would hang."""
    content = filler * (900_000 // len(filler))
    said = f'{{"role": "user", "content": "{content}", "cache_control": {{"type": "ephemeral"}}}}'
    blank = f'{{"role": "user",{" " * 900_000}"cache_control": 3}}'
    for message in (said, blank):
        peek_json(f'{{"model": "m", "messages": [{message}]}}'.encode())


SPOTS = st.sampled_from(['"cache_control"', '"cache_control', "_", "_" * 20, "cache_", '"cache'])


@given(st.sampled_from([10, 9_000, 20_000]), st.lists(st.tuples(st.integers(0, 19_999), SPOTS), max_size=24))
def test_a_cache_mark_is_found_wherever_it_stands(size: int, spots: list[tuple[int, str]]) -> None:
    body = bytearray(b"a" * size)
    for at, what in spots:
        body[at % size : at % size + len(what)] = what.encode()
    assert is_marked(body) == (b'"cache_control"' in body)
