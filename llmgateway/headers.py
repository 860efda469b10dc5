"""Which header fields pass through the gateway, and which end here.

Hop-by-hop fields (RFC 9110 7.6.1, and whatever `Connection` names) end here both ways; so do credentials
towards the provider and what the gateway says itself. Everything else passes as it came, in its order and
spelling.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

Field = tuple[bytes, bytes]

_CONNECTION_LENGTH: Final = len(b"connection")
_OPTIONS: Final = frozenset((b"close", b"keep-alive"))
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


def request_lines(
    fields: Iterable[Field], *, request_id: str, replaced: frozenset[bytes] = frozenset()
) -> bytes:
    """Give the header lines of a request as they go to a provider, each ended by CRLF.

    `replaced` are lower-case names of fields that the provider's own configuration sets.
    """
    fields = list(fields)
    dropped = NOT_FORWARDED | replaced if replaced else NOT_FORWARDED
    if named := _named_by_connection(fields):
        dropped |= named
    lines = [b"%b: %b\r\n" % (name, value) for name, value in fields if name.lower() not in dropped]
    lines.append(b"X-Request-Id: %b\r\n" % request_id.encode())
    return b"".join(lines)


def _named_by_connection(fields: Iterable[Field]) -> frozenset[bytes]:
    """Give the fields that `Connection` names, beside those that end here anyway."""
    named: frozenset[bytes] = frozenset()
    for name, value in fields:
        if len(name) == _CONNECTION_LENGTH and name.lower() == b"connection":
            named |= {token.strip() for token in value.lower().split(b",")}
    return named - HOP_BY_HOP - _OPTIONS if named else named


class AnswerHead(NamedTuple):
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


def answer_head(fields: Sequence[Field]) -> AnswerHead:
    """Sort the header fields of a provider's answer; proxies are told not to hold event streams back."""
    dropped = NOT_RETURNED
    if named := _named_by_connection(fields):
        dropped |= named
    lines: list[bytes] = []
    length: int | None = None
    coding = b""
    events = dated = unbuffered = uncached = False
    for name, value in fields:
        lower = name.lower()
        if lower not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
        match lower:
            case b"content-length":
                length = _number(value)
            case b"content-type":
                events = value.lower().lstrip().startswith(b"text/event-stream")
            case b"content-encoding":
                coding = coding or value.strip().lower()
            case b"date":
                dated = True
            case b"x-accel-buffering":
                unbuffered = True
            case b"cache-control":
                uncached = True
    if events and not unbuffered:
        lines.append(b"X-Accel-Buffering: no\r\n")
    if events and not uncached:
        lines.append(b"Cache-Control: no-cache\r\n")
    is_sse = events and coding in (b"", b"identity")
    return AnswerHead(b"".join(lines), length, events, is_sse, dated, coding)


def _number(text: bytes) -> int | None:
    digits = text.strip()
    if not digits.isdigit() or len(digits.lstrip(b"0")) > _DIGITS:
        return None
    return int(digits.lstrip(b"0") or b"0")


def value_of(fields: Iterable[Field], name: bytes) -> bytes | None:
    """Give the first value of a field, by its lower-case name."""
    return next((value for found, value in fields if found.lower() == name), None)


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
