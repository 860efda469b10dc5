"""Shares out the providers' slots among gateways, which take turns where there are fewer slots than that."""

import asyncio
import time
from dataclasses import replace
from random import Random

from llmgateway.config.settings import Config
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.share import ALL, TURN_S, share_of
from llmgateway.log import Events

events = Events("fleet")


class Rota:
    """Tells a fleet what its share is now. Turns begin within the `with`."""

    def __init__(self, fleet: Fleet, config: Config, chance: Random) -> None:
        self._fleet = fleet
        self._lot = chance.getrandbits(32)
        self._runs = False
        self._timer: asyncio.TimerHandle | None = None
        self._scarce: frozenset[str] = frozenset()
        self.adopt(config)

    def __enter__(self) -> "Rota":
        self._runs = True
        self._begin_turn()
        return self

    def __exit__(self, *_: object) -> None:
        self._runs = False
        self._stop()

    def adopt(self, config: Config) -> None:
        """Take over how many gateways there are, and which this is."""
        self._share = share_of(config.cluster, lot=self._lot)
        self._stop()
        self._begin_turn()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_turn(self) -> None:
        if self._share is ALL:
            self._fleet.share_out(ALL)
            return
        turn, gone_s = divmod(time.time(), TURN_S)
        self._fleet.share_out(replace(self._share, turn=int(turn)))
        if self._runs:
            self._warn()
            self._timer = asyncio.get_running_loop().call_later(TURN_S - gone_s, self._begin_turn)

    def _warn(self) -> None:
        """Say, once, who has so few slots that there is not one for every gateway."""
        too_few = range(1, self._share.instances)
        few = {p.name for p in self._fleet.providers.values() if p.all_slots in too_few}
        for name in sorted(few - self._scarce):
            words = "there are fewer slots than gateways, which take turns"
            events.warning(words, provider=name, instances=self._share.instances, turn_s=TURN_S)
        self._scarce = frozenset(few)
