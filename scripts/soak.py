"""Let all that can happen to a gateway happen at once, for as long as asked; then count.

A real gateway runs as a process. Its providers and clients are here: providers that are slow, cut, stall,
lie, come and go (`soak_providers`), clients of every kind that stay, dawdle or leave (`soak_clients`), and a
config that changes every few seconds (`soak_config`). When the traffic has ended and nothing moves any more,
every request must stand in four books, once and alike (`soak_books`), and the process must hold no more than
after a first part of the same (`soak_watch`): tasks, descriptors, memory, slots, places in the queue, bodies.
Then it is stopped amid traffic, and what it wrote of that must be as true.

The same seed draws the same numbers; what happens is up to the clock and the machine all the same.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import soak_config
from bench_process import end_like_ctrl_c, free_ports, running
from soak_books import Books, disagreements
from soak_clients import World
from soak_kinds import KINDS
from soak_providers import GOOD, MOODY, QUICK, SLOW, Provider, lives, with_ollama
from soak_watch import MB, Held, Watched, grown, more_than, settled, until

from tests.script import answer, error

AT_ONCE: Final = 150
START_LIMIT_S: Final = 30.0
SAMPLE_S: Final = 5.0
AMID_S: Final = 3.0
DRAIN_S: Final = 2.0
END_LIMIT_S: Final = 20.0
RELOAD_S: Final = (2.0, 8.0)
WARM_UP_PART: Final = 0.15
WARM_UP_MOST_S: Final = 120.0
MOST_GROWTH_BYTES: Final = 24 * MB
GATEWAY: Final = Path(__file__).parent / "soak_gateway.py"
BAD_WORDS: Final = (
    "Traceback",
    "Z error ",
    "exception was never retrieved",
    "was never awaited",
    "ResourceWarning",
)


def providers_of(books: Books, chance: random.Random) -> dict[str, Provider]:
    """Make all providers, by name."""
    quick = {"connect": "1s", "first_byte": "4s", "idle": "3s"}

    def provider(name: str, models: list[str], manners: Any = GOOD, **more: Any) -> Provider:
        drawn = random.Random(chance.random())
        return Provider(name, books, drawn, manners=manners, models=models, timeouts=quick, **more)

    some = [
        provider("fast", ["qwen", "qwen-4b", "embed", "keeps"], QUICK, slots=4),
        provider("slow", ["Qwen/Q4_K_M", "big"], SLOW, slots=4, rename={"Qwen/Q4_K_M": "qwen"}),
        provider("moody", ["qwen", "mini", "keeps"], MOODY, slots=6),
        provider("nomad", ["mini", "keeps", "live", "embed"], SLOW, slots=8),
        with_ollama(provider("llama", ["llama3:8b", "tiny"], SLOW, slots=4)),
        provider("hears", ["whisper", "live"], QUICK, slots=4),
        provider("mishears", ["whisper", "live"], MOODY, slots=4),
        provider("liar", ["lost", "keeps", "whisper"], {next(iter(MOODY)): 1, **_of_a_liar()}),
    ]
    hearer = next(each for each in some if each.name == "mishears")
    hearer.before_body = _refuse_some(chance)
    return {each.name: each for each in some}


def _of_a_liar() -> dict[Any, float]:
    async def fails(provider: Provider, exchange: Any, served: Any) -> None:
        served.status = 500
        await error(500)(exchange)

    return {fails: 3}


def _refuse_some(chance: random.Random) -> Callable[[Any], Awaitable[None]]:
    """Answer some requests before their body has come."""

    async def refuse(exchange: Any) -> None:
        if chance.random() < 0.1:
            await answer(413, {"error": {"message": "too large"}})(exchange)

    return refuse


# --- Traffic ----------------------------------------------------------------------------------------


class Traffic:
    """Clients that come at a rate; what fails here itself is kept, and is a disagreement."""

    def __init__(self, world: World, rate: float) -> None:
        self._world = world
        self._rate = rate
        self.clients: Counter[str] = Counter()
        self.failures: list[str] = []
        self._busy: set[asyncio.Task[None]] = set()

    async def run(self, for_s: float) -> None:
        """Let clients come for a while, and wait for the last of them."""
        end, chance = time.monotonic() + for_s, self._world.chance
        while time.monotonic() < end:
            if len(self._busy) < AT_ONCE:
                kind = chance.choices([*KINDS], [*KINDS.values()])[0]
                task = asyncio.create_task(self._one(kind))
                self._busy.add(task)
                task.add_done_callback(self._busy.discard)
            await asyncio.sleep(chance.expovariate(self._rate))
        if self._busy:
            await asyncio.wait(self._busy)

    async def _one(self, kind: Any) -> None:
        self.clients[kind.__name__] += 1
        try:
            await kind(self._world)
        except (ConnectionError, EOFError):
            pass  # the gateway hung up while something was sent: what was asked stands as it is
        except Exception as exc:
            self.failures.append(f"{kind.__name__}: {exc!r}"[:300])


def note_names(providers: dict[str, Provider], tree: soak_config.Tree) -> None:
    """Write down what providers are called in a config."""
    for name, provider in providers.items():
        called = {each for each, entry in tree["providers"].items() if entry["url"] == provider.url}
        provider.books.names.setdefault(name, {name}).update(called)


async def change_config(
    watched: Watched,
    providers: dict[str, Provider],
    tree: soak_config.Tree,
    chance: random.Random,
    ending: asyncio.Event,
) -> None:
    """Change the config every few seconds; at the end it is as it was."""
    path = watched.folder / "config.yaml"
    while not ending.is_set():
        try:
            async with asyncio.timeout(chance.uniform(*RELOAD_S)):
                await ending.wait()
        except TimeoutError:
            another = soak_config.changed(tree, chance) if chance.random() < 0.7 else tree
            note_names(providers, another)
            soak_config.write(another, path)
            watched.reload()
    soak_config.write(tree, path)
    watched.reload()


async def sample(watched: Watched, ending: asyncio.Event) -> None:
    """Write down how much memory it has, now and then."""
    while not ending.is_set():
        watched.memory.append((time.monotonic(), watched.rss_bytes()))
        try:
            async with asyncio.timeout(SAMPLE_S):
                await ending.wait()
        except TimeoutError:
            pass


async def let_happen(
    watched: Watched,
    traffic: Traffic,
    providers: dict[str, Provider],
    tree: soak_config.Tree,
    for_s: float,
    chance: random.Random,
) -> None:
    """Have all of it happen for a while, and everything be there again at its end."""
    ending = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(change_config(watched, providers, tree, chance, ending))
        group.create_task(sample(watched, ending))
        for name in ("nomad", "moody", "slow"):
            group.create_task(lives(providers[name], chance, ending))
        await traffic.run(for_s)
        ending.set()


# --- Afterwards -------------------------------------------------------------------------------------


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Read the request log, with what was put aside of it."""
    return [
        json.loads(line) for path in folder.glob("requests.jsonl*") for line in path.read_bytes().splitlines()
    ]


