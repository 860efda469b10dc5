"""One request from its head to its end: what is written down of it while it goes on.

Whoever serves a request writes here how that goes; the ledger books it once it is over. Nothing here looks at
the clock by itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmgateway.api.usage import Meter, Tokens

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@dataclass(slots=True, eq=False)
class Entry:
    """One request from its head to its end.

    Durations are in seconds, moments those of `time.monotonic`: uvloop's clock has milliseconds, and stands
    still while anything runs.
    """

    id: str
    endpoint: str
    began: float
    user: str | None = None
    person: str | None = None
    """Who of several behind the user's keys, if that was told."""
    key: str | None = None
    model: str = ""
    asked_model: str = ""
    """What the client has asked for, if that is not the name of the model."""
    provider: str = ""
    affinity: str = ""
    streams: bool = False
    recalls: bool = False
    """Whether it only asks for what was made before, so that no model works on it."""
    attempts: int = 0
    body_s: float = 0.0
    """How long the request's body took to arrive."""
    queue_s: float = 0.0
    sent_at: float | None = None
    """When it was sent to the provider that has it now; None while it waits."""
    overhead_s: float | None = None
    """The gateway's own time before it was first sent."""
    first_byte_at: float | None = None
    meter: Meter | None = None
    tokens: Tokens | None = None
    """What it has cost; None before it is reckoned."""
    prompt_estimate: int = 0
    output_estimate: int = 0
    """What has been written of an answer of which nothing has come."""
    bytes_in: int = 0
    bytes_out: int = 0
    address: str = ""
    """Whose key was not good; empty for all others."""
    status: int = 0
    outcome: str = ""
    """What became of it; whoever knows more than that it ended, or how, has told before that."""
    why: str = ""
    """What went wrong, in words that quote neither prompt nor answer."""
    span: "Span | None" = None
    """Its span, while a collector of traces is told of requests."""

    @property
    def phase(self) -> str:
        """Tell how far it is, in a word."""
        if self.first_byte_at is not None:
            return "streaming"
        if self.sent_at is not None:
            return "sent"
        return "waiting" if self.model else "reading"

    def reckon(self) -> Tokens | None:
        """Give what it has cost, once it is over; None if no model has worked on it.

        One that was cut off before its first byte has had its prompt read, as far as anybody knows, and what
        is not streamed has been worked on until then.
        """
        if self.tokens is None and not self.recalls:
            if self.meter is not None:
                self.tokens = self.meter.tokens(self.prompt_estimate)
            elif self.sent_at is not None:
                self.tokens = Tokens(self.prompt_estimate, self.output_estimate, estimated=True)
        return self.tokens

    def sent(self, provider: str, now: float) -> None:
        """Note that it goes to a provider now."""
        self.provider = provider
        self.attempts += 1
        self.sent_at = now
        if self.overhead_s is None:
            overhead_s = now - self.began - self.body_s - self.queue_s
            if overhead_s < 0.0:  # `max` would take ten times as long
                overhead_s = 0.0
            self.overhead_s = overhead_s

    def came_back(self) -> None:
        """Note that the provider has refused it, or failed before the first byte: it has cost nothing."""
        self.sent_at = self.meter = None


Ended = tuple[Entry, float, float]
"""A request that has ended, and when: on the monotonic clock, and in epoch seconds."""
