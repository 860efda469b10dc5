"""Decompress an answer on the side, piece by piece and within a bound, so that it can be looked at."""

import zlib
from collections.abc import Iterator
from typing import Any, Final

LOOK_BYTES: Final = 8 * 1024
"""What comes in between two looks: a look costs more than a byte."""
MOST_INFLATED_BYTES: Final = 16 * 1024 * 1024


class TooMuch(Exception):
    """An answer decompresses to more than is worth reading."""


class Inflater:
    """Decompresses one answer piece by piece, up to a bound: a bomb costs neither memory nor seconds."""

    CODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})

    __slots__ = ("_allowance", "_head", "_left", "_stream", "_wrapped")

    def __init__(self, coding: bytes, *, allowance: int = 0) -> None:
        """Begin; each byte that comes in raises the bound by `allowance`."""
        self._allowance = allowance
        self._wrapped = coding != b"deflate"
        self._head = b""
        self._left = MOST_INFLATED_BYTES
        self._stream: Any = None

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Yield what a piece decompresses to, in small steps. Raises zlib.error and TooMuch."""
        if self._stream is not None and self._stream.eof:
            return  # zlib would keep whatever else comes
        self._left += self._allowance * len(data)
        if self._stream is None:
            self._head += data
            if len(self._head) < 2:
                return
            self._stream, data, self._head = zlib.decompressobj(self._window()), self._head, b""
        step = b" " * LOOK_BYTES
        while len(step) == LOOK_BYTES:  # a shorter one says that there is no more for now
            step = self._stream.decompress(data, LOOK_BYTES)
            data = self._stream.unconsumed_tail
            yield step[: self._left]
            self._left -= len(step)
            if self._left < 0:
                raise TooMuch

    def _window(self) -> int:
        """Tell zlib the format. `deflate` is to have zlib's header (RFC 9110 8.4.1.2); some leave it out."""
        if self._wrapped:
            return zlib.MAX_WBITS | 16
        headed = self._head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(self._head[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if headed else -zlib.MAX_WBITS
