"""Simulate several gateways beside one big one, in virtual time, and print how users fare.

Queue, fair share, choice of a provider, conversations and shares of slots are the gateway's own code; users,
load balancer and machines are made up. A machine works on as many requests as it has slots, the rest wait in
its own queue; it reads a prompt faster than it writes, and not at all what is in its cache, which holds so
many conversations. Users have one to several hundred clients, the k-th of them a k-th of the first; a client
asks, waits for its answer, thinks, and goes on with its conversation.
"""

import argparse
import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean
from typing import Any, Final
from zlib import crc32

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.config.settings import ClusterConfig, QueueConfig
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.share import TURN_S, share_of
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.fairness import cost
from llmgateway.traffic.slots import Slots
from tests.simulation import fleet, now, run, taking_part

WRITTEN_PER_S: Final = 30.0  # tokens
READ_PER_S: Final = 1_500.0
ANSWER_TOKENS: Final = 600.0
QUESTION_TOKENS: Final = 800
TURNS: Final = 8  # of a conversation
CACHED: Final = 4  # conversations for each slot
HEAVY_THINKS_S: Final = 2.0
LIGHT_THINKS_S: Final = 240.0
HEAVIEST: Final = 20
CHAINS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is. `clients` are those of the heaviest user."""

    instances: int = 20
    providers: int = 200
    slots: int = 20
    users: int = 5_000
    clients: int = 400
    seconds: float = 300.0
    seed: int = 1

    @property
    def begins(self) -> float:
        """When counting begins: by then the queues are what they are."""
        return self.seconds / 4


@dataclass(frozen=True, slots=True)
class Layout:
    """How the same machines are put behind gateways."""

    words: str
    alone: bool = False
    """One gateway has all of them."""
    hashed: bool = True
    """A user comes always to the same gateway, otherwise to any."""
    split: bool = False
    """Each gateway has machines of its own, otherwise its share of all."""


LAYOUTS: Final = (
    Layout("one big gateway", alone=True),
    Layout("several, hashing on the key"),
    Layout("several, any of them", hashed=False),
    Layout("several, each with machines of its own", split=True),
)


@dataclass(slots=True)
class Machine:
    """What a provider really is."""

    slots: asyncio.Semaphore
    holds: int
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def has_read(self, conversation: int) -> bool:
        """Tell whether a conversation is in the cache; it is from now on."""
        known = conversation in self.cache
        self.cache[conversation] = None
        self.cache.move_to_end(conversation)
        if len(self.cache) > self.holds:
            self.cache.popitem(last=False)
        return known


class Gateway:
    """One instance: its queue, and its view of the providers."""

    def __init__(self, names: Sequence[str], scale: Scale, number: int, sharers: int) -> None:
        self.fleet: Fleet = fleet({name: {"slots": scale.slots} for name in names})
        self._share = share_of(ClusterConfig(name=f"gw{number}", instances=sharers))
        queue = QueueConfig(size=100_000, timeout=86_400)
        self.slots = Slots(self.fleet, Affinity(), queue, Random(scale.seed + number), clock=now)
        self.busy_s = 0.0

    def begin_turn(self, turn: int) -> None:
        """Take the share of this turn."""
        self.fleet.share_out(replace(self._share, turn=turn))


@dataclass(slots=True)
class User:
    """A user, and what became of their requests."""

    name: str
    clients: int
    waits: list[float] = field(default_factory=list)
    tokens: float = 0.0


class World:
    """Users, gateways and machines, while the clock runs."""

    def __init__(self, scale: Scale, layout: Layout) -> None:
        self.scale, self.layout = scale, layout
        self.chance = Random(scale.seed)
        self.users = [User(f"user{k}", max(1, round(scale.clients / k))) for k in range(1, scale.users + 1)]
        names = [f"rig{number}" for number in range(scale.providers)]
        self.machines = {
            name: Machine(asyncio.Semaphore(scale.slots), CACHED * scale.slots) for name in names
        }
        count = 1 if layout.alone else scale.instances
        sharers = 1 if layout.split else count
        self.gateways = [
            Gateway(names[n::count] if layout.split else names, scale, n + 1, sharers) for n in range(count)
        ]
        self.sharers = sharers
        self.hits = self.turns = 0
        self.at_machines: list[float] = []

    async def go_on(self) -> None:
        """Let everybody ask until the time is over."""
        tasks = [asyncio.create_task(self._take_turns())]
        for user in self.users:
            tasks += [asyncio.create_task(self._be_a_client(user)) for _ in range(user.clients)]
        await asyncio.sleep(self.scale.seconds)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise AssertionError(ended)

    async def _take_turns(self) -> None:
        turn = 0
        while True:
            for gateway in self.gateways:
                gateway.begin_turn(turn)
            await asyncio.sleep(TURN_S if self.scale.slots < self.sharers else self.scale.seconds)
            turn += 1

    async def _be_a_client(self, user: User) -> None:
        thinks_s = HEAVY_THINKS_S if user.clients > 1 else LIGHT_THINKS_S
        await asyncio.sleep(self.chance.random() * thinks_s)
        for conversation in self._conversations():
            for turn in range(1, self.chance.randint(1, TURNS) + 1):
                await self._ask(user, conversation, turn)
                await asyncio.sleep(self.chance.expovariate(1 / thinks_s))

    def _conversations(self) -> Iterator[int]:
        while True:
            yield self.chance.randrange(CHAINS)

    def _gateway_for(self, user: User) -> Gateway:
        if self.layout.hashed:
            return self.gateways[crc32(user.name.encode()) % len(self.gateways)]
        return self.chance.choice(self.gateways)

    async def _ask(self, user: User, conversation: int, turn: int) -> None:
        gateway, came = self._gateway_for(user), now()
        links = tuple(conversation * TURNS + each for each in range(turn))
        written = int(self.chance.expovariate(1 / ANSWER_TOKENS)) + 1
        tokens = Tokens(QUESTION_TOKENS * turn, written)
        guess = cost(tokens.prompt, ANSWER_TOKENS)
        order = gateway.slots.order(Caller(user.name), "m", Thread(links, opening=turn == 1), guess)
        with taking_part(gateway.slots, order):
            with await gateway.slots.lease(order) as provider:
                await self._work(provider, gateway, user, tokens, conversation, turn, came)
            gateway.slots.correct(order, tokens)

    async def _work(
        self,
        provider: Provider,
        gateway: Gateway,
        user: User,
        tokens: Tokens,
        conversation: int,
        turn: int,
        came: float,
    ) -> None:
        machine, sent = self.machines[provider.name], now()
        async with machine.slots:
            known = machine.has_read(conversation)
            if now() > self.scale.begins:
                user.waits.append(now() - came)
                user.tokens += cost(tokens.prompt, tokens.completion)
                self.at_machines.append(now() - sent)
                self.turns += turn > 1
                self.hits += turn > 1 and known
            read = QUESTION_TOKENS if known else tokens.prompt
            seconds = read / READ_PER_S + tokens.completion / WRITTEN_PER_S
            counted = min(now() + seconds, self.scale.seconds) - max(now(), self.scale.begins)
            gateway.busy_s += max(0.0, counted)
            await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How users fared, and the machines. Waits are those of users with one client."""

    served: int
    wait_s: float
    wait_p99_s: float
    at_machine_s: float
    jain: float
    heaviest: float
    hits: float
    busy: float
    least_busy: float
    most_busy: float


