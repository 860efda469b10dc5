"""Where the id of a kept answer is found, however its bytes come, and where none is."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmgateway.api.ids import MOST_BYTES, IdFinder, is_id
from llmgateway.api.inflate import MOST_INFLATED_BYTES

ID = "resp_68af4030baa48193b0b43b4c2a176a1a0e6967589f080e78"
KEYS = st.sampled_from(["id", "response", "object", "x", 'say "id":', "\\", "größe"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["id", "resp_1", ID, "msg_2", '"id":"resp_3"', "a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)


def looked_for(data: bytes, size: int = 0, coding: bytes = b"") -> str:
    """What is found in some bytes that come in pieces of a size; 0 is all at once."""
    finder = IdFinder(coding)
    size = size or len(data) or 1
    found = [finder.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert len([each for each in found if each]) <= 1
    return "".join(found)


def told_in(answer: object) -> str:
    """What a JSON parser finds."""
    found = answer.get("id") if isinstance(answer, dict) else None
    return found if isinstance(found, str) and is_id(found) else ""


def created(**more: Any) -> bytes:
    """The event that opens a stream, as OpenAI and llama.cpp write it."""
    data = {"type": "response.created", "response": {"id": ID, "object": "response", **more}}
    return b"event: response.created\ndata: " + json.dumps(data).encode() + b"\n\n"


@pytest.mark.parametrize("size", [0, 1, 2, 7, 64])
@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"id": ID, "object": "response"}).encode(),
        json.dumps({"output": [{"id": "msg_1"}], "metadata": {"id": "resp_2"}, "id": ID}, indent=2).encode(),
        b'\xef\xbb\xbf\r\n {"previous_response_id":"resp_0","x":"id","y":"resp_9","id" : "%b"}' % ID.encode(),
        json.dumps({"instructions": '"id":"resp_5"' * 200, "id": ID}).encode(),
        json.dumps({"instructions": '\\"\n' * 700, "id": ID}).encode(),
        json.dumps({"instructions": "x" * 600 + '","id":"resp_evil', "id": ID}).encode(),
        created(),
        b": keepalive\n\n\n" + created(instructions="be brief " * 900),
        b'data: {"sequence_number":0,"response":{"tools":[{"id":"t"}],"id":"%b"}}\r\n\r\n' % ID.encode(),
        b'event: ping\ndata: {"id":"resp_8","x":{"id":"resp_7"}}\n\ndata: {"broken":"\n' + created(),
        b"retry: 10\ndatax: 1\n" * 50 + created(),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_the_id_is_found_however_it_comes(data: bytes, size: int) -> None:
    assert looked_for(data, size) == ID
    assert looked_for(gzip.compress(data), size, b"gzip") == ID
    assert looked_for(zlib.compress(data), size, b"deflate") == ID


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"{}",
        b'{"error":{"id":"resp_1","message":"no"}}',
        b'{"id":7,"output":[{"id":"resp_1"}]}',
        b'{"id":"../files"}{"id":"resp_1"}',
        b'{"id":"%b"}' % (b"x" * 513),
        b'{"x":"\\"id\\":\\"resp_1\\"","metadata":{"id":"resp_1"}}',
        b'[{"id":"resp_1"}]',
        b'"id":"resp_1"',
        b'data: {"id":"resp_1","response":[{"id":"resp_1"}]}\n\ndata: [DONE]\n\n',
        b'id: {"response":{"id":"resp_1"}}\n\n',
        b'data: {"other":{"response":{"id":"resp_1"}}}\n\n',
        json.dumps({"instructions": "x" * MOST_BYTES, "id": ID}).encode(),
        b'{"a":' + b"[" * 70_000 + b'"id":"resp_1"',
        b"\xff\xfe\x00",
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_what_is_no_id_or_stands_elsewhere_is_not_found(data: bytes, size: int) -> None:
    assert looked_for(data, size) == ""


@hypothesis_settings(max_examples=300)
@given(OBJECTS, st.integers(0, 9), st.booleans(), st.sampled_from([None, 1]))
def test_a_whole_answer_has_the_id_that_a_json_parser_finds(
    answer: dict[str, Any], size: int, ascii_only: bool, indent: int | None
) -> None:
    data = json.dumps(answer, ensure_ascii=ascii_only, indent=indent).encode()
    assert looked_for(data, size) == told_in(answer)


@hypothesis_settings(max_examples=300)
@given(st.lists(OBJECTS, max_size=4), st.integers(0, 9), st.sampled_from([b"\n", b"\r\n"]))
def test_a_stream_has_the_id_of_the_first_response_that_has_one(
    events: list[dict[str, Any]], size: int, ending: bytes
) -> None:
    stream = b"".join(b"data: " + json.dumps(event).encode() + ending * 2 for event in events)
    ids = [
        event["response"]["id"]
        for event in events
        if isinstance(event.get("response"), dict) and isinstance(event["response"].get("id"), str)
    ]
    assert looked_for(stream, size) == (ids[0] if ids and is_id(ids[0]) else "")


@hypothesis_settings(max_examples=300)
@given(
    st.binary(max_size=300) | st.text('{}[]",:\\\n data: "id"', max_size=300).map(str.encode),
    st.integers(1, 9),
)
def test_whatever_the_bytes_the_same_is_found_in_any_pieces(data: bytes, size: int) -> None:
    assert looked_for(data, size) == looked_for(data)
    for coding in (b"gzip", b"deflate", b"br"):
        looked_for(data, size, coding)


def test_what_was_looked_at_is_not_kept() -> None:
    finder = IdFinder()
    for _ in range(100):
        finder.feed(b'{"a":"' if not finder._left < MOST_BYTES else b"x" * 600)
        assert len(finder._text) < 2 * 600


def test_no_more_is_decompressed_than_is_looked_at() -> None:
    finder = IdFinder(b"gzip")
    assert not finder.feed(gzip.compress(b" " * (8 << 20))) and finder.over
    assert finder._inflater is not None
    assert finder._inflater._left > MOST_INFLATED_BYTES - 2 * MOST_BYTES


@pytest.mark.parametrize("text", ["resp_1", "resp-1", "a" * 512, "resp_bGl0ZWxsbTpj==", "chatcmpl:7", "a.b"])
def test_ids_may_have_what_is_safe_in_a_path(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a..b", "a/b", "a b", "a?b", "a%2Fb", "ä", "-x", "a\n", "a" * 513]
)
def test_nothing_else_is_an_id(text: str) -> None:
    assert not is_id(text)
