"""Read token counts off passing bytes, without holding or touching them.

An answer tells its usage in a few small objects: `usage`, in the words of some dialect, llama.cpp's
`timings`. A stream may tell it in every event, and the last word counts; or near its end; or, cut off, never.
Then its output is estimated as the number of events that carry a piece of text, which is about the number of
tokens; those that open a stream, close it, or keep it alive carry none.

The rules:

- What has come is read some kilobytes at a time (`reading`), and what tells it all in one piece, as most
  answers that are no streams, is not even gathered for that.
- Whatever the bytes, nothing raises. Memory is bounded, and so is the time a byte takes, whoever sent it.
- A compressed answer is decompressed on the side, up to a bound. What cannot be read is an estimate.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import astuple

from llmgateway.api.dialect import Framing
from llmgateway.api.endings import ENDINGS, ENDINGS_IN, Endings
from llmgateway.api.inflate import LOOK_BYTES, Inflater, TooMuch
from llmgateway.api.reading import Reading, told_plainly
from llmgateway.api.shapes import SHAPES, SHAPES_IN, Shapes

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


@dataclass(slots=True)
class _Packed:
    """How a compressed answer is unpacked, and how much of it has come."""

    inflater: Inflater | None
    """None for what cannot be read, or no longer."""
    size: int = 0


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
    _packed: _Packed | None = None
    _fresh: list[bytes] = field(default_factory=list)
    """What has come since the last look."""
    _fresh_bytes: int = 0
    """How much memory that takes."""
    _reading: Reading | None = None
    """What came before that; None for what need not be read line by line."""

    def __post_init__(self) -> None:
        if self.coding:
            coding = self.coding.strip().lower()
            if coding in Inflater.CODINGS:
                self._packed = _Packed(Inflater(coding))
            elif coding not in (b"", b"identity"):
                self._packed = _Packed(None)

    def feed(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        if self._packed is not None:
            self._unpack(data, self._packed)
            return
        self._fresh.append(data)
        self._fresh_bytes += len(data) + PIECE_BYTES
        if self._fresh_bytes >= LOOK_BYTES:
            self._look()

    @property
    def output_so_far(self) -> int:
        """The number of events with text that have come in; 0 for what is no stream."""
        reading = self._look()
        return reading.output() if reading.stream else 0

    def has_ended(self, *, closed: bool = True) -> bool:
        """Tell whether a stream has shown its end; `closed` says that nothing has gone wrong with it.

        It must be asked before `tokens`.
        """
        return self._look().has_ended(closed=closed)

    def error(self) -> bytes | None:
        """Give the error that a stream has told in its last lines; None if it told none, as most.

        It must be asked before `tokens`.
        """
        if not self.stream or (self._reading is None and not self._fresh):
            return None
        return self._gather().error()

    def tokens(self, prompt_estimate: int) -> Tokens:
        """Give what the answer cost, now that it is over: as the server told it, else an estimate."""
        unread_bytes = 0
        if self._packed is not None and self._packed.inflater is None:
            unread_bytes = self._packed.size
        elif (plain := self._told_plainly()) is not None:
            self._fresh.clear()  # what has been paid for need not be kept until it is booked
            if self._reading is not None:
                self._reading.forget()
            prompt, completion = plain
            return Tokens(prompt, completion, 0, 0, False)
        return Tokens(*self._look().cost(prompt_estimate, unread_bytes))

    def _told_plainly(self) -> Sequence[int] | None:
        """Give prompt and completion if the end of the answer tells them in the plainest way."""
        if self._reading is None and len(self._fresh) == 1:
            return told_plainly(self._fresh[0], self.shapes)
        return self._gather().told_plainly()

    def _look(self) -> Reading:
        reading = self._gather()
        reading.look()
        return reading

    def _gather(self) -> Reading:
        """Put what has come to what came before."""
        reading = self._reading
        if reading is None:
            reading = self._reading = Reading(self.stream, self.writes, self.shapes, self.endings)
        reading.take(self._fresh)
        self._fresh.clear()
        self._fresh_bytes = 0
        self.stream = reading.stream
        return reading

    def _unpack(self, data: bytes, packed: _Packed) -> None:
        """Look at a compressed piece, as long as its answer can be read."""
        packed.size += len(data)
        if packed.inflater is None:
            return
        try:
            for piece in packed.inflater.inflate(data):
                self._fresh.append(piece)
                self._look()
        except (zlib.error, TooMuch):
            packed.inflater = None
