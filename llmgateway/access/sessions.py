"""Sign-ins of the live page: which cookie stands for which API key.

A session is 256 random bits, kept as a digest only, in bounded memory. It holds the digest of the key that
opened it, not the key, and not what the key is good for: that is asked anew at every use, so that a key which
is removed, or expires, ends its sessions at once.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llmgateway.access.keys import digest

COOKIE: Final = "llmgateway"
MOST: Final = 1_000
MOST_OF_A_KEY: Final = 50
"""So that nobody signs others out by signing in again and again."""
LIFE_S: Final = 30 * 86_400.0
_TOKEN: Final = re.compile(rb"(?:^|[;,])\s*%b=([\w-]+)" % COOKIE.encode())


@dataclass(frozen=True, slots=True)
class _Session:
    key_digest: bytes
    ends_at: float


class Sessions:
    """All sessions of one gateway; they end with it. `clock` gives epoch seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[bytes, _Session] = {}

    def open(self, key_digest: bytes) -> str:
        """Begin a session for a key; gives the cookie's value. The oldest session makes room if need be."""
        own = [name for name, session in self._sessions.items() if session.key_digest == key_digest]
        if len(own) >= MOST_OF_A_KEY:
            del self._sessions[own[0]]
        elif len(self._sessions) >= MOST:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        self._sessions[digest(token)] = _Session(key_digest, self._clock() + LIFE_S)
        return token

    def key_digest(self, token: str) -> bytes | None:
        """Give the digest of the key behind a cookie; None if there is no such session any more."""
        session = self._sessions.get(digest(token))
        if session is None:
            return None
        if self._clock() >= session.ends_at:
            self.close(token)
            return None
        return session.key_digest

    def close(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(digest(token), None)


def token_in(named: Mapping[bytes, bytes]) -> str:
    """Give the token of the session whose cookie a request shows; empty if it shows none.

    `named` are its header fields by lower-case name.
    """
    shown = _TOKEN.findall(named.get(b"cookie", b""))
    return shown[-1].decode() if shown else ""
