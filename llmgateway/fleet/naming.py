"""What a name means to a caller: a model may have a shorter one, which its server takes for it.

Plain functions of a fleet; nothing is changed here.
"""

from collections.abc import Collection

from llmgateway.access.keys import Caller
from llmgateway.fleet.fleet import Fleet
from llmgateway.servers.models import Model


def permitted_name(fleet: Fleet, caller: Caller, model: str) -> str:
    """Give the name by which a caller may have a model: that asked for, else what it is short for.

    Raises GatewayError (403) if this key is good for neither.
    """
    if not caller.may_use(model):
        for provider in fleet.usable_by(caller):
            found = provider.find(model)
            if found is not None and caller.may_use(found.id):
                return found.id
        caller.require(model)
    return model


def model_for(fleet: Fleet, caller: Caller, name: str, via: Collection[str] = ()) -> tuple[Model, str] | None:
    """Give the model that a caller can use now by a name, and the name of its first provider.

    `via` is as in `Fleet.models_for`.
    """
    models = fleet.models_for(caller, via)
    found = (provider.find(name) for provider in fleet.usable_by(caller))
    names = (name, *(model.id for model in found if model is not None))
    return next((models[each] for each in names if each in models), None)
