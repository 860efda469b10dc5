"""Every failure that a client can see: status, type, envelope, headers; and what no answer or log holds."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from typing import Any

import pytest

from llmgateway.access.keys import Caller
from llmgateway.api.dialect import SSE
from llmgateway.config.load import build
from llmgateway.fleet.breaker import RetryBudget
from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.headers import AnswerHead
from llmgateway.http.server import ClientServer
from llmgateway.service.gateway import Gateway
from llmgateway.traffic.call import Call
from llmgateway.traffic.proxy import Proxy
from llmgateway.web.app import App
from tests.conftest import GatewayFor, ProgramFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, settings
from tests.raw_client import Ending, RawClient, Response, request
from tests.script import error

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
LIMITED_KEY = "sk-limited-0123456789abcdefghijklmnopqrstuvw"
USERS = {"alice": {"keys": [KEY, {"key": LIMITED_KEY, "models": ["other-*"]}]}}


async def ask(port: int, message: bytes, *, to: str = "POST") -> Response:
    """One request on a connection of its own, and its whole answer."""
    async with RawClient(port) as client:
        await client.send(message)
        return await client.response(to=to)


def asking(path: str, body: Any = None, key: str | None = KEY, *headers: str) -> bytes:
    """A POST of this JSON, or of these bytes; by default a good one for model `m`."""
    if not isinstance(body, bytes):
        body = json.dumps({"model": "m", "messages": []} if body is None else body).encode()
    return request("POST", path, *headers, body=body, key=key)


def anthropic_type(status: int) -> str:
    """What Anthropic calls an error of this status."""
    types = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        405: "invalid_request_error",
        408: "timeout_error",
        410: "invalid_request_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        502: "api_error",
        503: "overloaded_error",
        508: "api_error",
    }
    return types[status]


def refusal(
    response: Response, status: int, type_: str, path: str = OPENAI, *, malformed: bool = False
) -> str:
    """Check that this is our own error, whole, in the envelope that fits the path; give its message.

    `malformed`: the request was not HTTP, so that no id of it is known.
    """
    said = (response.status, response.header("x-gateway-error"), response.ending)
    assert said == (status, type_, Ending.COMPLETE), (said, bytes(response.body))
    assert response.header("content-type") == "application/json"
    assert response.framing == "length"
    assert response.header("x-should-retry") == ("false" if status in (401, 403) else None)
    request_id = response.header("x-request-id")
    assert request_id or malformed
    found: dict[str, Any] = response.json["error"]
    if path.startswith(ANTHROPIC):
        assert response.json == {"type": "error", "error": found, "request_id": request_id}
        assert found == {"type": anthropic_type(status), "message": found["message"]}
    else:
        assert response.json == {"error": found}
        assert found == {"message": found["message"], "type": type_, "param": None, "code": type_}
    assert isinstance(found["message"], str) and found["message"]
    return str(found["message"])


both_dialects = pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])


@both_dialects
async def test_a_wrong_body_is_invalid_request(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, asking(path, b"{")), 400, "invalid_request", path)


@both_dialects
async def test_a_wrong_key_is_invalid_api_key_and_says_which_scheme_to_use(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, asking(path, key="sk-wrong"))
    assert "sk-wrong" not in refusal(response, 401, "invalid_api_key", path)
    assert response.header("www-authenticate") == "Bearer"


@both_dialects
async def test_a_model_that_the_key_may_not_use_is_model_not_allowed(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    response = await ask(gateway.port, asking(path, key=LIMITED_KEY))
    assert "'m'" in refusal(response, 403, "model_not_allowed", path)


@both_dialects
async def test_a_model_that_nobody_serves_is_no_provider_in_the_words_of_the_contract(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, asking(path, {"model": "foo"}))
    message = refusal(response, 404, "no_provider", path)
    assert message == "No online provider serving model 'foo' for this user."


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v2/chat/completions", "/v1/slots", "/v1/chat/completions/", "/v1/messages/nope"],
)
async def test_an_unknown_endpoint_is_not_found(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider)
    refusal(await ask(gateway.port, asking(path)), 404, "not_found", path)
    assert not provider.calls


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", OPENAI, "POST"),
        ("PUT", OPENAI, "POST"),
        ("OPTIONS", OPENAI, "POST"),
        ("DELETE", ANTHROPIC, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ],
)
async def test_an_unknown_method_is_method_not_allowed_and_says_which_are(
    gateway_for: GatewayFor, provider: FakeProvider, method: str, path: str, allowed: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, request(method, path))
    refusal(response, 405, "method_not_allowed", path)
    assert response.header("allow") == allowed


@both_dialects
async def test_a_body_over_the_limit_is_request_too_large(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider, server={"max_body": 1000})
    message = refusal(await ask(gateway.port, asking(path, b"x" * 1001)), 413, "request_too_large", path)
    assert "1000" in message


@both_dialects
async def test_a_broken_provider_is_upstream_error_with_its_name_and_its_words(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    provider.script = error(500, "out of memory")
    gateway = await gateway_for(provider)
    message = refusal(await ask(gateway.port, asking(path)), 502, "upstream_error", path)
    assert "rig" in message and "out of memory" in message


@both_dialects
async def test_a_gateway_that_shuts_down_is_draining_and_says_when_to_come_back(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    gateway = await gateway_for(provider)
    await gateway.drain()
    response = await ask(gateway.port, asking(path))
    refusal(response, 503, "draining", path)
    assert int(response.header("retry-after") or 0) > 0
    assert response.header("connection") == "close"


async def test_a_request_that_is_not_http_is_invalid_request(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, b"nonsense\r\n\r\n")
    refusal(response, 400, "invalid_request", malformed=True)
    assert response.header("connection") == "close"


async def test_every_answer_has_a_request_id_even_to_what_is_not_http(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    for message in (
        b"nonsense\r\n\r\n",
        request("GET", "/healthz"),
        request("GET", "/nowhere"),
        asking(OPENAI),
    ):
        assert (await ask(gateway.port, message)).header("x-request-id"), message


async def test_an_error_answers_head_without_a_body(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, request("HEAD", "/v1/models", key=None), to="HEAD")
    assert (response.status, response.header("x-gateway-error")) == (401, "invalid_api_key")
    assert int(response.header("content-length") or 0) > 0


# Unexpected exceptions.


class Bug(Exception):
    """Something that no part of the gateway expects."""


class FaultyProxy(Proxy):
    """Fails on the model `m`; where the request is for a stream, in the middle of it."""

    async def forward(self, call: Call, caller: Caller, client: Client) -> None:
        if b'"stream": true' in call.outgoing.body:
            head = AnswerHead(b"Content-Type: text/event-stream\r\n", None, SSE, may_grow=True)
            client.begin(200, b"", head)
            client.feed(b"data: 1\n\ndata: 2", final=False)
        raise Bug("nobody thought of this")


class FaultyGateway(Gateway):
    """A gateway that was wired with a broken part."""

    def __init__(self, *providers: FakeProvider) -> None:
        config = build(settings(*providers))
        super().__init__(config)
        proxy = FaultyProxy(
            self.slots, self._upstream, self._watch, RetryBudget(), self.gate, self.metrics, time.monotonic
        )
        parts = self._visitors, self._pages, self._ollama, self._live
        self._app = App(config, self.condition, *parts, proxy, self.ledger, self._pressure, self._traces)
        self._server = ClientServer(self._app.handle, Patience(), self._crowd)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record.exc_info[0] for record in caplog.records if record.exc_info]


@both_dialects
async def test_an_unexpected_exception_is_internal_error_with_a_traceback_in_the_log_and_life_goes_on(
    nothing_leaks: None, provider: FakeProvider, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultyGateway(provider) as gateway, RawClient(gateway.port) as client:
        for _ in range(2):
            await client.send(asking(path))
            message = refusal(await client.response(), 500, "internal_error", path)
            assert "Bug" not in message and "nobody" not in message
        await client.send(request("GET", "/v1/models"))
        assert (await client.response()).status == 200
    assert tracebacks(caplog) == [Bug, Bug]
    assert KEY not in caplog.text


@both_dialects
async def test_an_unexpected_exception_in_a_stream_is_its_last_event(
    nothing_leaks: None, provider: FakeProvider, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultyGateway(provider) as gateway:
        response = await ask(gateway.port, asking(path, {"model": "m", "stream": True}))
    assert (response.status, response.ending) == (200, Ending.COMPLETE)
    assert response.events[:2] == [1, 2]
    assert response.events[2]["error"]["type"] == ("api_error" if path == ANTHROPIC else "internal_error")
    assert tracebacks(caplog) == [Bug]


# Secrets.

SECRET = "sk-secret-zyxwvutsrqponmlkjihgfedcba9876543210"
COLON = "Authorization: Bearer "
MALFORMED = (
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {SECRET}\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}{SECRET}\x01\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}{SECRET}\x00\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}\r\n {SECRET}\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}{SECRET}{'x' * 20_000}\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}{SECRET}\r\nContent-Length: -1\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nHost: x\r\n{COLON}{SECRET}\r\nTransfer-Encoding: no\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\n{COLON}{SECRET}\r\nno colon here\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1\r\nx-api-key {SECRET}\r\n\r\n".encode(),
    f"{SECRET}\r\n\r\n".encode(),
    f"POST {OPENAI} HTTP/1.1 {SECRET}\r\n\r\n".encode(),
    f"GET {SECRET} HTTP/1.1\r\n\r\n".encode(),
    f"{SECRET} / HTTP/1.1\r\n\r\n".encode(),
)
WRONG = (
    asking(OPENAI, key=SECRET),
    asking(OPENAI, key=SECRET + "\xff"),
    request("GET", "/v1/models", f"x-api-key: {SECRET}", key=None),
    request("GET", "/v1/models", f"Authorization: Basic {SECRET}", key=None),
    asking(OPENAI, f'{{"model": 3, "messages": "{SECRET}"}}'.encode()),
    asking(OPENAI, f'{{"model": "m", "messages": "{SECRET}'.encode()),
    asking(OPENAI, f'{{"model": "m", "messages": "{SECRET}\x01"}}'.encode()),
    request("GET", "/v1/models", f"x-request-id: {SECRET}\x7f"),
    request("GET", "/v1/models", f"Cookie: {SECRET}"),
)


async def test_nothing_secret_of_a_malformed_or_wrong_request_is_in_an_answer_or_in_the_log(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    program = await program_for(provider, log={"level": "debug"})
    for message in (*MALFORMED, *WRONG):
        async with RawClient(program.port) as client:
            await client.send(message)
            response = await client.response()
        assert response.status < 500, message
        assert SECRET not in f"{response.headers}{bytes(response.body)!r}", message
        if message in MALFORMED:
            refused = response.json["error"]["type"]
            assert response.header("x-gateway-error") == refused, message
    program.signal(signal.SIGTERM)
    finished = await program.ended()
    assert finished.code == 0
    assert finished.err.count("malformed request") >= len(MALFORMED) // 2
    for never in (SECRET, KEY, "Traceback", " error "):
        assert never not in finished.err


@pytest.mark.parametrize(
    ("settings_of_it", "secret"),
    [({"key": SECRET}, SECRET), ({"headers": {"X-Auth": SECRET}}, SECRET)],
    ids=["api_key", "headers"],
)
@pytest.mark.parametrize("place", ["probe", "call"])
async def test_a_provider_that_repeats_its_credentials_is_not_quoted_with_them(
    provider_for: Any,
    gateway_for: GatewayFor,
    caplog: pytest.LogCaptureFixture,
    settings_of_it: dict[str, Any],
    secret: str,
    place: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    provider = await provider_for("rig", **settings_of_it)
    parrot = error(500, f"refused Bearer {secret}, sorry")
    if place == "probe":
        provider.on["/v1/models"] = parrot
    else:
        provider.script = parrot
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, asking(OPENAI))
    assert response.status == (404 if place == "probe" else 502)
    logged = "".join(str(vars(record)) for record in caplog.records)
    assert "sorry" in logged
    assert "sorry" in response.body.decode() or place == "probe"
    assert secret not in logged + response.body.decode()


async def test_draining_ends_an_idle_gateway_for_readers_of_readyz_but_not_of_healthz(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    async with asyncio.timeout(HANG_S):
        await gateway.drain()
    response = await ask(gateway.port, request("GET", "/readyz", key=None))
    refusal(response, 503, "draining")
    assert (await ask(gateway.port, request("GET", "/healthz", key=None))).status == 200
