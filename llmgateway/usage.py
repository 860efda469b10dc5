"""Read token counts off passing bytes, without holding or touching them.

An answer tells its usage near one of its ends: OpenAI's and llama.cpp's at the end, Anthropic's prompt tokens
in the first event. So the first and the last few kilobytes are kept, and looked at once, when the answer is
over. Where nothing was told, output is estimated from the number of events in the stream.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import orjson

FIRST_BYTES: Final = 4 * 1024
LAST_BYTES: Final = 16 * 1024
_MARKS: Final = (b'"usage"', b'"timings"')


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request cost. `estimated` says that the server did not tell."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: bool = True


class Meter:
    """Watches one answer go by."""

    __slots__ = ("_events", "_first", "_kept", "_last", "_sse")

    def __init__(self, *, sse: bool) -> None:
        self._sse = sse
        self._first = b""
        self._last: deque[bytes] = deque()
        self._kept = 0
        self._events = 0

    def feed(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        if len(self._first) < FIRST_BYTES:
            self._first += data[: FIRST_BYTES - len(self._first)]
        self._last.append(data)
        self._kept += len(data)
        while self._kept - len(self._last[0]) >= LAST_BYTES:
            self._kept -= len(self._last.popleft())
        if self._sse:
            self._events += data.count(b"data:")

    def tokens(self, prompt_estimate: int) -> Tokens:
        """Give what the answer cost: as the server told it, else an estimate."""
        told: dict[str, Any] = {}
        for part in (self._first, b"".join(self._last)):
            for found in _objects(part):
                told |= {name: value for name, value in found.items() if value is not None}
        prompt = _count(told, "prompt_tokens", "input_tokens")
        completion = _count(told, "completion_tokens", "output_tokens", "predicted_n")
        if prompt is None and "prompt_n" in told:
            prompt = (_count(told, "prompt_n") or 0) + (_count(told, "cache_n") or 0)
        if prompt is None and completion is None:
            return Tokens(prompt_estimate, self._events)
        return Tokens(prompt or 0, completion or 0, _cached(told), estimated=False)


def _objects(part: bytes) -> list[dict[str, Any]]:
    """Find the objects that stand behind a mark, in their order."""
    found: list[tuple[int, dict[str, Any]]] = []
    for mark in _MARKS:
        at = part.find(mark)
        while at >= 0:
            value = _object_at(part, at + len(mark))
            if value is not None:
                found.append((at, value))
            at = part.find(mark, at + len(mark))
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def _object_at(part: bytes, start: int) -> dict[str, Any] | None:
    """Parse `: {...}`: usage objects hold only numbers and small objects, so braces can be counted."""
    opening = part.find(b"{", start, start + 8)
    if opening < 0 or part[start:opening].strip(b" \t\r\n:"):
        return None
    depth = 0
    for at in range(opening, min(len(part), opening + 2048)):
        depth += {0x7B: 1, 0x7D: -1}.get(part[at], 0)
        if depth == 0:
            try:
                value = orjson.loads(part[opening : at + 1])
            except orjson.JSONDecodeError:
                return None
            return value if isinstance(value, dict) else None
    return None


def _count(told: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = told.get(name)
        if type(value) is int and value >= 0:
            return value
    return None


def _cached(told: dict[str, Any]) -> int:
    details = told.get("prompt_tokens_details")
    if isinstance(details, dict) and (cached := _count(details, "cached_tokens")) is not None:
        return cached
    return _count(told, "cache_read_input_tokens", "cache_n") or 0
