"""A provider that redirects has failed: nobody follows, no client is sent away, and the remedy is told."""

from __future__ import annotations

import pytest

from llmgateway.fleet.provider import State
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider, redirect
from tests.raw_client import RawClient, Response, chat
from tests.script import answer

PATH = "/v1/chat/completions"


async def ask(port: int) -> Response:
    async with RawClient(port) as client:
        await client.send(chat())
        return await client.response()


def told(response: Response) -> str:
    assert (response.status, response.header("x-gateway-error")) == (502, "upstream_error")
    assert response.header("location") is None
    message: str = response.json["error"]["message"]
    return message


WHERE = {
    "to https": ("https://llm.example/v1{path}", "write https://llm.example/v1 as its `url` in the config"),
    "to another path": ("/llm/v1{path}", "write {origin}/llm/v1 as its `url` in the config"),
    "with a slash": ("/v1{path}/", "that is the same place; what stands in front of it"),
    "to a page": (
        "/login?next=secret",
        "({status}) to {origin}/login; write the URL of its API itself",
    ),
    "with a password": ("https://u:secret@llm.example/v1{path}", "write https://llm.example/v1 as its `url`"),
    "to nowhere": ("", "same place"),
    "to nonsense": ("http://[", "without saying where to"),
}


@pytest.mark.parametrize("status", [301, 308])
@pytest.mark.parametrize(("location", "words"), WHERE.values(), ids=WHERE.keys())
async def test_a_redirect_is_a_502_that_tells_its_target_and_the_remedy(
    provider: FakeProvider, gateway_for: GatewayFor, status: int, location: str, words: str
) -> None:
    location = location.replace("{path}", "/chat/completions")
    provider.script = answer(status, b"", {"Location": location})
    gateway = await gateway_for(provider)
    message = told(await ask(gateway.port))
    assert words.format(origin=provider.url.removesuffix("/v1"), status=status) in message
    assert "secret" not in message
    assert len(provider.calls) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_so_is_one_that_leads_nowhere(
    provider: FakeProvider, gateway_for: GatewayFor, status: int
) -> None:
    provider.script = answer(status)
    gateway = await gateway_for(provider)
    assert f"redirects ({status}) without saying where to" in told(await ask(gateway.port))


async def test_another_provider_answers_instead(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = redirect("https://llm.example" + PATH)
    users = {"alice": {"keys": ["sk-alice-0123456789abcdefghijklmnopqrstuvwxyz"], "route": "prefer_own"}}
    gateway = await gateway_for(rig, other, users=users)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (200, "other")
    assert len(rig.calls) == len(other.calls) == 1


@pytest.mark.parametrize("models", [None, ["m"]])
async def test_the_probe_finds_it_before_anybody_asks(
    provider_for: ProviderFor, gateway_for: GatewayFor, models: list[str] | None
) -> None:
    provider = await provider_for(key="sk-rig")
    settings = {"url": provider.url, "api_key": "sk-rig", **({"models": models} if models else {})}
    provider.on["/v1/models"] = redirect("https://llm.example/v1/models")
    gateway = await gateway_for(providers={"rig": settings})
    rig = gateway.fleet.providers["rig"]
    assert rig.state is State.MISCONFIGURED
    assert "redirects (307) to https://llm.example/v1/models; write https://llm.example/v1 as" in rig.reason


async def test_where_models_are_configured_another_page_in_place_of_the_list_is_no_fault(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for()
    provider.on["/v1/models"] = redirect("/docs")
    gateway = await gateway_for(providers={"rig": {"url": provider.url, "models": ["m"]}})
    assert gateway.fleet.providers["rig"].online
    assert (await ask(gateway.port)).status == 200
