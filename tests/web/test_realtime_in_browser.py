"""A WebSocket as a page in a real browser opens it, with its key as a subprotocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page

from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_accounting import booked
from tests.web.test_page_in_browser import page
from tests.websocket import PATH, echo, say, session

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

__all__ = ["page"]

OPEN = """([url, protocols]) => {
    const seen = window.seen = {said: [], closed: null, protocol: null};
    const socket = window.socket = new WebSocket(url, protocols);
    return new Promise((resolve) => {
        socket.onopen = () => { seen.protocol = socket.protocol; };
        socket.onmessage = ({data}) => { seen.said.push(data); if (data === "ready") resolve("open"); };
        socket.onclose = ({code, reason, wasClean}) => {
            seen.closed = [code, reason, wasClean]; resolve("closed");
        };
    });
}"""
SAID = "(wanted) => window.seen.said.includes(wanted)"
CLOSED = "() => window.seen.closed"


async def opened(page: Page, gateway: Gateway, *protocols: str) -> Any:
    """Open a WebSocket from a page that is no page of the gateway's."""
    url = f"{gateway.url.replace('http', 'ws', 1)}{PATH}?model=m"
    return await page.evaluate(OPEN, [url, list(protocols)])


@pytest.mark.parametrize("chosen", ["realtime", None])
async def test_a_page_talks_and_is_told_when_the_gateway_stops(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page, chosen: str | None
) -> None:
    secret = f"openai-insecure-api-key.{KEY}"
    granted = {"Sec-WebSocket-Protocol": chosen} if chosen else {}
    provider.on[PATH] = session(say("ready"), echo(), headers=granted)
    gateway = await gateway_for(provider)
    assert await opened(page, gateway, "realtime", secret, "openai-beta.realtime-v1") == "open"
    assert await page.evaluate("() => window.seen.protocol") == (chosen or secret)
    for said in ("hello", "ü" * 50_000):
        await page.evaluate("(words) => window.socket.send(words)", said)
        await page.wait_for_function(SAID, arg=said)
    draining = asyncio.ensure_future(gateway.drain())
    await page.wait_for_function(CLOSED)
    assert await page.evaluate(CLOSED) == [1001, "The gateway is shutting down.", True]
    assert await draining
    assert (await booked(gateway))["outcome"] == "draining"


async def test_a_page_with_a_wrong_key_or_none_gets_no_session(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    users = {"alice": {"keys": [KEY]}, "box": {"from": ["127.0.0.0/8"]}}
    gateway = await gateway_for(provider, users=users)
    for protocols in (("realtime", "openai-insecure-api-key.sk-wrong"), ("realtime",), ()):
        assert await opened(page, gateway, *protocols) == "closed"
        assert (await page.evaluate(CLOSED))[0] == 1006
    assert not [probe for probe in provider.probes if probe.target.startswith(PATH)]
