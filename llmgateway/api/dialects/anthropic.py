"""Anthropic's Messages: errors and events have types, and what was cached is counted apart."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from llmgateway.api.dialect import SSE, Counts, Dialect, Ends, Fields, Piece, Row, sse_event
from llmgateway.errors import ErrorKind

# Its clients decide by these what to say, and whether to try again.
_ERROR_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SERVER_FAULT: Final = 500
_MOST_MODELS: Final = 1_000  # of a page, as Anthropic has it


def _error(kind: ErrorKind, message: str, request_id: str) -> dict[str, object]:
    others = "api_error" if kind.status >= _SERVER_FAULT else "invalid_request_error"
    error = {"type": _ERROR_TYPES.get(kind.status, others), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def _error_event(body: bytes) -> bytes:
    return sse_event(body, b"error")


def _model(entry: Mapping[str, object]) -> dict[str, object]:
    """Make an entry of its list of models out of one of OpenAI's."""
    created = entry.get("created")
    made = datetime.fromtimestamp(created if isinstance(created, int) else 0, UTC)
    alias = {"alias_of": entry["alias_of"]} if "alias_of" in entry else {}
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **alias,
    }


def _models(entries: Sequence[Mapping[str, object]], query: str) -> dict[str, object]:
    """Give a page of its list of models, as a query wants it; without a `limit` that is all of it."""
    wanted = dict(parse_qsl(query))
    ids = [entry["id"] for entry in entries]
    start = ids.index(wanted["after_id"]) + 1 if wanted.get("after_id") in ids else 0
    end = ids.index(wanted["before_id"]) if wanted.get("before_id") in ids else len(ids)
    limit = int(wanted["limit"]) if _is_limit(wanted.get("limit", "")) else len(ids)
    if "before_id" in wanted:
        page, more = entries[max(start, end - limit) : end], end - limit > start
    else:
        page, more = entries[start : min(end, start + limit)], start + limit < end
    data = [_model(entry) for entry in page]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": more, "first_id": first, "last_id": last}


def _is_limit(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _MOST_MODELS


def _ping(words: str) -> bytes:
    """Give the event that clients know to skip; it has no room for words."""
    return sse_event(b'{"type": "ping"}', b"ping")


DIALECT: Final = Dialect(
    name="anthropic",
    root="/v1/messages",
    endpoints=(
        Row("/v1/messages", "messages", streams=True),
        Row("/v1/messages/count_tokens", "count_tokens", reads=False),
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
    sign=b"anthropic-version",
    model=_model,
    models=_models,
)
