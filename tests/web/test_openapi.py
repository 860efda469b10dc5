"""The document of the API: it is served to everybody, and has all that is answered, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from llmgateway import __version__, errors
from llmgateway.api.endpoints import DIALECTS, ENDPOINTS, KEPT
from llmgateway.service.gateway import Gateway
from llmgateway.traffic.call import Forward
from llmgateway.web.catalogue import OWN, Own
from llmgateway.web.routes import PAGE, Page, Route
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journeys.test_errors import ask
from tests.raw_client import request

Places = set[tuple[str, str]]
# What has no row among the routes, as an id is in its path.
WITH_AN_ID = {
    ("/v1/models/{id}", "GET"),
    ("/gateway/requests/{id}/end", "POST"),
    ("/gateway/requests/{id}", "DELETE"),
}


async def told(gateway: Gateway, path: str = "/gateway/openapi.json") -> dict[str, Any]:
    response = await ask(gateway.port, request("GET", path, key=None))
    assert (response.status, response.header("content-type")) == (200, "application/json")
    document: dict[str, Any] = response.json
    return document


def places_in(document: dict[str, Any]) -> Places:
    return {(path, method.upper()) for path, ways in document["paths"].items() for method in ways}


def methods_of(path: str, route: Route, described: Places) -> list[str]:
    """The methods of a route. HEAD goes without saying where GET is; who takes all is described by one."""
    if isinstance(route, Forward):
        return [route.endpoint.method, *(each.method for each in route.beside)]
    taken = route.methods or [method for at, method in described if at == path]
    return [method for method in taken if method != "HEAD" or "GET" not in taken]


def answered_by(gateway: Gateway, described: Places) -> Iterator[tuple[str, str]]:
    """What the gateway's routes answer, as the document writes it."""
    for path, route in gateway._app._routes.items():
        written = re.sub(rf"^{PAGE}assets/.*", PAGE + "assets/{file}", path)
        written = "/api/blobs/{digest}" if path == "/api/blobs" else written
        methods = methods_of(written, route, described)
        assert methods, f"{written} is in no way in the document"
        yield from ((written, method) for method in methods)
    pages = gateway._pages.routes["/"]
    assert isinstance(pages, Page)
    yield from (("/", method) for method in pages.methods)  # Ollama's own is before it
    yield from ((each.path, each.method) for each in KEPT)
    yield from WITH_AN_ID


async def test_the_document_has_all_routes_and_endpoints_and_nothing_else(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"ollama_api": True})
    described = places_in(await told(gateway))
    assert described == set(answered_by(gateway, described))
    assert described > {(each.path, each.method) for each in (*ENDPOINTS, *KEPT)}
    assert described > {(own.path, own.method) for own in OWN}


async def test_the_document_is_the_same_whatever_is_turned_on_but_for_the_base_path(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    plain = await told(await gateway_for(provider))
    below = await gateway_for(provider, server={"base_path": "/llm", "ollama_api": True})
    moved = await told(below, "/llm/gateway/openapi.json")
    assert (plain["servers"], moved["servers"]) == ([{"url": "/"}], [{"url": "/llm"}])
    assert moved == {**plain, "servers": moved["servers"]}
    assert (plain["openapi"], plain["info"]["version"]) == ("3.1.0", __version__)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


async def test_all_that_the_document_refers_to_is_in_it(gateway: Gateway) -> None:
    document = await told(gateway)
    for reference in set(references(document)):
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
    ids = [way["operationId"] for ways in document["paths"].values() for way in ways.values()]
    assert len(ids) == len(set(ids))
    used = {name for ways in document["paths"].values() for way in ways.values() for name in way["tags"]}
    assert used == {tag["name"] for tag in document["tags"]}


async def test_every_error_is_described_in_the_words_of_every_dialect(gateway: Gateway) -> None:
    components = (await told(gateway))["components"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, errors.ErrorKind)]
    for kind in kinds:
        for dialect in DIALECTS:
            response = components["responses"][f"{dialect.name}_{kind.status}"]
            assert f"`{kind.type}`" in response["description"]
        assert kind.type in components["headers"]["x-gateway-error"]["schema"]["enum"]


@pytest.mark.parametrize("own", OWN, ids=lambda own: f"{own.method} {own.path}")
async def test_who_needs_a_key_is_described_as_it_is(
    own: Own, gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"ollama_api": True, "metrics_from": ["10.9.9.9"]})
    path = re.sub(r"\{\w+\}", "app.js", own.path)
    fields = {"Content-Type": "application/json"}
    async with aiohttp.request(own.method, gateway.url + path, headers=fields) as response:
        assert (response.status == 401) == (own.access != "everybody")
