"""The handshake of a WebSocket (RFC 6455 4): what a client must ask for, and what a provider must answer.

Both ends shake hands with each other, through the gateway: key, extensions and subprotocols pass as they
came. It checks what it must be able to rely on, so that it never relays what only one of them takes for
frames.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Final

from llmgateway.errors import INVALID_REQUEST, UPGRADE_REQUIRED, GatewayError
from llmgateway.http.headers import Field

SWITCHING: Final = 101
SWITCH: Final = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
"""What asks for the change of protocol, and what grants it: neither passes on by itself."""
_VERSION: Final = b"13"
_KEY_BYTES: Final = 16
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OFFER: Final = (("Connection", "Upgrade"), ("Upgrade", "websocket"))
_VERSION_HERE: Final = (*_OFFER, ("Sec-WebSocket-Version", _VERSION.decode()))


def require_handshake(named: Mapping[bytes, bytes], version: tuple[int, int]) -> None:
    """Refuse a request that does not ask for a WebSocket as it must. Raises GatewayError (400, 426)."""
    if version < (1, 1) or not _has(named, b"connection", b"upgrade"):
        raise GatewayError(UPGRADE_REQUIRED, "This endpoint is a WebSocket: connect to it as one.", _OFFER)
    if named.get(b"upgrade", b"").strip().lower() != b"websocket":
        raise GatewayError(UPGRADE_REQUIRED, "The only protocol to upgrade to here is 'websocket'.", _OFFER)
    if named.get(b"sec-websocket-version", b"").strip() != _VERSION:
        words = "The Sec-WebSocket-Version that is spoken here is 13."
        raise GatewayError(UPGRADE_REQUIRED, words, _VERSION_HERE)
    if not _is_key(named.get(b"sec-websocket-key", b"").strip()):
        raise GatewayError(INVALID_REQUEST, "The Sec-WebSocket-Key must be 16 bytes in base64.")


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False


def accept_of(key: bytes) -> bytes:
    """Give the Sec-WebSocket-Accept that a Sec-WebSocket-Key is to be answered with."""
    return base64.b64encode(hashlib.sha1(key.strip() + _GUID, usedforsecurity=False).digest())


def fault_of(fields: tuple[Field, ...], accept: bytes) -> str:
    """Say what is wrong with a provider's answer of 101; "" if nothing is."""
    named: dict[bytes, bytes] = {}
    for name, value in fields:
        lower = name.lower()
        named[lower] = value if lower not in named else named[lower] + b", " + value
    if named.get(b"upgrade", b"").strip().lower() != b"websocket" or not _has(
        named, b"connection", b"upgrade"
    ):
        return "a change to another protocol that was not asked for"
    if named.get(b"sec-websocket-accept", b"").strip() != accept:
        return "a Sec-WebSocket-Accept that does not fit"
    return ""


def _has(named: Mapping[bytes, bytes], field: bytes, token: bytes) -> bool:
    return token in (each.strip() for each in named.get(field, b"").lower().split(b","))
