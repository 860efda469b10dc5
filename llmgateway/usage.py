"""Read token counts off passing bytes, without holding or touching them.

An answer tells its usage near one of its ends: OpenAI's and llama.cpp's at the end, Anthropic's prompt tokens
in the first event. So the first and the last few kilobytes are kept, and looked at once, when the answer is
over. Where nothing was told, output is estimated from the number of events in the stream.

What Anthropic's first event says of the output is no count of it yet, and a stream may break off before the
last one: there, too, output is estimated.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

FIRST_BYTES: Final = 4 * 1024
LAST_BYTES: Final = 16 * 1024
_MARKS: Final = (b'"usage"', b'"timings"')
_EVENT: Final = b"\ndata:"
_BEGINNING: Final = re.compile(rb'"type"\s*:\s*"message_start"')
_DONE: Final = b"\ndata: [DONE]"
_PROMPT: Final = ("prompt_tokens", "input_tokens")
_COMPLETION: Final = ("completion_tokens", "output_tokens", "predicted_n")
_CACHED: Final = ("cached", "cache_read_input_tokens", "cache_n")
_COUNTS: Final = frozenset((*_PROMPT, *_COMPLETION, *_CACHED, "prompt_n", "cache_creation_input_tokens"))
_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request cost.

    `prompt` includes what was cached; `estimated` says that the server did not tell.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: bool = True


class Meter:
    """Watches one answer go by."""

    __slots__ = ("_events", "_first", "_last", "_passed", "_seam", "_sse")

    def __init__(self, *, sse: bool) -> None:
        self._sse = sse
        self._first = b""
        self._last = bytearray()
        self._passed = 0
        self._events = 0
        self._seam = b"\n"

    def feed(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        if len(self._first) < FIRST_BYTES:
            self._first += data[: FIRST_BYTES - len(self._first)]
        if len(data) >= LAST_BYTES:
            self._last.clear()
        elif len(self._last) > 2 * LAST_BYTES:  # seldom, since it moves what is kept
            del self._last[:-LAST_BYTES]
        self._last += data[-LAST_BYTES:]
        self._passed += len(data)
        if self._sse:
            self._count_events(data)

    def _count_events(self, data: bytes) -> None:
        seam = self._seam + data[: len(_EVENT) - 1]
        self._events += seam.count(_EVENT) + data.count(_EVENT)
        self._seam = (self._seam + data[-len(_EVENT) :])[1 - len(_EVENT) :]

    def tokens(self, prompt_estimate: int) -> Tokens:
        """Give what the answer cost: as the server told it, else an estimate."""
        told: dict[str, int] = {}
        for part in self._kept():
            for found in _objects(part):
                told |= found
        completion = _told(told, *_COMPLETION)
        if completion is None and not self._sse and told:
            completion = 0  # an embedding has no output
        guessed = max(0, self._events - self._last.count(_DONE))
        prompt = _prompt(told)
        return Tokens(
            prompt_estimate if prompt is None else prompt,
            guessed if completion is None else completion,
            _told(told, *_CACHED) or 0,
            estimated=prompt is None or completion is None,
        )

    def _kept(self) -> list[bytes]:
        """Give both ends of the answer, or the whole if they meet: half an event may tell the wrong thing."""
        first, last = self._first, bytes(self._last)
        twice = len(first) + len(last) - self._passed
        return [first, last] if twice < 0 else [first + last[twice:]]


def _prompt(told: dict[str, int]) -> int | None:
    """Add up what is told apart: Anthropic and llama.cpp's timings do not count what was cached."""
    if "prompt_tokens" in told:
        return told["prompt_tokens"]
    if "input_tokens" in told:
        kept = told.get("cache_read_input_tokens", 0) + told.get("cache_creation_input_tokens", 0)
        return told["input_tokens"] + kept
    return told["prompt_n"] + told.get("cache_n", 0) if "prompt_n" in told else None


def _objects(part: bytes) -> list[dict[str, int]]:
    """Find what the objects that stand behind a mark tell, in their order."""
    found: list[tuple[int, dict[str, int]]] = []
    for mark in _MARKS:
        at = part.find(mark)
        while at >= 0:
            value = _object_at(part, at + len(mark))
            if value is not None:
                found.append((at, _counts(value, begins=_begins(part, at))))
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


def _counts(usage: dict[str, Any], *, begins: bool) -> dict[str, int]:
    """Keep the counts that we know."""
    names = _COUNTS.difference(_COMPLETION) if begins else _COUNTS
    counts = {name: usage[name] for name in names if _is_count(usage.get(name))}
    for details in (usage.get(name) for name in _DETAILS):
        if isinstance(details, dict) and _is_count(details.get("cached_tokens")):
            counts["cached"] = details["cached_tokens"]
    return counts


def _begins(part: bytes, at: int) -> bool:
    """Tell whether a place is in an event that begins an answer, and so cannot know how long it will be."""
    start, end = part.rfind(_EVENT, 0, at), part.find(b"\n", at)
    return bool(_BEGINNING.search(part, max(start, 0), end if end >= 0 else len(part)))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _told(told: dict[str, int], *names: str) -> int | None:
    return next((told[name] for name in names if name in told), None)
