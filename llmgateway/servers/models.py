"""A listing becomes Models: what a server answers to `GET /v1/models`.

Whoever wrote it, it is read in one way: servers, and programs that stand before them, take over each other's
names for the same fact. A fact of an odd type is left out, and so is an entry that names no model; a listing
that is none says what it is instead.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it; what the server does not say is None."""

    id: str
    """What clients see."""
    created: int | None = None
    context_length: int | None = None
    loaded: bool | None = None
    """Whether it is in memory, so that a request would not have to wait for it."""
    via: tuple[str, ...] = ()
    """The gateways on the way to it, the nearest one first."""
    asleep: bool = False
    """Whether it has left memory until the next request for it comes."""
    servable: bool = True
    """False while its server would refuse a request for it, and load it for nobody."""
    slots: int | None = None
    """How many requests for it its server works on at once, whatever it does for other models."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What its server tells of it besides, in the words that clients of such servers know."""
    in_memory: Mapping[str, Any] = field(default_factory=dict)
    """What its server tells of it besides while it is in memory, likewise."""
    told_as: str = ""
    """What its server is told, where that is another name."""

    @property
    def listed_as(self) -> str:
        """The name by which its server knows it."""
        return self.told_as or self.id

    @property
    def takes_images(self) -> bool | None:
        """Whether it takes images, if its server tells: Ollama by capabilities, LM Studio by a type."""
        kind, able = self.more.get("type"), self.more.get("capabilities")
        if kind is not None:
            return kind == "vlm" or (isinstance(able, list) and "vision" in able)
        return "vision" in able if isinstance(able, list) else None

    @property
    def only_embeds(self) -> bool:
        """Whether its server tells that it writes nothing: Ollama by capabilities, LM Studio by a type."""
        able = self.more.get("capabilities")
        embeds = isinstance(able, list) and "embedding" in able and "completion" not in able
        return embeds or self.more.get("type") == "embeddings"


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of models, and who is named as their owners; that mostly tells which kind of server wrote it."""

    models: dict[str, Model]
    owners: frozenset[str] = frozenset()
    via: tuple[str, ...] = ()
    """The pseudonym of the gateway that wrote it, if one did."""
    trouble: str = ""
    """What in it could not be taken in, in words; the rest of it holds."""


class NotAnLLMServer(ValueError):
    """The answer is not a list of models; the text says what it is instead."""


_NAME_CHARACTERS: Final = 1_000
_MODELS_LIMIT: Final = 10_000
_HOPS_LIMIT: Final = 16
_FIELDS_LIMIT: Final = 32
_SHOWN_CHARACTERS: Final = 60
_LENIENT_BYTES: Final = 1 << 20  # the reader that forgives is slow
_GZIP: Final = b"\x1f\x8b"
_HALVES: Final = re.compile("[\ud800-\udfff]")
_STATES: Final = ("loaded", "unloaded", "not-loaded", "loading", "sleeping", "downloading", "downloaded")
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
    listing = _json(body)
    entries = _entries(listing)
    sender = _names([listing.get("via")])  # as `model_entry` and the list around it tell other gateways
    models: dict[str, Model] = {}
    owners: set[str] = set()
    unnamed: list[str] = []
    twice = 0
    for entry in entries[:_MODELS_LIMIT]:
        if not isinstance(entry, dict) or (name := model_name(entry.get("id"))) is None:
            unnamed.append(_shown(entry))
        elif name in models:
            twice += 1
        else:
            models[name] = _model(name, entry, sender)
            if isinstance(owner := entry.get("owned_by"), str):
                owners.add(owner)
    if unnamed and not models:
        raise NotAnLLMServer(f"its answer is not a list of models: no entry has a usable 'id' ({unnamed[0]})")
    return Listing(models, frozenset(owners), sender, _trouble(unnamed, twice, len(entries)))


def _names(value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else []
    return tuple(name for name in map(model_name, found[:_HOPS_LIMIT]) if name is not None)


def _model(name: str, entry: Mapping[str, Any], sender: tuple[str, ...]) -> Model:
    way = (*sender, *_names(entry.get("via"))) if sender else ()
    created, length = positive(entry.get("created")), context_length(entry)
    return Model(name, created, length, loaded(entry), way, asleep=_state(entry) == "sleeping")


def model_name(value: Any) -> str | None:
    """Give a name that a model can be asked for by; no request can say half a character."""
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARACTERS:
        return None
    return value if value.isascii() or not _HALVES.search(value) else None


def _trouble(unnamed: list[str], twice: int, length: int) -> str:
    told = []
    if unnamed:
        told.append(f"{_counted(len(unnamed), 'entry has', 'entries have')} no usable 'id' ({unnamed[0]})")
    if twice:
        told.append(f"{_counted(twice, 'entry repeats', 'entries repeat')} an earlier one")
    if length > _MODELS_LIMIT:
        told.append(f"only the first {_MODELS_LIMIT:,} of {length:,} entries are read")
    return f"in its list of models {', and '.join(told)}" if told else ""


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _shown(entry: Any) -> str:
    """Show what stands where a name should, cut to what a person needs to find it."""
    if isinstance(entry, dict) and "id" not in entry:
        return "none"
    text = ascii(entry["id"] if isinstance(entry, dict) else entry)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _entries(listing: Any) -> list[Any]:
    entries = listing.get("data", False) if isinstance(listing, dict) else False
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise NotAnLLMServer("its answer is not a list of models")
    return entries


def _json(body: bytes) -> Any:
    """Read JSON, and what nearly is: a byte order mark, NaN, a name of broken characters."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    if len(body) <= _LENIENT_BYTES:
        try:
            return json.loads(body.decode("utf-8-sig", "surrogateescape"))
        except (ValueError, RecursionError):
            pass
    if body.startswith(_GZIP):
        raise NotAnLLMServer("its answer is compressed, which was not asked for")
    is_page = body.lstrip()[:1] == b"<"
    raise NotAnLLMServer("it answers with a web page" if is_page else "its answer is not JSON")


