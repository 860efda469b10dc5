"""Another name for the model: nothing but the bytes of the last one differ, whatever the body is like."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmgateway.api.multipart import model_in_form, peek_multipart
from llmgateway.api.peek import peek_json
from llmgateway.api.rename import form_with, json_with, model_in_json, query_with
from llmgateway.errors import GatewayError
from llmgateway.fleet.address import Outgoing

NEW = 'Qwen/Qwen3-8B:"Q4"\\é模'
FORM = b"multipart/form-data; boundary=b"

# --- JSON -----------------------------------------------------------------------------------------


def put(body: bytes | bytearray, model: str = NEW) -> bytes:
    """The body with another model, checked against two readers of JSON: all else is as it was."""
    start, end = model_in_json(body)
    found = json_with(body, model)
    assert found[:start] == body[:start]
    assert found[len(found) - (len(body) - end) :] == body[end:]
    assert json.loads(found[start : len(found) - (len(body) - end)]) == model
    seen, before = peek_json(found), peek_json(body)
    assert seen.model == model
    assert (seen.streams, list(map(bytes, seen.said))) == (before.streams, list(map(bytes, before.said)))
    return found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model":"a"}', b'{"model":"N"}'),
        (b' { "model" \n:\t"a" , "x" : 1 } ', b' { "model" \n:\t"N" , "x" : 1 } '),
        (b'{"model":"a","model":"b"}', b'{"model":"a","model":"N"}'),
        (b'{"model":null,"x":"y","model":"b"}', b'{"model":null,"x":"y","model":"N"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"N"}'),
        (b'{"model":"a","\\u006dodel":"b"}', b'{"model":"a","\\u006dodel":"N"}'),
        (b'{"\\u006Dodel":"b","model":"a"}', b'{"\\u006Dodel":"b","model":"N"}'),
        (b'{"model":"a\\"b\\\\","x":1}', b'{"model":"N","x":1}'),
        (b'{"model":"a","x":{"model":"b"}}', b'{"model":"N","x":{"model":"b"}}'),
        (b'{"x":{"model":"b"},"model":"a"}', b'{"x":{"model":"b"},"model":"N"}'),
        (b'{"x":"model","model":"model","y":"model"}', b'{"x":"model","model":"N","y":"model"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"N"}'),
        (b'{"x":["{\\"model\\":1}","model"],"model":"a"}', b'{"x":["{\\"model\\":1}","model"],"model":"N"}'),
        (b'{"model":"a","x":"\\\\"}', b'{"model":"N","x":"\\\\"}'),
        (b'{"x":"\\\\\\"","model":"model","y":[]}', b'{"x":"\\\\\\"","model":"N","y":[]}'),
        (b'{"a\\"model":"b","model":"a"}', b'{"a\\"model":"b","model":"N"}'),
        (b'{"model":"a","x":[{"model":"b"}],"y":NaN}', b'{"model":"N","x":[{"model":"b"}],"y":NaN}'),
        (b'\xef\xbb\xbf{"model":"a"}', b'\xef\xbb\xbf{"model":"N"}'),
        (b'{"t":NaN,"model":"a","u":-Infinity}', b'{"t":NaN,"model":"N","u":-Infinity}'),
        (b'{"x":"\\ud83d","model":"a"}', b'{"x":"\\ud83d","model":"N"}'),
        (b'{"model":"\\u0061","Model":"b","model ":"c"}', b'{"model":"N","Model":"b","model ":"c"}'),
        ('{"model":"é模","x":"é"}'.encode(), '{"model":"N","x":"é"}'.encode()),
    ],
)
def test_only_the_last_name_at_the_top_is_another(body: bytes, found: bytes) -> None:
    assert put(body, "N") == found
    assert put(bytearray(body), "N") == found
    put(body)


LETTERS = st.sampled_from([*'model"\\{}[]:,', "é", "🦙", "\x00", "\n"])
TEXT = st.text(LETTERS, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.just("model"), inner, max_size=3),
    max_leaves=8,
)
BLANKS = st.sampled_from(["", " ", "\n\t", "\r\n"])


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """A string as JSON may have it: any letter may be escaped."""
    plain = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()) or not text.isascii():
        return plain
    escaped = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    parts = (f"\\u{ord(c):04x}" if e else json.dumps(c)[1:-1] for c, e in zip(text, escaped, strict=True))
    return f'"{"".join(parts)}"'


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object that ends up with a model, with any pairs around it, in any order, in any spelling."""
    names = TEXT | st.sampled_from(["model", "messages", "stream", "Model"])
    pairs = draw(st.lists(st.tuples(names, VALUES), max_size=5))
    at = draw(st.integers(0, len(pairs)))
    pairs.insert(at, ("model", draw(TEXT.filter(bool))))
    assume(all(name != "model" for name, _ in pairs[at + 1 :]))
    assume(all(name != "messages" or isinstance(value, list) for name, value in pairs))
    texts = []
    for name, value in pairs:
        blank = draw(BLANKS)
        said = draw(spelled(value)) if isinstance(value, str) else json.dumps(value)
        texts.append(f"{blank}{draw(spelled(name))}{blank}:{draw(BLANKS)}{said}{blank}")
    mark = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    return mark + f"{draw(BLANKS)}{{{','.join(texts)}}}{draw(BLANKS)}".encode()


