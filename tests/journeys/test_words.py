"""What is wrong, told in words that say what to write instead: paths, keys, schemes; and odd JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmgateway.config.load import parse
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.http.test_tls import EC, Pair, blind
from tests.journey import ASK, KEY
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import request

WRONG = "sk-wrong-" + "w" * 40


# Paths.


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/chat/completions", OPENAI),
        ("/v1/v1/chat/completions", OPENAI),
        ("//v1/chat/completions", OPENAI),
        ("/v1//chat/completions", OPENAI),
        ("/v1/chat/completions/", OPENAI),
        ("/V1/Chat/Completions", OPENAI),
        ("/v1/chat/completions/chat/completions", OPENAI),
        ("/v1/chat/completion", OPENAI),
        ("/openai/v1/chat/completions", OPENAI),
        ("/openai/deployments/m/chat/completions?api-version=1", OPENAI),
        ("/llm/v1/chat/completions", OPENAI),
        ("/v1/%63hat/completions", OPENAI),
        ("/v1/chat%2Fcompletions", OPENAI),
        ("/v1/./chat/completions", OPENAI),
        ("http://gateway/v1/v1/chat/completions", OPENAI),
        ("/completions", "/v1/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/embeddings", "/v1/embeddings"),
        ("/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/models", "/v1/models"),
        ("/v1/v1/models/org/Name", "/v1/models/org/Name"),
        ("/api/v1/models", "/v1/models"),
        ("/v1/healthz", "/healthz"),
        ("/v1/gateway/", "/gateway/"),
        ("/v1/messages/", ANTHROPIC),
        ("/v1/v1/messages", ANTHROPIC),
        ("/messages", ANTHROPIC),
        ("/anthropic/v1/messages", ANTHROPIC),
        ("/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    ],
)
async def test_a_path_that_nearly_is_one_is_not_found_and_told_which_one_was_meant(
    gateway_for: GatewayFor, provider: FakeProvider, asked: str, meant: str
) -> None:
    gateway = await gateway_for(provider)
    for method in ("POST", "GET"):
        body = json.dumps(ASK).encode() if method == "POST" else b""
        response = await ask(gateway.port, request(method, asked, body=body), to=method)
        assert f"'{meant}'" in refusal(response, 404, "not_found", asked)
    assert not provider.calls


@pytest.mark.parametrize(
    "asked",
    [
        OPENAI,
        "/llm/llm" + OPENAI,
        "/LLM" + OPENAI,
        "/llm/chat/completions",
        "/llm//v1/chat/completions",
        "//llm" + OPENAI,
    ],
)
async def test_a_base_path_that_is_missing_or_doubled_is_told(
    gateway_for: GatewayFor, provider: FakeProvider, asked: str
) -> None:
    gateway = await gateway_for(provider, server={"base_path": "/llm"})
    message = refusal(await ask(gateway.port, asking(asked)), 404, "not_found")
    assert f"'/llm{OPENAI}'" in message and "'/llm/v1'" in message
    assert not provider.calls


@pytest.mark.parametrize(
    "asked", ["/", "/v1", "/v1/slots", "/x" * 5000, "/v1/%ff%00", "/v1/" + "models" * 2000]
)
async def test_a_path_that_is_like_none_is_not_found_and_told_where_all_are(
    gateway_for: GatewayFor, provider: FakeProvider, asked: str
) -> None:
    gateway = await gateway_for(provider)
    message = refusal(await ask(gateway.port, asking(asked)), 404, "not_found")
    assert "/v1" in message and "mean" not in message and len(message) < 200
    assert not provider.calls


# Keys.


@pytest.mark.parametrize(
    ("target", "headers", "way"),
    [
        ("", [f"Authorization: {KEY}"], "Authorization"),
        ("", [f"Authorization: Bearer:{KEY}"], "Authorization"),
        ("", [f"Authorization: Token {KEY}"], "Token"),
        ("", [f"Authorization: Basic {KEY}"], "Basic"),
        ("", [f"authorization: ApiKey {KEY}"], "ApiKey"),
        ("", [f"Authorization: {KEY} {KEY}"], "Authorization"),
        ("", [f"api-key: {KEY}"], "api-key"),
        ("", [f"API-Key: {KEY}", "Authorization: "], "api-key"),
        ("", [f"x-goog-api-key: {KEY}"], "x-goog-api-key"),
        ("", [f"X-Authorization: Bearer {KEY}"], "x-authorization"),
        (f"?key={KEY}", [], "?key="),
        (f"?a=b&api_key={KEY}", [], "?api_key="),
        (f"?API-KEY={KEY}", [], "?api-key="),
    ],
)
async def test_a_key_that_came_in_another_way_is_told_of_and_which_way_is_understood(
    gateway_for: GatewayFor, provider: FakeProvider, target: str, headers: list[str], way: str
) -> None:
    gateway = await gateway_for(provider)
    for path in (OPENAI, ANTHROPIC, "/v1/models"):
        method = "GET" if path == "/v1/models" else "POST"
        body = json.dumps(ASK).encode() if method == "POST" else b""
        response = await ask(gateway.port, request(method, path + target, *headers, body=body, key=None))
        message = refusal(response, 401, "invalid_api_key", path)
        assert way in message and "not" not in message.partition("No API key")[0]
        assert "Authorization: Bearer KEY" in message and "x-api-key: KEY" in message
        assert KEY not in bytes(response.body).decode() + str(response.headers)
    assert not provider.calls


@pytest.mark.parametrize(
    ("shown", "named"),
    [
        (f"Bearer {WRONG}", "'Bearer'"),
        (f'"{WRONG}"', "quotes"),
        ("$OPENAI_API_KEY", "variable"),
        ("${KEY}", "variable"),
    ],
)
async def test_a_wrong_key_that_looks_like_none_is_told_why(
    gateway_for: GatewayFor, provider: FakeProvider, shown: str, named: str
) -> None:
    gateway = await gateway_for(provider)
    for field in ("Authorization: Bearer", "x-api-key:"):
        response = await ask(gateway.port, asking(OPENAI, None, None, f"{field} {shown}"))
        message = refusal(response, 401, "invalid_api_key")
        assert "Invalid API key" in message and named in message
        assert WRONG not in message


@pytest.mark.parametrize(
    "written",
    [
        *("$ALICE_KEY", "os.environ/ALICE_KEY", "os.environ['ALICE_KEY']", "$(alice.key)", "%ALICE_KEY%"),
        *("env:ALICE_KEY", "{env:ALICE_KEY}", "{{ALICE_KEY}}"),
    ],
)
def test_a_variable_as_other_programs_write_it_gets_a_warning(written: str) -> None:
    text = f"""
