"""Decompress a request's body piece by piece, to look at it: however much a little of it stands for.

Nothing is given in pieces of more than a step, and nothing is unpacked before it is asked for, so that a bomb
can be stopped. What stands behind an end is more of the body, or an error; that there is no end is one, too.
"""

import sys
import zlib
from collections.abc import Iterator
from typing import Final

from llmgateway.api.peek import STEP_BYTES
from llmgateway.api.unreadable import bad
from llmgateway.errors import GatewayError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MOST_WINDOW_LOG: Final = 23  # 8 MB, as RFC 8878 has it: so much memory a body may have a decoder take


class _Zlib:
    """A stream of gzip, or of deflate with zlib's header (RFC 9110 8.4.1.2) or, as some send it, without."""

    def __init__(self, window: int) -> None:
        self._zlib = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def steps(self, data: bytes) -> Iterator[bytes]:
        step = b" " * STEP_BYTES
        while len(step) == STEP_BYTES:  # a shorter one says that there is no more for now
            step = self._zlib.decompress(data, STEP_BYTES)
            data = self._zlib.unconsumed_tail
            yield step


class _Zstd:
    def __init__(self) -> None:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _MOST_WINDOW_LOG}
        self._zstd = zstd.ZstdDecompressor(options=options)

    @property
    def eof(self) -> bool:
        return self._zstd.eof

    @property
    def unused_data(self) -> bytes:
        return self._zstd.unused_data

    def steps(self, data: bytes) -> Iterator[bytes]:
        yield self._zstd.decompress(data, STEP_BYTES)
        while not self._zstd.eof and not self._zstd.needs_input:
            yield self._zstd.decompress(b"", STEP_BYTES)


class Unpacker:
    """Decompresses one body."""

    CODINGS: Final = frozenset((b"gzip", b"x-gzip", b"deflate", b"zstd"))

    def __init__(self, coding: bytes) -> None:
        """Begin; of `deflate` the first byte tells which it is."""
        self._coding = coding
        self._stream: _Zlib | _Zstd | None = None

    def steps(self, data: bytes) -> Iterator[bytes]:
        """Give what some more data unpacks to, step by step. Raises GatewayError (400)."""
        try:
            while data:
                if self._stream is None:
                    self._stream = self._begun(data[0])
                yield from self._stream.steps(data)
                if not self._stream.eof:
                    return
                data = self._stream.unused_data
                if data and self._coding == b"deflate":
                    raise _broken()
                if data:
                    self._stream = None
        except (zlib.error, zstd.ZstdError):
            raise _broken() from None

    def _begun(self, first: int) -> _Zlib | _Zstd:
        if self._coding == b"zstd":
            return _Zstd()
        if self._coding != b"deflate":
            return _Zlib(zlib.MAX_WBITS | 16)
        headed = first & 0x0F == zlib.DEFLATED and first >> 4 <= 7
        return _Zlib(zlib.MAX_WBITS if headed else -zlib.MAX_WBITS)

    def check_end(self) -> None:
        """Refuse a body that is not whole. Raises GatewayError (400)."""
        if self._stream is not None and not self._stream.eof:
            raise _broken()


def _broken() -> GatewayError:
    return bad("The request body cannot be decompressed as its Content-Encoding says.")
