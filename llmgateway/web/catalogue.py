"""What the gateway answers by itself, described: a row for each path and method.

What it forwards is described by the table of endpoints. A test holds both against the routes.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, Literal

from llmgateway.api.dialects.ollama import BLOBS, CHANGES, PS, TAGS, VERSION
from llmgateway.errors import (
    DRAINING,
    FORBIDDEN,
    INVALID_API_KEY,
    INVALID_REQUEST,
    LOOP_DETECTED,
    NO_PROVIDER,
    NOT_FOUND,
    OVERLOADED,
    REQUEST_TIMEOUT,
    REQUEST_TOO_LARGE,
    ErrorKind,
)
from llmgateway.web.routes import MODELS, OPENAPI, PAGE, REQUESTS

Access = Literal["everybody", "nearby", "key", "session"]
"""Who is answered: everybody; who asks from some networks, or shows a key; who shows one; the same, or who is
signed in at the live page."""

JSON: Final = "application/json"
_TEXT: Final = "text/plain"
_EVENTS: Final = "text/event-stream"
_KEYED: Final = (INVALID_API_KEY, LOOP_DETECTED, DRAINING)
_FROM_PAGE: Final = (INVALID_REQUEST, INVALID_API_KEY, FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Own:
    """One path and method that the gateway answers itself."""

    path: str
    tag: str
    summary: str
    answer: Mapping[str, str] = field(default_factory=dict)
    """What a good answer holds: the names of schemas, by media type; "" is anything."""
    _: KW_ONLY
    method: str = "GET"
    status: int = 200
    access: Access = "everybody"
    refusals: tuple[ErrorKind, ...] = ()
    takes: str = ""
    """The name of its body's schema."""


OWN: Final = (
    Own(
        MODELS,
        "models",
        "The models that this caller can use now; in Anthropic's words with `anthropic-version`",
        {JSON: "Models"},
        access="key",
        refusals=_KEYED,
    ),
    Own(
        MODELS + "/{id}",
        "models",
        "One of these models; its id may hold slashes",
        {JSON: "Model"},
        access="key",
        refusals=(*_KEYED, NO_PROVIDER),
    ),
    *(
        Own(path, "operation", "Whether the gateway is alive", {JSON: "State"})
        for path in ("/healthz", "/health", "/v1/health")
    ),
    Own("/", "operation", "Whether the gateway is alive", method="HEAD"),
    Own(
        "/readyz",
        "operation",
        "Whether every provider has been looked at: 503 before that, and while the gateway shuts down",
        {JSON: "State"},
        refusals=(DRAINING,),
    ),
    Own(
        "/metrics",
        "operation",
        "Metrics for Prometheus: without a key from `server.metrics_from`, else with an admin's",
        {_TEXT: "", "application/openmetrics-text": ""},
        access="nearby",
        refusals=(INVALID_API_KEY, FORBIDDEN),
    ),
    Own(OPENAPI, "operation", "This document", {JSON: "Object"}),
    Own(PAGE.rstrip("/"), "live page", "Leads to the live page", status=308),
    Own(PAGE, "live page", "The live page", {"text/html": ""}),
    Own(
        PAGE + "assets/{file}",
        "live page",
        "What the live page is made of; names may hold slashes",
        {"*/*": ""},
        refusals=(NOT_FOUND,),
    ),
    Own(
        PAGE + "status",
        "live page",
        "What the gateway is doing, as far as this caller may see it",
        {JSON: "Object"},
        access="session",
        refusals=(INVALID_API_KEY,),
    ),
    Own(
        PAGE + "events",
        "live page",
        "The same anew whenever it changes, as events `snapshot`",
        {_EVENTS: ""},
        access="session",
        refusals=(INVALID_REQUEST, INVALID_API_KEY, OVERLOADED, DRAINING),
    ),
    Own(
        PAGE + "log",
        "live page",
        "The last lines of the log, for admins",
        {JSON: "Lines"},
        access="session",
        refusals=(INVALID_API_KEY, FORBIDDEN),
    ),
    Own(
        PAGE + "session",
        "live page",
        "Signs in at the live page: the answer sets a cookie",
        method="POST",
        status=204,
        takes="SignIn",
        refusals=(*_FROM_PAGE, REQUEST_TIMEOUT, REQUEST_TOO_LARGE),
    ),
    Own(
        PAGE + "session",
        "live page",
        "Signs out",
        method="DELETE",
        status=204,
        refusals=_FROM_PAGE,
    ),
    *(
        Own(
            path,
            "live page",
            "Ends a request that is in flight: one's own, or anybody's for an admin",
            method=method,
            status=204,
            access="session",
            refusals=(*_FROM_PAGE, NOT_FOUND),
        )
        for path, method in ((REQUESTS + "{id}/end", "POST"), (REQUESTS + "{id}", "DELETE"))
    ),
    Own("/", "ollama", "Says that Ollama is running", {_TEXT: ""}, refusals=(NOT_FOUND,)),
    Own(VERSION, "ollama", "The version of the API", {JSON: "Object"}, refusals=(NOT_FOUND,)),
    *(
        Own(path, "ollama", summary, {JSON: "Object"}, access="key", refusals=(*_KEYED, NOT_FOUND))
        for path, summary in (
            (TAGS, "The models that this caller can use now"),
            (PS, "Those of them that are in memory"),
        )
    ),
    *(
        Own(
            path if path != BLOBS else BLOBS + "/{digest}",
            "ollama",
            "Refused: the gateway changes nothing on a server",
            method="DELETE" if path.endswith("/delete") else "POST",
            status=FORBIDDEN.status,
            access="key",
            refusals=(*_KEYED, FORBIDDEN, NOT_FOUND),
        )
        for path in CHANGES
    ),
)
