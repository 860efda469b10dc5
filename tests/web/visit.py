"""A house with two people in it, and what their browsers send to the gateway's own page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llmgateway.service.gateway import Gateway
from tests.journey import KEY
from tests.journeys.test_errors import ask
from tests.raw_client import RawClient, Response, request

BOB = "sk-bob-" + "b" * 40
EXPIRED = "sk-expired-" + "e" * 40
HOUSE: dict[str, Any] = {
    "alice": {"admin": True, "keys": [{"name": "laptop", "key": KEY}]},
    "bob": {
        "keys": [{"name": "phone", "key": BOB}, {"key": EXPIRED, "expires": "2020-01-01"}],
        "limits": {"requests_per_minute": 50},
    },
}
FROM_PAGE = ("Origin: http://gateway", "Sec-Fetch-Site: same-origin", "Content-Type: application/json")


def signing_in(key: str = KEY, *headers: str, base: str = "") -> bytes:
    """What the page sends to sign in; `headers` in the place of what a browser adds."""
    body = json.dumps({"key": key}).encode()
    return request("POST", f"{base}/gateway/session", *(headers or FROM_PAGE), body=body, key=None)


def with_cookie(method: str, path: str, cookie: str, *headers: str, body: bytes = b"") -> bytes:
    return request(method, path, f"Cookie: theme=dark; {cookie}", *headers, body=body, key=None)


async def cookie_of(gateway: Gateway, key: str = KEY) -> str:
    """Sign in, and give the cookie as a browser would send it back."""
    response = await ask(gateway.port, signing_in(key))
    assert response.status == 204, bytes(response.body)
    return (response.header("set-cookie") or "").partition(";")[0]


async def snapshot(gateway: Gateway, key: str = KEY) -> Any:
    response = await ask(gateway.port, request("GET", "/gateway/status", key=key))
    assert response.status == 200
    return response.json


@asynccontextmanager
async def watching(
    gateway: Gateway, cookie: str, *, base: str = ""
) -> AsyncIterator[tuple[RawClient, Response]]:
    """A viewer's connection, and its stream of events, of which nothing is read yet."""
    async with RawClient(gateway.port) as client:
        await client.send(with_cookie("GET", f"{base}/gateway/events", cookie))
        response = await client.head()
        assert (response.status, response.header("content-type")) == (200, "text/event-stream")
        yield client, response
