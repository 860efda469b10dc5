"""Ollama: it lists what is on its disk, and tells elsewhere what is in memory.

A request for a model that is not in memory waits until it is; nothing is said meanwhile.
"""

from dataclasses import replace
from typing import Any, Final

from llmgateway.servers.kind import Details, Facts, Kind, by_name, with_context
from llmgateway.servers.models import positive


def _running(facts: Facts, running: Any) -> Facts:
    entries = by_name(running["models"], "model")
    lengths = {name: positive(entry.get("context_length")) for name, entry in entries.items()}
    told = with_context(facts.models, lengths)
    return replace(facts, models={name: replace(m, loaded=name in lengths) for name, m in told.items()})


KIND: Final = Kind(
    name="ollama",
    title="Ollama",
    wrote=lambda listing: "library" in listing.owners,  # the namespace of the models of its own library
    speaks=frozenset({"openai", "responses", "anthropic", "ollama"}),
    ports=(11434,),
    details=(Details("/api/ps", _running),),
)
