"""What is known of a provider, and why: by probes over real sockets, and by what real traffic adds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.provider import Provider, State
from llmgateway.fleet.upstream import Upstream
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider, redirect
from tests.guard import HANG_S
from tests.journey import eventually, settings
from tests.raw_client import RawClient, Response, chat, request
from tests.script import (
    answer,
    completion,
    cut,
    done,
    drip,
    error,
    flood,
    head,
    listing,
    loading,
    play,
    raw,
    reset,
    sse,
    stall,
    wait,
    word,
)

QUICK = {"interval": "100ms", "timeout": "10m", "fall": 2, "rise": 1}
SELDOM = {"interval": "1h", "timeout": "1h", "fall": 1, "rise": 1}
SILENCE = stall()
MODELS = "/v1/models"
HTML = {"Content-Type": "text/html"}


async def ask(port: int, message: bytes | None = None) -> Response:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        await client.send(message or chat())
        return await client.response()


async def listed(port: int) -> list[str]:
    """The models that alice can use now."""
    models = await ask(port, request("GET", MODELS))
    return [entry["id"] for entry in models.json["data"]]


def known(gateway: Gateway, name: str = "rig") -> Provider:
    return gateway.fleet.providers[name]


class Turns:
    """Answers probes one at a time, each when it is told what to say."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self._next: asyncio.Queue[Script] = asyncio.Queue()
        provider.on[MODELS] = self._answer

    async def _answer(self, exchange: Exchange) -> None:
        await (await self._next.get())(exchange)

    async def say(self, *scripts: Script) -> None:
        """Answer the next probes so, one script each, and wait until the gateway has made up its mind."""
        for script in scripts:
            seen = len(self._provider.looks)
            self._next.put_nowait(script)
            # A provider's probes follow one another: once the next one comes, this one has been judged.
            await eventually(lambda seen=seen: len(self._provider.looks) > seen)  # type: ignore[misc]


# What one look tells.

LOOKS: dict[str, tuple[Script, State, str]] = {
    "a list": (listing("m"), State.ONLINE, ""),
    "an empty list": (listing(), State.ONLINE, ""),
    "Ollama without models": (answer(200, {"object": "list", "data": None}), State.ONLINE, ""),
    "HTML": (answer(200, b"<!doctype html>", HTML), State.MISCONFIGURED, "web page"),
    "text": (answer(200, b"Ollama is running"), State.MISCONFIGURED, "not JSON"),
    "nothing": (answer(200), State.MISCONFIGURED, "not JSON"),
    "other JSON": (answer(200, {"status": "ok"}), State.MISCONFIGURED, "not a list of models"),
    "a bare list": (answer(200, [{"id": "m"}]), State.MISCONFIGURED, "not a list of models"),
    "models without ids": (
        answer(200, {"data": [{"name": "m"}]}),
        State.MISCONFIGURED,
        "no entry has a usable 'id'",
    ),
    "ids that are no text": (
        answer(200, {"data": [{"id": 7}]}),
        State.MISCONFIGURED,
        "no entry has a usable 'id'",
    ),
    "no UTF-8": (answer(200, b'{"data":[{"id":"\xff"}]}'), State.MISCONFIGURED, "not a list of models"),
    "deep JSON": (answer(200, b"[" * 100_000), State.MISCONFIGURED, "not JSON"),
    "204": (head(204), State.MISCONFIGURED, "204"),
    "307": (redirect("http://127.0.0.1:9/v1/models"), State.MISCONFIGURED, "307"),
    "401": (error(401, "Invalid API Key"), State.MISCONFIGURED, "api_key"),
    "403": (error(403, "Forbidden"), State.MISCONFIGURED, "api_key"),
    "404": (error(404, "File Not Found"), State.MISCONFIGURED, "404"),
    "429": (error(429, "slow down"), State.OFFLINE, "429"),
    "500": (error(500, "out of memory"), State.OFFLINE, "500: out of memory"),
    "503": (error(503, "busy"), State.OFFLINE, "503: busy"),
    "loading": (loading(), State.WARMING, "loading"),
    "a FIN": (cut(), State.OFFLINE, "closed"),
    "a RST": (reset(), State.OFFLINE, "closed"),
    "half a list": (play(head(200, {"Content-Length": "99"}), raw(b"{"), cut()), State.OFFLINE, "closed"),
    "not HTTP": (play(raw(b"SSH-2.0-OpenSSH\r\n"), stall()), State.OFFLINE, "not valid HTTP"),
    "silence": (stall(), State.OFFLINE, "no answer to a probe within 0.4 s"),
    "half a list, then silence": (
        play(head(200, {"Content-Length": "99"}), raw(b"{"), stall()),
        State.OFFLINE,
        "within 0.4 s",
    ),
    "a trickle": (
        play(head(200, {"Content-Length": "9999"}), drip(b" " * 9999, pause_s=0.01)),
        State.OFFLINE,
        "within 0.4 s",
    ),
    "a trickling head": (
        drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 999, pause_s=0.01),
        State.OFFLINE,
        "0.4 s",
    ),
}


