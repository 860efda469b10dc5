"""What is booked together is booked as it would be one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.api.usage import Tokens
from llmgateway.books.entry import Entry
from llmgateway.books.ledger import Ledger
from llmgateway.books.line import Line, read_line
from llmgateway.books.metrics import Metrics
from llmgateway.books.totals import totals_of

MIDNIGHT = 1_790_380_800.0  # 2026-09-26T00:00:00Z
COUNTS = st.integers(0, 50)
TOKENS = st.builds(Tokens, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans())
MOMENTS = st.floats(0, 200, allow_nan=False)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    entry = Entry(draw(st.sampled_from("ab")), "/v1/chat/completions", 1000.0 - draw(MOMENTS))
    entry.user = draw(st.sampled_from(["alice", "bob", None]))
    entry.person = draw(st.sampled_from(["ann@example.org", None])) if entry.user == "bob" else None
    entry.key = draw(st.sampled_from(["laptop", None]))
    entry.model = draw(st.sampled_from(["m", "unknown", ""]))
    entry.status, entry.outcome = draw(
        st.sampled_from([(200, "ok"), (502, "upstream_error"), (499, "client_gone")])
    )
    if draw(st.booleans()):
        entry.provider, entry.attempts = "rig", 1
        entry.overhead_s, entry.queue_s = draw(MOMENTS) / 1000, draw(MOMENTS)
        if draw(st.booleans()):
            entry.first_byte_at = entry.began + draw(st.floats(0, 1000.0 - entry.began))
            entry.tokens = draw(TOKENS)
    return entry


class Books:
    """A ledger, with all that can be read off it."""

    def __init__(self, later: Callable[[Callable[[], None]], object]) -> None:
        self.metrics = Metrics("1")
        self.lines: list[Mapping[str, Any]] = []
        self.ledger = Ledger(self.metrics, self._write, lambda model: model == "m", later)

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.lines += lines

    def told(self, now: float, wall: float) -> tuple[object, ...]:
        page = self.metrics.render("")[0].decode()
        series = sorted(line for line in page.splitlines() if line.startswith("gateway_"))
        rounded = [
            (name, round(float(value), 6)) for name, _, value in (each.rpartition(" ") for each in series)
        ]
        speeds = self.ledger.speeds
        answers = speeds.answering(now=now).get("rig", ())
        hour = [round(rate, 2) for rate in speeds.hour("rig", answers, wall=wall)]
        return rounded, hour, self.lines, list(self.ledger.recent), self.ledger.totals


@given(st.lists(entries(), max_size=12), st.floats(-100, 100))
def test_what_is_booked_together_is_booked_as_one_by_one(ended: list[Entry], from_midnight_s: float) -> None:
    together, apart = Books(lambda book: None), Books(lambda book: book())
    for number, entry in enumerate(ended):
        for books in (together, apart):
            copy = replace(entry)
            books.ledger.close(copy, now=1000.0, wall=MIDNIGHT + from_midnight_s + number)
    together.ledger.book()
    wall = MIDNIGHT + from_midnight_s + len(ended)
    assert together.told(1000.0, wall) == apart.told(1000.0, wall)


@given(st.lists(entries(), max_size=12), st.floats(-100, 100))
def test_what_the_lines_tell_adds_up_to_what_was_booked(ended: list[Entry], from_midnight_s: float) -> None:
    books = Books(lambda book: None)
    for number, entry in enumerate(ended):
        books.ledger.close(entry, now=1000.0, wall=MIDNIGHT + from_midnight_s + number)
    books.ledger.book()
    assert totals_of(map(read_back, books.lines)) == books.ledger.totals


def read_back(line: Mapping[str, Any]) -> Line:
    found = read_line(json.dumps(line).encode())
    assert found is not None
    return found


def test_one_that_cannot_be_booked_does_not_take_others_along(caplog: pytest.LogCaptureFixture) -> None:
    books = Books(lambda book: None)
    for number in range(3):
        entry = Entry(str(number), "/v1/embeddings", 0.0, user="alice")
        if number == 1:
            entry.began = cast(float, None)
        books.ledger.close(entry, now=1.0, wall=MIDNIGHT)
    books.ledger.book()
    assert [line["id"] for line in books.lines] == ["0", "2"]
    assert sum(totals.requests for totals in books.ledger.totals.values()) == 2
    assert "booking failed" in caplog.text


class Nameless:
    """A status that nobody can write down."""

    def __str__(self) -> str:
        raise RuntimeError("I have no name")


def test_one_kind_that_cannot_be_booked_does_not_take_others_along(caplog: pytest.LogCaptureFixture) -> None:
    books = Books(lambda book: None)
    for status in (Nameless(), 200):
        entry = Entry("0", "/v1/embeddings", 0.0, status=cast(int, status))
        books.ledger.close(entry, now=1.0, wall=MIDNIGHT)
    books.ledger.book()
    assert 'status="200"' in books.metrics.render("")[0].decode()
    assert "booking failed" in caplog.text


def test_where_nothing_has_ended_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    books = Books(lambda book: None)
    books.ledger.book()
    assert (books.lines, caplog.records) == ([], [])
