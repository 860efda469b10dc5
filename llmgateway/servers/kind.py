"""What a kind of LLM server must tell of itself, and how the words of any server are read.

A kind is a value, in a file of its own; `known` lists them all. Nobody asks for a kind by its name: who wants
to know something asks the value. What servers send is foreign, and adds nothing where its shape is
unexpected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from llmgateway.servers.models import Listing, Model, model_name


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server told of itself. `slots` is how many requests it works on at once, if it says."""

    models: dict[str, Model]
    slots: int | None = None
    asks_by_model: bool = False
    """Whether it tells more of each model where it is asked for that one."""


@dataclass(frozen=True, slots=True)
class Details:
    """Where a kind of server tells more than the model list, and how it is read.

    `path` is below the server's origin. `read` adds what the JSON says to the facts known so far; it may
    raise LookupError, TypeError or AttributeError where that is of an unexpected shape.
    """

    path: str
    read: Callable[[Facts, Any], Facts]


@dataclass(frozen=True, slots=True)
class Proof:
    """What only this kind of server has: a page at `path`, whose JSON `shows` it.

    `shows` may raise LookupError, TypeError or AttributeError where that is of an unexpected shape.
    """

    path: str
    shows: Callable[[Any], bool]


def nothing(facts: Facts) -> tuple[Details, ...]:
    """Have nothing more to ask."""
    return ()


def never(status: int, body: bytes) -> bool:
    """Tell nothing apart from broken: for kinds that hold a request until the model is there."""
    return False


def as_it_is(name: str) -> str:
    """Give the name that was asked for: most servers know a model by one name."""
    return name


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of LLM server."""

    name: str
    title: str
    """Its name as people write it."""
    wrote: Callable[[Listing], bool]
    """Whether a listing is by a server of this kind, and surely not by one of another."""
    speaks: frozenset[str]
    """The APIs that its present version has; not every model answers on each of them."""
    may_speak: frozenset[str] = frozenset()
    """The APIs that it may have besides: it is asked, and a 404 tells."""
    lacks: frozenset[str] = frozenset()
    """The endpoints of those APIs that no version of it has, by their names; what a version may have it is
    asked for, and a 404 tells."""
    disowns: bytes = b""
    """How an error begins by which a 200 says that it has not the path; b"" if it says so with a 404."""
    proof: Proof | None = None
    """What tells a server of this kind where a listing leaves it open."""
    full_name: Callable[[str], str] = as_it_is
    """The name under which it lists the model that it takes a name for."""
    ports: tuple[int, ...] = ()
    """Where it listens unless it is told otherwise, the likeliest first."""
    details: tuple[Details, ...] = ()
    more: Callable[[Facts], tuple[Details, ...]] = nothing
    """What else is to be asked once the details have been read, as they say."""
    is_loading: Callable[[int, bytes], bool] = never
    """Whether an answer (status and body) says that the model is being loaded: warming, not broken."""
    idle_s: float | None = None
    """How long it keeps an idle connection; None if for ever, or as long as it says itself."""


def proves(proof: Proof, body: bytes) -> bool:
    """Tell whether a page shows the kind whose proof it is; one of an unexpected shape does not."""
    try:
        return proof.shows(orjson.loads(body))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return False


def read_details(details: Details, facts: Facts, body: bytes) -> Facts:
    """Add what the details say; details of an unexpected shape add nothing."""
    try:
        return details.read(facts, orjson.loads(body))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return facts


def with_context(models: dict[str, Model], lengths: Mapping[str, int | None]) -> dict[str, Model]:
    """Add the lengths of context that the listing did not tell."""
    return {
        name: replace(model, context_length=model.context_length or lengths.get(name))
        for name, model in models.items()
    }


def by_name(entries: Any, field: str) -> dict[str, Mapping[str, Any]]:
    """Give the entries of a list by the name that each has in a field, less those that have none.

    Raises TypeError where it is no list, or one of nothing but such.
    """
    found = named(entries, field)
    if not isinstance(entries, list) or (entries and not found):
        raise TypeError("not a list of models")
    return found


def named(entries: Any, field: str) -> dict[str, Mapping[str, Any]]:
    """Give what has a name in a list, by its name; nothing if it is no list."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and (name := model_name(entry.get(field))) is not None:
            found[name] = entry
    return found


def described(models: dict[str, Model], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Model]:
    """Add what clients of such servers like to know of each model, by name."""
    return {
        name: replace(model, more={**model.more, **entries[name]}) if name in entries else model
        for name, model in models.items()
    }


# --- what it says when it fails ------------------------------------------------------------

_QUOTE_CHARACTERS: Final = 300


def quote(body: bytes, secrets: Sequence[str] = ()) -> str:
    """Give a server's own error message in one line; `secrets` that it repeats are blotted out."""
    text = message_in(body) or body.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join(text.split())
    return line if len(line) <= _QUOTE_CHARACTERS else line[: _QUOTE_CHARACTERS - 1] + "…"


def message_in(body: bytes) -> str | None:
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
