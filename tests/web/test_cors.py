"""Pages of other sites that use the API from a browser: those that the config names, and no others."""

from __future__ import annotations

import asyncio
import json

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import answer, cut, done, error, play, sse, wait, word

CHAT_PAGE = "https://chat.example.net"
OTHER = "https://evil.example.net"


def preflight(path: str, origin: str, *headers: str, method: str = "POST") -> bytes:
    """What a browser asks before it sends JSON and a key."""
    return request(
        "OPTIONS",
        path,
        f"Origin: {origin}",
        f"Access-Control-Request-Method: {method}",
        *(headers or ("Access-Control-Request-Headers: authorization,content-type",)),
        key=None,
    )


def shared(response: Response) -> dict[str, list[str]]:
    """The fields of the CORS protocol, each with all of its values."""
    found: dict[str, list[str]] = {}
    for name, value in response.headers:
        if name.lower().startswith("access-control-"):
            found.setdefault(name.lower().removeprefix("access-control-"), []).append(value)
    return found


def varies(response: Response) -> bool:
    return "origin" in (response.header("vary") or "").lower().replace(" ", "").split(",")


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    return await gateway_for(provider, server={"cors": [CHAT_PAGE, "http://192.168.1.10:3000"]})


@pytest.fixture
async def open_gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    return await gateway_for(provider, server={"cors": ["*"]})


# Off.


async def test_it_is_off_by_default(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, preflight(OPENAI, CHAT_PAGE)), 405, "method_not_allowed")
    response = await ask(gateway.port, chat(None, f"Origin: {CHAT_PAGE}"))
    assert (response.status, shared(response), varies(response)) == (200, {}, False)


async def test_it_can_be_switched_on_and_off_while_the_gateway_runs(
    gateway: Gateway, provider: FakeProvider
) -> None:
    assert shared(await ask(gateway.port, chat(None, f"Origin: {CHAT_PAGE}")))
    gateway.adopt(build(settings(provider)))
    assert not shared(await ask(gateway.port, chat(None, f"Origin: {CHAT_PAGE}")))


# The preflight.


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, "/v1/models", "/v1/models/m", "/v1/embeddings"])
async def test_a_preflight_needs_no_key_and_says_what_may_be_sent(
    gateway: Gateway, provider: FakeProvider, path: str
) -> None:
    response = await ask(gateway.port, preflight(path, CHAT_PAGE))
    assert (response.status, bytes(response.body), response.ending) == (204, b"", Ending.COMPLETE)
    assert shared(response) == {
        "allow-origin": [CHAT_PAGE],
        "allow-methods": ["GET, POST, DELETE"],
        "allow-headers": ["authorization,content-type"],
        "expose-headers": ["*"],
        "max-age": ["86400"],
    }
    assert varies(response)
    assert not provider.calls


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("authorization", ["authorization"]),
        ("Authorization, X-Stainless-Lang,x-api-key", ["Authorization, X-Stainless-Lang,x-api-key"]),
        ("", [""]),
        ("x y", ["x y"]),
        ("a: b", []),
        ("<script>", []),
        ("\xe9", []),
        ("x" * 3000, []),
    ],
)
async def test_the_fields_that_a_page_wants_to_send_are_named_one_by_one(
    gateway: Gateway, asked: str, granted: list[str]
) -> None:
    """The Fetch standard lets no `*` stand for Authorization."""
    response = await ask(
        gateway.port, preflight(OPENAI, CHAT_PAGE, f"Access-Control-Request-Headers: {asked}")
    )
    assert shared(response).get("allow-headers", []) == granted
    assert response.status == 204


async def test_a_preflight_of_another_site_is_told_nothing(gateway: Gateway) -> None:
    response = await ask(gateway.port, preflight(OPENAI, OTHER))
    refusal(response, 405, "method_not_allowed")
    assert shared(response) == {}
    assert varies(response)


@pytest.mark.parametrize(
    "message",
    [
        request("OPTIONS", OPENAI, f"Origin: {CHAT_PAGE}"),
        request("OPTIONS", OPENAI, "Access-Control-Request-Method: POST"),
    ],
)
async def test_an_options_that_is_no_preflight_is_a_wrong_method(gateway: Gateway, message: bytes) -> None:
    refusal(await ask(gateway.port, message), 405, "method_not_allowed")


