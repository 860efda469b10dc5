"""`GET /v1/models` and `/v1/models/{id}`: OpenAI's shape, for this caller, now."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import pytest

from llmgateway.api.endpoints import names_of
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.journeys.test_errors import ask, asking, refusal
from tests.raw_client import Response, request
from tests.script import answer, error, loading

CREATED = 1_700_000_000  # what the fake provider says of models given by name


async def get(gateway: Gateway, target: str, method: str = "GET") -> Response:
    return await ask(gateway.port, request(method, target), to=method)


async def listed(gateway: Gateway) -> list[dict[str, Any]]:
    response = await get(gateway, "/v1/models")
    assert response.status == 200
    assert response.header("content-type") == "application/json"
    assert response.json == {"object": "list", "data": response.json["data"]}
    entries: list[dict[str, Any]] = response.json["data"]
    return entries


async def test_the_list_has_openais_shape(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    (entry,) = await listed(gateway)
    assert (entry.pop("endpoints"), entry.pop("providers")) == (list(names_of(optional=False)), ["rig"])
    assert entry == {"id": "m", "object": "model", "created": CREATED, "owned_by": "rig"}


async def test_one_model_alone_is_as_it_is_in_the_list(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    response = await get(gateway, "/v1/models/m")
    assert response.header("content-type") == "application/json"
    assert [response.json] == await listed(gateway)


async def test_without_providers_or_models_the_list_is_empty(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    assert await listed(await gateway_for()) == []
    assert await listed(await gateway_for(await provider_for("bare", models=[]))) == []


async def test_a_model_of_several_providers_stands_there_once_and_is_owned_by_the_first(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    first = await provider_for("zebra", models=["m", "a"])
    second = await provider_for("ant", models=["m", "b"])
    gateway = await gateway_for(first, second)
    assert [(entry["id"], entry["owned_by"]) for entry in await listed(gateway)] == [
        ("a", "zebra"),
        ("b", "ant"),
        ("m", "zebra"),
    ]


async def test_created_is_the_servers_own_or_else_when_the_gateway_started(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    odd = [{"id": f"odd-{i}", "created": created} for i, created in enumerate((None, "x", 0, -1, True, 1.5))]
    provider = await provider_for("rig", models=[{"id": "own", "created": 1234}, {"id": "bare"}, *odd])
    before = int(time.time())
    gateway = await gateway_for(provider)
    created = {entry["id"]: entry["created"] for entry in await listed(gateway)}
    assert created.pop("own") == 1234
    assert len(created) == 7
    for moment in created.values():
        assert type(moment) is int and before <= moment <= time.time()


@pytest.mark.parametrize(
    "facts",
    [
        {"max_model_len": 8192},
        {"meta": {"n_ctx": 8192, "n_ctx_train": 32768}},
        {"context_length": 8192},
        {"loaded_context_length": 8192, "max_context_length": 32768},
    ],
)
async def test_the_context_length_is_told_where_the_server_tells_it(
    provider_for: ProviderFor, gateway_for: GatewayFor, facts: dict[str, Any]
) -> None:
    gateway = await gateway_for(await provider_for("rig", models=[{"id": "m", **facts}, "other"]))
    entries = {entry["id"]: entry for entry in await listed(gateway)}
    assert entries["m"]["context_length"] == 8192
    assert "context_length" not in entries["other"]


NAMES = (
    "meta-llama/Llama-3.1-8B",
    "a/b/c/d",
    "qwen3:8b-q4_K_M",
    "with space",
    "100%",
    "%41",
    "a?b",
    "a#b",
    "a+b&c=d;e",
    "modèle-été",
    "模型",
    "🦙",
    "..",
    "../secrets",
    "a//b",
    "/leading",
    "trailing/",
    "C:\\models\\m.gguf",
    'quote"d',
)


async def test_names_with_slashes_blanks_and_every_letter_are_found_again(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig", models=NAMES))
    assert [entry["id"] for entry in await listed(gateway)] == sorted(NAMES)
    for name in NAMES:
        for safe in ("/", "/:", "", "/:+&=;!$"):
            response = await get(gateway, f"/v1/models/{quote(name, safe=safe)}")
            assert response.status == 200, name
            assert response.json["id"] == name


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/v1/models/foo", "foo"),
        ("/v1/models/M", "M"),
        ("/v1/models/m/", "m/"),
        ("/v1/models//m", "/m"),
        ("/v1/models/m%00", "m\x00"),
        ("/v1/models/%6d%2F", "m/"),
        ("/v1/models/%e6%a8", "\ufffd"),
        ("/v1/models/..%2fslots", "../slots"),
        ("/v1/models/../slots", "../slots"),
        ("/v1/models/100%", "100%"),
    ],
)
async def test_an_unknown_name_is_no_provider(
    gateway_for: GatewayFor, provider: FakeProvider, target: str, named: str
) -> None:
    gateway = await gateway_for(provider)
    message = refusal(await get(gateway, target), 404, "no_provider")
    assert message == f"No online provider serving model '{named}' for this user."


@pytest.mark.parametrize("name", ["\xff\xfe", "a\xc3\xa9", "\xed\xa0\x80"])
async def test_a_name_that_is_not_percent_encoded_is_a_wrong_request(
    gateway_for: GatewayFor, provider: FakeProvider, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    gateway = await gateway_for(provider)
    refusal(await get(gateway, f"/v1/models/{name}"), 400, "invalid_request", malformed=True)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_query_changes_nothing(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    for target in ("/v1/models?limit=1", "/v1/models?", "/v1/models/?x"):
        assert [entry["id"] for entry in (await get(gateway, target)).json["data"]] == ["m"]
    assert (await get(gateway, "/v1/models/m?x=/y")).json["id"] == "m"


async def test_head_answers_with_the_head_of_get(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    for target in ("/v1/models", "/v1/models/m", "/v1/models/foo"):
        got, asked = await get(gateway, target), await get(gateway, target, "HEAD")
        assert (asked.status, asked.header("content-length")) == (got.status, str(len(got.body)))


async def test_a_provider_that_goes_offline_vanishes_and_comes_back_by_itself(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    here = await provider_for("here", models=["m", "here"])
    gone = await provider_for("gone", models=["m", "gone"])
    gateway = await gateway_for(gone, here, health={"interval": "20ms", "timeout": "1s"})

    async def owners() -> dict[str, str]:
        return {entry["id"]: entry["owned_by"] for entry in await listed(gateway)}

    everything = {"gone": "gone", "here": "here", "m": "gone"}
    assert await owners() == everything
    await gone.refuse()

    async def vanished() -> bool:
        return await owners() == {"here": "here", "m": "here"}

    async def back() -> bool:
        return await owners() == everything

    await eventually(vanished)
    refusal(await get(gateway, "/v1/models/gone"), 404, "no_provider")
    refusal(await ask(gateway.port, asking("/v1/completions", {"model": "gone"})), 404, "no_provider")
    await gone.come_back()
    await eventually(back)


@pytest.mark.parametrize(
    "script",
    [
        error(500),
        error(401),
        loading(),
        answer(200, b"<!DOCTYPE html><title>Open WebUI</title>"),
        answer(200, {"models": []}),
        answer(200, {"data": [{"name": "m"}]}),
        answer(200, b"null"),
        answer(204),
    ],
)
async def test_what_does_not_answer_like_an_llm_server_serves_nothing(
    gateway_for: GatewayFor, provider: FakeProvider, script: Any
) -> None:
    provider.on["/v1/models"] = script
    assert await listed(await gateway_for(provider)) == []


async def test_models_named_in_the_config_are_what_is_served(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", models=["told"])
    provider.settings["models"] = ["configured"]
    gateway = await gateway_for(provider)
    assert [entry["id"] for entry in await listed(gateway)] == ["configured"]
    refusal(await ask(gateway.port, asking("/v1/completions", {"model": "told"})), 404, "no_provider")
    answered = await ask(gateway.port, asking("/v1/completions", {"model": "configured"}))
    assert answered.status == 200
