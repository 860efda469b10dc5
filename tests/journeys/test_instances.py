"""Several gateways with the same providers: each says which it is, and together they take what there is."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.crowd import LLAMA, QUICK, Turns, all_given_back, ask, crowd, props, waiting
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.raw_client import chat, request
from tests.script import answer, stall

NAMED = {"name": "gw1", "instances": 3}


def numbered(number: int, instances: int = 3) -> dict[str, Any]:
    return {"name": f"gw{number}", "instances": instances}


# --- Its name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        chat(),
        chat(key="sk-nobody"),
        *(request("GET", path) for path in ("/healthz", "/nowhere", "/v1/models")),
    ],
    ids=["an answer", "401", "a page", "404", "the models"],
)
async def test_every_answer_names_the_instance(
    provider: FakeProvider, gateway_for: GatewayFor, message: bytes
) -> None:
    gateway = await gateway_for(provider, cluster=NAMED)
    response = await ask(gateway.port, message)
    assert [value for name, value in response.headers if name.lower() == "x-gateway-instance"] == ["gw1"]


async def test_of_two_gateways_in_a_row_the_first_is_named(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answer(200, {"choices": []}, headers={"X-Gateway-Instance": "behind"})
    for cluster, names in ((NAMED, ["gw1"]), ({}, [])):
        gateway = await gateway_for(provider, cluster=cluster)
        response = await ask(gateway.port)
        assert [value for name, value in response.headers if name.lower() == "x-gateway-instance"] == names


async def test_every_metric_has_the_instance_for_a_label(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, cluster=NAMED)
    assert (await ask(gateway.port)).status == 200
    for accept in ("", "application/openmetrics-text"):
        samples = [
            line for line in gateway.metrics.render(accept)[0].decode().splitlines() if line[:1] != "#"
        ]
        assert samples
        assert all('instance="gw1"' in sample for sample in samples)


async def test_the_request_log_names_it(
    provider: FakeProvider, gateway_for: GatewayFor, tmp_path: Path
) -> None:
    file = tmp_path / "requests.jsonl"
    gateway = await gateway_for(provider, cluster=NAMED, log={"requests": str(file)})
    assert (await ask(gateway.port)).status == 200
    await eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    assert json.loads(file.read_text())["instance"] == "gw1"


@pytest.mark.parametrize("form", ["text", "json"])
async def test_every_line_of_the_log_names_it(
    provider: FakeProvider, program_for: ProgramFor, form: str
) -> None:
    program = await program_for(provider, cluster=NAMED, log={"requests": "none", "format": form})
    program.signal(signal.SIGTERM)
    told = (await program.ended()).err.splitlines()
    lines = [line for line in told if line[:1] in "{2"]  # the rest is about the config, and no log yet
    words = "instance=gw1" if form == "text" else '"instance": "gw1"'
    assert len(lines) > 2
    assert all(words in line for line in lines)


async def test_where_there_is_only_one_gateway_nothing_speaks_of_instances(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port)
    gateway.ledger.book()
    assert "instance" not in str(response.headers)
    assert b"instance" not in gateway.metrics.render("")[0]
    assert "instance" not in gateway.ledger.recent[-1]


# --- Its share of the slots -----------------------------------------------------------------------


async def test_three_gateways_never_send_more_than_a_provider_takes_and_use_all_of_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=4)
    turns = Turns()
    rig.script = turns
    gateways = [await gateway_for(rig, cluster=numbered(n)) for n in (1, 2, 3)]
    async with (
        crowd(gateways[0].port) as one,
        crowd(gateways[1].port) as two,
        crowd(gateways[2].port) as three,
    ):
        clients = [await send() for send in (one, two, three) for _ in range(3)]
        await eventually(lambda: sum(gateway.slots.line.depth("m") for gateway in gateways) == 5)
        assert sorted(gateway.fleet.providers["rig"].in_flight for gateway in gateways) == [1, 1, 2]
        await eventually(lambda: len(rig.calls) == 4)
        turns.end(9)
        assert [(await client.response()).status for client in clients] == [200] * 9
    for gateway in gateways:
        await all_given_back(gateway)


async def test_slots_that_a_server_tells_of_are_shared_out_as_well(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(models=LLAMA)
    rig.on["/props"] = props(7)
    gateways = [await gateway_for(rig, cluster=numbered(n), health=QUICK) for n in (1, 2, 3)]

    def all_of_them() -> int:
        return sum(gateway.fleet.providers["rig"].capacity or 0 for gateway in gateways)

    assert all_of_them() == 7
    rig.on["/props"] = props(12)
    await eventually(lambda: all_of_them() == 12)


async def test_each_has_its_own_slots_where_the_config_says_so(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=4)
    gateway = await gateway_for(rig, cluster={"name": "gw1", "instances": "own"})
    assert gateway.fleet.providers["rig"].capacity == 4


async def test_who_waits_is_served_when_there_are_fewer_gateways(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=2)
    rig.script = stall()
    gateway = await gateway_for(rig, cluster=numbered(1, 2))
    async with crowd(gateway.port) as send:
        for _ in range(3):
            await send()
        await waiting(gateway, 2)
        gateway.adopt(build(settings(rig)))
        await waiting(gateway, 1)


async def test_more_gateways_than_slots_take_turns_and_say_so(
    provider_for: ProviderFor, gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await provider_for(slots=1)
    with caplog.at_level(logging.WARNING):
        gateways = [await gateway_for(rig, cluster=numbered(n, 2)) for n in (1, 2)]
    assert caplog.messages.count("there are fewer slots than gateways, which take turns") == 2
    await eventually(lambda: {gateway.fleet.providers["rig"].capacity for gateway in gateways} == {0, 1})
    for gateway in gateways:
        assert (await ask(gateway.port)).status == 200
