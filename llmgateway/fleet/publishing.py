"""What a server lists becomes what clients see of it, as the config names it.

Pure. Nothing but names is changed, and a model keeps the one that its server knows it by. Names match
exactly, and one that was given another is no name any more.
"""

from collections.abc import Mapping
from dataclasses import replace

from llmgateway.config.providers import ProviderConfig
from llmgateway.servers.models import Model


def published(config: ProviderConfig, listed: Mapping[str, Model]) -> Mapping[str, Model]:
    """Give the models of a provider by the names that clients see, of those by the names of its server.

    Of what the config lists all is there, whatever the server says.
    """
    if config.listed is not None:
        return {name: _named(name, listed.get(told) or Model(told)) for name, told in config.listed.items()}
    if config.rename.keys().isdisjoint(listed):
        return listed
    taken = {config.rename[told] for told in listed if told in config.rename}
    return {
        config.rename.get(told, told): _named(config.rename.get(told, told), model)
        for told, model in listed.items()
        if told in config.rename or told not in taken
    }


def _named(name: str, model: Model) -> Model:
    return model if model.id == name else replace(model, id=name, told_as=model.id)
