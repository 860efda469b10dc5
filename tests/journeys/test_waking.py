"""A machine that sleeps is sent for when nobody else serves the model; requests wait until it is up."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.wake import PORT, Alarm, magic_packet
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.crowd import QUICK, all_given_back, ask, ask_for, crowd, overloaded, waiting
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import RawClient, chat, request
from tests.script import error, loading, stall

MAC = "aa:bb:cc:dd:ee:ff"
PACKET = b"\xff" * 6 + b"\xaa\xbb\xcc\xdd\xee\xff" * 16
PID = os.getpid()
BROADCAST = f"127.{PID >> 16 & 255}.{PID >> 8 & 255}.{PID & 255 or 1}"  # of this process alone, on loopback
WAKE = {"mac": MAC, "broadcast": BROADCAST}


class Ear:
    """Hears what is sent for a machine."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((BROADCAST, port))
        except BaseException:
            self.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._heard: list[bytes] = []

    @property
    def heard(self) -> list[bytes]:
        """Every packet that has come."""
        try:
            while True:
                self._heard.append(self._socket.recv(2048))
        except BlockingIOError:
            return self._heard

    async def one(self) -> bytes:
        """Wait for the first packet."""
        await eventually(lambda: self.heard, saying="no packet came")
        return self.heard[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    """Where a machine's network card would listen: port 9, which only root may have."""
    try:
        ear = Ear(PORT)
    except PermissionError:
        pytest.skip("port 9 needs privileges")
    yield ear
    ear.close()


@pytest.fixture
async def sleeper(provider_for: ProviderFor) -> FakeProvider:
    """A provider whose machine sleeps, and how to wake it."""
    rig = await provider_for(wake=WAKE)
    await rig.refuse()
    return rig


def knowing(provider: FakeProvider) -> dict[str, Any]:
    """The `providers` section with its models in the config, so that they are known before it was ever up."""
    return {provider.name: {**provider.entry, "models": ["m"]}}


async def models(port: int) -> list[str]:
    """What is listed now."""
    listed = await ask(port, request("GET", "/v1/models"))
    return [entry["id"] for entry in listed.json["data"]]


# Sent for, and waited for.


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_request_wakes_the_machine_and_goes_through_when_it_is_up(
    sleeper: FakeProvider, gateway_for: GatewayFor, ear: Ear, stream: bool
) -> None:
    gateway = await gateway_for(sleeper, health=QUICK, providers=knowing(sleeper))
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=stream))
        assert await ear.one() == PACKET
        await waiting(gateway, 1)
        await sleeper.come_back()
        response = await client.response()
    assert response.status == 200
    assert float(response.header("x-gateway-queue-wait") or 0) > 0
    assert len(sleeper.calls) == 1
    await all_given_back(gateway)


async def test_a_stream_is_kept_alive_until_it_is_up(
    sleeper: FakeProvider, program_for: ProgramFor, ear: Ear
) -> None:
    program = await program_for(
        sleeper, health=QUICK, providers=knowing(sleeper), streams={"keepalive": "40ms"}
    )
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        assert await client.piece(response) == b": waiting, position 1 in the queue\n\n"
        assert await ear.one() == PACKET
        await sleeper.come_back()
        while await client.piece(response):
            pass
    assert response.events[-1] == "[DONE]"


async def test_it_may_load_its_model_once_it_is_up(
    sleeper: FakeProvider, gateway_for: GatewayFor, ear: Ear
) -> None:
    gateway = await gateway_for(sleeper, health=QUICK, providers=knowing(sleeper))
    sleeper.on["/v1/models"] = loading()
    sleeper.once(loading())
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await ear.one()
        await sleeper.come_back()
        await eventually(lambda: gateway.fleet.providers["rig"].state.value == "warming")
        del sleeper.on["/v1/models"]
        assert (await client.response()).status == 200


async def test_a_machine_that_fell_asleep_is_known_by_what_it_served_last(
    provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear
) -> None:
    rig = await provider_for(wake=WAKE, models=["m", "n"])
    gateway = await gateway_for(rig, health=QUICK)
    await rig.refuse()
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    assert await models(gateway.port) == ["m", "n"]
    assert not ear.heard, "listing wakes nobody"
    assert (await ask(gateway.port, ask_for("another"))).status == 404
    assert not ear.heard
    async with RawClient(gateway.port) as client:
        await client.send(ask_for("n"))
        await ear.one()
        await rig.come_back()
        assert (await client.response()).status == 200


async def test_a_machine_that_fell_asleep_between_two_probes_is_woken_by_the_first_request(
    provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear
) -> None:
    rig = await provider_for(wake=WAKE)
    gateway = await gateway_for(rig, health={"interval": "1s", "fall": 50})
    await rig.refuse()
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        assert await ear.one() == PACKET
        await rig.come_back()
        assert (await client.response()).status == 200


