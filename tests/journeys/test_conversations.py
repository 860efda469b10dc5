"""A conversation stays where its cache is as long as that serves it, and new ones go where there is room."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from llmgateway.config.settings import SESSION_HEADERS
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, FAMILY, QUICK, Turns, ask, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import Response, chat, request
from tests.script import answer, error, loading, play, polite, stall, wait

Messages = list[dict[str, Any]]
LONG_PROMPT = " ".join(f"rule {number}: be kind;" for number in range(500))  # 2,000 words


@pytest.fixture
async def three(provider_for: ProviderFor) -> list[FakeProvider]:
    """Three providers of one model, of whom nobody knows how much they can take."""
    return [await provider_for(name) for name in ("rig", "other", "third")]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def assistant(text: str = "Hello world") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def turn(messages: Messages, *headers: str, key: str = KEY) -> bytes:
    """A chat request with these messages."""
    return chat(json.dumps({"model": "m", "messages": messages}).encode(), *headers, key=key)


def call(path: str, **body: Any) -> bytes:
    """A request to another endpoint."""
    return request("POST", path, body=json.dumps({"model": "m", **body}).encode())


def seen(response: Response) -> tuple[str, str]:
    """Who answered, and what became of the conversation's home."""
    assert response.status == 200
    return response.header("x-gateway-provider") or "", response.header("x-gateway-affinity") or ""


# At home.


