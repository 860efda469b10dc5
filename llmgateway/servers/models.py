"""A listing becomes Models: what a server answers to `GET /v1/models`.

Whoever wrote it, it is read in one way: servers, and programs that stand before them, take over each other's
names for the same fact. A fact of an odd type is left out; a listing that is none says what it is instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it; what the server does not say is None."""

    id: str
    created: int | None = None
    context_length: int | None = None
    loaded: bool | None = None
    """Whether it is in memory, so that a request would not have to wait for it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of models, and who is named as their owners; that mostly tells which kind of server wrote it."""

    models: dict[str, Model]
    owners: frozenset[str] = frozenset()


class NotAnLLMServer(ValueError):
    """The answer is not a list of models; the text says what it is instead."""


_NAME_CHARACTERS: Final = 1_000
_MODELS_LIMIT: Final = 10_000
_CONTEXT_KEYS: Final = (
    "context_length",
    "max_model_len",  # vLLM
    "loaded_context_length",  # LM Studio, as the two that follow: what is set goes before what is possible
    "max_context_length",
    "context_window",
)


def read_listing(body: bytes) -> Listing:
    """Read OpenAI's `{"data": [{"id": ...}, ...]}`; Ollama says `"data": null` for none.

    Raises NotAnLLMServer: any 200 is not enough, another program may answer on the port.
    """
    entries = _entries(body)[:_MODELS_LIMIT]
    models = {}
    for entry in entries:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
            raise NotAnLLMServer("a model in the list has no 'id'")
        models[name] = Model(name, positive(entry.get("created")), context_length(entry), loaded(entry))
    owners = (entry.get("owned_by") for entry in entries)
    return Listing(models, frozenset(owner for owner in owners if isinstance(owner, str)))


def _entries(body: bytes) -> list[Any]:
    try:
        listing = orjson.loads(body)
    except orjson.JSONDecodeError:
        is_page = body.lstrip()[:1] == b"<"
        raise NotAnLLMServer("it answers with a web page" if is_page else "its answer is not JSON") from None
    entries = listing.get("data", False) if isinstance(listing, dict) else False
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise NotAnLLMServer("its answer is not a list of models")
    return entries


def positive(value: Any) -> int | None:
    """Give a number that is one and counts something."""
    return value if type(value) is int and value > 0 else None


def context_length(entry: Mapping[str, Any]) -> int | None:
    """Read how many tokens of context a request for this model can have."""
    meta = entry.get("meta")
    if isinstance(meta, dict) and (served := positive(meta.get("n_ctx"))):  # llama.cpp: per slot
        return served
    return next((length for key in _CONTEXT_KEYS if (length := positive(entry.get(key)))), None)


def loaded(entry: Mapping[str, Any]) -> bool | None:
    """Read LM Studio's `state`, and `status.value` of llama.cpp's router, which lists what it could load."""
    status = entry.get("status")
    state = status.get("value") if isinstance(status, dict) else entry.get("state")
    return state == "loaded" if state in ("loaded", "unloaded", "not-loaded", "loading", "sleeping") else None


def model_entry(model: Model, *, owned_by: str, created: int) -> dict[str, object]:
    """Render one entry of OpenAI's model list; `created` is used where the server gave none."""
    entry: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": model.created or created,
        "owned_by": owned_by,
    }
    if model.context_length:
        entry["context_length"] = model.context_length
    return entry
