"""Ollama's own API: streams are lines of JSON, errors are a sentence, and an answer tells its counts itself.

Who does not say otherwise gets a stream. Nothing can stand in it but lines of its own, so it is never kept
alive.
"""

from typing import Final

from llmgateway.api.dialect import LINES, Counts, Dialect, Ends, Fields, Piece, Row
from llmgateway.errors import ErrorKind

TAGS: Final = "/api/tags"
PS: Final = "/api/ps"
VERSION: Final = "/api/version"
BLOBS: Final = "/api/blobs"
CHANGES: Final = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", BLOBS)
"""What changes a server."""


def _error(kind: ErrorKind, message: str, request_id: str) -> dict[str, object]:
    return {"error": message}


def _error_event(body: bytes) -> bytes:
    return body + b"\n"


DIALECT: Final = Dialect(
    name="ollama",
    root="/api",
    endpoints=(
        Row("/api/chat", "ollama_chat", streams=True, streams_unasked=True),
        Row("/api/generate", "ollama_generate", streams=True, streams_unasked=True),
        Row("/api/embed", "ollama_embed"),
        Row("/api/embeddings", "ollama_embeddings"),
        Row("/api/show", "ollama_show", by_name=True, reads=False),
    ),
    error=_error,
    stream=LINES,
    error_event=_error_event,
    keepalive=None,
    fields=Fields(
        system=("system",),
        turns=("messages", "input"),
        text=("prompt",),
        tools=("tools",),
        limits_inside=(("options", "num_predict"),),
    ),
    pieces=(
        Piece("message", inside=("content", "name")),
        Piece("response"),
        Piece("thinking"),  # of a message, too: it comes before the content, or without
    ),
    counts=(Counts(prompt="prompt_eval_count", completion="eval_count", whole=True, flat=True),),
    ends=Ends(flags=("done",)),
    optional=True,
    own=(TAGS, PS, VERSION, *CHANGES),
)
