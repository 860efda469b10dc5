"""The hop marker of gateways (RFC 9110 7.6.3): which of them have passed a request on, so that no ring turns.

Every gateway has a pseudonym for as long as it runs, and adds it to whatever it sends a provider. What comes
back to one that has passed it on goes no further, and neither does what too many have.
"""

import re
import secrets
from typing import Final

from llmgateway.errors import LOOP_DETECTED, GatewayError

MOST_HOPS: Final = 10
_NAME: Final = "llmgateway-"
_HOP: Final = re.compile(rb"(?<![^\s,])llmgateway-[0-9a-f]{16}(?![^\s,])")


def new_name() -> str:
    """Make the pseudonym of a gateway."""
    return _NAME + secrets.token_hex(8)


def hops(via: bytes) -> tuple[str, ...]:
    """Give the gateways of ours that a `Via` names, in the order in which they passed the request on."""
    return tuple(name.decode() for name in _HOP.findall(via))


def is_loop(status: int, body: bytes) -> bool:
    """Tell whether an answer is that of a gateway which refuses a loop."""
    return status == LOOP_DETECTED.status and LOOP_DETECTED.type.encode() in body


def refuse_loop(via: bytes, name: str) -> None:
    """Refuse a request that this gateway, or too many, have passed on. Raises GatewayError (508)."""
    passed = hops(via)
    if name in passed:
        words = "The request has come back to this gateway: a provider in its config leads to itself."
        raise GatewayError(LOOP_DETECTED, words)
    if len(passed) > MOST_HOPS:
        words = f"The request has passed more than {MOST_HOPS} gateways; their providers lead too far."
        raise GatewayError(LOOP_DETECTED, words)
