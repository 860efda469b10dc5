"""The snapshot: what the gateway is doing, as one JSON object, for the live page and `gateway.py status`.

It is made when somebody asks, from state that is kept anyway, so it costs nothing while nobody looks. Admins
see all; others see what is theirs, and the providers that they may use.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final

from llmgateway import __version__
from llmgateway.access.doorkeeper import Doorkeeper
from llmgateway.access.keys import Caller
from llmgateway.access.limits import Limits, LimitState
from llmgateway.books.entry import Entry
from llmgateway.books.ledger import Ledger
from llmgateway.books.speed import Answer, tokens_per_s
from llmgateway.books.totals import Totals
from llmgateway.fleet.appearance import shown_reason, shown_state
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.naming import aliases_for
from llmgateway.fleet.provider import Provider
from llmgateway.http.via import new_name
from llmgateway.servers.models import Model
from llmgateway.traffic.slots import Slots

MOST_REQUESTS: Final = 100
MOST_RECENT: Final = 50
MOST_MODELS: Final = 200
MOST_USAGE: Final = 200  # rows
MOST_PERSONS: Final = 50  # of a user, whose limits are shown
OTHERS: Final = "(others)"


@dataclass(slots=True)
class Condition:
    """How the gateway itself fares; whoever learns of a change writes it here."""

    leaving: bool = False
    """It will stop soon, and says so to who asks whether it is ready."""
    draining: bool = False
    name: str = field(default_factory=new_name)
    """The pseudonym under which other gateways meet it, as long as it runs."""
    started_at: float = field(default_factory=time.time)
    loaded_at: float = field(default_factory=time.time)
    problems: Sequence[str] = ()
    restart_needed: Sequence[str] = ()


class Status:
    """Makes snapshots."""

    def __init__(
        self,
        condition: Condition,
        watch: Watch,
        fleet: Fleet,
        slots: Slots,
        ledger: Ledger,
        limits: Limits,
        doorkeeper: Doorkeeper,
        clock: Callable[[], float],
    ) -> None:
        """Read from these; `clock` is the loop's."""
        self._condition = condition
        self._watch = watch
        self._fleet = fleet
        self._slots = slots
        self._ledger = ledger
        self._limits = limits
        self._doorkeeper = doorkeeper
        self._clock = clock

    def snapshot(self, viewer: Caller, *, wall: float) -> dict[str, Any]:
        """Give what this viewer may see; `wall` is epoch seconds."""
        self._ledger.book()
        now = self._clock()
        entries = [entry for entry in self._ledger.in_flight if _sees(viewer, entry.user)]
        positions = self._slots.line.positions()
        return {
            "gateway": self._gateway(viewer, wall),
            "viewer": {"user": viewer.user, "admin": viewer.admin},
            "providers": self._providers(viewer, now, wall),
            **self._aliases(viewer),
            "requests": [
                _request(entry, positions, now) for entry in islice(reversed(entries), MOST_REQUESTS)
            ],
            "in_flight": len(entries),
            "usage": self._usage(viewer, wall),
            "recent": list(islice(self._recent(viewer), MOST_RECENT)),
            "limits": self._limits_of(
                caller
                for caller in self._doorkeeper.keys.callers
                if caller.limited and _sees(viewer, caller.user)
            ),
        }

    @property
    def _state(self) -> str:
        if self._condition.leaving:
            return "draining"
        return "ready" if self._watch.first_round.is_set() else "starting"

    def _gateway(self, viewer: Caller, wall: float) -> dict[str, Any]:
        condition = self._condition
        return {
            "version": __version__,
            "state": self._state,
            "now": round(wall, 1),
            "started_at": round(condition.started_at, 1),
            "config": {
                "loaded_at": round(condition.loaded_at, 1),
                "problems": list(condition.problems) if viewer.admin else [],
                "restart_needed": list(condition.restart_needed) if viewer.admin else [],
            },
        }

    def _providers(self, viewer: Caller, now: float, wall: float) -> list[dict[str, Any]]:
        waiting = self._slots.waiting_by_provider()
        answers = self._ledger.speeds.answering(now=now)
        all_of_them = self._fleet.providers.values()
        return [
            self._provider(provider, waiting, answers.get(provider.name, ()), now, wall)
            for provider in (all_of_them if viewer.admin else self._fleet.usable_by(viewer))
        ]

    def _provider(
        self,
        provider: Provider,
        waiting: Mapping[str, int],
        answers: Sequence[Answer],
        now: float,
        wall: float,
    ) -> dict[str, Any]:
        return {
            "name": provider.name,
            "state": shown_state(provider),
            "reason": shown_reason(provider, now),
            "owner": provider.config.owner,
            "models": [_model(model) for model in islice(provider.models.values(), MOST_MODELS)],
            "in_flight": provider.in_flight,
            "slots": provider.slots,
            "waiting": waiting.get(provider.name, 0),
            "tokens_per_s": round(tokens_per_s(answers), 1),
            "hour": self._ledger.speeds.hour(provider.name, answers, wall=wall),
        }

    def _aliases(self, viewer: Caller) -> dict[str, Any]:
        """Tell which other names the viewer can use now, if any, and for what."""
        meanings = aliases_for(self._fleet, viewer, self._fleet.models_for(viewer))
        some = [{"id": alias, "alias_of": name} for alias, name in islice(meanings.items(), MOST_MODELS)]
        return {"aliases": some} if some else {}

    def _usage(self, viewer: Caller, wall: float) -> dict[str, Any]:
        day = time.strftime("%Y-%m-%d", time.gmtime(wall))
        sums: dict[tuple[str, str, str], Totals] = {}
        for account, totals in self._ledger.totals.items():
            if account.day == day and _sees(viewer, account.user):
                sums.setdefault((account.user, account.person, account.model), Totals()).merge(totals)
        ordered = sorted(sums.items(), key=lambda item: -item[1].prompt_tokens - item[1].completion_tokens)
        if len(ordered) > MOST_USAGE:
            others = Totals()
            for _, totals in ordered[MOST_USAGE - 1 :]:
                others.merge(totals)
            ordered[MOST_USAGE - 1 :] = [((OTHERS, "", ""), others)]
        rows = [
            {"user": user, "person": person or None, "model": model, **totals.counts()}
            for (user, person, model), totals in ordered
        ]
        return {"day": day, "rows": rows}

    def _recent(self, viewer: Caller) -> Iterable[dict[str, Any]]:
        return (line for line in reversed(self._ledger.recent) if _sees(viewer, line["user"]))

    def _limits_of(self, callers: Iterable[Caller]) -> list[dict[str, Any]]:
        states: list[LimitState] = []
        users: set[str] = set()
        for caller in callers:
            if caller.user not in users:
                users.add(caller.user)
                states += self._limits.state(caller.user, caller.limits)
                states += self._limits_of_persons(caller)
            states += self._limits.state(
                caller.user, caller.key_limits, key_id=caller.key_id, key_name=caller.key_name
            )
        return [asdict(state) | {"resets_in_s": round(state.resets_in_s, 1)} for state in states]

    def _limits_of_persons(self, caller: Caller) -> Iterator[LimitState]:
        """Tell how far a user's limits are used by the persons behind their keys, by those seen last."""
        for person in self._doorkeeper.persons.of(caller.user)[:MOST_PERSONS]:
            states = self._limits.state(caller.user, caller.limits, person=person)
            yield from (state for state in states if state.used)


def _sees(viewer: Caller, user: str | None) -> bool:
    return viewer.admin or user == viewer.user


def _model(model: Model) -> dict[str, Any]:
    told: dict[str, Any] = {"told_as": model.told_as} if model.told_as else {}
    if model.takes_images is not None:
        told["sees"] = model.takes_images
    return {"id": model.id, "loaded": model.loaded, "context_length": model.context_length, **told}


def _request(entry: Entry, positions: Mapping[str, int], now: float) -> dict[str, Any]:
    phase = entry.phase
    return {
        "id": entry.id,
        "user": entry.user,
        "person": entry.person,
        "model": entry.model,
        "provider": entry.provider,
        "endpoint": entry.endpoint,
        "phase": phase,
        "position": positions.get(entry.id, 0) if phase == "waiting" else 0,
        "age_s": round(now - entry.began, 1),
        "tokens": entry.meter.output_so_far if entry.meter is not None else 0,
        **({"asked_model": entry.asked_model} if entry.asked_model else {}),
    }
