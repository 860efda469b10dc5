"""What the gateway says of a provider's answer: in fields of its own, and where it cannot be passed on."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from llmgateway.errors import LOOP_DETECTED, UPSTREAM_ERROR, GatewayError, ProviderFailed, ProviderLooped
from llmgateway.fleet.provider import Provider
from llmgateway.http.exchange import Exchange
from llmgateway.http.headers import AnswerHead
from llmgateway.servers.kind import quote

UNAUTHORIZED: Final = 401
QUOTED_BYTES: Final = 64 * 1024
LOOK_S: Final = 2.0
_LEAST_CHARACTERS: Final = 8  # of a secret; shorter ones stand in many a sentence
_CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "api-key"})
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32


@lru_cache(256)  # most have not waited at all
def own_lines(provider: str, other_name: str, affinity: str, waited_s: float) -> bytes:
    """Write our fields of an answer; `other_name` is the server's own for the model, if it has another."""
    lines = [f"x-gateway-provider: {provider}"]
    if other_name.isascii() and other_name.isprintable() and other_name:
        lines.append(f"x-gateway-model: {other_name}")
    if affinity:
        lines.append(f"x-gateway-affinity: {affinity}")
    lines.append(f"x-gateway-queue-wait: {waited_s:.3f}")
    return "".join(f"{line}\r\n" for line in lines).encode()


def too_late(provider: Provider, status: int, head: AnswerHead, body: bytes) -> GatewayError:
    """Say what a status would have said, had a keepalive not committed the answer to be a stream."""
    said = quote(readable(head, body), provider.secrets)
    brief = f"Provider '{provider.name}' answered {status}"
    return GatewayError(UPSTREAM_ERROR, f"{brief}{': ' if said else '.'}{said}", brief=f"{brief}.")


async def blot_out(provider: Provider, exchange: Exchange) -> None:
    """Make unreadable what a refusal repeats of its provider's credentials; nothing else changes of it.

    Raises GatewayError for a compressed one, which cannot be changed so.
    """
    secrets = [secret.encode() for secret in provider.secrets if len(secret) >= _LEAST_CHARACTERS]
    if not secrets:
        return
    body, _ = await exchange.read(QUOTED_BYTES, LOOK_S)
    plain = readable(exchange.head, body)
    repeated = [secret for secret in secrets if secret in plain]
    if repeated and plain is not body:
        raise too_late(provider, exchange.status, exchange.head, body)
    for secret in repeated:
        body = body.replace(secret, b"*" * len(secret))
    if repeated:
        exchange.amend(body)


def readable(head: AnswerHead, body: bytes, limit_bytes: int = QUOTED_BYTES) -> bytes:
    """Give the plain text of a body that is to be quoted; the client may have asked for a compressed one."""
    if head.coding in (b"", b"identity"):
        return body
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, limit_bytes)
    except zlib.error:
        return b""


def about_the_key(provider: Provider, status: int) -> str:
    """Tell who looks into a 401 whether the gateway sent a key; a 403 mostly is about the request."""
    if status != UNAUTHORIZED:
        return "."
    config = provider.config
    if config.api_key is None and _CREDENTIALS.isdisjoint(name.lower() for name in config.headers):
        return "; the config has no api_key for it."
    return "; it was sent the credentials that the config has for it."


def none_left(failures: Sequence[ProviderFailed]) -> GatewayError:
    """Say what became of a request that all candidates have failed at."""
    kind = LOOP_DETECTED if all(isinstance(f, ProviderLooped) for f in failures) else UPSTREAM_ERROR
    told = dict.fromkeys(failure.message.rstrip(".") for failure in failures)  # a model may load for long
    noted = dict.fromkeys(failure.noted.rstrip(".") for failure in failures)
    return GatewayError(kind, "; ".join(told) + ".", brief="; ".join(noted) + ".")