def positive(value: Any) -> int | None:
    """Give a number that is one and counts something."""
    return value if type(value) is int and value > 0 else None


def context_length(entry: Mapping[str, Any]) -> int | None:
    """Read how many tokens of context a request for this model can have."""
    meta = entry.get("meta")
    if isinstance(meta, dict) and (served := positive(meta.get("n_ctx"))):  # llama.cpp: per slot
        return served
    return next((length for key in _CONTEXT_KEYS if (length := positive(entry.get(key)))), None)


def told_besides(entry: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Give those of some fields that an entry has, as far as they are small and plain."""
    return {name: value for name in fields if _is_plain(value := entry.get(name))}


def _is_plain(value: Any, depth: int = 2) -> bool:
    if isinstance(value, dict):
        return (
            depth > 0
            and 0 < len(value) <= _FIELDS_LIMIT
            and all(_is_plain(v, depth - 1) for v in value.values())
        )
    if isinstance(value, list):
        return depth > 0 and 0 < len(value) <= _FIELDS_LIMIT and all(_is_plain(v, 0) for v in value)
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= _NAME_CHARACTERS)


def loaded(entry: Mapping[str, Any]) -> bool | None:
    """Tell whether a model is in memory, if its entry says what state it is in."""
    state = _state(entry)
    return state == "loaded" if state in _STATES else None


def _state(entry: Mapping[str, Any]) -> Any:
    """Read LM Studio's `state`, and `status.value` of llama.cpp's router, which lists what it could load."""
    status = entry.get("status")
    return status.get("value") if isinstance(status, dict) else entry.get("state")


def model_entry(model: Model, *, owned_by: str, created: int, by_way: bool = False) -> dict[str, object]:
    """Render one entry of OpenAI's model list; `created` is used where the server gave none.

    `by_way` tells by way of which gateways the model is had, for another gateway.
    """
    entry: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": model.created or created,
        "owned_by": owned_by,
    }
    if model.context_length:
        entry["context_length"] = model.context_length
    if model.loaded is not None:
        entry["state"] = "loaded" if model.loaded else "not-loaded"  # as LM Studio says it
    entry.update(model.more)
    if by_way and model.via:
        entry["via"] = model.via
    return entry


def as_alias(alias: str, entry: Mapping[str, object]) -> dict[str, object]:
    """Render the entry of another name for a model, by that of the model."""
    return {**entry, "id": alias, "alias_of": entry["id"]}
