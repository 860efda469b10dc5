"""What happens in scripts/soak, all at once: clients come, providers go, the config changes."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import soak_config
from soak_books import Books
from soak_clients import World
from soak_kinds import KINDS
from soak_providers import GOOD, MOODY, QUICK, SLOW, Provider, lives, with_ollama
from soak_watch import Watched

from tests.script import answer, error

AT_ONCE: Final = 150
SAMPLE_S: Final = 5.0
RELOAD_S: Final = (2.0, 8.0)


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
