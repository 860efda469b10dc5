"""How much memory the bodies of all requests hold together, within a bound.

Rules:

- A body is charged before it is held: as it was declared, or as it grows.
- Small bodies always get in, and are not counted.
- Whoever takes a Hold gives it back, sooner or later, and once.
"""

from types import TracebackType
from typing import Final

from llmgateway.errors import OVERLOADED, GatewayError

SMALL_BYTES: Final = 64 * 1024
RETRY_S: Final = 5


class Room:
    """The memory for bodies."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        """A lower one, when it comes, is for what comes then."""
        self.held_bytes = 0

    def hold(self) -> "Hold":
        """Begin to hold a body. Use as `with`."""
        return Hold(self)


class Hold:
    """What one body takes."""

    __slots__ = ("_bytes", "_room")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def grow_to(self, size_bytes: int) -> None:
        """Hold so much. Raises GatewayError (503) if there is no room for it."""
        more = size_bytes - self._bytes
        if more <= 0 or size_bytes <= SMALL_BYTES:
            return
        room = self._room
        if room.held_bytes + more > room.limit_bytes:
            words = "The requests that are under way hold all the memory that there is for bodies."
            raise GatewayError(OVERLOADED, words, (("Retry-After", str(RETRY_S)),))
        room.held_bytes += more
        self._bytes = size_bytes

    def release(self) -> None:
        """Give it back: the body is held no more."""
        self._room.held_bytes -= self._bytes
        self._bytes = 0
