"""llama.cpp's server, also as a router: it lists what it could load, and tells its slots.

It leaves its model list open, but asks for a key everywhere else. What it says while it loads a model is the
same on every path.
"""

from dataclasses import replace
from typing import Any, Final

from llmgateway.servers.kind import Details, Facts, Kind, with_context
from llmgateway.servers.models import positive


def _props(facts: Facts, props: Any) -> Facts:
    length = positive(props["default_generation_settings"]["n_ctx"])
    models = with_context(facts.models, dict.fromkeys(facts.models, length))
    return replace(facts, models=models, slots=positive(props.get("total_slots")))


def _is_loading(status: int, body: bytes) -> bool:
    return status == 503 and b'"unavailable_error"' in body and b"oading model" in body


KIND: Final = Kind(
    name="llamacpp",
    title="llama.cpp",
    wrote=lambda listing: "llamacpp" in listing.owners,
    speaks=frozenset({"openai", "responses", "anthropic", "rerank"}),
    ports=(8080, 9931),  # the second is the default of newer releases
    details=(Details("/props", _props),),
    is_loading=_is_loading,
    idle_s=5.0,  # and it says so in Keep-Alive
)
