"""The books of scripts/soak: what must agree, and that each kind of disagreement is seen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

METRICS = """\
gateway_requests_total{endpoint="/chat",provider="rig",user="alice",status="200",outcome="ok"} 1.0
gateway_tokens_total{direction="prompt",model="m",provider="rig",user="alice"} 3.0
gateway_tokens_total{direction="completion",model="m",provider="rig",user="alice"} 2.0
gateway_tokens_total{direction="cached",model="m",provider="rig",user="alice"} 1.0
gateway_requests_in_flight{provider="rig"} 0.0
"""


def _script(name: str) -> ModuleType:
    """Import one of the scripts; each imports its neighbours by their names."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


books_of = _script("soak_books")
watch = _script("soak_watch")


class Four:
    """Four books that agree on one request."""

    def __init__(self) -> None:
        self.books = books_of.Books()
        self.asked = self.books.ask(
            books_of.Asked("one", "buffered", status=200, ending="whole", body_bytes=9)
        )
        self.served = self.books.serve(books_of.Served("one", "rig", status=200, whole=True, tokens=(3, 2)))
        self.line: dict[str, Any] = {
            "time": "2026-01-02T03:04:05.678Z",
            "id": "one",
            "user": "alice",
            "provider": "rig",
            "endpoint": "/chat",
            "status": 200,
            "outcome": "ok",
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "estimated": False,
            "bytes_out": 9,
            "attempts": 1,
        }
        self.lines = [self.line]
        self.metrics = METRICS
        self.snapshot: dict[str, Any] = {
            "in_flight": 0,
            "requests": [],
            "providers": [{"name": "rig", "in_flight": 0, "waiting": 0}],
            "usage": {"day": "2026-01-02", "rows": [{"user": "alice", "requests": 1}]},
            "limits": [{"user": "alice", "name": "parallel", "used": 0}],
        }

    def disagreements(self) -> list[str]:
        found: list[str] = books_of.disagreements(self.books, self.lines, self.metrics, self.snapshot)
        return found


def test_four_books_that_say_the_same_agree() -> None:
    assert Four().disagreements() == []


Change = Callable[[Four], object]


def _lost(four: Four) -> None:
    four.lines.clear()


def _twice(four: Four) -> None:
    four.books.serve(books_of.Served("one", "rig", status=200, whole=True))
    four.line["attempts"] = 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_lost, "not logged"),
        (lambda four: four.lines.append(four.line), "logged more than once"),
        (lambda four: four.line.update(id="two"), "logged, but nobody asked"),
        (lambda four: four.line.update(status=502), "another status"),
        (lambda four: four.line.update(outcome="client_gone"), "another outcome"),
        (lambda four: four.line.update(outcome=""), "no outcome"),
        (lambda four: four.line.update(bytes_out=8), "another size"),
        (lambda four: four.line.update(prompt_tokens=4), "other tokens than told"),
        (lambda four: four.line.update(estimated=True), "other tokens than told"),
        (lambda four: four.line.update(provider="other"), "served by another"),
        (lambda four: four.line.update(attempts=0), "served more often than tried"),
        (lambda four: four.books.asked.clear(), "served, but nobody asked"),
        (lambda four: four.books.served.clear(), "ok, but never served"),
        (lambda four: setattr(four.asked, "ending", "cut"), "ok, but cut"),
        (lambda four: setattr(four.asked, "told", True), "ok, but an error was told"),
        (lambda four: setattr(four.asked, "forwarded", False), "answered by the gateway itself"),
        (lambda four: setattr(four.served, "whole", False), "ok, but not served whole"),
        (lambda four: setattr(four.asked, "sent", 7), "another body than was sent"),
        (_twice, "served well more than once"),
        (lambda four: setattr(four, "metrics", METRICS.replace("1.0", "2.0")), "metrics and log differ"),
        (lambda four: setattr(four, "metrics", METRICS.replace("3.0", "4.0")), "tokens of metrics"),
        (lambda four: setattr(four, "metrics", METRICS.replace("} 0.0", "} 1.0")), "is not 0"),
        (lambda four: four.snapshot.update(in_flight=1), "the page shows what is in flight"),
        (lambda four: four.snapshot["providers"][0].update(waiting=1), "a provider at work"),
        (lambda four: four.snapshot["usage"]["rows"][0].update(requests=2), "the page's usage"),
        (lambda four: four.snapshot["limits"][0].update(used=1), "the parallel ones"),
    ],
)
def test_whatever_differs_is_seen(change: Change, told: str) -> None:
    four = Four()
    change(four)
    assert any(told in each for each in four.disagreements())


def test_who_left_may_stand_in_the_log_or_not_and_however() -> None:
    four = Four()
    four.asked.ending, four.asked.status, four.asked.body_bytes = "left", 0, 0
    four.line.update(outcome="client_gone", status=499)
    assert books_of.disagreements(four.books, four.lines) == []
    four.books.served.clear()
    assert books_of.disagreements(four.books, []) == []


def test_of_a_stranger_that_was_ended_while_it_waited_there_need_be_no_line() -> None:
    four = Four()
    four.books.served.clear()
    four.asked.status, four.asked.error = 410, "cancelled"
    assert any("not logged" in each for each in books_of.disagreements(four.books, []))
    four.asked.known = False
    assert books_of.disagreements(four.books, []) == []


def test_of_who_was_turned_away_at_the_door_there_need_be_no_line() -> None:
    four = Four()
    four.books.served.clear()
    four.asked.status, four.asked.error = 503, "overloaded"
    assert books_of.disagreements(four.books, []) == []
    four.asked.error = "no_provider"
    assert any("not logged" in each for each in books_of.disagreements(four.books, []))


def test_a_request_that_failed_over_was_served_well_by_the_last_alone() -> None:
    four = Four()
    four.books.served["one"].insert(0, books_of.Served("one", "moody", status=200))
    four.line["attempts"] = 2
    assert four.disagreements() == []
    four.books.served["one"].reverse()
    assert any("served by another" in each for each in four.disagreements())


def held(*files: str, **more: Any) -> Any:
    """What a gateway holds that is at rest, and more."""
    nothing = dict.fromkeys(watch.NONE_LEFT, 0)
    return watch.Held({"tasks": {"run": 2}, **nothing, "files": ["socket", *files], "idle": 0, **more}, 0)


def test_nothing_that_is_held_for_requests_may_be_left_at_all() -> None:
    assert watch.more_than(held(), held()) == []
    for name in watch.NONE_LEFT:
        left = held(**{name: 3})
        assert any(name in each for each in watch.more_than(left, left)), name


def test_more_tasks_or_descriptors_than_at_first_are_named() -> None:
    after = held("pipe", tasks={"run": 2, "stray": 1})
    assert any("stray" in each for each in watch.more_than(held(), after))
    assert any("pipe" in each for each in watch.more_than(held(), after))


def test_a_connection_that_waits_for_the_next_look_at_its_provider_is_not_left_over() -> None:
    assert watch.more_than(held(), held("socket", idle=1)) == []
    assert watch.more_than(held(), held("socket", "socket", idle=1))


def test_memory_that_grows_is_told_from_memory_that_is_only_large() -> None:
    assert watch.grown([(float(at), 80_000_000) for at in range(40)]) == (0, 0.0)
    growth, mb_an_hour = watch.grown([(float(at), 80_000_000 + at * 1_000_000) for at in range(40)])
    assert growth == 20_000_000 and mb_an_hour == pytest.approx(3600)
