"""Short stand-ins for what was said, by which a conversation is known again.

They are Python's own hashes: SipHash with a secret of this process, 64 bits that nobody can aim at, and for a
long prompt five times as fast as blake2b. That wants a copy, so what is very long (images) is hashed as it
stands, and piece by piece where it is still coming.
"""

from hashlib import blake2b
from typing import Final

from llmgateway.api.endpoints import Buffer

COPIED_BYTES: Final = 1 << 20
"""What is longer is not copied."""
BLOCK_BYTES: Final = 256
"""Of plain text, which grows from turn to turn, whole blocks are taken."""
_DIGEST_BYTES: Final = 16


def print_of(content: Buffer) -> int:
    """Give the stand-in for a message, whole."""
    if len(content) > COPIED_BYTES:
        long = LongPrint()
        long.add(content)
        return long.value()
    return hash(content if isinstance(content, bytes) else bytes(content))


class LongPrint:
    """The stand-in for a message of more than COPIED_BYTES, made piece by piece."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST_BYTES)

    def add(self, piece: Buffer | bytearray) -> None:
        """Take in the next piece."""
        self._hash.update(piece)

    def value(self) -> int:
        """Give the stand-in for all that was added."""
        return hash(self._hash.digest())


def blocks_of(text: Buffer) -> list[Buffer]:
    """Cut a prompt of plain text into whole blocks."""
    return [text[start : start + BLOCK_BYTES] for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES)]
