"""What people are shown of a provider: its state, what is taken out though its probes succeed, what it has.

Pure: time is an argument. A machine that is not trusted with requests, or with none of its models, is not
shown as online, whatever probes say. The words quote nothing that was said to somebody's request.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from llmgateway.api.endpoints import BY_NAME
from llmgateway.fleet.breaker import Breaker
from llmgateway.fleet.provider import Provider, State
from llmgateway.servers.kind import Kind

TAKEN_OUT: Final = "taken_out"
STATES: Final = (*(state.value for state in State), TAKEN_OUT)
"""Every state that a provider is shown in."""
MOST_LACKING: Final = 4


def having(name: str, providers: Iterable[Provider]) -> list[Provider]:
    """Give those who serve a model now; if nobody does, those who are worth waiting for."""
    among = tuple(providers)
    return [p for p in among if p.serves(name)] or [p for p in among if p.may_come_to_serve(name)]


def having_each(names: Collection[str], providers: Iterable[Provider]) -> dict[str, list[Provider]]:
    """Give those who have each of these models, as `having` does of one.

    Each provider is asked for what it lists only: many times many would hold the loop up.
    """
    found: dict[str, list[Provider]] = {name: [] for name in names}
    shorter: dict[str, dict[str, list[str]]] = {}
    for provider in providers:
        kind, models = provider.kind, provider.models
        if kind.name not in shorter:
            shorter[kind.name] = _shorter(kind, names)
        for listed in models:
            if listed in found:
                found[listed].append(provider)
            for name in shorter[kind.name].get(listed, ()):
                if name not in models:
                    found[name].append(provider)
    return {name: having(name, among) for name, among in found.items()}


def _shorter(kind: Kind, names: Iterable[str]) -> dict[str, list[str]]:
    """Give those names that a kind of server takes for longer ones, by these."""
    shorter: dict[str, list[str]] = {}
    for name in names:
        if (full := kind.full_name(name)) != name:
            shorter.setdefault(full, []).append(name)
    return shorter


def endpoints_of(name: str, providers: Sequence[Provider], among: tuple[str, ...]) -> tuple[str, ...]:
    """Name those endpoints at which a request for a model may find one of these providers able.

    Those that write are left out for a model that writes nothing, as its servers tell.
    """
    found = [(p, model) for p in providers if (model := p.find(name)) is not None]
    if found and all(model.only_embeds for _, model in found):
        among = tuple(each for each in among if not BY_NAME[each].streams)
    return _had(among, *(p.repertoire.missing(model.id) for p, model in found))


@lru_cache(64)  # lists of models are long, and most have the same
def _had(names: tuple[str, ...], *missing: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(name not in each for each in missing))


def taken_out(provider: Provider) -> Mapping[str, Breaker]:
    """Give what is taken out of an online provider: models by their names, or "" for the whole machine."""
    conduct = provider.conduct
    if conduct.spotless or not provider.online:
        return {}
    if conduct.machine.out:
        return {"": conduct.machine}
    found = ((provider.find(model), breaker) for model, breaker in conduct.models.items() if breaker.out)
    return {model.id: breaker for model, breaker in found if model is not None}


def shown_state(provider: Provider) -> str:
    """Name the state that it is shown in."""
    out = taken_out(provider)
    nothing_left = "" in out or (bool(out) and len(out) == len(provider.models))
    return TAKEN_OUT if nothing_left else provider.state.value


def shown_reason(provider: Provider, now: float) -> str:
    """Say why it is in that state, and which models are taken out; `now` is on the loop's clock."""
    words = [_words(model, breaker, now) for model, breaker in taken_out(provider).items()]
    return "; ".join(filter(None, [provider.reason, *words, _lacking(provider)]))


def _lacking(provider: Provider) -> str:
    """Say what it has said that it has not; what no server of its kind has is no news."""
    told = [f"{name} for '{model}'" if model else name for name, model in provider.repertoire.learnt]
    more = f" and {len(told) - MOST_LACKING} more" if len(told) > MOST_LACKING else ""
    return f"it says that it has no {', '.join(told[:MOST_LACKING])}{more}" if told else ""


def _words(model: str, breaker: Breaker, now: float) -> str:
    what = f"model '{model}' is taken out" if model else "taken out"
    resting = now < breaker.open_until
    length = f"for {breaker.pause_s:g} s" if resting else "until a request to it succeeds"
    last = f"; the last one: {breaker.why}" if breaker.why else ""
    return f"{what} {length}, as requests failed again and again{last}"
