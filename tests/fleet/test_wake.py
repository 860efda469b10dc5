"""Magic packets: what is in them, where they go, and how often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.wake import LEAST_PAUSE_S, Alarm, magic_packet
from tests.simulation import run

MAC = "aa:bb:cc:dd:ee:0f"


@pytest.fixture
def ear() -> Iterator[socket.socket]:
    """A socket that hears what is sent to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def sleeper(name: str = "rig", **wake: Any) -> Provider:
    entry = {"url": "http://127.0.0.1:9", **({"wake": wake} if wake else {})}
    return Fleet(build({"providers": {name: entry}})).providers[name]


def port_of(ear: socket.socket) -> int:
    port: int = ear.getsockname()[1]
    return port


def heard(ear: socket.socket) -> list[bytes]:
    """What has been sent; on the loopback it is there at once."""
    ear.setblocking(False)
    packets = []
    while True:
        try:
            packets.append(ear.recv(1_024))
        except BlockingIOError:
            return packets


def test_a_packet_is_six_times_ff_and_sixteen_times_the_address() -> None:
    packet = magic_packet("aabbccddee0f")
    assert packet == b"\xff" * 6 + bytes([0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0x0F]) * 16
    assert len(packet) == 102


@pytest.mark.parametrize("written", [MAC, MAC.upper(), MAC.replace(":", "-"), MAC.replace(":", "")])
def test_a_machine_is_sent_for_however_its_address_is_written(ear: socket.socket, written: str) -> None:
    async def story() -> None:
        Alarm(port_of(ear)).ring([sleeper(mac=written, broadcast="127.0.0.1")])

    run(story())
    assert heard(ear) == [magic_packet("aabbccddee0f")]


def test_a_machine_is_sent_for_at_most_once_a_minute(ear: socket.socket) -> None:
    async def story() -> None:
        alarm, rig = Alarm(port_of(ear)), sleeper(mac=MAC, broadcast="127.0.0.1")
        for _ in range(int(3 * LEAST_PAUSE_S)):
            alarm.ring([rig])
            await asyncio.sleep(1)

    run(story())
    assert len(heard(ear)) == 3


def test_each_machine_has_its_own_minute(ear: socket.socket) -> None:
    async def story() -> None:
        alarm = Alarm(port_of(ear))
        for name in ("a", "b", "a", "b"):
            alarm.ring([sleeper(name, mac=MAC, broadcast="127.0.0.1")])

    run(story())
    assert len(heard(ear)) == 2


def test_a_provider_that_cannot_be_woken_is_left_alone(ear: socket.socket) -> None:
    async def story() -> None:
        Alarm(port_of(ear)).ring([sleeper()])

    run(story())
    assert heard(ear) == []


def test_a_packet_that_cannot_be_sent_is_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        Alarm(port=0).ring([sleeper(mac=MAC, broadcast="127.0.0.1")])

    run(story())
    assert "could not send for a machine" in caplog.text
