"""One provider: its health, its models, and what is known of how it works.

State that lives, owned by the one event loop. It changes only in its own methods, from facts that others
gathered; nothing here touches the network. The last known models stay with a provider through a blip.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.config.providers import ProviderConfig
from llmgateway.config.settings import HealthConfig
from llmgateway.errors import (
    ProviderBroke,
    ProviderFailed,
    ProviderLooped,
    ProviderRefused,
    ProviderWarming,
)
from llmgateway.fleet.breaker import Breaker, Conduct, Sequel
from llmgateway.fleet.publishing import published
from llmgateway.fleet.repertoire import Repertoire
from llmgateway.fleet.share import ALL, Share
from llmgateway.log import Events
from llmgateway.servers import generic
from llmgateway.servers.kind import Kind
from llmgateway.servers.known import BY_KIND
from llmgateway.servers.models import Model

events = Events("fleet")

_PARTS: Final = re.compile(r"[\s;,=]+")  # of a header's value: a scheme and a token, or cookies
_LEAST_CHARACTERS: Final = 8  # of a part that is a secret by itself
_MOST_TOLD: Final = 20  # names in a line of the log


class State(Enum):
    """What is known of a provider."""

    UNKNOWN = "unknown"
    ONLINE = "online"
    WARMING = "warming"
    OFFLINE = "offline"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one look at a provider found: a state, the reason in words, and what else the provider told."""

    state: State
    reason: str = ""
    models: Mapping[str, Model] | None = None
    """By the names that the server has for them."""
    slots: int | None = None
    certain: bool = False
    """True if this is no passing trouble, so that one such sighting is enough."""
    silent: bool = False
    """True if there was no answer, as from one who is at work, or gone without a word."""
    kind: Kind | None = None


