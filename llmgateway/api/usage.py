"""Read token counts off passing bytes, without holding or touching them.

An answer tells its usage in a few small objects: `usage` in OpenAI's, Responses' and Anthropic's shapes,
llama.cpp's `timings`. A stream may tell it in every event, and the last word counts; or near its end; or, cut
off, never. Then its output is estimated as the number of events that carry a piece of text, which is about
the number of tokens; those that open a stream, close it, or keep it alive carry none.

The rules:

- However an answer is cut into pieces, it costs the same. Of a stream only whole lines are read, some
  kilobytes at a time; of a very long line, and of an answer that is no stream, only both ends.
- Whatever the bytes, nothing raises. Memory is bounded, and so is the time a byte takes, whoever sent it.
- A compressed answer is decompressed on the side, up to a bound. What cannot be read is an estimate.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import orjson
from msgspec.structs import astuple

from llmgateway.api.inflate import LOOK_BYTES, Inflater, TooMuch

FIRST_BYTES: Final = 4 * 1024
LAST_BYTES: Final = 16 * 1024
PIECE_BYTES: Final = 40
"""What a piece takes beside its bytes."""

# No words of a model match: inside a JSON string a quote has a backslash before it. No match goes beyond its
# line, and no attempt far beyond a brace, so that no bytes make them slow. That `delta` comes without its
# first quote, and the plainest shapes on a line of their own, halves the time.
_TEXT_KEYS: Final = rb"content|reasoning_content|reasoning|text|thinking|partial_json|arguments|name|refusal"
_DELTA: Final = re.compile(
    rb'delta"(?:'
    rb':\{"content":"[^"]'
    rb'|:\{(?:"\w++":(?:"\w*+"|null),)++"(?:content|text|reasoning(?:_content)?)":"[^"]'
    rb'| *+: *+"[^"]'  # Responses
    rb'| *+: *+\{[^{}\n]*?(?:\{[^{}\n]*?){0,3}?"(?:' + _TEXT_KEYS + rb')" *+: *+"[^"]'
    rb")"
)
_CHOICE: Final = re.compile(rb'"choices" *+: *+\[ *+\{[^{}\n]*?"text" *+: *+"[^"]')  # of a plain completion
_BEGINNING: Final = re.compile(rb'"type" *+: *+"message_start"')
_OBJECT: Final = re.compile(rb" *+: *+(\{(?:[^{}\n]++|\{(?:[^{}\n]++|\{[^{}\n]*+\})*+\})*+\})")
_OBJECT_BYTES: Final = 2048

_USAGE: Final = b'"usage"'
_PLAIN: Final = re.compile(
    rb'"usage": ?\{"prompt_tokens": ?(0|[1-9]\d{0,8}), ?"completion_tokens": ?(0|[1-9]\d{0,8}), ?'
    rb'"total_tokens": ?(?:0|[1-9]\d{0,8})\}'
)
_TIMINGS: Final = b'"timings"'
_COMPLETION: Final = ("completion_tokens", "output_tokens")
_CACHED: Final = ("cached_tokens", "cache_read_input_tokens", "cache_n")
_COUNTS: Final = frozenset(
    "prompt_tokens input_tokens completion_tokens output_tokens total_tokens "
    "cache_read_input_tokens cache_creation_input_tokens "
    "prompt_n cache_n predicted_n".split()
)
_BREAKDOWNS: Final = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
)
# One of these in every event tells all anew; what else is told adds up over the events.
_WHOLE: Final = (frozenset({"prompt_tokens", "completion_tokens"}), frozenset({"prompt_n", "predicted_n"}))
_MOST_TOKENS: Final = 1_000_000_000  # more is no count, but an attempt at somebody's limits


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """What a request cost.

    `prompt` includes what was cached, `completion` what was thought; `estimated` says that the server did not
    tell all of it.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    estimated: bool = True


