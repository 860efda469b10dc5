"""How much output an answer has that does not say so: an estimate, by the bytes of its text."""

from typing import Any, Final

import orjson

BYTES_A_TOKEN: Final = 4
_TEXTS: Final = frozenset(
    (
        "content",
        "reasoning_content",
        "reasoning",
        "text",
        "thinking",
        "arguments",
        "name",
        "refusal",
        "response",
    )
)
_ANSWERS: Final = frozenset(("choices", "content", "output", "message", "response"))


def tokens_of(text_bytes: int) -> int:
    """Guess how many tokens a text has."""
    return -(-text_bytes // BYTES_A_TOKEN)


def bytes_of_output(body: bytes) -> int:
    """Give the bytes of the text in a whole answer; of one in no shape that is known, all bytes."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return len(body)
    if not isinstance(answer, dict) or _ANSWERS.isdisjoint(answer):
        return len(body)
    size = 0
    waiting: list[Any] = [{key: answer[key] for key in _ANSWERS & answer.keys()}]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            for name, inside in value.items():
                if isinstance(inside, str):
                    size += len(inside.encode("utf-8", "replace")) if name in _TEXTS else 0
                elif name == "input":  # the arguments of a tool, in Anthropic's words
                    size += len(orjson.dumps(inside))
                elif name != "logprobs":
                    waiting.append(inside)
    return size
