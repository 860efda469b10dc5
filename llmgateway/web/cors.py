"""Web pages of other origins: what `server.cors` lets them in to, and how they are told.

It is the CORS protocol of the Fetch standard, without credentials: a page sends its key by itself. So
the gateway's own page, with its sessions, is never shared.
"""

import re
from typing import Final

from llmgateway.http.client import Client
from llmgateway.web.routes import PAGE

_SANE_FIELD_LIST: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_PREFLIGHT_S: Final = 86_400


def is_of_the_api(path: str) -> bool:
    """Tell what pages of other sites may be let in to: not what is above the base path, nor the live page."""
    return bool(path) and not path.startswith(PAGE)


def share(client: Client, origins: frozenset[str]) -> bool:
    """Let pages of these origins use the API; tells whether that was all that was asked."""
    named = client.head.named
    origin = named[b"origin"].decode("latin-1") if b"origin" in named else None
    anybody = "*" in origins
    # Vary also where there is no origin: caches must not mix the answers up
    client.tell([] if anybody else [("Vary", "Origin")], instead_of="access-control-")
    if origin is None or not (anybody or origin.lower() in origins):
        return False
    client.tell(
        [
            ("Access-Control-Allow-Origin", "*" if anybody else origin),
            ("Access-Control-Expose-Headers", "*"),
        ]
    )
    if client.method != "OPTIONS" or b"access-control-request-method" not in named:
        return False
    wanted = named.get(b"access-control-request-headers", b"").decode("latin-1")
    client.tell(
        [
            ("Access-Control-Allow-Methods", "GET, POST, DELETE"),
            ("Access-Control-Max-Age", str(_PREFLIGHT_S)),
            *([("Access-Control-Allow-Headers", wanted)] if _SANE_FIELD_LIST.fullmatch(wanted) else []),
        ]
    )
    client.respond(204, b"", b"")
    return True