def added_up(some: Iterable[Tokens]) -> Sequence[int]:
    """Add up what requests cost, field by field, in their order; the last is how many are estimates."""
    return tuple(map(sum, zip(*map(astuple, some), strict=True))) or (0, 0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Meter:
    """Watches one answer go by. `coding` is its Content-Encoding."""

    sse: bool
    coding: bytes = b""
    _inflater: Inflater | None = None
    _readable: bool = True
    _fresh: list[bytes] = field(default_factory=list)
    """What has come since the last look."""
    _fresh_bytes: int = 0
    """How much memory that takes."""
    _buffer: bytearray = field(default_factory=bytearray)
    _output: int = 0
    _usage: dict[str, int] = field(default_factory=dict)
    _timings: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.coding:
            coding = self.coding.strip().lower()
            self._inflater = Inflater(coding) if coding in Inflater.CODINGS else None
            self._readable = self._inflater is not None or coding in (b"", b"identity")

    def feed(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        if self._inflater is not None or not self._readable:
            self._inflate(data)
            return
        self._fresh.append(data)
        self._fresh_bytes += len(data) + PIECE_BYTES
        if self._fresh_bytes >= LOOK_BYTES:
            self._look()

    @property
    def output_so_far(self) -> int:
        """The number of events with text that have come in; 0 for what is no stream."""
        self._look()
        return self._output

    def tokens(self, prompt_estimate: int) -> Tokens:
        """Give what the answer cost, now that it is over: as the server told it, else an estimate."""
        if (plain := self._told_plainly()) is not None:
            self._fresh.clear()  # what has been paid for need not be kept until it is booked
            self._buffer.clear()
            return plain
        self._look()
        self._read(self._buffer)
        self._buffer.clear()
        told = self._timings | self._usage
        prompt, completion = _prompt(told), self._completion()
        estimated = prompt is None or completion is None or not self._readable
        prompt = prompt_estimate if prompt is None else prompt
        completion = self._output if completion is None else completion
        cached = _told(told, *_CACHED) or 0
        reasoning = told.get("reasoning_tokens", 0)
        return Tokens(prompt, completion, min(cached, prompt), min(reasoning, completion), estimated)

    def _told_plainly(self) -> Tokens | None:
        """Read what most servers tell at the end of most answers, without more ado than it needs.

        None where the longer way might come to another result.
        """
        if self._usage or self._timings or not self._readable:
            return None
        one_piece = len(self._fresh) == 1 and not self._buffer
        buffer = self._fresh[0] if one_piece else self._gather()
        at = buffer.rfind(_USAGE)
        if at < 0 or at < len(buffer) - LAST_BYTES or buffer.find(_TIMINGS) >= 0:
            return None
        if (plain := _PLAIN.match(buffer, at)) is None:
            return None
        prompt, completion = plain.groups()
        if completion == b"0":
            return None
        return Tokens(int(prompt), int(completion), 0, 0, False)

    def _completion(self) -> int | None:
        """Give the output as it was told, unless the stream shows that this cannot be all of it."""
        completion = _told(self._usage, *_COMPLETION)
        if completion is None:
            completion = self._timings.get("predicted_n")
            if completion is not None and completion < self._output:
                return None  # of several choices each has timings of its own
        if completion is None and not self.sse and self._usage:
            return 0  # an embedding has no output
        return None if completion == 0 and self._output else completion

    def _inflate(self, data: bytes) -> None:
        """Look at a compressed piece, as long as its answer can be read."""
        if self._inflater is None:
            return
        try:
            for piece in self._inflater.inflate(data):
                self._fresh.append(piece)
                self._look()
        except (zlib.error, TooMuch):
            self._inflater, self._readable = None, False

    def _look(self) -> None:
        """Read the lines that are whole by now, and bound what stays."""
        buffer = self._gather()
        if self.sse and (end := buffer.rfind(b"\n") + 1):
            self._read(buffer[:end])
            del buffer[:end]
        if len(buffer) > 2 * (FIRST_BYTES + LAST_BYTES):
            del buffer[FIRST_BYTES : -2 * LAST_BYTES]

    def _gather(self) -> bytearray:
        """Put what has come to what was left."""
        self._buffer += b"".join(self._fresh)
        self._fresh.clear()
        self._fresh_bytes = 0
        return self._buffer

    def _read(self, part: bytearray) -> None:
        """Learn from whole lines of a stream, or from what was kept of an answer that is none."""
        if not self.sse:
            part = _ends(part.replace(b"\n", b" "))
        elif _has_a_long_line(part):
            part = bytearray(b"\n").join(map(_ends, part.split(b"\n")))
        if self.sse:
            self._output += len(_DELTA.findall(part))
            if part.rfind(b'"text"') >= 0:
                self._output += len(_CHOICE.findall(part))
        if (at := part.rfind(_USAGE)) >= 0:
            self._usage = _last_word(part, _USAGE, at, self._usage)
        if (at := part.rfind(_TIMINGS)) >= 0:
            self._timings = _last_word(part, _TIMINGS, at, self._timings)


def _has_a_long_line(part: bytearray) -> bool:
    """Tell whether a line is longer than is read of one, without taking the lines apart."""
    at, most = 0, FIRST_BYTES + LAST_BYTES
    while len(part) - at > most:
        end = part.rfind(b"\n", at, at + most + 1)
        if end < 0:
            return True
        at = end + 1
    return False


def _ends(line: bytearray) -> bytearray:
    """Give both ends of a line that is too long, as two lines: what was between them may be gone already."""
    if len(line) <= FIRST_BYTES + LAST_BYTES:
        return line
    return line[:FIRST_BYTES] + b"\n" + line[-LAST_BYTES:]


def _prompt(told: dict[str, int]) -> int | None:
    """Add up what is told apart: Anthropic and llama.cpp's timings do not count what was cached."""
    if "prompt_tokens" in told:
        return told["prompt_tokens"]
    if "input_tokens" in told:
        kept = told.get("cache_read_input_tokens", 0) + told.get("cache_creation_input_tokens", 0)
        return told["input_tokens"] + kept
    if "prompt_n" in told:
        return told["prompt_n"] + told.get("cache_n", 0)
    return None if _told(told, *_COMPLETION) is not None else told.get("total_tokens")  # some rerankers


def _last_word(part: bytearray, mark: bytes, at: int, told: dict[str, int]) -> dict[str, int]:
    """Add what the objects behind a mark tell to what was told before; `at` is where the last one stands.

    Backwards, since a stream may tell all of it in every event.
    """
    later: dict[str, int] = {}
    while at >= 0:
        counts = _counts(part, at + len(mark))
        if "output_tokens" in counts and _begins(part, at):
            del counts["output_tokens"]
        if counts:
            later = counts | later
            if any(counts.keys() >= whole for whole in _WHOLE):
                return later
        at = part.rfind(mark, 0, at)
    return told | later


def _counts(part: bytearray, start: int) -> dict[str, int]:
    """Read `: {...}`, and keep the counts that we know."""
    if part.startswith(b":null", start):  # in every event but the last, on some servers
        return {}
    found = _OBJECT.match(part, start, start + _OBJECT_BYTES)
    if found is None:
        return {}
    try:
        value: dict[str, Any] = orjson.loads(found[1])
    except orjson.JSONDecodeError:
        return {}
    counts = {name: value[name] for name in _COUNTS & value.keys() if _is_count(value[name])}
    for name, detail in _BREAKDOWNS:
        details = value.get(name)
        if isinstance(details, dict) and _is_count(details.get(detail)):
            counts[detail] = details[detail]
    return counts


def _begins(part: bytearray, at: int) -> bool:
    """Tell whether a place is in the event that begins Anthropic's answers, and cannot know their output."""
    start = part.rfind(b"\n", 0, at) + 1
    end = part.find(b"\n", start, start + FIRST_BYTES)
    return _BEGINNING.search(part, start, end if end >= 0 else start + FIRST_BYTES) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def _told(told: dict[str, int], *names: str) -> int | None:
    return next((told[name] for name in names if name in told), None)
