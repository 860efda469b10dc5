"""The request log read back: whatever happened to its files, what can be used is met once, in order."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llmgateway.books import history
from llmgateway.books.history import MAX_LINE_BYTES, History, read_all
from tests.books.lines import HOUR_S, NOON, entry


def write(path: Path, entries: Iterable[dict[str, Any]], *, mtime: float = NOON) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    os.utime(path, (mtime, mtime))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def keys(log: Path, since: float = 0.0) -> list[str]:
    return [line.key for line in History(log).read(since)]


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
    with pytest.raises(FileNotFoundError, match=r"no request log: .*jsonl"):
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
        assert sum(1 for _ in History(log).read()) == 20_000
        assert tracemalloc.get_traced_memory()[1] < log.stat().st_size / 10
    finally:
        tracemalloc.stop()


# --- Several logs ---------------------------------------------------------------------------------


def test_of_several_logs_a_request_counts_once_and_one_of_the_same_id_is_another(log: Path) -> None:
    mine, both = write(log, [entry(id="a"), entry(id="b")]), log.with_name("both.jsonl")
    others = [entry(id="b"), entry(NOON + 1, id="b"), entry(id="b", instance="gw2"), entry(id="a")]
    write(both, others)
    met = [(line.id, line.time[17:19], line.instance) for line in read_all([History(mine), History(both)])]
    assert met == [("a", "00", ""), ("b", "00", ""), ("b", "01", ""), ("b", "00", "gw2")]


def test_a_line_without_an_id_is_its_own(log: Path) -> None:
    write(log, [entry(id=None), entry(id=None)])
    assert len(list(read_all([History(log), History(log)]))) == 4


def test_only_so_many_lines_are_known_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_KNOWN", 8)
    write(log, [entry(id=f"{number}") for number in range(100)])
    write(log.with_name("late.jsonl"), [entry(id="0"), entry(id="99"), entry(id="99")])
    logs = [History(log), History(log.with_name("late.jsonl"))]
    assert [line.id for line in read_all(logs)][100:] == ["0"]
