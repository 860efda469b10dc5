"""When providers are looked at, in virtual time: nobody answers at their address, which is known at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from llmgateway.config.load import build
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.upstream import Upstream
from tests import simulation

INTERVAL_S = 100.0


class Dice(Random):
    """Chance that notes when it was asked: once for each provider, and then after every look."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked_at: list[float] = []

    def random(self) -> float:
        self.asked_at.append(simulation.now())
        return super().random()


def test_many_providers_are_looked_at_together_once_and_then_each_at_its_own_time() -> None:
    url, dice = "http://127.0.0.1:9", Dice()
    providers = {f"p{number}": {"url": url} for number in range(100)}
    config = build({"health": {"interval": INTERVAL_S}, "providers": providers})

    async def watched() -> None:
        upstream = Upstream()
        async with Watch(Fleet(config), upstream, dice, simulation.now) as watch:
            await watch.first_round.wait()
            assert dice.asked_at == [0.0] * 2 * len(providers)
            await asyncio.sleep(5 * INTERVAL_S)
        upstream.close()

    simulation.run(watched())
    tenths = Counter(int(when / (INTERVAL_S / 10)) for when in dice.asked_at if when > 0)
    assert max(tenths.values()) < len(providers) / 3, tenths
