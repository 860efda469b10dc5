"""Which header fields pass through the gateway, and which end here.

Hop-by-hop fields (RFC 9110 7.6.1, and whatever `Connection` names) end here both ways; so do credentials
towards the provider and what the gateway says itself. Everything else passes as it came, in its order and
spelling.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

Field = tuple[bytes, bytes]

_DIGITS: Final = 18  # more than any number that a header field means

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
# `Expect` is answered by the gateway itself.
NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"host",
    b"content-length",
    b"expect",
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


def request_lines(
    fields: Iterable[Field], *, request_id: str, replaced: frozenset[bytes] = frozenset()
) -> bytes:
    """Give the header lines of a request as they go to a provider, each ended by CRLF.

    `replaced` are lower-case names of fields that the provider's own configuration sets.
    """
    fields = list(fields)
    dropped = NOT_FORWARDED | replaced | _named_by_connection(fields)
    lines = [b"%b: %b\r\n" % (name, value) for name, value in fields if name.lower() not in dropped]
    lines.append(b"X-Request-Id: %b\r\n" % request_id.encode())
    return b"".join(lines)


def _named_by_connection(fields: Iterable[Field]) -> frozenset[bytes]:
    named: frozenset[bytes] = frozenset()
    for name, value in fields:
        if name.lower() == b"connection":
            named |= {token.strip() for token in value.lower().split(b",")}
    return named


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What a client is to get of a provider's response head, and what the relay needs to know of it."""

    lines: bytes
    content_length: int | None
    is_events: bool = False
    """An event stream, compressed or not."""
    is_sse: bool = False
    """An event stream that may be added to: not compressed."""
    dated: bool = False


def answer_head(fields: Sequence[Field]) -> AnswerHead:
    """Sort the header fields of a provider's answer; proxies are told not to hold event streams back."""
    dropped = NOT_RETURNED | _named_by_connection(fields)
    lines: list[bytes] = []
    seen: set[bytes] = set()
    length: int | None = None
    events = False
    for name, value in fields:
        lower = name.lower()
        seen.add(lower)
        if lower == b"content-length":
            length = _number(value)
        elif lower == b"content-type":
            events = value.lower().lstrip().startswith(b"text/event-stream")
        if lower not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
    if events:
        if b"x-accel-buffering" not in seen:
            lines.append(b"X-Accel-Buffering: no\r\n")
        if b"cache-control" not in seen:
            lines.append(b"Cache-Control: no-cache\r\n")
    is_sse = events and value_of(fields, b"content-encoding") in (None, b"", b"identity")
    return AnswerHead(b"".join(lines), length, events, is_sse, dated=b"date" in seen)


def _number(text: bytes) -> int | None:
    digits = text.strip()
    if not digits.isdigit() or len(digits.lstrip(b"0")) > _DIGITS:
        return None
    return int(digits.lstrip(b"0") or b"0")


def value_of(fields: Iterable[Field], name: bytes) -> bytes | None:
    """Give the first value of a field, by its lower-case name."""
    return next((value for found, value in fields if found.lower() == name), None)


def keep_alive_limits(fields: Iterable[Field]) -> tuple[float | None, int | None]:
    """Read `Keep-Alive: timeout=5, max=100`: seconds that a connection may idle, requests that it takes."""
    timeout_s: float | None = None
    most: int | None = None
    for part in (value_of(fields, b"keep-alive") or b"").lower().split(b","):
        name, _, number = part.strip().partition(b"=")
        limit = _number(number)
        if limit is None:
            continue
        if name.strip() == b"timeout":
            timeout_s = float(limit)
        elif name.strip() == b"max":
            most = limit
    return timeout_s, most
