"""What a dialect must tell: one of the APIs that clients and models speak, as a value.

- Everybody takes the value, and branches on no name. A new dialect is a file in `dialects/` and its place in
  `endpoints.DIALECTS`; the tables that requests and answers are read by are built from the values there.
- Requests and answers are read by the words of all dialects at once: servers mix them.
- What is sent, an error or a sign of life, is in the words of the one that the client speaks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from llmgateway.errors import ErrorKind, GatewayError

_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")

BodyKind = Literal["json", "multipart", "query", "none", "socket"]
"""What names the model: a body, as JSON or a form; or the query, or nothing: then no body is looked at.

Of a WebSocket (`socket`) it is the query, and must be.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What a dialect has forwarded at one path."""

    path: str
    name: str = ""
    """What configs and listings call it, among all dialects; whoever serves a model has what has no name."""
    body: BodyKind = "json"
    streams: bool = False
    """Whether what it streams are events, so that one more may stand between them."""
    streams_unasked: bool = False
    """Whether it streams where a request does not say."""
    by_name: bool = False
    """Whether `name` names the model where `model` does not, as old clients have it."""
    reads: bool = True
    """Whether its prompt costs tokens, even where the answer does not say how many."""
    method: str = "POST"
    keeps: bool = False
    """Whether who answered may be asked for the answer again, by the id that it has."""


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """How a stream is made of events."""

    media_type: bytes
    """What the Content-Type of such a stream begins with, in lower case."""
    at_boundary: Callable[[bytes], bool]
    """Tells from its last bytes, 4 or more, whether a stream stands between events (or has not begun)."""
    gap: bytes
    """Ends an event that was broken off, so that another can follow."""
    begins: Callable[[bytes], bool | None] = lambda head: False
    """Tells from its first bytes whether a body is such a stream; None if more of them must tell."""


@dataclass(frozen=True, slots=True)
class Ends:
    """By what a client knows that a stream is whole. Beside that it is once each choice told why it ended."""

    words: tuple[bytes, ...] = ()
    """The data of the last event, where that is no JSON."""
    types: tuple[str, ...] = ()
    """The `type` of the last event."""
    failures: tuple[str, ...] = ()
    """The same of an event that says that the model has failed."""
    flags: tuple[str, ...] = ()
    """What is true in the last event, and in no other."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a JSON request hold what, by name, beside `model` and `stream`."""

    system: tuple[str, ...] = ()
    """System prompts that stand beside the messages."""
    turns: tuple[str, ...] = ()
    """What was said: a list, or a single string."""
    text: tuple[str, ...] = ()
    """A plain prompt."""
    tools: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    """Of the output, in tokens; the lowest counts."""
    follows: tuple[str, ...] = ()
    """The id of an answer that is kept, and goes on in this one."""
    limits_inside: tuple[tuple[str, str], ...] = ()
    """The same in an object: its name, and the limit's in it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where an event of a stream carries a piece of output, which is about a token."""

    key: str
    inside: tuple[str, ...] = ()
    """Keys in the object behind `key` that hold text if they hold any string but an empty one. Without them
    the string is behind `key` itself."""
    listed: bool = False
    """Whether the object is the first of a list, and has but plain values before the text."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the numbers are called by which an answer tells what it cost: those in `usage`, or its own."""

    prompt: str
    completion: str
    beside: tuple[str, ...] = ()
    """More of the prompt, which `prompt` does not include."""
    total: str | None = None
    cached: tuple[str, ...] = ()
    """How much of the prompt was cached: a key, or the keys of an object and of a number in it."""
    reasoning: tuple[str, ...] = ()
    """How much of the completion was thought, likewise."""
    whole: bool = False
    """Whether an event with both tells all anew; else what is told adds up over the events of a stream."""
    opening: str | None = None
    """The `type` of the event that opens a stream, and cannot know its completion."""
    flat: bool = False
    """Whether they stand in the answer itself, or in the last event of a stream, and not in its `usage`."""


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """One API, as its clients know it."""

    name: str
    root: str
    """Whoever asks for this path, or for one below, speaks this dialect; of two roots the longer counts."""
    endpoints: tuple[Row, ...]
    error: Callable[[ErrorKind, str, str], Mapping[str, object]]
    """Gives the body of an error: its kind, what it says, the id of the request."""
    stream: Framing
    error_event: Callable[[bytes], bytes]
    """Makes the body of an error the last event of a stream that broke."""
    keepalive: Callable[[str], bytes] | None
    """Gives what may stand between events, with some words, and says nothing; None if nothing does."""
    fields: Fields
    pieces: tuple[Piece, ...]
    counts: tuple[Counts, ...]
    ends: Ends = Ends()
    kept: tuple[Row, ...] = ()
    """What can be asked about an answer that is kept, with `{id}` in the path; only who keeps it is asked."""
    as_events: Callable[[bytes], bytes | None] = lambda body: None
    """Gives a stream that says the same as a whole answer; None if that is not known."""

    optional: bool = False
    """Whether it is spoken only where the config says so."""
    own: tuple[str, ...] = ()
    """Paths of it that the gateway answers itself."""
    sign: bytes = b""
    """A header field by which its clients are known where the path does not tell, in lower case."""
    model: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None
    """Makes an entry of its list of models out of one of OpenAI's; None if that is its own."""
    models: Callable[[Sequence[Mapping[str, object]], str], Mapping[str, object]] | None = None
    """Makes its list of models out of OpenAI's entries, as a query wants it; None if OpenAI's is its own."""

    def covers(self, path: str) -> bool:
        """Tell whether a path is at the root or below it."""
        return not self.root or path == self.root or path.startswith(self.root + "/")

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        """Render the body of an error."""
        message = error.message.encode("utf-8", "replace").decode()  # a name from a path need not be Unicode
        return orjson.dumps(self.error(error.kind, message, request_id))


def at_event_boundary(tail: bytes) -> bool:
    """Tell from its last bytes whether an SSE stream stands between events (or has not begun)."""
    return not tail or tail.endswith((b"\n\n", b"\n\r\n", b"\r\r"))


def begins_events(head: bytes) -> bool | None:
    """Tell from its first bytes whether a body is an SSE stream; None if more of them must tell."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if head.startswith(_FIELDS):
        return True
    return None if any(field.startswith(head) for field in _FIELDS) else False


def sse_event(data: bytes, name: bytes = b"") -> bytes:
    """Write a server-sent event; `data` has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data


def sse_comment(words: str) -> bytes:
    """Write what readers of server-sent events skip."""
    return f": {words}\n\n".encode()


def at_line_boundary(tail: bytes) -> bool:
    """Tell from its last bytes whether a stream of lines stands between two of them (or has not begun)."""
    return not tail or tail.endswith(b"\n")


SSE: Final = Framing(
    media_type=b"text/event-stream", at_boundary=at_event_boundary, gap=b"\n\n", begins=begins_events
)
"""Server-sent events (the HTML standard, 9.2)."""
LINES: Final = Framing(media_type=b"application/x-ndjson", at_boundary=at_line_boundary, gap=b"\n")
"""A value of JSON on each line (NDJSON)."""
