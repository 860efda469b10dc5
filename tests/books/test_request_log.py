"""The request log: a line for every forwarded request however it ended, and never what it said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llmgateway.books.journal import MOST_LINES, Journal, numbered
from llmgateway.books.ledger import STRANGERS_A_MINUTE
from llmgateway.config.load import build
from llmgateway.http.body import Patience
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.crowd import ask, ask_for, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.journeys.test_errors import FaultyGateway
from tests.raw_client import RawClient, chat, request
from tests.script import answer, cut, error, play, sse, stall, word

FIELDS = [
    *("time", "id", "user", "key", "model", "provider", "endpoint", "status", "outcome"),
    *("queue_ms", "first_byte_ms", "total_ms"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "estimated"),
    *("bytes_in", "bytes_out", "attempts", "stream", "affinity"),
]
SECRET = "sk-secret-0123456789abcdefghijklmnopqrstuvwxyz"
LIMITED = "sk-limited-0123456789abcdefghijklmnopqrstuvwxyz"
PROMPT, ANSWER = "the-words-of-the-prompt", "the-words-of-the-answer"
SMALLEST = "64KiB"

Line = dict[str, Any]


def lines_of(*files: Path) -> list[Line]:
    """All lines of the log; every one of them must be whole."""
    found = []
    for file in files:
        text = file.read_text() if file.exists() else ""
        assert not text or text.endswith("\n")
        found += [json.loads(line) for line in text.split("\n")[:-1]]
    return found


async def written(file: Path, count: int) -> list[Line]:
    """Wait until the log has so many lines, and no more."""

    def all_of_them() -> list[Line] | None:
        text = file.read_text() if file.exists() else ""
        return lines_of(file) if text.count("\n") >= count and text.endswith("\n") else None

    lines = await eventually(all_of_them, saying=f"the log has not got {count} lines")
    assert lines is not None
    assert len(lines) == count
    return lines


def logging_to(file: Path, **more: Any) -> dict[str, Any]:
    """The section of the config."""
    return {"requests": str(file), **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the log is."""
    return tmp_path / "requests.jsonl"


# A line for every request.

USERS = {
    "alice": {
        "keys": [
            {"name": "laptop", "key": KEY},
            {"name": "phone", "key": LIMITED, "models": ["m"], "limits": {"requests_per_minute": 1}},
        ],
    }
}

ENDINGS: dict[str, tuple[bytes, int, str]] = {
    "good": (chat(), 200, "ok"),
    "a stream": (chat(stream=True), 200, "ok"),
    "no key": (chat(key=None), 401, "invalid_api_key"),
    "a wrong key": (chat(key=SECRET), 401, "invalid_api_key"),
    "no JSON": (chat(b"{"), 400, "invalid_request"),
    "compressed": (chat(None, "Content-Encoding: gzip"), 400, "invalid_request"),
    "a model it may not use": (ask_for("other", key=LIMITED), 403, "model_not_allowed"),
    "a model that nobody has": (ask_for("unknown"), 404, "no_provider"),
    "too large": (chat(b'{"model":"m","x":"' + b"x" * 2000 + b'"}'), 413, "request_too_large"),
    "too large, as it says": (
        request("POST", "/v1/chat/completions", "Content-Length: 5000"),
        413,
        "request_too_large",
    ),
}


@pytest.mark.parametrize(("message", "status", "outcome"), ENDINGS.values(), ids=ENDINGS.keys())
async def test_a_request_has_one_line_however_it_ends(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path, message: bytes, status: int, outcome: str
) -> None:
    gateway = await gateway_for(provider, users=USERS, log=logging_to(file), server={"max_body": 1000})
    response = await ask(gateway.port, message)
    assert response.status == status
    (line,) = await written(file, 1)
    assert list(line) == FIELDS
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert line["id"] == response.header("x-request-id")
    assert line["user"] == (None if status == 401 else "alice")
    assert line["key"] == (None if status == 401 else "phone" if status == 403 else "laptop")
    assert line["endpoint"] == "/v1/chat/completions"
    assert line["total_ms"] >= line["queue_ms"] >= 0
    assert line["bytes_out"] == len(response.body)
    assert not gateway.ledger.in_flight


