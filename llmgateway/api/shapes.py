"""How answers tell what they cost, and what their output looks like in passing bytes: all dialects in tables.

The tables are built from what the dialects say of themselves, once: one for all that stream in the same
framing. The rules that they keep:

- No words of a model match: inside a JSON string a quote has a backslash before it.
- No match goes beyond its line, and no attempt far beyond a brace, so that no bytes make them slow.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmgateway.api.dialect import SSE, Counts, Dialect, Framing, Piece
from llmgateway.api.endpoints import DIALECTS, FRAMINGS

USAGE: Final = b'"usage"'
TIMINGS: Final = b'"timings"'
TIMED: Final = Counts("prompt_n", "predicted_n", beside=("cache_n",), cached=("cache_n",), whole=True)
"""What llama.cpp tells in `timings`, in whatever dialect it answers."""

_OBJECT: Final = re.compile(rb" *+: *+(\{(?:[^{}\n]++|\{(?:[^{}\n]++|\{[^{}\n]*+\})*+\})*+\})")
OBJECT_BYTES: Final = 2048
_TYPE_BYTES: Final = 4 * 1024  # of an event in which its type is looked for
_TEXT: Final = rb'([^"\n]++)'  # up to a quote in it: a pattern that knows better costs more
_SOME_TEXT: Final = rb'[^"\n]'
_ESCAPE_BYTES: Final = 3  # what `\u1234` takes more than most of what it stands for
LONG_PIECE_BYTES: Final = 7
"""Pieces of more text than that, by their mean, hold more than a token each."""
_MOST_TOLD: Final = 500
"""So often usage is read in what comes at a time, from its end on; who tells it more often means harm."""
_NUMBER: Final = rb"0|[1-9]\d{0,8}"
_MOST_TOKENS: Final = 1_000_000_000  # more is no count, but an attempt at somebody's limits


class _Patterns:
    """Finds pieces of output, and of each what `text` finds."""

    __slots__ = ("_lists", "_objects")

    def __init__(self, pieces: Sequence[Piece], text: bytes) -> None:
        keys = _distinct(piece.key for piece in pieces if not piece.listed)
        self._objects = tuple(
            _object_with([piece for piece in pieces if piece.key == key and not piece.listed], text)
            for key in keys
        )
        self._lists = tuple(
            (b'"%b"' % inside.encode(), _list_with(piece.key, inside, text))
            for piece in dict.fromkeys(pieces)
            if piece.listed
            for inside in piece.inside
        )

    def find(self, part: bytearray) -> list[bytes]:
        found: list[bytes] = []
        for pattern in self._objects:
            found += pattern.findall(part)
        for key, pattern in self._lists:
            if part.rfind(key) >= 0:
                found += pattern.findall(part)
        return found


class Pieces:
    """Knows the events of a stream that carry a piece of output."""

    __slots__ = ("_places", "_texts")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._places = _Patterns(pieces, _SOME_TEXT)
        self._texts = _Patterns(pieces, _TEXT)

    def count(self, part: bytearray) -> int:
        """Count them in whole lines."""
        return len(self._places.find(part))

    def measure(self, part: bytearray) -> tuple[int, int]:
        """Count them, and the bytes of their text, which takes longer."""
        found = self._texts.find(part)
        text = b"".join(found)
        text_bytes = len(text)
        if text_bytes > LONG_PIECE_BYTES * len(found):  # else it does not matter
            text_bytes -= _ESCAPE_BYTES * text.count(b"\\u")
        return len(found), text_bytes


def _object_with(pieces: Sequence[Piece], what: bytes) -> re.Pattern[bytes]:
    """Give the pattern of text, or of an object with text, behind the key that some pieces share.

    That the key comes without its first quote, and the plainest shapes on a line of their own, halves the
    time; so it pays that the most usual of the keys inside comes first.
    """
    inside = [text.encode() for text in _distinct(text for piece in pieces for text in piece.inside)]
    text = b"|".join(inside)
    shapes = []
    if inside:
        shapes += [rb':\{"%b":"' % inside[0]]
        shapes += [rb':\{(?:"\w++":(?:"\w*+"|null),)*+"(?:%b)":"' % text]
    if not all(piece.inside for piece in pieces):
        shapes += [rb' *+: *+"']
    if inside:
        shapes += [rb' *+: *+\{[^{}\n]*?(?:\{[^{}\n]*?){0,3}?"(?:%b)" *+: *+"' % text]
    return re.compile(rb'%b"(?:%b)%b' % (pieces[0].key.encode(), b"|".join(shapes), what))


def _list_with(key: str, text: str, what: bytes) -> re.Pattern[bytes]:
    return re.compile(rb'"%b" *+: *+\[ *+\{[^{}\n]*?"%b" *+: *+"%b' % (key.encode(), text.encode(), what))


class Usage:
    """Knows the numbers by which answers tell what they cost.

    Where an answer has the words of several dialects, those of the first count.
    """

    def __init__(self, told: Sequence[Counts]) -> None:
        some = (*told, TIMED)
        self._prompts = {
            prompt: tuple(name for counts in some if counts.prompt == prompt for name in counts.beside)
            for prompt in _distinct(counts.prompt for counts in some)
        }
        """For each count of a prompt what is to be added to it."""
        self._completions = _distinct(counts.completion for counts in told)
        self._totals = _distinct(counts.total for counts in told if counts.total is not None)
        self._cached = _distinct(counts.cached[-1] for counts in some if counts.cached)
        self._reasoning = _distinct(counts.reasoning[-1] for counts in some if counts.reasoning)
        paths = [path for counts in some for path in (counts.cached, counts.reasoning)]
        self._parts = tuple((path[0], path[1]) for path in paths if len(path) == 2)
        """Objects in `usage`, and a number in each."""
        self._names = (
            frozenset(self._prompts)
            | {name for counts in some for name in (*counts.beside, counts.completion)}
            | {*self._totals, *(path[0] for path in paths if len(path) == 1)}
        )
        self._wholes = tuple(frozenset((each.prompt, each.completion)) for each in some if each.whole)
        self._plain = tuple(
            _plain_usage(each.prompt, each.completion, each.total)
            for each in told
            if each.whole and each.total is not None
        )
        flat = [name for each in told if each.flat for name in (each.prompt, each.completion)]
        self._flat, self._flat_names = _flat_counts(flat), frozenset(flat)
        self.is_flat = bool(flat)
        """Whether there are counts that stand in an answer itself."""
        self._openings = tuple(
            (each.completion, _type(each.opening)) for each in told if each.opening is not None
        )

    def plain(self, part: bytes | bytearray, at: int) -> Sequence[bytes] | None:
        """Read prompt and completion where there is nothing else to be told at a place; None elsewhere."""
        for pattern in self._plain:
            if (found := pattern.match(part, at)) is not None:
                return found.groups()
        return None

    def prompt(self, told: dict[str, int]) -> int | None:
        """Add up what is told apart: Anthropic and llama.cpp's timings do not count what was cached."""
        for prompt, beside in self._prompts.items():
            if prompt in told:
                return told[prompt] + sum(told.get(name, 0) for name in beside)
        return None if self.completion(told) is not None else _first(told, self._totals)  # some rerankers

    def completion(self, told: dict[str, int]) -> int | None:
        """Give the completion as `usage` tells it."""
        return _first(told, self._completions)

    def cached(self, told: dict[str, int]) -> int:
        """Give how much of the prompt was cached."""
        return _first(told, self._cached) or 0

    def reasoning(self, told: dict[str, int]) -> int:
        """Give how much of the completion was thought."""
        return _first(told, self._reasoning) or 0

    def told_flatly(self, part: bytearray, since: int, until: int, longest: int) -> dict[str, int]:
        """Give the counts that stand in an answer itself, and begin between two places; the last ones count.

        Up to `longest` bytes of a line are surely there if `until` is the end.
        """
        told: dict[str, int] = {}
        if (flat := self._flat) is None:
            return told
        lines: deque[tuple[int, int]] = deque(maxlen=_MOST_TOLD)
        at = since
        while (found := flat.search(part, at)) and found.start() < until:
            start, end = part.rfind(b"\n", 0, found.start()) + 1, part.find(b"\n", found.end())
            at = end if end >= 0 else len(part)
            lines.append((start, at))
        for start, end in lines:
            line = part[start:end]
            if start >= since and until == len(part) and len(line) <= longest and (own := _object(line)):
                told |= {name: own[name] for name in self._flat_names & own.keys() if _is_count(own[name])}
            else:
                last = {found[1]: found[2] for found in flat.finditer(line, since - start)}
                told |= {name.decode(): int(count) for name, count in last.items()}
        return told

    def last_word(
        self, part: bytearray, mark: bytes, at: int, told: dict[str, int], since: int = 0
    ) -> dict[str, int]:
        """Add what the objects behind a mark tell to what was told before; `at` is where the last one stands.

        None before `since` is read.

        Backwards, since a stream may tell all of it in every event.
        """
        later: dict[str, int] = {}
        for _ in range(_MOST_TOLD):
            if at < 0:
                break
            counts = self._counts(part, at + len(mark))
            for completion, opening in self._openings:
                if completion in counts and _is_in_event(part, at, opening):
                    del counts[completion]
            if counts:
                later = counts | later
                if any(counts.keys() >= whole for whole in self._wholes):
                    return later
            at = part.rfind(mark, since, at)
        return told | later

    def _counts(self, part: bytearray, start: int) -> dict[str, int]:
        """Read `: {...}`, and keep the counts that we know."""
        if part.startswith(b":null", start):  # in every event but the last, on some servers
            return {}
        found = _OBJECT.match(part, start, start + OBJECT_BYTES)
        if found is None:
            return {}
        try:
            value: dict[str, Any] = orjson.loads(found[1])
        except orjson.JSONDecodeError:
            return {}
        counts = {name: value[name] for name in self._names & value.keys() if _is_count(value[name])}
        for name, part_of_it in self._parts:
            details = value.get(name)
            if isinstance(details, dict) and _is_count(details.get(part_of_it)):
                counts[part_of_it] = details[part_of_it]
        return counts


