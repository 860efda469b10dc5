"""WebSockets through the gateway: routed like a request, relayed as they are, written down at their end."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.datastructures import Headers
from websockets.http11 import Request as Opening
from websockets.http11 import Response as Refusal

from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Exchange, Request, Script
from tests.fake_provider import FakeProvider
from tests.fleet.test_proxies import Proxy, listening
from tests.guard import HANG_S
from tests.http.test_tls import Pair, trusting
from tests.journey import KEY, eventually
from tests.journeys.test_accounting import booked, cost
from tests.journeys.test_errors import refusal
from tests.raw_client import RawClient, Response, chat, request
from tests.script import answer, cut, error, head, play
from tests.script import raw as bytes_of
from tests.web.visit import HOUSE, cookie_of, snapshot
from tests.websocket import (
    ASKS,
    NONCE,
    PATH,
    RawSocket,
    Session,
    accept_of,
    close,
    echo,
    handshake,
    raw,
    say,
    session,
    text,
)

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

SECRET = f"openai-insecure-api-key.{KEY}"
DONE = {"type": "response.done", "response": {"usage": {"input_tokens": 7, "output_tokens": 5}}}


@pytest.fixture
async def proxy(nothing_leaks: None) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    async with listening(proxy) as proxy.port:
        yield proxy


def socket_of(gateway: Gateway, query: str = "?model=m") -> str:
    return f"{gateway.url}{PATH}{query}"


async def asked(gateway: Gateway, data: bytes) -> Response:
    async with RawClient(gateway.port) as client:
        await client.send(data)
        return await client.response(to="GET")


def handshakes(provider: FakeProvider) -> list[Request]:
    return [probe for probe in provider.probes if probe.target.startswith(PATH)]


# --- bytes ------------------------------------------------------------------------------------------------


async def test_a_session_is_relayed_both_ways_and_closed_by_its_client(
    provider: FakeProvider, gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    provider.on[PATH] = session(say("hello"), echo())
    gateway = await gateway_for(provider)
    async with http.ws_connect(socket_of(gateway)) as socket:
        assert await socket.receive_str(timeout=HANG_S) == "hello"
        await socket.send_str("how are you")
        assert await socket.receive_str(timeout=HANG_S) == "how are you"
        await socket.send_bytes(b"x" * 300_000)
        assert await socket.receive_bytes(timeout=HANG_S) == b"x" * 300_000
        await socket.ping(b"there?")
        await socket.send_str("still")
        assert await socket.receive_str(timeout=HANG_S) == "still"
        assert await socket.close(code=4000, message=b"bye")
    assert socket.close_code == 4000
    line = await booked(gateway)
    assert (line["status"], line["outcome"], line["provider"]) == (101, "ok", "rig")


async def test_what_both_say_passes_byte_for_byte_whatever_it_is(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """Reserved flags and opcodes, lengths longer than need be, a text that is none: their own affair."""
    up = bytes.fromhex("f383 01020304 010203 82fe0003 05060708 616263 8bff0000000000000000 00000000")
    down = bytes.fromhex("f303 616263 827e0003 ff00fe 8b00 017f0000000000000002 c0c1 8000")
    heard = b""

    async def listen(here: Session) -> None:
        nonlocal heard
        heard = await here.exchange.receive(len(up))

    provider.on[PATH] = session(raw(down), listen, raw(close(1000, mask=False)), echo())
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        assert (await client.open()).status == 101
        await client.send(up)
        assert await client.exactly(len(down)) == down
        assert (await client.listen()).code == 1000
        await client.send(close(1000))
    assert heard == up


async def test_who_speaks_before_the_answer_or_along_with_it_is_heard(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    early, late = text("early"), text("late" * 50_000, mask=False)
    heard = b""

    async def speaks_at_once(exchange: Exchange) -> None:
        nonlocal heard
        lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept_of(NONCE)
        await exchange.send(f"HTTP/1.1 101 Go\r\n{lines}\r\n\r\n".encode() + late)
        heard = await exchange.receive(len(early))
        exchange.complete = True
        await session_end(exchange)

    async def session_end(exchange: Exchange) -> None:
        await exchange.send(close(1000, mask=False))
        exchange.cut()

    provider.on[PATH] = speaks_at_once
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        assert (await client.open(more=early)).status == 101
        assert (await client.listen()).data == b"late" * 50_000
        assert (await client.listen()).code == 1000
    assert heard == early


async def test_the_handshake_is_that_of_both_ends(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    granted = {"Sec-WebSocket-Extensions": "x-odd; a=1", "X-Session": "7"}
    provider.on[PATH] = session(raw(close(1000, mask=False)), echo(), headers=granted)
    gateway = await gateway_for(provider, server={"base_path": "/llm"})
    async with RawSocket(gateway.port) as client:
        await client.send(
            handshake(
                "Sec-WebSocket-Extensions: x-odd",
                "OpenAI-Beta: realtime=v1",
                target=f"/llm{PATH}?model=m&x=1",
            )
        )
        response = await client.head(to="GET")
        assert response.status == 101
        assert response.header("sec-websocket-accept") == accept_of(NONCE)
        assert response.header("sec-websocket-extensions") == "x-odd; a=1"
        assert (response.header("connection"), response.header("upgrade")) == ("Upgrade", "websocket")
        assert response.header("x-session") == "7"
        assert response.header("x-gateway-provider") == "rig"
        assert response.header("x-request-id")
        assert response.header("content-length") is response.header("transfer-encoding") is None
        assert (await client.listen()).code == 1000
        await client.send(close(1000))
    (got,) = handshakes(provider)
    assert got.target == f"{PATH}?model=m&x=1"
    assert got.header("sec-websocket-key") == NONCE
    assert got.header("sec-websocket-extensions") == "x-odd"
    assert got.header("openai-beta") == "realtime=v1"
    assert got.header("authorization") is None
    assert got.header("content-length") is None


@asynccontextmanager
async def polite_server(talk: Callable[[ServerConnection], Any], **options: Any) -> AsyncIterator[str]:
    """A server of the `websockets` library, which keeps every rule, and lists a model.

    It listens on a Unix socket if `options` name a `path`.
    """

    def lists(_: ServerConnection, opening: Opening) -> Refusal | None:
        if opening.path.startswith(PATH):
            return None
        body = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        return Refusal(200, "OK", Headers(fields), body)

    if "path" in options:
        async with unix_serve(talk, process_request=lists, **options):
            yield f"unix:{options['path']}"
        return
    async with serve(talk, "127.0.0.1", 0, process_request=lists, **options) as server:
        (port,) = {sock.getsockname()[1] for sock in server.sockets}
        yield f"http{'s' if 'ssl' in options else ''}://127.0.0.1:{port}/v1"


async def echoes(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_compression_is_between_both_ends_and_does_not_hide_what_it_cost(
    gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    async with polite_server(echoes) as url:
        gateway = await gateway_for(providers={"polite": {"url": url}})
        async with http.ws_connect(socket_of(gateway), compress=15) as socket:
            assert socket.compress
            for said in ("x" * 100_000, json.dumps(DONE), json.dumps(DONE)):
                await socket.send_str(said)
                assert await socket.receive_str(timeout=HANG_S) == said
        line = await booked(gateway)
    assert line["bytes_in"] < 10_000 and line["bytes_out"] < 10_000
    assert cost(line) == (14, 10, 0, 0, False)


@pytest.mark.parametrize("way", ["TLS on both sides", "TLS by way of a proxy", "a Unix socket"])
async def test_every_way_to_a_provider_is_one_for_a_session(
    gateway_for: GatewayFor, proxy: Proxy, tmp_path: Path, way: str
) -> None:
    pair = Pair.made(tmp_path / "tls")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    options: dict[str, Any] = {"ssl": context} if way.startswith("TLS") else {"path": str(tmp_path / "s")}
    async with polite_server(echoes, **options) as url:
        entry: dict[str, Any] = (
            {"url": url, "tls": {"ca": str(pair.cert)}} if "ssl" in options else {"url": url}
        )
        if "proxy" in way:
            proxy.leads_to = "127.0.0.1", int(url.rpartition(":")[2].removesuffix("/v1"))
            entry["proxy"] = f"socks5h://{proxy.place}"
        gateway = await gateway_for(providers={"polite": entry}, server=pair.section)
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
            http.ws_connect(socket_of(gateway), ssl=trusting(pair)) as socket,
        ):
            for said in ("x" * 500_000, "y"):
                await socket.send_str(said)
                assert await socket.receive_str(timeout=HANG_S) == said
        assert (await booked(gateway))["outcome"] == "ok"


async def test_the_official_client_talks(gateway_for: GatewayFor) -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.send(json.dumps({"type": "session.created", "event_id": "1", "session": {}}))
        async for message in connection:
            if json.loads(message)["type"] == "response.create":
                await connection.send(json.dumps({"event_id": "2", **DONE}))

    async with polite_server(talk) as url:
        gateway = await gateway_for(providers={"polite": {"url": url}})
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)
        async with client, client.realtime.connect(model="m") as connection:
            kinds = []
            async for event in connection:
                kinds.append(event.type)
                if event.type == "response.done":
                    break
                await connection.response.create()
        line = await booked(gateway)
    assert kinds == ["session.created", "response.done"]
    assert cost(line) == (7, 5, 0, 0, False)


# --- who, and where to --------------------------------------------------------------------------------------


async def test_a_browser_shows_its_key_among_its_subprotocols_and_no_provider_sees_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(key="sk-of-the-rig")
    provider.on[PATH] = session(raw(close(1000, mask=False)), headers={"Sec-WebSocket-Protocol": "realtime"})
    gateway = await gateway_for(provider)
    offers = ["realtime", SECRET, "openai-beta.realtime-v1"]
    async with (
        aiohttp.ClientSession() as browser,
        browser.ws_connect(socket_of(gateway), protocols=offers, origin="https://evil.example") as socket,
    ):
        assert socket.protocol == "realtime"
    (got,) = handshakes(provider)
    assert got.header("sec-websocket-protocol") == "realtime, openai-beta.realtime-v1"
    assert KEY not in str(got.headers)
    assert got.header("authorization") == "Bearer sk-of-the-rig"
    assert (await booked(gateway))["user"] == "alice"


@pytest.mark.parametrize("offers", [[SECRET], ["realtime", SECRET]])
async def test_where_a_provider_chooses_none_the_protocol_that_was_meant_for_the_gateway_is_chosen(
    provider: FakeProvider, gateway_for: GatewayFor, offers: list[str]
) -> None:
    """A browser takes no answer that chooses none of what it offered."""
    provider.on[PATH] = session(raw(close(1000, mask=False)))
    gateway = await gateway_for(provider)
    async with (
        aiohttp.ClientSession() as browser,
        browser.ws_connect(socket_of(gateway), protocols=offers) as socket,
    ):
        assert socket.protocol == SECRET
    (got,) = handshakes(provider)
    assert got.header("sec-websocket-protocol") == (None if len(offers) == 1 else "realtime")


async def test_headers_of_the_config_take_the_place_of_the_clients(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(headers={"OpenAI-Beta": "mine"})
    provider.on[PATH] = session(raw(close(1000, mask=False)))
    gateway = await gateway_for(provider)
    protocols = f"Sec-WebSocket-Protocol: a, {SECRET}"
    assert (await asked(gateway, handshake("OpenAI-Beta: theirs", protocols, key=None))).status == 101
    (got,) = handshakes(provider)
    assert got.header("openai-beta") == "mine"
    assert got.header("sec-websocket-protocol") == "a"
    assert (got.header("connection"), got.header("upgrade")) == ("Upgrade", "websocket")


async def test_neither_a_session_of_the_page_nor_a_wrong_key_opens_it(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway)
    for lines in (
        [f"Cookie: {cookie}"],
        ["Authorization: Bearer sk-wrong"],
        ["Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-wrong"],
        ["Sec-WebSocket-Protocol: realtime, openai-insecure-api-key."],
        ["Sec-WebSocket-Protocol: realtime"],
        [],
    ):
        refusal(await asked(gateway, handshake(*lines, key=None)), 401, "invalid_api_key", PATH)
    assert not handshakes(provider)


async def test_a_program_may_be_known_by_its_network_and_a_web_page_may_not(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """No browser asks before it opens a WebSocket for a page of another site; it only tells whose it is."""
    provider.on[PATH] = session(raw(close(1000, mask=False)))
    users = {"alice": {"keys": [KEY]}, "box": {"from": ["127.0.0.0/8"]}}
    gateway = await gateway_for(provider, users=users)
    assert (await asked(gateway, handshake(key=None))).status == 101
    assert (await booked(gateway))["user"] == "box"
    for line in (
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-WebSocket-Protocol: openai-insecure-api-key.sk-wrong",
    ):
        refusal(await asked(gateway, handshake(line, key=None)), 401, "invalid_api_key", PATH)


async def test_a_key_among_subprotocols_opens_nothing_else(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    shown = request("GET", "/v1/models", f"Sec-WebSocket-Protocol: {SECRET}", key=None)
    refusal(await asked(gateway, shown), 401, "invalid_api_key", "/v1/models")


def without(*names: str) -> list[str]:
    return [line for line in ASKS if line.partition(":")[0] not in names]


GET = f"{PATH}?model=m"
REFUSED: dict[str, tuple[bytes, int, str, str]] = {
    "no upgrade": (request("GET", GET), 426, "upgrade_required", "connect to it as one"),
    "no upgrade in Connection": (
        request("GET", GET, *without("Connection")),
        426,
        "upgrade_required",
        "connect to it as one",
    ),
    "another protocol": (
        request("GET", GET, *without("Upgrade"), "Upgrade: h2c"),
        426,
        "upgrade_required",
        "The only protocol",
    ),
    "HTTP/1.0": (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 426, "upgrade_required", "connect to it"),
    "no version": (
        request("GET", GET, *without("Sec-WebSocket-Version")),
        426,
        "upgrade_required",
        "Sec-WebSocket-Version",
    ),
    "an old version": (
        request("GET", GET, *without("Sec-WebSocket-Version"), "Sec-WebSocket-Version: 8"),
        426,
        "upgrade_required",
        "Sec-WebSocket-Version",
    ),
    "no key": (
        request("GET", GET, *without("Sec-WebSocket-Key")),
        400,
        "invalid_request",
        "Sec-WebSocket-Key",
    ),
    "a short key": (
        request("GET", GET, *without("Sec-WebSocket-Key"), "Sec-WebSocket-Key: eA=="),
        400,
        "invalid_request",
        "Sec-WebSocket-Key",
    ),
    "two keys": (handshake(f"Sec-WebSocket-Key: {NONCE}"), 400, "invalid_request", "Sec-WebSocket-Key"),
    "a body": (request("GET", GET, *ASKS, body=b"{}"), 400, "invalid_request", "no body"),
    "no model": (handshake(target=PATH), 400, "invalid_request", "model"),
    "an empty model": (handshake(target=f"{PATH}?model="), 400, "invalid_request", "model"),
    "two models": (handshake(target=f"{PATH}?model=m&model=n"), 400, "invalid_request", "more than one"),
    "an unknown model": (handshake(target=f"{PATH}?model=x"), 404, "no_provider", "'x'"),
    "another method": (request("POST", GET, *ASKS), 405, "method_not_allowed", "GET"),
}


@pytest.mark.parametrize(("data", "status", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_good_handshake_is_told_so_in_the_envelope(
    provider: FakeProvider, gateway_for: GatewayFor, data: bytes, status: int, kind: str, words: str
) -> None:
    gateway = await gateway_for(provider)
    response = await asked(gateway, data)
    refusal(response, status, kind, PATH)
    assert words in response.json["error"]["message"]
    if status == 426:
        assert response.header("upgrade") == "websocket"
        assert "Upgrade" in (response.header("connection") or "")
    assert response.header("sec-websocket-version") == (
        "13" if words == "Sec-WebSocket-Version" and status == 426 else None
    )
    assert not handshakes(provider)
    if status != 405:
        assert (await booked(gateway))["status"] == status


async def test_the_default_model_stands_in_and_is_told_to_the_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(models=["a/b c"])
    provider.on[PATH] = session(raw(close(1000, mask=False)))
    gateway = await gateway_for(provider, server={"default_model": "a/b c"})
    assert (await asked(gateway, handshake(target=f"{PATH}?intent=transcription"))).status == 101
    (got,) = handshakes(provider)
    assert got.target == f"{PATH}?intent=transcription&model=a%2Fb%20c"
    assert (await booked(gateway))["model"] == "a/b c"


async def test_an_alias_and_a_name_of_the_servers_own_hold_here_as_well(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(models=["org/voice+big"], rename={"org/voice+big": "voice"})
    provider.on[PATH] = session(raw(close(1000, mask=False)))
    gateway = await gateway_for(provider, aliases={"gpt-realtime": "voice"})
    response = await asked(gateway, handshake(target=f"{PATH}?intent=x&model=gpt-realtime"))
    assert (response.status, response.header("x-gateway-model")) == (101, "org/voice+big")
    (got,) = handshakes(provider)
    assert got.target == f"{PATH}?intent=x&model=org%2Fvoice%2Bbig"
    line = await booked(gateway)
    assert (line["model"], line["asked_model"]) == ("voice", "gpt-realtime")


GOOD = {"Connection": "Upgrade", "Upgrade": "websocket"}
FAILING: dict[str, Script] = {
    "404": error(404, "File Not Found", "not_found_error"),
    "500": error(500),
    "401": error(401),
    "it hangs up": cut(),
    "a wrong accept": head(101, GOOD | {"Sec-WebSocket-Accept": accept_of("other")}),
    "no accept": head(101, GOOD),
    "no upgrade": head(101, {"Sec-WebSocket-Accept": accept_of(NONCE)}),
    "another protocol": head(
        101, {"Connection": "Upgrade", "Upgrade": "h2c", "Sec-WebSocket-Accept": accept_of(NONCE)}
    ),
    "nonsense": play(bytes_of(b"SSH-2.0-OpenSSH\r\n"), cut()),
}


@pytest.mark.parametrize("script", FAILING.values(), ids=FAILING.keys())
async def test_before_the_answer_a_failure_is_tried_on_another_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script
) -> None:
    rig, spare = await provider_for(owner="alice"), await provider_for("spare")
    rig.on[PATH] = script
    spare.on[PATH] = session(raw(close(1000, mask=False)))
    users = {"alice": {"keys": [KEY], "route": "prefer_own"}}
    gateway = await gateway_for(rig, spare, users=users)
    response = await asked(gateway, handshake())
    assert (response.status, response.header("x-gateway-provider")) == (101, "spare")
    line = await booked(gateway)
    assert (line["provider"], line["attempts"], line["outcome"]) == ("spare", 2, "ok")


async def test_a_provider_that_is_not_there_is_a_502_if_there_is_no_other(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    await provider.refuse()
    refusal(await asked(gateway, handshake()), 502, "upstream_error", PATH)


@pytest.mark.parametrize("status", [400, 404, 409, 200])
async def test_an_answer_that_is_no_101_is_passed_on_as_any_other(
    provider: FakeProvider, gateway_for: GatewayFor, status: int
) -> None:
    provider.on[PATH] = answer(status, b'{"error": "no"}', {"X-Why": "because"})
    gateway = await gateway_for(provider)
    response = await asked(gateway, handshake())
    assert (response.status, bytes(response.body), response.header("x-why")) == (
        status,
        b'{"error": "no"}',
        "because",
    )
    assert response.header("connection") == "close"
    assert (await booked(gateway))["status"] == status


# --- what it holds, and what is written down ----------------------------------------------------------------


async def test_a_session_holds_its_slot_until_it_ends(
    provider_for: ProviderFor, gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    provider = await provider_for(slots=1)
    provider.on[PATH] = session(say("hello"), echo())
    gateway = await gateway_for(provider)
    async with http.ws_connect(socket_of(gateway)) as first:
        assert await first.receive_str(timeout=HANG_S) == "hello"
        second = asyncio.ensure_future(http.ws_connect(socket_of(gateway)))
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        (rig,) = (await snapshot(gateway))["providers"]
        assert rig["in_flight"] == 1
        assert not second.done()
    async with await second as socket:
        assert await socket.receive_str(timeout=HANG_S) == "hello"
        assert (await booked(gateway))["outcome"] == "ok"
    await booked(gateway, 2)
    assert gateway.fleet.providers["rig"].in_flight == 0


async def test_sessions_count_against_the_limits_of_their_user(
    provider: FakeProvider, gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    provider.on[PATH] = session(say(json.dumps(DONE)), echo())
    users = {"alice": {"keys": [KEY], "limits": {"parallel": 1, "tokens_per_day": 10}}}
    gateway = await gateway_for(provider, users=users)
    async with http.ws_connect(socket_of(gateway)) as socket:
        await socket.receive_str(timeout=HANG_S)
        refusal(await asked(gateway, handshake()), 429, "rate_limited", PATH)
    await booked(gateway, 2)
    response = await asked(gateway, handshake())
    refusal(response, 429, "rate_limited", PATH)
    assert "day" in response.json["error"]["message"]


async def test_a_session_weighs_in_the_queue_what_it_has_cost_and_no_more(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    """Bob has had ten tokens each way, alice one: she goes first, though he has waited for longer."""
    cheap = {"type": "response.done", "response": {"usage": {"input_tokens": 1, "output_tokens": 0}}}
    provider = await provider_for(slots=2)
    provider.on[PATH] = session(say(json.dumps(cheap)), echo())
    provider.script = answer(200, {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 10}})
    keys = {name: f"sk-{name}-{'k' * 40}" for name in ("alice", "bob", "carol")}
    gateway = await gateway_for(provider, users={name: {"keys": [key]} for name, key in keys.items()})

    def opening(name: str) -> bytes:
        return handshake(f"Authorization: Bearer {keys[name]}", key=None)

    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(RawSocket(gateway.port)) for _ in range(5)]
        holds, alice, also_holds, bob_waits, alice_waits = sockets
        for socket, name in ((holds, "carol"), (alice, "alice")):
            await socket.send(opening(name))
            assert (await socket.head(to="GET")).status == 101
        await alice.listen()
        await alice.send(close(1000))
        await booked(gateway)
        assert (await asked(gateway, chat(key=keys["bob"]))).status == 200
        await also_holds.send(opening("carol"))
        assert (await also_holds.head(to="GET")).status == 101
        await bob_waits.send(opening("bob"))
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        await alice_waits.send(opening("alice"))
        await eventually(lambda: gateway.slots.line.depth("m") == 2)
        also_holds.leave()
        assert (await alice_waits.head(to="GET")).status == 101
        assert gateway.slots.line.depth("m") == 1


async def test_while_it_is_open_it_is_in_flight_and_at_its_end_in_the_books(
    provider: FakeProvider, gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    provider.on[PATH] = session(say("hello", json.dumps(DONE)), echo())
    gateway = await gateway_for(provider, users=HOUSE)
    async with http.ws_connect(socket_of(gateway)) as socket:
        await socket.receive_str(timeout=HANG_S)
        (row,) = (await snapshot(gateway))["requests"]
        assert (row["model"], row["provider"], row["endpoint"]) == ("m", "rig", PATH)
        await socket.send_bytes(bytes(1_000))
        await socket.receive_str(timeout=HANG_S)
        await socket.receive_bytes(timeout=HANG_S)
    line = await booked(gateway)
    assert (line["status"], line["outcome"], line["stream"], line["endpoint"]) == (101, "ok", True, PATH)
    assert line["bytes_in"] == 1_000 + 8 + 8  # one message and a Close
    assert line["bytes_out"] == (2 + 5) + (2 + len(json.dumps(DONE))) + (4 + 1_000) + 4
    assert cost(line) == (7, 5, 0, 0, False)
    async with http.get(f"{gateway.url}/metrics") as metrics:
        told = await metrics.text()
    assert f'endpoint="{PATH}",model="m",outcome="ok",provider="rig",status="101",user="alice"' in told


async def test_two_sessions_at_once_do_not_mix(
    provider: FakeProvider, gateway_for: GatewayFor, http: aiohttp.ClientSession
) -> None:
    provider.on[PATH] = session(echo())
    gateway = await gateway_for(provider)

    async def talk(word: str) -> None:
        async with http.ws_connect(socket_of(gateway)) as socket:
            for number in range(100):
                await socket.send_str(f"{word} {number}")
                assert await socket.receive_str(timeout=HANG_S) == f"{word} {number}"

    async with asyncio.timeout(HANG_S), asyncio.TaskGroup() as group:
        for word in ("one", "two", "three"):
            group.create_task(talk(word))
    await booked(gateway, 3)
