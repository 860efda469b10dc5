"""The program as it really starts: signals, its command line, and clients that leave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from llmgateway.fleet.search import WELL_KNOWN
from llmgateway.service.files import SPACIOUS
from tests.conftest import ProgramFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.program import Finished, Program, run, running
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import done, head, play, raw, sse, stall, wait, word
from tests.tools import tool

LONG_DRAIN = {"drain_timeout": "1h"}  # so that what ends at once does not end for this


async def ask(port: int, message: bytes) -> Response:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        await client.send(message)
        return await client.response()


def good_words(finished: Finished) -> str:
    """What it said to a person on stderr; never a traceback."""
    assert finished.err.strip(), "it said nothing"
    assert "Traceback" not in finished.err
    return finished.err


def config_file(folder: Path, *providers: FakeProvider) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings(*providers)))
    return file


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_after_a_signal_streams_finish_and_new_calls_are_refused(
    provider: FakeProvider, program_for: ProgramFor, number: signal.Signals
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    program = await program_for(provider)
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        program.signal(number)

        async def unready() -> bool:
            return (await ask(program.port, request("GET", "/readyz", key=None))).status == 503

        await eventually(unready)
        refused = await ask(program.port, chat())
        assert (refused.status, refused.header("x-gateway-error")) == (503, "draining")
        assert refused.json["error"]["type"] == "draining"
        assert int(refused.header("retry-after") or 0) > 0
        assert (await ask(program.port, request("GET", "/healthz", key=None))).status == 200
        assert program.running

        gate.set()
        assert (await client.events(response, 3))[-1] == "[DONE]"
        assert await client.piece(response) == b""
        assert response.ending is Ending.COMPLETE
        finished = await program.ended()
    assert finished.code == 0
    good_words(finished)


async def test_with_nothing_in_flight_a_signal_ends_it_at_once(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    program = await program_for(provider, server=LONG_DRAIN)
    program.signal(signal.SIGTERM)
    assert (await program.ended()).code == 0


async def test_an_idle_connection_of_a_client_does_not_hold_it_up(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    program = await program_for(provider, server=LONG_DRAIN)
    async with RawClient(program.port) as client:
        await client.send(request("GET", "/healthz"))
        await client.response()
        program.signal(signal.SIGTERM)
        assert (await program.ended()).code == 0


async def test_a_second_signal_ends_it_at_once(provider: FakeProvider, program_for: ProgramFor) -> None:
    provider.script = play(sse(), word("Hel"), stall())
    program = await program_for(provider, server=LONG_DRAIN)
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        program.signal(signal.SIGTERM)
        await program.says("draining")
        assert program.running
        program.signal(signal.SIGTERM)
        good_words(await program.ended())
    await (await provider.next_call()).hung_up()


async def test_the_drain_timeout_bounds_the_wait_and_the_stream_is_told(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    provider.script = play(sse(), word("Hel"), stall())
    program = await program_for(provider, server={"drain_timeout": "500ms"})
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        program.signal(signal.SIGTERM)
        events = await client.events(response, 2)
        assert "error" in events[-1]
        finished = await program.ended()
    assert finished.code == 0
    good_words(finished)


async def test_after_a_hangup_the_log_follows_the_config_as_well(
    provider: FakeProvider, program_for: ProgramFor, tmp_path: Path
) -> None:
    program = await program_for(provider)
    tree = settings(provider, log={"requests": "none", "format": "json"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    program.signal(signal.SIGHUP)
    line = await program.says(r'^\{.*"event": "config reloaded".*\}$')
    assert json.loads(line[0])["changed"] == "log.format"


# Clients that leave, in all three windows.

LEAVING: dict[
    str, tuple[bool, Script, int]
] = {  # whether it streams; the script; bytes before the client leaves
    "a stream before its head": (True, stall(), 0),
    "a stream before its first event": (True, play(sse(), stall()), 50),
    "a stream in the middle": (True, play(sse(), word("Hel"), stall()), 150),
    "a buffered call before its head": (False, stall(), 0),
    "a buffered call in its body": (False, play(head(200, {"Content-Length": "99"}), raw(b"{"), stall()), 20),
}


@pytest.mark.parametrize("how", [RawClient.leave, RawClient.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize(("stream", "script", "size"), LEAVING.values(), ids=LEAVING.keys())
async def test_a_client_that_leaves_ends_the_exchange_with_the_provider(
    provider: FakeProvider,
    program_for: ProgramFor,
    stream: bool,
    script: Script,
    size: int,
    how: Callable[[RawClient], None],
) -> None:
    provider.once(script)
    program = await program_for(provider)
    async with RawClient(program.port) as client:
        await client.send(chat(stream=stream))
        exchange = await provider.next_call()
        await eventually(lambda: exchange.written >= size)
        how(client)
        await exchange.hung_up()
    assert (await ask(program.port, chat())).status == 200
    assert "Traceback" not in program.err


# The command line.


async def test_a_port_in_use_is_said_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        finished = await run("-c", str(config_file(tmp_path)), "--port", port, cwd=tmp_path)
    assert finished.code == 1
    assert port in good_words(finished)


BAD_FILES = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "not YAML": b"users: [alice\nproviders: {",
    "a list": b"- users\n",
    "not text": b"\xff\xfe\x00users",
    "a NUL": b"users: \x00\n",
    "an unknown key": b"userz: {}\n",
    "a duplicate key": b"users: {}\nusers: {}\n",
    "a wrong type": b"providers: 3\n",
    "an alias that bites its tail": b"users: &a {alice: *a}\n",
    "very deep": b"[" * 20_000,
    "a Python object": b"users: !!python/object/apply:os.getcwd []\n",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("command", [("--port", "0"), ("check",)], ids=["run", "check"])
async def test_a_bad_file_is_said_in_words(tmp_path: Path, content: bytes, command: tuple[str, ...]) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    finished = await run("-c", str(file), *command, cwd=tmp_path)
    assert finished.code == 1
    assert "config.yaml" in good_words(finished)


async def test_a_missing_file_and_a_folder_are_said_in_words(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        finished = await run("-c", str(path), "--port", "0", cwd=tmp_path)
        assert finished.code == 1
        assert path.name in good_words(finished)


async def test_a_new_key_works_once_its_line_is_pasted(provider: FakeProvider, tmp_path: Path) -> None:
    made = await run("key", "alice", cwd=tmp_path)
    assert made.code == 0
    key = next(word for word in made.out.split() if word.startswith("sk-"))
    line = next(line for line in made.out.splitlines() if "sha256:" in line)
    assert len(key) >= 43
    assert hashlib.sha256(key.encode()).hexdigest() in line
    file = tmp_path / "config.yaml"
    file.write_text(f"users:\n  alice:\n    keys:\n{line}\nproviders: {{rig: {{url: {provider.url}}}}}\n")
    async with running("-c", str(file), "--port", "0", cwd=tmp_path) as program:
        await program.url()

        async def served() -> bool:
            return (await ask(program.port, chat(key=key))).status == 200

        await eventually(served)
        assert (await ask(program.port, chat())).status == 401
        assert key not in program.err


async def test_every_key_is_a_new_one(tmp_path: Path) -> None:
    first, second = [await run("key", "alice", cwd=tmp_path) for _ in range(2)]
    assert first.out != second.out


async def test_the_schema_is_json_and_needs_no_file(tmp_path: Path) -> None:
    finished = await run("schema", cwd=tmp_path)
    assert finished.code == 0
    assert {"users", "providers", "server"} <= json.loads(finished.out)["properties"].keys()


async def test_check_says_what_is_good_and_with_probe_what_is_served(
    provider: FakeProvider, tmp_path: Path
) -> None:
    file = str(config_file(tmp_path, provider))
    for arguments in (("-c", file, "check"), ("check", "-c", file), ("check",)):
        assert (await run(*arguments, cwd=tmp_path)).code == 0
    assert not provider.probes
    probed = await run("check", "--probe", cwd=tmp_path)
    assert probed.code == 0
    assert re.search(r"^rig  \S+  online  \(OpenAI-compatible: openai\)\n    m$", probed.out, re.MULTILINE)
    provider.models, provider.settings["rename"] = ["a/b:c", "m"], {"a/b:c": "b"}
    config_file(tmp_path, provider)
    renamed = await run("check", "--probe", cwd=tmp_path)
    assert "\n    b  (told as a/b:c)\n    m\n" in renamed.out
    await provider.refuse()
    unreachable = await run("check", "--probe", cwd=tmp_path)
    assert unreachable.code == 1
    assert "Traceback" not in unreachable.err


@pytest.mark.parametrize(
    "arguments",
    [
        *[("fly",), ("--unknown",), ("check", "extra"), ("--port", "http"), ("--port", "70000")],
        *[("--host", ""), ("--host", "a..b"), ("--host", "http://x"), ("key",), ("key", ""), ("key", "a b")],
    ],
    ids=" ".join,
)
async def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    finished = await run(*arguments, cwd=tmp_path)
    assert finished.code == 2
    assert "usage" in good_words(finished).lower()


# Without a config file.


def somebody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def curl_of(program: Program) -> str | None:
    """The curl line it printed, whole."""
    lines = (program.out + "\n" + program.err).splitlines()
    return next(
        (line.strip() for line in lines if line.strip().startswith("curl ") and "completions" in line), None
    )


async def test_with_no_config_file_the_printed_curl_works_when_pasted(tmp_path: Path) -> None:
    tool("curl")
    if any(map(somebody_listens, WELL_KNOWN.values())):
        pytest.skip("an LLM server may be running on a well-known port of this machine")
    async with running("--port", "0", cwd=tmp_path) as program:
        url = await program.url()
        curl = await eventually(lambda: curl_of(program), saying="it printed no curl line")
        assert curl and url in curl
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", f"{curl} --silent --max-time 20", stdout=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        out, _ = await shell.communicate()
        assert shell.returncode == 0
        assert out.rstrip().endswith(b"data: [DONE]")
        assert (await ask(program.port, chat())).status == 401
        program.signal(signal.SIGTERM)
        assert (await program.ended()).code == 0
    assert not list(tmp_path.iterdir()), "it wrote a file"


async def test_a_config_yaml_in_the_current_folder_is_used(provider: FakeProvider, tmp_path: Path) -> None:
    config_file(tmp_path, provider)
    async with running("run", "--port", "0", cwd=tmp_path) as program:
        await program.url()

        async def served() -> bool:
            return (await ask(program.port, chat())).status == 200

        await eventually(served)


# What the system grants.


async def test_a_stderr_that_nobody_reads_stops_nothing(
    provider: FakeProvider, tmp_path: Path, port: int
) -> None:
    reading, writing = os.pipe()
    file = config_file(tmp_path, provider)
    try:
        async with running("-c", str(file), "--port", str(port), cwd=tmp_path, stderr=writing):
            os.close(writing)
            await eventually(lambda: asks(port))
            async with RawClient(port) as client:
                for _ in range(600):  # lines of which a pipe takes some 300
                    await client.send(chat())
                    assert (await client.response()).status == 200
    finally:
        os.close(reading)


async def asks(port: int) -> bool:
    try:
        return (await ask(port, request("GET", "/readyz"))).status == 200
    except OSError:
        return False


async def test_it_may_open_as_many_files_as_the_system_lets_it(
    program_for: ProgramFor, provider: FakeProvider
) -> None:
    program = await program_for(provider)
    said = await program.says(r"open files are limited limit=(\d+)")
    limits = Path(f"/proc/{program.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert found is not None and found[1] == found[2] == said[1]


async def test_the_system_has_a_place_for_many_files_before_they_are_needed(
    program_for: ProgramFor, provider: FakeProvider
) -> None:
    program = await program_for(provider)
    said = await program.says(r"open files are limited limit=(\d+)")
    table = re.search(r"FDSize:\s+(\d+)", Path(f"/proc/{program.pid}/status").read_text())
    assert table is not None and int(table[1]) >= min(int(said[1]), SPACIOUS)


async def test_a_crowd_that_would_take_all_files_keeps_nobody_from_asking_how_it_is(
    provider: FakeProvider, tmp_path: Path
) -> None:
    few = ("sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", sys.executable)
    file = config_file(tmp_path, provider)
    async with running("-c", str(file), "--port", "0", cwd=tmp_path, python=few) as program:
        await program.url()
        assert await program.says("open files are limited limit=128 connections=32")
        async with AsyncExitStack() as stack:
            for _ in range(200):
                await stack.enter_async_context(RawClient(program.port))
            await eventually(lambda: is_well(program.port))
        await eventually(lambda: asks(program.port))
        assert (await ask(program.port, chat())).status == 200
        assert program.err.count("too many connections") == 1
        assert "Traceback" not in program.err


async def is_well(port: int) -> bool:
    try:
        return (await ask(port, request("GET", "/healthz"))).status == 200
    except (OSError, EOFError):
        return False
