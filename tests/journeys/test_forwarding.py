"""What of a request reaches a provider, and of an answer the client: endpoints, queries, headers, framing."""

from __future__ import annotations

import gzip
import re
from typing import Any

import pytest

from llmgateway.api.endpoints import ENDPOINTS
from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import (
    answer,
    chunk,
    completion,
    cut,
    done,
    end,
    head,
    interim,
    play,
    raw,
    sse,
    stream,
    word,
)

FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
FORM_TYPE = "Content-Type: multipart/form-data; boundary=b"
JSON_PATHS = """
    /v1/chat/completions /v1/completions /v1/embeddings /v1/responses /v1/rerank /v1/score /v1/audio/speech
    /v1/images/generations /v1/moderations /v1/messages /v1/messages/count_tokens
    /v1/responses/input_tokens /v1/chat/completions/input_tokens
""".split()
ROOT_PATHS = ["/tokenize", "/detokenize", "/apply-template"]
FORM_PATHS = "/v1/audio/transcriptions /v1/audio/translations /v1/images/edits".split()
CLIENT_CREDENTIALS = (f"authorization: Bearer {KEY}", f"X-Api-Key: {KEY}", f"api-key: {KEY}")


def good(path: str, *headers: str) -> bytes:
    """A request that the endpoint forwards."""
    if path in FORM_PATHS:
        return asking(path, FORM, KEY, FORM_TYPE, *headers)
    return asking(path, {"model": "m"}, KEY, *headers)


def fields(exchange_headers: list[tuple[str, str]], *but: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in exchange_headers if name.lower() not in but]


# Endpoints.


def test_the_endpoint_table_is_the_contract() -> None:
    by_default = {endpoint.path for endpoint in ENDPOINTS if not endpoint.dialect.optional}
    assert by_default == {*JSON_PATHS, *FORM_PATHS, *ROOT_PATHS, "/v1/realtime"}


@pytest.mark.parametrize("path", [*JSON_PATHS, *FORM_PATHS])
async def test_every_endpoint_is_forwarded_below_the_providers_base_url(
    provider_for: ProviderFor, gateway_for: GatewayFor, path: str
) -> None:
    provider = await provider_for()
    for base in ("/v1", "/openai/api/v1", "/v1/", "", "/api/v3"):
        provider.settings["url"] = f"http://127.0.0.1:{provider.port}{base}"
        provider.on["/api/v3/models"] = provider.on["/openai/api/v1/models"] = answer(
            200, {"object": "list", "data": [{"id": "m"}]}
        )
        gateway = await gateway_for(provider)
        assert (await ask(gateway.port, good(path))).status == 200
        below = path.removeprefix("/v1")
        assert provider.requests[-1].target == (base.rstrip("/") or "/v1") + below
        assert provider.requests[-1].method == "POST"


@pytest.mark.parametrize("path", ROOT_PATHS)
async def test_what_servers_have_beside_their_v1_is_forwarded_there_by_its_model(
    provider_for: ProviderFor, gateway_for: GatewayFor, path: str
) -> None:
    one, other = await provider_for("one", models=["m"]), await provider_for("other", models=["n"])
    other.settings["url"] = f"http://127.0.0.1:{other.port}/llama/v1"
    other.on["/llama/v1/models"] = answer(200, {"object": "list", "data": [{"id": "n"}]})
    gateway = await gateway_for(one, other)
    for model in ("m", "n"):
        assert (await ask(gateway.port, asking(path, {"model": model, "content": "hi"}))).status == 200
    assert [sent.target for sent in (*one.requests, *other.requests)] == [path, f"/llama{path}"]
    message = refusal(await ask(gateway.port, asking(path, {"content": "hi"})), 400, "invalid_request")
    assert "no 'model'" in message
    refusal(await ask(gateway.port, asking(path, key=None)), 401, "invalid_api_key")
    refusal(await ask(gateway.port, asking(f"/v1{path}")), 404, "not_found")