users:
  alice: {{keys: ["{written}"]}}
providers:
  rig: {{url: "http://h/v1", api_key: "{written}", headers: {{X-A: "Bearer {written}"}}}}
"""
    told = parse(text, file="c.yaml", environ={}).warnings
    warnings = {warning.path: warning for warning in told if "${NAME}" in warning.message}
    assert warnings.keys() == {
        "users.alice.keys[0]",
        "providers.rig.api_key",
        "providers.rig.headers.X-A",
    }
    assert (warnings["users.alice.keys[0]"].line, warnings["users.alice.keys[0]"].column) == (3, 18)
    assert not any(written in warning.message for warning in told)
    mapping = text.replace(f'["{written}"]', f'[{{key: "{written}"}}]')
    (found, *_) = parse(mapping, file="c.yaml", environ={}).warnings
    assert found.path == "users.alice.keys[0].key" and "${NAME}" in found.message


def test_a_key_that_is_no_variable_gets_no_such_warning() -> None:
    text = """
users: {alice: {keys: ["${A}", "sk-$abcdefgh", "pa$$word-of-alice"]}}
providers: {rig: {url: "http://h/v1", api_key: "${B}", headers: {X-A: '{"a": 1}', X-B: "5% of $10"}}}
"""
    environ = {"A": "$ALICE_KEY", "B": "os.environ/B"}
    assert not [w for w in parse(text, file="c.yaml", environ=environ).warnings if "${NAME}" in w.message]


# Schemes.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.made(tmp_path_factory.mktemp("pair") / "own", EC)


async def test_who_speaks_tls_to_the_plain_port_is_told_in_the_log(
    gateway_for: GatewayFor, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway = await gateway_for(provider)
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", gateway.port, ssl=blind())
    assert any("speaks TLS" in each and "http://" in each for each in caplog.messages)


async def test_who_speaks_plain_http_to_the_tls_port_is_answered_and_the_log_says_so(
    gateway_for: GatewayFor, provider: FakeProvider, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway = await gateway_for(provider, server=pair.section)
    for method in ("GET", "POST"):
        response = await ask(gateway.port, request(method, "/v1/models"))
        assert "https://" in refusal(response, 400, "invalid_request")
    assert any("plain HTTP" in each and "https://" in each for each in caplog.messages)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(talk: Talk, tls: Pair | None = None) -> AsyncIterator[int]:
    """A server that talks as told to everybody; its port."""
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


def saying(said: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(said)

    return talk


def saying_400(words: str) -> Talk:
    return saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(words), words.encode()))


async def reason_of(gateway_for: GatewayFor, url: str, connect: str = "1h", **more: Any) -> str:
    gateway = await gateway_for(providers={"rig": {"url": url, "timeouts": {"connect": connect}, **more}})
    assert not gateway.fleet.providers["rig"].online
    return gateway.fleet.providers["rig"].reason


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"SSH-2.0-x\r\n"], ids=["400", "FIN", "SSH"]
)
async def test_https_to_an_http_server_is_told_with_what_to_write(
    gateway_for: GatewayFor, said: bytes
) -> None:
    async with server(saying(said)) as port:
        reason = await reason_of(gateway_for, f"https://127.0.0.1:{port}/v1")
    assert "TLS" in reason and "write http://" in reason


async def test_https_to_a_server_that_waits_for_a_request_is_told_with_what_to_write(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    reason = await reason_of(gateway_for, f"https://127.0.0.1:{provider.port}/v1", connect="1s")
    assert "write http://" in reason


HTTPS_WORDS = [
    "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
    "Client sent an HTTP request to an HTTPS server.\n",
    "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
]


@pytest.mark.parametrize("words", HTTPS_WORDS, ids=["nginx", "Go", "Apache"])
@pytest.mark.parametrize("more", [{}, {"models": ["m"]}], ids=["discovered", "configured"])
async def test_http_to_an_https_server_that_says_so_is_told_with_what_to_write(
    gateway_for: GatewayFor, words: str, more: dict[str, Any]
) -> None:
    async with server(saying_400(words)) as port:
        reason = await reason_of(gateway_for, f"http://127.0.0.1:{port}/v1", **more)
    assert "write https://" in reason and "HTTP" in reason.partition("says: ")[2]


async def test_http_to_an_https_server_that_answers_in_tls_is_told_with_what_to_write(
    gateway_for: GatewayFor,
) -> None:
    async with server(saying(b"\x15\x03\x01\x00\x02\x02\x16")) as port:
        assert "write https://" in await reason_of(gateway_for, f"http://127.0.0.1:{port}/v1")


async def test_http_to_an_https_server_that_hangs_up_is_told_with_what_to_write(
    gateway_for: GatewayFor, pair: Pair
) -> None:
    async with server(saying(b""), pair) as port:
        assert "write https://" in await reason_of(gateway_for, f"http://127.0.0.1:{port}/v1")


# JSON as servers take it.

WHOLE = json.dumps(ASK)
ODD_BODIES = {
    "BOM": b"\xef\xbb\xbf" + WHOLE.encode(),
    "NaN": WHOLE.replace("{", '{"temperature": NaN, ', 1).encode(),
    "Infinity": WHOLE.replace("}]", ', "x": [1,Infinity, -Infinity,NaN]}]').encode(),
    "last": (WHOLE[:-1] + ', "top_p": NaN}').encode(),
    "model behind": b'{"logit_bias": {"1": -Infinity}, "model": "m", "messages": []}',
    "all of it": b"\xef\xbb\xbf"
    + (WHOLE[:-1] + r', "a": "\ud83d", "b": NaN, "max_tokens": Infinity}').encode(),
    "many": (WHOLE[:-1] + ', "a": [' + ", ".join(["NaN"] * 500) + "]}").encode(),
}


@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES.keys())
async def test_what_servers_take_for_json_is_taken_and_passes_as_it_is(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes
) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, asking(OPENAI, body))).status == 200
    assert provider.requests[0].body == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "a": NaNa}',
        b'{"model": "m", "a": 1NaN}',
        b'{"model": "m", NaN: 1}',
        b'{"model": "m", "a": nan}',
        b"NaN",
        b"\xef\xbb\xbf",
        b'{"model": NaN}',
        b'{"a": "NaN',
    ],
)
async def test_what_no_server_takes_is_refused(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes
) -> None:
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, asking(OPENAI, body)), 400, "invalid_request")
    assert not provider.calls
