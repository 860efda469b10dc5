"""Who may call, with what, and what they can see: of what is not theirs nobody learns even that it exists."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from llmgateway.access.tries import MOST_WAITING_OF_ONE
from llmgateway.config.load import build
from llmgateway.http.headers import RequestHead
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import Ending, RawClient, chat, request

BOB, CAROL = "sk-bob-" + "b" * 40, "sk-carol-" + "c" * 40
WRONG = "sk-wrong-" + "w" * 40
HASHED, EXPIRED, LASTING = "sk-hashed-" + "h" * 40, "sk-expired-" + "e" * 40, "sk-lasting-" + "l" * 40
GLOBBED = "sk-globbed-" + "g" * 40


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    keys = [
        KEY,
        "sha256:" + hashlib.sha256(HASHED.encode()).hexdigest(),
        {"key": EXPIRED, "expires": "2020-01-01"},
        {"key": LASTING, "expires": "2999-01-01"},
        {"key": GLOBBED, "models": ["other", "qwen3-*", "org/*"]},
    ]
    return await gateway_for(provider, users={"alice": {"keys": keys}})


# Keys.


@pytest.mark.parametrize(
    "headers",
    [
        [bearer(KEY)],
        [f"authorization: bearer {KEY}"],
        [f"AUTHORIZATION: BEARER {KEY}"],
        [f"Authorization: bEaReR   {KEY}  "],
        [f"x-api-key: {KEY}"],
        [f"X-API-KEY: {KEY}"],
        [bearer(KEY), f"x-api-key: {KEY}"],
        [bearer(WRONG), f"x-api-key: {KEY}"],
        [bearer(KEY), f"x-api-key: {WRONG}"],
        [bearer(EXPIRED), f"x-api-key: {KEY}"],
        ["Authorization: Basic YWxpY2U6cHc=", f"x-api-key: {KEY}"],
        [bearer(HASHED)],
        [f"x-api-key: {HASHED}"],
        [bearer(LASTING)],
    ],
)
async def test_a_good_key_opens_in_every_spelling(
    gateway: Gateway, provider: FakeProvider, headers: list[str]
) -> None:
    for path in (OPENAI, ANTHROPIC):
        assert (await ask(gateway.port, asking(path, None, None, *headers))).status == 200
    response = await ask(gateway.port, request("GET", "/v1/models", *headers, key=None))
    assert [entry["id"] for entry in response.json["data"]] == ["m"]
    for sent in provider.requests:
        assert sent.header("authorization") is None and sent.header("x-api-key") is None


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ([], "No API key"),
        (["Authorization: "], "No API key"),
        (["Authorization: Bearer"], "No API key"),
        (["Authorization: Bearer  "], "No API key"),
        (["x-api-key: "], "No API key"),
        ([f"Authorization: {KEY}"], "No API key"),
        ([f"Authorization: Basic {KEY}"], "No API key"),
        ([f"X-Authorization: Bearer {KEY}"], "No API key"),
        ([bearer(WRONG)], "Invalid"),
        ([f"x-api-key: {WRONG}"], "Invalid"),
        ([bearer(KEY[:-1])], "Invalid"),
        ([bearer(KEY + "x")], "Invalid"),
        ([bearer(KEY.upper())], "Invalid"),
        ([bearer(KEY + "\xff")], "Invalid"),
        ([bearer("sha256:" + hashlib.sha256(HASHED.encode()).hexdigest())], "Invalid"),
        ([bearer(hashlib.sha256(HASHED.encode()).hexdigest())], "Invalid"),
        ([bearer("*")], "Invalid"),
        ([bearer(f"{WRONG}, Bearer {KEY}")], "Invalid"),
        ([bearer(EXPIRED)], "expired"),
        ([f"x-api-key: {EXPIRED}"], "expired"),
    ],
)
async def test_anything_else_is_401_wherever_a_key_is_wanted(
    gateway: Gateway, provider: FakeProvider, headers: list[str], named: str
) -> None:
    for path, message in (
        (OPENAI, asking(OPENAI, None, None, *headers)),
        (ANTHROPIC, asking(ANTHROPIC, None, None, *headers)),
        ("/v1/models", request("GET", "/v1/models", *headers, key=None)),
        ("/v1/models/m", request("GET", "/v1/models/m", *headers, key=None)),
    ):
        response = await ask(gateway.port, message)
        assert named in refusal(response, 401, "invalid_api_key", path)
        assert response.header("www-authenticate") == "Bearer"
    assert not provider.calls


async def test_a_key_in_the_query_is_not_a_key(gateway: Gateway) -> None:
    response = await ask(gateway.port, request("GET", f"/v1/models?key={KEY}&api_key={KEY}", key=None))
    refusal(response, 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("other", 404),
        ("qwen3-8b", 404),
        ("org/llama", 404),
        ("m", 403),
        ("Other", 403),
        ("other2", 403),
        ("qwen3", 403),
        ("xqwen3-8b", 403),
        ("nobody-has-this", 403),
        ("other\n", 403),
    ],
)
async def test_the_models_of_a_key_are_looked_at_before_the_providers(
    gateway: Gateway, model: str, status: int
) -> None:
    response = await ask(gateway.port, asking(OPENAI, {"model": model}, GLOBBED))
    refusal(response, status, "no_provider" if status == 404 else "model_not_allowed")


async def test_a_key_lists_only_the_models_that_it_is_good_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["m", "qwen3-8b", "org/a"])
    users = {"alice": {"keys": [KEY, {"key": GLOBBED, "models": ["qwen3-*", "org/*"]}]}}
    gateway = await gateway_for(rig, users=users)
    response = await ask(gateway.port, request("GET", "/v1/models", key=GLOBBED))
    assert [entry["id"] for entry in response.json["data"]] == ["org/a", "qwen3-8b"]
    refusal(await ask(gateway.port, request("GET", "/v1/models/m", key=GLOBBED)), 404, "no_provider")
    assert (await ask(gateway.port, request("GET", "/v1/models/org/a", key=GLOBBED))).status == 200


# A connection is not the key that was used on it.


async def test_each_request_on_a_connection_is_who_its_own_key_says(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    users = {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB]}}
    gateway = await gateway_for(provider, users=users)
    async with RawClient(gateway.port) as client:
        for key in (KEY, BOB, BOB, WRONG, KEY, WRONG):
            await client.send(chat(key=key))
            assert (await client.response()).status == (401 if key == WRONG else 200)
    gateway.ledger.book()
    users_seen = [line["user"] for line in gateway.ledger.recent]
    assert users_seen == ["alice", "bob", "bob", None, "alice", None]


async def test_a_key_that_is_taken_away_is_good_no_longer_on_a_kept_connection(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for _ in range(2):
            await client.send(chat())
            assert (await client.response()).status == 200
        gateway.adopt(build(settings(provider, users={"alice": {"keys": [BOB]}})))
        await client.send(chat())
        assert (await client.response()).status == 401


async def test_a_key_that_expires_is_good_no_longer_on_a_kept_connection(
    gateway_for: GatewayFor, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {"alice": {"keys": [{"key": LASTING, "expires": "2999-01-01"}]}}
    gateway = await gateway_for(provider, users=users)
    async with RawClient(gateway.port) as client:
        await client.send(chat(key=LASTING))
        assert (await client.response()).status == 200
        monkeypatch.setattr(time, "time", lambda: 40_000_000_000.0)
        await client.send(chat(key=LASTING))
        assert (await client.response()).status == 401


async def test_whose_key_it_was_is_forgotten_with_the_connection(gateway: Gateway) -> None:
    async with RawClient(gateway.port) as client:
        await client.send(chat(None, "X-Mark: of this test"))
        assert (await client.response()).status == 200
        assert _whose_heads_are_held() == {"alice"}
    await eventually(lambda: not _whose_heads_are_held())


def _whose_heads_are_held() -> set[str]:
    gc.collect()
    heads = (each for each in gc.get_objects() if isinstance(each, RequestHead))
    return {head.sender[1].user for head in heads if b"x-mark" in head.named}


# A key is checked before the body is read.


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_bad_key_is_refused_before_the_body_is_sent_and_the_connection_ends(
    gateway: Gateway, path: str
) -> None:
    head = request("POST", path, "Expect: 100-continue", "Content-Length: 99000000", key=WRONG)
    async with RawClient(gateway.port) as client:
        await client.send(head)
        response = await client.response()
        refusal(response, 401, "invalid_api_key", path)
        assert response.interim == []
        assert await client.closed() is Ending.CUT


async def test_a_bad_key_is_refused_while_the_body_is_on_its_way(gateway: Gateway) -> None:
    head = request("POST", OPENAI, "Content-Length: 99000000", key=WRONG)
    async with RawClient(gateway.port) as client:
        await client.send(head, b"x" * 1000)
        response = await client.response()
        refusal(response, 401, "invalid_api_key")
        assert response.header("connection") == "close"


async def test_a_good_key_is_asked_for_the_body_and_then_answered(
    gateway: Gateway, provider: FakeProvider
) -> None:
    head, _, body = chat(None, "Expect: 100-continue").partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head + b"\r\n\r\n")
    async with asyncio.timeout(HANG_S):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert not provider.calls
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
    assert provider.requests[0].body == body
    assert provider.requests[0].header("expect") is None


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/models", b""),
        ("POST", OPENAI, b'{"model": "m"}'),
        ("GET", "/gateway/status", b""),
        ("POST", "/gateway/session", b'{"key": "sk-none"}'),
    ],
)
async def test_who_was_refused_again_and_again_waits_and_a_good_key_from_there_does_not(
    gateway: Gateway, method: str, target: str, body: bytes
) -> None:
    tries = gateway._visitors.tries
    for _ in range(100):
        tries.refuse("127.0.0.1", now=asyncio.get_running_loop().time())
    async with RawClient(gateway.port) as wrong:
        await wrong.send(
            request(method, target, "Content-Type: application/json", bearer(WRONG), body=body, key=None)
        )
        answer = asyncio.create_task(wrong.response())
        await eventually(lambda: tries._waiting)
        assert (await ask(gateway.port, chat())).status == 200
        assert not answer.done()
        answer.cancel()
    await eventually(lambda: not tries._waiting)


async def test_of_those_who_would_wait_too_many_are_refused_at_once_and_sent_away(gateway: Gateway) -> None:
    tries = gateway._visitors.tries
    for _ in range(100):
        tries.refuse("127.0.0.1", now=asyncio.get_running_loop().time())
    async with AsyncExitStack() as stack:
        for _ in range(MOST_WAITING_OF_ONE):
            stack.enter_context(tries.waiting("127.0.0.1"))
        response = await ask(gateway.port, request("GET", "/v1/models", bearer(WRONG), key=None))
        assert (response.status, response.header("connection")) == (401, "close")


async def test_behind_a_trusted_proxy_only_those_wait_who_were_refused(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, server={"trusted_proxies": ["127.0.0.1"]})
    for _ in range(100):
        gateway._visitors.tries.refuse("192.0.2.1", now=asyncio.get_running_loop().time())
    refused = request("GET", "/v1/models", bearer(WRONG), "X-Forwarded-For: 192.0.2.2", key=None)
    assert (await ask(gateway.port, refused)).status == 401
    assert gateway._visitors.tries._refused.keys() == {"192.0.2.1", "192.0.2.2"}


async def test_who_sends_the_body_without_waiting_for_the_100_is_answered_all_the_same(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with RawClient(gateway.port) as client:
        for _ in range(2):
            await client.send(chat(None, "Expect: 100-continue"))
            response = await client.response()
            assert response.status == 200
            assert response.interim in ([], [100])


# Visibility.


@pytest.fixture
async def house(provider_for: ProviderFor, gateway_for: GatewayFor) -> AsyncIterator[Gateway]:
    """Alice, bob (both in `family`) and carol, and one provider for every way to share."""
    ways: dict[str, dict[str, Any]] = {
        "alices-own": {"owner": "alice"},
        "for-bob": {"owner": "alice", "share": ["bob"]},
        "for-family": {"owner": "bob", "share": ["family"]},
        "for-all": {"owner": "carol", "share": ["everyone"]},
        "nobodys": {},
        "carols-own": {"owner": "carol"},
    }
    providers = [
        await provider_for(name, models=[f"model-{name}", "common"], **way) for name, way in ways.items()
    ]
    yield await gateway_for(
        *providers,
        users={"alice": {"keys": [KEY]}, "bob": {"keys": [BOB]}, "carol": {"keys": [CAROL]}},
        groups={"family": ["alice", "bob"]},
    )


VISIBLE = {
    KEY: {"alices-own", "for-bob", "for-family", "for-all", "nobodys"},
    BOB: {"for-bob", "for-family", "for-all", "nobodys"},
    CAROL: {"for-all", "nobodys", "carols-own"},
}
EVERY = {"alices-own", "for-bob", "for-family", "for-all", "nobodys", "carols-own"}


@pytest.mark.parametrize("key", VISIBLE)
async def test_everybody_sees_their_own_what_is_shared_with_them_and_what_is_nobodys(
    house: Gateway, key: str
) -> None:
    response = await ask(house.port, request("GET", "/v1/models", key=key))
    assert {entry["id"] for entry in response.json["data"]} - {"common"} == {
        f"model-{name}" for name in VISIBLE[key]
    }
    for name in VISIBLE[key]:
        answered = await ask(house.port, asking(OPENAI, {"model": f"model-{name}"}, key))
        assert (answered.status, answered.header("x-gateway-provider")) == (200, name)
        retrieved = await ask(house.port, request("GET", f"/v1/models/model-{name}", key=key))
        assert retrieved.json["owned_by"] == name


def asked_of(model: str, key: str) -> list[bytes]:
    """Every way to ask about a model."""
    return [
        request("GET", f"/v1/models/{model}", "x-request-id: same", key=key),
        asking(OPENAI, {"model": model}, key, "x-request-id: same"),
        asking(ANTHROPIC, {"model": model}, key, "x-request-id: same"),
    ]


@pytest.mark.parametrize("key", VISIBLE)
async def test_what_is_not_theirs_is_like_what_does_not_exist(house: Gateway, key: str) -> None:
    for name in EVERY - VISIBLE[key]:
        hidden, missing = f"model-{name}", "x" * len(f"model-{name}")
        for about_hidden, about_missing in zip(asked_of(hidden, key), asked_of(missing, key), strict=True):
            there = await ask(house.port, about_hidden)
            nowhere = await ask(house.port, about_missing)
            assert there.status == nowhere.status == 404
            assert bytes(there.body) == bytes(nowhere.body).replace(missing.encode(), hidden.encode())
            without_date = [
                [field for field in response.headers if field[0] != "Date"] for response in (there, nowhere)
            ]
            assert without_date[0] == without_date[1]


@pytest.mark.parametrize("key", VISIBLE)
async def test_a_model_that_others_serve_too_comes_only_from_providers_that_the_caller_may_use(
    house: Gateway, key: str
) -> None:
    names = {
        (await ask(house.port, asking(OPENAI, {"model": "common"}, key))).header("x-gateway-provider")
        for _ in range(60)
    }
    assert names == VISIBLE[key]
