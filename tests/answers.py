"""Answers of providers, as bytes and in parts, and the ways in which packets can cut them.

`ANSWERS` are those that pass through the gateway as they are; `DISPUTED` those on which parsers differ. The
bodies are what real servers send, or what looks most like framing.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import cycle, pairwise
from random import Random
from typing import Final

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"
MESSAGES: Final = "/v1/messages"
SPEECH: Final = "/v1/audio/speech"


class Kind(Enum):
    """What a part of an answer is."""

    INTERIM = "a whole 1xx answer"
    HEAD = "the head, with its empty line"
    SIZE = "the line before a chunk"
    DATA = "bytes of the body: all of them, or one chunk's"
    END = "the end of a chunk's line"
    LAST = "the line of the last chunk"
    TRAILERS = "what ends the body: trailers, and an empty line"


Part = tuple[Kind, bytes]


@dataclass(frozen=True)
class Answer:
    """One answer, in parts."""

    name: str
    parts: tuple[Part, ...]
    until_close: bool = False
    """The end of the connection is the end of its body."""
    path: str = CHAT
    reason: str | None = None
    """The gateway's reason phrase, where the provider's does not pass."""

    @property
    def whole(self) -> bytes:
        return b"".join(data for _, data in self.parts)

    @property
    def body(self) -> bytes:
        return b"".join(data for kind, data in self.parts if kind is Kind.DATA)

    @property
    def head(self) -> bytes:
        return next(data for kind, data in self.parts if kind is Kind.HEAD)

    @property
    def is_events(self) -> bool:
        return b"\r\ncontent-type: text/event-stream" in self.head.lower()

    @property
    def request(self) -> bytes:
        """The body of a request that may be answered so."""
        return json.dumps({"model": "m", "messages": [], "input": "x", "stream": self.is_events}).encode()

    def spans(self) -> Iterator[tuple[Kind, int, int]]:
        """Where each part begins and ends."""
        start = 0
        for kind, data in self.parts:
            yield kind, start, start + len(data)
            start += len(data)

    def cut(self, cutting: Cutting) -> list[bytes]:
        """The answer in pieces. The reason phrase stays whole: what cuts do to it has a test of its own."""
        within_reason = range(*self.reason_span)
        inner = {at for at in cutting(self) if 0 < at < len(self.whole)} - set(within_reason)
        return [self.whole[start:end] for start, end in pairwise([0, *sorted(inner), len(self.whole)])]

    @property
    def reason_span(self) -> tuple[int, int]:
        """The places in the reason phrase, from behind its first byte to before the line's end."""
        at = next(start for kind, start, _ in self.spans() if kind is Kind.HEAD)
        return at + len("HTTP/1.1 200 x"), self.whole.index(b"\r\n", at) + 1


# --- how packets cut it ------------------------------------------------------------------------------

Cutting = Callable[[Answer], Iterable[int]]
"""Gives the places where a new packet begins."""


def everywhere(answer: Answer) -> Iterator[int]:
    """Between any two bytes, but in the middle of a large part."""
    for _, start, end in answer.spans():
        if end - start <= 250:
            yield from range(start, end)
        else:
            yield from (*range(start, start + 10), *range(start, end, 20_011), *range(end - 10, end + 1))


def behind(*kinds: Kind) -> Cutting:
    return lambda answer: (end for kind, _, end in answer.spans() if kind in kinds)


