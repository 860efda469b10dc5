"""The request log added up: its sums are right, and its table is safe."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.books.line import Line
from llmgateway.cli.usage import COLUMNS, MAX_GROUPS, OTHERS, Sums, Usage, add_up, as_json, render
from tests.books.lines import HOUR_S, NOON, line, read, refused


def summed(usage: Usage) -> dict[tuple[str, ...], Sums]:
    return dict(usage.groups)


def test_requests_are_added_up_by_user_and_model_the_most_tokens_first() -> None:
    usage = add_up(
        [
            line(),
            line(estimated=True),
            line(outcome="client_gone", completion_tokens=None),
            line(user="bob", prompt_tokens=1000, completion_tokens=0),
            line(model="n", prompt_tokens=20, completion_tokens=25, cached_tokens=9999),
            refused(),
        ]
    )
    assert usage.by == ("user", "model")
    assert usage.groups == (
        (("bob", "m"), Sums(1, 0, 1000, 0, 4, 2, 0)),
        (("alice", "n"), Sums(1, 0, 20, 25, 9999, 2, 0)),
        (("alice", "m"), Sums(3, 1, 30, 10, 12, 6, 1)),
        (("-", "-"), Sums(1, 1, 0, 0, 0, 0, 0)),
    )
    assert usage.total == Sums(6, 2, 1050, 35, 10_015, 10, 1)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("user", ["alice", "-"]), ("key", ["laptop", "-"]), ("model", ["m", "-"]), ("provider", ["rig", "-"]),
        ("endpoint", ["/v1/chat/completions"]), ("day", ["2026-11-25", "2026-11-26"]),
        ("outcome", ["ok", "invalid_api_key"]), ("instance", ["-"]),
    ],
)  # fmt: skip
def test_every_column_can_be_grouped_by(column: str, names: list[str]) -> None:
    usage = add_up([line(NOON + 11.99 * HOUR_S), refused(NOON + 12 * HOUR_S)], by=[column])
    assert [group for group, _ in usage.groups] == [(name,) for name in names]


def test_the_columns_are_the_allowed_ones() -> None:
    assert add_up([line()], by=COLUMNS).by == COLUMNS
    assert add_up([line()], by=("user", "day", "user")).by == ("user", "day")


@pytest.mark.parametrize("by", [["colour"], ["user", "time"], ["\x1b[31m"], []])
def test_a_column_that_is_not_there_is_refused_in_words(by: list[str]) -> None:
    with pytest.raises(
        ValueError, match="user, person, key, model, provider, endpoint, day, outcome, instance"
    ) as caught:
        add_up([], by=by)
    assert str(caught.value).isprintable()


def test_values_of_the_wrong_type_count_for_nothing() -> None:
    odd: dict[str, Any] = {
        "user": ["a"],
        "model": 7,
        "prompt_tokens": "9",
        "completion_tokens": -5,
        "cached_tokens": 1.5,
    }
    usage = add_up([line(**odd, reasoning_tokens=True, estimated="yes"), read({"time": "2026"})])
    assert summed(usage) == {("-", "-"): Sums(requests=2, failed=1)}


def test_more_groups_than_can_be_held_are_added_up_together() -> None:
    usage = add_up(line(model=f"m{number}") for number in range(MAX_GROUPS + 5))
    assert len(usage.groups) == MAX_GROUPS + 1
    assert summed(usage)[OTHERS, OTHERS].requests == 5
    assert usage.total.requests == MAX_GROUPS + 5


Names = st.one_of(st.none(), st.sampled_from(["alice", "bob", "", "-"]))
Numbers = st.one_of(st.none(), st.integers(0, 1000))
Entries = st.lists(
    st.builds(
        line, user=Names, model=Names, outcome=st.sampled_from(["ok", "client_gone"]),
        prompt_tokens=Numbers, completion_tokens=Numbers, cached_tokens=Numbers, reasoning_tokens=Numbers,
        estimated=st.booleans(),
    )
)  # fmt: skip


@given(rows=Entries, by=st.lists(st.sampled_from(COLUMNS), min_size=1))
def test_the_groups_add_up_to_the_total_however_they_are_made(rows: list[Line], by: list[str]) -> None:
    usage = add_up(rows, by)
    for name in ("requests", "failed", "prompt", "completion", "cached", "reasoning", "estimated"):
        assert sum(getattr(sums, name) for _, sums in usage.groups) == getattr(usage.total, name)
    tokens = [sums.tokens for _, sums in usage.groups]
    assert tokens == sorted(tokens, reverse=True)


def test_the_table_is_plain_and_aligned() -> None:
    rows = [line(prompt_tokens=1_234_567), line(user="a-longer-name", model="qwen3-8b"), refused()]
    assert render(add_up(rows)) == (
        """\
USER           MODEL     REQUESTS  FAILED     PROMPT  COMPLETION  CACHED  REASONING  ESTIMATED
----------------------------------------------------------------------------------------------
alice          m                1       0  1,234,567           5       4          2          0
a-longer-name  qwen3-8b         1       0         10           5       4          2          0
-              -                1       1          0           0       0          0          0
----------------------------------------------------------------------------------------------
total                           3       1  1,234,577          10       8          4          0"""
    )


def test_as_json_a_row_has_the_names_and_the_sums_of_a_group() -> None:
    told = as_json(add_up([line(instance="gw1"), line(instance="gw2"), line(instance="gw2")], ["instance"]))
    assert [(row["instance"], row["requests"], row["prompt"]) for row in told["rows"]] == [
        ("gw2", 2, 20),
        ("gw1", 1, 10),
    ]
    assert told["total"]["requests"] == 3


def test_a_table_of_nothing_has_its_head_and_its_total() -> None:
    head, *_, total = render(add_up([], by=["day"])).splitlines()
    assert head.split()[:2] == ["DAY", "REQUESTS"]
    assert total.split() == ["total", *"0000000"]


@given(name=st.text(min_size=1))
def test_nothing_in_a_name_reaches_the_terminal_raw(name: str) -> None:
    drawn = render(add_up([line(user=name, model=name)])).split("\n")
    assert len(drawn) == 5
    assert all(line.isprintable() for line in drawn)