async def test_a_conversation_stays_where_it_began(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    messages = [system("Be brief."), user("Hello")]
    home, first = seen(await ask(gateway.port, turn(messages)))
    assert first == "miss"
    for number in range(6):
        await ask(gateway.port, turn([user(f"somebody else {number}")]))
        messages += [assistant(), user(f"and then {number}?")]
        assert seen(await ask(gateway.port, turn(messages))) == (home, "hit")


DIALOGUES: dict[str, list[bytes]] = {  # three turns of one conversation, in each of the APIs
    "chat": [turn([user("a")]), turn([user("a"), assistant(), user("b")])],
    "a regenerated answer": [turn([user("a")]), turn([user("a")])],
    "an edited last message": [
        turn([user("a")]),
        turn([user("a"), assistant(), user("b")]),
        turn([user("a"), assistant(), user("c")]),
    ],
    "messages": [
        call("/v1/messages", system="Be brief.", messages=[user("a")]),
        call("/v1/messages", system="Be brief.", messages=[user("a"), assistant(), user("b")]),
    ],
    "messages whose cache mark moves": [
        call("/v1/messages", messages=[user("a") | {"cache_control": {"type": "ephemeral"}}]),
        call(
            "/v1/messages",
            messages=[user("a"), assistant(), user("b") | {"cache_control": {"type": "ephemeral"}}],
        ),
    ],
    "responses": [
        call("/v1/responses", instructions="Be brief.", input=[user("a")]),
        call("/v1/responses", instructions="Be brief.", input=[user("a"), assistant(), user("b")]),
    ],
    "completions": [
        call("/v1/completions", prompt="Once upon a time " * 30),
        call("/v1/completions", prompt="Once upon a time " * 40),
    ],
}


@pytest.mark.parametrize("turns", DIALOGUES.values(), ids=DIALOGUES.keys())
async def test_every_api_has_conversations(
    three: list[FakeProvider], gateway_for: GatewayFor, turns: list[bytes]
) -> None:
    gateway = await gateway_for(*three)
    home, first = seen(await ask(gateway.port, turns[0]))
    assert first == "miss"
    for later in turns[1:]:
        await ask(gateway.port, turn([user(f"somebody else {len(three[0].calls)}")]))
        assert seen(await ask(gateway.port, later)) == (home, "hit")


STRANGERS: dict[str, tuple[bytes, bytes]] = {  # two requests that have nothing in common
    "a system prompt alone": (turn([system("Be kind."), user("a")]), turn([system("Be kind."), user("b")])),
    "another user's words": (turn([user("a")]), turn([user("a")], key=BOB)),
    "a first message that begins alike": (turn([user("a" * 5000)]), turn([user("a" * 5000 + "b")])),
    "an answer in common": (turn([user("a"), assistant()]), turn([user("b"), assistant()])),
}


@pytest.mark.parametrize(("one", "another"), STRANGERS.values(), ids=STRANGERS.keys())
async def test_what_is_not_the_same_conversation_is_not_taken_for_it(
    three: list[FakeProvider], gateway_for: GatewayFor, one: bytes, another: bytes
) -> None:
    gateway = await gateway_for(*three, users=FAMILY)
    first, second = seen(await ask(gateway.port, one)), seen(await ask(gateway.port, another))
    assert (first[1], second[1]) == ("miss", "miss")
    assert first[0] != second[0]


@pytest.mark.parametrize(
    "message",
    [
        call("/v1/embeddings", input="the same words"),
        call("/v1/rerank", query="q", documents=["a", "b"]),
        call("/v1/messages/count_tokens", messages=[user("a")]),
        call("/v1/images/generations", prompt="a llama " * 100),
    ],
)
async def test_what_is_no_conversation_has_no_home(
    three: list[FakeProvider], gateway_for: GatewayFor, message: bytes
) -> None:
    gateway = await gateway_for(*three)
    for _ in range(4):
        assert seen(await ask(gateway.port, message))[1] == ""
    homes = [seen(await ask(gateway.port, turn([user(str(number))])))[0] for number in range(3)]
    assert len(set(homes)) == 3, "they count for nothing when conversations are placed"


# Session headers.


@pytest.mark.parametrize("header", SESSION_HEADERS)
async def test_a_session_header_that_clients_send_names_the_conversation(
    three: list[FakeProvider], gateway_for: GatewayFor, header: str
) -> None:
    gateway = await gateway_for(*three)
    long, pruned = [user("a"), assistant(), user("b")], [user("a"), assistant("pruned"), user("c")]
    home, _ = seen(await ask(gateway.port, turn(long, f"{header}: one")))
    await ask(gateway.port, turn([user("somebody else")]))
    assert seen(await ask(gateway.port, turn(pruned, f"{header}: one"))) == (home, "hit")
    away, affinity = seen(await ask(gateway.port, turn([user("a")], f"{header}: two")))
    assert affinity == "miss" and away != home


async def test_which_session_headers_count_is_configurable(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three, affinity={"headers": ["X-Thread"]})
    long, pruned = [user("a"), assistant(), user("b")], [user("a"), assistant("pruned"), user("c")]
    home, _ = seen(await ask(gateway.port, turn(long, "X-Thread: 1", "X-Session-Id: 1")))
    assert seen(await ask(gateway.port, turn(pruned, "X-Thread: 1"))) == (home, "hit")
    assert seen(await ask(gateway.port, turn(pruned, "X-Session-Id: 1")))[1] == "miss"


async def test_a_session_is_its_users_own(three: list[FakeProvider], gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(*three, users=FAMILY)
    for key in (KEY, BOB):
        assert seen(await ask(gateway.port, turn([user("a")], "X-Session-Id: 1", key=key)))[1] == "miss"


# Away from home.


async def test_a_conversation_whose_home_is_full_goes_to_a_free_one_and_stays_there(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other", slots=1)
    gateway = await gateway_for(rig, other)
    session = turn([user("a")], "X-Session-Id: 1")
    home, _ = seen(await ask(gateway.port, session))
    at_home, away = (rig, other) if home == "rig" else (other, rig)
    at_home.once(stall())
    async with crowd(gateway.port) as send:
        await send(session)
        await eventually(lambda: len(at_home.calls) == 2)
        assert seen(await ask(gateway.port, session)) == (away.name, "spill")
    await eventually(lambda: gateway.fleet.providers[home].in_flight == 0)
    assert seen(await ask(gateway.port, session)) == (away.name, "hit")


async def test_a_conversation_waits_for_any_of_them_when_all_are_full(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    providers = [await provider_for(name, slots=1) for name in ("rig", "other")]
    gateway = await gateway_for(*providers)
    session = turn([user("a")], "X-Session-Id: 1")
    home, _ = seen(await ask(gateway.port, session))
    gate = asyncio.Event()
    for provider in providers:
        provider.script = stall() if provider.name == home else play(wait(gate), polite())
    async with crowd(gateway.port) as send:
        for number in range(2):
            await send(turn([user(f"somebody else {number}")]))
        await eventually(lambda: sum(len(provider.calls) for provider in providers) == 3)
        waiter = await send(session)
        await waiting(gateway, 1)
        gate.set()
        assert seen(await waiter.response())[1] == "spill"


async def test_where_slots_are_unknown_a_home_is_left_only_when_it_is_clearly_busier(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    gateway = await gateway_for(rig, other)
    session = turn([user("a")], "X-Session-Id: 1")
    home, _ = seen(await ask(gateway.port, session))
    for provider in (rig, other):
        provider.script = stall()
    async with crowd(gateway.port) as send:
        for _ in range(5):
            await send(session)
        await eventually(lambda: len(rig.calls) + len(other.calls) == 6)
        at_home, away = (rig, other) if home == "rig" else (other, rig)
        assert (len(at_home.calls), len(away.calls)) == (5, 1)  # the first one was answered
    assert gateway.slots.affinity_results == {"miss": 1, "hit": 4, "spill": 1}


@pytest.mark.parametrize("leaves", ["offline", "misconfigured", "warming"])
async def test_a_conversation_whose_home_has_gone_finds_a_new_one(
    three: list[FakeProvider], gateway_for: GatewayFor, leaves: str
) -> None:
    gateway = await gateway_for(*three, health=QUICK)
    messages = [user("a")]
    home, _ = seen(await ask(gateway.port, turn(messages)))
    gone = next(provider for provider in three if provider.name == home)
    probe = {"offline": error(500), "misconfigured": answer(401), "warming": loading()}[leaves]
    gone.on["/v1/models"] = probe
    await eventually(lambda: not gateway.fleet.providers[home].online)
    messages += [assistant(), user("b")]
    new_home, affinity = seen(await ask(gateway.port, turn(messages)))
    assert affinity == "miss" and new_home != home

    del gone.on["/v1/models"]
    await eventually(lambda: gateway.fleet.providers[home].online)
    messages += [assistant(), user("c")]
    assert seen(await ask(gateway.port, turn(messages))) == (new_home, "hit")


async def test_a_conversation_whose_home_fails_moves_with_the_answer(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    messages = [user("a")]
    home, _ = seen(await ask(gateway.port, turn(messages)))
    next(provider for provider in three if provider.name == home).once(error(500))
    messages += [assistant(), user("b")]
    new_home, _ = seen(await ask(gateway.port, turn(messages)))
    assert new_home != home
    messages += [assistant(), user("c")]
    assert seen(await ask(gateway.port, turn(messages))) == (new_home, "hit")


# New ones.


@pytest.mark.parametrize("prompt", ["", "Be brief.", LONG_PROMPT], ids=["none", "short", "2,000 words"])
async def test_new_conversations_spread_whatever_system_prompt_they_share(
    three: list[FakeProvider], gateway_for: GatewayFor, prompt: str
) -> None:
    gateway = await gateway_for(*three)
    begin = [system(prompt)] if prompt else []
    homes: dict[int, str] = {}
    for number in range(12):
        homes[number], affinity = seen(await ask(gateway.port, turn([*begin, user(f"{number}")])))
        assert affinity == "miss"
    spread = Counter(homes.values())
    assert len(spread) == 3 and max(spread.values()) <= 6
    for number, home in homes.items():
        later = [*begin, user(f"{number}"), assistant(), user("go on")]
        assert seen(await ask(gateway.port, turn(later))) == (home, "hit")


async def test_new_conversations_begin_where_their_long_system_prompt_is_known(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    homes = {
        seen(await ask(gateway.port, turn([system(LONG_PROMPT), user(str(number))])))[0]
        for number in range(3)
    }
    assert len(homes) == 1


async def test_a_stronger_machine_gets_more_of_them(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", weight=3), await provider_for("other", weight=1)
    gateway = await gateway_for(rig, other)
    for number in range(8):
        await ask(gateway.port, turn([user(str(number))]))
    assert (len(rig.calls), len(other.calls)) == (6, 2)


# What is in memory.

Kind = tuple[dict[str, Any], str, dict[str, Any]]  # the entry in the model list; where more is told, and what


def kinds(loaded: bool) -> dict[str, Kind]:
    """How servers say whether they have `m` in memory."""
    state = "loaded" if loaded else "unloaded"
    return {
        "Ollama": ({"owned_by": "library"}, "/api/ps", {"models": [{"model": "m"}] if loaded else []}),
        "LM Studio": (
            {"owned_by": "organization_owner"},
            "/api/v0/models",
            {"data": [{"id": "m", "state": "loaded" if loaded else "not-loaded"}]},
        ),
        "llama.cpp": ({"owned_by": "llamacpp", "status": {"value": state}}, "/props", {"role": "router"}),
    }


@pytest.mark.parametrize("configured", [False, True], ids=["models asked", "models configured"])
@pytest.mark.parametrize("kind", kinds(True))
async def test_a_machine_that_has_the_model_in_memory_is_preferred_until_it_is_full(
    provider_for: ProviderFor, gateway_for: GatewayFor, kind: str, configured: bool
) -> None:
    providers = []
    for name in ("cold", "warm"):
        entry, path, told = kinds(name == "warm")[kind]
        provider = await provider_for(name, models=[{"id": "m", **entry}], slots=1)
        provider.on[path] = answer(200, told)
        providers.append(provider)
    cold, warm = providers
    models = {"models": ["m"]} if configured else {}
    gateway = await gateway_for(*providers, providers={p.name: p.entry | models for p in providers})
    for number in range(6):
        assert seen(await ask(gateway.port, turn([user(str(number))])))[0] == "warm"

    turns = warm.script = Turns()
    async with crowd(gateway.port) as send:
        await send(turn([user("long")]))
        await eventually(lambda: len(warm.calls) == 7)
        assert seen(await ask(gateway.port, turn([user("next")])))[0] == "cold"
        turns.end()
    assert len(cold.calls) == 1


@pytest.mark.parametrize("kind", kinds(False))
async def test_a_model_that_is_not_in_memory_is_listed_and_served(
    provider_for: ProviderFor, gateway_for: GatewayFor, kind: str
) -> None:
    entry, path, told = kinds(False)[kind]
    rig = await provider_for(models=[{"id": "m", **entry}])
    rig.on[path] = answer(200, told)
    gateway = await gateway_for(rig)
    listed = await ask(gateway.port, request("GET", "/v1/models"))
    assert [model["id"] for model in listed.json["data"]] == ["m"]
    assert (await ask(gateway.port)).status == 200