@pytest.mark.parametrize(("script", "state", "reason"), LOOKS.values(), ids=LOOKS.keys())
async def test_what_a_provider_answers_to_a_probe_tells_its_state_and_why(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script, state: State, reason: str
) -> None:
    provider.on[MODELS] = script
    health = SELDOM | ({"timeout": "400ms"} if "0.4 s" in reason else {})
    gateway = await gateway_for(provider, health=health)
    rig = known(gateway)
    assert rig.state is state, rig.reason
    assert reason in rig.reason and bool(rig.reason) == bool(reason)
    assert rig.reason.isprintable() and len(rig.reason) < 400
    response = await ask(gateway.port)
    if rig.models and state is State.ONLINE:
        assert response.status == 200
    else:
        assert (response.status, response.json["error"]["type"]) == (404, "no_provider")
    expected = [MODELS, "/models"] if "404" in reason else [MODELS]
    asked = [probe.target for probe in provider.probes if probe.target != "/api/version"]
    assert asked == expected, "one look, and no completion"


async def test_a_provider_that_refuses_is_offline_and_comes_back_by_itself(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    await provider.refuse()
    gateway = await gateway_for(provider, health=QUICK)
    assert known(gateway).state is State.OFFLINE and "refused" in known(gateway).reason
    assert await listed(gateway.port) == []
    await provider.come_back()
    await eventually(lambda: known(gateway).online)
    assert (await ask(gateway.port)).status == 200


async def test_a_probe_carries_the_providers_key_and_a_reason_never_shows_it(
    provider_for: ProviderFor, program_for: ProgramFor
) -> None:
    provider = await provider_for(key="sk-of-the-rig")
    provider.on[MODELS] = error(500, "no such key: sk-of-the-rig")
    program = await program_for(provider)
    await program.says("provider is offline")
    assert provider.looks[0].header("authorization") == "Bearer sk-of-the-rig"
    assert "no such key" in program.err
    assert "sk-of-the-rig" not in program.err


async def test_a_model_that_loads_is_warming_and_then_online(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[MODELS] = loading()
    gateway = await gateway_for(provider, health=QUICK)
    assert known(gateway).state is State.WARMING
    assert await listed(gateway.port) == []
    del provider.on[MODELS]
    await eventually(lambda: known(gateway).online)
    assert await listed(gateway.port) == ["m"]


async def test_new_models_appear_and_old_ones_go(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    assert await listed(gateway.port) == ["m"]
    provider.models = ["b", "a"]

    async def changed() -> bool:
        return await listed(gateway.port) == ["a", "b"]

    await eventually(changed)
    assert (await ask(gateway.port)).status == 404


# How many it takes.


@pytest.mark.parametrize(("fall", "rise"), [(1, 1), (2, 1), (3, 2)])
async def test_it_takes_fall_failures_in_a_row_and_rise_successes(
    provider: FakeProvider, gateway_for: GatewayFor, fall: int, rise: int
) -> None:
    gateway = await gateway_for(provider, health={**QUICK, "fall": fall, "rise": rise, "timeout": "1h"})
    rig, turns = known(gateway), Turns(provider)
    await eventually(lambda: len(provider.looks) > 1)
    # (A FIN at once would be taken for an old connection, and asked again.)
    failures = [error(500, "busy"), play(raw(b"HTTP/1.1 "), cut()), error(502, "bad")]
    await turns.say(*failures[: fall - 1], listing("m"), *failures[: fall - 1])
    assert rig.online, "a success in between, and the count starts again"
    assert await listed(gateway.port) == ["m"]
    assert (await ask(gateway.port)).status == 200, "a blip: it is served as before"
    await turns.say(failures[-1])
    assert rig.state is State.OFFLINE and "502: bad" in rig.reason
    assert await listed(gateway.port) == []
    assert list(rig.models) == ["m"], "what it served is not forgotten"
    await turns.say(*[listing("m")] * (rise - 1), error(500, "busy"), *[listing("m")] * (rise - 1))
    assert rig.state is State.OFFLINE
    await turns.say(listing("m"))
    assert rig.online
    assert (await ask(gateway.port)).status == 200


# None waits for another.


@pytest.mark.parametrize(
    "script", [stall(), drip(b"HTTP/1.1 200 OK" * 999, pause_s=0.05)], ids=["hung", "slow"]
)
async def test_a_hung_provider_delays_nobody(provider_for: ProviderFor, script: Script) -> None:
    rig, hung = await provider_for("rig"), await provider_for("hung", models=["other"])
    hung.on[MODELS] = script
    health = {**QUICK, "timeout": "1h"}
    async with Gateway(build(settings(hung, rig, health=health))) as gateway:
        await eventually(lambda: known(gateway).online)
        await eventually(lambda: len(rig.looks) >= 5)
        assert known(gateway, "hung").state is State.UNKNOWN
        assert len(hung.looks) == 1 and not gateway.ready.is_set()


async def test_a_call_for_a_provider_that_is_known_does_not_wait_for_a_hung_one(
    provider_for: ProviderFor,
) -> None:
    rig, hung = await provider_for("rig"), await provider_for("hung", models=["other"])
    hung.on[MODELS] = stall()
    async with Gateway(build(settings(hung, rig, health={**SELDOM, "timeout": "1h"}))) as gateway:
        await eventually(lambda: known(gateway).online)
        async with RawClient(gateway.port) as client:
            await client.send(chat())
            assert (await client.response()).status == 200


async def test_a_call_that_comes_before_the_first_look_waits_for_it(provider: FakeProvider) -> None:
    gate = asyncio.Event()
    provider.on[MODELS] = play(wait(gate), listing("m"))
    async with Gateway(build(settings(provider))) as gateway, RawClient(gateway.port) as client:
        await client.send(chat())
        assert (await ask(gateway.port, request("GET", "/readyz", key=None))).status == 503
        gate.set()
        assert (await client.response()).status == 200
        assert (await ask(gateway.port, request("GET", "/readyz", key=None))).status == 200


# What real traffic adds.


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_call_that_finds_nobody_there_has_the_provider_looked_at_at_once(
    provider: FakeProvider, gateway_for: GatewayFor, stream: bool
) -> None:
    gateway = await gateway_for(provider, health=SELDOM)
    await provider.refuse()
    assert (await ask(gateway.port, chat(stream=stream))).status == 502
    await eventually(lambda: known(gateway).state is State.OFFLINE)
    assert "refused" in known(gateway).reason


async def test_an_error_of_real_traffic_leaves_its_health_alone(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = error(500, "this prompt is too much for me")
    gateway = await gateway_for(provider, health=QUICK)
    for _ in range(5):
        assert (await ask(gateway.port)).status == 502
    await eventually(lambda: len(provider.looks) >= 4)
    assert known(gateway).online


PASSING = {
    "429": error(429),
    "a redirect": answer(302, "", {"Location": "/"}),
    "a page": answer(200, "<html>"),
}


@pytest.mark.parametrize("script", PASSING.values(), ids=PASSING.keys())
async def test_one_odd_answer_to_a_probe_takes_nothing_away(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script
) -> None:
    gateway = await gateway_for(provider, health={**QUICK, "fall": 2})
    seen = len(provider.looks)

    async def once(exchange: Exchange) -> None:
        del provider.on[MODELS]
        await script(exchange)

    provider.on[MODELS] = once
    await eventually(lambda: len(provider.looks) > seen + 2)
    assert known(gateway).online
    provider.on[MODELS] = script
    await eventually(lambda: not known(gateway).online, saying="but `fall` of them do")


BAD_LOOKS = {"an error": error(500, "busy"), "a reset": reset(), "silence": stall()}


@pytest.mark.parametrize("script", BAD_LOOKS.values(), ids=BAD_LOOKS.keys())
async def test_a_provider_that_streams_is_alive_whatever_a_probe_says(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script
) -> None:
    gate = asyncio.Event()

    async def busily(exchange: Exchange) -> None:
        while not gate.is_set():
            await word("x")(exchange)
            await asyncio.sleep(0.02)

    provider.script = play(sse(), busily, done())
    gateway = await gateway_for(provider, health={**QUICK, "timeout": "300ms"})
    states = set()
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        seen = len(provider.looks)
        provider.on[MODELS] = script
        while len(provider.looks) < seen + 6:
            assert await client.piece(response)
            states.add(known(gateway).state)
        gate.set()
        while await client.piece(response):
            pass
    assert states == {State.ONLINE}
    await eventually(lambda: not known(gateway).online, saying="without a stream the probes count again")


def answer_no_probe(gateway: Gateway, provider: FakeProvider, script: Script) -> None:
    """From now on do this instead, and have it noticed soon; a busy machine had its time until now."""
    provider.on[MODELS] = script
    gateway.adopt(build(settings(provider, health={**QUICK, "timeout": "100ms"})))


WORK: dict[str, tuple[Script, bool]] = {  # what it is at, and whether that is a stream
    "a long prompt": (sse(), True),
    "a pause in a stream": (play(sse(), word("Hel")), True),
    "an answer that is not streamed": (play(), False),
}
BUSY: dict[str, Script] = {"silence": stall(), "a cut": play(raw(b"HTTP/1.1 "), cut())}


@pytest.mark.parametrize(("work", "stream"), WORK.values(), ids=WORK.keys())
@pytest.mark.parametrize("script", BUSY.values(), ids=BUSY.keys())
async def test_one_that_computes_for_us_is_alive_though_it_answers_no_probe_and_who_waits_is_served(
    provider: FakeProvider, gateway_for: GatewayFor, work: Script, stream: bool, script: Script
) -> None:
    gate = asyncio.Event()
    provider.settings["slots"] = 1
    provider.once(play(work, wait(gate), done()) if stream else play(wait(gate), completion()))
    gateway = await gateway_for(provider, health=QUICK)
    async with RawClient(gateway.port) as client, RawClient(gateway.port) as waiter:
        await client.send(chat(stream=stream))
        await provider.next_call()
        answer_no_probe(gateway, provider, script)
        await waiter.send(chat())
        seen = len(provider.looks)
        await eventually(lambda: len(provider.looks) > seen + 6)
        assert known(gateway).online
        gate.set()
        assert (await client.response()).status == 200
        assert (await waiter.response()).status == 200
    await eventually(lambda: not known(gateway).online, saying="idle and silent is not alive")


async def test_work_that_runs_out_of_its_own_time_is_no_sign_of_life(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["timeouts"] = {"first_byte": "600ms"}
    provider.once(stall())
    gateway = await gateway_for(provider, health=QUICK)
    asking = asyncio.create_task(ask(gateway.port))
    await provider.next_call()
    answer_no_probe(gateway, provider, stall())
    assert (await asking).status == 502
    await eventually(lambda: known(gateway).state is State.OFFLINE)


async def test_one_that_is_not_read_from_gives_no_sign_of_life(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.once(play(sse(), flood(50_000_000)))
    gateway = await gateway_for(provider, health=QUICK)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))  # and reads nothing
        await provider.next_call()
        answer_no_probe(gateway, provider, stall())
        await eventually(lambda: known(gateway).state is State.OFFLINE)


async def test_one_to_which_no_connection_comes_about_is_gone_whatever_is_open_there(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    unpooled = answer(200, {"data": [{"id": "m"}]}, {"Connection": "close"})
    provider.on[MODELS] = unpooled
    provider.script = stall()
    gateway = await gateway_for(provider, health=QUICK)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
        await provider.stop_accepting()
        await eventually(lambda: known(gateway).state is State.OFFLINE)
        assert "refused" in known(gateway).reason
        assert provider.connections == 1
    await provider.come_back()


# What a config and special servers say.


@pytest.mark.parametrize(
    ("script", "state"),
    [
        (error(404, "File Not Found"), State.ONLINE),
        (answer(200, b"<html>", HTML), State.ONLINE),
        (redirect("http://127.0.0.1:9/"), State.ONLINE),
        (error(429), State.ONLINE),
        (listing("other"), State.ONLINE),
        (error(401), State.MISCONFIGURED),
        (error(403), State.MISCONFIGURED),
        (error(500), State.OFFLINE),
        (loading(), State.WARMING),
        (SILENCE, State.OFFLINE),
    ],
    ids=["404", "HTML", "307", "429", "another list", "401", "403", "500", "loading", "silence"],
)
async def test_with_models_in_the_config_almost_any_answer_will_do(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script, state: State
) -> None:
    provider.settings["models"] = ["m", "org/name"]
    provider.on[MODELS] = script
    health = SELDOM | ({"timeout": "400ms"} if script is SILENCE else {})
    gateway = await gateway_for(provider, health=health, queue={"timeout": "200ms"})
    assert known(gateway).state is state
    worth_waiting_for = state in (State.ONLINE, State.WARMING)
    assert await listed(gateway.port) == (["m", "org/name"] if worth_waiting_for else [])
    assert (await ask(gateway.port)).status == {State.ONLINE: 200, State.WARMING: 503}.get(state, 404)


LLAMA: dict[str, Any] = {"id": "m", "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 4096}}
PROPS: dict[str, tuple[Script, State, int | None]] = {
    "its context": (answer(200, {"default_generation_settings": {"n_ctx": 512}}), State.ONLINE, 512),
    "a refusal": (error(401, "Invalid API Key"), State.ONLINE, None),
    "a wall before it": (answer(403, b"<html>"), State.ONLINE, None),
    "none": (error(404), State.ONLINE, None),
    "an error": (error(500), State.ONLINE, None),
    "nonsense": (answer(200, [1]), State.ONLINE, None),
    "a reset": (reset(), State.ONLINE, None),
    "silence": (SILENCE, State.ONLINE, None),
}


@pytest.mark.parametrize(("script", "state", "context"), PROPS.values(), ids=PROPS.keys())
async def test_llama_cpps_props_tell_more_and_may_be_missing_or_refused(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script, state: State, context: int | None
) -> None:
    provider = await provider_for(models=[LLAMA])
    provider.on["/props"] = script
    health = SELDOM | ({"timeout": "1s"} if script is SILENCE else {})
    gateway = await gateway_for(provider, health=health)
    assert known(gateway).state is state, known(gateway).reason
    assert known(gateway).models["m"].context_length == context


async def test_a_llama_cpp_that_refuses_its_props_and_its_endpoints_wants_another_key(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(models=[LLAMA])
    provider.on["/props"] = provider.on["/v1/chat/completions"] = error(401, "Invalid API Key")
    gateway = await gateway_for(provider, health=SELDOM)
    assert known(gateway).state is State.MISCONFIGURED and "api_key" in known(gateway).reason
    assert not provider.calls


# Frugal, and bounded.


async def test_probes_and_calls_share_one_connection(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    await eventually(lambda: len(provider.looks) >= 3)
    for _ in range(3):
        assert (await ask(gateway.port, chat(stream=True))).status == 200
    await eventually(lambda: len(provider.looks) >= 6)
    # A call may have met a probe under way; never more than that.
    assert provider.accepted <= 2


async def test_a_long_list_of_models_is_read(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    names = [f"model-{number}-{'x' * 200}" for number in range(9_000)]
    provider = await provider_for(models=names)
    gateway = await gateway_for(provider)
    assert sorted(await listed(gateway.port)) == sorted(names)


def _endless(total: int) -> Script:
    fields = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    return play(head(200, fields), flood(total))


async def test_a_list_without_end_is_given_up(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    taken: list[Callable[[], int]] = []

    async def endless(exchange: Exchange) -> None:
        taken.append(lambda: exchange.written)
        await _endless(500_000_000)(exchange)

    provider.on[MODELS] = endless
    gateway = await gateway_for(provider, health=SELDOM)
    assert not known(gateway).online
    assert 8_000_000 < taken[0]() < 40_000_000
    assert "longer than 8 MiB" in known(gateway).reason


async def test_a_list_that_is_a_little_too_long_is_told_as_that_and_not_as_broken(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[MODELS] = listing("m", "x" * (8 << 20))
    gateway = await gateway_for(provider, health=SELDOM)
    assert not known(gateway).online
    assert known(gateway).reason == "not an LLM API: its answer is longer than 8 MiB"


# --- another config ----------------------------------------------------------------------------------


@asynccontextmanager
async def watching(*providers: FakeProvider, **sections: Any) -> AsyncIterator[tuple[Fleet, Watch]]:
    """A watch over these providers, without a gateway around it."""
    fleet = Fleet(build(settings(*providers, **sections)))
    upstream = Upstream()
    try:
        async with Watch(fleet, upstream, Random(0), asyncio.get_running_loop().time) as watch:
            yield fleet, watch
    finally:
        upstream.close()


def take_over(fleet: Fleet, watch: Watch, *providers: FakeProvider, **sections: Any) -> None:
    fleet.adopt(build(settings(*providers, **sections)))
    watch.adopt()


async def test_a_provider_that_a_new_config_brings_is_looked_at_at_once_and_can_be_waited_for(
    provider_for: ProviderFor,
) -> None:
    rig, box = await provider_for("rig"), await provider_for("box")
    gate = asyncio.Event()
    box.on[MODELS] = play(wait(gate), listing("n"))
    async with watching(rig, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        await watch.first_round.wait()
        take_over(fleet, watch, rig, box, health=SELDOM)
        settled = asyncio.create_task(watch.settled())
        await eventually(lambda: box.looks)
        assert not settled.done()
        assert watch.first_round.is_set(), "the gateway stays ready"
        gate.set()
        await settled
        assert fleet.providers["box"].online
        assert list(fleet.providers["box"].models) == ["n"]
        assert len(rig.looks) == 1, "nothing is new about this one"


async def test_a_provider_that_is_gone_is_looked_at_no_more_and_nobody_waits_for_it(
    provider_for: ProviderFor,
) -> None:
    rig, box = await provider_for("rig"), await provider_for("box")
    box.on[MODELS] = stall()
    async with watching(rig, box, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        gone = fleet.providers["box"]
        settled = asyncio.create_task(watch.settled())
        await eventually(lambda: box.looks and fleet.providers["rig"].online)
        take_over(fleet, watch, rig, health=SELDOM)
        await settled
        await eventually(lambda: not box.connections)
        assert watch.first_round.is_set()
        assert gone.state is State.UNKNOWN
        watch.look_now(gone)


async def test_one_that_is_replaced_while_somebody_waits_for_it_is_waited_for_again(
    provider_for: ProviderFor,
) -> None:
    rig = await provider_for("rig")
    gate = asyncio.Event()
    rig.on[MODELS] = play(wait(gate), listing("n"))
    async with watching(rig, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        settled = asyncio.create_task(watch.settled())
        await eventually(lambda: rig.looks)
        rig.settings["headers"] = {"X-New": "1"}
        take_over(fleet, watch, rig, health=SELDOM)
        await eventually(lambda: len(rig.looks) == 2)
        assert rig.looks[1].header("x-new") == "1"
        assert not settled.done()
        gate.set()
        await settled
        assert fleet.providers["rig"].online


async def test_a_watch_without_providers_is_settled() -> None:
    async with watching(health=SELDOM) as (_, watch), asyncio.timeout(HANG_S):
        await watch.first_round.wait()
        await watch.settled()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"models": ["x"]}, {}),
        ({}, {"models": ["x"]}),
        ({"models": ["x"]}, {"models": ["y"]}),
    ],
    ids=str,
)
async def test_a_provider_whose_models_are_configured_anew_is_asked_anew_at_once(
    provider_for: ProviderFor, before: dict[str, Any], after: dict[str, Any]
) -> None:
    rig = await provider_for("rig")
    rig.settings = before
    async with watching(rig, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        await watch.settled()
        rig.settings = after
        take_over(fleet, watch, rig, health=SELDOM)
        await watch.settled()
        assert len(rig.looks) == 2
        assert list(fleet.providers["rig"].models) == after.get("models", ["m"])


async def test_the_answer_to_a_look_with_old_settings_does_not_undo_the_new_ones(
    provider_for: ProviderFor,
) -> None:
    rig = await provider_for("rig")
    gate = asyncio.Event()
    rig.on[MODELS] = play(wait(gate), listing("a", "b"))
    rig.settings = {"models": ["a"]}
    async with watching(rig, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        await eventually(lambda: len(rig.looks) == 1)
        rig.settings = {"models": ["b"]}
        take_over(fleet, watch, rig, health=SELDOM)
        await eventually(lambda: len(rig.looks) == 2)
        gate.set()
        await watch.settled()
        assert list(fleet.providers["rig"].models) == ["b"]


async def test_a_shorter_interval_does_not_wait_for_the_end_of_a_longer_one(provider: FakeProvider) -> None:
    async with watching(provider, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        await watch.settled()
        take_over(fleet, watch, provider, health=QUICK)
        await eventually(lambda: len(provider.looks) >= 3)


async def test_settings_that_make_no_difference_to_a_look_cause_none(provider: FakeProvider) -> None:
    async with watching(provider, health=SELDOM) as (fleet, watch), asyncio.timeout(HANG_S):
        await watch.settled()
        provider.settings["slots"] = 2
        take_over(fleet, watch, provider, health=SELDOM)
        await watch.settled()
        assert len(provider.looks) == 1
