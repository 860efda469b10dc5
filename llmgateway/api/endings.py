"""How streams end: whether the last lines of one show what the API calls its end, or an error.

All dialects with the same framing are read by their words at once. The rules:

- No words of a model are taken for an end or an error: inside a JSON string a quote has a backslash before
  it, and no line breaks.
- It is looked at when the stream is over, however it came to be, and at its last lines only; but which of
  several choices have ended is noted while they pass.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

import orjson

from llmgateway.api.dialect import LINES, SSE, Dialect, Framing
from llmgateway.api.endpoints import DIALECTS

TAIL_BYTES: Final = 4 * 1024
"""How much of what has passed is kept to be looked at, and the last lines whole."""

Tail = bytes | bytearray

_CHOICES: Final = b'"choices"'
OTHER_CHOICES: Final = (b'"index":1', b'"index": 1')
"""What shows that there may be more than one choice."""
_REASONS: Final = (b'finish_reason":"', b'finish_reason": "')
_SUSPECT: Final = re.compile(
    rb'(?m)^(?:data: ?\{[^\n]*?"(?:error" *: *[{"]|(?:object|type)" *: *"(?:error|response\.failed)")'
    rb"|error: ?\{|event: ?error\r?$)"
)
_BEHIND: Final = re.compile(rb"\n?(?:\r?\n)?(?:(?:(?:data|event|id|retry)?:[^\n]*+\n?)++(?:\r?\n)?)*+\r?\Z")
"""What may stand behind the end: events and comments, but no framing gone wrong."""
_LINE: Final = re.compile(rb"(?m)^(event|data|error): ?([^\r\n]*)")


class Endings(Protocol):
    """Knows the last events of streams in some dialects."""

    def has_ended(self, tail: Tail, rest: Tail, done: set[int]) -> bool:
        """Tell whether a stream has shown its end.

        `tail` are its last whole lines, `rest` is what came behind them, `done` which choices have ended.
        """

    def error(self, tail: Tail) -> bytes | None:
        """Give the error that a stream has told in its last lines, as it was told; None if it told none."""


class EventEndings:
    """Knows the last server-sent events of streams."""

    __slots__ = ("_failures", "_last", "_unended")

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        ends = [dialect.ends for dialect in dialects]
        words = [re.escape(word) for end in ends for word in end.words]
        types = b"|".join(re.escape(name.encode()) for end in ends for name in (*end.types, *end.failures))
        self._failures = frozenset(name for end in ends for name in end.failures)
        word = rb"data: ?(?:%b)[ \t]*\r?$" % b"|".join(words)
        last = rb'|data: ?\{[^\n]*?"type" *: *"(?:%b)"[^\n]*|event: ?(?:%b)\r?\ndata:[^\n]*' % (types, types)
        self._unended = re.compile(rb"(?m)^" + word)
        self._last = re.compile(rb"(?m)^(?:" + word + last + b")")

    def has_ended(self, tail: Tail, rest: Tail, done: set[int]) -> bool:
        """Tell whether a stream has shown its end.

        `tail` are its last whole lines, `rest` is what came behind them, `done` which choices have ended.
        """
        last = self._last.search(tail)
        if last is not None:
            return _BEHIND.match(tail + rest, last.end()) is not None
        if self._unended.match(rest) is not None:
            return True
        return bool(done) and _begun(tail) <= done

    def error(self, tail: Tail) -> bytes | None:
        """Give the error that a stream has told in its last lines, as it was told; None if it told none."""
        if _SUSPECT.search(tail) is None:
            return None
        named = False
        for name, value in _LINE.findall(tail):
            if name == b"event":
                named = value == b"error"
            elif name == b"error" or named or self._is_error(value):
                return bytes(value)
        return None

    def _is_error(self, value: bytes) -> bool:
        match _object(value):
            case {"error": str() | dict() as error} if error:
                return True
            case {"object": "error"} | {"type": "error"}:
                return True
            case {"type": str() as kind}:
                return kind in self._failures
        return False


def ended_choices(part: Tail) -> Iterator[int]:
    """Give which choices tell in some whole lines why they ended; cheap where none does."""
    if part.find(_REASONS[0]) >= 0 or part.find(_REASONS[1]) >= 0:
        for choice in _choices(part):
            if choice.get("finish_reason"):
                yield choice.get("index", 0)


def _begun(tail: Tail) -> set[int]:
    return {choice.get("index", 0) for choice in _choices(tail)}


def _choices(part: Tail) -> Iterator[dict[str, Any]]:
    for line in bytes(part).split(b"\n"):
        if line.startswith(b"data:") and _CHOICES in line:
            match _object(line[5:]):
                case {"choices": [*choices]}:
                    yield from (each for each in choices if type(each) is dict and _is_index(each))


def _is_index(choice: dict[str, Any]) -> bool:
    return type(choice.get("index", 0)) is int


def _object(value: bytes) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


class LineEndings:
    """Knows the last lines of streams in which each is a value of JSON."""

    __slots__ = ("_flags", "_shown")

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._flags = tuple(flag for dialect in dialects for flag in dialect.ends.flags)
        flags = b"|".join(flag.encode() for flag in self._flags)
        self._shown = re.compile(rb'"(?:%b)" *+: *+true[,}]' % flags)

    def has_ended(self, tail: Tail, rest: Tail, done: set[int]) -> bool:
        """Tell whether a stream has shown its end, as `Endings` does."""
        if rest.strip():
            return self._is_last(_object(bytes(rest)))
        line = bytes(tail).rstrip().rpartition(b"\n")[2]
        value = _object(line)
        if value is None and line.endswith(b"}"):  # what is very long is not kept whole
            return self._shown.search(line) is not None
        return self._is_last(value)

    def _is_last(self, value: object) -> bool:
        return isinstance(value, dict) and any(value.get(flag) is True for flag in self._flags)

    def error(self, tail: Tail) -> bytes | None:
        """Give the error that a stream has told in its last lines, as `Endings` does."""
        for line in bytes(tail).splitlines():
            if b'"error"' in line:
                match _object(line):
                    case {"error": str() | dict() as error} if error:
                        return line
        return None


ENDINGS_IN: Final[Mapping[Framing, Endings]] = {
    SSE: EventEndings([dialect for dialect in DIALECTS if dialect.stream is SSE]),
    LINES: LineEndings([dialect for dialect in DIALECTS if dialect.stream is LINES]),
}
ENDINGS: Final = ENDINGS_IN[SSE]
