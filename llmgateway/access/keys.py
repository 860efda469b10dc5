"""Mint, hash and recognise API keys; who the caller is and what they may use.

Who shows no key may be known by the address that they come from.

A key is 256 random bits, so one SHA-256 is enough to keep it: there is nothing to guess. Keys are looked up
by their digest and compared in constant time, so that timing tells nothing about the keys that exist.
"""

import fnmatch
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, TypeAlias

from llmgateway.config.users import NO_LIMITS, KeyConfig, LimitsConfig, UserConfig
from llmgateway.errors import INVALID_API_KEY, MODEL_NOT_ALLOWED, GatewayError

Address: TypeAlias = IPv4Address | IPv6Address

_RANDOM_BYTES: Final = 32
_LOCAL: Final = b"llmgateway status"
_LOCAL_PREFIX: Final = "local-"
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)
_HOW: Final = "Send 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
_SCHEMES: Final = ("basic", "token", "key", "apikey", "api-key", "digest", "negotiate")
"""Of `Authorization`, beside ours; what else stands there may be the key itself, and is not repeated."""
_ODD_FIELDS: Final = (
    b"api-key",
    b"apikey",
    b"x-goog-api-key",
    b"xi-api-key",
    b"x-api-token",
    b"x-auth-token",
    b"x-auth-key",
    b"x-authorization",
    b"x-access-token",
    b"openai-api-key",
    b"anthropic-api-key",
    b"proxy-authorization",
)
_NO_KEY: Final = KeyConfig(digest=b"")
_VARIABLE: Final = re.compile(r"\$\w+|\$?\{.*\}|\$\(.*\)|%\w+%|os\.environ\b.*|env[:.]\w+|<.*>")
_PROTOCOLS: Final = b"sec-websocket-protocol"
_KEY_PROTOCOL: Final = b"openai-insecure-api-key."
_IN_QUERY: Final = re.compile(
    r"[?&;](key|api[-_]?key|x-api-key|token|access_token|auth)=[^&;]", re.IGNORECASE
)


def mint() -> str:
    """Make a new key: `sk-` and 43 random characters."""
    return "sk-" + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str | bytes) -> bytes:
    """Give the SHA-256 of the whole key: 32 bytes. What came in a header is hashed as it came."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key).digest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, by which of their keys, and what that key is good for."""

    user: str
    groups: frozenset[str] = frozenset()
    route: Literal["any", "prefer_own", "only_own"] = "any"
    weight: float = 1.0
    key_name: str | None = None
    expires_at: float | None = None
    models: tuple[re.Pattern[str], ...] = ()
    admin: bool = False
    key_id: str = ""
    """Tells keys apart where their names do not; it is no secret."""
    limits: LimitsConfig = NO_LIMITS
    """Of the user, over all of their keys."""
    key_limits: LimitsConfig = NO_LIMITS
    limited: bool = False
    """True if any limit is set for the user or the key."""
    person_header: bytes = b""
    """The field, in lower case, by which this user's clients may name a person; empty if they may not."""
    person: str = ""
    """Who of several behind the user's keys; empty for the user as such."""
    party: str = field(init=False)
    """Whom requests are counted for: the person, else the user. No name of a user has a slash."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "party", f"{self.user}/{self.person}" if self.person else self.user)

    def has_expired(self, now: float) -> bool:
        """Tell whether the key is in force no more; `now` is in epoch seconds."""
        return self.expires_at is not None and now >= self.expires_at

    def may_use(self, model: str) -> bool:
        """Tell whether this key is good for the model, whoever serves it."""
        return not self.models or any(pattern.match(model) for pattern in self.models)

    def require(self, model: str) -> None:
        """Raise GatewayError (403) if this key is not good for the model."""
        if not self.may_use(model):
            raise GatewayError(MODEL_NOT_ALLOWED, f"This API key may not use model '{model}'.")


class KeyRing:
    """All keys of one configuration."""

    def __init__(self, users: Mapping[str, UserConfig], groups: Mapping[str, tuple[str, ...]]) -> None:
        self._users, self._groups = users, _groups_of(groups)
        self._keys = {
            key.digest: (key.digest, name, key) for name, user in users.items() for key in user.keys
        }
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        """By those of the keys that were shown: to make the callers of thousands of keys would take long."""
        self.by_network: list[tuple[IPv4Network | IPv6Network, Caller]] = []
        """Whom the networks belong to from which no key is needed; no two have an address in common."""
        for name, user in users.items():
            if user.networks:
                keyless = self._caller(name, _NO_KEY)
                self.by_network += [(network, keyless) for network in user.networks]

    def recognise(self, offered: Iterable[str | bytes], *, now: float) -> Caller:
        """Name the caller by the first of the offered keys that is known and in force.

        `now` is in epoch seconds. Raises GatewayError (401).
        """
        problem = f"No API key given. {_HOW}"
        for key in offered:
            problem = f"Invalid API key.{_hint(key)}"
            caller = self.find(digest(key))
            if caller is None:
                continue
            if not caller.has_expired(now):
                return caller
            problem = "This API key has expired."
        raise GatewayError(INVALID_API_KEY, problem, _CHALLENGE)

    def find(self, key_digest: bytes) -> Caller | None:
        """Name the caller by the digest of a key, in force or not."""
        known, caller = self._callers.get(key_digest) or self._first_shown(key_digest)
        return caller if hmac.compare_digest(known, key_digest) else None

    def _first_shown(self, key_digest: bytes) -> tuple[bytes, Caller | None]:
        if key_digest not in self._keys:
            return b"", None
        known, name, key = self._keys[key_digest]
        found = self._callers[known] = known, self._caller(name, key)
        return found

    def _caller(self, name: str, key: KeyConfig) -> Caller:
        return _caller(name, self._users[name], self._groups.get(name, frozenset()), key)

    def at(self, address: Address) -> Caller | None:
        """Name the caller who needs no key at an address."""
        return next((caller for network, caller in self.by_network if address in network), None)

    @property
    def callers(self) -> list[Caller]:
        """Give all callers, one for each key, and one for each network that needs none."""
        of_keys = [caller for known in self._keys if (caller := self.find(known)) is not None]
        return [*of_keys, *(caller for _, caller in self.by_network)]

    @property
    def local_credentials(self) -> str | None:
        """Give what `gateway.py status` shows instead of a key; None if the config has no keys.

        The file is the administration: who can read it may see how its gateway fares, and no more than that.
        """
        if not self._keys:
            return None
        return _LOCAL_PREFIX + hmac.digest(b"".join(sorted(self._keys)), _LOCAL, "sha256").hex()


def _groups_of(groups: Mapping[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    """Give for each user that is in some group all of them."""
    found: dict[str, set[str]] = {}
    for group, members in groups.items():
        for name in members:
            found.setdefault(name, set()).add(group)
    return {name: frozenset(some) for name, some in found.items()}


def _caller(name: str, user: UserConfig, groups: frozenset[str], key: KeyConfig) -> Caller:
    return Caller(
        user=name,
        groups=groups,
        route=user.route,
        weight=user.weight,
        key_name=key.name,
        expires_at=key.expires_at,
        models=tuple(re.compile(fnmatch.translate(glob)) for glob in key.models),
        admin=user.admin,
        key_id=key.digest.hex()[:16],  # of no key: none
        limits=user.limits,
        key_limits=key.limits,
        limited=user.limits != NO_LIMITS or key.limits != NO_LIMITS,
        person_header=(user.person_header or "").lower().encode(),
    )


def offered_keys(named: Mapping[bytes, bytes]) -> list[bytes]:
    """Give the keys that a request shows, from its header fields by lower-case name."""
    keys = []
    if b"authorization" in named:
        scheme, _, credentials = named[b"authorization"].partition(b" ")
        if scheme.lower() == b"bearer":
            keys.append(credentials.strip())
    if b"x-api-key" in named:
        keys.append(named[b"x-api-key"].strip())
    return [key for key in keys if key] if b"" in keys else keys


def key_protocols(named: Mapping[bytes, bytes]) -> list[bytes]:
    """Give the subprotocols by which a WebSocket's handshake shows keys: a browser can in no other way."""
    offered = (each.strip() for each in named.get(_PROTOCOLS, b"").split(b","))
    return [each for each in offered if each.startswith(_KEY_PROTOCOL) and each != _KEY_PROTOCOL]


