"""llama.cpp's server, also as a router: it lists what it could load, and tells its slots.

It leaves its model list open, but asks for a key everywhere else. What it says while it loads a model is the
same on every path. A router has a server of this kind for each model in memory, and passes on what it is
asked for a model; with `--no-models-autoload` it refuses requests for all others. A model that sleeps has
left memory, and is back with the next request.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from llmgateway.servers.kind import Details, Facts, Kind
from llmgateway.servers.models import Model, positive

_MOST_ASKED: Final = 32  # models in memory at once, each of which costs a request


def _props(facts: Facts, props: Any) -> Facts:
    if props.get("role") == "router" or "models_autoload" in props:
        return _of_router(facts, props.get("models_autoload"))
    told = _told(props)
    models = {name: _with(told, model) for name, model in facts.models.items()}
    return replace(facts, models=models, slots=told.slots)


def _of_router(facts: Facts, loads_models: Any) -> Facts:
    models = facts.models
    if loads_models is False:
        models = {
            name: replace(model, servable=model.loaded is not False or model.asleep)
            for name, model in models.items()
        }
    return replace(facts, models=models, asks_by_model=True)


def _of_each(facts: Facts) -> tuple[Details, ...]:
    """Ask a router for the models in memory; to be asked for another one would have it load that."""
    if not facts.asks_by_model:
        return ()
    names = [name for name, model in facts.models.items() if model.loaded][:_MOST_ASKED]
    return tuple(
        Details(f"/props?model={quote(name, safe='')}&autoload=false", partial(_props_of, name))
        for name in names
    )


def _props_of(name: str, facts: Facts, props: Any) -> Facts:
    told = _told(props)
    model = replace(_with(told, facts.models[name]), slots=told.slots)
    return replace(facts, models={**facts.models, name: model})


def _told(props: Any) -> Model:
    """Read what a server says of its one model."""
    length = positive(props["default_generation_settings"]["n_ctx"])
    sleeps = props.get("is_sleeping")
    loaded = not sleeps if isinstance(sleeps, bool) else None
    return Model("", None, length, loaded, asleep=sleeps is True, slots=positive(props.get("total_slots")))


def _with(told: Model, model: Model) -> Model:
    length = model.context_length or told.context_length
    if told.loaded is None:
        return replace(model, context_length=length)
    return replace(model, context_length=length, loaded=told.loaded, asleep=told.asleep)


def _is_loading(status: int, body: bytes) -> bool:
    return status == 503 and b'"unavailable_error"' in body and b"oading model" in body


KIND: Final = Kind(
    name="llamacpp",
    title="llama.cpp",
    wrote=lambda listing: "llamacpp" in listing.owners,
    speaks=frozenset({"openai", "responses", "anthropic"}),
    lacks=frozenset({"score", "speech", "translations", "images", "image_edits", "moderations", "realtime"}),
    ports=(8080, 9931),  # the second is the default of newer releases
    details=(Details("/props", _props),),
    more=_of_each,
    is_loading=_is_loading,
    idle_s=5.0,  # and it says so in Keep-Alive
)