def _plain_usage(prompt: str, completion: str, total: str) -> re.Pattern[bytes]:
    return re.compile(
        rb'%b: ?\{"%b": ?(%b), ?"%b": ?(%b), ?"%b": ?(?:%b)\}'
        % (USAGE, prompt.encode(), _NUMBER, completion.encode(), _NUMBER, total.encode(), _NUMBER)
    )


def _flat_counts(names: Sequence[str]) -> re.Pattern[bytes] | None:
    inside = b"|".join(name.encode() for name in names)
    return re.compile(rb'"(%b)" {0,8}: {0,8}(%b)(?![\d.eE])' % (inside, _NUMBER)) if names else None


def _object(line: bytearray) -> dict[str, Any]:
    """Read a line as it is: what has the same names inside it, as a tool's arguments may, tells nothing."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _type(name: str) -> re.Pattern[bytes]:
    return re.compile(rb'"type" *+: *+"%b"' % name.encode())


def _is_in_event(part: bytearray, at: int, kind: re.Pattern[bytes]) -> bool:
    """Tell whether a place is in an event of a kind."""
    start = part.rfind(b"\n", 0, at) + 1
    end = part.find(b"\n", start, start + _TYPE_BYTES)
    return kind.search(part, start, end if end >= 0 else start + _TYPE_BYTES) is not None


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def _first(told: dict[str, int], names: Iterable[str]) -> int | None:
    for name in names:
        if name in told:
            return told[name]
    return None


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of answers in some dialects."""

    pieces: Pieces
    usage: Usage


def shapes_of(dialects: Sequence[Dialect]) -> Shapes:
    """Put together what dialects tell of themselves."""
    return Shapes(
        Pieces([piece for dialect in dialects for piece in dialect.pieces]),
        Usage([counts for dialect in dialects for counts in dialect.counts]),
    )


SHAPES_IN: Final[Mapping[Framing, Shapes]] = {
    framing: shapes_of([dialect for dialect in DIALECTS if dialect.stream is framing]) for framing in FRAMINGS
}
SHAPES: Final = SHAPES_IN[SSE]
