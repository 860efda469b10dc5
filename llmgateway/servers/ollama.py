"""Ollama: it lists what is on its disk, and tells elsewhere what is in memory.

A request for a model that is not in memory waits until it is; nothing is said meanwhile. A model has a tag,
which is `latest` for those who name none. The owner that its listing tells is the namespace in the model's
name, which says who made the server only for models of Ollama's own library.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from llmgateway.servers.kind import Details, Facts, Kind, Proof, by_name, described, with_context
from llmgateway.servers.models import positive, told_besides

_TOLD: Final = ("size", "digest", "modified_at", "details", "capabilities")
_TOLD_IN_MEMORY: Final = ("size", "size_vram", "expires_at", "context_length", "details")


def _tags(facts: Facts, tags: Any) -> Facts:
    entries = by_name(tags["models"], "model")
    more = {name: _told(entry, _TOLD) for name, entry in entries.items()}
    return replace(facts, models=described(facts.models, more))


def _running(facts: Facts, running: Any) -> Facts:
    entries = by_name(running["models"], "model")
    lengths = {name: positive(entry.get("context_length")) for name, entry in entries.items()}
    in_memory = {name: _told(entry, _TOLD_IN_MEMORY) for name, entry in entries.items()}
    told = {
        name: replace(model, loaded=name in entries, in_memory=in_memory.get(name, {}))
        for name, model in with_context(facts.models, lengths).items()
    }
    return replace(facts, models=told)


def _told(entry: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Give some fields of an entry; in its details it says what it does not know, as null."""
    details = entry.get("details")
    if isinstance(details, dict):
        entry = {**entry, "details": {name: each for name, each in details.items() if each is not None}}
    return told_besides(entry, fields)


def _full_name(name: str) -> str:
    """Add the tag, which a port of the host in `host:port/namespace/model` is not."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _is_version(told: Any) -> bool:
    """Know Ollama by what it says of itself; Open WebUI has the same page, and says more."""
    return list(told) == ["version"] and isinstance(told["version"], str)


KIND: Final = Kind(
    name="ollama",
    title="Ollama",
    wrote=lambda listing: "library" in listing.owners,
    proof=Proof("/api/version", _is_version),
    full_name=_full_name,
    speaks=frozenset({"openai", "responses", "anthropic", "ollama"}),
    lacks=frozenset(
        {"rerank", "score", "speech", "translations", "moderations", "realtime"}
        | {"tokenize", "detokenize", "apply_template", "chat_input_tokens"}
    ),
    ports=(11434,),
    details=(Details("/api/tags", _tags), Details("/api/ps", _running)),
)
