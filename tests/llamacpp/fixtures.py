"""Real llama.cpp servers with tiny models, one of each kind per test session, started when first asked for.

Subprocesses without an event loop, so that they live across tests. Each worker of pytest-xdist has its own
servers; they share the model files.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest

from tests.guard import HANG_S

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A llama.cpp server that runs, and the name of its one model."""

    url: str
    """Its OpenAI base URL."""
    model: str
    key: str | None = None

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def entry(self) -> dict[str, Any]:
        """What stands in the gateway's config under `providers.NAME`."""
        return {"url": self.url, **({"api_key": self.key} if self.key else {})}

    async def busy_slots(self) -> int:
        """Ask llama.cpp how many of its slots generate now."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = aiohttp.ClientTimeout(total=HANG_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self.origin + "/slots", headers=headers) as answer,
        ):
            return sum(slot["is_processing"] for slot in await answer.json())


@dataclass(frozen=True, slots=True)
class LlamaModels:
    """The model files: `tiny` is fast and ends its turns; `endless` never does."""

    tiny: Path
    endless: Path


@pytest.fixture(scope="session")
def llama_models(tmp_path_factory: pytest.TempPathFactory) -> LlamaModels:
    """The model files, made once per session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    never_ends = ("--eos-prob", "0", "--tool-prob", "0")
    return LlamaModels(
        tiny=_made(shared / "tiny.gguf"),
        endless=_made(shared / "endless.gguf", "--dim", "256", "--layers", "8", *never_ends),
    )


@pytest.fixture(scope="session")
def llama_server(llama_models: LlamaModels) -> Iterator[LlamaServer]:
    """The model `tiny`, on four slots."""
    with llama(llama_models.tiny, "tiny") as server:
        yield server


@pytest.fixture(scope="session")
def llama_keyed(llama_models: LlamaModels) -> Iterator[LlamaServer]:
    """The model `tiny-keyed`, behind an API key."""
    with llama(llama_models.tiny, "tiny-keyed", key="sk-llama") as server:
        yield server


@pytest.fixture(scope="session")
def llama_embeddings(llama_models: LlamaModels) -> Iterator[LlamaServer]:
    """The model `tiny-embeddings`, which embeds."""
    with llama(llama_models.tiny, "tiny-embeddings", "--embeddings") as server:
        yield server


@pytest.fixture(scope="session")
def llama_endless(llama_models: LlamaModels) -> Iterator[LlamaServer]:
    """The model `endless`, on two slots: it talks until somebody leaves."""
    with llama(llama_models.endless, "endless", "-np", "2", "--context-shift") as server:
        yield server


@contextmanager
def llama(model: Path, alias: str, *options: str, key: str | None = None) -> Iterator[LlamaServer]:
    """Run a llama.cpp server on a free port until the end of the block."""
    command = [sys.executable, str(HERE / "server.py"), "-m", str(model), "--alias", alias, *options]
    if key:
        command += ["--api-key", key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield LlamaServer(_address(process) + "/v1", alias, key)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes]) -> str:
    """Read the server's output up to the line that says where it listens."""
    assert process.stdout
    said, end = b"", monotonic() + HANG_S
    while (left := end - monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            data = os.read(process.stdout.fileno(), 65_536)
            said += data
            for line in said.splitlines(keepends=True):
                if line.startswith(b"listening on ") and line.endswith(b"\n"):
                    return line.split()[-1].decode()
            if not data:
                break
    raise AssertionError(f"llama.cpp did not start within {HANG_S} s; it said {said!r}")


def _made(file: Path, *options: str) -> Path:
    """Make a model file unless it is there. The same options give the same bytes: who comes last may win."""
    if not file.exists():
        draft = file.with_suffix(f".{os.getpid()}")
        command = [sys.executable, str(HERE / "make_tiny_gguf.py"), str(draft), *options]
        subprocess.run(command, check=True, timeout=2 * HANG_S, capture_output=True)
        draft.replace(file)
    return file
