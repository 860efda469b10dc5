"""Lines of the request log, as they are written and as they are read back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from llmgateway.books.line import Line, read_line

NOON: Final = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR_S: Final = 3600.0
UNKNOWN: Final = (
    *("user", "key", "model", "provider", "first_byte_ms"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
)


def entry(at: float = NOON, **more: Any) -> dict[str, Any]:
    """A line of the request log, as a value."""
    told = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "time": told, "id": "req_1", "user": "alice", "key": "laptop", "model": "m", "provider": "rig",
        "endpoint": "/v1/chat/completions", "status": 200, "outcome": "ok",
        "queue_ms": 0.0, "first_byte_ms": 12.3, "total_ms": 80.1,
        "prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4, "reasoning_tokens": 2,
        "estimated": False, "bytes_in": 120, "bytes_out": 900, "attempts": 1, "stream": True,
        "affinity": "hit", **more,
    }  # fmt: skip


def read(told: dict[str, Any]) -> Line:
    """A line as it is read back."""
    found = read_line(json.dumps(told).encode())
    assert found is not None
    return found


def line(at: float = NOON, **more: Any) -> Line:
    """A line of the request log, read back."""
    return read(entry(at, **more))


def refused(at: float = NOON) -> Line:
    """The line of a request without a good key."""
    return read(entry(at, status=401, outcome="invalid_api_key") | dict.fromkeys(UNKNOWN))