@given(bodies(), TEXT.filter(bool))
def test_any_body_is_the_same_to_a_parser_but_for_the_last_name(body: bytes, model: str) -> None:
    try:
        peek_json(body)
    except GatewayError:
        assume(False)

    def pairs(found: bytes) -> list[tuple[str, str]]:
        told: list[tuple[str, Any]] = json.loads(found.decode("utf-8-sig"), object_pairs_hook=list)
        return [(name, repr(value)) for name, value in told]

    before, after = pairs(body), pairs(put(body, model))
    last = max(index for index, (name, _) in enumerate(before) if name == "model")
    assert after == [*before[:last], ("model", repr(model)), *before[last + 1 :]]


def test_a_body_that_names_none_is_no_body_to_rename() -> None:
    for body in (
        b'{"model":1}',
        b'{"x":{"model":"a","model":"b"}}',
        b"{}",
        b'{"model":"a',
    ):
        with pytest.raises(ValueError):
            model_in_json(body)


# --- Forms ----------------------------------------------------------------------------------------


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return b"--b\r\n" + head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [part("model", b"a")],
        [
            part("file", b"\x00\xff--b\r\n--bb\r\n--", '; filename="model"'),
            part("model", b"a"),
            part("x", b""),
        ],
        [part("model", b"a"), part("model", b"b"), part("file", b"model" * 100)],
        [part("stream", b"true"), part("model", b"a").replace(b"--b", b"--b \t")],
        [part("model", b"a").replace(b"Content-Disposition: ", b"X: y\r\ncontent-disposition:   ")],
        [part("x", b"\r\n\r\nContent-Disposition: form-data; name=model\r\n\r\nz"), part("model", b"\r\na")],
    ],
    ids=range(6),
)
def test_of_a_form_only_the_last_part_model_is_another(parts: list[bytes]) -> None:
    body = form(*parts)
    before = peek_multipart(body, FORM)
    start, end = model_in_form(body, FORM)
    assert body[start:end] == before.model.encode()
    for given_as in (body, bytearray(body)):
        found = form_with(given_as, FORM, NEW)
        assert found == body[:start] + NEW.encode() + body[end:]
        assert peek_multipart(found, FORM).model == NEW


FILES = st.lists(st.sampled_from([b"--b", b"\r\n", b"--", b"x", b"model", b"\r", b"\n", b"b", b"\x00"])).map(
    b"".join
)


@given(
    st.lists(st.tuples(st.sampled_from(["model", "file", "stream"]), FILES), max_size=4),
    st.binary(max_size=3),
)
def test_any_form_that_is_taken_has_its_model_where_it_is_found(
    parts: list[tuple[str, bytes]], more: bytes
) -> None:
    body = form(*(part(name, value) for name, value in parts)) + more
    try:
        model = peek_multipart(body, FORM).model
    except GatewayError:
        assume(False)
    start, end = model_in_form(body, FORM)
    assert body[start:end] == model.encode()
    found = form_with(body, FORM, "new")
    assert (found, peek_multipart(found, FORM).model) == (body[:start] + b"new" + body[end:], "new")


def test_the_beginning_of_a_form_is_enough_once_the_part_is_there() -> None:
    body = form(part("model", b"a"), part("file", b"x" * 1000, '; filename="f.wav"'))
    whole = body.index(b"--b", 5) + len(b"--b\r\n")
    for length in (whole, whole + 20, len(body) - 500):
        found = form_with(body[:length], FORM, "new")
        assert found == body[:length].replace(b"\r\n\r\na\r\n", b"\r\n\r\nnew\r\n")
    with pytest.raises(ValueError):
        form_with(body[: whole - 5], FORM, "new")


# --- Queries, and requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("model=a", "model=a%2Fb%20%26"),
        ("x=1&model=a&y=", "x=1&model=a%2Fb%20%26&y="),
        ("mod%65l=a&model=a", "mod%65l=a%2Fb%20%26&model=a%2Fb%20%26"),
        ("model=&model=a&Model=b", "model=&model=a%2Fb%20%26&Model=b"),
        ("x=model=a", "x=model=a"),
    ],
)
def test_of_a_query_only_the_model_is_another(query: str, found: str) -> None:
    assert query_with(query, "a/b &") == found
    if found != query:
        assert dict(parse_qsl(found))["model"] == "a/b &"


def test_a_request_is_renamed_where_its_endpoint_names_the_model() -> None:
    fields = ((b"Content-Type", FORM),)
    asked = Outgoing("/v1/x", "model=a", fields, b"", "id", b'{"model":"a"}')
    assert asked.asking_for("b").body == b'{"model":"b"}'
    assert (asked.asking_for("b").query, asked.body) == ("model=a", b'{"model":"a"}')
    asked.names_model_in = "query"
    assert (asked.asking_for("b").query, asked.asking_for("b").body) == ("model=b", asked.body)
    asked.names_model_in = "none"
    assert asked.asking_for("b") == asked
    asked.names_model_in, asked.body = "multipart", form(part("model", b"a"))
    assert asked.asking_for("b").body == form(part("model", b"b"))
