"""Who may use the page: signing in, what a cookie is worth, what another site may not do, trying a chat."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llmgateway.access.keys import KeyRing
from llmgateway.access.sessions import GRACE_S, IDLE_S, LIFE_S, RENEW_S
from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, settings
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import stream
from tests.web.visit import (
    BOB,
    EXPIRED,
    FROM_PAGE,
    HOUSE,
    cookie_of,
    signing_in,
    snapshot,
    watching,
    with_cookie,
)

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
        while await client.piece(events):
            pass
        assert events.ending is Ending.COMPLETE
    refusal(await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie)), 401, "invalid_api_key")
    assert (await ask(gateway.port, with_cookie("GET", "/gateway/status", other))).status == 200


async def test_a_cookie_is_followed_by_another_while_somebody_watches_and_nobody_is_signed_out(
    gateway: Gateway,
) -> None:
    old = await cookie_of(gateway)
    async with watching(gateway, old) as (client, events):
        await client.events(events, 1)
        assert events.header("set-cookie") is None
        gateway.sessions.clock = lambda: time.time() + RENEW_S
        while await client.piece(events):
            pass
        assert events.ending is Ending.COMPLETE, "the page is to come again, and be given another cookie"
    seen = await ask(gateway.port, with_cookie("GET", "/gateway/status", old))
    new, *rules = (seen.header("set-cookie") or "").split("; ")
    life = int(rules.pop(1).removeprefix("Max-Age="))
    assert rules == ["Path=/gateway/", "HttpOnly", "SameSite=Strict"]
    assert LIFE_S - RENEW_S - 60 < life <= LIFE_S - RENEW_S
    async with watching(gateway, new) as (client, events):
        await client.events(events, 1)
        assert events.header("set-cookie") is None
        assert (await ask(gateway.port, with_cookie("GET", "/gateway/status", old))).status == 200
        gateway.sessions.clock = lambda: time.time() + RENEW_S + GRACE_S + 5
        refusal(await ask(gateway.port, with_cookie("GET", "/gateway/status", old)), 401, "invalid_api_key")
        assert (await ask(gateway.port, with_cookie("GET", "/gateway/status", new))).status == 200


async def test_events_give_another_cookie_as_well_and_go_on(gateway: Gateway) -> None:
    old = await cookie_of(gateway)
    gateway.sessions.clock = lambda: time.time() + RENEW_S
    async with watching(gateway, old) as (client, events):
        assert (events.header("set-cookie") or "").startswith("llmgateway=")
        await client.events(events, 1)
        assert (await ask(gateway.port, request("GET", "/v1/models"))).status == 200
        gateway.condition.problems = ["config.yaml:1:1: wrong"]
        assert len(await client.events(events, 2)) == 2


async def test_a_session_that_nobody_uses_ends(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    gateway.sessions.clock = lambda: time.time() + IDLE_S
    refusal(await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie)), 401, "invalid_api_key")


async def test_who_signs_in_again_has_one_session(gateway: Gateway) -> None:
    before = await cookie_of(gateway)
    body = json.dumps({"key": BOB}).encode()
    response = await ask(gateway.port, with_cookie("POST", "/gateway/session", before, *FROM_PAGE, body=body))
    after = (response.header("set-cookie") or "").partition(";")[0]
    refusal(await ask(gateway.port, with_cookie("GET", "/gateway/status", before)), 401, "invalid_api_key")
    seen = await ask(gateway.port, with_cookie("GET", "/gateway/status", after))
    assert seen.json["viewer"]["user"] == "bob"


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
        while await client.piece(events):
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


# Who may look.


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
