"""One decision: which online provider takes this call, or why none.

Plain functions of values; chance is an argument. Nothing is changed here.
"""

from collections.abc import Collection, Sequence
from random import Random

from llmgateway.errors import NO_PROVIDER, GatewayError
from llmgateway.fleet import Fleet, Provider
from llmgateway.keys import Caller


def no_provider(model: str) -> GatewayError:
    """Say that nobody serves the model; the words are part of the API, and the same whatever the reason."""
    return GatewayError(NO_PROVIDER, f"No online provider serving model '{model}' for this user.")


def candidates(fleet: Fleet, caller: Caller, model: str, tried: Collection[str] = ()) -> list[Provider]:
    """Give the providers that could take a call: online, serving exactly this model, usable by the caller,
    not tried.
    """
    return [p for p in fleet.usable_by(caller) if model in p.models and p.name not in tried]


def choose(among: Sequence[Provider], caller: Caller, chance: Random) -> Provider:
    """Pick the caller's own if they prefer that, then the fewest in flight per weight, then by chance.

    `among` must not be empty.
    """
    return min(among, key=lambda provider: (*_standing(provider, caller), chance.random()))


def _standing(provider: Provider, caller: Caller) -> tuple[bool, float]:
    is_second_choice = caller.route == "prefer_own" and provider.config.owner != caller.user
    return is_second_choice, provider.in_flight / provider.config.weight