def keys_in_protocols(named: Mapping[bytes, bytes]) -> list[bytes]:
    """Give the keys in them."""
    return [each.removeprefix(_KEY_PROTOCOL) for each in key_protocols(named)]


def without_keys(fields: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Take the keys out of the subprotocols that a handshake offers."""
    kept = []
    for name, value in fields:
        if name.lower() == _PROTOCOLS and _KEY_PROTOCOL in value:
            others = [each.strip() for each in value.split(b",")]
            value = b", ".join(each for each in others if each and not each.startswith(_KEY_PROTOCOL))
            if not value:
                continue
        kept.append((name, value))
    return tuple(kept)


def odd_way(named: Mapping[bytes, bytes], target: str) -> GatewayError | None:
    """Say in which way, that is not understood here, a request shows what may be a key; never the key."""
    way = _odd_credentials(named.get(b"authorization", b"").strip())
    if not way and (field := next((name for name in _ODD_FIELDS if named.get(name, b"").strip()), b"")):
        way = f"a header '{field.decode()}' came"
    if not way and (found := _IN_QUERY.search(target)):
        way = f"'?{found[1].lower()}=' came in the URL"
    if not way:
        return None
    words = f"No API key given in a way that is understood here: {way}. {_HOW}"
    return GatewayError(INVALID_API_KEY, words, _CHALLENGE)


def _odd_credentials(credentials: bytes) -> str:
    scheme, separator, _ = credentials.decode("latin-1").partition(" ")
    if not scheme or scheme.lower() == "bearer":
        return ""
    if not separator:
        return "'Authorization' has no word 'Bearer' and a space before the key"
    said = scheme if scheme.lower() in _SCHEMES else "another scheme"
    return f"'Authorization' came with {said} instead of Bearer"


def _hint(key: str | bytes) -> str:
    """Say what is odd about a key that nobody has, if it looks like no key at all."""
    text = key if isinstance(key, str) else key.decode("latin-1")
    if text.lower().startswith("bearer "):
        return f" The word 'Bearer' is part of what came as the key. {_HOW}"
    if text.startswith(("'", '"')) or text.endswith(("'", '"')):
        return " There are quotes around what came as the key; send it without them."
    if _VARIABLE.fullmatch(text):
        return " What came is the name of a variable, not what it holds: the client has not looked it up."
    return ""
