"""What a name means to a caller: a model may have a shorter one, which its server takes for it, or an alias.

Plain functions of a fleet; nothing is changed here. A real model goes before an alias of its name, an alias
opens nothing that a key is not good for, and what an alias stands for is no alias.
"""

from collections.abc import Collection, Iterable, Sequence

from llmgateway.access.keys import Caller
from llmgateway.fleet.fleet import Fleet
from llmgateway.servers.models import Model


def meant(fleet: Fleet, caller: Caller, name: str, endpoint: str = "") -> str:
    """Give the model that a name means to a caller: that of the name, else what it stands for now.

    Of several that is the first that anybody online serves to the caller, else the first to be worth waiting
    for, else the first.
    """
    choices = fleet.aliases.get(name)
    if choices is None or any(provider.find(name) for provider in fleet.usable_by(caller)):
        return name
    return first_served(fleet, caller, choices, endpoint) or _first_permitted(fleet, caller, choices)


def first_served(fleet: Fleet, caller: Caller, names: Iterable[str], endpoint: str) -> str | None:
    """Give the first model that is served to a caller now, else the first that somebody is about to serve."""
    permitted = [(name, good) for name in names if (good := _permitted(fleet, caller, name)) is not None]
    online = (name for name, good in permitted if fleet.serving(caller, good, endpoint))
    coming = (name for name, good in permitted if fleet.may_come_to_serve(caller, good, endpoint))
    return next(online, None) or next(coming, None)


def instead(fleet: Fleet, caller: Caller, asked: str, model: str) -> list[str]:
    """Give what else a request may be for that nobody serves: what its name stands for, then fallbacks.

    `asked` is the client's word for the `model` that nobody serves. Fallbacks have none of their own.
    """
    meanings = [asked, *fleet.aliases.get(asked, ())]
    found = (provider.find(model) for provider in fleet.usable_by(caller))
    full_names = [each.id for each in found if each is not None]
    names = (name for each in (*meanings, model, *full_names) for name in fleet.fallbacks.get(each, ()))
    return [name for name in dict.fromkeys((*meanings, *names)) if name != model]


def _first_permitted(fleet: Fleet, caller: Caller, names: Sequence[str]) -> str:
    return next((name for name in names if _permitted(fleet, caller, name) is not None), names[0])


def permitted_name(fleet: Fleet, caller: Caller, model: str) -> str:
    """Give the name by which a caller may have a model: that asked for, else what it is short for.

    Raises GatewayError (403) if this key is good for neither.
    """
    good = _permitted(fleet, caller, model)
    if good is None:
        caller.require(model)
        return model
    return good


def _permitted(fleet: Fleet, caller: Caller, model: str) -> str | None:
    if caller.may_use(model):
        return model
    found = (provider.find(model) for provider in fleet.usable_by(caller))
    return next((each.id for each in found if each is not None and caller.may_use(each.id)), None)


def model_for(fleet: Fleet, caller: Caller, name: str, via: Collection[str] = ()) -> tuple[Model, str] | None:
    """Give the model that a caller can use now by a name, and the name of its first provider.

    `via` is as in `Fleet.models_for`.
    """
    models = fleet.models_for(caller, via)
    found = _among(models, name, fleet, caller)
    return None if found is None else models[found]


def aliases_for(fleet: Fleet, caller: Caller, models: Collection[str], endpoint: str = "") -> dict[str, str]:
    """Give the aliases that mean one of these models to a caller now, each with the name of that."""
    names = [alias for alias in fleet.aliases if alias not in models]
    meanings = {alias: meant(fleet, caller, alias, endpoint) for alias in names}
    found = {alias: _among(models, name, fleet, caller) for alias, name in meanings.items() if name != alias}
    return {alias: name for alias, name in found.items() if name is not None}


def _among(models: Collection[str], name: str, fleet: Fleet, caller: Caller) -> str | None:
    """Give the one of some models that a caller means by a name, which may be short for it."""
    found = (provider.find(name) for provider in fleet.usable_by(caller))
    names = (name, *(model.id for model in found if model is not None))
    return next((each for each in names if each in models), None)
