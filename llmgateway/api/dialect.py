"""What the APIs do not have in common: how an error looks, and where an event of a stream ends."""

from typing import Literal, assert_never

import orjson

from llmgateway.errors import GatewayError

Dialect = Literal["openai", "anthropic"]


def error_body(error: GatewayError, dialect: Dialect, request_id: str) -> bytes:
    """Render the envelope that clients of this API know."""
    message = error.message.encode("utf-8", "replace").decode()  # a name from a path need not be Unicode
    return orjson.dumps(_error(error.kind.type, message, dialect, request_id))


def error_event(error: GatewayError, dialect: Dialect, request_id: str) -> bytes:
    """Render the last event of a stream that broke."""
    name = b"event: error\n" if dialect == "anthropic" else b""
    return name + b"data: " + error_body(error, dialect, request_id) + b"\n\n"


def _error(kind: str, message: str, dialect: Dialect, request_id: str) -> dict[str, object]:
    match dialect:
        case "openai":
            return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
        case "anthropic":
            return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
        case _:
            assert_never(dialect)


def at_event_boundary(tail: bytes) -> bool:
    """Tell from its last bytes whether an SSE stream stands between events (or has not begun)."""
    return not tail or tail.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
