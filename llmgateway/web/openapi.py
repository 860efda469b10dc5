"""The API as a document of OpenAPI 3.1, made of the table of endpoints and of the catalogue of our own pages.

It is the same for every config but for the base path: what a config may turn off is in it, and says so.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from llmgateway import __version__, errors
from llmgateway.access.sessions import COOKIE
from llmgateway.api.dialect import Dialect
from llmgateway.api.endpoints import DIALECTS, ELSEWHERE, ENDPOINTS, KEPT, Endpoint, dialect_of
from llmgateway.errors import ErrorKind
from llmgateway.web.catalogue import JSON, OWN, Access, Own
from llmgateway.web.routes import CHAT

_KINDS: Final = tuple(kind for kind in vars(errors).values() if isinstance(kind, ErrorKind))
_ALWAYS: Final = (errors.INTERNAL_ERROR,)
_FORWARDED: Final = (
    errors.INVALID_REQUEST,
    errors.INVALID_API_KEY,
    errors.MODEL_NOT_ALLOWED,
    errors.NO_PROVIDER,
    errors.REQUEST_TIMEOUT,
    errors.CANCELLED,
    errors.REQUEST_TOO_LARGE,
    errors.RATE_LIMITED,
    errors.UPSTREAM_ERROR,
    errors.OVERLOADED,
    errors.DRAINING,
    errors.LOOP_DETECTED,
)
_ABOUT: Final = """One address and one set of keys in front of LLM servers.

What is forwarded goes to a provider that serves the model, and its answer comes back byte for byte. An error
with the header `x-gateway-error` is the gateway's own, any other the server's. Every answer has
`x-request-id`. Another method than those here gets 405 `method_not_allowed`, with `Allow`.

The config may change this: what is tagged `ollama` is there where `server.ollama_api` is true, and else 404;
`server.extra_paths` adds paths; with `server.default_model` a request need not name a model; users with
`from` need no key."""
_TAGS: Final = {
    "openai": "OpenAI's API, and what llama.cpp and vLLM have beside it; forwarded",
    "responses": "OpenAI's Responses; those that are kept are asked for by their id. Forwarded",
    "anthropic": "Anthropic's Messages; forwarded",
    "ollama": "Ollama's own API, where `server.ollama_api` is true",
    "models": "What can be used now",
    "operation": "For who runs the gateway",
    "live page": "The gateway's page, and what it is made of",
}
_STRING: Final = {"type": "string"}
_ANY_STRING: Final = {"schema": _STRING}
_SECURITY: Final[Mapping[Access, list[dict[str, list[str]]]]] = {
    "everybody": [],
    "nearby": [{}, {"bearer": []}, {"x-api-key": []}],
    "key": [{"bearer": []}, {"x-api-key": []}],
    "session": [{"bearer": []}, {"x-api-key": []}, {"session": []}],
}
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "Of who is signed in at the live page; counts there only",
    },
}
_HEADERS: Final = {
    "x-request-id": {"description": "The client's own, if it sent one, or one that is unique", **_ANY_STRING},
    "x-gateway-provider": {"description": "Whose answer it is", **_ANY_STRING},
    "x-gateway-model": {"description": "What that was asked for, if not for `model`", **_ANY_STRING},
    "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}},
    "x-gateway-error": {
        "description": "The gateway spoke, and why",
        "schema": {"type": "string", "enum": sorted({kind.type for kind in _KINDS})},
    },
}


@lru_cache(maxsize=4)
def document(base_path: str) -> bytes:
    """Write the document of a gateway whose paths are below `base_path`."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "llmgateway", "version": __version__, "description": _ABOUT},
            "servers": [{"url": base_path or "/"}],
            "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
            "paths": _paths(),
            "components": {
                "securitySchemes": _SCHEMES,
                "headers": _HEADERS,
                "schemas": {**_schemas(), **{_error_name(each): _error_schema(each) for each in DIALECTS}},
                "responses": {
                    _refusal_name(dialect, status): _refusal(dialect, status)
                    for dialect in DIALECTS
                    for status in _statuses(_KINDS)
                },
            },
        }
    )


def _paths() -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for own in OWN:
        paths.setdefault(own.path, {})[own.method.lower()] = _own(own)
    for endpoint in (*ENDPOINTS, *KEPT):
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _forwarded(endpoint)
    chat = _forwarded(next(each for each in ENDPOINTS if each.name == "chat"))
    chat |= {"operationId": "page_chat", "tags": ["live page"], "security": _SECURITY["session"]}
    chat["responses"] |= _refusals([errors.FORBIDDEN], ELSEWHERE)
    paths[CHAT] = {"post": chat}
    return paths


def _own(own: Own) -> dict[str, Any]:
    dialect = dialect_of(own.path, optional=True)
    good: dict[str, Any] = {
        "description": own.summary,
        "content": {kind: {"schema": _named(name)} for kind, name in own.answer.items()},
    }
    operation = {
        "operationId": _id(own.method, own.path),
        "tags": [own.tag],
        "summary": own.summary,
        "security": _SECURITY[own.access],
        "parameters": _in_path(own.path),
        "responses": {str(own.status): good, **_refusals((*own.refusals, *_ALWAYS), dialect)},
    }
    if own.takes:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _named(own.takes)}}}
    return operation


