"""Which persons are known behind a key, and by what names."""

from __future__ import annotations

import pytest

from llmgateway.access.keys import Caller
from llmgateway.access.persons import IDLE_S, MOST_PERSONS, NAME_CHARACTERS, Persons, name_in

PAGE = Caller("page", person_header=b"x-user")


def named(persons: Persons, name: str, now: float = 0.0, caller: Caller = PAGE) -> str:
    return persons.named(caller, {b"x-user": name.encode()}, now=now).party


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"ann@example.org", "ann@example.org"),
        (b"  Ann Lee\t", "Ann Lee"),
        ("Zoë".encode(), "Zoë"),
        ("Zoë".encode("latin-1"), "Zoë"),
        ("a\x1b[31mn\u202en\u200b".encode(), "a[31mnn"),
        (b"x" * 10_000, "x" * NAME_CHARACTERS),
        ("\u200b \x7f".encode(), ""),
        (b"", ""),
        (b"sk-alice-0123456789abcdefghijklmnopqrstuvwxyz", "sk-***"),
    ],
)
def test_a_name_is_what_can_be_shown_of_a_header(value: bytes, name: str) -> None:
    assert name_in(value) == name


def test_a_person_is_counted_apart_and_without_a_name_it_is_the_user() -> None:
    persons = Persons()
    assert named(persons, "ann") == "page/ann"
    assert named(persons, "") == "page"
    assert persons.named(PAGE, {}, now=0) is PAGE
    assert named(persons, "ann", caller=Caller("bob")) == "bob"
    assert persons.of("page") == ["ann"] and persons.of("bob") == []


def test_beyond_a_bound_who_is_new_counts_as_the_user_until_somebody_was_not_seen_for_long() -> None:
    persons = Persons()
    for number in range(MOST_PERSONS):
        assert named(persons, str(number), now=number) == f"page/{number}"
    assert named(persons, "new", now=MOST_PERSONS) == "page"
    assert named(persons, "0", now=MOST_PERSONS) == "page/0"
    assert named(persons, "new", now=IDLE_S + 1.5) == "page/new"
    assert named(persons, "newer", now=IDLE_S + 1.5) == "page"
    assert len(persons.of("page")) == MOST_PERSONS
    assert persons.of("page")[:2] == ["new", "0"]


def test_the_persons_of_a_user_who_is_gone_are_forgotten() -> None:
    persons = Persons()
    named(persons, "ann")
    persons.keep({"bob"})
    assert persons.of("page") == []
