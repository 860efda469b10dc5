"""Who made which response: those of `/v1/responses` live on where they were made, and are asked for there.

- A response is there for whose it is; a person behind a user's keys is somebody of their own. To all others
  it is as unknown as one that never was.
- It is known for an hour after it was last asked for, and while its provider stays what and where it was.
- So many are known at once; whoever has the most makes room, so that nobody pushes out what others have.
- An id is whose it was first: some servers let a request choose the id of its answer.
"""

from typing import Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.ids import is_id
from llmgateway.api.usage import Meter, Tokens
from llmgateway.books.entry import Entry
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
    paid: Tokens | None = None
    """What was charged for it by estimate, as its making ended before its cost was told; None if that was."""

    def settle(self, entry: Entry, meter: Meter) -> Tokens | None:
        """Learn what an answer tells of its cost; gives what is to be charged now.

        That is once, for what was made in the background, when somebody hears what has become of it.
        """
        if not entry.recalls:
            self.paid = entry.tokens if entry.tokens is not None and entry.tokens.estimated else None
            return None
        if self.paid is None or (told := meter.tokens(0)).estimated:
            return None
        paid, self.paid = self.paid, None
        prompt, completion = max(0, told.prompt - paid.prompt), max(0, told.completion - paid.completion)
        cached, reasoning = min(told.cached, prompt), min(told.reasoning, completion)
        entry.tokens = Tokens(prompt, completion, cached, reasoning, estimated=False)
        return entry.tokens


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

    def learn(self, made: str, caller: Caller, model: str, provider: Provider, *, now: float) -> Kept | None:
        """Note that a provider has made a response for a caller; None if that id is somebody else's."""
        if (user := self._users.get(made)) is not None:
            kept = self._kept[user][made]
            if kept.party != caller.party and now < kept.until:
                return None
            self._forget(made)
        self._forget_old(caller.user, now)
        while len(self._users) >= MOST:
            most = max(self._kept, key=lambda user: len(self._kept[user]))
            self._forget(next(iter(self._kept[most])))
        self._users[made] = caller.user
        kept = Kept(caller.party, model, provider.name, provider.config.url, now + KNOWN_S)
        self._kept.setdefault(caller.user, {})[made] = kept
        return kept

    def keeper(self, wanted: str, caller: Caller, *, now: float) -> tuple[Provider, Kept]:
        """Give the provider that keeps a response, online or not, and what is known of the response.

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
        return provider, kept

    def _forget_old(self, user: str, now: float) -> None:
        for made in [made for made, kept in self._kept.get(user, {}).items() if kept.until <= now]:
            self._forget(made)

    def _forget(self, made: str) -> None:
        user = self._users.pop(made)
        del self._kept[user][made]
        if not self._kept[user]:
            del self._kept[user]


def _unknown(wanted: str) -> GatewayError:
    name = f" '{wanted}'" if is_id(wanted) else " of that id"
    words = (
        "Who has made one is known for an hour after it was last asked for, and told to whom it was made for."
    )
    return GatewayError(
        NOT_FOUND, f"There is no response{name} here. {words}", brief="There is no such response here."
    )
