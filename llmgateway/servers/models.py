"""What a provider tells of itself: its models, what only its kind of server says, its error messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


class NotAnLLMServer(ValueError):
    """The answer is not a list of models; the text says what it is instead."""


_NAME_CHARACTERS: Final = 1_000
_MODELS_LIMIT: Final = 10_000
_CONTEXT_KEYS: Final = (
    "context_length",
    "max_model_len",
    "loaded_context_length",
    "max_context_length",
    "context_window",
)


def parse_models(body: bytes) -> dict[str, Model]:
    """Read OpenAI's `{"data": [{"id": ...}, ...]}`; Ollama says `"data": null` for none.

    Raises NotAnLLMServer: any 200 is not enough, another program may answer on the port.
    """
    entries = _entries(body)
    models = {}
    for entry in entries[:_MODELS_LIMIT]:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
            raise NotAnLLMServer("a model in the list has no 'id'")
        models[name] = Model(name, _positive(entry.get("created")), _context_length(entry), _loaded(entry))
    return models


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


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _context_length(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    if isinstance(meta, dict) and (served := _positive(meta.get("n_ctx"))):  # llama.cpp: per slot
        return served
    return next((length for key in _CONTEXT_KEYS if (length := _positive(entry.get(key)))), None)


def _loaded(entry: Mapping[str, Any]) -> bool | None:
    """Read LM Studio's `state`, and `status.value` of llama.cpp's router, which lists what it could load."""
    status = entry.get("status")
    state = status.get("value") if isinstance(status, dict) else entry.get("state")
    return state == "loaded" if state in ("loaded", "unloaded", "not-loaded", "loading", "sleeping") else None


# --- what only one kind of server says ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Details:
    """Where a kind of server tells more than the model list, and how it is read.

    `path` is below the server's origin. `read` takes the models known so far and the JSON.
    """

    owned_by: str
    path: str
    read: Callable[[dict[str, Model], Any], "Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a provider told of itself. `slots` is how many requests it works on at once, if it says."""

    models: dict[str, Model]
    slots: int | None = None


def _with_context(models: dict[str, Model], lengths: Mapping[str, int | None]) -> dict[str, Model]:
    return {
        name: replace(model, context_length=model.context_length or lengths.get(name))
        for name, model in models.items()
    }


def _series(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _llamacpp_props(models: dict[str, Model], props: Any) -> Facts:
    length = _positive(props["default_generation_settings"]["n_ctx"])
    return Facts(_with_context(models, dict.fromkeys(models, length)), _positive(props.get("total_slots")))


def _ollama_ps(models: dict[str, Model], running: Any) -> Facts:
    lengths = {entry["model"]: _positive(entry.get("context_length")) for entry in _series(running["models"])}
    told = _with_context(models, lengths)
    return Facts({name: replace(model, loaded=name in lengths) for name, model in told.items()})


def _lmstudio_models(models: dict[str, Model], listing: Any) -> Facts:
    entries = {entry["id"]: entry for entry in _series(listing["data"])}
    told = _with_context(models, {name: _context_length(entry) for name, entry in entries.items()})
    return Facts({name: replace(m, loaded=_loaded(entries.get(name, {}))) for name, m in told.items()})


DETAILS: Final[tuple[Details, ...]] = (
    Details("llamacpp", "/props", _llamacpp_props),
    Details("library", "/api/ps", _ollama_ps),
    Details("organization_owner", "/api/v0/models", _lmstudio_models),
)


def details_for(body: bytes) -> Details | None:
    """Tell from a (valid) model list which kind of server wrote it, if it is one that has more to say."""
    owners = [entry.get("owned_by") for entry in _entries(body) if isinstance(entry, dict)]
    return next((details for details in DETAILS if details.owned_by in owners), None)


def read_details(details: Details, models: dict[str, Model], body: bytes) -> Facts:
    """Add what the details say; details of an unexpected shape add nothing."""
    try:
        return details.read(models, orjson.loads(body))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return Facts(models)


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


# --- what it says when it fails ------------------------------------------------------------

_QUOTE_CHARACTERS: Final = 300


def quote(body: bytes, secrets: Sequence[str] = ()) -> str:
    """Give a server's own error message in one line; `secrets` that it repeats are blotted out."""
    text = _message_in(body) or body.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join(text.split())
    return line if len(line) <= _QUOTE_CHARACTERS else line[: _QUOTE_CHARACTERS - 1] + "…"


def _message_in(body: bytes) -> str | None:
    """Find the message in the shapes seen of real servers: error.message, error, message, detail."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    found = (
        (error.get("message") if isinstance(error, dict) else error)
        or answer.get("message")
        or answer.get("detail")
    )
    return found if isinstance(found, str) else None


def is_loading(status: int, body: bytes) -> bool:
    """Recognise llama.cpp's 503 while it loads a model: it is warming, not broken."""
    return status == 503 and b'"unavailable_error"' in body and b"oading model" in body