async def test_extra_paths_are_forwarded_too_and_nothing_else_is(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    paths = ("/v1/reranking", "/tokenize")
    gateway = await gateway_for(provider, server={"extra_paths": list(paths)})
    for path in paths:
        assert (await ask(gateway.port, good(path))).status == 200
        refusal(await ask(gateway.port, request("GET", path)), 405, "method_not_allowed")
    for path in ("/v1/tokenize", "/tokenize/", "/tokenizer"):
        refusal(await ask(gateway.port, good(path)), 404, "not_found")
    assert [sent.target for sent in provider.requests] == list(paths)


@pytest.mark.parametrize(
    "query", ["a=1&b=2", "beta=true", "a=%2F%3f%20+", "x=/../slots", "a=b?c=d", "&&==", "a;b"]
)
async def test_the_query_passes_as_it_is(provider: FakeProvider, gateway_for: GatewayFor, query: str) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, good(f"{OPENAI}?{query}"))).status == 200
    assert provider.requests[0].target == f"{OPENAI}?{query}"


# Headers of the request.


async def test_end_to_end_headers_pass_in_their_order_spelling_and_number(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    sent = [
        ("X-First", "1"),
        ("x-lower", "a  b\tc"),
        ("X-UPPER", '"quoted, value"; q=0.5'),
        ("X-Twice", "one"),
        ("User-Agent", "Test/1.0 (x; y)"),
        ("X-Twice", "two"),
        ("Cookie", "a=b; c=d"),
        ("Accept-Encoding", "gzip, deflate"),
        ("X-Obs", "caf\xe9 \xff"),
        ("X-Empty", ""),
        ("Content-Type", "text/plain; charset=latin-1"),
        ("anthropic-version", "2023-06-01"),
        ("OpenAI-Beta", "assistants=v2"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Range", "bytes=0-1"),
        ("If-None-Match", '"x"'),
    ]
    response = await ask(gateway.port, asking(OPENAI, {"model": "m"}, KEY, *(f"{n}: {v}" for n, v in sent)))
    assert response.status == 200
    came = fields(provider.requests[0].headers, "host", "content-length", "x-request-id", "via")
    assert came == sent


async def test_hop_by_hop_headers_and_what_connection_names_end_here(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    headers = (
        "Connection: keep-alive, X-Named",
        "connection: x-ALSO ,, , content-type",
        "X-Named: 1",
        "x-also: 2",
        "Content-Type: application/json",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: Basic eDp5",
        "Proxy-Authenticate: Basic",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X-T",
        "Upgrade: websocket",
        "Expect: nothing",
        "X-Stays: 1",
    )
    assert (await ask(gateway.port, good(OPENAI, *headers))).status == 200
    came = provider.requests[0].headers
    assert fields(came, "host", "content-length", "x-request-id", "via") == [("X-Stays", "1")]
    assert provider.requests[0].header("host") == f"127.0.0.1:{provider.port}"


async def test_connection_cannot_name_the_providers_own_fields_away(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", key="provider-key", headers={"X-Own": "1"})
    gateway = await gateway_for(provider)
    named = "Connection: authorization, x-own, host, content-length, x-request-id, keep-alive"
    assert (await ask(gateway.port, good(OPENAI, named))).status == 200
    for name in ("authorization", "x-own", "host", "content-length", "x-request-id"):
        assert provider.requests[0].header(name), name


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, FORM_PATHS[0]])
async def test_a_provider_gets_its_own_credentials_and_headers_and_never_the_clients(
    provider_for: ProviderFor, gateway_for: GatewayFor, path: str
) -> None:
    provider = await provider_for("rig", key="provider-key", headers={"X-Extra": "yes", "user-agent": "own"})
    gateway = await gateway_for(provider)
    mine = ("x-extra: mine", "User-Agent: mine", "X-EXTRA: mine too")
    assert (await ask(gateway.port, good(path, *CLIENT_CREDENTIALS, *mine))).status == 200
    for sent in (*provider.requests, *provider.probes):
        assert sent.header("authorization") == "Bearer provider-key"
        assert (sent.header("x-extra"), sent.header("user-agent")) == ("yes", "own")
        assert sent.header("x-api-key") is None
        assert KEY not in str(sent)


async def test_a_provider_without_a_key_gets_none(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, good(OPENAI, *CLIENT_CREDENTIALS))).status == 200
    for sent in (*provider.requests, *provider.probes):
        assert sent.header("authorization") is None and KEY not in str(sent)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", None])
async def test_the_content_type_of_json_is_not_checked(
    provider: FakeProvider, gateway_for: GatewayFor, content_type: str | None
) -> None:
    gateway = await gateway_for(provider)
    headers = () if content_type is None else (f"Content-Type: {content_type}",)
    assert (await ask(gateway.port, good(OPENAI, *headers))).status == 200
    assert provider.requests[0].header("content-type") == content_type


# The request id.


@pytest.mark.parametrize("own", ["abc", "req_1-2.3:4/5+6=", "x" * 128, "0"])
async def test_a_sane_request_id_of_the_client_is_kept(
    provider: FakeProvider, gateway_for: GatewayFor, own: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, good(OPENAI, f"X-Request-ID: {own}"))
    assert response.header("x-request-id") == own
    refused = await ask(gateway.port, asking(ANTHROPIC, b"{", KEY, f"x-request-id: {own}"))
    assert refused.header("x-request-id") == refused.json["request_id"] == own


@pytest.mark.parametrize("own", ["", "x" * 129, "a b", "a,b", "<script>", "caf\xe9", 'a"b', "a;b"])
async def test_any_other_is_replaced(provider: FakeProvider, gateway_for: GatewayFor, own: str) -> None:
    gateway = await gateway_for(provider)
    made = set()
    for _ in range(3):
        response = await ask(gateway.port, good(OPENAI, f"X-Request-ID: {own}"))
        request_id = response.header("x-request-id")
        assert request_id and re.fullmatch(r"[\w-]{8,}", request_id)
        assert provider.requests[-1].header("x-request-id") == request_id
        made.add(request_id)
    assert len(made) == 3


# Headers of the answer.


OURS = ("x-request-id", "x-gateway-provider", "x-gateway-affinity", "x-gateway-queue-wait")


def told(response: Response) -> list[tuple[str, str]]:
    """The provider's own headers of an answer."""
    return fields(response.headers, "date", "content-length", *OURS)


async def through(gateway_for: GatewayFor, provider: FakeProvider, script: Script, *headers: str) -> Response:
    provider.script = script
    gateway = await gateway_for(provider)
    return await ask(gateway.port, good(OPENAI, *headers))


async def test_an_answers_headers_pass_in_their_order_spelling_and_number(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    lines = [
        ("Server", "llama.cpp"),
        ("content-type", "application/json; charset=utf-8"),
        ("Set-Cookie", "a=1; Path=/"),
        ("X-obs", "caf\xe9"),
        ("set-cookie", "b=2"),
        ("X-Empty", ""),
        ("Access-Control-Allow-Origin", "*"),
        ("ETag", '"x"'),
        ("x-gateway-unheard-of", "1"),
    ]
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    whole = f"HTTP/1.1 201 Made it\r\n{text}Content-Length: 2\r\n\r\n{{}}".encode("latin-1")
    response = await through(gateway_for, provider, raw(whole))
    assert (response.status, bytes(response.body), response.header("content-length")) == (201, b"{}", "2")
    assert [field for field in told(response) if field[0] != "x-gateway-unheard-of"] == lines[:-1]


async def test_hop_by_hop_headers_of_an_answer_end_here(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    lines = (
        "Connection: close, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
        "Trailer: X-T\r\nUpgrade: h2c\r\nTE: x\r\nProxy-Connection: close\r\nX-Stays: 1\r\n"
    )
    response = await through(
        gateway_for, provider, raw(f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\n{{}}".encode())
    )
    assert (response.status, bytes(response.body), told(response)) == (200, b"{}", [("X-Stays", "1")])


async def test_the_gateway_says_itself_who_answered_and_which_request_it_was(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    liar = {
        "X-Gateway-Provider": "other",
        "x-gateway-error": "no_provider",
        "X-Request-Id": "theirs",
        "X-Gateway-Affinity": "spill",
        "X-Gateway-Queue-Wait": "99",
    }
    provider.script = answer(400, {}, liar)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(None, "x-request-id: mine"))
    assert [(name.lower(), value) for name, value in response.headers if name.lower() in OURS] == [
        ("x-gateway-provider", "rig"),
        ("x-gateway-affinity", "miss"),
        ("x-gateway-queue-wait", "0.000"),
        ("x-request-id", "mine"),
    ]
    assert response.header("x-gateway-error") is None


async def test_what_belongs_to_no_conversation_is_not_said_to_have_a_home(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    liar = {"x-gateway-affinity": "hit"}
    provider.script = answer(200, {}, liar)
    gateway = await gateway_for(provider)
    words = {"model": "m", "input": ["a text to embed"], "messages": [{"role": "user", "content": "hi"}]}
    for path in set(JSON_PATHS) - {OPENAI, "/v1/completions", "/v1/responses", ANTHROPIC}:
        response = await ask(gateway.port, asking(path, words, KEY, "x-session-id: 7"))
        assert (response.status, response.header("x-gateway-affinity")) == (200, None)
    for message in (good(OPENAI), good(FORM_PATHS[0])):
        assert (await ask(gateway.port, message)).header("x-gateway-affinity") is None
    for path in (OPENAI, "/v1/responses", ANTHROPIC):
        assert (await ask(gateway.port, asking(path, words, KEY))).header("x-gateway-affinity")


async def test_the_gateways_own_answers_name_no_provider(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    for message in (request("GET", "/v1/models"), request("GET", "/healthz"), asking(OPENAI, b"{")):
        response = await ask(gateway.port, message)
        assert [name for name in OURS if response.header(name)] == ["x-request-id"]


async def test_a_date_is_added_only_where_there_is_none(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    theirs = "Tue, 15 Nov 1994 08:12:31 GMT"
    response = await through(gateway_for, provider, answer(200, {}, {"Date": theirs}))
    assert response.header("date") == theirs
    response = await through(gateway_for, provider, answer(200, {}, {"Last-Modified-Date": theirs}))
    assert response.header("date") not in (None, theirs)


@pytest.mark.parametrize("status", [200, 203, 206, 400, 402, 404, 409, 418, 422, 429, 499, 501])
async def test_every_answer_below_500_or_of_501_but_a_refusal_and_a_redirect_passes_unchanged(
    provider: FakeProvider, gateway_for: GatewayFor, status: int
) -> None:
    body = b'{"error": "theirs"}'
    headers = {"Location": "http://127.0.0.1:9/elsewhere", "Retry-After": "7"}
    response = await through(gateway_for, provider, answer(status, body, headers))
    assert (response.status, bytes(response.body), response.ending) == (status, body, Ending.COMPLETE)
    assert (response.header("location"), response.header("retry-after")) == tuple(headers.values())
    assert response.header("x-gateway-error") is None
    assert len(provider.calls) == 1


@pytest.mark.parametrize("status", [401, 403, 500, 502, 503, 599])
async def test_the_others_are_502(provider: FakeProvider, gateway_for: GatewayFor, status: int) -> None:
    response = await through(gateway_for, provider, answer(status, {}))
    assert str(status) in refusal(response, 502, "upstream_error")


# Bodies and framing of the answer.


async def test_a_compressed_answer_passes_as_it_is(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    zipped = gzip.compress(b'{"a": "b"}', mtime=0)
    response = await through(
        gateway_for, provider, answer(200, zipped, {"Content-Encoding": "gzip"}), "Accept-Encoding: gzip"
    )
    assert (response.header("content-encoding"), bytes(response.body)) == ("gzip", zipped)
    assert provider.requests[0].header("accept-encoding") == "gzip"


async def test_a_compressed_stream_passes_as_it_is(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    zipped = gzip.compress(b"data: 1\n\ndata: [DONE]\n\n", mtime=0)
    script = play(sse({"Content-Encoding": "gzip"}), chunk(zipped[:9]), chunk(zipped[9:]), end())
    response = await through(gateway_for, provider, script)
    assert (response.header("content-encoding"), bytes(response.body)) == ("gzip", zipped)


JSON_CHUNKED = head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
JSON_CLOSED = head(200, {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("script", "framing", "body"),
    [
        (answer(200, b'{"a": 1}'), "length", b'{"a": 1}'),
        (answer(200, b""), "length", b""),
        (play(JSON_CHUNKED, chunk(b'{"a'), chunk(b'": 1}'), end()), "chunked", b'{"a": 1}'),
        (play(JSON_CHUNKED, end()), "chunked", b""),
        (play(JSON_CLOSED, raw(b'{"a": 1}'), cut()), "chunked", b'{"a": 1}'),
        (play(JSON_CLOSED, cut()), "chunked", b""),
        (play(interim(100), interim(103, {"Link": "x"}), answer(200, b"{}")), "length", b"{}"),
        (raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "length", b"{}"),
        (raw(b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\n{}"), "length", b"{}"),
    ],
    ids=range(9),
)
async def test_an_answer_keeps_its_length_or_is_chunked(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script, framing: str, body: bytes
) -> None:
    provider.script = script
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for _ in range(3):
            await client.send(good(OPENAI))
            response = await client.response()
            assert (response.framing, bytes(response.body)) == (framing, body)
            assert (response.ending, response.interim) == (Ending.COMPLETE, [])
            said = (response.header("content-length"), response.header("transfer-encoding"))
            assert said == ((str(len(body)), None) if framing == "length" else (None, "chunked"))


@pytest.mark.parametrize(
    "told_so",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_an_answer_without_a_body_has_none_and_the_connection_serves_on(
    provider: FakeProvider, gateway_for: GatewayFor, told_so: bytes
) -> None:
    provider.once(raw(told_so))
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(good(OPENAI))
        response = await client.response()
        assert (response.status, bytes(response.body)) == (int(told_so[9:12]), b"")
        assert response.header("transfer-encoding") is None
        await client.send(good(OPENAI))
        assert (await client.response()).json["choices"]


async def test_an_http_1_0_client_gets_a_body_that_ends_with_the_connection_and_no_chunks(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = stream("Hello", " world")
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (response.framing, response.ending) == ("close", Ending.CLOSED)
    assert response.header("connection") in (None, "close")
    assert response.events[-1] == "[DONE]"


async def test_an_http_1_0_client_that_wants_to_stay_is_told_that_it_may(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = completion()
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for _ in range(2):
            await client.send(chat(None, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
            response = await client.response()
            assert (response.status, response.framing) == (200, "length")
            assert response.header("connection") == "keep-alive"


async def test_a_client_that_says_close_is_closed(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(good(OPENAI, "Connection: close"))
        assert (await client.response()).header("connection") == "close"
        assert await client.closed() is Ending.CUT


@pytest.mark.parametrize("theirs", [{}, {"X-Accel-Buffering": "yes", "Cache-Control": "no-store"}])
async def test_a_stream_is_told_not_to_be_held_back_unless_the_provider_said_something_itself(
    provider: FakeProvider, gateway_for: GatewayFor, theirs: dict[str, str]
) -> None:
    response = await through(gateway_for, provider, play(sse(theirs), word("Hi"), done()))
    expected: dict[str, Any] = theirs or {"X-Accel-Buffering": "no", "Cache-Control": "no-cache"}
    assert {name: response.header(name) for name in expected} == expected


async def test_trailers_of_an_answer_end_here(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    async def trailing(exchange: Exchange) -> None:
        await exchange.head(200, {"Transfer-Encoding": "chunked", "Trailer": "X-T"})
        await exchange.chunk(b"{}")
        exchange.complete = True
        await exchange.send(b"0\r\nX-T: 1\r\nX-Gateway-Provider: other\r\n\r\n")

    response = await through(gateway_for, provider, trailing)
    assert (bytes(response.body), response.ending) == (b"{}", Ending.COMPLETE)
    assert (response.header("x-t"), response.header("x-gateway-provider")) == (None, "rig")