# Whom it lets in.


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (CHAT_PAGE, CHAT_PAGE),
        ("HTTPS://Chat.Example.net", "HTTPS://Chat.Example.net"),
        ("http://192.168.1.10:3000", "http://192.168.1.10:3000"),
    ],
)
async def test_an_origin_that_is_named_gets_its_answer(gateway: Gateway, origin: str, told: str) -> None:
    response = await ask(gateway.port, chat(None, f"Origin: {origin}"))
    assert shared(response) == {"allow-origin": [told], "expose-headers": ["*"]}
    assert varies(response)


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "http://chat.example.net",
        "https://chat.example.net:8443",
        "https://chat.example.net.evil.net",
        "https://evil-chat.example.net",
        "https://sub.chat.example.net",
        "https://chat.example.net/",
        "https://chat.example.net, https://evil.example.net",
        "http://192.168.1.10",
        "null",
        "*",
        "",
        "\xff",
    ],
)
async def test_other_origins_get_an_answer_that_no_browser_shows_them(gateway: Gateway, origin: str) -> None:
    response = await ask(gateway.port, chat(None, f"Origin: {origin}"))
    assert (response.status, shared(response)) == (200, {})
    assert varies(response)


async def test_a_cache_learns_that_answers_differ_also_from_requests_without_an_origin(
    gateway: Gateway,
) -> None:
    response = await ask(gateway.port, request("GET", "/v1/models"))
    assert varies(response)
    assert shared(response) == {}


@pytest.mark.parametrize("origin", [CHAT_PAGE, OTHER, "null", "file://", "\xff"])
async def test_a_star_lets_everybody_in_and_never_with_credentials(
    open_gateway: Gateway, origin: str
) -> None:
    response = await ask(open_gateway.port, chat(None, f"Origin: {origin}"))
    assert shared(response) == {"allow-origin": ["*"], "expose-headers": ["*"]}
    assert not varies(response)
    told = shared(await ask(open_gateway.port, preflight(OPENAI, origin)))
    assert (told["allow-origin"], told["allow-headers"]) == (["*"], ["authorization,content-type"])
    assert "allow-credentials" not in told


# All that the API answers.


async def test_errors_can_be_read_too(gateway: Gateway, provider: FakeProvider) -> None:
    origin = f"Origin: {CHAT_PAGE}"
    provider.once(error(500))
    for message, status in (
        (chat(None, origin, key=None), 401),
        (chat(b"{", origin), 400),
        (asking(OPENAI, {"model": "unknown"}, KEY, origin), 404),
        (request("GET", "/v1/nothing", origin), 404),
        (request("GET", OPENAI, origin), 405),
        (request("POST", OPENAI, origin, "Content-Length: 999999999"), 413),
        (chat(None, origin), 502),
    ):
        response = await ask(gateway.port, message)
        assert response.status == status
        assert shared(response) == {"allow-origin": [CHAT_PAGE], "expose-headers": ["*"]}
        assert varies(response)


async def test_while_it_drains_the_refusal_can_be_read(gateway: Gateway) -> None:
    await gateway.drain()
    response = await ask(gateway.port, chat(None, f"Origin: {CHAT_PAGE}"))
    refusal(response, 503, "draining")
    assert shared(response)["allow-origin"] == [CHAT_PAGE]


async def test_streams_can_be_read_as_they_come_and_when_they_break(
    gateway: Gateway, provider: FakeProvider
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), done())
    async with RawClient(gateway.port) as client:
        await client.send(chat(None, f"Origin: {CHAT_PAGE}", stream=True))
        response = await client.head()
        assert shared(response) == {"allow-origin": [CHAT_PAGE], "expose-headers": ["*"]}
        assert len(await client.events(response, 1)) == 1
        gate.set()
        assert (await client.events(response, 2))[-1] == "[DONE]"
    provider.script = play(sse(), word("Hel"), cut())
    body = json.dumps({**ASK, "stream": True}).encode()
    broken = await ask(gateway.port, chat(body, f"Origin: {CHAT_PAGE}"))
    assert shared(broken)["allow-origin"] == [CHAT_PAGE]
    assert "error" in broken.events[-1]


