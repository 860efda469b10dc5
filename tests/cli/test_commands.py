"""The commands that look and write: `init`, `usage`, `status`, as a person runs them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import stat
import sys
from pathlib import Path

import pytest
import yaml

from llmgateway.cli.terminal import render
from llmgateway.config.load import load
from tests.conftest import ProgramFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.program import GATEWAY, run, running
from tests.raw_client import RawClient, chat, request
from tests.script import done, play, sse, wait, word

BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyz012"


# init


async def test_init_writes_a_config_that_works_with_the_key_it_shows(tmp_path: Path) -> None:
    made = await run("init", cwd=tmp_path)
    assert made.code == 0, made.err
    keys = re.findall(r"sk-[A-Za-z0-9_-]{40,}", made.out)
    assert len(set(keys)) == 1
    loaded = load(tmp_path / "config.yaml", {})
    assert loaded.config.users["me"].admin
    assert keys[0] not in (tmp_path / "config.yaml").read_text()
    async with running("-c", "config.yaml", "--port", "0", cwd=tmp_path) as program:
        await program.url()
        async with RawClient(program.port) as client:
            await client.send(request("GET", "/v1/models", key=keys[0]))
            assert (await client.response()).status == 200


async def test_init_keeps_the_file_to_its_owner_and_never_writes_over_another(tmp_path: Path) -> None:
    assert (await run("-c", "mine.yaml", "init", cwd=tmp_path)).code == 0
    assert stat.S_IMODE((tmp_path / "mine.yaml").stat().st_mode) == 0o600
    before = (tmp_path / "mine.yaml").read_bytes()
    again = await run("init", "-c", "mine.yaml", cwd=tmp_path)
    assert again.code == 1
    assert "mine.yaml is there already" in again.err
    assert (tmp_path / "mine.yaml").read_bytes() == before


async def test_init_in_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    failed = await run("-c", "nowhere/config.yaml", "init", cwd=tmp_path)
    assert failed.code == 1
    assert "cannot be written" in failed.err
    assert "Traceback" not in failed.err


# example


async def test_the_example_config_comes_with_the_program(tmp_path: Path) -> None:
    shown = await run("example", cwd=tmp_path)
    assert shown.code == 0
    assert shown.out == (GATEWAY.parent / "config.example.yaml").read_text("utf-8")


# usage


def log_line(user: str, model: str, when: str, **fields: object) -> str:
    line = {"time": when, "user": user, "model": model, "outcome": "ok", "estimated": False}
    return json.dumps({**line, "prompt_tokens": 100, "completion_tokens": 23, **fields}) + "\n"


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A config whose log has two requests of alice, one of them old, and one of bob."""
    (tmp_path / "config.yaml").write_text("users: {alice: {}, bob: {}}\n")
    (tmp_path / "requests.jsonl").write_text(
        log_line("alice", "m", "2000-01-01T00:00:00.000Z")
        + log_line("alice", "m", "2999-01-01T00:00:00.000Z")
        + log_line("bob", "n", "2999-01-01T00:00:00.000Z", completion_tokens=1000)
        + '{"time": "2999-0'
    )
    return tmp_path


async def test_usage_adds_up_the_log_beside_the_config(logged: Path) -> None:
    shown = await run("-c", str(logged / "config.yaml"), "usage", cwd=Path("/"))
    assert shown.code == 0
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[2][:2] == ["bob", "n"]
    assert rows[3][:3] == ["alice", "m", "1"]
    assert "1 damaged lines" in shown.err


async def test_usage_goes_back_as_far_as_it_is_told_and_adds_up_by_what_it_is_told(logged: Path) -> None:
    shown = await run("usage", "--since", "365d", "--by", "user,day", cwd=logged)
    assert "2999-01-01" in shown.out and "2000-01-01" not in shown.out
    assert (await run("usage", "--by", "colour", cwd=logged)).code == 2
    assert "choose from" in (await run("usage", "--by", "colour", cwd=logged)).err
    assert (await run("usage", "--since", "soon", cwd=logged)).code == 2


