"""`init` on a terminal: what it asks, what it writes, and that it leaves nothing half done."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmgateway.access.keys import digest
from llmgateway.config.load import load
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import eventually
from tests.program import GATEWAY

# As from a shell, so that Ctrl-C is the terminal's; it finds only what the test has.
AT_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from llmgateway.fleet import search
search.WELL_KNOWN = {places}
import gateway
sys.argv = ["gateway.py", "init", *sys.argv[1:]]
sys.exit(gateway.main())
"""
WHICH, OTHERS, NAME = "Which to use", "May other machines", "Your name"


class Terminal:
    """A terminal in which `init` runs: what is on it, and hands to type."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self._process, self._screen = process, screen
        self._shown = bytearray()
        self._seen = 0

    @property
    def text(self) -> str:
        while True:
            try:
                piece = os.read(self._screen, 65_536)
            except (BlockingIOError, OSError):  # EIO: nobody is at the other end any more
                piece = b""
            if not piece:
                return self._shown.decode().replace("\r\n", "\n")
            self._shown += piece

    async def asks(self, question: str) -> None:
        """Wait for a question that is new."""
        await eventually(lambda: question in self.text[self._seen :], saying=f"it never asked {question!r}")
        self._seen = len(self.text)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    async def answer(self, question: str, keys: str) -> None:
        await self.asks(question)
        self.type(keys + "\n")

    async def ended(self) -> int:
        async with asyncio.timeout(HANG_S):
            return await self._process.wait()


@asynccontextmanager
async def init(folder: Path, found: Mapping[str, FakeProvider], *arguments: str) -> AsyncIterator[Terminal]:
    """Run `init` on a terminal, on a machine on which these are all servers."""
    places = {name: server.port for name, server in found.items()}
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AT_A_TERMINAL.format(places=places), *arguments,
        cwd=folder, env=os.environ | {"PYTHONPATH": str(GATEWAY.parent)}, start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(ours)


async def test_what_is_answered_is_what_the_file_says_and_the_lines_for_clients_have_the_key(
    tmp_path: Path,
) -> None:
    async with (
        FakeProvider("a", models=["qwen"]) as a,
        FakeProvider("b", models=["gemma", "phi"]) as b,
        init(tmp_path, {"ollama": a, "vllm": b}) as terminal,
    ):
        await terminal.answer(WHICH, "2")
        await terminal.answer(OTHERS, "y")
        await terminal.answer(NAME, "alice")
        assert await terminal.ended() == 0
        said = terminal.text
    assert re.search(rf"1 +ollama +{a.url} +qwen\n +2 +vllm +{b.url} +gemma, phi\n", said)
    config = load(tmp_path / "config.yaml", {}).config
    assert {name: each.url for name, each in config.providers.items()} == {"vllm": b.url}
    assert list(config.users) == ["alice"] and config.users["alice"].admin
    assert config.server.host == ("0.0.0.0",)
    (key,) = set(re.findall(r"sk-[\w-]{40,}", said))
    assert [each.digest for each in config.users["alice"].keys] == [digest(key)]
    written = (tmp_path / "config.yaml").read_text()
    assert key not in written and "# " in written
    (address,) = set(re.findall(r"http://(\S+):8900(?= ANTHROPIC|/v1\n)", said))
    assert not address.startswith("127.")
    for line in (
        f"export ANTHROPIC_BASE_URL=http://{address}:8900 ANTHROPIC_AUTH_TOKEN={key}\n",
        "ANTHROPIC_DEFAULT_SONNET_MODEL=gemma ",
        f'OpenAI(base_url="http://{address}:8900/v1", api_key="{key}")\n',
    ):
        assert line in said
    assert "Open WebUI" in said and "scripts/run\n" in said


async def test_enter_takes_all_that_was_found_for_this_machine_only(tmp_path: Path) -> None:
    async with FakeProvider("a") as a, FakeProvider("b") as b, init(tmp_path, {"a": a, "b": b}) as terminal:
        for question in (WHICH, OTHERS, NAME):
            await terminal.answer(question, "")
        assert await terminal.ended() == 0
    config = load(tmp_path / "config.yaml", {}).config
    assert list(config.providers) == ["a", "b"] and list(config.users) == ["me"]
    assert config.server.host == ("127.0.0.1",)
    assert stat.S_IMODE((tmp_path / "config.yaml").stat().st_mode) == 0o600


async def test_an_answer_that_makes_no_sense_is_asked_for_again(
    provider: FakeProvider, tmp_path: Path
) -> None:
    async with init(tmp_path, {"rig": provider}) as terminal:
        await terminal.answer(WHICH, "1 7")
        await terminal.answer(WHICH, "none")
        await terminal.answer(OTHERS, "perhaps")
        await terminal.answer(OTHERS, "no")
        await terminal.answer(NAME, "a b")
        await terminal.answer(NAME, "everyone")
        await terminal.answer(NAME, "-")
        assert await terminal.ended() == 0
        assert "'1 7' has 7 in it, which is none of them." in terminal.text
    config = load(tmp_path / "config.yaml", {}).config
    assert not config.providers and list(config.users) == ["-"]


async def test_where_nothing_was_found_there_is_nothing_to_choose(tmp_path: Path) -> None:
    async with init(tmp_path, {}) as terminal:
        await terminal.answer(OTHERS, "")
        await terminal.answer(NAME, "")
        assert await terminal.ended() == 0
        assert "No LLM server was found here" in terminal.text and WHICH not in terminal.text
    assert "# home-rig:" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("question", "keys", "code"), [(WHICH, "\x03", 130), (OTHERS, "\x04", 1), (NAME, "\x03", 130)]
)
async def test_who_leaves_in_the_middle_leaves_nothing_behind(
    provider: FakeProvider, tmp_path: Path, question: str, keys: str, code: int
) -> None:
    async with init(tmp_path, {"rig": provider}) as terminal:
        for earlier in (WHICH, OTHERS, NAME)[: (WHICH, OTHERS, NAME).index(question)]:
            await terminal.answer(earlier, "")
        await terminal.asks(question)
        terminal.type(keys)
        assert await terminal.ended() == code
        assert "Nothing was written" in terminal.text
        assert "Traceback" not in terminal.text and "sk-" not in terminal.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("agreed", [False, True])
async def test_a_file_that_is_there_is_written_over_only_if_that_is_wanted(
    provider: FakeProvider, tmp_path: Path, agreed: bool
) -> None:
    (tmp_path / "real.yaml").write_text("users: {old: {}}\n")
    (tmp_path / "mine.yaml").symlink_to("real.yaml")
    async with init(tmp_path, {"rig": provider}, "-c", "mine.yaml") as terminal:
        await terminal.answer("mine.yaml is there already", "y" if agreed else "")
        for question in (WHICH, OTHERS, NAME) if agreed else ():
            await terminal.answer(question, "")
        assert await terminal.ended() == (0 if agreed else 1)
    assert (tmp_path / "mine.yaml").is_symlink()
    assert list(load(tmp_path / "mine.yaml", {}).config.users) == (["me"] if agreed else ["old"])
    assert {each.name for each in tmp_path.iterdir()} == {"real.yaml", "mine.yaml"}


async def test_a_file_that_came_meanwhile_is_left_as_it_is(provider: FakeProvider, tmp_path: Path) -> None:
    async with init(tmp_path, {"rig": provider}) as terminal:
        await terminal.answer(WHICH, "")
        await terminal.answer(OTHERS, "")
        await terminal.asks(NAME)
        (tmp_path / "config.yaml").write_text("users: {old: {}}\n")
        terminal.type("\n")
        assert await terminal.ended() == 1
        assert "config.yaml cannot be written" in terminal.text and "sk-" not in terminal.text
    assert (tmp_path / "config.yaml").read_text() == "users: {old: {}}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]
