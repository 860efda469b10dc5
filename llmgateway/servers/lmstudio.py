"""LM Studio: its OpenAI listing says next to nothing, its own API the state and the context of each model.

A request for a model that is not in memory waits until it is; nothing is said meanwhile.
"""

from dataclasses import replace
from typing import Any, Final

from llmgateway.servers.kind import Details, Facts, Kind, by_name, with_context
from llmgateway.servers.models import context_length, loaded


def _own_listing(facts: Facts, listing: Any) -> Facts:
    entries = by_name(listing["data"], "id")
    told = with_context(facts.models, {name: context_length(entry) for name, entry in entries.items()})
    models = {name: replace(model, loaded=loaded(entries.get(name, {}))) for name, model in told.items()}
    return replace(facts, models=models)


KIND: Final = Kind(
    name="lmstudio",
    title="LM Studio",
    wrote=lambda listing: "organization_owner" in listing.owners,
    speaks=frozenset({"openai", "responses", "anthropic"}),
    ports=(1234,),
    details=(Details("/api/v0/models", _own_listing),),  # /api/v1 has other names for the same
)
