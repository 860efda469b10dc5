"""The request log read back: whatever happened to its files, its sums are right and its table is safe."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.books.history import (
    COLUMNS,
    MAX_CELL,
    MAX_GROUPS,
    MAX_LINE_BYTES,
    OTHERS,
    History,
    Sums,
    Table,
    printable,
    render,
    tabulate,
)
from llmgateway.books.line import Line, read_line

NOON: Final = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR_S: Final = 3600.0
UNKNOWN: Final = (
    *("user", "key", "model", "provider", "first_byte_ms"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
)


def entry(at: float = NOON, **more: Any) -> dict[str, Any]:
    """A line of the request log, as a value."""
    told = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "time": told, "id": "req_1", "user": "alice", "key": "laptop", "model": "m", "provider": "rig",
        "endpoint": "/v1/chat/completions", "status": 200, "outcome": "ok",
        "queue_ms": 0.0, "first_byte_ms": 12.3, "total_ms": 80.1,
        "prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4, "reasoning_tokens": 2,
        "estimated": False, "bytes_in": 120, "bytes_out": 900, "attempts": 1, "stream": True,
        "affinity": "hit", **more,
    }  # fmt: skip


def read(told: dict[str, Any]) -> Line:
    """A line as it is read back."""
    found = read_line(json.dumps(told).encode())
    assert found is not None
    return found


def line(at: float = NOON, **more: Any) -> Line:
    """A line of the request log, read back."""
    return read(entry(at, **more))


def refused(at: float = NOON) -> Line:
    """The line of a request without a good key."""
    return read(entry(at, status=401, outcome="invalid_api_key") | dict.fromkeys(UNKNOWN))


def write(path: Path, entries: Iterable[dict[str, Any]], *, mtime: float = NOON) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    os.utime(path, (mtime, mtime))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def keys(log: Path, since: float = 0.0) -> list[str]:
    return [line.key for line in History(log).read(since)]


def summed(table: Table) -> dict[tuple[str, ...], Sums]:
    return dict(table.groups)


# --- Reading --------------------------------------------------------------------------------------


def test_rotated_files_are_read_oldest_first(log: Path) -> None:
    for number, suffix in enumerate(["", ".1", ".2", ".9", ".10", ".11"]):
        write(log.with_name(log.name + suffix), [entry(key=f"{number}a"), entry(key=f"{number}b")])
    assert keys(log) == ["5a", "5b", "4a", "4b", "3a", "3b", "2a", "2b", "1a", "1b", "0a", "0b"]


def test_only_files_of_this_log_are_read(log: Path) -> None:
    write(log, [entry(key="mine")])
    for other in ("requests.jsonl.bak", "requests.jsonl.1.gz", "requests.jsonl.01", "xrequests.jsonl.1",
                  "requestsXjsonl.1", "requests.jsonl.0"):  # fmt: skip
        write(log.with_name(other), [entry(key="other")])
    assert keys(log) == ["mine"]


def test_a_log_just_rotated_away_is_read_from_what_is_left(log: Path) -> None:
    write(log.with_name("requests.jsonl.1"), [entry(key="older")])
    assert keys(log) == ["older"]


def test_a_file_that_is_met_twice_is_read_once(log: Path) -> None:
    write(log, [entry(key="only")])
    log.with_name("requests.jsonl.1").hardlink_to(log)
    assert keys(log) == ["only"]


@pytest.mark.parametrize("path", ["requests.jsonl", "no/such/place/requests.jsonl"])
def test_where_there_is_no_log_it_says_so(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no request log at .*jsonl"):
        keys(tmp_path / path)


def test_since_is_the_moment_when_a_request_ended(log: Path) -> None:
    write(log, [entry(NOON - 0.001, key="before"), entry(NOON, key="then"), entry(NOON + 0.001, key="after")])
    assert keys(log, NOON) == ["then", "after"]
    assert keys(log) == keys(log, -1e15) == ["before", "then", "after"]


def test_files_that_ended_before_are_not_even_looked_at(log: Path) -> None:
    write(log, [entry()])
    log.with_name("requests.jsonl.1").write_text("not a log\n" * 10)
    os.utime(log.with_name("requests.jsonl.1"), (NOON - HOUR_S, NOON - HOUR_S))
    history = History(log)
    assert len(list(history.read(NOON - 60))) == 1
    assert history.skipped == 0
    assert len(list(history.read(NOON - 2 * HOUR_S))) == 1
    assert history.skipped == 10


def test_lines_that_cannot_be_used_are_skipped_and_counted(log: Path) -> None:
    good = json.dumps(entry(key="good")).encode()
    bad = (
        good[:100], b"", b"\0" * 50, b"[1, 2]", b'"time"', b"7", b"null", b"{}", b'{"time": 5}',
        b'{"time": null}', b'{"time": "\xff"}', b"[" * 5000, good[:50] + good,
    )  # fmt: skip
    log.write_bytes(b"\n".join([good, *bad, good, good[:-9]]))
    history = History(log)
    assert [line.key for line in history.read()] == ["good", "good"]
    assert history.skipped == len(bad) + 1


def test_one_endless_line_does_not_fill_the_memory(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(2000 * MAX_LINE_BYTES)  # a sparse file, as a crash may leave it
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + json.dumps(entry(key="good")).encode() + b"\n")
    tracemalloc.start()
    try:
        assert keys(log) == ["good"]
        assert tracemalloc.get_traced_memory()[1] < 20 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_long_log_is_streamed(log: Path) -> None:
    write(log, (entry(key=str(number)) for number in range(20_000)))
    tracemalloc.start()
    try:
        assert tabulate(History(log).read()).total.requests == 20_000
        assert tracemalloc.get_traced_memory()[1] < log.stat().st_size / 10
    finally:
        tracemalloc.stop()


# --- Adding up ------------------------------------------------------------------------------------


def test_requests_are_added_up_by_user_and_model_the_most_tokens_first() -> None:
    table = tabulate(
        [
            line(),
            line(estimated=True),
            line(outcome="client_gone", completion_tokens=None),
            line(user="bob", prompt_tokens=1000, completion_tokens=0),
            line(model="n", prompt_tokens=20, completion_tokens=25, cached_tokens=9999),
            refused(),
        ]
    )
    assert table.by == ("user", "model")
    assert table.groups == (
        (("bob", "m"), Sums(1, 0, 1000, 0, 4, 2, 0)),
        (("alice", "n"), Sums(1, 0, 20, 25, 9999, 2, 0)),
        (("alice", "m"), Sums(3, 1, 30, 10, 12, 6, 1)),
        (("-", "-"), Sums(1, 1, 0, 0, 0, 0, 0)),
    )
    assert table.total == Sums(6, 2, 1050, 35, 10_015, 10, 1)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("user", ["alice", "-"]), ("key", ["laptop", "-"]), ("model", ["m", "-"]), ("provider", ["rig", "-"]),
        ("endpoint", ["/v1/chat/completions"]), ("day", ["2026-11-25", "2026-11-26"]),
        ("outcome", ["ok", "invalid_api_key"]),
    ],
)  # fmt: skip
def test_every_column_can_be_grouped_by(column: str, names: list[str]) -> None:
    table = tabulate([line(NOON + 11.99 * HOUR_S), refused(NOON + 12 * HOUR_S)], by=[column])
    assert [group for group, _ in table.groups] == [(name,) for name in names]


def test_the_columns_are_the_allowed_ones() -> None:
    assert tabulate([line()], by=COLUMNS).by == COLUMNS
    assert tabulate([line()], by=("user", "day", "user")).by == ("user", "day")


@pytest.mark.parametrize("by", [["colour"], ["user", "time"], ["\x1b[31m"], []])
def test_a_column_that_is_not_there_is_refused_in_words(by: list[str]) -> None:
    with pytest.raises(ValueError, match="user, key, model, provider, endpoint, day, outcome") as caught:
        tabulate([], by=by)
    assert str(caught.value).isprintable()


def test_values_of_the_wrong_type_count_for_nothing() -> None:
    odd: dict[str, Any] = {
        "user": ["a"],
        "model": 7,
        "prompt_tokens": "9",
        "completion_tokens": -5,
        "cached_tokens": 1.5,
    }
    table = tabulate([line(**odd, reasoning_tokens=True, estimated="yes"), read({"time": "2026"})])
    assert summed(table) == {("-", "-"): Sums(requests=2, failed=1)}


def test_more_groups_than_can_be_held_are_added_up_together() -> None:
    table = tabulate(line(model=f"m{number}") for number in range(MAX_GROUPS + 5))
    assert len(table.groups) == MAX_GROUPS + 1
    assert summed(table)[OTHERS, OTHERS].requests == 5
    assert table.total.requests == MAX_GROUPS + 5


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
    table = tabulate(rows, by)
    for name in ("requests", "failed", "prompt", "completion", "cached", "reasoning", "estimated"):
        assert sum(getattr(sums, name) for _, sums in table.groups) == getattr(table.total, name)
    tokens = [sums.tokens for _, sums in table.groups]
    assert tokens == sorted(tokens, reverse=True)


# --- Showing --------------------------------------------------------------------------------------


def test_the_table_is_plain_and_aligned() -> None:
    rows = [line(prompt_tokens=1_234_567), line(user="a-longer-name", model="qwen3-8b"), refused()]
    assert render(tabulate(rows)) == (
        """\
