"""Mint, hash and recognise API keys; who the caller is and what they may use.

A key is 256 random bits, so one SHA-256 is enough to keep it: there is nothing to guess. Keys are looked up
by their digest and compared in constant time, so that timing tells nothing about the keys that exist.
"""

import fnmatch
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from llmgateway.config import KeyConfig, UserConfig
from llmgateway.errors import INVALID_API_KEY, MODEL_NOT_ALLOWED, GatewayError

_RANDOM_BYTES: Final = 32


def mint() -> str:
    """Make a new key: `sk-` and 43 random characters."""
    return "sk-" + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> bytes:
    """Give the SHA-256 of the whole key: 32 bytes.

    Header bytes that were not UTF-8 are hashed as they came.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


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
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        for name, user in users.items():
            member_of = frozenset(group for group, members in groups.items() if name in members)
            for key in user.keys:
                self._callers[key.digest] = (key.digest, _caller(name, user, member_of, key))

    def recognise(self, offered: Iterable[str], *, now: float) -> Caller:
        """Name the caller by the first of the offered keys that is known and in force.

        `now` is in epoch seconds. Raises GatewayError (401).
        """
        problem = "No API key given. Send 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        for key in offered:
            problem = "Invalid API key."
            offered_digest = digest(key)
            known, caller = self._callers.get(offered_digest, (b"", None))
            if caller is None or not hmac.compare_digest(known, offered_digest):
                continue
            if caller.expires_at is None or now < caller.expires_at:
                return caller
            problem = "This API key has expired."
        raise GatewayError(INVALID_API_KEY, problem, (("WWW-Authenticate", "Bearer"),))


def _caller(name: str, user: UserConfig, groups: frozenset[str], key: KeyConfig) -> Caller:
    return Caller(
        user=name,
        groups=groups,
        route=user.route,
        weight=user.weight,
        key_name=key.name,
        expires_at=key.expires_at,
        models=tuple(re.compile(fnmatch.translate(glob)) for glob in key.models),
    )


def offered_keys(headers: Mapping[str, str]) -> Iterator[str]:
    """Give the keys that a request shows, from a case-insensitive mapping of its headers."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        yield credentials.strip()
    if key := headers.get("x-api-key", "").strip():
        yield key
