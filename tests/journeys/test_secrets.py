"""Keys in odd places, and providers that repeat what they were told; `secrecy` looks through what leaves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_errors import ask
from tests.raw_client import chat, request
from tests.script import answer, error, raw
from tests.secrecy import PROMPT
from tests.web.visit import snapshot

SECRET = "correct-horse-battery-staple"
HIDDEN = "sk-***"
LINUX = Path("/proc/self/cmdline").exists()

# What a client mixes up.

MIXED_UP = {
    "the model": chat(json.dumps({"model": KEY, "messages": []}).encode()),
    "a part of the model": chat(json.dumps({"model": f"openai/{KEY}:latest", "messages": []}).encode()),
    "the path": request("POST", f"/{KEY}/v1/chat/completions", body=b"{}"),
    "the end of the path": request("GET", f"/v1/models/{KEY}"),
    "the id of a response": request("GET", f"/v1/responses/{KEY}"),
    "the query": request("GET", f"/v1/nothing?key={KEY}"),
    "a user without a key": request("GET", f"/v1/models?api_key={KEY}", key=None),
    "the method": request(KEY, "/v1/models"),
    "the version": b"GET /v1/models " + KEY.encode() + b"\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: x\r\n" + KEY.encode() + b"\r\n\r\n",
    "the host": request("GET", f"http://{KEY}@gateway/v1/models/nothing"),
    "a scheme of its own": request("GET", "/v1/models", f"Authorization: {KEY}", key=None),
    "the length": request("POST", "/v1/chat/completions", f"Content-Length: {KEY}"),
    "the coding": chat(None, f"Content-Encoding: {KEY}"),
    "the origin": request("POST", "/gateway/session", f"Origin: http://{KEY}", body=b"{}"),
    "the expectation": chat(None, f"Expect: {KEY}"),
    "a broken body": chat(b'{"model": "m", "key": "' + KEY.encode() + b'"'),
}


@pytest.mark.parametrize("place", MIXED_UP)
async def test_a_key_in_the_place_of_something_else_is_repeated_nowhere(
    gateway_for: GatewayFor, provider: FakeProvider, tmp_path: Path, place: str
) -> None:
    gateway = await gateway_for(provider, log={"requests": str(tmp_path / "requests.jsonl")})
    response = await ask(gateway.port, MIXED_UP[place])
    assert response.status >= 400 or place == "the expectation"
    told = str(response.headers) + response.body.decode()
    assert KEY not in told


async def test_a_model_that_is_a_key_is_told_to_be_one(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, MIXED_UP["the model"])
    assert HIDDEN in response.json["error"]["message"]


async def test_a_key_as_the_id_of_a_request_is_no_id_and_no_provider_hears_it(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(None, f"X-Request-Id: {KEY}"))
    assert KEY not in (response.header("x-request-id") or KEY)
    assert provider.requests[0].header("x-request-id") not in (None, KEY)


# What a provider repeats.

REPEATING: dict[str, dict[str, Any]] = {
    "an api_key": {"key": SECRET},
    "a header": {"headers": {"X-Auth": SECRET}},
    "a bearer": {"headers": {"Authorization": f"Bearer {SECRET}"}},
    "a cookie": {"headers": {"Cookie": f"theme=dark; session={SECRET}"}},
}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 429, 500, 501, 503])
@pytest.mark.parametrize("kind", REPEATING)
async def test_no_refusal_of_a_provider_repeats_its_credentials_to_a_client(
    provider_for: ProviderFor, gateway_for: GatewayFor, kind: str, status: int
) -> None:
    provider = await provider_for("rig", **REPEATING[kind])
    provider.script = error(status, f"what came was {SECRET}, sorry")
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert response.status >= 400
    assert SECRET not in response.body.decode() and b"sorry" in response.body


async def test_a_refusal_is_as_long_as_it_was_and_nothing_else_of_it_changes(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", key=SECRET)
    body = b'{"error":  "\xff' + SECRET.encode() + b" \\u0041 " + SECRET.encode() + b'"}\n'
    provider.script = answer(400, body)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert (response.status, response.framing) == (400, "length")
    assert bytes(response.body) == body.replace(SECRET.encode(), b"*" * len(SECRET))


async def test_of_two_candidates_refusals_none_repeats_a_secret(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    one, other = await provider_for("one", key=SECRET), await provider_for("other", key=SECRET)
    one.script = other.script = error(429, f"{SECRET} has asked too often, sorry")
    gateway = await gateway_for(one, other)
    response = await ask(gateway.port, chat())
    assert response.status == 429 and b"asked too often, sorry" in response.body


async def test_a_compressed_refusal_that_repeats_a_secret_is_told_instead(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", key=SECRET)
    packed = gzip.compress(json.dumps({"error": f"no {SECRET}, sorry"}).encode())
    provider.script = answer(400, packed, {"Content-Encoding": "gzip"})
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(None, "Accept-Encoding: gzip"))
    assert response.status == 502
    assert response.json["error"]["message"] == "Provider 'rig' answered 400: no ***, sorry"


async def test_short_words_of_a_config_are_left_in_refusals(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", headers={"X-Level": "2", "X-Title": "home"})
    provider.script = error(400, "2 is too much for a home")
    gateway = await gateway_for(provider)
    assert "2 is too much for a home" in (await ask(gateway.port, chat())).body.decode()


async def test_what_a_provider_repeats_to_a_probe_is_neither_logged_nor_shown(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", headers={"Authorization": f"Bearer {SECRET}"})
    provider.on["/v1/models"] = error(500, f"no {SECRET}, sorry")
    gateway = await gateway_for(provider)
    assert "sorry" in str(await snapshot(gateway))


async def test_a_redirect_with_a_token_is_told_without_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", key=SECRET)
    where = f"http://me:{SECRET}@h/login/{SECRET}?token={SECRET}#{SECRET}"
    provider.script = answer(302, b"", {"Location": where})
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert response.status == 502 and SECRET not in response.body.decode()


async def test_an_answer_that_is_no_http_is_not_quoted(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for("rig", key=SECRET)
    provider.script = raw(f"HTTP/1.1 {SECRET} {PROMPT}\r\n{SECRET}\r\n\r\n".encode())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat())
    assert response.status == 502 and SECRET not in response.body.decode()
    assert PROMPT not in response.body.decode()


# The process.


async def test_the_list_of_processes_and_what_a_program_says_show_no_key(
    program_for: ProgramFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for("rig", key=SECRET)
    program = await program_for(provider, log={"level": "debug", "format": "json"})
    await ask(program.port, chat())
    await ask(program.port, MIXED_UP["the model"])
    provider.script = error(500, f"no {SECRET}")
    await ask(program.port, chat())
    provider.script = error(401, f"no {SECRET}")
    await ask(program.port, chat())
    listed = b"".join(
        Path(f"/proc/{program.pid}/{name}").read_bytes() for name in ("cmdline", "comm") if LINUX
    )
    assert SECRET.encode() not in listed and KEY.encode() not in listed
    await program.says("no \\*\\*\\*")
    assert SECRET not in program.err and KEY not in program.err