def _forwarded(endpoint: Endpoint) -> dict[str, Any]:
    refusals = [*_FORWARDED, *_ALWAYS]
    if endpoint.body == "socket":
        refusals.append(errors.UPGRADE_REQUIRED)
    operation: dict[str, Any] = {
        "operationId": endpoint.name or _id(endpoint.method, endpoint.path),
        "tags": [endpoint.dialect.name],
        "summary": f"{endpoint.method} {endpoint.path}, by a provider",
        "security": _SECURITY["key"],
        "parameters": _in_path(endpoint.path),
        "responses": {
            **_good(endpoint),
            **_refusals(refusals, endpoint.dialect),
            "default": {"description": "What the server says, as it says it", "content": {"*/*": {}}},
        },
    }
    if endpoint.body in ("query", "socket"):
        named = {"name": "model", "in": "query", "required": True, **_ANY_STRING}
        operation["parameters"].append(named)
    elif endpoint.body in ("json", "multipart"):
        kind = JSON if endpoint.body == "json" else "multipart/form-data"
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": _asked(endpoint)}}}
    return operation


def _asked(endpoint: Endpoint) -> dict[str, Any]:
    """Describe what the gateway reads of a body; all else in it is for the server."""
    properties: dict[str, Any] = {"model": {**_STRING, "minLength": 1}}
    if endpoint.streams:
        properties["stream"] = {"type": "boolean", "default": endpoint.streams_unasked}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if not endpoint.by_name:
        return {**schema, "required": ["model"]}
    properties["name"] = properties["model"]
    return {**schema, "anyOf": [{"required": ["model"]}, {"required": ["name"]}]}


def _good(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.body == "socket":
        return {"101": {"description": "The WebSocket is open: events go both ways"}}
    content: dict[str, Any] = {"*/*": {}}
    if endpoint.streams:
        content = {JSON: {}, endpoint.dialect.stream.media_type.decode(): {}}
    told = ("x-request-id", "x-gateway-provider", "x-gateway-model")
    return {
        "200": {"description": "The server's answer", "headers": _headers(*told), "content": content},
    }


def _refusals(kinds: Iterable[ErrorKind], dialect: Dialect) -> dict[str, Any]:
    return {
        str(status): {"$ref": f"#/components/responses/{_refusal_name(dialect, status)}"}
        for status in _statuses(kinds)
    }


def _refusal(dialect: Dialect, status: int) -> dict[str, Any]:
    types = [f"`{kind.type}`" for kind in _KINDS if kind.status == status]
    told = ["x-request-id", "x-gateway-error"]
    if status in (errors.RATE_LIMITED.status, errors.OVERLOADED.status):
        told.append("Retry-After")
    schema = _named(_error_name(dialect))
    if status == errors.OVERLOADED.status:
        schema = {"anyOf": [schema, _named("State")]}
    return {
        "description": " or ".join(types),
        "headers": _headers(*told),
        "content": {JSON: {"schema": schema}},
    }


def _error_schema(dialect: Dialect) -> dict[str, Any]:
    """Describe a dialect's errors by one of them."""
    return _like(dialect.error(errors.INTERNAL_ERROR, "", ""))


def _like(value: object) -> dict[str, Any]:
    match value:
        case dict():
            properties = {name: _like(each) for name, each in value.items()}
            return {"type": "object", "properties": properties, "required": list(properties)}
        case None:
            return {"type": "null"}
        case _:
            return _STRING


def _schemas() -> dict[str, Any]:
    strings = {"type": "array", "items": _STRING}
    anything = {"type": "object"}
    model = {
        "type": "object",
        "properties": {"id": _STRING, "owned_by": _STRING, "endpoints": strings, "providers": strings},
        "required": ["id"],
    }
    return {
        "Object": anything,
        "State": {"type": "object", "properties": {"status": _STRING}, "required": ["status"]},
        "Model": model,
        "Models": {
            "type": "object",
            "properties": {"data": {"type": "array", "items": _named("Model")}},
            "required": ["data"],
        },
        "Lines": {"type": "object", "properties": {"lines": {"type": "array"}}, "required": ["lines"]},
        "SignIn": {"type": "object", "properties": {"key": _STRING}, "required": ["key"]},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _named(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"} if schema else {}


def _error_name(dialect: Dialect) -> str:
    return f"Error_{dialect.name}"


def _refusal_name(dialect: Dialect, status: int) -> str:
    return f"{dialect.name}_{status}"


def _statuses(kinds: Iterable[ErrorKind]) -> list[int]:
    return sorted({kind.status for kind in kinds})


def _in_path(path: str) -> list[dict[str, Any]]:
    names = [part.partition("}")[0] for part in path.split("{")[1:]]
    return [{"name": name, "in": "path", "required": True, **_ANY_STRING} for name in names]


def _id(method: str, path: str) -> str:
    return "_".join([method.lower(), *path.replace("{", "").replace("}", "").lstrip("/").split("/")])