def inside(*kinds: Kind) -> Cutting:
    return lambda answer: ((start + end) // 2 for kind, start, end in answer.spans() if kind in kinds)


def behind_the_first_byte(*kinds: Kind) -> Cutting:
    return lambda answer: (start + 1 for kind, start, _ in answer.spans() if kind in kinds)


def between_cr_and_lf(answer: Answer) -> Iterator[int]:
    at = answer.whole.find(b"\r\n")
    while at >= 0:
        yield at + 1
        at = answer.whole.find(b"\r\n", at + 2)


def around_false_chunks(answer: Answer) -> Iterator[int]:
    """Before and behind what looks like a whole chunk, but is only in the middle of something."""
    whole, lines = answer.whole, {start for kind, start, _ in answer.spans() if kind is Kind.SIZE}
    end = len(answer.head)
    for size in re.finditer(rb"[1-9a-f]\r\n", whole):
        behind = size.end() + int(size[0], 16) + 2
        if size.start() >= end and size.start() not in lines and whole[behind - 2 : behind] == b"\r\n":
            yield from (size.start(), end := behind)


def odd_places(seed: int) -> Cutting:
    def chosen(answer: Answer) -> Iterator[int]:
        chance = Random(f"{seed} {answer.name}")
        return (chance.randrange(len(answer.whole)) for _ in range(chance.choice((3, 10, 30))))

    return chosen


CUTTINGS: Final[dict[str, Cutting]] = {
    "whole": lambda _: (),
    "head and body": behind(Kind.INTERIM, Kind.HEAD),
    "chunk by chunk": behind(Kind.HEAD, Kind.END),
    "part by part": behind(*Kind),
    "lines and chunks apart": behind(Kind.HEAD, Kind.SIZE, Kind.END, Kind.LAST),
    "around what only looks like a chunk": around_false_chunks,
    "ends of chunks with the next line": behind(Kind.DATA),
    "chunks in halves": inside(Kind.DATA),
    "size lines in halves": behind_the_first_byte(Kind.SIZE, Kind.LAST),
    "trailers in halves": inside(Kind.TRAILERS),
    "between CR and LF": between_cr_and_lf,
    "byte by byte": everywhere,
    "odd places": odd_places(1),
    "other odd places": odd_places(2),
    "still others": odd_places(3),
}


def cuttings(answer: Answer) -> list[str]:
    """The cuttings that make a difference for this answer."""
    different = {tuple(answer.cut(cutting)): name for name, cutting in reversed(CUTTINGS.items())}
    return [name for name in CUTTINGS if name in different.values()]


# --- how answers are made ----------------------------------------------------------------------------

JSON: Final = b'{"object": "chat.completion", "x": "caf\xc3\xa9 \\n", "choices": []}'
ERROR: Final = b'{"error": {"message": "It does not fit.", "type": "invalid_request_error", "code": 400}}'
BINARY: Final = bytes(range(256)) * 3 + b"\r\n0\r\n\r\n"
BIG: Final = Random(300).randbytes(300_000)
EVENTS: Final = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"na\xc3\xafve \xe2\x82\xac \xf0\x9f\xa6\x99"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)
CRLF_EVENTS: Final = (
    b'event: message_start\r\ndata: {"type":"message_start"}\r\n\r\n',
    b'event: ping\r\ndata: {"type":"ping"}\r\n\r\n',
    b'event: message_stop\r\ndata: {"type":"message_stop"}\r\n\r\n',
)
LOOKALIKES: Final = (
    b"5\r\nhello\r\n",
    b"5\r\nhello",
    b"xy\r\nand 14 more...",  # behind the second half of its size: a chunk of 2
    b"\r\n",
    b"c\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n5\r\nhello\r\n",
    b"hello\r\n",
    b"\n",
    b"\r",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)

JSON_TYPE: Final = b"Content-Type: application/json"
EVENT_TYPE: Final = b"Content-Type: text/event-stream"
ANY_TYPE: Final = b"Content-Type: application/octet-stream"
ZIPPED: Final = b"Content-Encoding: gzip"
CHUNKED: Final = b"Transfer-Encoding: chunked"


def head(*lines: bytes, status: bytes = b"200 OK", http: bytes = b"HTTP/1.1") -> Part:
    return Kind.HEAD, b"\r\n".join((http + b" " + status, *lines, b"", b""))


def sized(body: bytes, *lines: bytes, status: bytes = b"200 OK", http: bytes = b"HTTP/1.1") -> Answer:
    """One that tells its length, in its last line if no other does."""
    told = any(line.lower().startswith(b"content-length:") for line in lines)
    length = () if told else (b"Content-Length: %d" % len(body),)
    data = ((Kind.DATA, body),) if body else ()
    return Answer("", (head(*lines, *length, status=status, http=http), *data))


