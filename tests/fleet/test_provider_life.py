"""A provider's life in any order: what probes, requests and pauses make of it, by the rules told plainly.

The model is naive: it keeps who is in flight and what has happened, and says from that what must be. What it
takes over of the provider is which failure counts against whom, as `fared` and `blamed` say.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmgateway.errors import (
    ProviderBroke,
    ProviderErrored,
    ProviderFailed,
    ProviderLooped,
    ProviderRefused,
    ProviderTimedOut,
    ProviderUnreachable,
    ProviderWarming,
)
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, State
from llmgateway.servers.models import Model
from tests.fleet.test_fleet import WAKES, config

MODELS: Final = ("m", "n")
SIGHTINGS: Final = (State.ONLINE, State.OFFLINE, State.WARMING, State.MISCONFIGURED)
DOWN: Final = (State.OFFLINE, State.MISCONFIGURED)
FAILURES: Final[tuple[ProviderFailed, ...]] = (
    ProviderUnreachable("p1", "is unreachable."),
    ProviderTimedOut("p1", "connect", 5),
    ProviderTimedOut("p1", "first_byte", 5),
    ProviderTimedOut("p1", "idle", 5),
    ProviderBroke("p1", "broke."),
    ProviderErrored("p1", "answered 500."),
    ProviderRefused("p1", "answered 401."),
    ProviderLooped("p1", "is a ring."),
    ProviderWarming("p1", "loads its model."),
)
SERIOUS: Final = (
    ProviderUnreachable("p1", "is gone."),
    ProviderBroke("p1", "broke."),
    ProviderErrored("p1", "x"),
)


@dataclass(eq=False)
class Flight:
    """A request that it works on."""

    model: str
    trials: tuple[Breaker, ...]
    begun: bool = False


@dataclass
class Record:
    """How requests have fared with the machine, or with one model."""

    failures: int = 0
    pauses: int = 0
    out: bool = False
    until: float = 0.0
    trial: Flight | None = None

    def lets_through(self, now: float) -> bool:
        return not self.out or (now >= self.until and self.trial is None)

    def fail(self, now: float) -> None:
        was_trial, self.trial = self.trial is not None, None
        if self.out and not was_trial:
            return
        self.failures += 1
        if was_trial or self.failures == FAILURES_IN_A_ROW:
            self.pauses, self.failures, self.out = self.pauses + 1, 0, True
            self.until = now + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.pauses - 1, 16))


@dataclass
class Sightings:
    """What probes have said, and what is to be believed of it."""

    state: State = State.UNKNOWN
    against: int = 0

    def see(self, state: State, *, certain: bool, fall: int, rise: int) -> None:
        if state is self.state:
            self.against = 0
            return
        self.against += 1
        goes_down = self.state in (State.ONLINE, State.WARMING) and state in DOWN
        comes_up = self.state in DOWN and state is State.ONLINE
        enough = fall if goes_down else rise if comes_up else 1
        if self.against >= enough or (goes_down and certain):
            self.become(state)

    def become(self, state: State) -> None:
        if state is not self.state:
            self.state, self.against = state, 0


@dataclass
class Story:
    """All that the naive model knows."""

    now: float = 1_000.0
    fall: int = 2
    rise: int = 1
    wakes: bool = False
    seen: Sightings = field(default_factory=Sightings)
    machine: Record = field(default_factory=Record)
    models: dict[str, Record] = field(default_factory=lambda: {model: Record() for model in MODELS})
    flights: list[Flight] = field(default_factory=list)

    def records(self, model: str) -> tuple[Record, Record]:
        return self.machine, self.models[model]

    def lets_through(self, model: str) -> bool:
        return all(record.lets_through(self.now) for record in self.records(model))


class Life(RuleBasedStateMachine):
    """Takes the provider and the model through the same life."""

    @initialize(fall=st.integers(1, 3), rise=st.integers(1, 2), wakes=st.booleans())
    def begin(self, fall: int, rise: int, wakes: bool) -> None:
        made = Fleet(config(WAKES if wakes else {}, health={"fall": fall, "rise": rise}))
        self.provider = made.providers["p1"]
        self.story = Story(fall=fall, rise=rise, wakes=wakes)

    @property
    def flights(self) -> list[Flight]:
        return self.story.flights

    # -- what may happen

    @rule(seconds=st.sampled_from([0.0, 0.5, 9.5, 10.0, 45.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.story.now += seconds

    @rule(state=st.sampled_from(SIGHTINGS), certain=st.booleans())
    def it_is_looked_at(self, state: State, certain: bool) -> None:
        models = {model: Model(model) for model in MODELS} if state is State.ONLINE else None
        self.provider.observe(Probe(state, "so it is", models, certain=certain), now=self.story.now)
        self.story.seen.see(state, certain=certain, fall=self.story.fall, rise=self.story.rise)

    @rule(model=st.sampled_from(MODELS), count=st.integers(1, 8))
    def requests_come(self, model: str, count: int) -> None:
        for _ in range(count):
            flight = Flight(model, self.provider.took(model, now=self.story.now))
            expected = 0
            for record in self.story.records(model):
                if record.out and record.lets_through(self.story.now):
                    record.trial, expected = flight, expected + 1
            assert len(flight.trials) == expected, "a trial too many, or none"
            self.flights.append(flight)

    @precondition(lambda self: self.flights)
    @rule(which=st.randoms())
    def an_answer_begins(self, which: random.Random) -> None:
        flight = which.choice(self.flights)
        flight.begun = True
        self.provider.answered(flight.model)
        for record in self.story.records(flight.model):
            record.out, record.trial = False, None

    @precondition(lambda self: any(flight.begun for flight in self.flights))
    @rule(which=st.randoms())
    def an_answer_is_whole(self, which: random.Random) -> None:
        flight = which.choice([flight for flight in self.flights if flight.begun])
        self.provider.fared_well(flight.model)
        for record in self.story.records(flight.model):
            record.failures = record.pauses = 0
        self.leaves(flight)

    @precondition(lambda self: self.flights)
    @rule(which=st.randoms(), failure=st.sampled_from(FAILURES), blamed=st.booleans())
    def a_request_fails(self, which: random.Random, failure: ProviderFailed, blamed: bool) -> None:
        self.fails(which.choice(self.flights), failure, blamed=blamed)

    @precondition(lambda self: self.flights)
    @rule(failure=st.sampled_from(SERIOUS))
    def all_fail_that_wait(self, failure: ProviderFailed) -> None:
        for flight in [flight for flight in self.flights if not flight.begun]:
            self.fails(flight, failure, blamed=True)

    def fails(self, flight: Flight, failure: ProviderFailed, *, blamed: bool) -> None:
        now = self.story.now
        sequel = self.provider.fared(failure, now=now)
        if sequel.in_doubt and blamed:
            self.provider.blamed(failure, flight.model, now=now)
        self.story_of(failure, flight, blamed=blamed)
        comes_back = isinstance(failure, ProviderWarming) or (failure.away and self.story.wakes)
        assert sequel.try_again == comes_back
        self.leaves(flight)

    def story_of(self, failure: ProviderFailed, flight: Flight, *, blamed: bool) -> None:
        """Tell the model of a failure: who is not there is no machine, what broke is its machine's."""
        story = self.story
        if isinstance(failure, ProviderWarming):
            story.seen.become(State.WARMING)
        elif failure.away and story.wakes:
            story.seen.become(State.OFFLINE)
        elif failure.away or (blamed and isinstance(failure, ProviderBroke)):
            story.machine.fail(story.now)
        elif blamed and not isinstance(failure, ProviderLooped):
            story.models[flight.model].fail(story.now)

    @precondition(lambda self: self.flights)
    @rule(which=st.randoms())
    def a_client_leaves(self, which: random.Random) -> None:
        self.leaves(which.choice(self.flights))

    def leaves(self, flight: Flight) -> None:
        """Have a request end, as `Slots.give_back` does: a trial that has told nothing is over."""
        self.flights.remove(flight)
        self.provider.gave_back(flight.model)
        for breaker in flight.trials:
            breaker.abandoned()
        if flight.trials:
            for record in self.story.records(flight.model):
                if record.trial is flight:
                    record.trial = None

    # -- what must hold

    @invariant()
    def it_is_in_the_state_that_was_seen(self) -> None:
        assert self.provider.state is self.story.seen.state
        assert self.provider.online == (self.story.seen.state is State.ONLINE)

    @invariant()
    def what_is_in_flight_is_counted_once(self) -> None:
        assert self.provider.in_flight == len(self.flights)
        assert self.provider.busy == Counter(flight.model for flight in self.flights)

    @invariant()
    def it_is_taken_out_and_let_back_by_the_rules(self) -> None:
        for model in MODELS:
            let = self.provider.conduct.lets_through(model, self.story.now)
            assert let == self.story.lets_through(model), model

    @invariant()
    def no_pause_is_for_ever(self) -> None:
        later = self.story.now + LONGEST_PAUSE_S
        for model in MODELS:
            tried = any(record.trial is not None for record in self.story.records(model))
            assert tried or self.provider.conduct.lets_through(model, later), model

    @invariant()
    def whoever_is_spotless_has_nothing_to_be_forgiven(self) -> None:
        if self.provider.conduct.spotless:
            records = (self.story.machine, *self.story.models.values())
            assert not any(record.out or record.failures or record.pauses for record in records)


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
TestAProvidersLife = Life.TestCase