async def test_usage_tells_persons_apart_where_there_are_any(logged: Path) -> None:
    assert "PERSON" not in (await run("usage", cwd=logged)).out
    with (logged / "requests.jsonl").open("a") as log:
        log.write("\n" + log_line("page", "m", "2999-01-01T00:00:00.000Z", person="ann@example.org"))
        log.write(log_line("page", "m", "2999-01-01T00:00:00.000Z", person=None))
    rows = [line.split() for line in (await run("usage", cwd=logged)).out.splitlines()]
    assert rows[0][:3] == ["USER", "PERSON", "MODEL"]
    assert ["page", "ann@example.org", "m", "1"] in [row[:4] for row in rows]
    assert ["page", "-", "m", "1"] in [row[:4] for row in rows]
    assert "ann@example.org" in (await run("usage", "--by", "person", cwd=logged)).out


async def test_usage_without_a_log_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("users: {alice: {}}\n")
    none_yet = await run("usage", cwd=tmp_path)
    assert none_yet.code == 1
    assert "no request log" in none_yet.err
    (tmp_path / "config.yaml").write_text("users: {alice: {}}\nlog: {requests: none}\n")
    none_kept = await run("usage", cwd=tmp_path)
    assert none_kept.code == 1
    assert "log.requests is none" in none_kept.err


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A folder with the logs of two gateways, and one that has some of both."""
    lines = [
        log_line("alice", "m", "2999-01-01T00:00:00.000Z", id=number, instance=instance)
        for number, instance in (("req_1", "gw1"), ("req_2", "gw1"), ("req_1", "gw2"), ("req_3", "gw2"))
    ]
    for name, of_it in {"gw1": lines[:2], "gw2": lines[2:], "both": lines[1:3]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "requests.jsonl").write_text("".join(of_it))
    (tmp_path / "gw2" / "requests.jsonl.1").write_text(
        log_line("bob", "m", "2999-01-01T00:00:00.000Z", id="req_0")
    )
    return tmp_path


@pytest.mark.parametrize(
    "logs",
    [
        ("--log", "gw1/requests.jsonl", "gw2/requests.jsonl", "both/requests.jsonl"),
        ("--log", "both/requests.jsonl", "--log", "gw1/requests.jsonl", "--log", "gw2/requests.jsonl"),
        ("--log", "*/requests.jsonl"),
        ("--log", "*/requests.jsonl*"),
    ],
    ids=["named at once", "each by itself", "a pattern", "a pattern of what is rotated, too"],
)
async def test_usage_of_several_logs_counts_each_request_once(collected: Path, logs: tuple[str, ...]) -> None:
    shown = await run("usage", "--json", "--by", "user,instance", *logs, cwd=collected)
    assert shown.code == 0, shown.err
    rows = [(row["user"], row["instance"], row["requests"]) for row in json.loads(shown.out)["rows"]]
    assert sorted(rows) == [("alice", "gw1", 2), ("alice", "gw2", 2), ("bob", "-", 1)]


async def test_usage_says_which_log_is_not_there(collected: Path) -> None:
    shown = await run("usage", "--log", "gw1/requests.jsonl", "gw3/*.jsonl", cwd=collected)
    assert (shown.code, shown.out) == (1, "")
    assert "no request log at gw3/*.jsonl" in shown.err


# status


def two_users(port: int, *providers: FakeProvider) -> dict[str, object]:
    users = {"alice": {"admin": True, "keys": [KEY]}, "bob": {"keys": [BOB]}}
    return settings(*providers, users=users, server={"port": port})


async def test_status_needs_no_key_where_the_config_can_be_read(
    provider: FakeProvider, tmp_path: Path, port: int
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("one"), wait(gate), done())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(two_users(port, provider)))
    async with running(cwd=tmp_path) as program:
        await program.url()
        async with RawClient(program.port) as client:
            await client.send(chat(stream=True))
            await client.events(await client.head(), 1)
            shown = await run("status", "--json", cwd=tmp_path)
            assert shown.code == 0, shown.err
            snapshot = json.loads(shown.out)
            assert snapshot["providers"][0]["name"] == "rig"
            assert [each["phase"] for each in snapshot["requests"]] == ["streaming"]
            table = await run("status", cwd=tmp_path)
            assert re.search(r"^rig +online +1/-", table.out, re.MULTILINE)
            assert re.search(r"^alice +m +rig +streaming", table.out, re.MULTILINE)
            gate.set()


async def test_status_with_a_key_shows_what_that_key_may_see(
    provider: FakeProvider, tmp_path: Path, port: int
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(two_users(port, provider)))
    async with running(cwd=tmp_path) as program:
        url = await program.url()
        (tmp_path / "elsewhere").mkdir()
        asked = await run("status", "--url", url, "--key", BOB, "--json", cwd=tmp_path / "elsewhere")
        assert json.loads(asked.out)["viewer"] == {"user": "bob", "admin": False}
        refused = await run("status", "--url", url, "--key", "sk-wrong-0000", cwd=tmp_path / "elsewhere")
        assert refused.code == 1
        assert "--key" in refused.err and "Traceback" not in refused.err


async def test_status_says_when_nobody_answers(tmp_path: Path, port: int) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(two_users(port)))
    asked = await run("status", cwd=tmp_path)
    assert asked.code == 1
    assert "Is it running?" in asked.err and "Traceback" not in asked.err


async def test_on_a_terminal_the_table_is_drawn_again_and_again(
    provider: FakeProvider, program_for: ProgramFor, tmp_path: Path
) -> None:
    program = await program_for(provider)
    ours, theirs = pty.openpty()
    url = f"http://127.0.0.1:{program.port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(GATEWAY), "status", "--url", url, "--key", KEY, stdout=theirs, cwd=tmp_path
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = bytearray()

    def drawn() -> bool:
        try:
            seen.extend(os.read(ours, 65_536))
        except BlockingIOError:
            pass
        return seen.count(b"\x1b[H") >= 2

    try:
        await eventually(drawn)
    finally:
        process.terminate()
        await process.wait()
        os.close(ours)
    assert b"PROVIDER" in seen


def test_nothing_that_a_server_says_steers_the_terminal() -> None:
    evil = {
        "name": "rig", "state": "online", "reason": "\x1b[2J\nfake", "in_flight": 0, "slots": None,
        "waiting": 0, "tokens_per_s": 0.0, "models": [{"id": "m\x07"}],
    }  # fmt: skip
    config: dict[str, list[str]] = {"problems": [], "restart_needed": []}
    snapshot = {
        "gateway": {"version": "1", "state": "ready", "now": 1.0, "started_at": 0.0, "config": config},
        "in_flight": 0, "providers": [evil], "requests": [], "usage": {"day": "2026-11-25", "rows": []},
    }  # fmt: skip
    text = render(snapshot, columns=80)
    assert "\x1b" not in text and "\x07" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert not any(line.startswith("fake") for line in text.splitlines())


# check


async def test_check_warns_of_a_secret_that_others_can_read_and_finds_the_config_good(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(providers={"rig": {"url": "http://h", "api_key": "sk-of-it"}})))
    config.chmod(0o644)
    checked = await run("check", cwd=tmp_path)
    assert checked.code == 0
    (line,) = [line for line in checked.err.splitlines() if "other users" in line]
    assert "chmod 600" in line and line.endswith("(warning)")
    assert KEY not in checked.err and "sk-of-it" not in checked.err
    config.chmod(0o600)
    assert "other users" not in (await run("check", cwd=tmp_path)).err
