"""OpenAI's API, and what servers that speak it have added: the words of most clients, and of most servers.

Whoever asks for a path that is nobody's is answered in this dialect.
"""

from typing import Any, Final

import orjson

from llmgateway.api.dialect import SSE, Counts, Dialect, Ends, Fields, Piece, Row, sse_comment, sse_event
from llmgateway.errors import ErrorKind


def error(kind: ErrorKind, message: str, request_id: str) -> dict[str, object]:
    """Give the body of an error."""
    return {"error": {"message": message, "type": kind.type, "param": None, "code": kind.type}}


def _as_events(body: bytes) -> bytes | None:
    """Give a stream that says what a whole chat or completion says: in one piece, and then the end."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    match answer:
        case {"choices": [{"message": dict()}, *_] as choices} if all(map(_has_message, choices)):
            pieces = [_piece_of(choice) for choice in choices]
            answer = {**answer, "object": "chat.completion.chunk", "choices": pieces}
        case {"choices": [{"text": str()}, *_]}:
            pass  # a stream of completions is made of completions
        case _:
            return None
    return sse_event(orjson.dumps(answer)) + sse_event(b"[DONE]")


def _has_message(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _piece_of(choice: dict[str, Any]) -> dict[str, Any]:
    piece = {name: value for name, value in choice.items() if name != "message"}
    delta = dict(choice["message"])
    if isinstance(calls := delta.get("tool_calls"), list):  # in a stream each has its number
        delta["tool_calls"] = [
            {"index": at, **call} for at, call in enumerate(calls) if isinstance(call, dict)
        ]
    return {**piece, "delta": delta}


DIALECT: Final = Dialect(
    name="openai",
    root="",
    endpoints=(
        Row("/v1/chat/completions", "chat", streams=True),
        Row("/v1/completions", "completions", streams=True),
        Row("/v1/embeddings", "embeddings"),
        Row("/v1/rerank", "rerank"),
        Row("/v1/score", "score"),
        Row("/v1/audio/speech", "speech", reads=False),
        Row("/v1/images/generations", "images", reads=False),
        Row("/v1/moderations", "moderations"),
        Row("/v1/audio/transcriptions", "transcriptions", body="multipart", reads=False),
        Row("/v1/audio/translations", "translations", body="multipart", reads=False),
        Row("/v1/images/edits", "image_edits", body="multipart", reads=False),
        Row("/v1/chat/completions/input_tokens", "chat_input_tokens", reads=False),
        Row("/v1/realtime", "realtime", body="socket", reads=False, method="GET"),
        # llama.cpp's and vLLM's, beside their /v1
        Row("/tokenize", "tokenize", reads=False),
        Row("/detokenize", "detokenize", reads=False),
        Row("/apply-template", "apply_template", reads=False),
    ),
    error=error,
    stream=SSE,
    error_event=sse_event,
    keepalive=sse_comment,
    fields=Fields(
        turns=("messages", "input"),
        text=("prompt",),
        tools=("tools",),
        limits=("max_tokens", "max_completion_tokens"),
    ),
    pieces=(
        Piece(
            "delta",
            # `reasoning` is vLLM's and Ollama's; Mistral's thoughts are `text`
            inside=("content", "reasoning_content", "reasoning", "text", "arguments", "name", "refusal"),
        ),
        Piece("choices", inside=("text",), listed=True),  # a plain completion
    ),
    counts=(
        Counts(
            prompt="prompt_tokens",
            completion="completion_tokens",
            total="total_tokens",
            cached=("prompt_tokens_details", "cached_tokens"),
            reasoning=("completion_tokens_details", "reasoning_tokens"),
            whole=True,
        ),
    ),
    ends=Ends(words=(b"[DONE]",)),
    as_events=_as_events,
)
