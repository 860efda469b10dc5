"""Ollama is known by what it says of itself, and takes a model's name without the tag `latest`."""

from __future__ import annotations

import pytest

from llmgateway.servers import generic, llamacpp, ollama
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import LLAMA, QUICK, ask, ask_for, crowd, waiting
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import request
from tests.script import answer, cut, error, listing, loading, polite, stall

MODELS, VERSION, RUNNING = "/v1/models", "/api/version", "/api/ps"
CODER = "hf.co/bartowski/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M"


def as_ollama(provider: FakeProvider, *models: str) -> FakeProvider:
    """Let a provider answer as Ollama does; the owner of a model is the namespace in its name."""
    provider.on[MODELS] = listing(*({"id": model, "owned_by": "bartowski"} for model in models))
    provider.on[VERSION] = answer(200, {"version": "0.12.6"})
    provider.on[RUNNING] = answer(200, {"models": []})
    return provider


def asked(provider: FakeProvider, target: str) -> int:
    return sum(probe.target == target for probe in provider.probes)


async def probed(provider: FakeProvider, times: int = 2) -> None:
    """Wait until so many probes more have been judged."""
    seen = asked(provider, MODELS)
    await eventually(lambda: asked(provider, MODELS) > seen + times)


def kind_of(gateway: Gateway, name: str = "rig") -> object:
    return gateway.fleet.providers[name].kind


# --- which server is one ------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [[], [CODER], [CODER, "hf.co/u/other:latest"], ["alice/m:1b"]], ids=str)
async def test_ollama_is_known_whatever_it_holds(
    provider: FakeProvider, gateway_for: GatewayFor, models: list[str]
) -> None:
    gateway = await gateway_for(as_ollama(provider, *models))
    assert kind_of(gateway) is ollama.KIND
    told = gateway.fleet.providers["rig"].models
    assert {model.id: model.loaded for model in told.values()} == dict.fromkeys(models, False)


async def test_it_is_known_with_models_that_the_config_names(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["models"] = [CODER]
    gateway = await gateway_for(as_ollama(provider, CODER, "other:1b"))
    assert kind_of(gateway) is ollama.KIND


async def test_it_is_asked_once_for_each_time_that_it_is_back(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_ollama(provider, CODER), health=QUICK)
    await probed(provider, 3)
    assert asked(provider, VERSION) == 1
    assert asked(provider, RUNNING) > 3, "what only Ollama tells is asked all the time"
    await provider.refuse()
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    provider.on[VERSION] = error(404)  # another server has taken its place
    await provider.come_back()
    await eventually(lambda: kind_of(gateway) is generic.KIND)
    await probed(provider, 3)
    assert asked(provider, VERSION) == 2


async def test_one_that_another_server_replaces_between_two_probes_is_asked_again_after_a_bad_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_ollama(provider, CODER), health={**QUICK, "fall": 100})
    provider.on[MODELS] = error(500)
    await probed(provider)
    assert gateway.fleet.providers["rig"].online
    provider.on[MODELS] = listing(*LLAMA)
    await eventually(lambda: kind_of(gateway) is llamacpp.KIND)
    assert asked(provider, VERSION) == 1, "the listing tells"


