"""Run real clients through a real gateway, as docs/clients says, and write down what came of it.

The gateway is a process of its own. Behind it is llama.cpp with tiny models, made here, and for the API of
Ollama, which llama.cpp lacks, a scripted server. Each client is a user: the request log tells what it asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from clients_install import CACHE, NotRun, installed
from clients_kinds import CLIENTS, EMBEDS, LONG, OF_OLLAMA, TINY, Client
from clients_page import table, written
from clients_trial import Seen, Trial

from tests.fake_provider import FakeProvider
from tests.journeys.test_ollama_api import as_ollama
from tests.journeys.test_ollama_client import real_enough
from tests.llamacpp import fixtures
from tests.llamacpp.fixtures import LlamaServer, llama
from tests.program import Program, running
from tests.script import answer
from tests.web.test_ollama_pages import TOLD

AT_ONCE: Final = 2
COLUMNS: Final = ("models", "chat", "stream", "tools", "embeddings")
# of options of tests/llamacpp/make_tiny_gguf.py, and of the server
MODELS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    TINY: ((), ()),
    LONG: (("--ctx", "131072", "--tool-prob", "0"), ("-c", "262144", "-np", "2", "-n", "64")),
    EMBEDS: ((), ("--embeddings",)),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One client, and what came of it."""

    client: Client
    version: str = ""
    seen: Seen | None = None
    why: str = ""
    """What was in the way, where it was not run."""


def key_of(client: Client) -> str:
    return f"sk-{client.slug}-0123456789abcdefghijklmnop"


def made(name: str) -> Path:
    """Make a model's file unless it is there."""
    file = CACHE / f"{name}.gguf"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        maker = Path(fixtures.__file__).parent / "make_tiny_gguf.py"
        subprocess.run([sys.executable, maker, file, *MODELS[name][0]], check=True)
    return file


@asynccontextmanager
async def gateway_before(clients: Sequence[Client]) -> AsyncIterator[tuple[Program, Path]]:
    """Run servers, and a gateway in front of them; gives it and the file of its request log."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[str, LlamaServer] = {
            name: stack.enter_context(llama(made(name), name, *options))
            for name, (_, options) in MODELS.items()
        }
        async with FakeProvider("ollama") as ollama:
            as_ollama(ollama, OF_OLLAMA).script = real_enough
            ollama.on["/api/tags"] = answer(
                200, {"models": [{"name": OF_OLLAMA, "model": OF_OLLAMA, **TOLD}]}
            )
            tree = {
                "server": {"port": 0, "ollama_api": True},
                "users": {each.slug: {"keys": [key_of(each)]} for each in clients},
                "providers": {**{name: each.entry for name, each in servers.items()}, "ollama": ollama.entry},
            }
            file = folder / "config.yaml"
            file.write_text(yaml.safe_dump(tree))
            async with running("-c", str(file), cwd=folder) as program:
                await program.url()
                yield program, folder / "requests.jsonl"


# --- what came of it ------------------------------------------------------------------------------


async def result_of(client: Client, *, address: str, upgrade: bool) -> Result:
    """Install one client, and try it."""
    try:
        programs, version = await installed(client, upgrade=upgrade)
        if client.npm and not shutil.which("node"):
            raise NotRun("node is not installed")
    except NotRun as exc:
        return Result(client, why=str(exc))
    seen = await Trial(client, programs, address, key_of(client)).seen()
    return Result(client, version, seen)


async def results_of(
    clients: Sequence[Client], *, upgrade: bool
) -> tuple[list[Result], dict[str, list[Any]]]:
    """Try all of them; gives what came of it, and by user what the request log says."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with gateway_before(clients) as (program, log):

        async def one(client: Client) -> Result:
            async with gate:
                result = await result_of(client, address=f"http://127.0.0.1:{program.port}", upgrade=upgrade)
                print(f"{client.name}: {result.why or 'run'}", file=sys.stderr)
                return result

        results = await asyncio.gather(*map(one, clients))
        program.signal(signal.SIGTERM)
        await program.ended()
        asked = defaultdict[str, list[Any]](list)
        for line in map(json.loads, log.read_text().splitlines()):
            asked[line["user"]].append(line)
    return results, asked


def cells(result: Result, asked: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Give what the table says of it, after its name."""
    client = result.client
    if result.seen is None:
        return (f"not run: {result.why}", *[""] * (len(COLUMNS) + 2))
    failed = dict(result.seen.failed)
    if client.arguments and "stream" not in failed and any(line["stream"] for line in asked):
        failed["stream"] = failed["chat"]  # all that it does
    tried = ("-" if name not in failed else "FAILED" if failed[name] else "yes" for name in COLUMNS)
    paths = sorted({line["endpoint"] for line in asked if line["status"] == 200})
    refused = result.seen.refused or "FAILED"
    return result.version, *tried, refused, ", ".join(f"`{path}`" for path in paths)


def failures(result: Result, asked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell what is not as it should be."""
    if result.seen is None:
        return []
    found = [f"{name}: {failed}" for name, failed in result.seen.failed.items() if failed]
    found += [
        f"{line['endpoint']}: {line['status']} {line['outcome']}" for line in asked if line["status"] != 200
    ]
    if not result.seen.refused:
        found.append(f"with a wrong key: {result.seen.said[-300:]}")
    if not any(line["status"] == 200 for line in asked):
        found.append("it has asked nothing")
    return [f"{result.client.name}: {each}" for each in found]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run real clients through the gateway.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of the clients that are wanted; all by default"
    )
    parser.add_argument("--upgrade", action="store_true", help="install the newest versions")
    options = parser.parse_args()
    names = [name.lower() for name in options.names]
    wanted = [each for each in CLIENTS if not names or any(name in each.name.lower() for name in names)]
    results, asked = asyncio.run(results_of(wanted, upgrade=options.upgrade))
    came = [(each.client, cells(each, asked[each.client.slug])) for each in results]
    if options.names:
        print(table(came))
    else:
        for page, text in written(came).items():
            page.write_text(text)
    found = [line for each in results for line in failures(each, asked[each.client.slug])]
    print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
