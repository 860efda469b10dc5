"""Anthropic's Messages: errors and events have types, and what was cached is counted apart."""

from typing import Final

from llmgateway.api.dialect import SSE, Counts, Dialect, Ends, Fields, Piece, Row, sse_event
from llmgateway.errors import ErrorKind


def _error(kind: ErrorKind, message: str, request_id: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind.type, "message": message}, "request_id": request_id}


def _error_event(body: bytes) -> bytes:
    return sse_event(body, b"error")


def _ping(words: str) -> bytes:
    """Give the event that clients know to skip; it has no room for words."""
    return sse_event(b'{"type": "ping"}', b"ping")


DIALECT: Final = Dialect(
    name="anthropic",
    root="/v1/messages",
    endpoints=(
        Row("/v1/messages", streams=True),
        Row("/v1/messages/count_tokens", reads=False),
    ),
    error=_error,
    stream=SSE,
    error_event=_error_event,
    keepalive=_ping,
    fields=Fields(
        system=("system",),
        turns=("messages",),
        tools=("tools",),
        limits=("max_tokens",),
    ),
    pieces=(Piece("delta", inside=("text", "thinking", "partial_json")),),
    counts=(
        Counts(
            prompt="input_tokens",
            completion="output_tokens",
            beside=("cache_read_input_tokens", "cache_creation_input_tokens"),
            cached=("cache_read_input_tokens",),
            opening="message_start",
        ),
    ),
    ends=Ends(types=("message_stop",)),
)
