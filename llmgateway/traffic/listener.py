"""Learn who keeps an answer while it passes: as soon as its client can know its id, however it goes on."""

from collections.abc import Callable

from llmgateway.api.ids import IdFinder
from llmgateway.api.usage import Meter
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.call import Call
from llmgateway.traffic.keepers import Keepers
from llmgateway.traffic.order import Order


class Listener:
    """Watches an answer beside its meter."""

    __slots__ = ("_call", "_finder", "_keepers", "_meter", "_now", "_order", "_provider")

    def __init__(
        self,
        keepers: Keepers,
        call: Call,
        order: Order,
        provider: Provider,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self._keepers = keepers
        self._call = call
        self._order = order
        self._provider = provider
        self._meter = meter
        self._now = clock
        self._finder = IdFinder(meter.coding)

    def __call__(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        self._meter.feed(data)
        if not self._finder.over and (made := self._finder.feed(data)):
            caller, model = self._order.caller, self._order.model
            self._call.kept = self._keepers.learn(made, caller, model, self._provider, now=self._now())
