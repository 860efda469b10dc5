"""Fuzzed: the models in the bodies that are given another name, and the ids of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from llmgateway.api.ids import MOST_BYTES, IdFinder, is_id
from llmgateway.api.multipart import peek_multipart
from llmgateway.api.peek import peek_json
from llmgateway.api.rename import form_with, json_with, query_with
from llmgateway.errors import GatewayError
from tests.fuzz.bodies import FORM, MULTIPART, PEEK, as_others_read_it
from tests.fuzz.target import Choices, Target, behind, pieces, words

_OTHER: Final = 'other "\\ é'

# --- models ----------------------------------------------------------------------------------------


def rename(data: bytes) -> None:
    """Only the model changes, whatever else is in the body, and how the model stands there."""
    choices = Choices(data)
    kind = choices.number(3)
    if kind == 0:
        _check_json(choices.rest)
    elif kind == 1:
        _check_form(choices.rest)
    else:
        _check_query(choices.rest.decode("latin-1"))


def _check_json(body: bytes) -> None:
    try:
        peek_json(body)
    except GatewayError:
        return
    renamed = json_with(body, _OTHER)
    _check_only_one_place(body, renamed, json.dumps(_OTHER, ensure_ascii=False).encode())
    assert as_others_read_it(renamed) == as_others_read_it(body) | {"model": _OTHER}
    assert peek_json(renamed).model == _OTHER


def _check_form(body: bytes) -> None:
    try:
        told = peek_multipart(body, FORM)
    except GatewayError:
        return
    renamed = form_with(body, FORM, "other")
    _check_only_one_place(body, renamed, b"other")
    again = peek_multipart(renamed, FORM)
    assert (again.model, again.streams) == ("other", told.streams)


def _check_query(query: str) -> None:
    before = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
    after = parse_qsl(query_with(query, "other"), keep_blank_values=True, encoding="latin-1")
    assert after == [(k, "other" if k == "model" and v else v) for k, v in before]


def _check_only_one_place(body: bytes, renamed: bytes, value: bytes) -> None:
    """The new value stands somewhere, with the old bytes before and behind it."""
    at = renamed.find(value)
    while at >= 0:
        rest = renamed[at + len(value) :]
        if body.startswith(renamed[:at]) and body.endswith(rest) and at + len(rest) <= len(body):
            return
        at = renamed.find(value, at + 1)
    raise AssertionError("more than the model has changed")


def _rename_seeds() -> Iterator[bytes]:
    yield from behind(0)(PEEK.seeds())
    yield b'\0{"x":{"model":"y"},"\\u006dodel":"a","mod\\u0065l":"b"}'
    yield b'\0{"model":"a","s":"\\"model\\":\\"x\\"","model":"b"}'
    yield from (b"\1" + seed.partition(b"\n")[2] for seed in MULTIPART.seeds() if seed.startswith(b"\0"))
    yield from (b"\2model=a&x=b", b"\2%6dodel=a;b&model=&+model=c&model")


RENAME: Final = Target(
    "rename", rename, _rename_seeds, (*PEEK.words, *MULTIPART.words, rb'"\u006dodel"', b"model=", b"%6d")
)

# --- ids -------------------------------------------------------------------------------------------


def ids(data: bytes) -> None:
    """An id is found whole or not, however the answer is cut; where JSON has it plainly, it is found."""
    choices = Choices(data)
    cutting, body = choices.number(), choices.rest
    found = _found(pieces(body, 0))
    assert not found or (is_id(found) and found.encode() in body)
    for way in (1, cutting):
        assert _found(pieces(body, way)) == found, "it depends on the cuts"
    if body.count(b'"id"') == 1 and b"\\" not in body and len(body) < MOST_BYTES:
        told = _plain_object(body)
        if isinstance(told, dict) and isinstance(given := told.get("id"), str):
            assert found == (given if is_id(given) else "")


def _found(some: list[bytes]) -> str:
    finder = IdFinder()
    return "".join(finder.feed(piece) for piece in some)


def _plain_object(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        return None


def _id_seeds() -> Iterator[bytes]:
    yield b'\3{"object":"response","a":{"id":"no"},"id":"resp_1","b":["id"]}'
    yield (
        b'\5event: response.created\ndata: {"type":"response.created","response":{"x":["\\"id\\":"],'
        b'"id":"resp_2"}}\n\ndata: {"response":{"id":"other"}}\n\n'
    )
    yield b'\7: hello\n\ndata: {"id":"no"}\n\ndata: {"response":{"id":"a.b"}}\n\n'


IDS: Final = Target(
    "ids",
    ids,
    _id_seeds,
    words(b'data: event: "id" "id":"a" "response" "response":{ {} [] \\" \\\\', b"\n\n"),
)