def complaints(log: Path) -> list[str]:
    """Find in what it said what it never should say."""
    return [
        f"it said: {line.strip()[:300]}"
        for line in log.read_text(errors="replace").splitlines()
        if any(word in line for word in BAD_WORDS)
    ]


def table(rows: dict[str, object]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def sums(lines: list[dict[str, Any]], name: str) -> str:
    return f"{sum(line[name] or 0 for line in lines):,}"


def counts(some: Iterable[Any]) -> str:
    return ", ".join(f"{each} {count}" for each, count in Counter[Any](some).most_common())


def figures(books: Books, lines: list[dict[str, Any]], took_s: float) -> dict[str, object]:
    """Give what has happened, in numbers."""
    served = [each for some in books.served.values() for each in some]
    return {
        "minutes": f"{took_s / 60:.1f}",
        "requests asked": len(books.asked),
        "heads of answers": sum(asked.status > 0 for asked in books.asked.values()),
        "exchanges served": len(served),
        "lines logged": len(lines),
        "attempts": sums(lines, "attempts"),
        "bytes in, out": f"{sums(lines, 'bytes_in')}, {sums(lines, 'bytes_out')}",
        "tokens": f"{sums(lines, 'prompt_tokens')} + {sums(lines, 'completion_tokens')}",
        "outcomes": counts(line["outcome"] for line in lines),
        "statuses": counts(line["status"] for line in lines),
        "by provider": counts(each.provider for each in served),
    }


def of_the_process(
    watched: Watched, traffic: Traffic, first: Held, last: Held, metrics: str
) -> dict[str, object]:
    """Give what has become of the process, in numbers."""
    growth, slope = grown(watched.memory)
    most = max((size for _, size in watched.memory), default=0)
    sizes = [first.rss_bytes, last.rss_bytes, most]
    more = Counter(last.inside["types"]) - Counter(first.inside["types"])
    return {
        "clients": ", ".join(f"{name} {count}" for name, count in traffic.clients.most_common()),
        "reloads": reloads(metrics),
        "held at first": first.levels,
        "held at last": last.levels,
        "objects": f"{first.inside['objects']:,}, then {last.inside['objects']:,}",
        "more of": ", ".join(f"{name} {count}" for name, count in more.most_common(9)),
        "responses known": last.inside["keepers"],
        "memory": "{:.0f} MB, then {:.0f}, at most {:.0f}".format(*(size / MB for size in sizes)),
        "memory grows": f"{growth / MB:.1f} MB from quarter 2 to 4; second half {slope:+.1f} MB an hour",
    }


async def judge(
    watched: Watched, books: Books, traffic: Traffic, first: Held, last: Held, took_s: float
) -> list[str]:
    """Print the figures; gives every disagreement."""
    lines: list[dict[str, Any]] = []
    text, snapshot = "", {}

    async def is_written() -> bool:
        nonlocal lines, text, snapshot
        text, snapshot = (
            (await watched.get("/metrics")).decode(),
            json.loads(await watched.get("/gateway/status")),
        )
        lines = log_lines(watched.folder)
        return not disagreements(books, lines, text, snapshot)

    try:
        await until(is_written, 10, "")
    except AssertionError:
        pass
    growth, _ = grown(watched.memory)
    print(table(figures(books, lines, took_s) | of_the_process(watched, traffic, first, last, text)))
    found = disagreements(books, lines, text, snapshot) + more_than(first, last)
    if growth > MOST_GROWTH_BYTES:
        found.append(f"memory has grown by {growth / MB:.0f} MB")
    return found


def reloads(metrics: str) -> str:
    return ", ".join(
        line.partition("{")[2]
        for line in metrics.splitlines()
        if line.startswith("gateway_config_reloads_total{")
    )


async def stopped(watched: Watched, books: Books, traffic: Traffic) -> list[str]:
    """Stop the gateway amid traffic; gives where its log is not true then."""
    coming = asyncio.create_task(traffic.run(AMID_S + DRAIN_S))
    await asyncio.sleep(AMID_S)
    watched.process.send_signal(signal.SIGTERM)
    found = []
    try:
        code = await asyncio.to_thread(watched.process.wait, DRAIN_S + END_LIMIT_S)
        found += [f"it ended with {code}"] * bool(code)
    except subprocess.TimeoutExpired:
        found.append("it does not end")
    await coming
    lines = log_lines(watched.folder)
    print(
        table(
            {
                "stopped amid": counts(line["outcome"] for line in lines if line["outcome"] == "draining")
                or "no streams"
            }
        )
    )
    return found + [f"when it was stopped: {each}" for each in disagreements(books, lines)]


async def soak(minutes: float, seed: int, rate: float, folder: Path) -> list[str]:
    """Do all of it; gives every disagreement."""
    chance, books = random.Random(seed), Books(renames={"slow"})
    (port,) = free_ports(1)
    providers = providers_of(books, chance)
    async with AsyncExitStack() as stack:
        for provider in providers.values():
            await stack.enter_async_context(provider)
        spool = folder / "spool"
        spool.mkdir()
        entries = {name: provider.entry for name, provider in providers.items()}
        tree = soak_config.tree_of(entries, port=port, spool=spool)
        soak_config.write(tree, folder / "config.yaml")
        command = [sys.executable, str(GATEWAY), "-c", str(folder / "config.yaml")]
        environment = {
            "SOAK_LOOK": str(folder / "look.json"),
            "PYTHONPATH": str(GATEWAY.parent.parent),
            "PYTHONDEVMODE": "",
        }
        process = stack.enter_context(running(command, folder / "log", environment))
        watched = Watched(process, port, folder)

        async def is_ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return b"ready" in await watched.get("/gateway/status")
            except (OSError, EOFError, AssertionError):
                return False

        await until(is_ready, START_LIMIT_S, "it does not start")
        traffic, for_s = Traffic(World(port, books, chance), rate), minutes * 60
        warm_up_s = min(WARM_UP_MOST_S, for_s * WARM_UP_PART)
        await let_happen(watched, traffic, providers, tree, warm_up_s, chance)
        first = await settled(watched, providers.values(), None)
        watched.memory.clear()
        began = time.monotonic()
        await let_happen(watched, traffic, providers, tree, for_s - warm_up_s, chance)
        last = await settled(watched, providers.values(), first)
        found = await judge(watched, books, traffic, first, last, time.monotonic() - began)
        found += await stopped(watched, books, traffic)
        left = list(spool.iterdir())
        found += complaints(watched.folder / "log")
        found += [f"a client failed: {each}" for each in traffic.failures]
        return found + [f"left in the spool: {each.name}" for each in left]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Let all that can happen to a gateway happen at once; then count."
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="clients a second (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    given = parser.parse_args()
    end_like_ctrl_c()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        found = asyncio.run(soak(given.minutes, given.seed, given.rate, folder))
    finally:
        if given.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print("\n".join(["", "Disagreements:", *found] if found else ["", "No disagreements."]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
