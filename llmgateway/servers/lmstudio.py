"""LM Studio: its OpenAI listing says next to nothing, its own API the state and the context of each model.

A request for a model that is not in memory waits until it is; nothing is said meanwhile. The newer of its own
APIs tells of each instance of a model in memory how many requests it works on at once; of what it does not
have, LM Studio says so with a 200.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from llmgateway.servers.kind import Details, Facts, Kind, by_name, described, named, with_context
from llmgateway.servers.models import Model, context_length, loaded, positive, told_besides

_TOLD: Final = ("type", "publisher", "arch", "compatibility_type", "quantization", "max_context_length")
_NEWER_NAMES: Final = {"arch": "architecture", "compatibility_type": "format"}


def _instances(facts: Facts, listing: Any) -> Facts:
    """Read `/api/v1/models`: an instance has the name of its model, unless it was given another."""
    models = dict(facts.models)
    more: dict[str, dict[str, Any]] = {}
    for key, entry in by_name(listing["models"], "key").items():
        instances = named(entry.get("loaded_instances", ()), "id")
        usual = next(iter(instances.values()), None)
        for name in models.keys() & {key, *instances}:
            models[name] = _with(models[name], entry, instances.get(name, usual))
            more[name] = _told(entry)
    return replace(facts, models=described(models, more))


def _told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Tell of a model in the words of the older API, which more clients know."""
    quantization, capabilities = entry.get("quantization"), entry.get("capabilities")
    older = {name: entry.get(_NEWER_NAMES.get(name, name)) for name in _TOLD}
    older["quantization"] = quantization.get("name") if isinstance(quantization, dict) else None
    if isinstance(capabilities, dict) and capabilities.get("trained_for_tool_use") is True:
        older["capabilities"] = ["tool_use"]
    if isinstance(capabilities, dict) and capabilities.get("vision") is True and older["type"] == "llm":
        older["type"] = "vlm"
    return told_besides(older, (*_TOLD, "capabilities"))


def _with(model: Model, entry: Mapping[str, Any], instance: Mapping[str, Any] | None) -> Model:
    config = {} if instance is None else instance.get("config")
    if not isinstance(config, dict):
        config = {}
    length = model.context_length or context_length(config) or context_length(entry)
    is_loaded = instance is not None
    return replace(model, context_length=length, loaded=is_loaded, slots=positive(config.get("parallel")))


def _own_listing(facts: Facts, listing: Any) -> Facts:
    """Read `/api/v0/models`, which older releases have alone."""
    entries = by_name(listing["data"], "id")
    told = with_context(facts.models, {name: context_length(entry) for name, entry in entries.items()})
    states = {name: loaded(entry) for name, entry in entries.items()}
    models = {
        name: replace(model, loaded=states.get(name) if model.loaded is None else model.loaded)
        for name, model in told.items()
    }
    more = {name: told_besides(entry, (*_TOLD, "capabilities")) for name, entry in entries.items()}
    return replace(facts, models=described(models, more))


KIND: Final = Kind(
    name="lmstudio",
    title="LM Studio",
    wrote=lambda listing: "organization_owner" in listing.owners,
    speaks=frozenset({"openai", "responses", "anthropic"}),
    disowns=b'"Unexpected endpoint or method. (',
    lacks=frozenset(
        {
            "rerank",
            "score",
            "speech",
            "transcriptions",
            "translations",
            "images",
            "image_edits",
            "moderations",
            "realtime",
        }
        | {"tokenize", "detokenize", "apply_template"}
        | {"chat_input_tokens", "responses_input_tokens", "count_tokens"}
    ),
    ports=(1234,),
    details=(Details("/api/v1/models", _instances), Details("/api/v0/models", _own_listing)),
)