@dataclass(eq=False)
class Provider:
    """One LLM server, as it is now.

    It is long as whatever changes its state stands here, and nowhere else.
    """

    name: str
    config: ProviderConfig
    health: HealthConfig
    state: State = State.UNKNOWN
    reason: str = "not asked yet"
    models: Mapping[str, Model] = field(default_factory=dict)
    """By the names that clients see."""
    in_flight: int = 0
    changed: Callable[[], None] = lambda: None
    conduct: Conduct = field(default_factory=Conduct)
    share: Share = ALL
    """How much of it is this gateway's."""
    capacity: int | None = None
    """How many requests of ours it works on at once; None if nobody knows."""
    kind: Kind = generic.KIND
    """Which kind of LLM server it is: as the config says, else as far as it has told."""
    kind_is_known: bool = False
    """Whether it has told since it was last away."""
    busy: dict[str, int] = field(default_factory=dict)
    """How many of the requests in flight are for each model, by the name that was asked for."""
    wall: Callable[[], float] = time.time
    since: float = 0.0
    """When it came into its state, in epoch seconds."""
    has_served: bool = False
    """True once it has been online."""
    gone: bool = False
    """True once a newer config has no place for it: what it works on may end, and nothing new comes."""
    renames: bool = False
    """Whether its server knows any of its models by another name than clients do."""
    loads_first: bool = False
    """Whether it is known to have to load any of its models before it can use it."""
    _names: Mapping[str, str] = field(default_factory=dict)  # of those, by the name that clients see
    _listed: Mapping[str, Model] = field(default_factory=dict)  # by the names that its server has for them
    _slots_by_model: bool = False
    _told_slots: int | None = None
    _streak: int = 0  # probes in a row that spoke against the present state

    def __post_init__(self) -> None:
        self.since = self.wall()
        self._publish()
        self._share_out()
        self._told_kind = self.kind
        self.repertoire = Repertoire()
        self._take_kind()

    @property
    def online(self) -> bool:
        """True if requests may be sent to it."""
        return self.state is State.ONLINE

    @property
    def promising(self) -> bool:
        """True if it is worth waiting for: it loads a model, or sleeps and can be woken."""
        asleep = self.state in (State.OFFLINE, State.UNKNOWN) and self.config.wake is not None
        return asleep or self.state is State.WARMING

    @property
    def has_free_slot(self) -> bool:
        """True if it would start on one more request for some model at once, as far as is known."""
        return self.capacity is None or self.in_flight < self.capacity

    def has_room_for(self, model: str, more: int = 1) -> bool:
        """Tell whether it would start on so many more requests for a model at once, as far as is known."""
        if self.capacity is not None or not self._slots_by_model:
            return self.capacity is None or self.in_flight + more <= self.capacity
        slots = self.slots_for(model)
        return slots is None or self.busy.get(model, 0) + more <= slots

    def slots_for(self, model: str) -> int | None:
        """Tell how many requests for a model it works on at once, if anybody knows."""
        if self.capacity is not None or not self._slots_by_model:
            return self.capacity
        found = self.find(model)
        if found is None or found.slots is None:
            return None
        return self.share.of(found.slots, self.name)

    @property
    def slots(self) -> int | None:
        """How many requests it works on at once, for all models that it has told of."""
        if self.capacity is not None or not self._slots_by_model:
            return self.capacity
        return sum(self.share.of(model.slots or 0, self.name) for model in self.models.values())

    @property
    def secrets(self) -> list[str]:
        """What this provider is told and nobody else may read, should it repeat it in a message."""
        key, proxy = self.config.api_key, self.config.proxy
        password = [proxy.password] if proxy is not None and proxy.password else []
        headers = [value for name, value in self.config.headers.items() if name.lower() != "host"]
        parts = [part for value in headers for part in _PARTS.split(value) if len(part) >= _LEAST_CHARACTERS]
        secrets = {*([key] if key else []), *password, *filter(None, headers), *parts}
        return sorted(secrets, key=len, reverse=True)  # none is cut by one that is a part of it

    def usable_by(self, caller: Caller) -> bool:
        """Tell whether this caller may know of it: their own, shared with them, or everybody's."""
        config = self.config
        if config.owner is None or config.owner == caller.user:
            return True
        return any(
            name == "everyone" or name == caller.user or name in caller.groups for name in config.share
        )

    def find(self, name: str) -> Model | None:
        """Give the model that it takes a name for: the one listed so, else the one whose short name it is."""
        return self.models.get(name) or self.models.get(self.kind.full_name(name))

    def serves(self, name: str) -> bool:
        """Tell whether requests for a model may be sent to it now."""
        if not name:
            return self.online
        return self.online and (found := self.find(name)) is not None and found.servable

    def has_endpoint(self, endpoint: str, model: str = "") -> bool:
        """Tell whether it has an endpoint, by its name; what nobody knows to be missing is had."""
        repertoire = self.repertoire
        if not repertoire.learnt:
            return repertoire.has(endpoint)
        found = self.find(model)
        return repertoire.has(endpoint, model if found is None else found.id)

    def has_some_for(self, caller: Caller) -> bool:
        """Tell whether a key is good for any of its models, or for all there are."""
        return not caller.models or any(map(caller.may_use, self.models))

    def may_come_to_serve(self, name: str) -> bool:
        """Tell whether it is worth waiting until it serves a model: it is about to, or may have it loaded."""
        if not name:
            return self.promising
        found = self.find(name)
        return found is not None and (self.promising or (self.online and not found.servable))

    def reached_as(self, config: ProviderConfig) -> bool:
        """Tell whether a config means the same server, spoken to in the same way."""
        way = "url", "tls", "proxy", "api_key", "headers"
        return all(getattr(self.config, setting) == getattr(config, setting) for setting in way)

    def adopt(self, config: ProviderConfig, health: HealthConfig) -> None:
        """Take over new settings; what is known of the server stays true.

        A new list of models counts at once, and so do new names. Without a list, the last known models stay
        until the next probe.
        """
        self.config, self.health = config, health
        self._share_out()
        self._take_kind()
        self._publish()

    def share_out(self, share: Share) -> bool:
        """Have another share of it; tells whether that changes anything."""
        another, before = self.share != share, self.capacity
        self.share = share
        self._share_out()
        return self.capacity != before or (another and self._slots_by_model)

    @property
    def all_slots(self) -> int | None:
        """How many requests it works on at once for all gateways, if that is one number."""
        return self.config.slots or self._told_slots

    def _share_out(self) -> None:
        slots = self.all_slots
        self.capacity = None if slots is None else self.share.of(slots, self.name)

    def _publish(self) -> None:
        """Have the models that its server has, as the config wants them, by the names that clients see."""
        if (told := self.config.listed) is not None:
            self._listed = {name: self._listed.get(name) or Model(name) for name in told.values()}
        self.models = published(self.config, self._listed)
        self.loads_first = any(model.loaded is False for model in self.models.values())
        before, self._names = self._names, {m.id: m.told_as for m in self.models.values() if m.told_as}
        self.renames = bool(self._names)
        if self.renames and self._names != before:
            self._tell_names()

    def _tell_names(self) -> None:
        """Log what clients see of what the server calls something else, and what they see no more."""
        told = [f"{told} is {name}" for name, told in islice(self._names.items(), _MOST_TOLD)]
        hidden = [name for name in self._names if name in self._listed and name not in self._names.values()]
        names, hides = ", ".join(told), ", ".join(hidden[:_MOST_TOLD]) or None
        events.info(
            "models are renamed", provider=self.name, count=len(self._names), names=names, hides=hides
        )

    def _take_kind(self) -> None:
        """Be of the kind that the config says, or that it has told."""
        before = self.kind
        self.kind = self._told_kind if self.config.kind is None else BY_KIND[self.config.kind]
        self.repertoire.adopt(self.kind, self.config.endpoints)
        if self.kind is not before:
            self.repertoire.forget()

    def observe(self, probe: Probe, *, now: float) -> None:
        """Take one probe into account: `fall` failures in a row mean offline, `rise` successes online."""
        before = self._standing
        if probe.models is not None:
            if probe.models.keys() != self._listed.keys():
                self.repertoire.forget()
            self._listed = probe.models
            self._publish()
            self._slots_by_model = any(model.slots for model in probe.models.values())
        self.kind_is_known = probe.kind is not None and self.config.kind is None
        if probe.kind is not None and self.kind_is_known:
            self._told_kind = probe.kind
            self._take_kind()
        if probe.slots is not None:
            self._told_slots = probe.slots
            self._share_out()
        self.repertoire.expire(now)
        if self._believes(probe):
            self._become(probe.state, probe.reason)
        if before != self._standing:
            self.changed()

    @property
    def _standing(self) -> tuple[object, ...]:
        """What matters to those who wait."""
        return self.state, self.capacity, self.models, self.kind, tuple(self.repertoire.learnt)

    def warm(self, reason: str) -> None:
        """Take a "Loading model" answer of real traffic into account."""
        self._become(State.WARMING, reason)
        self.changed()

    def fell_asleep(self, reason: str) -> None:
        """Take it that a machine which can be woken cannot be reached because it sleeps."""
        self._become(State.OFFLINE, reason)
        self.changed()

    # -- what real requests tell

    def took(self, model: str, *, now: float) -> tuple[Breaker, ...]:
        """Count a request that goes to it; gives the breakers whose trial after a pause that is."""
        self.in_flight += 1
        self.busy[model] = self.busy.get(model, 0) + 1
        return () if self.conduct.spotless else self.conduct.started(model, now)

    def gave_back(self, model: str) -> None:
        """Count a request less."""
        self.in_flight -= 1
        if (left := self.busy[model] - 1) > 0:
            self.busy[model] = left
        else:
            del self.busy[model]

    def said_it_lacks(self, endpoint: str, model: str, *, every: bool, now: float) -> None:
        """Learn that it has not an endpoint, by its name: not for this model, or not for `every` one."""
        found = self.find(model)
        of = model if found is None else found.id
        if self.repertoire.learn(endpoint, of, every=every, now=now):
            events.info("provider has not an endpoint", provider=self.name, endpoint=endpoint, model=of)
            self.changed()

    def answered(self, model: str) -> None:
        """Note that it has begun to answer a request."""
        if not self.conduct.spotless:
            self.conduct.answered(model)

    def fared_well(self, model: str) -> None:
        """Take a whole answer into account."""
        if not self.conduct.spotless:
            self.conduct.succeeded(model)

    def fared(self, failure: ProviderFailed, *, now: float) -> Sequel:
        """Take the failure of a real request into account; tells what is to follow from it.

        What is in doubt counts only once it is `blamed`.
        """
        if failure.away and self.repertoire.forget():
            self.changed()
        match failure:
            case ProviderWarming():
                self.warm("it is loading its model")
                return Sequel(probe=True, try_again=True)
            case ProviderLooped():
                return Sequel()
            case _ if failure.away and self.config.wake is not None:
                self.fell_asleep(failure.message)
                return Sequel(probe=True, try_again=True)
            case _ if failure.away:
                self.fared_badly(None, failure.brief, now=now)
                return Sequel(probe=True)
            case _:
                return Sequel(probe=isinstance(failure, ProviderRefused), in_doubt=True)

    def blamed(self, failure: ProviderFailed, model: str, *, now: float) -> None:
        """Learn that a failure was not the fault of the request."""
        its_machine = isinstance(failure, ProviderBroke)
        self.fared_badly(None if its_machine else model, failure.brief, now=now)

    def fared_badly(self, model: str | None, why: str = "", *, now: float) -> None:
        """Take a failure into account that is the fault of a model, or with None of the machine."""
        breaker = self.conduct.failed(model, now, why)
        if breaker is not None:
            more = {} if model is None else {"model": model}
            pause_s = breaker.pause_s
            events.warning(
                "provider is taken out for a while", provider=self.name, **more, pause_s=pause_s, why=why
            )

    def _believes(self, probe: Probe) -> bool:
        """Decide whether this sighting, with those before it, is enough to change the state."""
        if probe.state is self.state:
            self._streak = 0
            return True
        self._streak += 1
        match (self.state, probe.state):
            case (State.ONLINE | State.WARMING, State.OFFLINE | State.MISCONFIGURED):
                return probe.certain or self._streak >= self.health.fall
            case (State.OFFLINE | State.MISCONFIGURED, State.ONLINE):
                return self._streak >= self.health.rise
            case _:
                return True

    def _become(self, state: State, reason: str) -> None:
        if state is not self.state:
            self._streak = 0
            self.repertoire.forget()
            self.since = self.wall()
            self.has_served = self.has_served or state is State.ONLINE
            report = events.info if state in (State.ONLINE, State.WARMING) else events.warning
            report(f"provider is {state.value}", provider=self.name, reason=reason, models=len(self.models))
        elif state is State.ONLINE and reason and reason != self.reason:
            events.warning("provider is online, with a fault", provider=self.name, reason=reason)
        self.state, self.reason = state, reason
