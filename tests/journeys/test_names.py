"""A model is called what the config calls it: aliases, renamed models, fallbacks, and who may use what."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llmgateway.cli.terminal import render
from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import FAMILY, QUICK, ask, ask_for, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.journeys.test_ollama import as_ollama
from tests.raw_client import Response, chat, request
from tests.script import answer, cut, error, loading, play, polite, sse, stall, wait, word
from tests.web.visit import snapshot

LONG = "Qwen/Qwen3-8B-GGUF:Q4_K_M"
SHORT = {"name": "qwen", "as": LONG}


async def line_of(gateway: Gateway, count: int = 1) -> dict[str, Any]:
    """What the request log says of the newest request."""

    def are_booked() -> bool:
        gateway.ledger.book()
        return len(gateway.ledger.recent) >= count

    await eventually(are_booked)
    return gateway.ledger.recent[-1]


def told(provider: FakeProvider) -> list[str]:
    """The models that a provider was asked for."""
    return [asked.json["model"] for asked in provider.requests]


def key_for(*models: str) -> dict[str, Any]:
    return {"alice": {"keys": [{"name": "k", "key": KEY, "models": list(models)}]}}


def seen_in(response: Response) -> tuple[int, str | None, str | None]:
    return response.status, response.header("x-gateway-provider"), response.header("x-gateway-model")


async def with_list(provider_for: ProviderFor, name: str, *models: object, **config: Any) -> FakeProvider:
    """A provider of which the config says what it serves."""
    provider = await provider_for(name, models=[], **config)
    provider.settings["models"] = list(models)
    return provider


async def listed(gateway: Gateway, *headers: str) -> dict[str, Any]:
    response = await ask(gateway.port, request("GET", "/v1/models", *headers))
    return {entry["id"]: entry for entry in response.json["data"]}


# --- what the server is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True], ids=["buffered", "stream"])
@pytest.mark.parametrize(
    "config", [{"models": [SHORT, "other"]}, {"rename": {LONG: "qwen"}}], ids=["models", "rename"]
)
async def test_a_server_is_told_its_own_name_and_nothing_else_changes(
    provider_for: ProviderFor, gateway_for: GatewayFor, config: dict[str, Any], streams: bool
) -> None:
    rig = await provider_for("rig", models=[LONG, "other"])
    rig.settings.update(config)
    gateway = await gateway_for(rig)
    assert set(await listed(gateway)) == {"qwen", "other"}
    body = b'{ "x":"\\u0061","model": "a", "messages":[{"role":"user","content":"model"}],"model" :"qwen"%b} '
    body %= b',"stream":true' if streams else b""
    response = await ask(gateway.port, chat(body))
    assert seen_in(response) == (200, "rig", LONG)
    (asked,) = rig.requests
    assert asked.body == body.replace(b'"qwen"', json.dumps(LONG).encode())
    assert asked.header("content-length") == str(len(asked.body))
    assert LONG.encode() in response.body, "answers are not rewritten"
    assert (await line_of(gateway))["model"] == "qwen"
    assert "asked_model" not in await line_of(gateway)
    assert seen_in(await ask(gateway.port, ask_for("other"))) == (200, "rig", None)
    assert told(rig)[1] == "other"


async def test_a_name_that_was_given_another_is_no_name_any_more(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig", models=[LONG], rename={LONG: "qwen"}))
    assert (await ask(gateway.port, ask_for(LONG))).status == 404


async def test_what_is_renamed_goes_before_what_the_server_calls_so_itself(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["qwen", LONG, "b"], rename={LONG: "qwen"})
    gateway = await gateway_for(rig)
    assert set(await listed(gateway)) == {"qwen", "b"}
    assert seen_in(await ask(gateway.port, ask_for("qwen"))) == (200, "rig", LONG)


async def test_each_candidate_is_told_the_name_that_it_knows(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    desk = await with_list(provider_for, "desk", SHORT)
    mini = await provider_for("mini", models=["qwen3:8b"], rename={"qwen3:8b": "qwen"})
    rig = await provider_for("rig", models=["qwen"])
    for each in (desk, mini, rig):
        each.script = error(500)
    gateway = await gateway_for(desk, mini, rig)
    message = ask_for("qwen")
    assert (await ask(gateway.port, message)).status == 502
    assert (told(desk), told(mini), told(rig)) == ([LONG], ["qwen3:8b"], ["qwen"])
    assert rig.requests[0].body == message.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [40_000, 3_000_000])
async def test_a_large_body_is_another_only_in_its_name_for_each_candidate(
    provider_for: ProviderFor, gateway_for: GatewayFor, size: int
) -> None:
    desk = await with_list(provider_for, "desk", SHORT)
    rig = await provider_for("rig", models=["qwen"])
    desk.script = rig.script = error(500)
    gateway = await gateway_for(desk, rig, aliases={"gpt": "qwen"})
    said = json.dumps({"role": "user", "content": '\\model": é' + "x" * size + ' "model":"a"'})
    before, behind = '{"model":"a","messages":[', ',{"role":"user","model":"b"}], "model" : "gpt" , "n":1}'
    body = before + said + behind
    assert (await ask(gateway.port, chat(body.encode()))).status == 502
    for provider, name in ((desk, LONG), (rig, "qwen")):
        (asked,) = provider.requests
        assert asked.body == body.replace('"gpt"', f'"{name}"').encode()
        assert asked.header("content-length") == str(len(asked.body))
    desk.script = error(400)
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (400, "desk", LONG)


async def test_an_answer_that_was_held_back_tells_the_name_that_its_server_was_told(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    desk = await with_list(provider_for, "desk", SHORT)
    rig = await provider_for("rig", models=["qwen"])
    desk.script, rig.script = error(404), error(500)
    gateway = await gateway_for(desk, rig)
    for _ in range(4):
        assert seen_in(await ask(gateway.port, ask_for("qwen"))) == (404, "desk", LONG)


async def test_a_form_and_a_query_are_renamed_as_well(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["whisper-large"], rename={"whisper-large": "whisper"})
    rig.on["/v1/voices"] = answer(200, [])
    extra = {"path": "/v1/voices", "method": "GET", "model": "query"}
    gateway = await gateway_for(rig, server={"extra_paths": [extra]}, aliases={"whisper-1": "whisper"})
    name = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff'
        b"model\r\n" + name + b"--x--\r\n"
    )
    kind = "Content-Type: multipart/form-data; boundary=x"
    for asked in (b"whisper", b"whisper-1"):
        message = request("POST", "/v1/audio/transcriptions", kind, body=form % asked)
        assert seen_in(await ask(gateway.port, message)) == (200, "rig", "whisper-large")
        assert rig.requests[-1].body == form % b"whisper-large"
        assert rig.requests[-1].header("content-length") == str(len(form % b"whisper-large"))
    got = await ask(gateway.port, request("GET", "/v1/voices?a=b&model=whisper-1&c="))
    assert (got.status, got.header("x-gateway-model")) == (200, "whisper-large")
    assert rig.probes[-1].target == "/v1/voices?a=b&model=whisper-large&c="


async def test_facts_that_a_server_tells_of_a_model_are_those_of_its_new_name(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    box = as_ollama(provider, "qwen3:8b", "m:latest")
    box.on["/api/ps"] = answer(200, {"models": [{"model": "qwen3:8b", "context_length": 4096}]})
    box.settings["rename"] = {"qwen3:8b": "qwen:latest"}
    gateway = await gateway_for(box)
    entry = (await listed(gateway))["qwen:latest"]
    assert (entry["state"], entry["context_length"]) == ("loaded", 4096)
    for name in ("qwen", "qwen:latest"):
        assert seen_in(await ask(gateway.port, ask_for(name))) == (200, "rig", "qwen3:8b")
    assert seen_in(await ask(gateway.port, ask_for("m"))) == (200, "rig", "m:latest")
    assert told(box) == ["qwen3:8b", "qwen3:8b", "m"], "Ollama takes the short name"


async def test_slots_and_queues_go_by_the_name_that_clients_see(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await with_list(provider_for, "rig", SHORT, slots=1)
    rig.once(stall())
    gateway = await gateway_for(rig, aliases={"gpt": "qwen"})
    async with crowd(gateway.port) as send:
        first = await send(ask_for("qwen"))
        await rig.next_call()
        second = await send(ask_for("gpt"))
        await waiting(gateway, 1, "qwen")
        metrics = await ask(gateway.port, request("GET", "/metrics"))
        assert b'gateway_queue_depth{model="qwen"} 1.0' in metrics.body
        first.leave()
        assert seen_in(await second.response()) == (200, "rig", LONG)
    metrics = await ask(gateway.port, request("GET", "/metrics"))
    assert b'model="qwen",outcome="ok"' in metrics.body
    assert LONG.encode() not in metrics.body and b"gpt" not in metrics.body


async def test_new_names_count_as_soon_as_they_are_read(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=[LONG, "b"])
    gateway = await gateway_for(rig, health={"interval": "1h"})
    for new, names in (
        ({"rename": {LONG: "qwen"}}, {"qwen", "b"}),
        ({"rename": {LONG: "q2", "b": "qwen"}}, {"q2", "qwen"}),
        ({"models": [{"name": "x", "as": LONG}]}, {"x"}),
        ({}, {LONG, "b"}),
    ):
        rig.settings = dict(new)
        gateway.adopt(build(settings(rig, health={"interval": "1h"})))
        await eventually(lambda: gateway.ready.is_set())

        async def are_told(names: set[str] = names) -> bool:
            return set(await listed(gateway)) == names

        await eventually(are_told)
        for name in names:
            assert (await ask(gateway.port, ask_for(name))).status == 200


async def test_a_name_is_adopted_while_a_request_waits(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["a"], slots=1)
    rig.once(stall())
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        first = await send(ask_for("a"))
        await rig.next_call()
        second = await send(ask_for("a"))
        await waiting(gateway, 1, "a")
        rig.settings["models"] = [{"name": "a", "as": "b"}]
        gateway.adopt(build(settings(rig)))
        first.leave()
        assert seen_in(await second.response()) == (200, "rig", "b")
    assert told(rig) == ["a", "b"]


@pytest.mark.parametrize("turned", [False, True], ids=["before", "after"])
async def test_an_answer_tells_what_its_server_was_asked_for_then(
    provider_for: ProviderFor, gateway_for: GatewayFor, turned: bool
) -> None:
    gate = asyncio.Event()
    rig = await with_list(provider_for, "rig", *(["qwen"] if turned else [SHORT]))
    rig.script = play(wait(gate), polite())
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        client = await send(ask_for("qwen"))
        await rig.next_call()
        rig.settings["models"] = [SHORT] if turned else ["qwen"]
        gateway.adopt(build(settings(rig)))
        gate.set()
        assert seen_in(await client.response()) == (200, "rig", None if turned else LONG)


# --- aliases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True], ids=["buffered", "stream"])
async def test_an_alias_is_one_of_our_names(
    provider_for: ProviderFor, gateway_for: GatewayFor, streams: bool
) -> None:
    rig = await provider_for("rig", models=["qwen"])
    gateway = await gateway_for(rig, aliases={"gpt-4o-mini": "qwen"})
    response = await ask(gateway.port, ask_for("gpt-4o-mini", stream=streams))
    assert seen_in(response) == (200, "rig", "qwen")
    assert told(rig) == ["qwen"]
    line = await line_of(gateway)
    assert (line["model"], line["asked_model"], line["outcome"]) == ("qwen", "gpt-4o-mini", "ok")
    assert seen_in(await ask(gateway.port, ask_for("qwen"))) == (200, "rig", None)
    assert "asked_model" not in await line_of(gateway, 2)


async def test_an_alias_and_a_servers_own_name_are_both_minded(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    desk = await with_list(provider_for, "desk", SHORT)
    gateway = await gateway_for(desk, aliases={"gpt": "qwen", LONG: "qwen"})
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "desk", LONG)
    assert seen_in(await ask(gateway.port, ask_for(LONG))) == (200, "desk", None), "it is what was asked for"
    assert told(desk) == [LONG, LONG]


async def test_a_real_model_goes_before_an_alias_of_its_name(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", models=["gpt"]), await provider_for("other", models=["qwen"])
    gateway = await gateway_for(rig, other, aliases={"gpt": "qwen"})
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "rig", None)
    assert "alias_of" not in (await listed(gateway))["gpt"]


async def test_a_real_model_that_the_caller_cannot_use_hides_no_alias(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    bobs = await provider_for("bobs", models=["gpt"], owner="bob")
    rig = await provider_for("rig", models=["qwen"])
    gateway = await gateway_for(bobs, rig, users=FAMILY, aliases={"gpt": "qwen"})
    assert (await listed(gateway))["gpt"]["alias_of"] == "qwen"
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "rig", "qwen")


async def test_a_list_stands_for_the_first_that_anybody_online_serves_to_the_caller(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    bobs = await provider_for("bobs", models=["a"], owner="bob")
    first = await provider_for("first", models=["b"])
    second = await provider_for("second", models=["c", "d"])
    gateway = await gateway_for(
        bobs, first, second, users=FAMILY, aliases={"fast": ["x", "a", "b", "c"]}, health=QUICK
    )
    assert seen_in(await ask(gateway.port, ask_for("fast"))) == (200, "first", "b")
    assert (await listed(gateway))["fast"]["alias_of"] == "b"
    await first.refuse()
    assert seen_in(await ask(gateway.port, ask_for("fast"))) == (200, "second", "c"), "before probes tell"
    await eventually(lambda: not gateway.fleet.providers["first"].online)
    assert seen_in(await ask(gateway.port, ask_for("fast"))) == (200, "second", "c")
    assert (await listed(gateway))["fast"]["alias_of"] == "c"
    assert [(await line_of(gateway, n))["model"] for n in (3,)] == ["c"]


async def test_a_list_is_not_left_because_its_first_is_busy(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    first = await provider_for("first", models=["a"], slots=1)
    second = await provider_for("second", models=["b"])
    first.once(stall())
    gateway = await gateway_for(first, second, aliases={"fast": ["a", "b"]})
    async with crowd(gateway.port) as send:
        busy = await send(ask_for("fast"))
        await first.next_call()
        await send(ask_for("fast"))
        await waiting(gateway, 1, "a")
        busy.leave()
    assert not second.calls


async def test_of_a_list_that_nobody_serves_the_first_is_told_of(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["m"])
    gateway = await gateway_for(rig, aliases={"fast": ["a", "b"]})
    response = await ask(gateway.port, ask_for("fast"))
    words = "No online provider serving model 'a' for this user. It was asked for as 'fast'."
    assert (response.status, response.json["error"]["message"]) == (404, words)
    assert response.json["error"]["type"] == "no_provider"
    line = await line_of(gateway)
    assert (line["model"], line["asked_model"], line["outcome"]) == ("a", "fast", "no_provider")
    assert "fast" not in await listed(gateway)
    assert (await ask(gateway.port, request("GET", "/v1/models/fast"))).status == 404


async def test_new_aliases_count_for_the_next_request_and_no_other(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["a", "b"], slots=1)
    rig.once(stall())
    gateway = await gateway_for(rig, aliases={"gpt": "a"})
    async with crowd(gateway.port) as send:
        first = await send(ask_for("gpt"))
        await rig.next_call()
        second = await send(ask_for("gpt"))
        await waiting(gateway, 1, "a")
        gateway.adopt(build(settings(rig, aliases={"gpt": "b", "new": "a"})))
        first.leave()
        assert seen_in(await second.response()) == (200, "rig", "a")
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "rig", "b")
    gateway.adopt(build(settings(rig)))
    assert (await ask(gateway.port, ask_for("gpt"))).status == 404


async def test_aliases_are_listed_with_what_they_stand_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=[{"id": "qwen", "created": 7, "context_length": 9}, "m"])
    gateway = await gateway_for(rig, aliases={"gpt": "qwen", "gone": "nobody", "z": ["nobody", "m"]})
    found = await listed(gateway)
    assert list(found) == ["gpt", "m", "qwen", "z"]
    assert found["gpt"] == {**found["qwen"], "id": "gpt", "alias_of": "qwen"}
    assert found["z"]["alias_of"] == "m"
    alone = await ask(gateway.port, request("GET", "/v1/models/gpt"))
    assert (alone.status, alone.json) == (200, found["gpt"])
    theirs = await listed(gateway, "anthropic-version: 2023-06-01")
    assert theirs["gpt"]["alias_of"] == "qwen" and "alias_of" not in theirs["qwen"]


@pytest.mark.parametrize(
    ("models", "status"), [(["qwen"], 200), (["gpt"], 403), (["m", "gp*"], 403), (["q*"], 200)]
)
async def test_a_keys_models_are_the_published_ones_so_that_an_alias_opens_nothing(
    provider_for: ProviderFor, gateway_for: GatewayFor, models: list[str], status: int
) -> None:
    rig = await provider_for("rig", models=[LONG, "m"], rename={LONG: "qwen"})
    gateway = await gateway_for(rig, users=key_for(*models), aliases={"gpt": "qwen"})
    response = await ask(gateway.port, ask_for("gpt"))
    assert response.status == status
    assert ("gpt" in await listed(gateway)) == (status == 200)
    if status == 403:
        words = "This API key may not use model 'qwen'. It was asked for as 'gpt'."
        assert response.json["error"]["message"] == words
        assert (await line_of(gateway))["asked_model"] == "gpt"


async def test_of_a_list_a_key_gets_the_first_that_it_is_good_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["a", "b"])
    gateway = await gateway_for(rig, users=key_for("b"), aliases={"fast": ["a", "b"]})
    assert seen_in(await ask(gateway.port, ask_for("fast"))) == (200, "rig", "b")


async def test_a_keys_models_do_not_go_by_a_servers_own_names(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=[LONG], rename={LONG: "qwen"})
    gateway = await gateway_for(rig, users=key_for("Qwen*"))
    assert (await ask(gateway.port, ask_for("qwen"))).status == 403
    assert (await ask(gateway.port, ask_for(LONG))).status == 404


async def test_an_alias_may_be_the_default_model(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    rig = await provider_for("rig", models=["qwen"])
    gateway = await gateway_for(rig, aliases={"gpt": "qwen"}, server={"default_model": "gpt"})
    response = await ask(gateway.port, chat(b'{"model":null,"messages":[]}'))
    assert seen_in(response) == (200, "rig", "qwen")
    assert rig.requests[0].body == b'{"model":null,"messages":[],"model":"qwen"}'


async def test_an_alias_may_stand_for_the_short_name_of_a_model(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_ollama(provider, "m:latest"), aliases={"gpt": "m"})
    assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "rig", "m:latest")
    assert told(provider) == ["m:latest"]
    assert (await listed(gateway))["gpt"]["alias_of"] == "m:latest"


async def test_a_real_model_goes_first_also_if_it_is_found_only_while_a_request_waits_for_the_first_look(
    provider_for: ProviderFor, nothing_leaks: None
) -> None:
    rig = await provider_for("rig", models=["gpt"])
    async with Gateway(build(settings(rig, aliases={"gpt": "a"}))) as gateway:
        response = await ask(gateway.port, ask_for("gpt"))
        assert seen_in(response) == (200, "rig", None)
        assert "asked_model" not in await line_of(gateway)


# --- where both names are shown -----------------------------------------------------------------------


async def test_both_names_are_shown_to_who_watches(
    provider_for: ProviderFor, gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await provider_for("rig", models=[LONG, "m"], rename={LONG: "qwen"})
    gateway = await gateway_for(rig, aliases={"gpt": "qwen", "gone": "nobody"})
    rig.script = play(sse(), word("Hel"), stall())
    async with crowd(gateway.port) as send:
        client = await send(ask_for("gpt", stream=True))
        await client.head()
        seen = await snapshot(gateway)
        assert [(row["model"], row["asked_model"]) for row in seen["requests"]] == [("qwen", "gpt")]
        drawn = render(seen)
    assert seen["aliases"] == [{"id": "gpt", "alias_of": "qwen"}]
    models = {model["id"]: model.get("told_as") for model in seen["providers"][0]["models"]}
    assert models == {"qwen": LONG, "m": None}
    assert f"qwen ({LONG}), m" in drawn and "qwen (gpt)" in drawn
    with caplog.at_level("INFO"):
        assert (await line_of(gateway))["asked_model"] == "gpt"
    assert "asked_model" in str([record.__dict__ for record in caplog.records])


async def test_the_log_tells_once_what_is_renamed_and_what_that_hides(
    provider_for: ProviderFor, gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = await provider_for("rig", models=[LONG, "qwen", "m"], rename={LONG: "qwen"})
    gateway = await gateway_for(rig, health=QUICK)
    seen = len(rig.looks)
    await eventually(lambda: len(rig.looks) > seen + 2)
    told = [record.__dict__ for record in caplog.records if record.msg == "models are renamed"]
    assert [str(each).count(f"{LONG} is qwen") for each in told] == [1]
    assert "hides" in str(told) and gateway.fleet.providers["rig"].renames


async def test_without_other_names_nothing_more_is_told(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    provider.script = play(sse(), word("Hel"), stall())
    async with crowd(gateway.port) as send:
        await (await send(ask_for("m", stream=True))).head()
        seen = await snapshot(gateway)
    assert "aliases" not in seen and "asked_model" not in seen["requests"][0]
    assert set(seen["providers"][0]["models"][0]) == {"id", "loaded", "context_length"}


# --- fallbacks -----------------------------------------------------------------------------------------


@pytest.fixture
async def big(provider_for: ProviderFor) -> FakeProvider:
    return await provider_for("big", models=["qwen-32b"])


@pytest.fixture
async def small(provider_for: ProviderFor) -> FakeProvider:
    return await provider_for("small", models=["qwen-8b"])


FALLBACKS = {"qwen-32b": ["nobody", "qwen-8b"]}


@pytest.mark.parametrize("streams", [False, True], ids=["buffered", "stream"])
async def test_another_model_answers_when_nobody_who_serves_the_first_is_online(
    big: FakeProvider, small: FakeProvider, gateway_for: GatewayFor, streams: bool
) -> None:
    gateway = await gateway_for(big, small, fallbacks=FALLBACKS, health=QUICK)
    assert seen_in(await ask(gateway.port, ask_for("qwen-32b"))) == (200, "big", None)
    await big.refuse()
    for _ in range(2):  # before the probes tell, and after that
        response = await ask(gateway.port, ask_for("qwen-32b", stream=streams))
        assert seen_in(response) == (200, "small", "qwen-8b")
        await eventually(lambda: not gateway.fleet.providers["big"].online)
    assert told(small) == ["qwen-8b", "qwen-8b"]
    line = await line_of(gateway, 3)
    assert (line["model"], line["asked_model"], line["provider"]) == ("qwen-8b", "qwen-32b", "small")
    metrics = await ask(gateway.port, request("GET", "/metrics"))
    assert b'model="qwen-8b",outcome="ok"' in metrics.body
    await big.come_back()
    await eventually(lambda: gateway.fleet.providers["big"].online)
    assert seen_in(await ask(gateway.port, ask_for("qwen-32b"))) == (200, "big", None)


async def test_there_is_no_fallback_from_who_is_busy_or_fails_or_refuses(
    provider_for: ProviderFor, small: FakeProvider, gateway_for: GatewayFor
) -> None:
    big = await provider_for("big", models=["qwen-32b"], slots=1)
    gateway = await gateway_for(big, small, fallbacks=FALLBACKS, queue={"timeout": "100ms"})
    for status, told_status in ((500, 502), (404, 404), (400, 400), (429, 429), (401, 502)):
        big.once(error(status))
        assert (await ask(gateway.port, ask_for("qwen-32b"))).status == told_status
    big.once(stall())
    async with crowd(gateway.port) as send:
        await send(ask_for("qwen-32b"))
        await eventually(lambda: len(big.calls) == 6)
        assert (await ask(gateway.port, ask_for("qwen-32b"))).status == 503
    assert not small.calls


async def test_a_model_that_loads_is_waited_for_and_only_then_another_one_is_asked(
    big: FakeProvider, small: FakeProvider, gateway_for: GatewayFor
) -> None:
    big.on["/v1/models"] = loading()
    big.settings["models"] = ["qwen-32b"]
    gateway = await gateway_for(big, small, fallbacks=FALLBACKS, queue={"timeout": "150ms"}, health=QUICK)
    async with crowd(gateway.port) as send:
        client = await send(ask_for("qwen-32b"))
        await waiting(gateway, 1, "qwen-32b")
        assert not small.calls
        assert seen_in(await client.response()) == (200, "small", "qwen-8b")
    assert (await line_of(gateway))["queue_ms"] >= 100
    gateway.adopt(build(settings(big, small, fallbacks=FALLBACKS, health=QUICK)))
    async with crowd(gateway.port) as send:
        client = await send(ask_for("qwen-32b"))
        await waiting(gateway, 1, "qwen-32b")
        del big.on["/v1/models"]
        assert seen_in(await client.response()) == (200, "big", None)


async def test_a_fallback_opens_nothing_that_the_key_is_not_good_for(
    big: FakeProvider, small: FakeProvider, provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    third = await provider_for("third", models=["tiny"])
    users = key_for("qwen-32b", "tiny")
    fallbacks = {"qwen-32b": ["qwen-8b", "tiny"]}
    gateway = await gateway_for(big, small, third, users=users, fallbacks=fallbacks)
    await big.refuse()
    assert seen_in(await ask(gateway.port, ask_for("qwen-32b"))) == (200, "third", "tiny")
    assert not small.calls


async def test_fallbacks_do_not_chain_and_each_is_tried_once(
    big: FakeProvider, small: FakeProvider, provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    third = await provider_for("third", models=["tiny"])
    gateway = await gateway_for(
        big, small, third, fallbacks={"qwen-32b": ["qwen-8b"], "qwen-8b": ["tiny"]}, health={"interval": "1h"}
    )
    await big.refuse()
    await small.refuse()
    response = await ask(gateway.port, ask_for("qwen-32b"))
    assert response.status == 502
    assert (await line_of(gateway))["attempts"] == 2
    assert "'big'" in response.json["error"]["message"] and "'small'" in response.json["error"]["message"]
    assert not third.calls
    assert seen_in(await ask(gateway.port, ask_for("qwen-8b"))) == (200, "third", "tiny")


async def test_an_alias_has_the_fallbacks_of_what_it_stands_for(
    big: FakeProvider, small: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(big, small, aliases={"gpt": "qwen-32b"}, fallbacks=FALLBACKS, health=QUICK)
    await big.refuse()
    for _ in range(2):
        assert seen_in(await ask(gateway.port, ask_for("gpt"))) == (200, "small", "qwen-8b")
        await eventually(lambda: not gateway.fleet.providers["big"].online)
    line = await line_of(gateway, 2)
    assert (line["model"], line["asked_model"]) == ("qwen-8b", "gpt")


async def test_a_stream_that_has_begun_falls_back_on_nobody(
    big: FakeProvider, small: FakeProvider, gateway_for: GatewayFor
) -> None:
    big.script = play(sse(), word("Hel"), cut())
    gateway = await gateway_for(big, small, fallbacks=FALLBACKS)
    response = await ask(gateway.port, ask_for("qwen-32b", stream=True))
    assert b"upstream_error" in response.body
    assert not small.calls


async def test_without_a_fallback_that_is_there_the_first_is_told_of(
    big: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(big, fallbacks=FALLBACKS, health=QUICK)
    await big.refuse()
    await eventually(lambda: not gateway.fleet.providers["big"].online)
    response = await ask(gateway.port, ask_for("qwen-32b"))
    assert response.status == 404
    assert "serving model 'qwen-32b' for this user." in response.json["error"]["message"]
    assert "asked for as" not in response.json["error"]["message"]
    assert "asked_model" not in await line_of(gateway)