async def test_a_stream_that_a_keepalive_began_can_be_read(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gate = asyncio.Event()
    provider.script = play(wait(gate), sse(), word("Hel"), done())
    server = {"cors": [CHAT_PAGE]}
    gateway = await gateway_for(provider, server=server, streams={"keepalive": "50ms"})
    async with RawClient(gateway.port) as client:
        await client.send(chat(None, f"Origin: {CHAT_PAGE}", stream=True))
        response = await client.head()
        assert shared(response)["allow-origin"] == [CHAT_PAGE]
        gate.set()
        assert (await client.events(response, 2))[-1] == "[DONE]"


@pytest.mark.parametrize(("origin", "allowed"), [(CHAT_PAGE, [CHAT_PAGE]), (OTHER, []), (None, [])])
async def test_what_a_provider_says_of_it_does_not_count(
    gateway: Gateway, provider: FakeProvider, origin: str | None, allowed: list[str]
) -> None:
    provider.script = answer(
        200,
        {},
        {
            "Access-Control-Allow-Origin": "*",
            "access-control-allow-credentials": "true",
            "ACCESS-CONTROL-EXPOSE-HEADERS": "x-secret",
            "Vary": "Accept-Encoding",
            "X-Other": "stays",
        },
    )
    response = await ask(gateway.port, chat(None, *([f"Origin: {origin}"] if origin else [])))
    told = shared(response)
    assert told.get("allow-origin", []) == allowed
    assert told.get("expose-headers", []) == (["*"] if allowed else [])
    assert "allow-credentials" not in told
    assert varies(response)
    assert "Accept-Encoding" in (response.header("vary") or "")
    assert response.header("x-other") == "stays"


async def test_the_provider_is_not_asked_whether_it_likes_the_page(
    gateway: Gateway, provider: FakeProvider
) -> None:
    """Ollama answers 403 to origins that it does not know."""
    await ask(gateway.port, chat(None, f"Origin: {CHAT_PAGE}", "X-A: b"))
    seen = provider.requests[0]
    assert (seen.header("origin"), seen.header("x-a")) == (None, "b")


# Not for the live page.


@pytest.mark.parametrize(
    "path",
    [
        "/gateway",
        "/gateway/",
        "/gateway/session",
        "/gateway/status",
        "/gateway/events",
        "/gateway/chat",
        "/gateway/assets/app.js",
        "/gateway/nothing",
        "/metrics",
    ],
)
@pytest.mark.parametrize("cors", ["*", CHAT_PAGE])
async def test_the_live_page_is_for_no_other_site(
    gateway_for: GatewayFor, provider: FakeProvider, path: str, cors: str
) -> None:
    gateway = await gateway_for(provider, server={"cors": [cors]})
    for message in (
        preflight(path, CHAT_PAGE),
        preflight(path, CHAT_PAGE, method="DELETE"),
        request("PUT", path, f"Origin: {CHAT_PAGE}"),
        request("POST", path, f"Origin: {CHAT_PAGE}", "Content-Type: application/json", body=b"{}"),
    ):
        response = await ask(gateway.port, message)
        assert response.status in (403, 404, 405)
        assert shared(response) == {}
    if path != "/gateway/events":
        assert shared(await ask(gateway.port, request("GET", path, f"Origin: {CHAT_PAGE}"))) == {}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/", "/llm", "/llmx/v1/models", "/other"])
async def test_what_is_not_below_the_base_path_is_not_shared(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider, server={"cors": [CHAT_PAGE], "base_path": "/llm"})
    response = await ask(gateway.port, preflight(path, CHAT_PAGE))
    refusal(response, 404, "not_found")
    assert shared(response) == {}
    assert (await ask(gateway.port, preflight("/llm/v1/models", CHAT_PAGE))).status == 204


async def test_only_what_the_gateway_says_itself_is_dropped_of_what_a_provider_says(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answer(200, {}, {"X-RateLimit-Remaining-Requests": "7"})
    shared = await gateway_for(provider, server={"cors": ["*"]})
    response = await ask(shared.port, chat(None, f"Origin: {CHAT_PAGE}"))
    assert response.header("x-ratelimit-remaining-requests") == "7"
