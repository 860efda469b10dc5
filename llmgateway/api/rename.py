"""Put another name in the place of the model that a request names; every other byte of it stays.

Bytes in, bytes out, of whatever `peek` and `multipart` have taken: of a key that stands twice the last one
counts, a key may be spelled with escapes, and what is no JSON but is taken for it stays as it is.
"""

import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, unquote_plus

import msgspec

from llmgateway.api.endpoints import Body
from llmgateway.api.multipart import Span, model_in_form

_KEY: Final = b'"model"'
_ESCAPED: Final = rb"\u006"  # the beginning of each letter of the key, escaped
_VALUE: Final = re.compile(rb"\s*:\s*")
_TOKEN: Final = re.compile(rb'["{}\[\],]')
_ESCAPES: Final = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LONGEST_KEY: Final = len(_KEY) + len("model") * len(r"\u006d")


def json_with(body: Body, model: str, at: Span | None = None) -> bytes:
    """Put a model in the place of the last one that a JSON object names; `at` is where, if that is known."""
    return _with(body, at or model_in_json(body), msgspec.json.encode(model))


def form_with(body: Body, content_type: bytes, model: str, at: Span | None = None) -> bytes:
    """Put a model in the place of the last one that a form names, or its beginning as far as it is given."""
    return _with(body, at or model_in_form(body, content_type), model.encode())


def query_with(query: str, model: str) -> str:
    """Put a model in the place of the one that a query names."""
    return "&".join(
        f"{pair.partition('=')[0]}={quote(model, safe='')}" if _names_model(pair) else pair
        for pair in query.split("&")
    )


def _names_model(pair: str) -> bool:
    name, _, value = pair.partition("=")
    return bool(value) and unquote_plus(name) == "model"


def _with(body: Body, at: Span, value: bytes) -> bytes:
    view, (start, end) = memoryview(body), at
    return b"".join((view[:start], value, view[end:]))


def model_in_json(body: Body) -> Span:
    """Find the value of the last `model` of an object, with its quotes.

    Raises ValueError if that is no string.
    """
    only = body.find(_KEY)  # within a string its quotes would be escaped
    if only >= 0 and body.find(_KEY, only + 1) < 0 and body.find(_ESCAPED) < 0:
        value = _VALUE.match(body, only + len(_KEY))
        if value is not None and body.startswith(b'"', value.end()):
            return value.end(), _end_of_string(body, value.end())
    found = None
    for key, span in _strings(body):
        if _is_model(bytes(body[key[0] : key[1]])):
            found = span
    if found is None:
        raise ValueError("the object names no model")
    return found


def _is_model(key: bytes) -> bool:
    if key == _KEY or b"\\" not in key or len(key) > _LONGEST_KEY:
        return key == _KEY
    return bool(json.loads(key) == "model")


def _strings(body: Body) -> Iterator[tuple[Span, Span | None]]:
    """Give the keys of the outermost object in their order, each with its value if that is a string.

    What stands deeper is passed over, and not checked.
    """
    depth, at = 0, 0
    key: Span | None = None
    awaits_key = False
    while (token := _TOKEN.search(body, at)) is not None:
        at, sign = token.end(), token[0]
        if sign == b'"':
            end = _end_of_string(body, token.start())
            if awaits_key:
                key, awaits_key = (token.start(), end), False
            elif depth == 1 and key is not None:
                yield key, (token.start(), end)
                key = None
            at = end
            continue
        if depth == 1 and key is not None:
            yield key, None
            key = None
        if sign == b",":
            awaits_key = depth == 1
            continue
        depth += 1 if sign in b"{[" else -1
        awaits_key = sign == b"{" and depth == 1


def _end_of_string(body: Body, start: int) -> int:
    """Give where a string ends, behind its quote. Most of the long ones have no escapes in them."""
    end = body.find(b'"', start + 1)
    if end >= 0 and (escape := body.find(b"\\", start + 1, end)) >= 0:
        found = _ESCAPES.match(body, escape)
        end = -1 if found is None else found.end() - 1
    if end < 0:
        raise ValueError("a string has no end")
    return end + 1
