"""Who asks? The one place that tells whom a request comes from, by what its head shows.

Rules:

- A key is good everywhere, and comes first: who shows one is not asked for anything else.
- The cookie of a session stands for the key that opened it, and only where the caller lets it: for what the
  live page sends. It is as good as that key is now, so a key that is removed or expires ends its sessions.
- Who shows no key is the user whose network they come from, if it is anybody's and only where the caller
  lets it: for the API.
- What proves that somebody has read the config file makes an admin who is no user, and only where the caller
  lets it: on this machine, to look.
- A user's client that is trusted to names the person it asks for (see persons).
- Nobody is remembered here but by a session: the answer is the config's in force.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llmgateway.access.keys import (
    Address,
    Caller,
    KeyRing,
    digest,
    keys_in_protocols,
    odd_way,
    offered_keys,
)
from llmgateway.access.persons import Persons
from llmgateway.access.sessions import LIFE_S, Sessions, token_in
from llmgateway.config.settings import Config
from llmgateway.errors import INVALID_API_KEY, GatewayError

_READER: Final = Caller("", admin=True)


class Doorkeeper:
    """Tells who asks, by the keys of the config in force, the sessions that are open, and the config file."""

    def __init__(self, config: Config, sessions: Sessions) -> None:
        self._sessions = sessions
        self.persons = Persons()
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take in a config: its keys are those that are known from now on."""
        self.keys = KeyRing(config.users, config.groups)
        self.persons.keep(config.users)
        self._sessions.keep(self._is_of)

    def who(
        self,
        named: Mapping[bytes, bytes],
        target: str = "",
        /,
        *,
        now: float,
        by_session: bool = False,
        by_config: bool = False,
        by_protocol: bool = False,
        from_where: Callable[[], Address | None] = lambda: None,
    ) -> Caller:
        """Name who asks, from the header fields by lower-case name. Raises GatewayError (401).

        `target` is what was asked for: somebody may have put a key there, where none is looked for. `now` is
        in epoch seconds. `by_session` lets a session's cookie do where no key is shown, `by_config` what only
        somebody can show who has read the config file, `by_protocol` a key among the subprotocols of a
        WebSocket. `from_where` gives the address by which who shows no key may be known.
        """
        offered = offered_keys(named)
        if by_protocol and not offered:
            offered = keys_in_protocols(named)
        if by_config and self._shows_the_config(offered):
            return _READER
        if by_session and not offered:
            key_digest = self._sessions.key_digest(token_in(named))
            if key_digest is not None:
                return self._owner(key_digest, now)
        if not offered and (refusal := odd_way(named, target)) is not None:
            raise refusal
        caller = self._neighbour(from_where) if not offered and self.keys.by_network else None
        if caller is None:
            caller = self.keys.recognise(offered, now=now)
        return self.persons.named(caller, named, now=now) if caller.person_header else caller

    def _neighbour(self, from_where: Callable[[], Address | None]) -> Caller | None:
        address = from_where()
        return None if address is None else self.keys.at(address)

    def sign_in(self, key: str, named: Mapping[bytes, bytes], *, now: float) -> tuple[str, float]:
        """Begin a session, in the place of one that is shown; gives its token, and its life in seconds.

        `named` are the header fields by lower-case name. Raises GatewayError (401).
        """
        caller = self.keys.recognise([key], now=now)
        self.sign_out(named)
        return self._sessions.open(digest(key), caller.user), _life(LIFE_S, caller, now)

    def renewed(self, named: Mapping[bytes, bytes], *, now: float) -> tuple[str, float] | None:
        """Give the session that is shown another token, if it is time: that, and its life in seconds."""
        token = token_in(named)
        if not self._sessions.is_to_renew(token) or not (key_digest := self._sessions.key_digest(token)):
            return None
        caller = self._owner(key_digest, now)
        another, left_s = self._sessions.renew(token)
        return another, _life(left_s, caller, now)

    def is_to_renew(self, named: Mapping[bytes, bytes]) -> bool:
        """Tell whether the session that is shown is to have another token."""
        return self._sessions.is_to_renew(token_in(named))

    def sign_out(self, named: Mapping[bytes, bytes]) -> None:
        """End the session whose cookie a request shows, if there is one."""
        self._sessions.close(token_in(named))

    def _is_of(self, key_digest: bytes, user: str) -> bool:
        caller = self.keys.find(key_digest)
        return caller is not None and caller.user == user

    def _owner(self, key_digest: bytes, now: float) -> Caller:
        caller = self.keys.find(key_digest)
        if caller is None or caller.has_expired(now):
            words = "The API key of this session is no longer valid; sign in again."
            raise GatewayError(INVALID_API_KEY, words, (("WWW-Authenticate", "Bearer"),))
        return caller

    def _shows_the_config(self, offered: Sequence[bytes]) -> bool:
        credentials = self.keys.local_credentials
        if credentials is None:
            return False
        shown = digest(credentials)
        return any(digest(key) == shown for key in offered)


def _life(longest_s: float, caller: Caller, now: float) -> float:
    """Give how long a session may last, in seconds: no longer than its key."""
    return longest_s if caller.expires_at is None else min(longest_s, caller.expires_at - now)
