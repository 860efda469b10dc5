"""Clients of Anthropic's API: errors that they know by their type, and the list of models in their shape."""

from __future__ import annotations

import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_errors import ANTHROPIC, LIMITED_KEY, OPENAI, USERS, ask, asking, refusal
from tests.raw_client import Response, request
from tests.script import error

VERSION = "anthropic-version: 2023-06-01"


@pytest.mark.parametrize(
    ("message", "status", "kind", "type_"),
    [
        (asking(ANTHROPIC, b"{"), 400, "invalid_request", "invalid_request_error"),
        (asking(ANTHROPIC, key="sk-wrong"), 401, "invalid_api_key", "authentication_error"),
        (asking(ANTHROPIC, key=LIMITED_KEY), 403, "model_not_allowed", "permission_error"),
        (asking(ANTHROPIC, {"model": "no"}), 404, "no_provider", "not_found_error"),
        (asking("/v1/messages/nope"), 404, "not_found", "not_found_error"),
        (request("GET", ANTHROPIC), 405, "method_not_allowed", "invalid_request_error"),
        (asking(ANTHROPIC, {"model": "m", "x": "x" * 9000}), 413, "request_too_large", "request_too_large"),
        (asking(ANTHROPIC), 502, "upstream_error", "api_error"),
    ],
)
async def test_an_error_has_anthropics_type_there_and_ours_in_its_header(
    gateway_for: GatewayFor, provider: FakeProvider, message: bytes, status: int, kind: str, type_: str
) -> None:
    provider.script = error(500, "broken")
    gateway = await gateway_for(provider, users=USERS, server={"max_body": "8KB"})
    response = await ask(gateway.port, message)
    refusal(response, status, kind, ANTHROPIC)
    assert response.json["error"]["type"] == type_


async def test_limits_and_full_queues_have_anthropics_types(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for("rig")
    users = {"alice": {"keys": [KEY], "limits": {"requests_per_minute": 1}}}
    gateway = await gateway_for(rig, users=users)
    await ask(gateway.port, asking(ANTHROPIC))
    response = await ask(gateway.port, asking(ANTHROPIC))
    assert (response.status, response.json["error"]["type"]) == (429, "rate_limit_error")
    gateway._app.drain()
    response = await ask(gateway.port, asking(ANTHROPIC))
    assert (response.status, response.json["error"]["type"]) == (503, "overloaded_error")


async def test_what_another_try_does_not_mend_says_so_everywhere(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users=USERS, server={"metrics_from": []})
    final = [
        asking(OPENAI, key=None),
        asking(ANTHROPIC, key="sk-wrong"),
        asking(OPENAI, key=LIMITED_KEY),
        request("GET", "/v1/models", key=None),
        request("GET", "/gateway/status", key=None),
        request("GET", "/metrics"),
    ]
    for message in final:
        response = await ask(gateway.port, message)
        assert response.status in (401, 403) and response.header("x-should-retry") == "false", message
    for message in (asking(OPENAI), asking(OPENAI, {"model": "no"}), asking(OPENAI, b"{")):
        assert (await ask(gateway.port, message)).header("x-should-retry") is None


# The list of models.


async def listed(port: int, query: str = "") -> Response:
    response = await ask(port, request("GET", f"/v1/models{query}", VERSION), to="GET")
    assert response.status == 200
    return response


async def test_the_list_of_models_is_in_the_shape_that_is_asked_for(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for("rig", models=[{"id": "b", "created": 1_700_000_000}, "org/a"])
    gateway = await gateway_for(rig)
    told = (await listed(gateway.port)).json
    first, second = told["data"]
    assert first == {
        "type": "model",
        "id": "b",
        "display_name": "b",
        "created_at": "2023-11-14T22:13:20Z",
    }
    assert second["id"] == "org/a" and second["created_at"].endswith("Z")
    assert (told["has_more"], told["first_id"], told["last_id"]) == (False, "b", "org/a")
    one = await ask(gateway.port, request("GET", "/v1/models/org/a", VERSION), to="GET")
    assert one.json == second
    openai = await ask(gateway.port, request("GET", "/v1/models"), to="GET")
    assert openai.json["object"] == "list" and "has_more" not in openai.json


async def test_an_empty_list_has_no_first_and_no_last(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for()
    told = (await listed(gateway.port)).json
    assert told == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("?limit=2", "ab", True),
        ("?limit=5", "abcde", False),
        ("?limit=2&after_id=b", "cd", True),
        ("?limit=2&after_id=d", "e", False),
        ("?after_id=e", "", False),
        ("?limit=2&before_id=d", "bc", True),
        ("?limit=3&before_id=d", "abc", False),
        ("?after_id=nobody", "abcde", False),
        ("?limit=0", "abcde", False),
        ("?limit=x&beta=true", "abcde", False),
    ],
)
async def test_the_list_comes_in_pages_if_that_is_wanted(
    gateway_for: GatewayFor, provider_for: ProviderFor, query: str, ids: str, more: bool
) -> None:
    gateway = await gateway_for(await provider_for("rig", models=list("abcde")))
    told = (await listed(gateway.port, query)).json
    assert ("".join(entry["id"] for entry in told["data"]), told["has_more"]) == (ids, more)


async def test_errors_about_models_are_in_that_shape_too(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    unknown = await ask(gateway.port, request("GET", "/v1/models/no", VERSION), to="GET")
    refusal(unknown, 404, "no_provider", ANTHROPIC)
    refused = await ask(gateway.port, request("GET", "/v1/models", VERSION, key="sk-wrong"), to="GET")
    refusal(refused, 401, "invalid_api_key", ANTHROPIC)
    nowhere = await ask(gateway.port, request("GET", "/v1/v1/models", VERSION), to="GET")
    assert "'/v1/models'" in refusal(nowhere, 404, "not_found", ANTHROPIC)
