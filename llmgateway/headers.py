"""Which header fields pass through the gateway, and which end here.

Hop-by-hop fields (RFC 9110 7.6.1, and whatever `Connection` names) end here both ways; so do credentials
towards the provider and what the gateway says itself. Everything else passes as it came, in its order and
spelling.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

Field = tuple[bytes, bytes]

_OPTIONS: Final = frozenset((b"close", b"keep-alive"))
_DIGITS: Final = 20  # as many as llhttp takes for a length: what it counts by must not be unknown here

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Not for a provider: the client's credentials, and what is written anew for the provider's connection.
# `Expect` is answered by the gateway itself, and `Origin` judged (`server.cors`): others that judge it too,
# such as Ollama, refuse web pages.
NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"host",
    b"content-length",
    b"expect",
    b"origin",
    b"x-request-id",
}
# Not for a client: what the gateway says itself.
NOT_RETURNED: Final = HOP_BY_HOP | {
    b"content-length",
    b"x-request-id",
    b"x-gateway-provider",
    b"x-gateway-affinity",
    b"x-gateway-queue-wait",
    b"x-gateway-error",
}


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """What the header fields of a request say, read in one pass."""

    named: dict[bytes, bytes]
    """The values by lower-case name; of a field that comes more than once, in one list (RFC 9110 5.2)."""
    lines: bytes
    """What passes on to a provider, each line ended by CRLF."""
    size: int
    """How many bytes the fields take as they came."""


def request_head(fields: Sequence[Field], *, replaced: frozenset[bytes] = frozenset()) -> RequestHead:
    """Read a request's header fields.

    `replaced` are lower-case names of fields that the provider's own configuration sets.
    """
    named, lines, size = _sort(fields, NOT_FORWARDED | replaced if replaced else NOT_FORWARDED)
    return RequestHead(named, b"".join(lines), size)


def _sort(fields: Iterable[Field], dropped: frozenset[bytes]) -> tuple[dict[bytes, bytes], list[bytes], int]:
    """Give the values by name, the lines of what is neither dropped nor named by `Connection`, the size."""
    named: dict[bytes, bytes] = {}
    lines = []
    size = 0
    for name, value in fields:
        lower = name.lower()
        size += len(name) + len(value) + 4
        named[lower] = value if lower not in named else named[lower] + b", " + value
        if lower not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
    if b"connection" in named and (more := _named_by(named[b"connection"])):
        dropped |= more
        lines = [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in dropped]
    return named, lines, size


def _named_by(connection: bytes) -> frozenset[bytes]:
    """Give the fields that `Connection` names, beside those that end here anyway."""
    if connection in _OPTIONS:
        return frozenset()
    return frozenset(token.strip() for token in connection.lower().split(b",")) - HOP_BY_HOP - _OPTIONS


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """What a client is to get of a provider's response head, and what the relay needs to know of it."""

    lines: bytes
    content_length: int | None
    is_events: bool = False
    """An event stream, compressed or not."""
    is_sse: bool = False
    """An event stream that may be added to: not compressed."""
    dated: bool = False
    coding: bytes = b""
    """Its Content-Encoding, in lower case."""
    transfer_coding: bytes = b""
    """Its Transfer-Encoding, in lower case."""
    keep_alive: bytes = b""
    """Its Keep-Alive, as it came."""


NO_HEAD: Final = AnswerHead(b"", None)


def answer_head(fields: Sequence[Field]) -> AnswerHead:
    """Sort the header fields of a provider's answer; proxies are told not to hold event streams back."""
    named, lines, _ = _sort(fields, NOT_RETURNED)
    find = named.get
    coding = find(b"content-encoding", b"").strip().lower()
    events = find(b"content-type", b"").lstrip().lower().startswith(b"text/event-stream")
    if events and b"x-accel-buffering" not in named:
        lines.append(b"X-Accel-Buffering: no\r\n")
    if events and b"cache-control" not in named:
        lines.append(b"Cache-Control: no-cache\r\n")
    return AnswerHead(
        b"".join(lines),
        _number(named[b"content-length"]) if b"content-length" in named else None,
        events,
        events and coding in (b"", b"identity"),
        b"date" in named,
        coding,
        find(b"transfer-encoding", b"").lower(),
        find(b"keep-alive", b""),
    )


def _number(text: bytes) -> int | None:
    digits = text.strip()
    if not digits.isdigit():
        return None
    if len(digits) > _DIGITS and len(digits := digits.lstrip(b"0") or b"0") > _DIGITS:
        return None
    return int(digits)


def keep_alive_limits(field: bytes) -> tuple[float | None, int | None]:
    """Read `Keep-Alive: timeout=5, max=100`: seconds that a connection may idle, requests that it takes."""
    timeout_s: float | None = None
    most: int | None = None
    for part in field.lower().split(b",") if field else ():
        name, _, number = part.strip().partition(b"=")
        limit = _number(number)
        if limit is None:
            continue
        if name.strip() == b"timeout":
            timeout_s = float(limit)
        elif name.strip() == b"max":
            most = limit
    return timeout_s, most
