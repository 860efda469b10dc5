"""HTTP where HTTPS is spoken, and the other way round: how either looks, and what to write in the config.

Servers and libraries put it in words that speak of versions and records; the cure is always one letter.
"""

import re
import ssl
from typing import Final

from llmgateway.errors import ProviderBroke, ProviderFailed, ProviderTimedOut
from llmgateway.http.connection import IS_TLS

_WRITE_HTTP: Final = "write http:// in its url"
IF_HTTP: Final = f"If it speaks plain HTTP there, {_WRITE_HTTP}"
WRITE_HTTPS: Final = "write https:// in its url"

# nginx, Apache, Go and Caddy, HAProxy, Jetty, each in its words: one sentence that has both names.
_BOTH_NAMES: Final = re.compile(rb"(?i)\bhttp\b[^.]{0,60}\b(?:https|ssl|tls)\b")
_TAG: Final = re.compile(rb"<[^<>]*>")
_LOOKED_AT_BYTES: Final = 4_096
# What OpenSSL makes of an answer that is no TLS record.
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")


def of_tls(exc: ssl.SSLError) -> str:
    """Say in words why TLS did not come about, and what to write if it is the wrong scheme."""
    reason = exc.reason or "no details"
    if reason in _NO_TLS:
        return f"TLS failed ({reason}): it seems to speak plain HTTP; {_WRITE_HTTP}"
    if isinstance(exc, ssl.SSLEOFError):
        return f"TLS failed (the connection was closed). {IF_HTTP}"
    return f"TLS failed ({reason})"


def complaint_about_http(status: int, body: bytes) -> bytes:
    """Give what a server says if that is that it wants HTTPS on this port; else nothing."""
    if status != 400:
        return b""
    text = _TAG.sub(b" ", body[:_LOOKED_AT_BYTES])
    return text if _BOTH_NAMES.search(text) else b""


def told(failure: ProviderFailed, url: str) -> str:
    """Give the words of a failed probe; one that goes without a word may speak the other one."""
    if url.startswith("https:"):
        silent = isinstance(failure, ProviderTimedOut) and failure.wait == "connect"
        return f"{failure.message} {IF_HTTP}." if silent else failure.message
    if not isinstance(failure, ProviderBroke):
        return failure.message
    if IS_TLS in failure.message:
        return f"{failure.message} It speaks HTTPS there: {WRITE_HTTPS}."
    if failure.wordless:
        return f"{failure.message} If it speaks HTTPS there, {WRITE_HTTPS}."
    return failure.message
