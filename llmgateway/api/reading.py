"""What one answer tells of its cost, and what its output amounts to, as far as it has come.

The rules:

- However an answer is cut into pieces, it costs the same, unless it tells of that hundreds of times and never
  all of it. Of a stream only whole lines are read.
- What an answer tells is found wherever it stands, in long lines too; whether they carry output, their
  beginning says.
- Whatever the bytes, nothing raises. Memory is bounded, and so is the time a byte takes, whoever sent it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from llmgateway.api.dialect import begins_events
from llmgateway.api.endings import OTHER_CHOICES, TAIL_BYTES, Endings, ended_choices
from llmgateway.api.output import bytes_of_output, tokens_of
from llmgateway.api.shapes import LONG_PIECE_BYTES, OBJECT_BYTES, TIMED, TIMINGS, USAGE, Shapes

FIRST_BYTES: Final = 4 * 1024
SAMPLE_BYTES: Final = 4 * 1024
LAST_BYTES: Final = 16 * 1024
MOST_BYTES: Final = 2 * (FIRST_BYTES + LAST_BYTES)
_OVERLAP: Final = OBJECT_BYTES + 64
"""What is kept of a long line beside its beginning: as much as an object may take that has begun."""
_LINE_BREAKS: Final = bytes.maketrans(b"\n", b" ")


@dataclass(slots=True, eq=False)
class Reading:
    """What has been read of one answer, and what is yet to be read of it."""

    stream: bool
    """Whether it comes in events, line by line."""
    writes: bool
    """Whether a model writes in it; it is then taken for a stream as well if it looks like one."""
    shapes: Shapes
    endings: Endings
    _buffer: bytearray = field(default_factory=bytearray)
    _output: int = 0
    _sample: bytearray = field(default_factory=bytearray)
    """The first lines of a stream, in whose pieces it is seen how much text one holds."""
    _measured: tuple[int, int, int] = (0, 0, 0)
    """How much of the sample was measured, the pieces in that, and the bytes of their text."""
    _long_bytes: int = 0
    """Of text in long lines, beyond their beginnings."""
    _dropped: int = 0
    """How much of the line in the buffer was read, and let go; 0 if all of it is there."""
    _seen: int = 0
    """Up to where the buffer was read."""
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

    def take(self, some: Sequence[bytes]) -> None:
        """Take in what has come next."""
        self._buffer += b"".join(some)
        if self._unsure:
            self._make_sure()

    def look(self) -> None:
        """Read the lines that are whole by now, and bound what stays."""
        buffer = self._buffer
        if self.stream and (end := buffer.rfind(b"\n") + 1):
            self._read(part := buffer[:end])
            self._tail = self._tail[-TAIL_BYTES:] + part
            if self._several:
                self._ended_choices.update(ended_choices(part))
            del buffer[:end]
        if len(buffer) > MOST_BYTES:
            until = len(buffer) - _OVERLAP
            self._learn(buffer if self.stream else _in_one_line(buffer), until)
            del buffer[FIRST_BYTES:until]
            self._dropped += until - FIRST_BYTES
            self._seen = FIRST_BYTES

    # -- how it stands

    def output(self) -> int:
        """Give the output by its pieces, or by their bytes where they hold more than a token each."""
        if not self.writes or not self._output:
            return self._output
        if self._measured[0] != len(self._sample):
            self._measured = len(self._sample), *self.shapes.pieces.measure(self._sample)
        _, pieces, text_bytes = self._measured
        if not pieces:
            return self._output
        all_bytes = text_bytes * self._output // pieces + self._long_bytes
        if all_bytes > LONG_PIECE_BYTES * self._output:
            return max(self._output, tokens_of(all_bytes))
        return self._output

    def has_ended(self, *, closed: bool) -> bool:
        """Tell whether a stream has shown its end; `closed` says that nothing has gone wrong with it."""
        done = self._ended_choices.union(ended_choices(self._tail)) if closed else set()
        return self.stream and self.endings.has_ended(self._tail, self._buffer, done)

    def error(self) -> bytes | None:
        """Give the error that a stream has told in its last lines; None if it told none, as most."""
        tail = _last_lines(self._tail + self._buffer)
        return self.endings.error(tail) if b"error" in tail or b"failed" in tail else None

    def told_plainly(self) -> Sequence[int] | None:
        """Give prompt and completion where the end tells them in the plainest way, and nothing did before."""
        if self._usage or self._timings:
            return None
        return told_plainly(self._buffer, self.shapes, self._seen)

    def cost(self, prompt_estimate: int, unread_bytes: int) -> tuple[int, int, int, int, bool]:
        """Give what the answer cost, as `Tokens` has it, now that it is over, and forget it.

        `unread_bytes` could not be read, if there are any.
        """
        dropped, rest = self._dropped, bytes(self._buffer)
        self._read(self._buffer)
        self._dropped = dropped
        told, usage = self._timings | self._usage, self.shapes.usage
        prompt, completion = usage.prompt(told), self._completion()
        estimated = prompt is None or completion is None or unread_bytes > 0
        prompt = prompt_estimate if prompt is None else prompt
        completion = self._estimate(rest, unread_bytes) if completion is None else completion
        self.forget()
        cached, reasoning = min(usage.cached(told), prompt), min(usage.reasoning(told), completion)
        return prompt, completion, cached, reasoning, estimated

    def forget(self) -> None:
        """Let go of what has been paid for: it may be a moment until it is booked."""
        self._buffer.clear()
        self._sample.clear()
        self._tail = b""

    # -- reading

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
            part = _in_one_line(part)
        self._learn(part, len(part))
        if self.stream:
            if self._dropped or _has_a_long_line(part):
                part = self._beginnings(part)
            self._output += self.shapes.pieces.count(part)
            if len(self._sample) < SAMPLE_BYTES:  # to measure all would take half as long again
                self._sample += part[: SAMPLE_BYTES - len(self._sample)]
                self._several = any(each in self._sample for each in OTHER_CHOICES)
        self._seen = self._dropped = 0

    def _learn(self, part: bytearray, until: int) -> None:
        """Read the usage that is told behind what was read before, and begins before `until`."""
        since, usage = self._seen, self.shapes.usage
        if (at := part.rfind(USAGE, since, until + len(USAGE) - 1)) >= 0:
            self._usage = usage.last_word(part, USAGE, at, self._usage, since)
        if (at := part.rfind(TIMINGS, since, until + len(TIMINGS) - 1)) >= 0:
            self._timings = usage.last_word(part, TIMINGS, at, self._timings, since)
        if usage.is_flat:
            self._usage |= usage.told_flatly(part, since, until, MOST_BYTES)

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

    # -- at its end

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

    def _estimate(self, rest: bytes, unread_bytes: int) -> int:
        """Guess the output; `rest` is what is left of an answer that is no stream."""
        if self._output or not self.writes:
            return self.output()
        if unread_bytes:
            return tokens_of(unread_bytes)
        if self.stream or not rest:
            return 0
        return tokens_of(self._dropped + len(rest) if self._dropped else bytes_of_output(rest))


def told_plainly(answer: bytes | bytearray, shapes: Shapes, since: int = 0) -> Sequence[int] | None:
    """Read prompt and completion as most servers tell them at the end, without more ado than that needs.

    None where the longer way might come to another result.
    """
    at = answer.rfind(USAGE)
    if at < since or answer.find(TIMINGS) >= 0:
        return None
    if (plain := shapes.usage.plain(answer, at)) is None:
        return None
    prompt, completion = plain
    return None if completion == b"0" else (int(prompt), int(completion))


def _last_lines(tail: bytes) -> bytes:
    """Give the last lines whole, and the one before them, which may name the event that they are."""
    at = tail.rfind(b"\n", 0, max(0, len(tail) - TAIL_BYTES))
    return tail[tail.rfind(b"\n", 0, max(0, at)) + 1 :]


def _in_one_line(part: bytearray) -> bytearray:
    """Give it without line breaks. However many there are, that takes no longer than with a few of them."""
    return part.translate(_LINE_BREAKS) if b"\n" in part else part


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
