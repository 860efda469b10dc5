"""Which header fields pass through the gateway, and which end here.

Hop-by-hop fields (RFC 9110 7.6.1, and whatever `Connection` names) end here both ways; so do credentials
towards the provider and what the gateway says itself. Everything else passes as it came, in its order and
spelling.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from llmgateway.api.dialect import Framing
from llmgateway.api.endpoints import FRAMINGS

Field = tuple[bytes, bytes]

_OPTIONS: Final = frozenset((b"close", b"keep-alive"))
_CODINGS: Final = b"accept-encoding"
_LEGIBLE: Final = re.compile(rb"(?i)(?:(?:^|,)[ \t]*(?:(?:x-)?gzip|deflate|identity)[ \t]*(?:;[^,]*)?)*")
_LENGTH: Final = b"content-length"
_REMEMBERED_BYTES: Final = 8 * 1024  # of a head: a connection may be idle for long
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
    b"api-key",  # as Azure calls it; where a client sends both, it is the same key
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
    b"x-gateway-instance",
}


class RequestHead(msgspec.Struct, eq=False):
    """What the header fields of a request say, read in one pass.

    A HeadReader gives the very same one again, so that it can hold what somebody has found out about it.
    """

    named: dict[bytes, bytes]
    """The values by lower-case name; of a field that comes more than once, in one list (RFC 9110 5.2)."""
    lines: bytes
    """What passes on to a provider, each line ended by CRLF."""
    plain_lines: bytes
    """The same for an answer that must not be compressed."""
    size: int
    """How many bytes the fields take as they came."""
    sender: tuple[object, Any] = (None, None)
    """Who sends it, behind what it was found out by."""


def request_head(fields: Sequence[Field], *, replaced: frozenset[bytes] = frozenset()) -> RequestHead:
    """Read a request's header fields.

    `replaced` are lower-case names of fields that the provider's own configuration sets.
    """
    named, lines, size = _sort(fields, NOT_FORWARDED | replaced if replaced else NOT_FORWARDED)
    if _CODINGS in named and not _LEGIBLE.fullmatch(named[_CODINGS]):
        lines = _with_codings_that_can_be_read(lines)
    plain_lines = lines
    if _CODINGS not in replaced:
        plain_lines = [line for line in lines if line[:16].lower() != b"accept-encoding:"]
        plain_lines.append(b"Accept-Encoding: identity\r\n")
    return RequestHead(named, b"".join(lines), b"".join(plain_lines), size)


def _with_codings_that_can_be_read(lines: list[bytes]) -> list[bytes]:
    """Offer no server a coding that could not be looked at."""
    kept = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == _CODINGS:
            codings = [each.strip() for each in value.split(b",")]
            codings = [each for each in codings if _LEGIBLE.fullmatch(each)]
            line = b"%b: %b\r\n" % (name, b", ".join(codings) or b"identity")
        kept.append(line)
    return kept


class HeadReader:
    """Reads the heads of the requests on one connection.

    Most clients send the same fields with each of them, but for the length of the body: what was learnt of
    the others holds on. So `named` has no Content-Length here, and `size` may be that of an earlier request,
    some digits off.
    """

    __slots__ = ("_after", "_at", "_before", "_known")

    def __init__(self) -> None:
        self._known: RequestHead | None = None
        self._at = 0
        """Where in the fields Content-Length stands."""
        self._before: Sequence[Field] = ()
        self._after: Sequence[Field] = ()

    def read(self, fields: Sequence[Field]) -> RequestHead:
        """Read a request's header fields; gives the very same head again where they say the same."""
        at = self._at
        alike = at < len(fields) and fields[:at] == self._before and fields[at + 1 :] == self._after
        if self._known is not None and alike and fields[at][0].lower() == _LENGTH:
            return self._known
        head = request_head(fields)
        self._known = None
        if head.named.pop(_LENGTH, None) is not None and head.size <= _REMEMBERED_BYTES:
            names = [name.lower() for name, _ in fields]
            self._at = at = names.index(_LENGTH)
            self._before, self._after, self._known = fields[:at], fields[at + 1 :], head
        return head


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
    framing: Framing | None = None
    """Of the events that it streams, compressed or not."""
    may_grow: bool = False
    """Streams events that may be added to: not compressed."""
    dated: bool = False
    coding: bytes = b""
    """Its Content-Encoding, in lower case."""
    transfer_coding: bytes = b""
    """Its Transfer-Encoding, in lower case."""
    keep_alive: bytes = b""
    """Its Keep-Alive, as it came."""


NO_HEAD: Final = AnswerHead(b"", None)


def answer_head(fields: Sequence[Field]) -> AnswerHead:
    """Sort the header fields of a provider's answer but for its length.

    Proxies are told not to hold event streams back.
    """
    named, lines, _ = _sort(fields, NOT_RETURNED)
    find = named.get
    coding = find(b"content-encoding", b"").strip().lower()
    media_type = find(b"content-type", b"").lstrip().lower()
    framing = next((each for each in FRAMINGS if media_type.startswith(each.media_type)), None)
    if framing is not None and b"x-accel-buffering" not in named:
        lines.append(b"X-Accel-Buffering: no\r\n")
    if framing is not None and b"cache-control" not in named:
        lines.append(b"Cache-Control: no-cache\r\n")
    return AnswerHead(
        b"".join(lines),
        None,
        framing,
        framing is not None and coding in (b"", b"identity"),
        b"date" in named,
        coding,
        find(b"transfer-encoding", b"").lower(),
        find(b"keep-alive", b""),
    )


def whole_number(text: bytes) -> int | None:
    """Read a whole number; None if it is none, or one that no length can be."""
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
        limit = whole_number(number)
        if limit is None:
            continue
        if name.strip() == b"timeout":
            timeout_s = float(limit)
        elif name.strip() == b"max":
            most = limit
    return timeout_s, most