def chunked(
    chunks: Iterable[bytes],
    *lines: bytes,
    status: bytes = b"200 OK",
    sizes: Sequence[bytes] = (b"%x",),
    last: bytes = b"0",
    trailers: bytes = b"",
) -> Answer:
    """One in chunks; `sizes` are ways to write a size, taken in turn."""
    told = any(line.lower().startswith(b"transfer-encoding:") for line in lines)
    parts = [head(*lines, *(() if told else (CHUNKED,)), status=status)]
    for data, size in zip(chunks, cycle(sizes)):
        parts += [(Kind.SIZE, size % len(data) + b"\r\n"), (Kind.DATA, data), (Kind.END, b"\r\n")]
    return Answer("", (*parts, (Kind.LAST, last + b"\r\n"), (Kind.TRAILERS, trailers + b"\r\n")))


def closing(body: bytes, *lines: bytes, status: bytes = b"200 OK", http: bytes = b"HTTP/1.1") -> Answer:
    """One that ends with its connection."""
    data = ((Kind.DATA, body),) if body else ()
    return Answer("", (head(*lines, status=status, http=http), *data), until_close=True)


def bare(*lines: bytes, status: bytes) -> Answer:
    """One that has no body whatever its fields say."""
    return Answer("", (head(*lines, status=status),))


def after(interim: bytes, answer: Answer) -> Answer:
    return replace(answer, parts=((Kind.INTERIM, interim), *answer.parts))


def at(path: str, answer: Answer) -> Answer:
    return replace(answer, path=path)


def saying(reason: str, answer: Answer) -> Answer:
    return replace(answer, reason=reason)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def zipped_events() -> list[bytes]:
    """Each event flushed, as a server does that compresses a stream."""
    packer = zlib.compressobj(wbits=31)
    return [*(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS), packer.flush()]


# --- the answers -------------------------------------------------------------------------------------

