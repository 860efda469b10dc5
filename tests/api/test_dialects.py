"""What the APIs do not have in common: how errors look, where events end, which paths are whose."""

from __future__ import annotations

import json

import pytest

from llmgateway.api.dialect import at_event_boundary, error_body, error_event
from llmgateway.api.endpoints import ENDPOINTS, dialect_of
from llmgateway.errors import UPSTREAM_ERROR, GatewayError

BROKE = GatewayError(UPSTREAM_ERROR, 'Provider "größe" broke\n')


def test_an_error_has_the_envelope_of_its_dialect() -> None:
    assert json.loads(error_body(BROKE, "openai", "id-1")) == {
        "error": {
            "message": BROKE.message,
            "type": "upstream_error",
            "param": None,
            "code": "upstream_error",
        }
    }
    assert json.loads(error_body(BROKE, "anthropic", "id-1")) == {
        "type": "error",
        "error": {"type": "upstream_error", "message": BROKE.message},
        "request_id": "id-1",
    }


def test_an_error_at_the_end_of_a_stream_is_one_event() -> None:
    openai = error_event(BROKE, "openai", "id-1")
    anthropic = error_event(BROKE, "anthropic", "id-1")
    assert openai == b"data: " + error_body(BROKE, "openai", "id-1") + b"\n\n"
    assert anthropic == b"event: error\ndata: " + error_body(BROKE, "anthropic", "id-1") + b"\n\n"
    assert openai.count(b"\n") == 2


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_only_after_an_empty_line_does_a_stream_stand_between_events(ending: bytes) -> None:
    stream = (b"event: a" + ending + b"data: {}" + ending * 2) * 2 + b": ping" + ending * 2
    ends = [size for size in range(len(stream) + 1) if stream[:size].endswith(ending * 2)]
    for size in range(len(stream) + 1):
        for tail_bytes in (4, 7, len(stream)):
            expected = size == 0 or size in ends
            assert at_event_boundary(stream[:size][-tail_bytes:]) is expected, stream[:size]


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messages/nowhere", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/", "openai"),
    ],
)
def test_a_path_tells_its_dialect(path: str, dialect: str) -> None:
    assert dialect_of(path) == dialect


def test_the_table_of_endpoints_is_consistent() -> None:
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS) == 14
