"""What a session has cost: the usage that its provider's events tell, added up.

Rules:

- Of a message a bounded part is kept, and only while it passes; one that is longer is audio, and tells none.
- Where both ends have agreed on a compression (RFC 7692) it is undone on the side, up to a bound. What cannot
  be read does not count.
"""

import re
import zlib
from typing import Any, Final

from llmgateway.api.usage import Meter, Tokens, added_up
from llmgateway.http.frames import OPCODE, TEXT, Piece

MOST_BYTES: Final = 256 * 1024
MOST_INFLATED_BYTES: Final = 16 * 1024 * 1024
_STEP_BYTES: Final = 64 * 1024
_COMPRESSED: Final = 0x40
_LEFT_OUT: Final = b"\x00\x00\xff\xff"  # of the end of every compressed message
_USAGE: Final = b'"usage"'
_SPELLINGS: Final = b'"input_token_details"', b'"input_tokens_details"'  # theirs, and that of all else
_ALONE: Final = re.compile(rb"(?mi)^sec-websocket-extensions:[^\r\n]*\bserver_no_context_takeover\b")


class Overheard:
    """Hears the messages of a session's provider, and counts."""

    def __init__(self, answer_lines: bytes) -> None:
        """Begin behind an answer of 101, whose fields say how messages are compressed, if they are."""
        self.tokens: Tokens | None = None
        """What has been told by now; None if nothing was."""
        self._each_alone = _ALONE.search(answer_lines) is not None
        self._stream: Any = None  # it takes 40 kB, and most sessions never compress
        self._legible = True
        self._compressed = False
        self._inflated = 0
        self._kept = bytearray()
        self._keeps = False

    def hear(self, piece: Piece) -> None:
        """Hear what has just been written to the client."""
        if piece.opening is not None and piece.opening & OPCODE:  # else an earlier frame's message goes on
            self._begin(piece.opening)
        self._take(piece.payload)
        if piece.last:
            if self._compressed:
                self._take(_LEFT_OUT)
            self._count()

    def _begin(self, opening: int) -> None:
        self._kept.clear()
        self._keeps = opening & OPCODE == TEXT
        self._compressed = bool(opening & _COMPRESSED)
        self._inflated = 0
        if self._compressed and (self._each_alone or self._stream is None):
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def _take(self, data: bytes) -> None:
        if not self._compressed:
            self._keep(data)
        elif self._legible:
            try:
                self._inflate(data)
            except zlib.error:
                self._legible = self._keeps = False

    def _inflate(self, data: bytes) -> None:
        """Undo the compression, also of what is not kept: the next message may refer to it. May raise."""
        step = b" " * _STEP_BYTES
        while len(step) == _STEP_BYTES:  # a shorter one says that there is no more for now
            step = self._stream.decompress(data, _STEP_BYTES)
            data = self._stream.unconsumed_tail
            self._inflated += len(step)
            if self._inflated > MOST_INFLATED_BYTES:
                raise zlib.error("a bomb")
            self._keep(step)

    def _keep(self, data: bytes) -> None:
        if self._keeps:
            self._kept += data
            if len(self._kept) > MOST_BYTES:
                self._keeps = False
                self._kept.clear()

    def _count(self) -> None:
        if self._keeps and _USAGE in self._kept:
            meter = Meter(stream=False)
            meter.feed(bytes(self._kept.replace(*_SPELLINGS)))
            told = meter.tokens(0)
            if not told.estimated:
                self.tokens = told if self.tokens is None else _sum(self.tokens, told)
        self._keeps = False
        self._kept.clear()


def _sum(one: Tokens, other: Tokens) -> Tokens:
    prompt, completion, cached, reasoning, _ = added_up((one, other))
    return Tokens(prompt, completion, cached, reasoning, estimated=False)
