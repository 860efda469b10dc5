"""Who made which response: those of `/v1/responses` live on where they were made, and are asked for there.

- A response is there for whose it is; a person behind a user's keys is somebody of their own. To all others
  it is as unknown as one that never was.
- It is known for an hour after it was last asked for, and while its provider stays what and where it was.
- So many are known at once; whoever has the most makes room, so that nobody pushes out what others have.
- An id is whose it was first: some servers let a request choose the id of its answer.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.ids import IdFinder, is_id
from llmgateway.api.usage import Meter
from llmgateway.errors import NOT_FOUND, GatewayError
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.naming import permitted_name
from llmgateway.fleet.provider import Provider

MOST: Final = 10_000
KNOWN_S: Final = 3_600.0


class Kept(msgspec.Struct):
    """A response, and who keeps it: the provider of that name, as long as it has that URL."""

    party: str
    model: str
    provider: str
    url: str
    until: float


class Keepers:
    """Knows who keeps the responses that were made lately."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: dict[str, dict[str, Kept]] = {}
        """By user and id; of each user the one that was asked for longest ago comes first."""
        self._users: dict[str, str] = {}
        """The user of each id."""

    def __len__(self) -> int:
        return len(self._users)

    def learn(self, made: str, caller: Caller, model: str, provider: Provider, *, now: float) -> None:
        """Note that a provider has made a response for a caller."""
        if (user := self._users.get(made)) is not None:
            kept = self._kept[user][made]
            if kept.party != caller.party and now < kept.until:
                return
            self._forget(made)
        self._forget_old(caller.user, now)
        while len(self._users) >= MOST:
            most = max(self._kept, key=lambda user: len(self._kept[user]))
            self._forget(next(iter(self._kept[most])))
        self._users[made] = caller.user
        self._kept.setdefault(caller.user, {})[made] = Kept(
            caller.party, model, provider.name, provider.config.url, now + KNOWN_S
        )

    def keeper(self, wanted: str, caller: Caller, *, now: float) -> tuple[Provider, str]:
        """Give the provider that keeps a response, online or not, and the response's model.

        Raises GatewayError (404, or 403 if the caller's key is not good for that model).
        """
        own = self._kept.get(caller.user, {})
        kept = own.get(wanted)
        if kept is None or kept.party != caller.party or now >= kept.until:
            raise _unknown(wanted)
        provider = self._fleet.providers.get(kept.provider)
        if (
            provider is None
            or provider.config.url != kept.url
            or provider not in self._fleet.usable_by(caller)
        ):
            raise _unknown(wanted)
        permitted_name(self._fleet, caller, kept.model)
        kept.until = now + KNOWN_S
        own[wanted] = own.pop(wanted)
        return provider, kept.model

    def _forget_old(self, user: str, now: float) -> None:
        for made in [made for made, kept in self._kept.get(user, {}).items() if kept.until <= now]:
            self._forget(made)

    def _forget(self, made: str) -> None:
        user = self._users.pop(made)
        del self._kept[user][made]
        if not self._kept[user]:
            del self._kept[user]


class Listener:
    """Watches an answer beside its meter, so that its keeper is known as soon as its client knows its id."""

    __slots__ = ("_caller", "_finder", "_keepers", "_meter", "_model", "_now", "_provider")

    def __init__(
        self,
        keepers: Keepers,
        caller: Caller,
        model: str,
        provider: Provider,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self._keepers = keepers
        self._caller = caller
        self._model = model
        self._provider = provider
        self._meter = meter
        self._now = clock
        self._finder = IdFinder(meter.coding)

    def __call__(self, data: bytes) -> None:
        """Look at a piece that has just been written."""
        self._meter.feed(data)
        if not self._finder.over and (made := self._finder.feed(data)):
            self._keepers.learn(made, self._caller, self._model, self._provider, now=self._now())


def _unknown(wanted: str) -> GatewayError:
    name = f" '{wanted}'" if is_id(wanted) else " of that id"
    words = (
        "Who has made one is known for an hour after it was last asked for, and told to whom it was made for."
    )
    return GatewayError(
        NOT_FOUND, f"There is no response{name} here. {words}", brief="There is no such response here."
    )
