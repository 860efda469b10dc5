"""Host names of providers: a look-up that is slow, hangs or fails is the trouble of that one provider."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.names import Found
from llmgateway.fleet.provider import State
from llmgateway.service.gateway import Gateway
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import eventually, settings
from tests.raw_client import RawClient, chat

QUICK = {"interval": "50ms", "timeout": "5s"}


class Names:
    """A resolver of the tests: it knows some names, fails for others, and can be held up by name."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self.known = dict(known)
        self.asked: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def hang(self, *names: str) -> None:
        """Let these look-ups take until `let_go`."""
        self._gates.update({name: threading.Event() for name in names})

    def let_go(self) -> None:
        """End all that hangs."""
        gates, self._gates = self._gates, {}
        for gate in gates.values():
            gate.set()

    def __call__(self, host: str, port: int) -> Found:
        self.asked.append(host)
        if gate := self._gates.get(host):
            gate.wait(3 * HANG_S)
        if host not in self.known:
            raise socket.gaierror(-2, "Name or service not known")
        return ((self.known[host], port),)


@contextmanager
def names(known: Mapping[str, str]) -> Iterator[Names]:
    resolver = Names(known)
    try:
        yield resolver
    finally:
        resolver.let_go()


def named(provider: FakeProvider, host: str, **more: Any) -> dict[str, Any]:
    return {"url": f"http://{host}:{provider.port}/v1", **more}


@asynccontextmanager
async def gateway_with(resolver: Names, providers: Mapping[str, Any], **more: Any) -> AsyncIterator[Gateway]:
    config = build(settings(providers=providers, health=more.pop("health", QUICK), **more))
    async with Gateway(config, look_up=resolver) as gateway:
        yield gateway


async def test_many_look_ups_that_hang_delay_no_other_provider(provider: FakeProvider) -> None:
    lost = [f"lost-{number}.local" for number in range(8)]
    with names({"rig.lan": "127.0.0.1"}) as resolver:
        resolver.hang(*lost)
        absent = {f"p{number}": named(provider, host) for number, host in enumerate(lost)}
        async with gateway_with(resolver, {**absent, "rig": named(provider, "rig.lan")}) as gateway:
            await eventually(lambda: gateway.fleet.providers["rig"].online)
            async with RawClient(gateway.port) as client:
                for _ in range(3):
                    provider.drop_idle()  # so that the name is needed anew
                    await client.send(chat())
                    assert (await client.response()).status == 200
            assert all(resolver.asked.count(host) == 1 for host in lost), "one look-up at a time of each"


async def test_a_name_that_is_not_told_in_time_is_what_the_reason_says(provider: FakeProvider) -> None:
    with names({}) as resolver:
        resolver.hang("rig.local")
        rig = named(provider, "rig.local", timeouts={"connect": "200ms"}, models=["m"])
        async with gateway_with(resolver, {"rig": rig}) as gateway:
            known = gateway.fleet.providers["rig"]
            await eventually(lambda: known.state is State.OFFLINE)
            assert "its host name cannot be looked up in 0.2 s" in known.reason
            assert "timeout" not in known.reason


async def test_a_probe_that_ends_before_the_look_up_says_so_too(provider: FakeProvider) -> None:
    with names({}) as resolver:
        resolver.hang("rig.local")
        health = {**QUICK, "timeout": "200ms"}
        async with gateway_with(resolver, {"rig": named(provider, "rig.local")}, health=health) as gateway:
            known = gateway.fleet.providers["rig"]
            await eventually(lambda: known.state is State.OFFLINE)
            assert known.reason == "its host name cannot be looked up in 0.2 s"


async def test_a_name_that_nobody_has_is_told_at_once(provider: FakeProvider) -> None:
    with names({}) as resolver:
        async with gateway_with(resolver, {"rig": named(provider, "rig.local")}) as gateway:
            known = gateway.fleet.providers["rig"]
            await eventually(lambda: known.state is State.OFFLINE)
            assert "its host name cannot be resolved" in known.reason


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_the_last_good_address_is_used_when_a_look_up(provider: FakeProvider, trouble: str) -> None:
    with names({"rig.lan": "127.0.0.1"}) as resolver:
        rig = named(provider, "rig.lan", timeouts={"connect": "1h"})
        async with gateway_with(resolver, {"rig": rig}, health={"interval": "1h"}) as gateway:
            await eventually(lambda: gateway.fleet.providers["rig"].online)
            if trouble == "hangs":
                resolver.hang("rig.lan")
            else:
                resolver.known.clear()
            async with RawClient(gateway.port) as client:
                for _ in range(3):
                    provider.drop_idle()
                    await client.send(chat())
                    assert (await client.response()).status == 200


async def test_a_machine_that_has_moved_is_found_at_its_new_address(provider: FakeProvider) -> None:
    with names({"rig.lan": "127.0.0.2"}) as resolver:  # nobody is there
        async with gateway_with(resolver, {"rig": named(provider, "rig.lan")}) as gateway:
            known = gateway.fleet.providers["rig"]
            await eventually(lambda: known.state is State.OFFLINE)
            resolver.known["rig.lan"] = "127.0.0.1"
            await eventually(lambda: known.online)


async def test_a_late_answer_counts_where_the_last_good_address_is_none_any_more(
    provider: FakeProvider,
) -> None:
    with names({"rig.lan": "127.0.0.1"}) as resolver:
        rig = named(provider, "rig.lan", timeouts={"connect": "1h"})
        async with gateway_with(resolver, {"rig": rig}, health={"interval": "1h"}) as gateway:
            await eventually(lambda: gateway.fleet.providers["rig"].online)
            await provider.refuse()
            resolver.hang("rig.lan")
            resolver.known["rig.lan"] = "127.0.0.3"
            server = await asyncio.start_server(_answers, "127.0.0.3", provider.port)
            async with server, RawClient(gateway.port) as client:
                await client.send(chat())
                await eventually(lambda: len(resolver.asked) > 1)
                resolver.let_go()
                assert (await client.response()).status == 200


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


async def test_a_look_up_that_hangs_does_not_hold_up_the_end(provider: FakeProvider) -> None:
    with names({}) as resolver:
        resolver.hang("rig.local")
        async with gateway_with(resolver, {"rig": named(provider, "rig.local")}):
            await eventually(lambda: resolver.asked)
        assert any(
            thread.name == "look-up of rig.local" and thread.daemon for thread in threading.enumerate()
        )


async def test_an_address_is_not_looked_up(provider: FakeProvider) -> None:
    with names({}) as resolver:
        async with gateway_with(resolver, {"rig": named(provider, "127.0.0.1")}) as gateway:
            await eventually(lambda: gateway.fleet.providers["rig"].online)
            assert not resolver.asked


async def test_the_systems_own_names_work(provider: FakeProvider) -> None:
    config = build(settings(providers={"rig": named(provider, "localhost")}))
    async with Gateway(config) as gateway:
        await eventually(lambda: gateway.fleet.providers["rig"].online)
