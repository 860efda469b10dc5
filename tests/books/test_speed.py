"""How fast each provider writes, as far as its answers have come."""

from __future__ import annotations

from llmgateway.api.usage import Meter
from llmgateway.books.entry import Entry
from llmgateway.books.speed import HISTORY_MINUTES, Speeds, tokens_per_s

NOW, WALL = 1_000.0, 1_790_380_830.0  # in the middle of a minute
CHUNK = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'


def answering(provider: str, *, chunks: int, for_s: float) -> Entry:
    entry = Entry("id", "/v1/chat/completions", NOW - for_s)
    entry.provider, entry.first_byte_at = provider, NOW - for_s
    entry.meter = Meter(stream=True)
    for _ in range(chunks):
        entry.meter.feed(CHUNK)
    return entry


def test_what_is_in_flight_counts_for_the_provider_that_answers_it() -> None:
    waits = Entry("id", "/v1/chat/completions", NOW)
    flight = [
        answering("a", chunks=20, for_s=10.0),
        answering("b", chunks=30, for_s=10.0),
        answering("a", chunks=40, for_s=20.0),
        waits,
    ]
    speeds = Speeds(flight)
    answers = speeds.answering(now=NOW)
    assert {provider: tokens_per_s(some) for provider, some in answers.items()} == {"a": 4.0, "b": 3.0}
    quiet = [0.0] * (HISTORY_MINUTES - 1)
    assert speeds.hour("a", answers["a"], wall=WALL) == [*quiet, 1.0]
    assert speeds.hour("b", answers["b"], wall=WALL) == [*quiet, 0.5]
    assert speeds.hour("c", (), wall=WALL) == [*quiet, 0.0]
