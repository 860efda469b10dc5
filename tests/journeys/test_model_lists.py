"""One odd entry in what a server lists takes nothing else away, and somebody is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmgateway.fleet.provider import State
from tests.conftest import GatewayFor, ProgramFor
from tests.crowd import QUICK, ask, ask_for
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import request
from tests.script import answer

MODELS = "/v1/models"


def entries(*listed: Any) -> Any:
    return answer(200, {"object": "list", "data": list(listed)})


async def models(port: int) -> list[str]:
    listed = await ask(port, request("GET", MODELS))
    return [entry["id"] for entry in listed.json["data"]]


@pytest.mark.parametrize(
    "odd", [None, "m", 7, [], {}, {"id": ""}, {"id": None}, {"id": 3}, {"id": "x" * 5_000}]
)
async def test_a_server_with_one_bad_entry_serves_its_other_models_and_the_page_tells_why(
    provider: FakeProvider, gateway_for: GatewayFor, odd: Any
) -> None:
    provider.on[MODELS] = entries(odd, {"id": "m"}, odd)
    gateway = await gateway_for(provider)
    assert await models(gateway.port) == ["m"]
    assert (await ask(gateway.port, ask_for("m"))).status == 200
    status = await ask(gateway.port, request("GET", "/gateway/status"))
    (row,) = status.json["providers"]
    assert row["state"] == "online"
    assert row["reason"].startswith("in its list of models 2 entries have no usable 'id'")


async def test_a_list_of_bad_entries_alone_is_no_list(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[MODELS] = entries({"id": None}, {"name": "m"})
    gateway = await gateway_for(provider)
    rig = gateway.fleet.providers["rig"]
    assert rig.state is State.MISCONFIGURED
    assert "not a list of models" in rig.reason


async def test_a_bad_entry_is_logged_once_and_again_when_it_is_another(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    provider.on[MODELS] = entries({"id": "m"})
    program = await program_for(provider, health=QUICK)
    await program.says("provider is online")
    for odd in ("one", "two"):
        provider.on[MODELS] = entries({"id": "m"}, odd)
        await program.says(f"warning.*with a fault.*'{odd}'")
        seen = len(provider.probes)
        await eventually(lambda seen=seen: len(provider.probes) >= seen + 3)  # type: ignore[misc]
        assert program.err.count(f"'{odd}'") == 1
