"""Responses that live on: what is asked about one goes to who made it, for whose it is, and nobody else."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.journeys.test_errors import ask, asking, refusal
from tests.raw_client import RawClient, Response, request
from tests.script import answer, cut, error, play, raw, sse
from tests.shelf import ROOT, Shelf

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

SMALL = "sk-small-" + "s" * 40
HOUSE: dict[str, Any] = {
    "alice": {"keys": [KEY, {"name": "small", "key": SMALL, "models": ["small"]}]},
    "bob": {"keys": [BOB]},
}
BELOW = [("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")]


def made_from(body: dict[str, Any] | None = None, key: str = KEY, *headers: str) -> bytes:
    return asking(ROOT, {"model": "m", "input": "hi", **(body or {})}, key, *headers)


async def make(gateway: Gateway, body: dict[str, Any] | None = None, key: str = KEY, *headers: str) -> str:
    """Have a response made; gives its id."""
    response = await ask(gateway.port, made_from(body, key, *headers))
    assert response.status == 200, bytes(response.body)
    return str(
        response.json["id"] if not (body or {}).get("stream") else response.events[0]["response"]["id"]
    )


async def make_by(gateway: Gateway, shelf: Shelf) -> str:
    """Have a response made by this provider: as often as chance needs to think of it."""
    for number in range(200):
        if (made := await make(gateway, {"input": f"hello {number}"})) in shelf.made:
            return made
    raise AssertionError(f"{shelf.provider.name} is never asked")


async def about(
    gateway: Gateway, wanted: str, method: str = "GET", below: str = "", key: str | None = KEY, *headers: str
) -> Response:
    """Ask about a response; what stands behind `ROOT/ID` is below."""
    target = f"{ROOT}/{wanted}{below}"
    return await ask(gateway.port, request(method, target, *headers, key=key), to=method)


async def booked(gateway: Gateway) -> list[dict[str, Any]]:
    await eventually(lambda: not gateway.ledger.in_flight)
    gateway.ledger.book()
    return list(gateway.ledger.recent)


@pytest.fixture
async def rigs(provider_for: ProviderFor) -> list[Shelf]:
    """Three providers that keep what they make."""
    return [Shelf(await provider_for(name, models=["m", "small"])) for name in ("a", "b", "c")]


@pytest.fixture
async def gateway(gateway_for: GatewayFor, rigs: list[Shelf]) -> Gateway:
    return await gateway_for(*(shelf.provider for shelf in rigs), users=HOUSE)


# Where it is asked for.


@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_is_asked_about_a_response_goes_to_who_made_it(
    gateway: Gateway, rigs: list[Shelf], stream: bool
) -> None:
    for shelf in rigs:
        await make_by(gateway, shelf)
    made = [await make(gateway, {"stream": stream, "input": f"hi {number}"}) for number in range(5)]
    for wanted in [shelf.made[0] for shelf in rigs] + made:
        keeper = next(shelf.provider.name for shelf in rigs if wanted in shelf.made)
        for method, below in BELOW:
            response = await about(gateway, wanted, method, below)
            assert (response.status, response.header("x-gateway-provider")) == (200, keeper)
        streamed = await about(gateway, wanted, below="?stream=true&starting_after=0")
        assert [event["type"] for event in streamed.events][-1] == "response.completed"


async def test_a_request_that_goes_on_from_a_response_goes_to_who_made_it(
    gateway: Gateway, rigs: list[Shelf]
) -> None:
    wanted = await make(gateway)
    keeper = next(shelf for shelf in rigs if wanted in shelf.made)
    for _ in range(9):
        wanted = await make(gateway, {"previous_response_id": wanted, "model": "small"})
    assert len(keeper.made) == 10
    sent = keeper.provider.requests[-1]
    assert sent.json["previous_response_id"] == keeper.made[-2]


async def test_whatever_names_a_response_to_go_on_from_goes_to_who_made_it(
    gateway_for: GatewayFor, rigs: list[Shelf]
) -> None:
    server = {"extra_paths": [f"{ROOT}/compact"]}
    gateway = await gateway_for(*(shelf.provider for shelf in rigs), users=HOUSE, server=server)
    wanted = await make(gateway)
    keeper = next(shelf.provider for shelf in rigs if wanted in shelf.made)
    body = {"model": "m", "input": "hi", "previous_response_id": wanted}
    for path in (f"{ROOT}/input_tokens", f"{ROOT}/compact"):
        for _ in range(5):
            assert (await ask(gateway.port, asking(path, body))).header("x-gateway-provider") == keeper.name
        refusal(await ask(gateway.port, asking(path, body, BOB)), 404, "not_found")


@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000])
async def test_however_large_its_body_is_it_goes_there(
    gateway: Gateway, rigs: list[Shelf], size: int
) -> None:
    wanted = await make(gateway)
    keeper = next(shelf for shelf in rigs if wanted in shelf.made)
    for turns in ("x" * size, [{"role": "user", "content": "x" * 50}] * (size // 90)):
        for _ in range(3):
            wanted = await make(gateway, {"previous_response_id": wanted, "input": turns})
    assert len(keeper.made) == 7
    refusal(
        await ask(gateway.port, made_from({"previous_response_id": "resp_no", "input": turns})),
        404,
        "not_found",
    )


async def test_a_compressed_body_goes_there(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted = await make(gateway)
    keeper = next(shelf for shelf in rigs if wanted in shelf.made)
    for shelf in rigs:
        shelf.provider.script = answer(200, {"id": f"resp_of_{shelf.provider.name}"})
    body = gzip.compress(json.dumps({"model": "m", "input": "hi", "previous_response_id": wanted}).encode())
    packed = "Content-Encoding: gzip"
    for _ in range(5):
        response = await ask(gateway.port, request("POST", ROOT, packed, body=body))
        assert response.header("x-gateway-provider") == keeper.provider.name
        assert keeper.provider.requests[-1].body == body
    response = await ask(gateway.port, request("POST", ROOT, packed, body=body, key=BOB))
    refusal(response, 404, "not_found")


async def test_a_body_that_comes_late_is_no_matter(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted = await make(gateway)
    keeper = next(shelf for shelf in rigs if wanted in shelf.made)
    whole = request("POST", f"{ROOT}/{wanted}/cancel", body=b'{"why": "because"}')
    async with RawClient(gateway.port) as client:
        await client.send(whole[:-9], whole[-9:], pause_s=0.05)
        assert (await client.response()).json["status"] == "cancelled"
    assert keeper.provider.requests[-1].body == b'{"why": "because"}'


async def test_an_alias_goes_on_where_its_model_was(gateway_for: GatewayFor, rigs: list[Shelf]) -> None:
    providers = [shelf.provider for shelf in rigs]
    gateway = await gateway_for(*providers, users=HOUSE, aliases={"gpt": "small"})
    wanted = await make(gateway, {"model": "gpt"}, SMALL)
    keeper = next(shelf for shelf in rigs if wanted in shelf.made)
    for _ in range(5):
        wanted = await make(gateway, {"model": "gpt", "previous_response_id": wanted}, SMALL)
    assert len(keeper.made) == 6
    assert (await about(gateway, wanted, key=SMALL)).status == 200
    assert {line["model"] for line in await booked(gateway)} == {"small"}


async def test_no_fallback_is_asked_for_what_another_keeps(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other", models=["spare"])
    Shelf(rig)
    health = {"interval": "1s", "fall": 1}
    gateway = await gateway_for(rig, other, fallbacks={"m": ["spare"]}, health=health)
    wanted = await make(gateway)
    await rig.refuse()
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    response = await ask(gateway.port, made_from({"previous_response_id": wanted}))
    assert (response.status, response.header("x-gateway-error")) == (404, "no_provider")
    assert not other.calls
    assert (await ask(gateway.port, made_from())).header("x-gateway-provider") == "other"


async def test_a_404_about_a_response_says_nothing_of_the_endpoint(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf = Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    gone = {"error": {"message": f"Response with id '{wanted}' not found.", "type": "invalid_request_error"}}
    for body in (gone, {"detail": "Not Found"}):
        provider.once(answer(404, body))
        response = await ask(gateway.port, made_from({"previous_response_id": wanted}))
        assert (response.status, response.json) == (404, body)
        provider.on[f"{ROOT}/{wanted}"] = answer(404, body)
        assert (await about(gateway, wanted)).json == body
    assert await make(gateway) in shelf.made


async def test_the_provider_is_asked_as_the_client_asked(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted = await make(gateway)
    keeper = next(shelf.provider for shelf in rigs if wanted in shelf.made)
    await about(gateway, wanted, "GET", "?include=a%2Fb&starting_after=3", KEY, "X-Mine: 1")
    assert keeper.probes[-1].target == f"{ROOT}/{wanted}?include=a%2Fb&starting_after=3"
    assert keeper.probes[-1].header("x-mine") == "1" and keeper.probes[-1].header("authorization") is None
    body = b'{"why": "because"}'
    target = f"{ROOT}/{wanted.replace('_', '%5F')}/cancel"
    assert (await ask(gateway.port, request("POST", target, body=body))).status == 200
    assert (keeper.requests[-1].target, keeper.requests[-1].body) == (f"{ROOT}/{wanted}/cancel", body)
    assert (await ask(gateway.port, request("POST", f"{ROOT}/{wanted}/cancel"))).status == 200


async def test_what_the_provider_answers_passes(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted = await make(gateway)
    keeper = next(shelf.provider for shelf in rigs if wanted in shelf.made)
    for status in (404, 400, 501, 204, 429):
        keeper.on[f"{ROOT}/{wanted}"] = answer(status, b'{"error": "so"}' if status != 204 else b"")
        response = await about(gateway, wanted)
        assert (response.status, response.header("x-gateway-error")) == (status, None)
        assert bytes(response.body) == (b'{"error": "so"}' if status != 204 else b"")
    keeper.on[f"{ROOT}/{wanted}"] = error(500, "it broke")
    assert "it broke" in refusal(await about(gateway, wanted), 502, "upstream_error")
    assert len(keeper.probes) - len(keeper.looks) >= 6


async def test_a_base_path_stands_before_it(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    Shelf(provider)
    gateway = await gateway_for(provider, server={"base_path": "/llm"})
    made = await ask(gateway.port, asking(f"/llm{ROOT}", {"model": "m", "input": "hi"}))
    target = f"/llm{ROOT}/{made.json['id']}"
    assert (await ask(gateway.port, request("GET", target), to="GET")).json["id"] == made.json["id"]
    refusal(await about(gateway, made.json["id"]), 404, "not_found")


async def test_it_is_found_behind_a_gateway_behind_this_one(
    gateway_for: GatewayFor, gateway: Gateway, rigs: list[Shelf]
) -> None:
    inner = {"url": f"{gateway.url}/v1", "api_key": BOB}
    outer = await gateway_for(providers={"inner": inner}, users=HOUSE)
    for number in range(5):
        wanted = await make(outer, {"input": f"hi {number}"})
        keeper = next(shelf for shelf in rigs if wanted in shelf.made)
        assert (
            (await about(outer, wanted))
            .json["output"][0]["content"][0]["text"]
            .endswith(keeper.provider.name)
        )
        assert await make(outer, {"previous_response_id": wanted}) == keeper.made[-1]
        refusal(await about(gateway, wanted), 404, "not_found")
        assert (await about(gateway, wanted, key=BOB)).status == 200


# How the id is learnt.


async def test_a_stream_that_is_cut_can_be_asked_for_as_soon_as_its_id_was_told(
    gateway: Gateway, rigs: list[Shelf]
) -> None:
    for shelf in rigs:
        shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(made_from({"stream": True, "background": True}))
        response = await client.head()
        ((created),) = await client.events(response, 1)
        wanted = created["response"]["id"]
        assert (await about(gateway, wanted)).json["id"] == wanted, "while it streams"
    await eventually(lambda: not gateway.ledger.in_flight)
    assert (await about(gateway, wanted, "POST", "/cancel")).json["status"] == "cancelled"


async def test_a_response_of_a_provider_that_broke_off_is_known(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    first = b'data: {"response": {"id": "resp_cut"}, "type": "response.created"}\n\n'
    provider.script = play(sse(), raw(b"%x\r\n%b\r\n" % (len(first), first)), cut())
    provider.on[f"{ROOT}/resp_cut"] = answer(200, {"id": "resp_cut", "status": "in_progress"})
    gateway = await gateway_for(provider)
    broken = await ask(gateway.port, made_from({"stream": True}))
    assert broken.events[-1]["error"]["type"] == "upstream_error"
    assert (await about(gateway, "resp_cut")).status == 200


@pytest.mark.parametrize("size", [1, 30])
async def test_the_id_is_read_off_a_compressed_answer(
    gateway_for: GatewayFor, provider: FakeProvider, size: int
) -> None:
    packed = gzip.compress(json.dumps({"object": "response", "id": "resp_zip"}).encode())
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    provider.script = raw(head, *pieces)
    provider.on[f"{ROOT}/resp_zip"] = answer(200, {})
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, made_from({}, KEY, "Accept-Encoding: gzip"))
    assert bytes(response.body) == packed
    assert (await about(gateway, "resp_zip")).status == 200


async def test_the_id_is_that_of_who_answered_in_the_end(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    bad, good = await provider_for("bad"), await provider_for("good")
    bad.script = answer(500, {"id": "resp_bad", "object": "response"})
    shelf = Shelf(good)
    gateway = await gateway_for(bad, good)
    for _ in range(6):
        wanted = await make(gateway)
        assert wanted in shelf.made
        assert (await about(gateway, wanted)).header("x-gateway-provider") == "good"
    refusal(await about(gateway, "resp_bad"), 404, "not_found")


async def test_what_comes_behind_a_keepalive_is_known_as_well(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf, waited = Shelf(provider), asyncio.Event()
    made = shelf.make

    async def late(exchange: Any) -> None:
        await waited.wait()
        await made(exchange)

    provider.script = late
    gateway = await gateway_for(provider, streams={"keepalive": "100ms"})
    async with RawClient(gateway.port) as client:
        await client.send(made_from({"stream": True}))
        response = await client.head()
        await client.piece(response)
        waited.set()
        while await client.piece(response):
            pass
    assert response.body.startswith(b": waiting")
    assert (await about(gateway, shelf.made[0])).status == 200


async def test_ids_of_other_endpoints_and_of_refusals_are_not_known(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    provider.script = answer(400, {"id": "resp_no", "object": "response"})
    await ask(gateway.port, made_from())
    provider.script = answer(200, {"id": "resp_chat", "choices": []})
    await ask(gateway.port, asking("/v1/chat/completions"))
    for wanted in ("resp_no", "resp_chat"):
        refusal(await about(gateway, wanted), 404, "not_found")


# Whose it is.


@pytest.mark.parametrize(("method", "below"), BELOW)
async def test_what_is_unknown_and_what_is_anothers_are_the_same(
    gateway: Gateway, rigs: list[Shelf], method: str, below: str
) -> None:
    wanted = await make(gateway)
    said = refusal(await about(gateway, wanted, method, below, BOB), 404, "not_found")
    assert wanted in said
    never = refusal(await about(gateway, "resp_never", method, below, BOB), 404, "not_found")
    assert never == said.replace(wanted, "resp_never")
    refusal(await about(gateway, wanted, method, below, "sk-wrong"), 401, "invalid_api_key")
    assert (await about(gateway, wanted, method, below)).status == 200


async def test_nobody_goes_on_from_what_is_anothers(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted = await make(gateway)
    calls = sum(len(shelf.made) for shelf in rigs)
    for previous in (wanted, "resp_never", "../" + wanted, "x" * 5_000):
        response = await ask(gateway.port, made_from({"previous_response_id": previous}, BOB))
        assert ("'" + previous in refusal(response, 404, "not_found")) is previous.startswith("resp_")
    assert sum(len(shelf.made) for shelf in rigs) == calls
    for nothing in (None, "", 7):
        assert (await ask(gateway.port, made_from({"previous_response_id": nothing}, BOB))).status == 200
    other = {"model": "m", "messages": [], "previous_response_id": wanted}
    assert (await ask(gateway.port, asking("/v1/chat/completions", other, BOB))).status == 200


async def test_persons_behind_a_key_have_their_own(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    Shelf(provider)
    users = {"alice": {"keys": [KEY], "person_header": "X-Person"}}
    gateway = await gateway_for(provider, users=users)
    wanted = await make(gateway, None, KEY, "X-Person: ann")
    for other in ([], ["X-Person: ben"]):
        refusal(await about(gateway, wanted, "GET", "", KEY, *other), 404, "not_found")
    assert (await about(gateway, wanted, "GET", "", KEY, "X-Person: ann")).status == 200


async def test_an_id_that_a_request_has_chosen_takes_nobody_elses_over(
    gateway: Gateway, rigs: list[Shelf]
) -> None:
    wanted = await make(gateway)
    for shelf in rigs:
        shelf.ids = [wanted]
    assert await make(gateway, {"request_id": wanted}, BOB) == wanted
    refusal(await about(gateway, wanted, "GET", "", BOB), 404, "not_found")
    assert (await about(gateway, wanted)).status == 200


async def test_a_key_asks_only_for_what_its_models_have_made(gateway: Gateway, rigs: list[Shelf]) -> None:
    wanted, small = await make(gateway), await make(gateway, {"model": "small"}, SMALL)
    for method, below in BELOW:
        response = await about(gateway, wanted, method, below, SMALL)
        assert "'m'" in refusal(response, 403, "model_not_allowed")
        assert (await about(gateway, small, method, below, SMALL)).status == 200
    response = await ask(gateway.port, made_from({"model": "small", "previous_response_id": wanted}, SMALL))
    assert "'m'" in refusal(response, 403, "model_not_allowed")
    assert await make(gateway, {"model": "small", "previous_response_id": small}, SMALL)


# Paths and methods.


@pytest.mark.parametrize(
    ("method", "below", "allowed"),
    [
        ("POST", "", "GET, DELETE"),
        ("PUT", "", "GET, DELETE"),
        ("HEAD", "", "GET, DELETE"),
        ("DELETE", "/input_items", "GET"),
        ("GET", "/cancel", "POST"),
    ],
)
async def test_another_method_is_told_which_ones_there_are(
    gateway: Gateway, method: str, below: str, allowed: str
) -> None:
    response = await about(gateway, "resp_1", method, below)
    assert (response.status, response.header("allow")) == (405, allowed)
    if method != "HEAD":
        refusal(response, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "below",
    [
        "/",
        "//",
        "/..",
        "/../chat",
        "/a/b",
        "/a/cancel/",
        "/a/input_items/b",
        "/%2e%2e",
        "/a%2Fcancel",
        "/a%00",
    ],
)
async def test_nothing_else_below_is_a_path(gateway: Gateway, rigs: list[Shelf], below: str) -> None:
    refusal(await ask(gateway.port, request("GET", ROOT + below), to="GET"), 404, "not_found")
    assert not any(shelf.provider.calls for shelf in rigs)


async def test_the_paths_beside_it_stay_what_they_are(gateway: Gateway) -> None:
    response = await about(gateway, "input_tokens")
    assert (response.status, response.header("allow")) == (405, "POST")


# Who is away, and who comes and goes.


@pytest.mark.parametrize("status", [404, 503])
async def test_who_is_away_is_named_with_the_time(
    gateway_for: GatewayFor, provider_for: ProviderFor, status: int
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    shelf = Shelf(rig)
    Shelf(other)
    server, health = {"unavailable_status": status}, {"interval": "1s", "fall": 1}
    gateway = await gateway_for(rig, other, server=server, health=health)
    wanted = await make_by(gateway, shelf)
    await rig.refuse()
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    for method, below in BELOW:
        response = await about(gateway, wanted, method, below)
        said = refusal(response, status, "no_provider")
        assert "The response is kept by rig, which is offline since " in said
        assert response.header("retry-after") == "1"
    said = refusal(
        await ask(gateway.port, made_from({"previous_response_id": wanted})), status, "no_provider"
    )
    assert "The response is kept by rig, which is offline since " in said
    await rig.come_back()
    await eventually(lambda: gateway.fleet.providers["rig"].online)
    assert (await about(gateway, wanted)).status == 200


async def test_who_has_gone_without_a_word_is_a_failure_and_no_other_is_asked(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    shelf = Shelf(rig)
    gateway = await gateway_for(rig, other, health={"interval": "1h"})
    wanted = await make_by(gateway, shelf)
    asked = len(other.calls)
    await rig.refuse()
    assert "'rig'" in refusal(await about(gateway, wanted), 502, "upstream_error")
    follow = made_from({"previous_response_id": wanted})
    assert "'rig'" in refusal(await ask(gateway.port, follow), 502, "upstream_error")
    assert len(other.calls) == asked


async def test_a_model_that_its_keeper_does_not_have_is_no_providers(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other", models=["other"])
    Shelf(rig)
    gateway = await gateway_for(rig, other)
    wanted = await make(gateway)
    follow = made_from({"model": "other", "previous_response_id": wanted})
    said = refusal(await ask(gateway.port, follow), 404, "no_provider")
    assert said.startswith("No online provider serving model 'other' for this user.") and "rig" in said


async def test_a_reload_keeps_what_is_known_of_who_stays_and_no_more(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    shelf = Shelf(rig)
    gateway = await gateway_for(rig, other)
    wanted = await make_by(gateway, shelf)
    gateway.adopt(build(settings(rig, other, providers={"rig": {**rig.entry, "weight": 9}})))
    assert (await about(gateway, wanted)).status == 200
    gateway.adopt(build(settings(other)))
    refusal(await about(gateway, wanted), 404, "not_found")
    refusal(await ask(gateway.port, made_from({"previous_response_id": wanted})), 404, "not_found")
    gateway.adopt(build(settings(rig, other, providers={"rig": {**rig.entry, "url": other.url}})))
    refusal(await about(gateway, wanted), 404, "not_found")
    gateway.adopt(build(settings(rig, other, providers={"rig": {**rig.entry, "owner": "bob"}}, users=HOUSE)))
    refusal(await about(gateway, wanted), 404, "not_found")
    gateway.adopt(build(settings(rig, other)))
    await eventually(lambda: gateway.fleet.providers["rig"].online)
    assert (await about(gateway, wanted)).status == 200


async def test_a_keeper_that_is_spoken_to_in_another_way_keeps_what_it_has(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    gateway.adopt(build(settings(provider, providers={"rig": {**provider.entry, "api_key": "sk-new"}})))
    assert not gateway.fleet.providers["rig"].online
    assert (await about(gateway, wanted)).status == 200
    assert provider.probes[-1].header("authorization") == "Bearer sk-new"
    assert await make(gateway, {"previous_response_id": wanted})


async def test_a_stream_that_is_asked_for_again_outlives_its_provider_in_the_config(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other", models=["other"])
    shelf = Shelf(rig)
    gateway = await gateway_for(rig, other)
    wanted = await make(gateway)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(request("GET", f"{ROOT}/{wanted}?stream=true"))
        response = await client.head(to="GET")
        gateway.adopt(build(settings(other)))
        shelf.hold.set()
        assert (await client.events(response, 3))[-1]["type"] == "response.completed"
    refusal(await about(gateway, wanted), 404, "not_found")


async def test_who_waits_for_a_keeper_that_leaves_the_config_is_told(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other")
    shelf = Shelf(rig)
    gateway = await gateway_for(rig, other)
    wanted = await make_by(gateway, shelf)
    asked = len(other.calls)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as one, RawClient(gateway.port) as two:
        await one.send(made_from({"stream": True, "previous_response_id": wanted}))
        await one.head()
        await two.send(made_from({"previous_response_id": wanted}))
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        gateway.adopt(build(settings(other)))
        assert "kept by rig" in refusal(await two.response(), 404, "no_provider")
        shelf.hold.set()
    assert len(other.calls) == asked
