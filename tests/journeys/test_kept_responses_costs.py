"""What it costs to ask about a response that lives on: no slot, tokens once at most; and what is booked."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest

from llmgateway.access.keys import Caller
from llmgateway.traffic.fairness import cost
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_errors import ask, refusal
from tests.journeys.test_kept_responses import (
    BELOW,
    about,
    booked,
    made_from,
    make,
    make_by,
)
from tests.raw_client import Ending, RawClient, request
from tests.script import answer, chunk, play, sse, stall
from tests.shelf import ROOT, Shelf

if TYPE_CHECKING:
    pass


async def test_to_ask_about_a_response_takes_no_slot_and_to_go_on_from_one_waits_for_it(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other")
    shelf = Shelf(rig)
    gateway = await gateway_for(rig, other)
    wanted = await make_by(gateway, shelf)
    before, asked = len(shelf.made), len(other.calls)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as one, RawClient(gateway.port) as two:
        await one.send(made_from({"stream": True, "previous_response_id": wanted}))
        await one.head()
        await two.send(made_from({"previous_response_id": wanted}))
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        for method, below in BELOW:
            assert (await about(gateway, wanted, method, below)).status == 200
        assert gateway.fleet.providers["rig"].in_flight == 1
        shelf.hold.set()
        assert (await two.response()).status == 200
    assert (len(shelf.made), len(other.calls)) == (before + 2, asked)


async def test_to_ask_about_a_response_costs_no_tokens_and_counts_as_a_request(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    Shelf(provider)
    limits = {"requests_per_minute": 7, "tokens_per_day": 12, "parallel": 1}
    gateway = await gateway_for(provider, users={"alice": {"keys": [KEY], "limits": limits}})
    wanted = await make(gateway)
    refusal(await ask(gateway.port, made_from()), 429, "rate_limited")
    for method, below in (*BELOW, ("GET", "?stream=true")):
        response = await about(gateway, wanted, method, below)
        assert (response.status, response.header("x-ratelimit-limit-requests")) == (200, "7")
    assert (await about(gateway, wanted)).header("x-ratelimit-remaining-requests") == "0"
    refusal(await about(gateway, wanted), 429, "rate_limited")
    lines = await booked(gateway)
    assert [line["prompt_tokens"] for line in lines if line["endpoint"] != ROOT] == [None] * 7
    assert [line["completion_tokens"] for line in lines if line["status"] == 200] == [7, *[None] * 6]


def queued(made: str) -> bytes:
    return json.dumps({"id": made, "object": "response", "status": "queued", "usage": None}).encode()


async def test_what_was_made_in_the_background_is_charged_once_when_its_cost_is_told(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf = Shelf(provider)
    users = {"alice": {"keys": [KEY], "limits": {"tokens_per_day": 10_000, "parallel": 1}}}
    gateway = await gateway_for(provider, users=users)
    await make(gateway)
    wanted = shelf.made[0]
    provider.once(answer(200, queued("resp_later")))
    await ask(gateway.port, made_from({"background": True, "input": "x" * 20}))
    provider.on[f"{ROOT}/resp_later"] = answer(200, queued("resp_later"))
    for _ in range(3):
        assert (await about(gateway, "resp_later")).json["status"] == "queued"
    whole = {"input_tokens": 900, "output_tokens": 100, "total_tokens": 1_000}
    done = {"id": "resp_later", "object": "response", "status": "completed", "usage": whole}
    provider.on[f"{ROOT}/resp_later"] = answer(200, done)
    for _ in range(2):
        assert (await about(gateway, "resp_later")).status == 200
    response = await about(gateway, "resp_later")
    assert response.header("x-ratelimit-remaining-tokens") == str(10_000 - 12 - 1_000)
    assert (await about(gateway, wanted)).status == 200
    lines = await booked(gateway)
    costs = [(line["prompt_tokens"], line["completion_tokens"], line["estimated"]) for line in lines]
    (_, (prompt, completion, estimated), *later) = costs
    assert estimated and prompt and completion
    assert (
        later
        == [(None, None, False)] * 3 + [(900 - prompt, 100 - completion, False)] + [(None, None, False)] * 3
    )
    status = gateway.status.snapshot(Caller("", admin=True), wall=time.time())
    (used,) = [row["used"] for row in status["limits"] if row["name"] == "tokens_per_day"]
    assert used == 12 + 1_000
    assert gateway.slots._fair.enter("alice").served == cost(5 + 900, 7 + 100)


async def test_a_stream_taken_up_again_is_charged_for_what_was_not_charged_before(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf = Shelf(provider)
    gateway = await gateway_for(provider)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(made_from({"stream": True, "background": True}))
        await client.events(await client.head(), 1)
    await eventually(lambda: not gateway.ledger.in_flight)
    shelf.hold.set()
    for _ in range(2):
        assert (await about(gateway, shelf.made[0], "GET", "?stream=true")).status == 200
    first, taken_up, again = await booked(gateway)
    assert first["outcome"] == "client_gone" and first["estimated"]
    assert first["prompt_tokens"] + taken_up["prompt_tokens"] == 5
    assert first["completion_tokens"] + taken_up["completion_tokens"] == 7
    assert again["completion_tokens"] is None


async def test_the_books_know_the_kind_of_path_and_never_the_path(
    gateway_for: GatewayFor, provider: FakeProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    for method, below in BELOW:
        await about(gateway, wanted, method, below)
    await about(gateway, wanted, "GET", "?stream=true")
    await about(gateway, "resp_never")
    await about(gateway, wanted, "PATCH")
    lines = await booked(gateway)
    of_id = f"{ROOT}/{{id}}"
    assert [line["endpoint"] for line in lines] == [
        ROOT,
        of_id,
        f"{of_id}/input_items",
        f"{of_id}/cancel",
        of_id,
        of_id,
        of_id,
    ]
    assert [line["model"] for line in lines] == ["m"] * 6 + [None]
    assert [line["stream"] for line in lines] == [False] * 5 + [True, False]
    assert [line["outcome"] for line in lines] == ["ok"] * 6 + ["not_found"]
    assert all(line["provider"] for line in lines[:6]) and all(line["attempts"] == 1 for line in lines[:6])
    async with RawClient(gateway.port) as client:
        await client.send(request("GET", "/metrics"))
        metrics = bytes((await client.response(to="GET")).body).decode()
    assert f'endpoint="{of_id}"' in metrics
    told = capsys.readouterr()
    for text in (metrics, json.dumps(lines), told.out, told.err):
        assert wanted not in text and "resp_never" not in text


async def test_a_replayed_failure_is_no_failure_of_the_provider(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    failed = b'data: {"type": "response.failed", "response": {"error": {"message": "long ago"}}}\n\n'
    provider.on[f"{ROOT}/{wanted}"] = answer(200, failed, {"Content-Type": "text/event-stream"})
    for _ in range(7):
        response = await about(gateway, wanted, "GET", "?stream=true")
        assert (response.ending, bytes(response.body)) == (Ending.COMPLETE, failed)
    assert {line["outcome"] for line in await booked(gateway)} == {"ok"}
    assert gateway.fleet.providers["rig"].conduct.spotless


async def test_what_is_told_again_is_not_written_now(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    delta = b'data: {"type": "response.output_text.delta", "delta": "again"}\n\n'
    provider.on[f"{ROOT}/{wanted}"] = play(sse(), *[chunk(delta)] * 9, stall())
    async with RawClient(gateway.port) as client:
        await client.send(request("GET", f"{ROOT}/{wanted}?stream=true"))
        await client.events(await client.head(to="GET"), 9)
        snapshot = gateway.status.snapshot(Caller("", admin=True), wall=time.time())
        assert [row["tokens_per_s"] for row in snapshot["providers"]] == [0]
        assert [row["tokens"] for row in snapshot["requests"]] == [0]


async def test_a_silent_stream_that_is_asked_for_again_gets_keepalives_and_ends_with_its_client(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf = Shelf(provider)
    gateway = await gateway_for(provider, streams={"keepalive": "100ms"})
    wanted = await make(gateway)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(request("GET", f"{ROOT}/{wanted}?stream=true"))
        response = await client.head(to="GET")
        while b": waiting" not in response.body:
            await client.piece(response)
        client.leave()
    await eventually(lambda: not gateway.ledger.in_flight)
    assert (await booked(gateway))[-1]["outcome"] == "client_gone"


async def test_draining_takes_no_questions_and_lets_those_on_their_way_end(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    shelf = Shelf(provider)
    gateway = await gateway_for(provider)
    wanted = await make(gateway)
    shelf.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(request("GET", f"{ROOT}/{wanted}?stream=true"))
        response = await client.head(to="GET")
        drained = asyncio.create_task(gateway.drain())
        await eventually(lambda: gateway.condition.draining)
        refusal(await about(gateway, wanted), 503, "draining")
        shelf.hold.set()
        events = await client.events(response, 3)
        assert events[-1]["type"] == "response.completed"
        assert await drained
