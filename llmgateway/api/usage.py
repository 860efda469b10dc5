"""Read token counts off passing bytes, without holding or touching them.

An answer tells its usage in a few small objects: `usage`, in the words of some dialect, llama.cpp's
`timings`. A stream may tell it in every event, and the last word counts; or near its end; or, cut off, never.
Then its output is estimated as the number of events that carry a piece of text, which is about the number of
tokens; those that open a stream, close it, or keep it alive carry none.

The rules:

- However an answer is cut into pieces, it costs the same. Of a stream only whole lines are read, some
  kilobytes at a time. What an answer tells is found wherever it stands, in long lines too; whether they carry
  output, their beginning says.
- Whatever the bytes, nothing raises. Memory is bounded, and so is the time a byte takes, whoever sent it.
- A compressed answer is decompressed on the side, up to a bound. What cannot be read is an estimate.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import orjson
from msgspec.structs import astuple

from llmgateway.api.dialect import Framing, begins_events
from llmgateway.api.endings import ENDINGS, ENDINGS_IN, OTHER_CHOICES, TAIL_BYTES, Endings, ended_choices
from llmgateway.api.inflate import LOOK_BYTES, Inflater, TooMuch
from llmgateway.api.output import bytes_of_output, tokens_of
from llmgateway.api.shapes import (
    LONG_PIECE_BYTES,
    OBJECT_BYTES,
    SHAPES,
    SHAPES_IN,
    TIMED,
    TIMINGS,
    USAGE,
    Shapes,
)

FIRST_BYTES: Final = 4 * 1024
SAMPLE_BYTES: Final = 4 * 1024
LAST_BYTES: Final = 16 * 1024
MOST_BYTES: Final = 2 * (FIRST_BYTES + LAST_BYTES)
_OVERLAP: Final = OBJECT_BYTES + 64
"""What is kept of a long line beside its beginning: as much as an object may take that has begun."""
PIECE_BYTES: Final = 40
"""What a piece takes beside its bytes."""
WORDS_IN: Final[Mapping[Framing, tuple[Shapes, Endings]]] = {
    framing: (shapes, ENDINGS_IN[framing]) for framing, shapes in SHAPES_IN.items()
}
"""What a meter has to know to read the answers of the dialects that stream in a framing."""


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
    """Watches one answer go by.

    `stream` says that it comes in events, line by line; `coding` is its Content-Encoding.
    """

    stream: bool
    coding: bytes = b""
    writes: bool = False
    """Whether a model writes in it, so that what nobody tells of its output is estimated by bytes. It is
    then taken for a stream as well if it looks like one."""
    shapes: Shapes = SHAPES
    endings: Endings = ENDINGS
    _inflater: Inflater | None = None
    _readable: bool = True
    _fresh: list[bytes] = field(default_factory=list)
    """What has come since the last look."""
    _fresh_bytes: int = 0
    """How much memory that takes."""
    _buffer: bytearray = field(default_factory=bytearray)
    _output: int = 0
    _sampled: int = 0
    """How much of the stream was looked at for how much text its pieces hold."""
    _sample: tuple[int, int] = (0, 0)
    """The pieces of output in that, and the bytes of their text."""
    _long_bytes: int = 0
    """Of text in long lines, beyond their beginnings."""
    _dropped: int = 0
    """How much of the line in the buffer was read, and let go; 0 if all of it is there."""
    _seen: int = 0
    """Up to where the buffer was read."""
    _unread: int = 0
    """Bytes of what cannot be read."""
    _unsure: bool = False
    """Whether it may turn out to be a stream."""
    _usage: dict[str, int] = field(default_factory=dict)
    _timings: dict[str, int] = field(default_factory=dict)
    _tail: bytes = b""
    """Of the lines of a stream that were looked at, the last."""
    _several: bool = False
    """Whether there are several choices, so that one may end long before the stream does."""
    _ended_choices: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._unsure = self.writes and not self.stream
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
        return self._pieces_written() if self.stream else 0

    def _pieces_written(self) -> int:
        """Give the output by its pieces, or by their bytes where they hold more than a token each."""
        pieces, text_bytes = self._sample
        if not self.writes or not pieces:
            return self._output
        all_bytes = text_bytes * self._output // pieces + self._long_bytes
        if all_bytes > LONG_PIECE_BYTES * self._output:
            return max(self._output, tokens_of(all_bytes))
        return self._output

    def _estimate(self, rest: bytes) -> int:
        """Guess the output; `rest` is what is left of an answer that is no stream."""
        if self._output or not self.writes:
            return self._pieces_written()
        if not self._readable:
            return tokens_of(self._unread)
        if self.stream or not rest:
            return 0
        return tokens_of(self._dropped + len(rest) if self._dropped else bytes_of_output(rest))

    def has_ended(self, *, closed: bool = True) -> bool:
        """Tell whether a stream has shown its end; `closed` says that nothing has gone wrong with it.

        It must be asked before `tokens`.
        """
        self._look()
        done = self._ended_choices.union(ended_choices(self._tail)) if closed else set()
        return self.stream and self.endings.has_ended(self._tail, self._buffer, done)

    def error(self) -> bytes | None:
        """Give the error that a stream has told in its last lines; None if it told none, as most.

        It must be asked before `tokens`.
        """
        if not self.stream or not (self._tail or self._buffer or self._fresh):
            return None
        tail = self._tail + self._gather()
        return self.endings.error(tail) if b"error" in tail or b"failed" in tail else None

    def tokens(self, prompt_estimate: int) -> Tokens:
        """Give what the answer cost, now that it is over: as the server told it, else an estimate."""
        if (plain := self._told_plainly()) is not None:
            self._fresh.clear()  # what has been paid for need not be kept until it is booked
            self._forget()
            return plain
        self._look()
        dropped, rest = self._dropped, bytes(self._buffer)
        self._read(self._buffer)
        self._dropped = dropped
        self._forget()
        told = self._timings | self._usage
        usage = self.shapes.usage
        prompt, completion = usage.prompt(told), self._completion()
        estimated = prompt is None or completion is None or not self._readable
        prompt = prompt_estimate if prompt is None else prompt
        completion = self._estimate(rest) if completion is None else completion
        cached, reasoning = min(usage.cached(told), prompt), min(usage.reasoning(told), completion)
        return Tokens(prompt, completion, cached, reasoning, estimated)

    def _forget(self) -> None:
        self._buffer.clear()
        self._tail = b""

    def _told_plainly(self) -> Tokens | None:
        """Read what most servers tell at the end of most answers, without more ado than it needs.

        None where the longer way might come to another result.
        """
        if self._usage or self._timings or not self._readable:
            return None
        one_piece = len(self._fresh) == 1 and not self._buffer
        buffer = self._fresh[0] if one_piece else self._gather()
        at = buffer.rfind(USAGE)
        if at < self._seen or buffer.find(TIMINGS) >= 0:
            return None
        if (plain := self.shapes.usage.plain(buffer, at)) is None:
            return None
        prompt, completion = plain
        if completion == b"0":
            return None
        return Tokens(int(prompt), int(completion), 0, 0, False)

    def _completion(self) -> int | None:
        """Give the output as it was told, unless the stream shows that this cannot be all of it."""
        completion = self.shapes.usage.completion(self._usage)
        if completion is None:
            completion = self._timings.get(TIMED.completion)
            if completion is not None and completion < self._output:
                return None  # of several choices each has timings of its own
        if completion is None and not self.stream and self._usage:
            return 0  # an embedding has no output
        return None if completion == 0 and self._output else completion

    def _inflate(self, data: bytes) -> None:
        """Look at a compressed piece, as long as its answer can be read."""
        self._unread += len(data)
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
        if self.stream and (end := buffer.rfind(b"\n") + 1):
            self._read(part := buffer[:end])
            self._tail = self._tail[-TAIL_BYTES:] + part
            if len(self._tail) < TAIL_BYTES:
                self._several = self._several or any(each in self._tail for each in OTHER_CHOICES)
            if self._several:
                self._ended_choices.update(ended_choices(part))
            del buffer[:end]
        if len(buffer) > MOST_BYTES:
            until = len(buffer) - _OVERLAP
            self._learn(buffer if self.stream else buffer.replace(b"\n", b" "), until)
            del buffer[FIRST_BYTES:until]
            self._dropped += until - FIRST_BYTES
            self._seen = FIRST_BYTES

    def _gather(self) -> bytearray:
        """Put what has come to what was left."""
        self._buffer += b"".join(self._fresh)
        self._fresh.clear()
        self._fresh_bytes = 0
        if self._unsure:
            self._make_sure()
        return self._buffer

    def _make_sure(self) -> None:
        """Tell from what came first whether it is a stream: of events, or of lines that are JSON each."""
        buffer = self._buffer
        begins = begins_events(bytes(buffer[:FIRST_BYTES]))
        if begins is None:
            self._unsure = len(buffer) < FIRST_BYTES
        elif begins or not buffer.startswith(b"{"):
            self.stream, self._unsure = begins, False
        elif (end := buffer.find(b"\n", 0, FIRST_BYTES)) >= 0:
            self.stream, self._unsure = _is_json(buffer[:end]), False
        else:
            self._unsure = len(buffer) < FIRST_BYTES

    def _read(self, part: bytearray) -> None:
        """Learn from whole lines of a stream, or from what was kept of an answer that is none."""
        if not self.stream:
            part = part.replace(b"\n", b" ")
        self._learn(part, len(part))
        if self.stream:
            if self._dropped or _has_a_long_line(part):
                part = self._beginnings(part)
            self._output += self.shapes.pieces.count(part)
            if self._sampled < SAMPLE_BYTES:
                self._take_sample(part)
        self._seen = self._dropped = 0

    def _take_sample(self, part: bytearray) -> None:
        """Look at how much text the first pieces hold: to do so for all would take half as long again.

        Of lines that are cut into parts in another way the sample is the same.
        """
        pieces, text_bytes = self.shapes.pieces.measure(part[: SAMPLE_BYTES - self._sampled])
        self._sample = self._sample[0] + pieces, self._sample[1] + text_bytes
        self._sampled += len(part)

    def _learn(self, part: bytearray, until: int) -> None:
        """Read the usage that is told behind what was read before, and begins before `until`."""
        since, usage = self._seen, self.shapes.usage
        if (at := part.rfind(USAGE, since, until + len(USAGE) - 1)) >= 0:
            self._usage = usage.last_word(part, USAGE, at, self._usage, since)
        if (at := part.rfind(TIMINGS, since, until + len(TIMINGS) - 1)) >= 0:
            self._timings = usage.last_word(part, TIMINGS, at, self._timings, since)
        if usage.is_flat:
            self._usage |= usage.told_flatly(part, since, until)

    def _beginnings(self, part: bytearray) -> bytearray:
        """Leave of long lines what they begin with; what else they have is text if they begin with text."""
        lines = part.split(b"\n")
        for number, line in enumerate(lines):
            dropped = 0 if number else self._dropped
            if dropped or len(line) > FIRST_BYTES + LAST_BYTES:
                lines[number] = line[:FIRST_BYTES]
                if self.shapes.pieces.count(lines[number]):
                    self._long_bytes += dropped + len(line) - FIRST_BYTES
        return bytearray(b"\n").join(lines)


def _is_json(line: bytearray) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _has_a_long_line(part: bytearray) -> bool:
    """Tell whether a line is longer than is read of one, without taking the lines apart."""
    at, most = 0, FIRST_BYTES + LAST_BYTES
    while len(part) - at > most:
        end = part.rfind(b"\n", at, at + most + 1)
        if end < 0:
            return True
        at = end + 1
    return False
