"""The live page's server side: who may look, what they see, when they are told, and what a browser may do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from itertools import pairwise
from typing import Any

import pytest

from llmgateway.access.keys import KeyRing
from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from llmgateway.web.live import MOST_VIEWERS_OF_A_USER
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import Turns, ask_for, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import answer, done, drip, head, play, sse, stall, stream, wait, word

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
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


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


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    return await gateway_for(provider, users=HOUSE)


# Signing in.


async def test_a_key_is_exchanged_for_a_cookie_that_opens_the_page(gateway: Gateway) -> None:
    response = await ask(gateway.port, signing_in())
    assert (response.status, bytes(response.body), response.ending) == (204, b"", Ending.COMPLETE)
    assert response.header("cache-control") == "no-store"
    cookie, *rules = (response.header("set-cookie") or "").split("; ")
    assert set(rules) == {"Path=/gateway/", "Max-Age=2592000", "HttpOnly", "SameSite=Strict"}
    assert KEY not in cookie
    seen = await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))
    assert (seen.status, seen.header("cache-control")) == (200, "no-store")
    assert seen.json["viewer"] == {"user": "alice", "admin": True}


@pytest.mark.parametrize(
    ("key", "named"), [("sk-wrong", "Invalid"), ("", "Invalid"), (EXPIRED, "expired"), ("\x00", "Invalid")]
)
async def test_a_bad_key_opens_nothing(gateway: Gateway, key: str, named: str) -> None:
    response = await ask(gateway.port, signing_in(key))
    assert named in refusal(response, 401, "invalid_api_key")
    assert response.header("set-cookie") is None


async def test_spaces_around_a_pasted_key_do_no_harm(gateway: Gateway) -> None:
    assert (await ask(gateway.port, signing_in(f" {KEY}\n"))).status == 204


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'"sk"',
        b'{"key": 1}',
        b'{"key": null}',
        b'{"key": ["sk"]}',
        b'{"key": "\\ud800"}',
        b'{"key": "\xff"}',
        b"[" * 4000,
        b"key=sk",
    ],
)
async def test_what_is_not_a_key_in_json_is_400(gateway: Gateway, body: bytes) -> None:
    message = request("POST", "/gateway/session", *FROM_PAGE, body=body, key=None)
    response = await ask(gateway.port, message)
    refusal(response, 400, "invalid_request")
    assert response.header("set-cookie") is None


async def test_a_large_body_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    declared = request("POST", "/gateway/session", *FROM_PAGE, "Content-Length: 99000000", key=None)
    refusal(await ask(gateway.port, declared), 413, "request_too_large")
    opened = request("POST", "/gateway/session", *FROM_PAGE, "Transfer-Encoding: chunked", key=None)
    async with RawClient(gateway.port) as client:
        await client.send(opened + b"2000\r\n" + b"x" * 0x2000 + b"\r\n")  # and no end
        refusal(await client.response(), 413, "request_too_large")


async def test_a_key_of_another_user_begins_another_session(gateway: Gateway) -> None:
    alice, bob = await cookie_of(gateway), await cookie_of(gateway, BOB)
    for cookie, user in ((alice, "alice"), (bob, "bob")):
        seen = await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))
        assert seen.json["viewer"]["user"] == user


# What another site makes a browser send.

FOREIGN = [
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("Sec-Fetch-Site: none",),
    ("Sec-Fetch-Site: ",),
    ("Sec-Fetch-Site: cross-site", "Origin: http://gateway"),
    ("Origin: http://evil.example",),
    ("Origin: null",),
    ("Origin: ",),
    ("Origin: http://gateway.evil.example",),
    ("Origin: http://gateway:81",),
    ("Origin: http://gateway@evil.example",),
    ("Origin: http://[",),
    ("Origin: gateway",),
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_what_another_site_sends_changes_nothing(
    gateway: Gateway, provider: FakeProvider, headers: tuple[str, ...]
) -> None:
    cookie = await cookie_of(gateway)
    fields = (*headers, "Content-Type: application/json")
    response = await ask(gateway.port, signing_in(KEY, *fields))
    refusal(response, 403, "forbidden")
    assert response.header("set-cookie") is None
    refusal(
        await ask(gateway.port, with_cookie("DELETE", "/gateway/session", cookie, *fields)), 403, "forbidden"
    )
    asked = with_cookie("POST", "/gateway/chat", cookie, *fields, body=json.dumps(ASK).encode())
    refusal(await ask(gateway.port, asked), 403, "forbidden")
    assert not provider.calls
    assert (await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))).status == 200


async def test_an_origin_of_null_is_foreign_also_where_there_is_no_host(gateway: Gateway) -> None:
    body = json.dumps({"key": KEY}).encode()
    lines = ["POST /gateway/session HTTP/1.0", "Origin: null", f"Content-Length: {len(body)}"]
    message = "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + body
    refusal(await ask(gateway.port, message), 403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Content-Type: text/plain",),
        ("Content-Type: application/x-www-form-urlencoded",),
        ("Content-Type: multipart/form-data; boundary=x",),
        ("Content-Type: text/plain; application/json",),
        ("Content-Type: application/jsonp",),
    ],
)
async def test_what_a_form_could_send_is_refused(
    gateway: Gateway, provider: FakeProvider, headers: tuple[str, ...]
) -> None:
    cookie = await cookie_of(gateway)
    refusal(
        await ask(gateway.port, signing_in(KEY, "Origin: http://gateway", *headers)), 400, "invalid_request"
    )
    asked = with_cookie("POST", "/gateway/chat", cookie, *headers, body=json.dumps(ASK).encode())
    refusal(await ask(gateway.port, asked), 400, "invalid_request")
    assert not provider.calls


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
async def test_json_is_json_in_every_spelling_and_no_browser_is_needed(gateway: Gateway, kind: str) -> None:
    assert (await ask(gateway.port, signing_in(KEY, f"Content-Type: {kind}"))).status == 204


# The cookie.


@pytest.mark.parametrize(
    ("trusted", "headers", "secure"),
    [
        (["127.0.0.1"], ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"), True),
        (["127.0.0.1"], ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: http"), False),
        (["127.0.0.1"], (), False),
        ([], ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"), False),
    ],
)
async def test_the_cookie_is_secure_where_a_trusted_proxy_says_that_the_client_came_over_tls(
    gateway_for: GatewayFor,
    provider: FakeProvider,
    trusted: list[str],
    headers: tuple[str, ...],
    secure: bool,
) -> None:
    gateway = await gateway_for(provider, server={"trusted_proxies": trusted})
    response = await ask(gateway.port, signing_in(KEY, *FROM_PAGE, *headers))
    assert ("Secure" in (response.header("set-cookie") or "").split("; ")) is secure


async def test_a_tls_that_is_not_in_force_yet_makes_no_cookie_secure(
    gateway: Gateway, provider: FakeProvider
) -> None:
    server = {"tls": {"cert": "cert.pem", "key": "key.pem"}}
    gateway.adopt(build(settings(provider, users=HOUSE, server=server)))
    assert "Secure" not in ((await ask(gateway.port, signing_in())).header("set-cookie") or "")


async def test_a_cookie_lasts_no_longer_than_its_key(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
    users = {"alice": {"keys": [{"key": KEY, "expires": tomorrow}]}}
    gateway = await gateway_for(provider, users=users)
    rules = ((await ask(gateway.port, signing_in())).header("set-cookie") or "").split("; ")
    life = next(int(rule.removeprefix("Max-Age=")) for rule in rules if rule.startswith("Max-Age="))
    assert 0 < life <= 3 * 86_400


@pytest.mark.parametrize(
    "cookie",
    [
        "llmgateway=",
        "llmgateway=x",
        "llmgateway",
        'llmgateway="\\377"',
        "llmgateway=\xff",
        ";;;=;",
        "x" * 9000,
        "llmgateway=" + "x" * 9000,
    ],
)
async def test_a_cookie_that_nobody_was_given_is_401(gateway: Gateway, cookie: str) -> None:
    for path in ("/gateway/status", "/gateway/events"):
        response = await ask(gateway.port, request("GET", path, f"Cookie: {cookie}", key=None))
        refusal(response, 401, "invalid_api_key")
        assert response.header("www-authenticate") == "Bearer"


async def test_signing_out_ends_the_session_and_its_events_and_no_other(gateway: Gateway) -> None:
    cookie, other = await cookie_of(gateway), await cookie_of(gateway)
    async with watching(gateway, cookie) as (client, events):
        await client.events(events, 1)
        response = await ask(gateway.port, with_cookie("DELETE", "/gateway/session", cookie, *FROM_PAGE))
        assert response.status == 204
        assert (response.header("set-cookie") or "").startswith("llmgateway=; Path=/gateway/; Max-Age=0; ")
        while await client.piece(events, 2):
            pass
        assert events.ending is Ending.COMPLETE
    refusal(await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie)), 401, "invalid_api_key")
    assert (await ask(gateway.port, with_cookie("GET", "/gateway/status", other))).status == 200


async def test_signing_out_without_a_session_is_no_trouble(gateway: Gateway) -> None:
    message = request("DELETE", "/gateway/session", *FROM_PAGE, key=None)
    assert (await ask(gateway.port, message)).status == 204


GONE = {"alice": HOUSE["alice"]}
OUTDATED = {**HOUSE, "bob": {"keys": [{"key": BOB, "expires": "2020-01-01"}]}}


@pytest.mark.parametrize("users", [GONE, OUTDATED])
async def test_a_key_that_is_removed_or_expires_ends_its_sessions_at_once(
    gateway: Gateway, provider: FakeProvider, users: dict[str, Any]
) -> None:
    cookie = await cookie_of(gateway, BOB)
    async with watching(gateway, cookie) as (client, events):
        await client.events(events, 1)
        gateway.adopt(build(settings(provider, users=users)))
        response = await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))
        refusal(response, 401, "invalid_api_key")
        assert response.header("www-authenticate") == "Bearer"
        asked = with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=json.dumps(ASK).encode())
        refusal(await ask(gateway.port, asked), 401, "invalid_api_key")
        while await client.piece(events, 2):
            pass
        assert events.ending is Ending.COMPLETE
    assert not provider.calls


async def test_who_is_an_admin_no_more_sees_less_at_once(gateway: Gateway, provider: FakeProvider) -> None:
    cookie = await cookie_of(gateway)
    gateway.condition.problems = ["config.yaml:1:1: wrong"]
    async with watching(gateway, cookie) as (client, events):
        assert (await client.events(events, 1))[-1]["gateway"]["config"]["problems"]
        users = {**HOUSE, "alice": {**HOUSE["alice"], "admin": False}}
        gateway.adopt(build(settings(provider, users=users)))
        latest = (await client.events(events, 2))[-1]
    assert latest["viewer"] == {"user": "alice", "admin": False}
    assert latest["gateway"]["config"]["problems"] == []


# Snapshots.

NUMBER = (int, float)
TEXT_OR_NOT = (str, type(None))
COUNT_OR_NOT = (int, type(None))
LINE: dict[str, Any] = {
    "time": str, "id": str, "user": TEXT_OR_NOT, "key": TEXT_OR_NOT, "model": TEXT_OR_NOT,
    "provider": TEXT_OR_NOT, "endpoint": str, "status": int, "outcome": str,
    "queue_ms": NUMBER, "first_byte_ms": (*NUMBER, type(None)), "total_ms": NUMBER,
    "prompt_tokens": COUNT_OR_NOT, "completion_tokens": COUNT_OR_NOT,
    "cached_tokens": COUNT_OR_NOT, "reasoning_tokens": COUNT_OR_NOT, "estimated": bool,
    "bytes_in": int, "bytes_out": int, "attempts": int, "stream": bool, "affinity": str,
}  # fmt: skip
SNAPSHOT: dict[str, Any] = {
    "gateway": {
        "version": str, "state": str, "now": NUMBER, "started_at": NUMBER,
        "config": {"loaded_at": NUMBER, "problems": [str], "restart_needed": [str]},
    },
    "viewer": {"user": str, "admin": bool},
    "providers": [{
        "name": str, "state": str, "reason": str, "owner": TEXT_OR_NOT,
        "models": [{"id": str, "loaded": (bool, type(None)), "context_length": COUNT_OR_NOT}],
        "in_flight": int, "slots": COUNT_OR_NOT, "waiting": int, "tokens_per_s": NUMBER, "hour": [NUMBER],
    }],
    "requests": [{
        "id": str, "user": str, "model": str, "provider": str, "endpoint": str, "phase": str,
        "position": int, "age_s": NUMBER, "tokens": int,
    }],
    "in_flight": int,
    "usage": {"day": str, "rows": [{
        "user": str, "model": str, "requests": int, "prompt_tokens": int, "completion_tokens": int,
        "cached_tokens": int, "reasoning_tokens": int, "estimated": int,
    }]},
    "recent": [LINE],
    "limits": [{
        "user": str, "key": TEXT_OR_NOT, "name": str, "limit": int, "used": int, "resets_in_s": NUMBER,
    }],
}  # fmt: skip
"""What a snapshot is made of: types, lists of one shape, and objects with exactly these keys."""


def misfits(value: Any, shape: Any, at: str = "snapshot") -> Iterator[str]:
    """Say where a value is not as its shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict) or value.keys() != shape.keys():
            yield f"{at}: {sorted(value)} instead of {sorted(shape)}"
            return
        for key, inner in shape.items():
            yield from misfits(value[key], inner, f"{at}.{key}")
    elif isinstance(shape, list):
        for number, each in enumerate(value):
            yield from misfits(each, shape[0], f"{at}[{number}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:
            yield f"{at}: {value!r} is no {kinds}"


@asynccontextmanager
async def busy_house(provider_for: ProviderFor, gateway_for: GatewayFor) -> AsyncIterator[Gateway]:
    """Alice and bob have each had an answer and are being served; alice has a provider of her own."""
    gate = asyncio.Event()
    rig = await provider_for("rig", models=["m"])
    den = await provider_for("den", models=["secret"], owner="alice")
    users = {
        "alice": {**HOUSE["alice"], "limits": {"requests_per_minute": 60}},
        "bob": {
            "keys": [{"name": "phone", "key": BOB, "limits": {"parallel": 3}}],
            "limits": {"tokens_per_day": 900},
        },
    }
    gateway = await gateway_for(rig, den, users=users)
    for model, key in (("m", KEY), ("secret", KEY), ("m", BOB)):
        assert (await ask(gateway.port, ask_for(model, key=key))).status == 200
    await ask(gateway.port, chat(key="sk-nobody"))
    for provider in (rig, den):
        provider.script = play(sse(), word("Hel"), wait(gate), done())
    async with crowd(gateway.port) as send:
        streams = [
            await send(ask_for(model, key=key, stream=True))
            for model, key in (("m", KEY), ("secret", KEY), ("m", BOB))
        ]
        heads = [await client.head() for client in streams]
        for client, response in zip(streams, heads, strict=True):
            await client.events(response, 1)
        yield gateway
        gate.set()
        for client, response in zip(streams, heads, strict=True):
            assert (await client.events(response, 2))[-1] == "[DONE]"


async def test_a_snapshot_is_as_agreed_and_admins_see_all(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    async with busy_house(provider_for, gateway_for) as gateway:
        gateway.condition.problems = ["config.yaml:1:1: wrong"]
        gateway.condition.restart_needed = ["server.port"]
        seen = await snapshot(gateway)
    assert not list(misfits(seen, SNAPSHOT))
    assert seen["viewer"] == {"user": "alice", "admin": True}
    assert seen["gateway"]["state"] == "ready"
    assert seen["gateway"]["config"]["problems"] == ["config.yaml:1:1: wrong"]
    assert seen["gateway"]["config"]["restart_needed"] == ["server.port"]
    providers = {each["name"]: each for each in seen["providers"]}
    assert {name: each["in_flight"] for name, each in providers.items()} == {"rig": 2, "den": 1}
    assert all(len(each["hour"]) == 60 for each in providers.values())
    assert [(row["user"], row["model"], row["phase"]) for row in seen["requests"]] == [
        ("bob", "m", "streaming"),
        ("alice", "secret", "streaming"),
        ("alice", "m", "streaming"),
    ]
    assert seen["in_flight"] == 3
    assert sorted((row["user"], row["model"]) for row in seen["usage"]["rows"]) == [
        ("alice", "m"),
        ("alice", "secret"),
        ("bob", "m"),
    ]
    assert [line["user"] for line in seen["recent"]] == [None, "bob", "alice", "alice"]
    assert [(row["user"], row["key"], row["name"], row["used"]) for row in seen["limits"]] == [
        ("alice", None, "requests_per_minute", 4),
        ("bob", None, "tokens_per_day", 5),
        ("bob", "phone", "parallel", 1),
    ]


async def test_others_see_only_what_is_theirs(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    async with busy_house(provider_for, gateway_for) as gateway:
        gateway.condition.problems = ["config.yaml:1:1: wrong"]
        gateway.condition.restart_needed = ["server.port"]
        by_key = await snapshot(gateway, BOB)
        cookie = await cookie_of(gateway, BOB)
        by_cookie = (await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))).json
        async with watching(gateway, cookie) as (client, events):
            by_event = (await client.events(events, 1))[0]
    for seen in (by_key, by_cookie, by_event):
        assert not list(misfits(seen, SNAPSHOT))
        assert seen["viewer"] == {"user": "bob", "admin": False}
        assert seen["gateway"]["config"]["problems"] == seen["gateway"]["config"]["restart_needed"] == []
        assert [each["name"] for each in seen["providers"]] == ["rig"]
        assert [row["user"] for row in seen["requests"]] == ["bob"]
        assert seen["in_flight"] == 1
        assert [(row["user"], row["requests"]) for row in seen["usage"]["rows"]] == [("bob", 1)]
        assert [line["user"] for line in seen["recent"]] == ["bob"]
        assert {row["user"] for row in seen["limits"]} == {"bob"}
        told = json.dumps(seen)
        assert not [each for each in ("alice", "secret", "den", "wrong", "laptop", KEY, BOB) if each in told]


async def test_requests_that_wait_have_their_place_and_beyond_a_hundred_are_only_counted(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    turns = Turns()
    rig = await provider_for("rig", slots=1)
    rig.script = turns
    gateway = await gateway_for(rig, users=HOUSE, queue={"size": 200})
    async with crowd(gateway.port) as send:
        clients = [await send(ask_for()) for _ in range(105)]
        await waiting(gateway, 104)
        seen = await snapshot(gateway)
        assert (len(seen["requests"]), seen["in_flight"]) == (100, 105)
        assert {row["phase"] for row in seen["requests"]} == {"waiting"}
        assert sorted(row["position"] for row in seen["requests"]) == list(range(5, 105))
        assert seen["providers"][0]["waiting"] == 104
        turns.end(105)
        for client in clients:
            assert (await client.response()).status == 200
    seen = await snapshot(gateway)
    assert (seen["requests"], seen["in_flight"], len(seen["recent"])) == ([], 0, 50)


async def test_a_snapshot_needs_a_key_or_a_session(gateway: Gateway) -> None:
    for path in ("/gateway/status", "/gateway/events"):
        refusal(await ask(gateway.port, request("GET", path, key=None)), 401, "invalid_api_key")
        refusal(await ask(gateway.port, request("GET", path, key="sk-x")), 401, "invalid_api_key")


async def test_a_wrong_key_is_not_made_good_by_a_cookie(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    message = request("GET", "/gateway/status", f"Cookie: {cookie}", key="sk-wrong")
    refusal(await ask(gateway.port, message), 401, "invalid_api_key")


async def test_what_a_proxy_asks_for_itself_is_no_key(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    message = with_cookie("GET", "/gateway/status", cookie, "Authorization: Basic YWxpY2U6cHc=")
    assert (await ask(gateway.port, message)).status == 200


async def test_who_can_read_the_config_file_sees_all_from_this_machine_and_may_do_nothing_else(
    gateway: Gateway, provider: FakeProvider
) -> None:
    shown = KeyRing(gateway.config.users, gateway.config.groups).local_credentials or ""
    seen = await snapshot(gateway, shown)
    assert seen["viewer"] == {"user": "", "admin": True}
    for trace in ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: ::1"):
        response = await ask(gateway.port, request("GET", "/gateway/status", trace, key=shown))
        refusal(response, 401, "invalid_api_key")
    for message in (
        request("GET", "/gateway/status", key=shown[:-1]),
        request("GET", "/gateway/events", key=shown),
        signing_in(shown),
        request("GET", "/v1/models", key=shown),
        chat(key=shown),
    ):
        refusal(await ask(gateway.port, message), 401, "invalid_api_key")
    gateway.adopt(build(settings(provider, users=GONE)))
    refusal(await ask(gateway.port, request("GET", "/gateway/status", key=shown)), 401, "invalid_api_key")


async def test_where_there_are_no_keys_there_is_nothing_to_show(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users={})
    assert KeyRing({}, {}).local_credentials is None
    for key in ("local-None", "local-", None):
        refusal(await ask(gateway.port, request("GET", "/gateway/status", key=key)), 401, "invalid_api_key")


# Events.


async def test_events_are_whole_snapshots_and_tell_of_every_change(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        first = (await client.events(events, 1))[0]
        assert events.body.startswith(b"event: snapshot\r\ndata: {")
        assert first["recent"] == []
        await ask(gateway.port, chat())
        second = (await client.events(events, 2))[1]
        assert [line["outcome"] for line in second["recent"]] == ["ok"]
        gateway.condition.problems = ["oops"]
        third = (await client.events(events, 3))[2]
        assert third["gateway"]["config"]["problems"] == ["oops"]
    for seen in (first, second, third):
        assert not list(misfits(seen, SNAPSHOT))
    assert events.header("cache-control") == "no-cache"
    assert events.header("x-accel-buffering") == "no"
    assert events.header("x-request-id")


async def test_there_are_two_snapshots_a_second_at_most_however_busy_it_is(
    gateway: Gateway, provider: FakeProvider
) -> None:
    slowly = drip(b"2\r\n{}\r\n0\r\n\r\n", pause_s=0.01)
    provider.script = play(head(200, {"Transfer-Encoding": "chunked"}), slowly)
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        for _ in range(10):
            answers = await asyncio.gather(*(ask(gateway.port, chat()) for _ in range(5)))
            assert all(response.status == 200 for response in answers)
        while len(events.events[-1]["recent"] if events.events else ()) < 50:
            assert await client.piece(events)
    times = [each["gateway"]["now"] for each in events.events]
    assert len(times) >= 3, "it was over too soon to tell"
    assert len(times) <= 2 * (times[-1] - times[0]) + 1.3  # of rounded times
    assert all(later - earlier > 0.39 for earlier, later in pairwise(times))  # they are rounded to 0.1 s


async def nothing_happens(gateway: Gateway, provider: FakeProvider) -> None:
    pass


async def a_limit_is_used(gateway: Gateway, provider: FakeProvider) -> None:
    provider.script = answer(400, {"error": "no tokens here"})
    assert (await ask(gateway.port, chat(key=BOB))).status == 400


@pytest.mark.parametrize("before", [nothing_happens, a_limit_is_used])
async def test_nothing_is_sent_while_nothing_changes(
    gateway: Gateway, provider: FakeProvider, before: Any
) -> None:
    await before(gateway, provider)
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        await client.events(events, 1)
        with pytest.raises(TimeoutError):
            await client.piece(events, 1.8)
        assert len(events.events) == 1


async def test_nothing_is_sent_while_a_request_is_silent(gateway: Gateway, provider: FakeProvider) -> None:
    provider.script = stall()
    async with RawClient(gateway.port) as silent:
        await silent.send(chat())
        await provider.next_call()
        async with watching(gateway, await cookie_of(gateway)) as (client, events):
            assert (await client.events(events, 1))[0]["in_flight"] == 1
            with pytest.raises(TimeoutError):
                await client.piece(events, 1.8)


async def test_viewers_that_leave_are_forgotten(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    before = len(asyncio.all_tasks())
    async with AsyncExitStack() as stack:
        for number in range(6):
            client, response = await stack.enter_async_context(watching(gateway, cookie))
            await client.events(response, 1)
            if number % 2:
                client.reset()
    await eventually(lambda: len(asyncio.all_tasks()) <= before, 3)


async def test_there_is_room_for_so_many_viewers_and_for_the_next_when_one_leaves(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    one_more = with_cookie("GET", "/gateway/events", cookie)
    async with AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(watching(gateway, cookie)) for _ in range(MOST_VIEWERS_OF_A_USER)
        ]
        response = await ask(gateway.port, one_more)
        refusal(response, 503, "overloaded")
        assert int(response.header("retry-after") or 0) > 0
        viewers[7][0].leave()

        async def let_in() -> bool:
            async with RawClient(gateway.port) as client:
                await client.send(one_more)
                return (await client.head()).status == 200

        await eventually(let_in)


async def test_events_need_http_1_1_and_get(gateway: Gateway) -> None:
    old = f"GET /gateway/events HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    refusal(await ask(gateway.port, old), 400, "invalid_request")
    for method in ("HEAD", "POST", "OPTIONS"):
        assert (await ask(gateway.port, request(method, "/gateway/events"), to=method)).status == 405


async def test_when_it_drains_viewers_are_sent_away_at_once_and_the_page_says_why(
    gateway: Gateway, provider: FakeProvider
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), done())
    cookie = await cookie_of(gateway)
    async with watching(gateway, cookie) as (client, events), RawClient(gateway.port) as busy:
        await client.events(events, 1)
        await busy.send(chat(stream=True))
        await busy.head()
        draining = asyncio.ensure_future(gateway.drain())
        while await client.piece(events, 1):
            pass
        assert events.ending is Ending.COMPLETE
        assert not draining.done()  # for the stream's sake
        refusal(await ask(gateway.port, with_cookie("GET", "/gateway/events", cookie)), 503, "draining")
        assert (await snapshot(gateway))["gateway"]["state"] == "draining"
        assert (await ask(gateway.port, request("GET", "/gateway/", key=None))).status == 200
        asked = with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=json.dumps(ASK).encode())
        refusal(await ask(gateway.port, asked), 503, "draining")
        gate.set()
        async with asyncio.timeout(2):
            assert await draining


async def test_a_viewer_that_does_not_read_does_not_hold_the_drain_up(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    many = [f"{number:03d}-" + "x" * 180 for number in range(200)]
    rigs = [await provider_for(f"rig{number}", models=many) for number in range(20)]
    gateway = await gateway_for(*rigs, users=HOUSE)
    async with RawClient(gateway.port, receive_buffer=4096) as deaf:
        await deaf.send(with_cookie("GET", "/gateway/events", await cookie_of(gateway)))
        await deaf.head()

        def stuck() -> bool:
            gateway.condition.problems = [f"{time.monotonic()}"]
            transports = [each.transport for each in gateway._server.connections]
            return any(each is not None and each.get_write_buffer_size() for each in transports)

        await eventually(stuck, 20)
        async with asyncio.timeout(2):
            assert await gateway.drain()
        assert await deaf.closed() in (Ending.CUT, Ending.RESET)


# Trying a chat.


async def test_the_page_can_try_a_chat_with_its_session(gateway: Gateway, provider: FakeProvider) -> None:
    provider.script = stream("Hello", " world")
    cookie = await cookie_of(gateway, BOB)
    body = json.dumps({**ASK, "stream": True}).encode()
    response = await ask(gateway.port, with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=body))
    assert (response.status, response.header("content-type")) == (200, "text/event-stream")
    assert response.events[-1] == "[DONE]"
    seen = provider.requests[0]
    assert (seen.target, seen.body) == ("/v1/chat/completions", body)
    line = (await snapshot(gateway, BOB))["recent"][0]
    assert (line["user"], line["key"], line["endpoint"]) == ("bob", "phone", "/v1/chat/completions")


async def test_what_the_browser_tells_the_gateway_is_not_told_to_the_provider(
    gateway: Gateway, provider: FakeProvider
) -> None:
    fields = (*FROM_PAGE, "Referer: http://gateway/gateway/", "Accept-Language: en")
    cookie = await cookie_of(gateway)
    await ask(
        gateway.port, with_cookie("POST", "/gateway/chat", cookie, *fields, body=json.dumps(ASK).encode())
    )
    seen = provider.requests[0]
    for name in ("cookie", "origin", "referer", "authorization"):
        assert seen.header(name) is None
    assert (seen.header("accept-language"), seen.header("content-type")) == ("en", "application/json")


async def test_a_chat_fails_in_the_envelope(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    for body, status, type_ in (
        (b"{", 400, "invalid_request"),
        (b'{"messages": []}', 400, "invalid_request"),
        (b'{"model": "unknown", "messages": []}', 404, "no_provider"),
    ):
        asked = with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=body)
        refusal(await ask(gateway.port, asked), status, type_)


async def test_without_a_session_there_is_no_chat(gateway: Gateway, provider: FakeProvider) -> None:
    for cookie in ("a=b", "llmgateway=x"):
        asked = with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=json.dumps(ASK).encode())
        refusal(await ask(gateway.port, asked), 401, "invalid_api_key")
    assert (await ask(gateway.port, request("GET", "/gateway/chat"))).status == 405
    assert not provider.calls


async def test_a_session_is_no_key_of_the_api(gateway: Gateway, provider: FakeProvider) -> None:
    cookie = await cookie_of(gateway)
    body = json.dumps(ASK).encode()
    asked = with_cookie("POST", "/v1/chat/completions", cookie, *FROM_PAGE, body=body)
    refusal(await ask(gateway.port, asked), 401, "invalid_api_key")
    refusal(await ask(gateway.port, with_cookie("GET", "/v1/models", cookie)), 401, "invalid_api_key")
    assert not provider.calls


# Files.


def files_of_the_page() -> dict[str, bytes]:
    """All that is shipped, by the path at which it must be."""
    root = resources.files("llmgateway.web") / "page"
    found = {"/gateway/": (root / "index.html").read_bytes()}
    waiting_for = [("/gateway/assets/", root / "assets")]
    while waiting_for:
        path, folder = waiting_for.pop()
        for each in folder.iterdir():
            if each.is_dir():
                waiting_for.append((f"{path}{each.name}/", each))
            else:
                found[path + each.name] = each.read_bytes()
    return found


FILES = files_of_the_page()
KINDS = {
    "": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "md": "text/plain; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
}


@pytest.mark.parametrize("path", FILES)
async def test_every_file_of_the_page_is_served_to_everybody_with_its_type_and_a_strict_policy(
    gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for()
    got = await ask(gateway.port, request("GET", path, key=None))
    assert (got.status, bytes(got.body)) == (200, FILES[path])
    assert got.header("content-type") == KINDS[path.rpartition("/")[2].rpartition(".")[2]]
    assert got.header("content-security-policy") == CSP
    assert got.header("x-content-type-options") == "nosniff"
    assert got.header("cache-control") == "no-cache"
    looked = await ask(gateway.port, request("HEAD", path, key=None), to="HEAD")
    assert (looked.status, looked.header("content-length")) == (200, str(len(FILES[path])))
    refused = await ask(gateway.port, request("POST", path, key=None))
    refusal(refused, 405, "method_not_allowed")
    assert refused.header("allow") == "GET, HEAD"


def test_the_page_names_no_file_that_is_not_there() -> None:
    html = FILES["/gateway/"].decode()
    named = [part.partition('"')[0] for part in html.replace('src="', 'href="').split('href="')[1:]]
    assets = [f"/gateway/{name}" for name in named if not name.startswith("#")]
    assert assets and all(path in FILES for path in assets)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_without_the_slash_it_redirects(gateway: Gateway, method: str) -> None:
    response = await ask(gateway.port, request(method, "/gateway", key=None), to=method)
    assert (response.status, response.header("location")) == (308, "/gateway/")


@pytest.mark.parametrize("target", ["/gateway/?x=1", "http://gateway/gateway/", "HTTP://other/gateway/?x"])
async def test_the_page_is_there_in_every_form_of_its_address(gateway: Gateway, target: str) -> None:
    response = await ask(gateway.port, request("GET", target, key=None))
    assert (response.status, bytes(response.body)) == (200, FILES["/gateway/"])


@pytest.mark.parametrize(
    "path",
    [
        "/gateway/../config.yaml",
        "/gateway/../gateway/",
        "/gateway/%2e%2e/config.yaml",
        "/gateway/./",
        "/gateway/%2e/",
        "//gateway/",
        "/gateway//",
        "/gateway/%2f",
        "/%67ateway/",
        "/Gateway/",
        "/gateway/index.html",
        "/gateway/assets",
        "/gateway/assets/",
        "/gateway/assets/app.js/",
        "/gateway/assets/app.js%00",
        "/gateway/assets//app.js",
        "/gateway/assets/./app.js",
        "/gateway/assets/../index.html",
        "/gateway/assets/../../config",
        "/gateway/assets/%2e%2e/%2e%2e/pages.py",
        "/gateway/assets/..%2f..%2fpages.py",
        "/gateway/assets/..\\..\\pages.py",
        "/gateway/assets/vendor/../app.js",
        "/gateway/assets//etc/passwd",
        "/gateway/status/",
        "/gateway/session/x",
        "/gateway/page/index.html",
    ],
)
async def test_no_other_spelling_reaches_a_file(gateway: Gateway, path: str) -> None:
    refusal(await ask(gateway.port, request("GET", path)), 404, "not_found")
