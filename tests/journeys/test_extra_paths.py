"""Paths beside the endpoints, by any method and with or without a model; and bodies that name no model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgateway.config.load import build, parse
from llmgateway.config.tree import ConfigError
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.journeys.test_forwarding import FORM_TYPE
from tests.raw_client import Response, request
from tests.script import answer, error

VOICES = "/v1/audio/voices"
LIMITED = "sk-limited-" + "l" * 40
HOUSE = {"alice": {"keys": [KEY]}, "bob": {"keys": [{"key": LIMITED, "models": ["small"]}]}}


def path(path: str = VOICES, **more: str) -> dict[str, Any]:
    return {"server": {"extra_paths": [{"path": path, **more}]}}


async def get(gateway: Gateway, target: str, key: str = KEY, *headers: str) -> Response:
    return await ask(gateway.port, request("GET", target, *headers, key=key), to="GET")


async def test_a_get_goes_to_whoever_has_the_path(gateway_for: GatewayFor, provider_for: ProviderFor) -> None:
    without = [await provider_for(name, models=["m"]) for name in ("a", "b", "c")]
    last = await provider_for("z", models=["kokoro"])
    last.on[VOICES] = answer(200, {"voices": ["af_heart"]})
    without[1].on[VOICES] = error(405, "Method Not Allowed")
    gateway = await gateway_for(*without, last, **path(method="GET"))
    for _ in range(5):
        response = await get(gateway, f"{VOICES}?lang=en")
        assert (response.status, response.json) == (200, {"voices": ["af_heart"]})
        assert response.header("x-gateway-provider") == "z"
    sent = [each for each in last.probes if each.target == f"{VOICES}?lang=en"]
    assert len(sent) == 5 and {each.method for each in sent} == {"GET"}
    assert sent[0].header("content-length") is None and sent[0].header("authorization") is None


async def test_where_nobody_has_the_path_the_last_404_passes_on(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    gateway = await gateway_for(await provider_for("a"), await provider_for("b"), **path(method="GET"))
    response = await get(gateway, VOICES)
    assert (response.status, response.header("x-gateway-error")) == (404, None)
    await eventually(lambda: gateway.fleet.providers["a"].online and gateway.fleet.providers["b"].online)


async def test_where_nobody_is_there_the_error_names_the_path(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    health = {"interval": "100ms", "timeout": "10m", "fall": 1}
    gateway = await gateway_for(provider, **path(method="GET"), health=health)
    await provider.refuse()
    response = await get(gateway, VOICES)
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    response = await get(gateway, VOICES)
    assert VOICES in refusal(response, 404, "no_provider")


async def test_a_model_in_the_query_says_who_is_asked(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    one, other = await provider_for("one", models=["m"]), await provider_for("other", models=["kokoro"])
    for each in (one, other):
        each.on[VOICES] = answer(200, {"of": each.name})
    gateway = await gateway_for(one, other, **path(method="GET", model="query"))
    for _ in range(4):
        assert (await get(gateway, f"{VOICES}?a=1&model=kokoro")).json == {"of": "other"}
        assert (await get(gateway, f"{VOICES}?model=m")).json == {"of": "one"}
    assert "'nope'" in refusal(await get(gateway, f"{VOICES}?model=nope"), 404, "no_provider")
    refusal(await get(gateway, f"{VOICES}?model=m&model=kokoro"), 400, "invalid_request")
    assert (await get(gateway, f"{VOICES}?model=")).status == 200


async def test_a_model_in_the_query_counts_for_nothing_where_none_is_named(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.on[VOICES] = answer(200, {})
    gateway = await gateway_for(provider, **path(method="GET", model="none"))
    assert (await get(gateway, f"{VOICES}?model=nope")).status == 200


@pytest.mark.parametrize("body", [b"", b"\x00\xff", b'{"x": 1}', b'{"model": 3}'])
async def test_a_post_without_a_model_passes_whatever_its_body_is(
    gateway_for: GatewayFor, provider: FakeProvider, body: bytes
) -> None:
    gateway = await gateway_for(provider, **path("/v1/unload", model="none"))
    assert (await ask(gateway.port, request("POST", "/v1/unload", body=body))).status == 200
    assert provider.requests[0].body == body


async def test_one_path_may_take_both_methods_each_in_its_way(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.on["/v1/things"] = answer(200, {})
    entries = [{"path": "/v1/things", "method": "GET"}, "/v1/things", {"path": OPENAI, "method": "get"}]
    gateway = await gateway_for(provider, server={"extra_paths": entries})
    assert (await get(gateway, "/v1/things")).status == 200
    refusal(await ask(gateway.port, asking("/v1/things", {})), 400, "invalid_request")
    assert (await ask(gateway.port, asking("/v1/things"))).status == 200
    assert (await ask(gateway.port, asking(OPENAI))).status == 200
    provider.on[OPENAI] = answer(200, {"object": "list"})
    assert (await get(gateway, f"{OPENAI}?limit=3")).json == {"object": "list"}
    response = await ask(gateway.port, request("DELETE", "/v1/things"))
    refusal(response, 405, "method_not_allowed")
    assert sorted((response.header("allow") or "").split(", ")) == ["GET", "POST"]


async def test_only_what_the_caller_may_use_is_asked(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    theirs = await provider_for("theirs", models=["small"], owner="bob")
    big, small = await provider_for("big", models=["big"]), await provider_for("small", models=["small"])
    for each in (theirs, big, small):
        each.on[VOICES] = answer(200, {"of": each.name})
    gateway = await gateway_for(theirs, big, small, users=HOUSE, **path(method="GET"))
    of_alice = {(await get(gateway, VOICES)).json["of"] for _ in range(12)}
    of_bob = {(await get(gateway, VOICES, LIMITED)).json["of"] for _ in range(12)}
    assert "theirs" not in of_alice and "big" not in of_bob
    refusal(await get(gateway, f"{VOICES}?model=big", LIMITED), 403, "model_not_allowed")
    refusal(await get(gateway, VOICES, "sk-wrong"), 401, "invalid_api_key")


async def test_a_path_can_come_and_go_while_the_gateway_runs(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.on[VOICES] = answer(200, {})
    gateway = await gateway_for(provider)
    refusal(await get(gateway, VOICES), 404, "not_found")
    gateway.adopt(build(settings(provider, **path(method="GET"))))
    assert (await get(gateway, VOICES)).status == 200
    gateway.adopt(build(settings(provider, **path(method="POST"))))
    refusal(await get(gateway, VOICES), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{path: /v1/x, method: PUT}", "1:46: server.extra_paths[0].method: 'PUT' is not one of the choices"),
        ("{path: /v1/x, model: header}", "1:45: server.extra_paths[0].model: 'header' is not one of"),
        ("{path: /v1/x, method: GET, model: body}", "1:58: server.extra_paths[0].model: a GET has no body"),
        ("{method: GET}", "1:24: server.extra_paths[0].path: `path` is missing"),
        ("{path: v1/x, method: GET}", "1:31: server.extra_paths[0].path: 'v1/x' does not begin with /"),
        (f"{{path: {OPENAI}}}", f"1:31: server.extra_paths[0].path: '{OPENAI}' is forwarded anyway"),
        ("{path: /v1/models, method: GET}", "is answered by the gateway itself"),
        ("{path: /v1/x, methods: GET}", "server.extra_paths[0].methods: unknown key; did you mean `method`?"),
        ("[/v1/x]", "server.extra_paths[0]: a mapping belongs here"),
        ("/v1/x, {path: /v1/x}", "server.extra_paths[1]: this path stands here twice"),
        ("{path: /v1/x, method: GET}, {path: /v1/x, method: get}", "stands here twice"),
    ],
)
def test_an_entry_that_cannot_be_is_told_with_its_place(entry: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"server: {{extra_paths: [{entry}]}}", file="c.yaml", environ={})
    assert said in str(caught.value)


# The default model.

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


async def test_without_a_default_a_body_without_a_model_is_refused(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    for body in (MESSAGES, {**MESSAGES, "model": None}, {**MESSAGES, "model": ""}):
        refusal(await ask(gateway.port, asking(OPENAI, body)), 400, "invalid_request")


@pytest.mark.parametrize("target", [OPENAI, ANTHROPIC, "/v1/embeddings", "/tokenize"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"{}", b" {\n} \n", b'{"messages": [], "stream": false}', b'{"model": null, "a": {"b": {}}}'),
        *(b'{"model": "", "messages": []}', b'\xef\xbb\xbf{"messages": [], "t": NaN}'),
    ],
)
async def test_the_default_model_is_that_of_bodies_that_name_none(
    gateway_for: GatewayFor, provider_for: ProviderFor, target: str, body: bytes
) -> None:
    other, rig = await provider_for("other", models=["x"]), await provider_for("rig", models=['m "1"'])
    gateway = await gateway_for(other, rig, server={"default_model": 'm "1"'})
    assert (await ask(gateway.port, asking(target, body))).status == 200
    (sent,) = rig.requests
    seen = json.loads(sent.body.decode("utf-8-sig"))
    assert seen["model"] == 'm "1"'
    at = body.rindex(b"}")
    assert sent.body.startswith(body[:at]) and sent.body.endswith(body[at:])
    assert sent.header("content-length") == str(len(sent.body))
    line = gateway.ledger.recent
    await eventually(lambda: line and line[-1]["model"] == 'm "1"' and line[-1]["bytes_in"] == len(body))


@pytest.mark.parametrize("size", [40_000, 300_000, 2_000_000])
@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": None}], ids=["none", "empty", "null"])
async def test_the_default_model_is_that_of_long_bodies_that_name_none(
    gateway_for: GatewayFor, provider: FakeProvider, model: dict[str, Any], size: int
) -> None:
    gateway = await gateway_for(provider, server={"default_model": "m"})
    body = {**model, "messages": [{"role": "user", "content": "a" * size}]}
    assert (await ask(gateway.port, asking(OPENAI, body))).status == 200
    assert json.loads(provider.requests[0].body) == {**body, "model": "m"}


async def test_the_default_model_is_that_of_forms_that_name_none(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"default_model": "m"})
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n--x\r\n--b--\r\n'
    target = "/v1/audio/transcriptions"
    assert (await ask(gateway.port, asking(target, form, KEY, FORM_TYPE))).status == 200
    sent = provider.requests[0].body
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    assert sent == part + form


async def test_a_model_that_is_named_goes_before_the_default(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for("rig", models=["m", "n"])
    gateway = await gateway_for(rig, server={"default_model": "n"})
    assert (await ask(gateway.port, asking(OPENAI))).status == 200
    assert json.loads(rig.requests[0].body)["model"] == "m"
    for body in ({"model": 3}, {"model": ["m"]}, {"model": "nope"}):
        assert (await ask(gateway.port, asking(OPENAI, body))).status in (400, 404)
    assert len(rig.requests) == 1


async def test_the_default_model_opens_nothing_that_a_key_may_not_use(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users=HOUSE, server={"default_model": "m"})
    refusal(await ask(gateway.port, asking(OPENAI, MESSAGES, LIMITED)), 403, "model_not_allowed")


async def test_the_default_model_can_change_while_the_gateway_runs(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    gateway.adopt(build(settings(provider, server={"default_model": "m"})))
    assert (await ask(gateway.port, asking(OPENAI, MESSAGES))).status == 200
    gateway.adopt(build(settings(provider)))
    refusal(await ask(gateway.port, asking(OPENAI, MESSAGES)), 400, "invalid_request")


def test_a_default_model_that_no_provider_can_have_gets_a_warning() -> None:
    text = "server: {default_model: n}\nproviders: {rig: {url: 'http://h/v1', models: [m]}}"
    (found,) = [w for w in parse(text, file="c.yaml", environ={}).warnings if "default_model" in w.path]
    assert (found.line, found.column) == (1, 25) and "no provider serves" in found.message
    for more in ("url: 'http://h/v1'", "url: 'http://h/v1', models: [n]"):
        text = f"server: {{default_model: n}}\nproviders: {{rig: {{{more}}}}}"
        assert not [w for w in parse(text, file="c.yaml", environ={}).warnings if "default_model" in w.path]


def test_a_default_model_must_be_a_name() -> None:
    with pytest.raises(ConfigError, match=r"1:25: server\.default_model: ' m' is not a model name"):
        parse("server: {default_model: ' m'}", file="c.yaml", environ={})
