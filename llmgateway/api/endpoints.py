"""The table of what is forwarded, and in which API's words its callers are answered.

A path is in the table as clients send it; nothing that is not in it, nor in the config, is forwarded.
"""

from dataclasses import dataclass
from typing import Final, Literal

from llmgateway.api.dialect import Dialect

BodyKind = Literal["json", "multipart"]
Body = bytes | bytearray
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table of what is forwarded."""

    path: str
    body: BodyKind = "json"
    streams: bool = False
    """Whether what it streams are server-sent events, so that a comment may stand between them."""
    reads: bool = True
    """Whether its prompt costs tokens, even where the answer does not say how many."""
    dialect: Dialect = "openai"
    """Whose errors its callers expect."""


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("/v1/chat/completions", streams=True),
    Endpoint("/v1/completions", streams=True),
    Endpoint("/v1/embeddings"),
    Endpoint("/v1/responses", streams=True),
    Endpoint("/v1/rerank"),
    Endpoint("/v1/score"),
    Endpoint("/v1/audio/speech", reads=False),
    Endpoint("/v1/images/generations", reads=False),
    Endpoint("/v1/moderations"),
    Endpoint("/v1/audio/transcriptions", body="multipart", reads=False),
    Endpoint("/v1/audio/translations", body="multipart", reads=False),
    Endpoint("/v1/images/edits", body="multipart", reads=False),
    Endpoint("/v1/messages", streams=True, dialect="anthropic"),
    Endpoint("/v1/messages/count_tokens", reads=False, dialect="anthropic"),
)


def dialect_of(path: str) -> Dialect:
    """Name the API whose error shape a caller of `path` expects, also where the path itself is wrong."""
    return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"
