"""Programs that cannot send a key: who they are, by the network that they come from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, ask
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.raw_client import RawClient, Response, chat, request

HERE = "127.0.0.0/8"
PROXY: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"]}
MODELS = "/v1/models"


def users(*networks: str, **more: Any) -> dict[str, Any]:
    """Bob, who has a key, and a box that has none."""
    return {"bob": {"keys": [BOB]}, "box": {"from": list(networks), **more}}


async def asking(gateway: Gateway, *headers: str, key: str | None = None) -> Response:
    return await ask(gateway.port, chat(None, *headers, key=key))


async def test_who_shows_no_key_is_the_user_of_the_network_in_every_respect(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    mine, bobs = await provider_for("mine", owner="box"), await provider_for("bobs", owner="bob")
    ours = await provider_for("ours", models=["m", "n"])
    more = {"route": "only_own", "limits": {"requests_per_minute": 3}}
    gateway = await gateway_for(mine, bobs, ours, users=users(HERE, **more))
    for _ in range(2):
        response = await asking(gateway)
        assert (response.status, response.header("x-gateway-provider")) == (200, "mine")
    listed = await ask(gateway.port, request("GET", MODELS, key=None))
    assert [entry["id"] for entry in listed.json["data"]] == ["m"]
    assert (await asking(gateway)).status == 200
    assert (await asking(gateway)).status == 429
    assert (await asking(gateway, key=BOB)).status == 200
    await eventually(lambda: len(gateway.ledger.recent) == 5)
    told = [(line["user"], line["key"]) for line in gateway.ledger.recent]
    assert told[0] == ("box", None)
    assert [user for user, _ in told] == ["box"] * 4 + ["bob"]


@pytest.mark.parametrize("header", ["Authorization: Bearer ", "Authorization: Bearer", "x-api-key:"])
async def test_an_empty_key_is_none(provider: FakeProvider, gateway_for: GatewayFor, header: str) -> None:
    gateway = await gateway_for(provider, users=users(HERE))
    assert (await asking(gateway, header)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer sk-wrong",
        "x-api-key: sk-wrong",
        "Authorization: Basic eDp5",
        "api-key: sk-wrong",
    ],
)
async def test_a_wrong_key_is_refused_wherever_it_comes_from(
    provider: FakeProvider, gateway_for: GatewayFor, header: str
) -> None:
    gateway = await gateway_for(provider, users=users(HERE))
    response = await asking(gateway, header)
    assert (response.status, response.header("x-gateway-error")) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("networks", "server", "headers", "status"),
    [
        (["10.0.0.0/8"], {}, (), 401),
        (["10.0.0.0/8", HERE], {}, (), 200),
        (["::1"], {}, (), 401),
        (["::ffff:127.0.0.0/104"], {}, (), 200),
        (["10.0.0.0/8"], PROXY, ("X-Forwarded-For: 10.1.2.3",), 200),
        (["10.0.0.0/8"], PROXY, ("X-Forwarded-For: 10.1.2.3, 203.0.113.7",), 401),
        (["10.0.0.0/8"], PROXY, ("X-Forwarded-For: 203.0.113.7, 10.1.2.3",), 200),
        (["10.0.0.0/8"], {}, ("X-Forwarded-For: 10.1.2.3",), 401),
        ([HERE], PROXY, ("X-Forwarded-For: 203.0.113.7",), 401),
        ([HERE], PROXY, ("X-Forwarded-For: unknown",), 401),
        ([HERE], {}, ("X-Forwarded-For: 203.0.113.7",), 401),
        (["::ffff:10.1.2.3", "2001:db8::/32"], PROXY, ("X-Forwarded-For: 2001:db8::7",), 200),
    ],
    ids=str,
)
async def test_where_somebody_is_is_what_can_be_known_of_it(
    provider: FakeProvider,
    gateway_for: GatewayFor,
    networks: list[str],
    server: dict[str, Any],
    headers: tuple[str, ...],
    status: int,
) -> None:
    gateway = await gateway_for(provider, users=users(*networks), server=server)
    assert (await asking(gateway, *headers)).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Origin: https://evil.example",), 401),
        (("Origin: null",), 401),
        (("Origin: http://gateway",), 401),  # a name that means the gateway: whose page it is nobody knows
        (("Sec-Fetch-Site: cross-site",), 401),
        (("Sec-Fetch-Site: same-site",), 401),
        (("Origin: https://chat.example.net", "Sec-Fetch-Site: cross-site"), 200),
        (("Origin: https://CHAT.example.net",), 200),
        (("Sec-Fetch-Site: none",), 200),
        (("Sec-Fetch-Mode: cors", "Accept-Language: *"), 200),  # as Node's fetch says of itself
    ],
    ids=str,
)
@pytest.mark.parametrize("cors", [["https://chat.example.net"], ["*"]], ids=["named", "all"])
async def test_a_web_page_is_somebody_only_if_the_config_names_it(
    provider: FakeProvider, gateway_for: GatewayFor, headers: tuple[str, ...], status: int, cors: list[str]
) -> None:
    gateway = await gateway_for(provider, users=users(HERE), server={"cors": cors})
    if cors == ["*"] and headers[0].startswith("Origin"):
        status = 401
    assert (await asking(gateway, *headers)).status == status


async def test_a_name_that_a_page_made_mean_this_machine_is_no_program_of_it(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users(HERE))
    message = request("GET", MODELS, key=None).replace(b"Host: gateway", b"Host: evil.example:8900")
    assert (await ask(gateway.port, message)).status == 401


@pytest.mark.parametrize("path", ["/gateway/status", "/gateway/log", "/gateway/events", "/metrics"])
async def test_the_page_and_the_metrics_want_a_key(
    provider: FakeProvider, gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for(provider, users=users(HERE, admin=True), server={"metrics_from": []})
    assert (await ask(gateway.port, request("GET", path, key=None))).status == 401


async def test_the_pages_chat_wants_a_session(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, users=users(HERE))
    headers = "Content-Type: application/json", "Sec-Fetch-Site: same-origin"
    body = json.dumps(ASK).encode()
    message = request("POST", "/gateway/chat", *headers, body=body, key=None)
    assert (await ask(gateway.port, message)).status == 401


async def test_a_change_of_the_networks_holds_on_a_connection_that_is_kept(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users(HERE))
    async with RawClient(gateway.port) as client:
        for networks, status in ((HERE, 200), ("10.0.0.0/8", 401), (HERE, 200)):
            gateway.adopt(build(settings(provider, users=users(networks))))
            await client.send(chat(key=None))
            assert (await client.response()).status == status


async def test_a_request_without_a_key_from_elsewhere_is_refused_as_ever(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users={"alice": {"keys": [KEY]}})
    response = await asking(gateway)
    assert response.status == 401
    assert response.json["error"]["message"].startswith("No API key given.")
