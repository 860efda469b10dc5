"""What is held for one request on its way from candidate to candidate, and given back at its end."""

import msgspec

from llmgateway.access.limits import Admission
from llmgateway.errors import ProviderFailed, ProviderWarming
from llmgateway.fleet.provider import Provider
from llmgateway.http.client import Client
from llmgateway.http.headers import AnswerHead
from llmgateway.http.heartbeat import Heartbeat
from llmgateway.traffic.call import Call
from llmgateway.traffic.lessons import Worth
from llmgateway.traffic.line import Line
from llmgateway.traffic.order import Order
from llmgateway.traffic.slots import Slots


class Held(msgspec.Struct, frozen=True):
    """A whole 404, 405, 429 or 501, kept while other candidates are asked."""

    provider: Provider
    status: int
    reason: bytes
    head: AnswerHead
    body: bytes
    own_lines: bytes
    worth: Worth


class Story(msgspec.Struct):
    """One request from its admission to its end: `with` gives back whatever was taken for it."""

    call: Call
    client: Client
    order: Order
    slots: Slots
    admission: Admission | None = None
    heartbeat: Heartbeat | None = None
    failures: list[ProviderFailed] = msgspec.field(default_factory=list)
    held: Held | None = None
    told: tuple[str, str] = ("", "")
    """Who was asked last by a name that may not be the client's, and that name; "" if it is the same."""
    instead: list[str] | None = None
    """What else it may be for, once nobody serves what it is for."""

    def __enter__(self) -> "Story":
        return self

    def __exit__(self, *_: object) -> None:
        entry, order, admission = self.call.entry, self.order, self.admission
        entry.queue_s, entry.affinity = order.waited_s, order.affinity
        if self.heartbeat is not None:
            self.heartbeat.stop()
        if admission is not None:
            if (tokens := entry.reckon()) is not None:
                admission.charge(tokens.prompt + tokens.completion)
            admission.release()
        self.slots.leave(order)

    def keep_alive(self, line: Line) -> None:
        """Keep its stream from being silent for too long, from now to the end of the answer."""

        def words() -> str:
            position = line.position(self.order)
            return f"waiting, position {position} in the queue" if position else "waiting for the model"

        self.heartbeat = Heartbeat(self.client, self.call.keepalive_s, words)

    def warms_at_best(self) -> bool:
        """Tell whether there is no better answer yet than that a model is loading."""
        return self.held is None and all(isinstance(failure, ProviderWarming) for failure in self.failures)
