"""Run real servers behind a gateway, each alone: what they tell of themselves, and what clients get of them.

Nothing is downloaded but packages: the models are made here, of random weights. llama.cpp is the one of the
tests. Ollama and LM Studio, which no package registry has, are played: they say what those are known to say,
and are tried with no more than that. A row tells what was seen through the gateway, whatever that was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml
from servers_kinds import CHAT, MODEL, PAGES, SERVERS, TORCH, Server
from servers_stand_ins import STAND_INS
from servers_tries import TRIES

from tests.journey import KEY
from tests.llamacpp.fixtures import HERE, llama
from tests.ports import held_port
from tests.program import running
from tests.raw_client import RawClient, request

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs" / "servers"
MODELS: Final = Path(__file__).resolve().parent / "servers_models"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmgateway" / "servers"
BEGIN: Final = "<!-- scripts/servers writes from here -->"
END: Final = "<!-- to here -->"
HEADING: Final = ("server", "version", "is taken for", "tells beside its models", *TRIES, "odd")
START_S: Final = 300.0
INSTALL_S: Final = 3600.0
LOOK_EVERY_S: Final = 1.0
LLAMACPP: Final[Mapping[str, tuple[Any, ...]]] = {
    "llama.cpp": ((*CHAT, "responses", "messages"),),
    "llama.cpp `--embeddings`": (("embeddings",), "--embeddings"),
}


class NotRun(Exception):
    """It could not be tried; the text says why."""


@dataclass(slots=True)
class Row:
    """What was seen of one server."""

    name: str
    version: str = ""
    taken_for: str = ""
    tells: str = ""
    tries: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What it has, and did not do."""

    @property
    def cells(self) -> tuple[str, ...]:
        came = (self.tries.get(each, "") for each in TRIES)
        return self.name, self.version, self.taken_for, self.tells, *came, "; ".join(self.seen)


# --- what is installed ------------------------------------------------------------------------------


def installed(server: Server, torch: str, *, may_install: bool) -> Path:
    """Give the folder of a server's environment, and make it unless it is there."""
    place = CACHE / re.sub(r"\W+", "-", server.name.lower())
    ready = place / ".ready"
    wanted = [torch if each == TORCH else each for each in server.packages]
    recipe = " ".join((*wanted, *(f"-{each}" for each in server.without)))
    if ready.exists() and ready.read_text() == recipe:
        return place
    if not may_install:
        raise NotRun("it is not installed")
    print(f"installing {server.name} ...", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True, clear=True)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    finished(place, *pip, "install", *wanted, why="pip could not install it", more=server.build)
    if server.without:
        finished(place, *pip, "uninstall", "--yes", *server.without, why="pip could not uninstall from it")
    ready.write_text(recipe)
    return place