_ROWS: Final[dict[str, Answer]] = {
    # by length
    "length": sized(JSON, JSON_TYPE),
    "length first": sized(JSON, b"content-length: %d" % len(JSON), JSON_TYPE, b"X-Last: 1"),
    "length with leading zeros": sized(JSON, JSON_TYPE, b"Content-Length: 000%d" % len(JSON)),
    "nothing, by length": at(EMBEDDINGS, sized(b"", JSON_TYPE)),
    "binary": at(SPEECH, sized(BINARY, b"Content-Type: audio/mpeg")),
    "300 KB": at(SPEECH, sized(BIG, ANY_TYPE)),
    "length, then close": sized(JSON, JSON_TYPE, b"Connection: close"),
    # in chunks
    "chunks": at(EMBEDDINGS, chunked(pieces(JSON, 9), JSON_TYPE)),
    "chunks of a byte": chunked(pieces(JSON, 1), JSON_TYPE),
    "chunked first": chunked([JSON], b"TRANSFER-encoding: Chunked", JSON_TYPE, b"X-Last: 1"),
    "nothing, in chunks": chunked([], JSON_TYPE),
    "nothing, and trailers": chunked([], JSON_TYPE, trailers=b"X-Sum: 0\r\n"),
    "upper-case sizes": chunked(pieces(BINARY, 170), ANY_TYPE, sizes=[b"%X"]),
    "leading zeros": chunked(pieces(BINARY, 190), ANY_TYPE, sizes=[b"0%x", b"%04X", b"%020x"], last=b"000"),
    "extensions": chunked(pieces(JSON, 9), JSON_TYPE, sizes=[b"%x;a=b", b"%x", b"%x;a;b=c"], last=b"0;e=1"),
    "quoted extensions": chunked(
        pieces(JSON, 9), JSON_TYPE, sizes=[b'%x;a="b; c"', b'%x;a="\\"\t\xe9"', b"%X"], last=b'0;e="x y"'
    ),
    "trailers": chunked(
        pieces(JSON, 20), JSON_TYPE, b"Trailer: X-Sum, X-More", trailers=b"X-Sum: 1\r\nX-More:\r\n"
    ),
    "trailers that look like framing": chunked(
        pieces(JSON, 20), JSON_TYPE, trailers=b"Transfer-Encoding: chunked\r\n5: hello\r\nX-Obs: \xe9\r\n"
    ),
    "trailers behind extensions": chunked(
        pieces(JSON, 20), JSON_TYPE, sizes=[b"%x;a=b"], last=b"00;e", trailers=b"Set-Cookie: t=1\r\n"
    ),
    "chunks that look like framing": chunked([*LOOKALIKES, *LOOKALIKES], ANY_TYPE),
    "chunks that look like framing, their sizes odd": chunked(
        [*LOOKALIKES, *LOOKALIKES], ANY_TYPE, sizes=[b"%x", b"%x;5", b"0%x", b"%x"]
    ),
    "300 KB in chunks": at(SPEECH, chunked(pieces(BIG, 16_384), ANY_TYPE)),
    "300 KB in one chunk": at(SPEECH, chunked([BIG], ANY_TYPE)),
    "chunks, then close": chunked(pieces(JSON, 9), JSON_TYPE, b"Connection: close"),
    # events
    "events, one in a chunk": chunked(EVENTS, EVENT_TYPE),
    "events, several in a chunk": chunked([b"".join(EVENTS[:3]), EVENTS[3]], EVENT_TYPE),
    "events over several chunks": chunked(pieces(b"".join(EVENTS), 23), EVENT_TYPE),
    "events, their line ends cut": chunked([b"data: 1\r", b"\n\r", b"\ndata: 2\r\n\r", b"\n"], EVENT_TYPE),
    "CRLF events": at(MESSAGES, chunked(CRLF_EVENTS, EVENT_TYPE + b"; charset=utf-8")),
    "CR events": chunked([b"data: 1\r\r", b"data: 2\r\r"], EVENT_TYPE),
    "comments": chunked(
        [b": ping\n\n", EVENTS[0], b":\n", b"\n", b"retry: 9\nid: 7\n", EVENTS[3]], EVENT_TYPE
    ),
    "no empty line at the end": chunked([EVENTS[0], b"data: [DONE]"], EVENT_TYPE),
    "one line end at the end": chunked([EVENTS[0], b"data: [DONE]\n"], EVENT_TYPE),
    "events beyond UTF-8": chunked([b"\xef\xbb\xbfdata: 1\n\n", b"data: \xff\xfe\x00\n\n"], EVENT_TYPE),
    "events that end in trailers": chunked(EVENTS, EVENT_TYPE, trailers=b"X-Sum: 1\r\n"),
    "no event": chunked([], EVENT_TYPE),
    "events by length": sized(b"".join(EVENTS), EVENT_TYPE),
    "events until close": closing(b"".join(EVENTS), EVENT_TYPE),
    "events of HTTP/1.0": closing(b"".join(EVENTS), EVENT_TYPE, http=b"HTTP/1.0"),
    "events that are told how to be cached": chunked(
        EVENTS, b"cache-control: no-store", b"content-type: Text/Event-Stream", b"X-ACCEL-BUFFERING: yes"
    ),
    "a refusal in events": chunked([b'data: {"error":{}}\n\n'], EVENT_TYPE, status=b"400 Bad Request"),
    # compressed
    "gzip": sized(gzip.compress(JSON, mtime=0), JSON_TYPE, ZIPPED, b"Vary: Accept-Encoding"),
    "gzip in chunks": chunked(pieces(gzip.compress(JSON, mtime=0), 11), JSON_TYPE, ZIPPED),
    "gzip until close": closing(gzip.compress(JSON, mtime=0), JSON_TYPE, ZIPPED),
    "gzip events": chunked(zipped_events(), EVENT_TYPE, ZIPPED),
    "gzip events by length": sized(b"".join(zipped_events()), EVENT_TYPE, ZIPPED),
    "not the gzip that it says": chunked(EVENTS, EVENT_TYPE, ZIPPED),
    "an unknown coding": sized(BINARY, ANY_TYPE, b"Content-Encoding: zstd"),
    # until the end of the connection
    "until close": closing(JSON, JSON_TYPE),
    "binary until close": at(SPEECH, closing(BINARY)),
    "nothing until close": closing(b"", JSON_TYPE),
    "300 KB until close": at(SPEECH, closing(BIG, ANY_TYPE)),
    "HTTP/1.0": closing(JSON, JSON_TYPE, http=b"HTTP/1.0"),
    "HTTP/1.0 with a length": sized(JSON, JSON_TYPE, http=b"HTTP/1.0"),
    "HTTP/1.0 that stays": sized(JSON, JSON_TYPE, b"Connection: keep-alive", http=b"HTTP/1.0"),
    # no body
    "204": bare(b"X-A: b", status=b"204 No Content"),
    "204 with a length": bare(b"Content-Length: 0", status=b"204 No Content"),
    "204 in chunks": bare(CHUNKED, b"X-A: b", status=b"204 No Content"),
    "304": bare(b'ETag: "x"', status=b"304 Not Modified"),
    "304 with a length": bare(b'ETag: "x"', b"Content-Length: 1234", status=b"304 Not Modified"),
    "304 in chunks": bare(CHUNKED, b'ETag: "x"', status=b"304 Not Modified"),
    # 1xx
    "100 before": after(b"HTTP/1.1 100 Continue\r\n\r\n", sized(JSON, JSON_TYPE)),
    "100 and 103 before": after(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nX-Early: 1\r\n\r\n",
        chunked(EVENTS, EVENT_TYPE),
    ),
    "103 before 204": after(
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", bare(status=b"204 No Content")
    ),
    # statuses
    "201": sized(JSON, JSON_TYPE, b"Location: /v1/x", status=b"201 Created"),
    "202": chunked([JSON], JSON_TYPE, status=b"202 Accepted"),
    "205": sized(b"", status=b"205 Reset Content"),
    "206": sized(BINARY[:9], b"Content-Range: bytes 0-8/776", ANY_TYPE, status=b"206 Partial Content"),
    "299": sized(JSON, status=b"299 Its Own"),
    "300": sized(b"one or the other\n", status=b"300 Multiple Choices"),
    "399 until close": closing(b"elsewhere\n", status=b"399 Its Own"),
    "400": sized(ERROR, JSON_TYPE, status=b"400 Bad Request"),
    "404": sized(ERROR, JSON_TYPE, status=b"404 File Not Found"),
    "409": chunked(pieces(ERROR, 20), JSON_TYPE, status=b"409 Conflict"),
    "418": closing(ERROR, JSON_TYPE, status=b"418 I'm a teapot; short, and (stout)!"),
    "422": chunked([ERROR], JSON_TYPE, status=b"422 Unprocessable Entity", trailers=b"X-Sum: 1\r\n"),
    "429": at(MESSAGES, sized(ERROR, JSON_TYPE, b"Retry-After: 7", status=b"429 Slow Down")),
    # reasons: some do not pass
    "no reason": saying("OK", sized(JSON, status=b"200")),
    "an empty reason": saying("OK", sized(JSON, status=b"200 ")),
    "a reason beyond ASCII": saying("OK", sized(JSON, status=b"200 caf\xc3\xa9")),
    "a reason with a tab": saying("Conflict", sized(JSON, status=b"409 No\tway")),
    "no reason for an unknown status": sized(JSON, status=b"299"),
    # header fields
    "fields in an odd order and spelling": sized(
        JSON,
        b"sERVER: llama.cpp",
        b"Set-Cookie: a=1; Path=/",
        b"content-TYPE: application/json; charset=utf-8",
        b"X-Obs: caf\xe9 \xe2\x82\xac \xff",
        b"CONTENT-length: %d" % len(JSON),
        b"set-cookie: b=2",
        b"X-Empty:",
        b"X-Blank:   ",
        b"x-after-length: 1",
        b"Set-Cookie: a=1; Path=/",
        b'ETag: "x, y"',
    ),
    "blanks around values": sized(
        JSON, b"X-A: \t a  b\tc \t", b"X-B:b", b"Content-Length:   %d\t " % len(JSON)
    ),
    "names of every letter": sized(JSON, b"!#$%&'*+-.^_`|~09AZaz: 1", b"_: 2", b"5: hello"),
    "many fields": sized(JSON, *(b"X-%d: %d" % (number, number) for number in range(100))),
    "a long value": sized(JSON, b"X-Long: " + b"y" * 8_000),
    "hop-by-hop fields": chunked(
        [JSON],
        b"X-Named: 1",
        b"Connection: keep-alive, x-named",
        b"Keep-Alive: timeout=5, max=100",
        b"Proxy-Authenticate: Basic",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"X-Stays: 1",
        b"x-named: 2",
        b"connection: , X-ALSO",
        b"X-Also: 3",
    ),
    "an upgrade that is offered": sized(JSON, b"Upgrade: h2c", b"Connection: Upgrade, Keep-Alive"),
    "a date of its own": sized(JSON, b"X-A: b", b"dATE: Tue, 15 Nov 1994 08:12:31 GMT", JSON_TYPE),
    "what the gateway says itself": sized(
        JSON, b"X-Request-Id: theirs", b"x-gateway-PROVIDER: other", b"X-Gateway-Error: x", b"X-Stays: 1"
    ),
}
ANSWERS: Final = [replace(answer, name=name) for name, answer in _ROWS.items()]

