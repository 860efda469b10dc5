"""Gateways that are providers of each other: a hop marker ends every circle, no model lives by hearsay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.provider import State
from llmgateway.http.via import MOST_HOPS, hops
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.raw_client import RawClient, Response, chat, request

QUICK = {"interval": "100ms", "timeout": "10m", "fall": 1}
LIST = request("GET", "/v1/models")


async def ask(port: int, message: bytes | None = None) -> Response:
    async with RawClient(port) as client:
        await client.send(message or chat())
        return await client.response()


async def listed(gateway: Gateway) -> list[str]:
    return [model["id"] for model in (await ask(gateway.port, LIST)).json["data"]]


def entry(gateway: Gateway, **more: Any) -> dict[str, Any]:
    return {"url": f"http://127.0.0.1:{gateway.port}", "api_key": KEY, **more}


async def ring(gateway_for: GatewayFor, length: int, server: FakeProvider, **more: Any) -> list[Gateway]:
    """Gateways each of which has the next as a provider, the last one the first, which has a server too."""
    gateways = [await gateway_for(health=QUICK) for _ in range(length)]
    for position, gateway in enumerate(gateways):
        follower = gateways[(position + 1) % length]
        own = [server] if position == 0 else []
        providers = {"next": entry(follower, **more)}
        gateway.adopt(build(settings(*own, providers=providers, health=QUICK)))
    return gateways


async def all_list(gateways: Sequence[Gateway], models: list[str]) -> bool:
    return all([await listed(gateway) == models for gateway in gateways])


@pytest.mark.parametrize("length", [2, 3])
async def test_in_a_ring_everybody_has_the_model_until_its_server_stops(
    provider: FakeProvider, gateway_for: GatewayFor, length: int
) -> None:
    gateways = await ring(gateway_for, length, provider)
    await eventually(lambda: all_list(gateways, ["m"]))
    for gateway in gateways:
        assert (await ask(gateway.port)).status == 200
    await provider.refuse()
    await eventually(lambda: all_list(gateways, []), saying="a model outlives its server")
    for gateway in gateways:
        assert (await ask(gateway.port)).status == 404
    await provider.come_back()
    await eventually(lambda: all_list(gateways, ["m"]))


async def test_a_mesh_forgets_as_well(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateways = [await gateway_for(health=QUICK) for _ in range(3)]
    for gateway in gateways:
        own = [provider] if gateway is gateways[0] else []
        others = {f"g{n}": entry(other) for n, other in enumerate(gateways) if other is not gateway}
        gateway.adopt(build(settings(*own, providers=others, health=QUICK)))
    await eventually(lambda: all_list(gateways, ["m"]))
    await provider.refuse()
    await eventually(lambda: all_list(gateways, []))


async def test_an_alias_lives_in_a_ring_as_long_as_what_it_stands_for(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    first, second = [await gateway_for(health=QUICK) for _ in range(2)]
    for gateway, own, other in ((first, [provider], second), (second, [], first)):
        providers = {"next": entry(other)}
        gateway.adopt(build(settings(*own, providers=providers, health=QUICK, aliases={"gpt": "m"})))
    await eventually(lambda: all_list([first, second], ["gpt", "m"]))
    for gateway in (first, second):
        assert (await ask(gateway.port, chat(b'{"model": "gpt", "messages": []}'))).status == 200
    assert [asked.json["model"] for asked in provider.requests] == ["m", "m"]
    await provider.refuse()
    await eventually(lambda: all_list([first, second], []), saying="an alias outlives its model")
    for gateway in (first, second):
        assert (await ask(gateway.port, chat(b'{"model": "gpt", "messages": []}'))).status == 404


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_a_request_that_comes_back_is_508(
    provider: FakeProvider, gateway_for: GatewayFor, length: int
) -> None:
    gateways = await ring(gateway_for, length, provider, models=["lost"])
    lost = chat(b'{"model": "lost", "messages": []}')
    first = gateways[0]
    if length == 1:  # its probe tells, before anybody asks
        await eventually(lambda: first.fleet.providers["next"].state is State.MISCONFIGURED)
        assert (await ask(first.port, lost)).status == 404
        return
    await eventually(lambda: all(gateway.fleet.providers["next"].online for gateway in gateways))
    for _ in range(7):  # also when it happens again and again: nobody is to blame for it
        response = await ask(first.port, lost)
        assert (response.status, response.header("x-gateway-error")) == (508, "loop_detected")
        assert response.json["error"]["type"] == "loop_detected"
    assert first.fleet.providers["next"].online


async def test_a_gateway_that_names_itself_is_told_so(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(health=QUICK)
    itself = {"itself": entry(gateway)}
    gateway.adopt(build(settings(provider, providers=itself, health=QUICK)))
    known = gateway.fleet.providers
    await eventually(lambda: known["itself"].state is State.MISCONFIGURED and known["rig"].online)
    assert "the gateway itself" in gateway.fleet.providers["itself"].reason
    await provider.refuse()
    await eventually(lambda: all_list([gateway], []))


async def test_without_a_key_it_is_told_so_too(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(health=QUICK)
    itself = {"itself": {"url": f"http://127.0.0.1:{gateway.port}/v1"}}
    gateway.adopt(build(settings(providers=itself, health=QUICK)))
    await eventually(lambda: "the gateway itself" in gateway.fleet.providers["itself"].reason)


async def test_the_way_of_a_request_goes_on_with_it(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, chat(None, "Via: 1.0 fred, 1.1 nginx (x, y)"))).status == 200
    name = gateway.condition.name
    came = [value for field, value in provider.requests[0].headers if field.lower() == "via"]
    assert came == ["1.0 fred, 1.1 nginx (x, y)", f"1.1 {name}"]
    assert all(probe.header("via") == f"1.1 {name}" for probe in provider.probes)


def passed(count: int) -> str:
    return "Via: " + ", ".join(f"1.1 llmgateway-{number:016x}" for number in range(count))


@pytest.mark.parametrize(("count", "status"), [(MOST_HOPS, 200), (MOST_HOPS + 1, 508)])
async def test_so_many_gateways_may_pass_a_request_on_and_no_more(
    provider: FakeProvider, gateway_for: GatewayFor, count: int, status: int
) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, chat(None, passed(count)))).status == status
    assert len(provider.calls) == (status == 200)


async def test_a_loop_is_told_in_the_callers_api(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    message = request("POST", "/v1/messages", f"Via: 1.1 {gateway.condition.name}", body=b'{"model": "m"}')
    response = await ask(gateway.port, message)
    assert (response.status, response.json["type"]) == (508, "error")


async def test_only_another_gateway_is_told_the_way_to_a_model(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    near = await gateway_for(provider, health=QUICK)
    far = await gateway_for(providers={"near": entry(near)}, health=QUICK)
    assert "via" not in (await ask(far.port, LIST)).body.decode()
    told = (await ask(far.port, request("GET", "/v1/models", passed(1)))).json
    assert (told["via"], told["data"][0]["via"]) == (far.condition.name, [near.condition.name])
    asked_by_near = request("GET", "/v1/models", f"Via: 1.1 {near.condition.name}")
    assert (await ask(far.port, asked_by_near)).json["data"] == []


async def test_gateways_that_start_together_do_not_wait_for_each_other(provider_for: ProviderFor) -> None:
    hung = await provider_for("hung", models=["other"])
    gate = asyncio.Event()

    async def wait(_: object) -> None:
        await gate.wait()

    hung.on["/v1/models"] = wait
    health = {"interval": "1h", "timeout": "1h"}
    async with Gateway(build(settings(hung, health=health))) as gateway:
        async with asyncio.timeout(HANG_S):
            assert (await ask(gateway.port, request("GET", "/v1/models", passed(1)))).status == 200
        gate.set()


@pytest.mark.parametrize(
    ("via", "expected"),
    [
        (b"", ()),
        (b"1.1 fred", ()),
        (b"1.1 llmgateway-0123456789abcdef", ("llmgateway-0123456789abcdef",)),
        (b"HTTP/1.1 llmgateway-0123456789abcdef (x),1.0 y", ("llmgateway-0123456789abcdef",)),
        (b"1.1 llmgateway-0123456789abcdef0, 1.1 xllmgateway-0123456789abcdef", ()),
    ],
)
def test_a_via_is_read(via: bytes, expected: tuple[str, ...]) -> None:
    assert hops(via) == expected
