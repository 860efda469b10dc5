"""Where WebSocket frames begin and end in passing bytes (RFC 6455 5.2), and the few frames of our own.

Bytes in, places out; nothing that passes is held but the header of one frame. A gateway that relays bytes as
they come, with whatever extensions both ends have agreed on, has to know this much: a frame of its own may
stand between two others only, and who has said Close has nothing more to say.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9

GOING_AWAY: Final = 1001
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011

FIN: Final = 0x80
OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_MASKED: Final = 0x80
_MASK_BYTES: Final = 4
_LENGTH: Final = 0x7F
_LONGER: Final = {126: 2, 127: 8}
"""How many bytes hold the length, where the second byte has no room for it."""
_WORDS_BYTES: Final = 123  # of the 125 of a control frame, less the code


class Piece(NamedTuple):
    """A piece of the payload of a data frame, as it came."""

    payload: bytes
    opening: int | None
    """The first byte of the frame's header, flags and opcode, if the frame begins here."""
    last: bool
    """Whether the message ends with it."""


class Follower:
    """Follows the frames of one direction."""

    __slots__ = ("_first", "_header", "_left", "_opening", "_size", "closed")

    def __init__(self) -> None:
        self.closed = False
        """True once a whole Close has passed."""
        self._header = bytearray()
        """Of a frame that has begun, while it is not whole."""
        self._size = 2
        """How long that header is, as far as is known."""
        self._left = 0
        """How much of a frame's payload is still to come."""
        self._first = 0
        self._opening: int | None = None

    @property
    def between(self) -> bool:
        """True where another frame may stand."""
        return not self._header and not self._left

    def follow(self, data: bytes) -> Iterator[Piece]:
        """Follow what passes; gives what data frames hold of it. It must be read to its end."""
        at = 0
        while at < len(data):
            if not self._left:
                at = self._read_header(data, at)
                if self._header:
                    return
            payload = data[at : at + self._left]
            at += len(payload)
            self._left -= len(payload)
            if not self._first & _CONTROL:
                opening, self._opening = self._opening, None
                yield Piece(payload, opening, not self._left and self._first >= FIN)
            elif not self._left and self._first & OPCODE == CLOSE:
                self.closed = True

    def pass_by(self, data: bytes) -> None:
        """Follow what passes, whatever it holds."""
        for _ in self.follow(data):
            pass

    def rest_of_frame(self, data: bytes) -> bytes:
        """Give as much of what comes as belongs to the frame that has begun, and follow that."""
        at = 0
        while at < len(data) and not self.between:
            step = self._left or 1
            self.pass_by(data[at : at + step])
            at += step
        return data[:at]

    def _read_header(self, data: bytes, at: int) -> int:
        """Read on in the header of a frame; gives where it ends, or where the data does."""
        header = self._header
        while at < len(data):
            some = data[at : at + self._size - len(header)]
            header += some
            at += len(some)
            if len(header) == self._size:
                self._size = _header_bytes(header)
                if len(header) == self._size:
                    self._begin()
                    break
        return at

    def _begin(self) -> None:
        header = self._header
        self._first = self._opening = header[0]
        length = header[1] & _LENGTH
        if longer := _LONGER.get(length):
            length = int.from_bytes(header[2 : 2 + longer], "big")
        self._left = length
        self._size = 2
        header.clear()


def _header_bytes(header: bytearray) -> int:
    """Tell from the first two bytes of a header how long it is."""
    second = header[1]
    return 2 + _LONGER.get(second & _LENGTH, 0) + (_MASK_BYTES if second & _MASKED else 0)


def close_frame(code: int, words: str, mask: bytes = b"") -> bytes:
    """Write a Close; words too long for it are cut. `mask` is by chance, and for what goes to a server."""
    said = words.encode("utf-8", "replace")[:_WORDS_BYTES].decode("utf-8", "ignore").encode()
    return _control_frame(CLOSE, code.to_bytes(2, "big") + said, mask)


def ping_frame(mask: bytes = b"") -> bytes:
    """Write a Ping; `mask` as for `close_frame`."""
    return _control_frame(PING, b"", mask)


def _control_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    if not mask:
        return bytes((FIN | opcode, len(payload))) + payload
    masked = bytes(byte ^ mask[at % _MASK_BYTES] for at, byte in enumerate(payload))
    return bytes((FIN | opcode, _MASKED | len(payload))) + mask + masked