USER           MODEL     REQUESTS  FAILED     PROMPT  COMPLETION  CACHED  REASONING  ESTIMATED
----------------------------------------------------------------------------------------------
alice          m                1       0  1,234,567           5       4          2          0
a-longer-name  qwen3-8b         1       0         10           5       4          2          0
-              -                1       1          0           0       0          0          0
----------------------------------------------------------------------------------------------
total                           3       1  1,234,577          10       8          4          0"""
    )


def test_a_table_of_nothing_has_its_head_and_its_total() -> None:
    head, *_, total = render(tabulate([], by=["day"])).splitlines()
    assert head.split()[:2] == ["DAY", "REQUESTS"]
    assert total.split() == ["total", *"0000000"]


def test_wide_characters_keep_the_columns_aligned() -> None:
    users = ("abcd", "日本", "e\N{COMBINING ACUTE ACCENT}va")
    lines = render(tabulate([line(user=user) for user in users], by=["user"])).splitlines()
    for user, padding in zip(users, (3, 3, 4), strict=True):
        (drawn,) = (each for each in lines if each.startswith(user))
        assert drawn.startswith(user + " " * (padding + 7) + "1  ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"), ("a\nb", "a\\nb"), ("\r\t\0\x7f\x9b", "\\r\\t\\x00\\x7f\\x9b"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "a\\u202eb"), ("gr\xfc\xdfe \N{SNOWMAN}", "gr\xfc\xdfe \N{SNOWMAN}"),
        ("x" * MAX_CELL, "x" * MAX_CELL), ("x" * 1000, "x" * (MAX_CELL - 3) + "..."),
        ("\0" * 40, ("\\x00" * 40)[: MAX_CELL - 3] + "..."),
    ],
)  # fmt: skip
def test_names_are_shown_without_what_steers_a_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(name=st.text(min_size=1))
def test_nothing_in_a_name_reaches_the_terminal_raw(name: str) -> None:
    assert printable(name).isprintable()
    drawn = render(tabulate([line(user=name, model=name)])).split("\n")
    assert len(drawn) == 5
    assert all(line.isprintable() for line in drawn)