def finished(place: Path, *arguments: str, why: str, more: Mapping[str, str] | None = None) -> None:
    """Run a Python of the cache to its end, with more in its environment."""
    command = [str(place / "bin" / "python"), *arguments]
    env = {**os.environ, **(more or {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or [""]
        raise NotRun(f"{why}: {last[:120]}")


def version_of(server: Server, place: Path) -> str:
    """Tell which version of a server there is."""
    (site,) = place.glob("lib/python*/site-packages")
    name = re.sub(r"\[.*", "", server.packages[0]).replace("-", "_")
    (found,) = site.glob(f"{name}-*.dist-info")
    return found.name.removesuffix(".dist-info").partition("-")[2]


def made(server: Server, place: Path) -> Path:
    """Make a server's model unless it is there; gives its path."""
    target = place / "model"
    if not target.exists():
        draft = place / "draft"
        draft.mkdir(exist_ok=True)
        if server.makes == "llama":
            written_gguf(draft / f"{MODEL}.gguf")
        else:
            finished(place, str(MODELS / server.makes), str(draft), why="its model could not be made")
        draft.rename(target)
    return target


def written_gguf(file: Path) -> None:
    """Write the model that the tests have."""
    command = [sys.executable, str(HERE / "make_tiny_gguf.py"), str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=START_S)


# --- what runs --------------------------------------------------------------------------------------


@asynccontextmanager
async def started(server: Server, place: Path, model: Path) -> AsyncIterator[str]:
    """Run a server until the end of the block; gives its OpenAI base URL."""
    with held_port() as holder:
        port = holder.getsockname()[1]
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, **server.env, "HF_HUB_OFFLINE": "1", "PATH": path}
    program, *arguments = (each.format(model=model, port=port) for each in server.command)
    program = shutil.which(program, path=path) or program
    with (place / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            str(place / "bin" / program),
            *arguments,
            env=env,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        await listens(process, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)  # with its engines
        await process.wait()


async def listens(process: asyncio.subprocess.Process, port: int) -> None:
    """Wait until somebody takes connections at a port."""
    end = time.monotonic() + START_S
    while process.returncode is None and time.monotonic() < end:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return
    raise NotRun(
        f"it did not start within {START_S:.0f} s" if process.returncode is None else "it does not start"
    )


async def looked_at(
    row: Row, entry: dict[str, Any], model: str, has: Sequence[str], tries: Iterable[str] = TRIES
) -> Row:
    """Put a gateway before a server, and see what comes through it."""
    config = {
        "server": {"port": 0},
        "users": {"alice": {"keys": [KEY], "admin": True}},
        "providers": {"it": entry},
        "log": {"requests": "none"},
        "health": {"interval": LOOK_EVERY_S},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        async with running("-c", str(file), cwd=Path(folder)) as program:
            await program.url()
            await is_known(program.port, model)
            for name in tries:
                result = await TRIES[name](program.port, model)
                row.tries[name] = result.words
                row.seen += [each for each in result.seen if each not in row.seen]
                if name in has and not result.passed:
                    row.wrong.append(f"{row.name}: {name}: {result.words}")
            row.tells = await all_told(program.port, model)
        async with running("check", "--probe", "-c", str(file), cwd=Path(folder)) as check:
            out = (await check.ended()).out
            row.taken_for = match[1] if (match := re.search(r"\(([^:()]+): ", out)) else "nothing"
    return row


async def asked(port: int, path: str) -> Any:
    async with RawClient(port) as client:
        await client.send(request("GET", path))
        return (await client.response()).json


async def is_known(port: int, model: str) -> None:
    """Wait until the gateway lists a model."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if model in [entry["id"] for entry in (await asked(port, "/v1/models"))["data"]]:
            return
        await asyncio.sleep(0.2)
    raise NotRun("the gateway does not list its model")


async def all_told(port: int, model: str) -> str:
    """Say what the gateway knows once it has looked again: a model may have come to memory."""
    end = time.monotonic() + 3 * LOOK_EVERY_S
    words = await told(port, model)
    while words.count(",") < 2 and time.monotonic() < end:
        await asyncio.sleep(0.1)
        words = await told(port, model)
    return words


async def told(port: int, model: str) -> str:
    """Say in words what the gateway knows of a server and its model, beside that it is there."""
    (provider,) = (await asked(port, "/gateway/status"))["providers"]
    (entry,) = (each for each in provider["models"] if each["id"] == model)
    known = {
        "in memory": entry["loaded"] is not None,
        f"context {entry['context_length']}": entry["context_length"] is not None,
        f"slots {provider['slots']}": provider["slots"] is not None,
    }
    return ", ".join(words for words, is_known in known.items() if is_known) or "nothing"


# --- the rows ---------------------------------------------------------------------------------------


async def llamacpp(name: str, *options: str, has: Sequence[str]) -> Row:
    """See llama.cpp's own server, as the tests have it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.gguf"
        await asyncio.to_thread(written_gguf, file)
        with llama(file, MODEL, *options) as server:
            return await looked_at(Row(name, version("xllamacpp")), server.entry, MODEL, has)


async def stand_in(name: str) -> Row:
    """See a scripted server."""
    one = STAND_INS[name]
    async with one.provider() as provider:
        return await looked_at(Row(name, ""), provider.entry, one.model, one.has, one.has)


async def real(server: Server, torch: str, *, may_install: bool) -> Row:
    """Install a server, run it, and see."""
    place = await asyncio.to_thread(installed, server, torch, may_install=may_install)
    model = await asyncio.to_thread(made, server, place)
    row = Row(server.name, await asyncio.to_thread(version_of, server, place))
    name = server.model.format(model=model)
    async with started(server, place, model) as url:
        return await looked_at(row, {"url": url, **server.settings}, name, server.has)


async def rows(is_wanted: Callable[[str], bool], torch: str, *, may_install: bool) -> AsyncIterator[Row]:
    """See those that are wanted by their names."""
    of: dict[str, Callable[[], Awaitable[Row]]] = {
        name: partial(llamacpp, name, *options, has=has) for name, (has, *options) in LLAMACPP.items()
    }
    of |= {name: partial(stand_in, name) for name in STAND_INS}
    of |= {each.name: partial(real, each, torch, may_install=may_install) for each in SERVERS}
    for name, see in of.items():
        if not is_wanted(name):
            continue
        try:
            yield await see()
        except NotRun as exc:
            yield Row(name, f"not run: {exc}")


def line(cells: Sequence[str], model_path: str = str(CACHE)) -> str:
    return f"| {' | '.join(cell.replace(model_path, '') for cell in cells)} |"


def table(columns: Iterable[Sequence[str]]) -> list[str]:
    """Render cells, those of the heading first."""
    heading, *rest = columns
    return [line(heading), f"|{'---|' * len(heading)}", *map(line, rest)]


def written(seen: Mapping[str, Row]) -> None:
    """Put the rows into the list of all servers, and each into the page of its server, as a column."""
    put("index", table([HEADING, *(row.cells for row in seen.values())]))
    for page, names in PAGES.items():
        put(page, table(zip(HEADING, *(seen[name].cells for name in names), strict=True)))


def put(page: str, lines: Sequence[str]) -> None:
    """Write lines between the marks of a page."""
    file = DOCS / f"{page}.md"
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text("\n".join((before + BEGIN, "", *lines, "", END + after)))


async def tell(words: Sequence[str], torch: str, *, may_install: bool, exactly: bool) -> list[str]:
    """Print the table, write it if it is whole; gives what is wrong."""

    def is_wanted(name: str) -> bool:
        if exactly:
            return name in words
        return not words or any(word.lower() in name.lower() for word in words)

    seen = dict[str, Row]()
    print(*table([HEADING]), sep="\n", flush=True)
    async for row in rows(is_wanted, torch, may_install=may_install):
        seen[row.name] = row
        print(line(row.cells), flush=True)
    if not words:
        written(seen)
    return [words for row in seen.values() for words in row.wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run real servers behind a gateway, and tell what was seen.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="of the names that are wanted; by default all"
    )
    parser.add_argument("--exactly", action="store_true", help="these names, and none that has them in it")
    parser.add_argument("--installed", action="store_true", help="install nothing")
    parser.add_argument("--torch", default=TORCH, metavar="REQUIREMENT", help="which torch pip is to install")
    args = parser.parse_args()
    may_install = not args.installed
    wrong = asyncio.run(tell(args.words, args.torch, may_install=may_install, exactly=args.exactly))
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
