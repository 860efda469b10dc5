"""What is told of a request that has ended: its line in the request log, both ways, and one for people.

Rules:

- Never a prompt, an answer or a key. Names that a client chose are cut before people get to read them.
- What is read back is foreign: values of the wrong type count for nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import orjson

from llmgateway.api.usage import Tokens
from llmgateway.books.entry import Ended, Entry
from llmgateway.log import Events

events = Events("requests")

DAY_CHARACTERS: Final = len("2026-11-25")
"""So much of a line's time is the day."""
_LOGGED_CHARACTERS: Final = 100  # of what a client chose

# --- Written --------------------------------------------------------------------------------------


def line_of(entry: Entry, tokens: Tokens | None, time: str, now: float, instance: str = "") -> dict[str, Any]:
    """Give a request's line in the request log: never a prompt, an answer or a key."""
    first_byte_at = entry.first_byte_at
    line = {
        "time": time,
        "id": entry.id,
        "user": entry.user,
        "key": entry.key,
        "model": entry.model or None,
        "provider": entry.provider or None,
        "endpoint": entry.endpoint,
        "status": entry.status,
        "outcome": entry.outcome,
        "queue_ms": milliseconds(entry.queue_s),
        "first_byte_ms": None if first_byte_at is None else milliseconds(first_byte_at - entry.began),
        "total_ms": milliseconds(now - entry.began),
        "prompt_tokens": None if tokens is None else tokens.prompt,
        "completion_tokens": None if tokens is None else tokens.completion,
        "cached_tokens": None if tokens is None else tokens.cached,
        "reasoning_tokens": None if tokens is None else tokens.reasoning,
        "estimated": tokens is not None and tokens.estimated,
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
        "attempts": entry.attempts,
        "stream": entry.streams,
        "affinity": entry.affinity,
    }
    if entry.asked_model:
        line["asked_model"] = entry.asked_model
    if entry.person is not None:  # few keys have any, and the line is long enough
        line["person"] = entry.person
    if instance:
        line["instance"] = instance
    return line


def milliseconds(seconds: float) -> float:
    """Round a duration to what is told of it. It takes a third of what `round` takes."""
    return int(seconds * 10_000 + 0.5) / 10


def moment(wall: float) -> str:
    """Write epoch seconds as the request log does: UTC, to the millisecond."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Times:
    """Writes times as `moment` does, without doing all of the work more than once a second."""

    def __init__(self) -> None:
        self._second = (0, "")

    def write(self, wall: float) -> str:
        """Write epoch seconds."""
        second = int(wall)
        if self._second[0] != second:
            self._second = second, moment(second)[: -len("000Z")]
        return f"{self._second[1]}{str(1000 + int((wall - second) * 1000))[1:]}Z"


# --- Read back ------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, gc=False):
    """What a line of the request log tells of a request; names are empty where there are none."""

    time: str
    id: str
    instance: str
    """The gateway that wrote it, where several have names."""
    user: str
    person: str
    key: str
    model: str
    """Empty for one that has reached no provider: anybody can ask for any name."""
    provider: str
    endpoint: str
    outcome: str
    tokens: Tokens

    @property
    def day(self) -> str:
        """The day when it ended, in UTC."""
        return self.time[:DAY_CHARACTERS]


def read_line(text: bytes) -> Line | None:
    """Read a line of the request log; None if it cannot be used."""
    try:
        told = orjson.loads(text)
        time = told["time"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if type(time) is not str:
        return None
    named = told.get
    tokens = Tokens(
        _count(named("prompt_tokens")),
        _count(named("completion_tokens")),
        _count(named("cached_tokens")),
        _count(named("reasoning_tokens")),
        named("estimated") is True,
    )
    return Line(
        time,
        _name(named("id")),
        _name(named("instance")),
        _name(named("user")),
        _name(named("person")),
        _name(named("key")),
        "" if named("attempts") == 0 else _name(named("model")),
        _name(named("provider")),
        _name(named("endpoint")),
        _name(named("outcome")),
        tokens,
    )


def _name(value: object) -> str:
    return value if type(value) is str else ""


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


# --- For people -----------------------------------------------------------------------------------


def log_all(ended: Sequence[Ended]) -> None:
    """Tell in the log what became of requests."""
    if events.tells_info:
        events.info_each("request", [_told(entry, now) for entry, now, _ in ended])


def _told(entry: Entry, now: float) -> dict[str, object]:
    """Give what the log tells of a request."""
    return {
        "path": entry.endpoint[:_LOGGED_CHARACTERS],
        "status": entry.status,
        "outcome": "" if entry.outcome == "ok" else entry.outcome,
        "model": entry.model[:_LOGGED_CHARACTERS],
        "asked_model": entry.asked_model[:_LOGGED_CHARACTERS],
        "affinity": entry.affinity,
        "user": entry.user,
        "person": entry.person,
        "key": entry.key,
        "provider": entry.provider,
        "client": entry.address,
        "attempts": entry.attempts if entry.attempts > 1 else None,
        "waited_ms": milliseconds(entry.queue_s) if entry.queue_s else None,
        "ms": milliseconds(now - entry.began),
        "bytes": entry.bytes_out,
        "request": entry.id,
    }
