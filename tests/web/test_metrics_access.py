"""Who may read the metrics: the networks that the config names, and admins from anywhere."""

from __future__ import annotations

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, settings
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import Response, chat, request

BOB = "sk-bob-" + "b" * 40
USERS = {"alice": {"admin": True, "keys": [KEY]}, "bob": {"keys": [BOB]}}
ELSEWHERE = ("X-Forwarded-For: 203.0.113.7",)


async def read(gateway: Gateway, *headers: str, key: str | None = None) -> Response:
    return await ask(gateway.port, request("GET", "/metrics", *headers, key=key))


def readable(response: Response) -> bool:
    return response.status == 200 and b"gateway_requests_total" in response.body


@pytest.mark.parametrize("key", [None, BOB, KEY, "sk-wrong"])
async def test_this_machine_needs_no_key(
    gateway_for: GatewayFor, provider: FakeProvider, key: str | None
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    await ask(gateway.port, chat())
    response = await read(gateway, key=key)
    assert readable(response)
    assert response.header("cache-control") == "no-store"


@pytest.mark.parametrize(
    ("server", "headers"),
    [
        ({"trusted_proxies": ["127.0.0.1"]}, ELSEWHERE),
        ({"trusted_proxies": ["127.0.0.1"]}, ("X-Forwarded-For: 127.0.0.1, 203.0.113.7",)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("X-Forwarded-For: 127.0.0.1", *ELSEWHERE)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("X-Forwarded-For: unknown",)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("X-Forwarded-For:",)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("Forwarded: for=203.0.113.7",)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("X-Real-IP: 203.0.113.7",)),
        ({"trusted_proxies": ["127.0.0.1"]}, ("Via: 1.1 proxy",)),
        ({}, ELSEWHERE),
        ({}, ("X-Forwarded-For: 127.0.0.1",)),
        ({}, ("X-FORWARDED-FOR: ::1",)),
        ({}, ("Forwarded: for=127.0.0.1",)),
        ({}, ("X-Real-IP: 127.0.0.1",)),
        ({}, ("X-Forwarded-Proto: https",)),
        ({"metrics_from": []}, ()),
        ({"metrics_from": ["10.0.0.0/8"]}, ()),
        ({"metrics_from": ["0.0.0.0/0"]}, ("X-Forwarded-For: 127.0.0.1",)),
    ],
)
async def test_from_elsewhere_it_takes_an_admins_key(
    gateway_for: GatewayFor, provider: FakeProvider, server: dict[str, list[str]], headers: tuple[str, ...]
) -> None:
    gateway = await gateway_for(provider, users=USERS, server=server)
    await ask(gateway.port, chat())
    for key in (None, "sk-wrong"):
        response = await read(gateway, *headers, key=key)
        refusal(response, 401, "invalid_api_key")
        assert response.header("www-authenticate") == "Bearer"
    refusal(await read(gateway, *headers, key=BOB), 403, "forbidden")
    assert readable(await read(gateway, *headers, key=KEY))
    assert readable(await read(gateway, *headers, f"x-api-key: {KEY}"))


@pytest.mark.parametrize(
    "headers",
    [
        ("X-Forwarded-For: 192.168.7.9",),
        ("X-Forwarded-For: 203.0.113.7, 192.168.7.9",),
        ("X-Forwarded-For: 203.0.113.7, [::ffff:192.168.7.9]:4711",),
        ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 192.168.7.9, 127.0.0.1"),
    ],
)
async def test_a_network_that_is_named_needs_no_key_also_through_a_trusted_proxy(
    gateway_for: GatewayFor, provider: FakeProvider, headers: tuple[str, ...]
) -> None:
    server = {"trusted_proxies": ["127.0.0.1"], "metrics_from": ["192.168.7.0/24"]}
    gateway = await gateway_for(provider, users=USERS, server=server)
    await ask(gateway.port, chat())
    assert readable(await read(gateway, *headers))
    refusal(await read(gateway), 401, "invalid_api_key")


async def test_who_may_read_can_change_while_the_gateway_runs(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    assert (await read(gateway)).status == 200
    gateway.adopt(build(settings(provider, users=USERS, server={"metrics_from": []})))
    refusal(await read(gateway), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("accept", "kind", "last"),
    [
        ("", "text/plain", b"\n"),
        ("*/*", "text/plain", b"\n"),
        ("text/plain;version=0.0.4", "text/plain", b"\n"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text", b"# EOF\n"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text",
            b"# EOF\n",
        ),
        ("nonsense;;;q=x,", "text/plain", b"\n"),
    ],
)
async def test_the_scraper_gets_the_format_that_it_prefers(
    gateway_for: GatewayFor, provider: FakeProvider, accept: str, kind: str, last: bytes
) -> None:
    gateway = await gateway_for(provider)
    response = await read(gateway, f"Accept: {accept}")
    assert response.status == 200
    assert (response.header("content-type") or "").startswith(kind + ";")
    assert response.body.endswith(last)
    assert response.body.endswith(b"# EOF\n") is (kind == "application/openmetrics-text")


async def test_a_head_has_no_body_and_other_methods_are_refused(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    looked = await ask(gateway.port, request("HEAD", "/metrics", key=None), to="HEAD")
    assert (looked.status, bytes(looked.body)) == (200, b"")
    assert int(looked.header("content-length") or 0) > 0
    refusal(await ask(gateway.port, request("POST", "/metrics")), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 401),
        ("evil.example:8900", 401),
        ("127.0.0.1:8900", 200),
        ("[::1]:8900", 200),
        ("localhost", 200),
        ("rig:8900", 200),
        ("gateway.localhost", 200),
    ],
)
async def test_a_web_page_in_a_browser_on_this_machine_cannot_read_them_by_a_name_of_its_own(
    gateway_for: GatewayFor, host: str, status: int
) -> None:
    """DNS rebinding: the page's own name comes to mean 127.0.0.1, and the browser sees one origin."""
    gateway = await gateway_for()
    message = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert (await ask(gateway.port, message)).status == status