def outcome(world: World) -> Outcome:
    """Add up what became of everybody."""
    light = sorted(wait for user in world.users if user.clients == 1 for wait in user.waits)
    tokens = [user.tokens for user in world.users]
    scale = world.scale
    slot_s = scale.providers * scale.slots * (scale.seconds - scale.begins)
    shares = [gateway.busy_s * len(world.gateways) / slot_s for gateway in world.gateways]
    return Outcome(
        served=sum(len(user.waits) for user in world.users),
        wait_s=fmean(light),
        wait_p99_s=light[int(0.99 * len(light))],
        at_machine_s=fmean(world.at_machines),
        jain=jain(tokens[:HEAVIEST]),
        heaviest=tokens[0] / sum(tokens),
        hits=world.hits / max(1, world.turns),
        busy=fmean(shares),
        least_busy=min(shares),
        most_busy=max(shares),
    )


def jain(values: Sequence[float]) -> float:
    """Give Jain's index of fairness: 1 if all have the same, 1/n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def simulate(scale: Scale, layout: Layout) -> Outcome:
    """Run it all; the same every time."""

    async def story() -> Outcome:
        world = World(scale, layout)
        await world.go_on()
        return outcome(world)

    return run(story())


HEAD: Final = (
    *("", "requests", "light users wait, mean", "p99", "of it at the server, all users"),
    *("Jain's index of the 20 heaviest", "the heaviest has", "cache hits", "slots busy", "by gateway"),
)


def row(words: str, found: Outcome) -> Sequence[str]:
    """Write a row of the table."""
    return (
        words,
        f"{found.served:,}",
        f"{found.wait_s:.1f} s",
        f"{found.wait_p99_s:.1f} s",
        f"{found.at_machine_s:.1f} s",
        f"{found.jain:.2f}",
        f"{found.heaviest:.1%}",
        f"{found.hits:.0%}",
        f"{found.busy:.0%}",
        f"{found.least_busy:.0%} to {found.most_busy:.0%}",
    )


def main() -> None:
    """Print a table of the layouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Scale()
    settings: dict[str, Any] = {name: getattr(default, name) for name in Scale.__slots__}
    for name, value in settings.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="(%(default)s)")
    scale = Scale(**vars(parser.parse_args()))
    print(f"{scale}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for layout in LAYOUTS:
        print(f"| {' | '.join(row(layout.words, simulate(scale, layout)))} |", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
