"""Put another name in the place of the model that a request names; every other byte of it stays.

Bytes in, bytes out, of whatever `peek` and `multipart` have taken: of a key that stands twice the last one
counts, a key may be spelled with escapes, and what is no JSON but is taken for it stays as it is.
"""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, unquote_plus

import msgspec

from llmgateway.api.endpoints import Body
from llmgateway.api.multipart import Span, model_in_form
from llmgateway.api.peek import raw_model

_KEY_AND_QUOTE: Final = re.compile(
    rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"\s*:\s*"'
)
"""The key, however it is spelled, and the beginning of a string. Within strings the quotes are escaped."""
_SMALL_BYTES: Final = 1 << 16
_ESCAPES: Final = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)


class _Named(msgspec.Struct):
    name: str = ""


_NAMED: Final = msgspec.json.Decoder(_Named)


def name_in(body: Body) -> str:
    """Give what stands behind `name` in a small JSON object; empty if nothing does."""
    try:
        return _NAMED.decode(body).name if len(body) <= _SMALL_BYTES else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def with_model(body: Body, model: str) -> bytes:
    """Put a model behind all else in a JSON object that names none; every byte that was there stays.

    Of a key that stands twice the last one counts, as it does where `model` is null or empty.
    """
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b"".join((body[:end], comma, b'"model":', msgspec.json.encode(model), body[end:]))


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

    Of several in it, at whatever depth, the parser tells which one it takes, as each is made a number. Raises
    ValueError if that is no string.
    """
    begun = (found.end() - 1 for found in _KEY_AND_QUOTE.finditer(body))
    spans = [(start, _end_of_string(body, start)) for start in begun]
    taken = raw_model(_numbered(body, spans)) if len(spans) > 1 else b"0"
    if not spans or not taken.isdigit():
        raise ValueError("the object names no model")
    return spans[int(taken)]


def _numbered(body: Body, spans: Sequence[Span]) -> bytes:
    """Put its number in the place of each of some values."""
    pieces: list[bytes | memoryview] = []
    view, at = memoryview(body), 0
    for number, (start, end) in enumerate(spans):
        pieces += view[at:start], b"%d" % number
        at = end
    return b"".join((*pieces, view[at:]))


def _end_of_string(body: Body, start: int) -> int:
    """Give where a string ends, behind its quote. Most of the long ones have no escapes in them."""
    end = body.find(b'"', start + 1)
    if end >= 0 and (escape := body.find(b"\\", start + 1, end)) >= 0:
        found = _ESCAPES.match(body, escape)
        end = -1 if found is None else found.end() - 1
    if end < 0:
        raise ValueError("a string has no end")
    return end + 1
