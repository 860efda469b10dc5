"""What the docs show agrees with the program: the reference, every config, each command that can run here."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytest

from llmgateway.config.load import parse
from tests.conftest import ProviderFor
from tests.guard import HANG_S
from tests.ports import held_port
from tests.program import GATEWAY, running
from tests.tools import tool

if TYPE_CHECKING:
    from tests.fake_provider import FakeProvider

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "contrib/README.md")
PAGES = {name: (ROOT / name).read_text("utf-8") for name in NAMES} | {
    str(each.relative_to(ROOT)): each.read_text("utf-8") for each in sorted((ROOT / "docs").rglob("*.md"))
}


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def everywhere(language: str) -> Iterator[tuple[str, str]]:
    """The blocks of all pages in a language, each with the name of its page."""
    for name, text in PAGES.items():
        yield from ((name, block) for its, block in blocks(text) if its == language)


def test_the_config_reference_is_what_the_models_say() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        reference = importlib.import_module("reference")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    assert PAGES["docs/config.md"] == reference.page(), "scripts/reference writes it anew"


def test_every_picture_is_there() -> None:
    for name, text in PAGES.items():
        for named in re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', text):
            assert ((ROOT / name).parent / "".join(named)).is_file(), f"{name} shows {named}"


NAMED: Final = re.compile(r"(?<![\w./@-])((?:tests|scripts|contrib|docs|llmgateway)/[\w./@-]*\w)(?:::(\w+))?")


YOURS: Final = {"contrib/config/config.yaml"}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_every_test_that_is_named_is_there(page: str) -> None:
    named = [(ROOT / path, test) for path, test in NAMED.findall(PAGES[page]) if path not in YOURS]
    assert not [str(path) for path, _ in named if not path.exists()]
    assert not [test for path, test in named if test and f"def {test}(" not in path.read_text("utf-8")]


# --- Configs --------------------------------------------------------------------------------------

CONFIGS = [(name, text) for name, text in everywhere("yaml") if "scrape_configs:" not in text]


@pytest.mark.parametrize("text", [text for _, text in CONFIGS], ids=[name for name, _ in CONFIGS])
def test_every_config_is_one(text: str) -> None:
    if "providers:" not in text:
        text += "providers: {desk: {url: http://192.168.1.20:8080/v1}}"
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "a-key-of-mine") | {"INSTANCE": "1"}
    assert parse(text, file="config.yaml", environ=variables, now=1_800_000_000.0).config


# --- Commands -------------------------------------------------------------------------------------

ELSEWHERE: Final = {
    r"scripts/test\b": "runs all this",
    r"(OLLAMA_HOST=\S+ )?(llama-server|ollama|lms) ": "an LLM server, on another machine",
    r"(OMP_NUM_THREADS=4 )?(vllm|transformers|infinity_emb|faster-whisper-server) ": "run by scripts/servers",
    r"python -m llama_cpp\.server ": "an LLM server that was run by hand",
    r"docker ": "wants Docker; tests/test_contrib.py reads the files",
    r"(systemctl|journalctl|sudo|chown|cp|cat|PYTHON=\S+ sh) ": "changes the system",
    r"(caddy|promtool|haproxy|envoy) ": "the tests of contrib/ run it, where it is to be had",
    r"(pipx|llmgateway|python3 gateway\.pyz) ": "scripts/release tries what it builds",
    r"(aider|claude|cn|codex|llm|opencode|qwen)\b": "scripts/clients runs it, where it is to be had",
}
HERE: Final = r"scripts/run\b|curl |printf |export |KEY="


def commands(text: str) -> list[str]:
    """The commands of a block, one each, without what is said about them."""
    lines = (re.sub(r"(^| +)# .*", "", line) for line in text.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]


SHELL: Final = [(name, each) for name, text in everywhere("sh") for each in commands(text)]


@pytest.mark.parametrize(("page", "command"), SHELL)
def test_every_command_is_run_here_or_it_is_known_why_not(page: str, command: str) -> None:
    assert [known for known in (*ELSEWHERE, HERE) if re.match(known, command)], f"{page} has a new one"


class Reader:
    """Somebody who does what the pages say, with a gateway and two servers on this machine."""

    def __init__(self, folder: Path, port: int, desk: FakeProvider, mini: FakeProvider) -> None:
        self._folder = folder
        self._here = f"127.0.0.1:{port}"
        self._servers = {"http://192.168.1.20:8080/v1": desk.url, "http://192.168.1.21:11434/v1": mini.url}
        self._listen = f"host: 127.0.0.1\n  port: {port}"
        self._key = self.hash = ""
        self._running = AsyncExitStack()
        run = folder / "scripts" / "run"
        run.parent.mkdir()
        run.write_text(f'#!/bin/sh\nexec {sys.executable} {GATEWAY} "$@"\n')
        run.chmod(0o755)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    async def follow(self, text: str) -> list[str]:
        """Do what a page says from top to bottom; gives what each command has said."""
        said = []
        for language, block in blocks(text):
            if language == "yaml" and "0" * 64 in block:
                self._write(block)
            elif language == "sh":
                said += [await self._do(each) for each in commands(block) if re.match(HERE, each)]
            elif language == "python" and "stream" in block:
                (self._folder / "it.py").write_text(self._seen_from_here(block))
                said.append(await self._shell(f"{sys.executable} it.py"))
        return said

    def _write(self, config: str) -> None:
        config = config.replace("host: 0.0.0.0", self._listen).replace("0" * 64, self.hash)
        for there, here in self._servers.items():
            config = config.replace(there, here)
        (self._folder / "config.yaml").write_text(config)

    async def _do(self, command: str) -> str:
        if command == "scripts/run":
            program = await self._running.enter_async_context(running(cwd=self._folder))
            return await program.url()
        said = await self._shell(self._seen_from_here(command))
        if shown := re.search(r"^ +(sk-\S+)\n(?:.*\n)*?.*sha256:([0-9a-f]{64})", said, re.MULTILINE):
            self._key, self.hash = shown[1], shown[2]
        return said

    def _seen_from_here(self, text: str) -> str:
        text = re.sub(r"(192\.168\.1\.10|127\.0\.0\.1|10\.0\.0\.\d):8900", self._here, text)
        text = re.sub(r"'/var/[^']*'", "requests.jsonl", text)
        return text.replace("sk-your-key", self._key).replace("--key KEY", f"--key {self._key}")

    async def _shell(self, command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "sh", "-ec", command,
            cwd=self._folder,
            env=os.environ | {"KEY": self._key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(HANG_S):
            out, err = await process.communicate()
        assert process.returncode == 0, f"{command}\n{err.decode()}"
        return out.decode()


@pytest.fixture
async def reader(tmp_path: Path, provider_for: ProviderFor) -> AsyncIterator[Reader]:
    tool("curl")
    desk, mini = [await provider_for(name, models=["qwen3-8b"]) for name in ("desk", "mini")]
    with held_port() as held:
        async with Reader(tmp_path, held.getsockname()[1], desk, mini) as reader:
            yield reader


SHORT_WAY: Final = PAGES["README.md"].partition("## Five minutes")[2]
LONG_WAY: Final = PAGES["docs/start.md"]


async def test_the_short_way_to_two_machines_is_as_it_is_written(reader: Reader) -> None:
    *_, chat = await reader.follow(SHORT_WAY)
    assert '"content": " world"' in chat
    assert chat.endswith("data: [DONE]\n\n")


async def test_the_long_way_is_too_and_what_the_other_pages_say_works_then(reader: Reader) -> None:
    *_, models, chat = await reader.follow(LONG_WAY)
    assert '"qwen3-8b"' in models
    assert '"content": " world"' in chat
    others = {name for name, command in SHELL if re.match(HERE, command)} - {"README.md", "docs/start.md"}
    wanted = {
        "docs/clients/curl.md": "world",
        "docs/clients/openai-python.md": "world",
        "docs/moving.md": reader.hash,
        "docs/operation.md": "alice",
    }
    for page in others | set(wanted):
        assert all(wanted.get(page, "") in said for said in await reader.follow(PAGES[page]) if said), page
