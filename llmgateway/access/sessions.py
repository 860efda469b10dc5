"""Sign-ins of the live page: which cookie stands for which API key.

A session is kept under the digests of its tokens, 256 random bits each, in bounded memory. It holds the
digest of the key that opened it, not the key, and not what the key is good for: that is asked anew at every
use, so that a key which is removed, or expires, ends its sessions at once.

- It ends with its life, however much it is used; and when it is not used for long.
- Its token is another one from time to time. The old one is good until the new one was shown, and a little
  longer: an answer may be lost, and requests may be under way.
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
IDLE_S: Final = 7 * 86_400.0
RENEW_S: Final = 86_400.0
GRACE_S: Final = 60.0
_TOKEN: Final = re.compile(rb"(?:^|[;,])\s*%b=([\w-]+)" % COOKIE.encode())


@dataclass(slots=True, eq=False)
class _Session:
    """One sign-in. `name` is the digest of its token, `next` of the next one, `past` of the one before."""

    key_digest: bytes
    user: str
    ends_at: float
    idle_at: float
    name: bytes
    renew_at: float
    next: bytes = b""
    next_at: float = 0.0
    past: bytes = b""
    past_until: float = 0.0


class Sessions:
    """All sessions of one gateway; they end with it. `clock` gives epoch seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._by_name: dict[bytes, _Session] = {}
        self._open: dict[_Session, None] = {}

    def open(self, key_digest: bytes, user: str = "") -> str:
        """Begin a session for a user's key; gives its token. The oldest session makes room if need be."""
        own = [session for session in self._open if session.key_digest == key_digest]
        if len(own) >= MOST_OF_A_KEY:
            self._end(own[0])
        elif len(self._open) >= MOST:
            self._end(next(iter(self._open)))
        token, now = secrets.token_urlsafe(32), self.clock()
        session = _Session(key_digest, user, now + LIFE_S, now + IDLE_S, digest(token), now + RENEW_S)
        self._open[session] = None
        self._by_name[session.name] = session
        return token

    def key_digest(self, token: str) -> bytes | None:
        """Give the digest of the key behind a token; None if there is no such session any more."""
        name, now = digest(token), self.clock()
        session = self._by_name.get(name)
        if session is None:
            return None
        if now >= min(session.ends_at, session.idle_at):
            self._end(session)
            return None
        if name == session.past and now >= session.past_until:
            self._forget(name)
            return None
        if name == session.next:
            self._change(session, now)
        session.idle_at = now + IDLE_S
        return session.key_digest

    def is_to_renew(self, token: str) -> bool:
        """Tell whether a session is to have another token."""
        session, now = self._by_name.get(digest(token)), self.clock()
        return session is not None and now >= session.renew_at and now >= session.next_at + GRACE_S

    def renew(self, token: str) -> tuple[str, float]:
        """Give a session that is there another token, and what is left of its life in seconds."""
        session, now = self._by_name[digest(token)], self.clock()
        self._forget(session.next)
        another = secrets.token_urlsafe(32)
        session.next, session.next_at = digest(another), now
        self._by_name[session.next] = session
        return another, session.ends_at - now

    def close(self, token: str) -> None:
        """End a session."""
        session = self._by_name.get(digest(token))
        if session is not None:
            self._end(session)

    def keep(self, is_known: Callable[[bytes, str], bool]) -> None:
        """End all sessions but those of which the key, by its digest, is known to be that user's."""
        for session in [each for each in self._open if not is_known(each.key_digest, each.user)]:
            self._end(session)

    def _change(self, session: _Session, now: float) -> None:
        self._forget(session.past)
        session.past, session.past_until = session.name, now + GRACE_S
        session.name, session.next, session.renew_at = session.next, b"", now + RENEW_S

    def _end(self, session: _Session) -> None:
        del self._open[session]
        for name in (session.name, session.next, session.past):
            self._forget(name)

    def _forget(self, name: bytes) -> None:
        self._by_name.pop(name, None)


def token_in(named: Mapping[bytes, bytes]) -> str:
    """Give the token of the session whose cookie a request shows; empty if it shows none.

    `named` are its header fields by lower-case name.
    """
    shown = _TOKEN.findall(named.get(b"cookie", b""))
    return shown[-1].decode() if shown else ""
