"""A request goes only where its endpoint may be had: by kind, by config, by what servers said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.provider import State
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, LLAMA, QUICK, ask, crowd, waiting
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.raw_client import Response, request
from tests.script import answer, cut, error, head, play, polite, raw, wait

RERANK, MESSAGES, EMBEDDINGS = "/v1/rerank", "/v1/messages", "/v1/embeddings"
OLLAMA = [{"id": "m", "owned_by": "library"}]
LMSTUDIO = [{"id": "m", "owned_by": "organization_owner"}]
ALICE_FIRST = {"alice": {"keys": [KEY], "route": "prefer_own"}}


def post(path: str, model: str = "m", **more: Any) -> bytes:
    body = json.dumps({"model": model, **more}).encode()
    return request("POST", path, "Content-Type: application/json", body=body)


def by(response: Response) -> tuple[int, str | None]:
    """The status of an answer, and who gave it."""
    return response.status, response.header("x-gateway-provider")


def without(path: str, refusal: Script) -> Script:
    """A server that has all but one path, of which it says this."""

    async def script(exchange: Exchange) -> None:
        asked = exchange.request.target.partition("?")[0]
        await (refusal if asked == path else polite())(exchange)

    return script


def missing(response: Response, path: str, model: str = "m") -> None:
    """The 404 that says which endpoint nobody has for a model."""
    assert (response.status, response.header("x-gateway-error")) == (404, "no_provider")
    said = response.json["error"]["message"]
    assert said == f"No online provider serving model '{model}' has {path} for this user."


def asked(provider: FakeProvider, path: str) -> int:
    """How often a provider was asked for a path."""
    return sum(each.target == path for each in provider.requests)


# What servers say.

NO_SUCH_PATH: dict[str, Script] = {
    "llama.cpp's 404": error(404, "File Not Found", "not_found_error"),
    "Go's 404": answer(404, b"404 page not found", {"Content-Type": "text/plain"}),
    "FastAPI's 404": answer(404, {"detail": "Not Found"}),
    "FastAPI's 405": answer(405, {"detail": "Method Not Allowed"}, {"Allow": "GET"}),
    "llama.cpp's 501": error(501, "This server does not support reranking. Start it with `--reranking`"),
    "Express' 404": answer(404, b"<pre>Cannot POST /v1/rerank</pre>", {"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("refusal", NO_SUCH_PATH.values(), ids=NO_SUCH_PATH.keys())
async def test_who_says_that_it_has_not_the_path_is_asked_once(
    provider_for: ProviderFor, gateway_for: GatewayFor, refusal: Script
) -> None:
    rig = await provider_for("rig", owner="alice")
    other = await provider_for("other")
    rig.script = without(RERANK, refusal)
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    for _ in range(3):
        assert by(await ask(gateway.port, post(RERANK))) == (200, "other")
    assert (asked(rig, RERANK), asked(other, RERANK)) == (1, 3)
    assert by(await ask(gateway.port, post("/v1/completions"))) == (200, "rig"), "all else it has"
    assert gateway.fleet.providers["rig"].online


async def test_where_the_only_one_has_not_the_path_its_answer_passes_and_then_the_gateway_says_so(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = without(RERANK, answer(405, {"detail": "Method Not Allowed"}, {"Allow": "GET"}))
    gateway = await gateway_for(provider)
    first = await ask(gateway.port, post(RERANK))
    assert (first.status, first.json) == (405, {"detail": "Method Not Allowed"})
    assert (first.header("allow"), first.header("x-gateway-error")) == ("GET", None)
    missing(await ask(gateway.port, post(RERANK)), RERANK)
    assert asked(provider, RERANK) == 1
    assert (await ask(gateway.port, post("/v1/chat/completions"))).status == 200


async def test_the_sentence_is_in_the_dialect_of_who_asks(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig", endpoints=["chat"]))
    response = await ask(gateway.port, post(MESSAGES))
    assert (response.status, response.json["error"]["type"]) == (404, "not_found_error")
    assert "has /v1/messages for this user." in response.json["error"]["message"]
    unknown = await ask(gateway.port, post(MESSAGES, "else"))
    assert unknown.json["error"]["message"] == "No online provider serving model 'else' for this user."


async def test_a_404_of_the_model_teaches_nothing(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = error(404, "model 'm' not found")
    gateway = await gateway_for(provider)
    for _ in range(2):
        assert (await ask(gateway.port, post(RERANK))).header("x-gateway-error") is None
    assert len(provider.calls) == 2


async def test_a_501_counts_for_the_model_that_was_asked_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["m", "n"])
    rig.once(error(501, "This server does not support embeddings. Start it with `--embeddings`"))
    gateway = await gateway_for(rig)
    assert (await ask(gateway.port, post(EMBEDDINGS))).status == 501
    missing(await ask(gateway.port, post(EMBEDDINGS)), EMBEDDINGS)
    assert by(await ask(gateway.port, post(EMBEDDINGS, "n"))) == (200, "rig")
    assert by(await ask(gateway.port, post("/v1/completions"))) == (200, "rig")


@pytest.mark.parametrize(
    "refusal",
    [
        play(head(404, {"Content-Length": "99"}), raw(b"404 page not found"), cut()),
        play(head(404, {"Content-Length": "100000"}), raw(b"404 page not found" + b" " * 99_982)),
        answer(404, b"\x1f\x8b not gzip", {"Content-Encoding": "gzip"}),
        answer(404, b"\x0b\x02\x80\x03", {"Content-Encoding": "br"}),
        answer(404, b"\xff\xfe\x80\x81"),
    ],
    ids=["broken off", "endless", "not gzip", "Brotli", "not text"],
)
async def test_an_answer_that_cannot_be_read_teaches_nothing(
    provider_for: ProviderFor, gateway_for: GatewayFor, refusal: Script
) -> None:
    rig = await provider_for("rig", owner="alice")
    other = await provider_for("other")
    rig.script = refusal
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    assert by(await ask(gateway.port, post(RERANK))) == (200, "other")
    assert not gateway.fleet.providers["rig"].repertoire.learnt


async def test_the_words_of_a_model_go_before_the_words_of_a_path(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice")
    other = await provider_for("other")
    rig.script = error(404, "model 'm' is not pulled")
    other.script = error(404, "File Not Found")
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    response = await ask(gateway.port, post(RERANK))
    assert by(response) == (404, "rig") and "pulled" in response.json["error"]["message"]


async def test_who_waits_for_what_turns_out_to_be_missing_is_told_at_once(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", slots=1)
    gate = asyncio.Event()
    rig.script = without(RERANK, play(wait(gate), error(404, "File Not Found")))
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        first = await send(post(RERANK))
        await rig.next_call()
        second, third = await send(post(RERANK)), await send(post("/v1/completions"))
        await waiting(gateway, 2)
        gate.set()
        assert (await first.response()).header("x-gateway-error") is None
        missing(await second.response(), RERANK)
        assert (await third.response()).status == 200


async def test_a_server_that_comes_back_is_asked_again(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = without(RERANK, error(404, "File Not Found"))
    gateway = await gateway_for(rig, other, users=ALICE_FIRST, health=QUICK)
    assert by(await ask(gateway.port, post(RERANK))) == (200, "other")
    await rig.refuse()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.OFFLINE)
    rig.script = polite()
    await rig.come_back()
    await eventually(lambda: gateway.fleet.providers["rig"].online)
    assert by(await ask(gateway.port, post(RERANK))) == (200, "rig")


async def test_a_404_that_something_in_front_of_a_server_says_for_a_moment_costs_no_hour(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig")
    gateway = await gateway_for(rig, health=QUICK)
    assert by(await ask(gateway.port, post("/v1/completions"))) == (200, "rig")
    rig.once(answer(404, b"404 page not found"))  # as Traefik says it while the container restarts
    assert (await ask(gateway.port, post("/v1/completions"))).status == 404
    looks = len(rig.looks)
    await eventually(lambda: len(rig.looks) > looks + 1)
    assert by(await ask(gateway.port, post("/v1/completions"))) == (200, "rig")


NOT_THAT = {"error": "Unexpected endpoint or method. (POST /v1/messages)"}


async def test_lm_studio_says_with_a_200_that_it_has_not_the_path(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice", models=LMSTUDIO)
    other = await provider_for("other")
    rig.script = without(MESSAGES, answer(200, NOT_THAT))
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    for _ in range(2):
        assert by(await ask(gateway.port, post(MESSAGES))) == (200, "other")
    assert asked(rig, MESSAGES) == 1
    for stream in (False, True, True):
        assert by(await ask(gateway.port, post("/v1/chat/completions", stream=stream))) == (200, "rig")


async def test_what_lm_studio_says_so_is_the_clients_where_nobody_else_is_asked(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=LMSTUDIO)
    rig.script = without(MESSAGES, answer(200, NOT_THAT))
    gateway = await gateway_for(rig)
    first = await ask(gateway.port, post(MESSAGES))
    assert (first.status, first.json) == (200, NOT_THAT)
    assert (await ask(gateway.port, post(MESSAGES))).status == 404


# What its kind is known for, and what the config says.


async def test_a_caller_of_messages_never_meets_a_server_known_not_to_speak_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice", endpoints=["chat", "completions"])
    other = await provider_for("other")
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    for _ in range(5):
        assert by(await ask(gateway.port, post(MESSAGES))) == (200, "other")
    await other.refuse()
    missing_or_broken = await ask(gateway.port, post(MESSAGES))
    assert missing_or_broken.status in (404, 502)
    assert not asked(rig, MESSAGES)


@pytest.mark.parametrize(("listed", "title"), [(OLLAMA, "Ollama"), (LMSTUDIO, "LM Studio")], ids=str)
async def test_a_kind_that_has_not_an_endpoint_is_never_asked_for_it(
    provider_for: ProviderFor, gateway_for: GatewayFor, listed: Any, title: str
) -> None:
    rig = await provider_for("rig", owner="alice", models=listed)
    other = await provider_for("other", models=LLAMA)
    gateway = await gateway_for(rig, other, users=ALICE_FIRST)
    assert gateway.fleet.providers["rig"].kind.title == title
    assert by(await ask(gateway.port, post(RERANK))) == (200, "other")
    assert by(await ask(gateway.port, post("/v1/chat/completions"))) == (200, "rig")
    assert not asked(rig, RERANK)


async def test_a_kind_that_is_told_is_not_looked_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", kind="lmstudio")
    gateway = await gateway_for(rig)
    assert "/api/version" not in {probe.target for probe in rig.probes}
    assert "/api/v0/models" in {probe.target for probe in rig.probes}
    missing(await ask(gateway.port, post(RERANK)), RERANK)


async def test_a_kind_and_endpoints_are_adopted_while_the_gateway_runs(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig")
    gateway = await gateway_for(rig)

    async def status_with(**more: Any) -> int:
        rig.settings = more
        gateway.adopt(build(settings(rig)))
        return (await ask(gateway.port, post(RERANK))).status

    assert await status_with() == 200
    assert await status_with(kind="ollama") == 404
    assert await status_with(kind="ollama", endpoints=["rerank"]) == 200
    assert await status_with(endpoints=["chat"]) == 404
    assert await status_with() == 200


async def test_a_path_of_the_config_is_had_by_whoever_serves_the_model(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", endpoints=["chat"])
    rig.once(error(404, "File Not Found"))
    gateway = await gateway_for(rig, server={"extra_paths": ["/v1/classify"]})
    assert (await ask(gateway.port, post("/v1/classify"))).status == 404
    assert by(await ask(gateway.port, post("/v1/classify"))) == (200, "rig"), "nor does it learn of it"


async def test_what_is_away_is_told_beside_what_is_missing(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", kind="ollama"), await provider_for("other", kind="vllm")
    gateway = await gateway_for(rig, other, health=QUICK)
    await other.refuse()
    await eventually(lambda: gateway.fleet.providers["other"].state is State.OFFLINE)
    said = (await ask(gateway.port, post(RERANK))).json["error"]["message"]
    start = "No online provider serving model 'm' has /v1/rerank for this user. It was last served by other,"
    assert said.startswith(start)
    await rig.refuse()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.OFFLINE)
    said = (await ask(gateway.port, post(RERANK))).json["error"]["message"]
    assert said.startswith(start.replace(" has /v1/rerank", ""))


# What is told of it.


async def entry(gateway: Gateway, model: str = "m", key: str = KEY) -> dict[str, Any]:
    """What the list says of a model, which is what is said of it alone."""
    listed = await ask(gateway.port, request("GET", "/v1/models", key=key))
    (found,) = [each for each in listed.json["data"] if each["id"] == model]
    alone = await ask(gateway.port, request("GET", f"/v1/models/{model}", key=key))
    assert alone.json == found
    return dict(found)


async def test_the_list_tells_where_a_request_for_a_model_would_go_and_by_which_endpoints(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", models=["m", "n"], endpoints=["chat", "embeddings"])
    other = await provider_for("other", endpoints=["messages", "chat"])
    gateway = await gateway_for(rig, other)
    found = await entry(gateway)
    assert (found["endpoints"], found["providers"]) == (["chat", "embeddings", "messages"], ["rig", "other"])
    found = await entry(gateway, "n")
    assert (found["endpoints"], found["providers"]) == (["chat", "embeddings"], ["rig"])


async def test_the_list_tells_what_was_learnt(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = without(RERANK, error(404, "File Not Found"))
    gateway = await gateway_for(provider)
    assert "rerank" in (await entry(gateway))["endpoints"]
    await ask(gateway.port, post(RERANK))
    assert {"rerank", "chat"} & {*(await entry(gateway))["endpoints"]} == {"chat"}


async def test_nobody_is_told_of_providers_that_are_not_theirs(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    users = {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB], "route": "only_own"}, "carol": {}}
    hers = await provider_for("hers", owner="carol")
    rig = await provider_for("rig", owner="alice", endpoints=["chat"])
    his = await provider_for("his", owner="bob", share=["alice"], endpoints=["embeddings"])
    gateway = await gateway_for(hers, rig, his, users=users)
    found = await entry(gateway)
    assert (found["endpoints"], found["providers"]) == (["chat", "embeddings"], ["rig", "his"])
    found = await entry(gateway, key=BOB)
    assert (found["endpoints"], found["providers"]) == (["embeddings"], ["his"])


async def test_who_is_away_is_not_told_of_unless_nobody_else_is_there(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    wakes = {"mac": "02:00:00:00:00:01", "broadcast": "127.0.0.1"}
    rig, other = await provider_for("rig", wake=wakes), await provider_for("other")
    gateway = await gateway_for(rig, other, health=QUICK)
    await rig.refuse()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.OFFLINE)
    assert (await entry(gateway))["providers"] == ["other"]
    await other.refuse()
    await eventually(lambda: gateway.fleet.providers["other"].state is State.OFFLINE)
    assert (await entry(gateway))["providers"] == ["rig"], "it would be woken"


async def test_anthropics_list_stays_anthropics(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    for path in ("/v1/models", "/v1/models/m"):
        response = await ask(gateway.port, request("GET", path, "anthropic-version: 2023-06-01"))
        found = response.json["data"][0] if path == "/v1/models" else response.json
        assert found.keys() == {"type", "id", "display_name", "created_at"}


async def test_ollamas_own_endpoints_are_listed_where_the_config_opens_them(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", kind="ollama")
    gateway = await gateway_for(rig)
    assert not any(name.startswith("ollama") for name in (await entry(gateway))["endpoints"])
    gateway.adopt(build(settings(rig, server={"ollama_api": True})))
    assert "ollama_chat" in (await entry(gateway))["endpoints"]
    rig.settings = {"kind": "generic"}
    gateway.adopt(build(settings(rig, server={"ollama_api": True})))
    assert "ollama_chat" not in (await entry(gateway))["endpoints"], "they are for Ollama alone"