# --- answers on which parsers differ -----------------------------------------------------------------


class Fate(Enum):
    """What a client of the gateway gets of a disputed answer."""

    PASSES = "all of it"
    REFUSED = "502, as nothing of it was sent on"
    BROKEN = "a beginning, and no proper end"


@dataclass(frozen=True)
class Disputed:
    """An answer that not everybody takes for HTTP."""

    answer: Answer
    plain_client_takes_it: bool
    fate: Fate


# The plain client's parser is the gateway's, but set to be lenient; what both refuse is here for its bounds.
_HEADS: Final[dict[str, tuple[Answer, bool, Fate]]] = {
    "a folded value": (sized(JSON, b"X-A: b\r\n c"), True, Fate.REFUSED),
    "a lone LF behind the status": (
        Answer("", ((Kind.HEAD, b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\n"), (Kind.DATA, b"{}"))),
        True,
        Fate.REFUSED,
    ),
    "a lone LF behind a field": (sized(JSON, b"X-A: b\nX-B: c"), True, Fate.REFUSED),
    "a lone LF behind the head": (
        Answer("", ((Kind.HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\n"), (Kind.DATA, b"{}"))),
        True,
        Fate.REFUSED,
    ),
    "two blanks before the status": (sized(JSON, status=b" 200 OK"), False, Fate.REFUSED),
    "HTTP in small letters": (sized(JSON, http=b"http/1.1"), False, Fate.REFUSED),
    "a value of 20 KB": (sized(JSON, b"X-Long: " + b"y" * 20_000), False, Fate.PASSES),
    "500 fields": (sized(JSON, *(b"X-%d: y" % n for n in range(500))), False, Fate.PASSES),
}
_SIZES: Final[dict[bytes, bool]] = {  # lines before a chunk; whether the plain client takes them
    b"5 \r\n": True,
    b"5\t\r\n": True,
    b"5 ;a=b\r\n": True,
    b" 5\r\n": False,
    b"5;\r\n": False,
    b"5; a=b\r\n": False,
    b'5;a=b"c\r\n': False,
    b'5;a="q;\r"\r\n': False,
    b'5;a="q;\n"\r\n': False,
    b"5\n": False,
}
_ENDS: Final[dict[bytes, bool]] = {  # trailers
    b"\n": True,
    b"X-Sum: 1\r\n 2\r\n\r\n": True,
    b"Content-Length: 5\r\n\r\n": False,
}


def _disputed() -> Iterator[Disputed]:
    for name, (answer, taken, fate) in _HEADS.items():
        yield Disputed(replace(answer, name=name), taken, fate)
    for content_type in (JSON_TYPE, EVENT_TYPE):
        start = head(content_type, CHUNKED)
        good: list[Part] = [(Kind.SIZE, b"8\r\n"), (Kind.DATA, b"data: 1\n"), (Kind.END, b"\r\n")]
        last: list[Part] = [(Kind.LAST, b"0\r\n"), (Kind.TRAILERS, b"\r\n")]
        kind = "events" if content_type is EVENT_TYPE else "chunks"
        for line, taken in _SIZES.items():
            odd: list[Part] = [(Kind.SIZE, line), (Kind.DATA, b"hello"), (Kind.END, b"\r\n")]
            first = Answer(f"{kind}, the first after {line!r}", (start, *odd, *good, *last))
            later = Answer(f"{kind}, a later one after {line!r}", (start, *good, *odd, *last))
            yield Disputed(first, taken, Fate.REFUSED)
            yield Disputed(later, taken, Fate.BROKEN)
        lf = Answer(f"{kind}, a lone LF behind one", (start, *good[:-1], (Kind.END, b"\n"), *good, *last))
        yield Disputed(lf, True, Fate.BROKEN)
        for trailers, taken in _ENDS.items():
            end = Answer(
                f"{kind} that end in {trailers!r}", (start, *good, last[0], (Kind.TRAILERS, trailers))
            )
            yield Disputed(end, taken, Fate.BROKEN)


DISPUTED: Final = list(_disputed())