async def test_a_server_that_its_listing_tells_is_not_asked(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[MODELS] = listing({"id": "m:1b", "owned_by": "library"})
    provider.on[RUNNING] = answer(200, {"models": []})
    assert kind_of(await gateway_for(provider)) is ollama.KIND
    assert not asked(provider, VERSION)


@pytest.mark.parametrize(
    "page",
    [
        error(404),
        error(401),
        error(403),
        error(500),
        loading(),
        answer(200, b"<html>"),
        answer(200, {"version": 3}),
        answer(200, {"version": "0.6.5", "deployment_id": "open-webui"}),
        answer(200, {"error": "Unexpected endpoint or method. (GET /api/version)"}),
        cut(),
    ],
)
async def test_a_server_without_that_page_is_another_and_serves(
    provider: FakeProvider, gateway_for: GatewayFor, page: Script
) -> None:
    provider.on[VERSION] = page
    gateway = await gateway_for(provider)
    assert kind_of(gateway) is generic.KIND
    assert (await ask(gateway.port)).status == 200


async def test_a_server_that_never_answers_that_page_serves_all_the_same(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[VERSION] = stall()
    gateway = await gateway_for(provider, health={"interval": "1h", "timeout": "1s"})
    assert kind_of(gateway) is generic.KIND
    assert (await ask(gateway.port)).status == 200


# --- a name without `latest` ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("hf.co/u/m", "hf.co/u/m:latest"),
        ("host:5000/u/m", "host:5000/u/m:latest"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_name_without_tag_is_the_model_tagged_latest(
    provider: FakeProvider, gateway_for: GatewayFor, name: str, full: str, stream: bool
) -> None:
    gateway = await gateway_for(as_ollama(provider, full))
    message = ask_for(name, stream=stream)
    response = await ask(gateway.port, message)
    assert response.status == 200
    assert response.header("x-gateway-model") == full
    assert provider.requests[0].body == message.partition(b"\r\n\r\n")[2], "Ollama takes the short name"
    assert (await ask(gateway.port, ask_for(full))).header("x-gateway-model") is None
    alone = await ask(gateway.port, request("GET", f"/v1/models/{name}"))
    assert (alone.status, alone.json["id"]) == (200, full)
    listed = await ask(gateway.port, request("GET", MODELS))
    assert [entry["id"] for entry in listed.json["data"]] == [full]


async def test_a_model_of_that_very_name_goes_first(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(as_ollama(provider, "m:latest", "m"))
    assert (await ask(gateway.port, ask_for("m"))).header("x-gateway-model") is None


@pytest.mark.parametrize("name", ["m:7b", "m:", "x/m", "latest", "m:latest:latest", "M"])
async def test_no_other_name_is_completed(provider: FakeProvider, gateway_for: GatewayFor, name: str) -> None:
    gateway = await gateway_for(as_ollama(provider, "m:latest", "m:1b"))
    assert (await ask(gateway.port, ask_for(name))).status == 404


async def test_only_ollama_takes_a_short_name(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.on[MODELS] = listing("m:latest")
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, ask_for("m"))).status == 404
    assert (await ask(gateway.port, request("GET", "/v1/models/m"))).status == 404


async def test_a_model_of_one_name_on_llama_cpp_and_ollama_is_one_pool(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, box = await provider_for("rig", slots=1), as_ollama(await provider_for("box", slots=1), "m:latest")
    gateway = await gateway_for(box, rig)
    for _ in range(3):
        first = await ask(gateway.port, ask_for("m"))
        assert first.header("x-gateway-provider") == "rig", "it lists the model by this very name"
    rig.script = stall()
    async with crowd(gateway.port) as send:
        await send(ask_for("m"))
        await rig.next_call()
        second = await ask(gateway.port, ask_for("m"))
        assert (second.header("x-gateway-provider"), second.header("x-gateway-model")) == ("box", "m:latest")
    await rig.refuse()
    assert (await ask(gateway.port, ask_for("m"))).header("x-gateway-provider") == "box"


async def test_a_short_name_is_waited_for_and_counted_in_the_queue(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    box = as_ollama(await provider_for("box", slots=1), "m:latest")
    box.once(stall())
    gateway = await gateway_for(box)
    async with crowd(gateway.port) as send:
        first = await send(ask_for("m"))
        await box.next_call()
        second = await send(ask_for("m"))
        await waiting(gateway, 1)
        metrics = await ask(gateway.port, request("GET", "/metrics"))
        assert b'gateway_queue_depth{model="m"} 1.0' in metrics.body
        first.leave()
        assert (await second.response()).status == 200
    metrics = await ask(gateway.port, request("GET", "/metrics"))
    assert b'model="m",outcome="ok"' in metrics.body, "it is a name that a server is known by"


@pytest.mark.parametrize(
    ("allowed", "name", "status"),
    [
        (["m:latest"], "m", 200),
        (["m:latest"], "m:latest", 200),
        (["m"], "m", 200),
        (["other*"], "m", 403),
        (["m:1b"], "m", 403),
    ],
)
async def test_a_key_that_is_good_for_either_name_is_good_for_the_short_one(
    provider: FakeProvider, gateway_for: GatewayFor, allowed: list[str], name: str, status: int
) -> None:
    users = {"alice": {"keys": [{"name": "k", "key": KEY, "models": allowed}]}}
    gateway = await gateway_for(as_ollama(provider, "m:latest", "m:1b"), users=users)
    assert (await ask(gateway.port, ask_for(name))).status == status


async def test_a_key_for_the_full_name_opens_no_other_servers_short_one(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, box = await provider_for("rig"), as_ollama(await provider_for("box"), "m:latest")
    users = {"alice": {"keys": [{"name": "k", "key": KEY, "models": ["m:latest"]}]}}
    gateway = await gateway_for(rig, box, users=users)
    for _ in range(4):
        assert (await ask(gateway.port, ask_for("m"))).header("x-gateway-provider") == "box"


async def test_what_a_model_did_well_by_its_short_name_is_remembered_of_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    one, two = [as_ollama(await provider_for(name), "m:latest") for name in ("one", "two")]
    users = {"alice": {"keys": [{"name": "k", "key": KEY, "models": ["m:latest"]}]}}
    gateway = await gateway_for(one, two, users=users)
    one.script = error(500)
    for word in map(str, range(8)):  # each a conversation of its own, of which every provider gets its share
        said = [{"role": "user", "content": word}]
        assert (await ask(gateway.port, ask_for("m", messages=said))).status == 200
    assert not gateway.fleet.providers["one"].conduct.spotless
    one.script = polite()
    await two.refuse()
    assert (await ask(gateway.port, ask_for("m"))).header("x-gateway-provider") == "one"
    assert gateway.fleet.providers["one"].conduct.spotless


async def test_a_hostile_name_breaks_no_header(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    name = "m\r\nx-evil: 1/m"
    gateway = await gateway_for(as_ollama(provider, f"{name}:latest"))
    response = await ask(gateway.port, ask_for(name))
    assert response.status == 200
    assert response.header("x-evil") is None and response.header("x-gateway-model") is None