async def test_it_is_sent_for_once_a_minute_however_many_want_it(
    sleeper: FakeProvider, gateway_for: GatewayFor, ear: Ear
) -> None:
    gateway = await gateway_for(sleeper, health=QUICK, providers=knowing(sleeper))
    async with crowd(gateway.port) as send:
        clients = [await send() for _ in range(20)]
        await waiting(gateway, 20)
        await ear.one()
        await sleeper.come_back()
        assert [(await client.response()).status for client in clients] == [200] * 20
    assert ear.heard == [PACKET]


async def test_only_one_of_the_machines_that_could_serve_is_sent_for(
    provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear
) -> None:
    rig, other = await provider_for("rig", wake=WAKE), await provider_for("other", wake=WAKE)
    for provider in (rig, other):
        await provider.refuse()
    gateway = await gateway_for(rig, other, health=QUICK, providers={**knowing(rig), **knowing(other)})
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await ear.one()
        await rig.come_back()
        assert (await client.response()).header("x-gateway-provider") == "rig"
    assert len(ear.heard) == 1


# Left asleep.


async def test_nobody_is_woken_while_another_serves_the_model(
    sleeper: FakeProvider, provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear
) -> None:
    other = await provider_for("other", slots=1)
    gateway = await gateway_for(sleeper, other, health=QUICK, providers=knowing(sleeper))
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    other.script = stall()
    async with crowd(gateway.port) as send:
        for _ in range(2):
            await send()
        await waiting(gateway, 1)
        assert not ear.heard


async def test_it_is_woken_when_the_other_fails(
    sleeper: FakeProvider, provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear
) -> None:
    other = await provider_for("other")
    other.script = error(500)
    gateway = await gateway_for(sleeper, other, health=QUICK, providers=knowing(sleeper))
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        assert await ear.one() == PACKET
        await sleeper.come_back()
        assert (await client.response()).header("x-gateway-provider") == "rig"


async def test_a_stranger_wakes_nobody(provider_for: ProviderFor, gateway_for: GatewayFor, ear: Ear) -> None:
    rig = await provider_for(wake=WAKE, owner="bob")
    await rig.refuse()
    users = {"alice": {"keys": [KEY]}, "bob": {}}
    gateway = await gateway_for(rig, users=users, providers=knowing(rig))
    assert (await ask(gateway.port)).status == 404
    assert await models(gateway.port) == []
    assert not ear.heard


async def test_a_machine_that_cannot_be_woken_is_neither_listed_nor_waited_for(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    await provider.refuse()
    gateway = await gateway_for(provider, health=QUICK, providers=knowing(provider))
    await eventually(lambda: not gateway.fleet.providers["rig"].online)
    assert await models(gateway.port) == []
    assert (await ask(gateway.port)).status == 404


async def test_a_machine_that_does_not_wake_up_is_waited_for_as_long_as_the_queue_allows(
    sleeper: FakeProvider, gateway_for: GatewayFor, ear: Ear
) -> None:
    gateway = await gateway_for(sleeper, health=QUICK, providers=knowing(sleeper), queue={"timeout": "200ms"})
    assert overloaded(await ask(gateway.port)) >= 1
    assert ear.heard == [PACKET]
    await all_given_back(gateway)


async def test_a_client_that_leaves_before_it_is_up_leaves_nothing(
    sleeper: FakeProvider, gateway_for: GatewayFor, ear: Ear
) -> None:
    gateway = await gateway_for(sleeper, health=QUICK, providers=knowing(sleeper))
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await waiting(gateway, 1)
    await waiting(gateway, 0)
    await sleeper.come_back()
    assert (await ask(gateway.port)).status == 200
    assert len(sleeper.calls) == 1


# The packet.


def test_the_packet_is_six_ff_and_sixteen_times_the_address() -> None:
    assert magic_packet("aabbccddeeff") == PACKET
    assert len(PACKET) == 102


Ring = Callable[[], None]


@pytest.fixture
async def ring() -> AsyncIterator[tuple[Ring, Ear]]:
    """An alarm on a port that anybody may have."""
    ear = Ear(0)
    entry = {"url": "http://127.0.0.1:1/v1", "wake": WAKE}
    fleet = Fleet(build({"users": {"alice": {"keys": [KEY]}}, "providers": {"rig": entry}}))
    alarm = Alarm(port=ear.port)
    yield lambda: alarm.ring([fleet.providers["rig"]]), ear
    ear.close()


async def test_an_alarm_rings_once_a_minute(ring: tuple[Ring, Ear]) -> None:
    sound, ear = ring
    for _ in range(3):
        sound()
    assert await ear.one() == PACKET
    assert ear.heard == [PACKET]


@pytest.mark.parametrize("broadcast", ["240.0.0.1", "255.255.255.255"])
async def test_an_alarm_that_cannot_be_sent_harms_nobody(
    provider_for: ProviderFor, gateway_for: GatewayFor, broadcast: str
) -> None:
    rig = await provider_for(wake={"mac": MAC, "broadcast": broadcast})
    await rig.refuse()
    gateway = await gateway_for(rig, health=QUICK, providers=knowing(rig))
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await waiting(gateway, 1)
        await rig.come_back()
        assert (await client.response()).status == 200