async def test_the_line_of_a_good_request(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, users=USERS, log=logging_to(file))
    began = time.time()
    await ask(gateway.port, ask_for(stream=False))
    (line,) = await written(file, 1)
    took_ms = line["total_ms"]
    assert 0 < line["first_byte_ms"] <= took_ms
    assert began - 0.002 <= _epoch(line["time"]) <= time.time()
    del line["time"], line["id"], line["first_byte_ms"], line["total_ms"]
    assert line == {
        "user": "alice",
        "key": "laptop",
        "model": "m",
        "provider": "rig",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "queue_ms": 0.0,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "estimated": False,
        "bytes_in": len(provider.requests[0].body),
        "bytes_out": line["bytes_out"],
        "attempts": 1,
        "stream": False,
        "affinity": line["affinity"],
    }


def _epoch(moment: str) -> float:
    assert moment.endswith("Z") and len(moment) == len("2026-11-25T01:24:49.123Z")
    return datetime.fromisoformat(moment).timestamp()


async def test_pages_of_the_gateway_itself_have_no_line(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    for path in ("/healthz", "/v1/models", "/metrics", "/gateway/", "/gateway/status", "/v1/slots"):
        await ask(gateway.port, request("GET", path))
    await ask(gateway.port)
    assert [line["endpoint"] for line in await written(file, 1)] == ["/v1/chat/completions"]


async def test_a_rate_limited_request_has_its_line(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, users=USERS, log=logging_to(file))
    for _ in range(2):
        await ask(gateway.port, ask_for(key=LIMITED))
    lines = await written(file, 2)
    assert [(line["status"], line["outcome"]) for line in lines] == [(200, "ok"), (429, "rate_limited")]
    assert (lines[1]["model"], lines[1]["provider"], lines[1]["attempts"]) == ("m", None, 0)


async def test_overload_failure_and_truncation_have_their_lines(
    gateway_for: GatewayFor, provider_for: ProviderFor, file: Path
) -> None:
    rig = await provider_for(slots=1)
    rig.once(error(500), play(sse(), word("x"), cut()), stall())
    gateway = await gateway_for(rig, log=logging_to(file), queue={"size": 1, "timeout": "50ms"})
    await ask(gateway.port)
    await ask(gateway.port, chat(stream=True))
    for _ in range(2):
        await rig.next_call()
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        assert (await ask(gateway.port)).status == 503
    found = [(line["status"], line["outcome"], line["attempts"]) for line in await written(file, 4)]
    assert found == [
        (502, "upstream_error", 1),
        (200, "truncated", 1),
        (503, "overloaded", 0),
        (499, "client_gone", 1),
    ]


async def test_a_fault_of_the_gateway_itself_is_booked_as_one(
    nothing_leaks: None, provider: FakeProvider
) -> None:
    async with FaultyGateway(provider) as gateway:
        assert (await ask(gateway.port)).status == 500
        await ask(gateway.port, chat(stream=True))
        await eventually(lambda: not gateway.ledger.in_flight)
        gateway.ledger.book()
        found = [(line["status"], line["outcome"]) for line in gateway.ledger.recent]
        assert found == [(500, "internal_error"), (200, "internal_error")]
        assert not gateway.ledger.in_flight


async def test_a_chat_from_the_live_page_has_its_line_under_the_endpoint_it_used(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    for origin in ("same-origin", "cross-site"):
        fields = ("Content-Type: application/json", f"Sec-Fetch-Site: {origin}")
        await ask(gateway.port, request("POST", "/gateway/chat", *fields, body=json.dumps(ASK).encode()))
    lines = await written(file, 2)
    assert {line["endpoint"] for line in lines} == {"/v1/chat/completions"}
    assert [(line["user"], line["outcome"]) for line in lines] == [("alice", "ok"), (None, "forbidden")]


async def test_a_request_that_takes_too_long_to_come_has_its_line(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file), patience=Patience(rate_s=0.1))
    async with RawClient(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", "Content-Length: 99"))
        assert (await client.response()).status == 408
    (line,) = await written(file, 1)
    assert (line["status"], line["outcome"], line["model"]) == (408, "request_timeout", None)


async def test_a_client_that_leaves_has_its_line_in_every_phase(
    gateway_for: GatewayFor, provider_for: ProviderFor, file: Path
) -> None:
    rig = await provider_for(slots=1)
    gateway = await gateway_for(rig, log=logging_to(file))

    async with RawClient(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", "Content-Length: 99"))
        await eventually(lambda: gateway.ledger.in_flight)
    reading = (await written(file, 1))[0]
    assert (reading["status"], reading["outcome"], reading["model"]) == (499, "client_gone", None)

    rig.once(stall())
    async with RawClient(gateway.port) as first:
        await first.send(chat())
        await rig.next_call()
        async with RawClient(gateway.port) as second:
            await second.send(chat())
            await waiting(gateway, 1)
            await asyncio.sleep(0.02)  # so that there is a time to be measured
        queued = (await written(file, 2))[1]
        assert (queued["outcome"], queued["provider"], queued["attempts"]) == ("client_gone", None, 0)
        assert queued["queue_ms"] > 0
    sent = (await written(file, 3))[2]
    assert (sent["status"], sent["outcome"], sent["provider"]) == (499, "client_gone", "rig")
    assert sent["first_byte_ms"] is None

    rig.once(play(sse(), word("x"), stall()))
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        await client.events(await client.head(), 1)
    streaming = (await written(file, 4))[3]
    assert (streaming["status"], streaming["outcome"], streaming["stream"]) == (200, "client_gone", True)


# What it never says.


async def test_neither_keys_nor_prompts_nor_answers_are_in_it(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    provider.key = SECRET
    gateway = await gateway_for(provider, users=USERS, log=logging_to(file))
    said = [{"role": "user", "content": PROMPT}]
    for script in (
        answer(200, {"choices": [{"message": {"content": ANSWER}}], "user": ANSWER}),
        play(sse(), word(ANSWER), cut()),
        error(400, ANSWER, ANSWER),
        error(500, ANSWER, ANSWER),
    ):
        provider.once(script)
        await ask(gateway.port, ask_for(messages=said, stream=True, user=PROMPT))
    await ask(gateway.port, ask_for(messages=said, key="sk-wrong-" + PROMPT))
    query = f"/v1/chat/completions?key={KEY}&q={PROMPT}"
    await ask(gateway.port, request("POST", query, f"X-Prompt: {PROMPT}", body=json.dumps(ASK).encode()))
    await written(file, 6)
    text = file.read_text()
    for secret in (KEY, LIMITED, SECRET, PROMPT, ANSWER, "sk-"):
        assert secret not in text


NASTY = {
    "newlines": 'm"\n{"time":"2026-01-01T00:00:00.000Z","user":"root"}\r\n',
    "controls": "m\x00\x1b[2J\x7f\x85\u2028\u2029",
    "half an emoji": "m\ud800",
    "long": "m" * 900,
}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY.keys())
async def test_no_name_of_a_model_forges_a_line_or_fills_the_disk(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path, name: str
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    assert (await ask(gateway.port, ask_for(name))).status in (400, 404)
    assert (await ask(gateway.port)).status == 200
    lines = await written(file, 2)
    assert [list(line) for line in lines] == [FIELDS, FIELDS]
    assert [line["user"] for line in lines] == ["alice", "alice"]
    assert all(len(line["model"] or "") <= 200 for line in lines)
    assert not any(byte < 32 for byte in file.read_bytes().replace(b"\n", b""))


async def test_a_clients_own_id_is_in_it_only_if_it_is_sane(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    await ask(gateway.port, chat(None, "X-Request-Id: mine-1"))
    await ask(gateway.port, chat(None, 'X-Request-Id: "},{"' + "x" * 500))
    first, second = await written(file, 2)
    assert first["id"] == "mine-1"
    assert second["id"].isalnum()


# Rotation.


async def many(port: int, count: int, *, at_once: int = 16) -> None:
    """So many requests, some at a time on connections that are kept."""

    async def some() -> None:
        async with RawClient(port) as client:
            for _ in range(count // at_once):
                await client.send(chat())
                assert (await client.response()).status == 200

    await asyncio.gather(*(some() for _ in range(at_once)))


async def test_nothing_is_lost_over_many_files_under_load(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file, requests_size=SMALLEST, requests_keep=100))
    await many(gateway.port, 2000)
    await eventually(lambda: len(_lines(file.parent)) == 2000)
    files = sorted(file.parent.glob("requests.jsonl*"))
    assert len(files) > 2
    assert {each.name for each in files} == {file.name} | {f"{file.name}.{n}" for n in range(1, len(files))}
    lines = lines_of(*(numbered(file, n) for n in range(len(files) - 1, 0, -1)), file)
    assert len({line["id"] for line in lines}) == 2000
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines), "newest file last"
    assert gateway.journal.dropped == 0


def _lines(folder: Path) -> list[str]:
    return [line for file in folder.glob("requests.jsonl*") for line in _read(file).splitlines()]


def _read(file: Path) -> str:
    """Give what is in a file of the log, which may be renamed at any moment."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


async def rotated(file: Path) -> None:
    """Wait until a new file was begun, with one line of ours."""
    await eventually(lambda: '"status":200' in _read(file))
    assert len(lines_of(file)) == 1


@pytest.mark.parametrize("keep", [0, 1, 2])
async def test_only_so_many_older_files_are_kept(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path, keep: int
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file, requests_size=SMALLEST, requests_keep=keep))
    for number in range(5):
        file.write_text(json.dumps({"number": number, "x": "x" * 66_000}) + "\n")
        await ask(gateway.port)
        await rotated(file)
    names = {each.name for each in file.parent.glob("requests.jsonl*")}
    assert names == {file.name} | {f"{file.name}.{n}" for n in range(1, keep + 1)}
    assert [lines_of(numbered(file, n))[0]["number"] for n in range(1, keep + 1)] == [4, 3][:keep]


# Trouble with the disk.


def break_full(file: Path) -> None:
    file.symlink_to("/dev/full")


def break_missing(file: Path) -> None:
    file.parent.rmdir()


def break_directory(file: Path) -> None:
    file.mkdir()


def mend(file: Path) -> None:
    if file.is_symlink():
        file.unlink()
    elif file.is_dir():
        file.rmdir()
    file.parent.mkdir(exist_ok=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "llmgateway.journal" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("spoil", [break_full, break_missing, break_directory])
async def test_a_bad_disk_costs_lines_and_never_requests(
    gateway_for: GatewayFor,
    provider: FakeProvider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    file = tmp_path / "logs" / "requests.jsonl"
    file.parent.mkdir()
    spoil(file)
    gateway = await gateway_for(provider, log=logging_to(file))
    for count in range(1, 4):
        assert (await ask(gateway.port)).status == 200
        await eventually(lambda count=count: gateway.journal.dropped == count)  # type: ignore[misc]
    metrics = await ask(gateway.port, request("GET", "/metrics"))
    assert b"\ngateway_request_log_dropped_total 3.0\n" in metrics.body
    assert len(warnings(caplog)) == 1
    mend(file)
    await ask(gateway.port)
    await written(file, 1)
    assert gateway.journal.dropped == 3

    file.unlink()
    spoil(file)
    await ask(gateway.port)
    await eventually(lambda: gateway.journal.dropped == 4)
    assert len(warnings(caplog)) == 2, "new trouble is told again"
    mend(file)


async def test_older_files_that_cannot_be_moved_cost_lines_that_are_counted(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Better than a log without bounds; and what was written is not called lost."""
    gateway = await gateway_for(provider, log=logging_to(file, requests_size=SMALLEST, requests_keep=1))
    in_the_way = numbered(file, 1)
    (in_the_way / "something").mkdir(parents=True)
    file.write_text(json.dumps({"x": "x" * 66_000}) + "\n")
    await ask(gateway.port)
    await eventually(lambda: gateway.journal.dropped == 1)
    assert len(lines_of(file)) == 1
    assert len(warnings(caplog)) == 1
    (in_the_way / "something").rmdir()
    in_the_way.rmdir()
    await ask(gateway.port)
    await rotated(file)
    assert gateway.journal.dropped == 1


async def test_a_line_that_was_cut_stays_alone(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    file.write_text('{"time":"2026-11-25T00:00:00.000Z","user":"al')
    gateway = await gateway_for(provider, log=logging_to(file))
    for count in (2, 3):
        await ask(gateway.port)
        await eventually(lambda count=count: file.read_text().count("\n") == count)  # type: ignore[misc]
    cut_line, *whole = file.read_text().splitlines()
    assert cut_line.endswith('"al')
    assert [json.loads(line)["status"] for line in whole] == [200, 200]


async def test_only_its_owner_may_read_it(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    before = os.umask(0)
    try:
        gateway = await gateway_for(provider, log=logging_to(file, requests_size=SMALLEST, requests_keep=2))
        await many(gateway.port, 320)
        await eventually(lambda: len(_lines(file.parent)) == 320)
        await ask(gateway.port)
        await eventually(numbered(file, 1).exists)
    finally:
        os.umask(before)
    modes = {each.name: each.stat().st_mode & 0o777 for each in file.parent.glob("requests.jsonl*")}
    assert len(modes) > 1
    assert set(modes.values()) == {0o600}


async def test_a_log_that_was_moved_away_is_begun_anew(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    await ask(gateway.port)
    await written(file, 1)
    file.rename(file.with_name("moved"))
    await ask(gateway.port)
    await written(file, 1)


async def test_lines_that_a_slow_disk_does_not_take_are_bounded_and_counted(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(file, size_bytes=50_000_000, keep=1)  # it has not begun to write
    for number in range(MOST_LINES + 3):
        journal.write([{"number": number}])
    assert journal.dropped == 3
    assert len(warnings(caplog)) == 1
    async with journal:
        pass
    assert [line["number"] for line in lines_of(file)] == list(range(MOST_LINES))


async def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "requests.jsonl", size_bytes=50_000_000, keep=1)
    async with journal:
        journal.write([{"number": 1}])
    assert journal.dropped == 1


async def test_none_means_no_log(gateway_for: GatewayFor, provider: FakeProvider, tmp_path: Path) -> None:
    gateway = await gateway_for(provider, log={"requests": "none"})
    await ask(gateway.port)
    await gateway.__aexit__(None, None, None)
    assert not list(tmp_path.glob("*.jsonl*"))
    assert gateway.journal.dropped == 0


# The end, and the next start.


async def test_the_log_is_complete_after_a_signal(
    program_for: ProgramFor, provider: FakeProvider, file: Path
) -> None:
    program = await program_for(provider, log=logging_to(file))
    await many(program.port, 208)
    provider.once(play(sse(), word("x"), stall()))
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        await client.events(await client.head(), 1)
        program.signal(signal.SIGTERM)
        await program.says("draining")
        refused = await ask(program.port)
        assert refused.status == 503
        program.signal(signal.SIGTERM)
        await program.ended()
    outcomes = [line["outcome"] for line in lines_of(file)]
    assert len(outcomes) == 210
    assert outcomes.count("ok") == 208
    assert set(outcomes[-2:]) == {"draining"}


async def usage_of(port: int) -> list[Line]:
    response = await ask(port, request("GET", "/gateway/status"))
    rows = response.json["usage"]["rows"]
    return sorted(rows, key=lambda row: (row["user"], row["model"]))


async def test_after_a_restart_todays_usage_is_what_it_was(
    gateway_for: GatewayFor, provider_for: ProviderFor, file: Path
) -> None:
    rig = await provider_for(models=["m", "n"])
    sections: dict[str, Any] = {"users": USERS, "log": logging_to(file)}
    yesterday = time.strftime("%Y-%m-%dT23:59:59.999Z", time.gmtime(time.time() - 86_400))
    old = {"time": yesterday, "user": "alice", "model": "m", "prompt_tokens": 1000, "attempts": 1}
    file.write_text(json.dumps(old) + "\n" + '{"time": "cut')
    gateway = await gateway_for(rig, **sections)
    rig.once(play(sse(), word("x"), word("y"), cut()), error(400), error(500))
    for message in (
        *[chat(stream=True), *[ask_for("n")] * 4, ask_for("unknown"), chat(key=None)],
        *[ask_for(key=LIMITED)] * 2,  # the second one is over the limit
        *[ask_for(f"unknown-{number}") for number in range(20)],
    ):
        await ask(gateway.port, message)
    before = await usage_of(gateway.port)
    assert {row["model"] for row in before} == {"m", "n", ""}
    assert sum(row["requests"] for row in before) == 28
    assert sum(row["estimated"] for row in before) == 1
    accounts = dict(gateway.ledger.totals)
    await gateway.__aexit__(None, None, None)

    again = await gateway_for(rig, **sections)
    await again.recall()
    assert await usage_of(again.port) == before
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert {account: again.ledger.totals[account] for account in accounts} == accounts
    assert {account.day for account in again.ledger.totals} == {today}


async def test_the_real_program_remembers_today_over_a_restart(
    provider: FakeProvider, program_for: ProgramFor, file: Path
) -> None:
    program = await program_for(provider, log=logging_to(file))
    await many(program.port, 32)
    before = await usage_of(program.port)
    assert [row["requests"] for row in before] == [32]
    program.signal(signal.SIGTERM)
    await program.ended()
    again = await program_for(provider, log=logging_to(file))

    async def is_back() -> bool:
        return await usage_of(again.port) == before

    await eventually(is_back)


async def test_another_config_may_move_the_log(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    await ask(gateway.port)
    await written(file, 1)
    other = file.with_name("other.jsonl")
    gateway.adopt(build(settings(provider, log=logging_to(other))))
    await ask(gateway.port)
    await written(other, 1)
    assert len(lines_of(file)) == 1


async def test_each_log_that_cannot_be_written_is_told_once(
    gateway_for: GatewayFor, provider: FakeProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = logging_to(tmp_path / "missing" / "requests.jsonl")
    gateway = await gateway_for(provider, log=section)
    await ask(gateway.port)
    await eventually(lambda: gateway.journal.dropped == 1)
    gateway.adopt(build(settings(provider, log=section)))
    await ask(gateway.port)
    await eventually(lambda: gateway.journal.dropped == 2)
    assert len(warnings(caplog)) == 1
    gateway.adopt(build(settings(provider, log=logging_to(tmp_path / "missing" / "other.jsonl"))))
    await ask(gateway.port)
    await eventually(lambda: gateway.journal.dropped == 3)
    assert len(warnings(caplog)) == 2


async def test_the_log_can_be_a_pipe(provider: FakeProvider, gateway_for: GatewayFor, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        gateway = await gateway_for(provider, log={"requests": str(pipe)})
        async with RawClient(gateway.port) as client:
            await client.send(chat())
            await client.response()

        def read() -> bytes:
            try:
                return os.read(reader, 65_536)
            except BlockingIOError:
                return b""

        assert json.loads(await eventually(read))["outcome"] == "ok"
    finally:
        os.close(reader)


async def test_strangers_cannot_push_out_what_the_log_is_kept_for(
    gateway_for: GatewayFor, provider: FakeProvider, file: Path
) -> None:
    gateway = await gateway_for(provider, log=logging_to(file))
    await ask(gateway.port)
    asked = [ask(gateway.port, chat(key="sk-nobody-00000000")) for _ in range(STRANGERS_A_MINUTE * 3)]
    assert all(reply.status == 401 for reply in await asyncio.gather(*asked))
    await ask(gateway.port)

    def users() -> list[str | None]:
        return [line["user"] for line in lines_of(file)]

    await eventually(lambda: file.exists() and users().count("alice") == 2)
    assert users().count(None) <= 2 * STRANGERS_A_MINUTE  # the minute may end in between
    assert [line["user"] for line in gateway.ledger.recent].count("alice") == 2


async def test_a_log_that_takes_nothing_does_not_hold_up_the_end(
    provider: FakeProvider, program_for: ProgramFor, tmp_path: Path
) -> None:
    """A pipe that has a reader, who reads nothing, is full after 64 KiB."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.write(filler, b"x" * 4096):
                pass
        program = await program_for(provider, log={"requests": str(pipe)})
        await ask(program.port)
        program.signal(signal.SIGTERM)
        assert (await program.ended()).code == 0
    finally:
        os.close(reader)
        os.close(filler)


def test_files_that_are_more_than_are_kept_now_are_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for number in range(1, 6):
        numbered(log, number).write_text(f"{number}\n")
    log.write_text("newest\n" * 20_000)
    asyncio.run(_write_one(log, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert numbered(log, 1).read_text().startswith("newest")
    assert numbered(log, 2).read_text() == "1\n"


async def _write_one(log: Path, *, keep: int) -> None:
    async with Journal(log, size_bytes=65_536, keep=keep) as journal:
        journal.write([{"one": "more"}])
