"""Several gateways behind a real HAProxy and Envoy: a key meets one of them, and they may come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import pytest
import yaml

from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.in_front import envoy, haproxy
from tests.journey import ASK, eventually, settings
from tests.ports import held_port
from tests.program import Program, running
from tests.script import done, play, sse, wait, word

NUMBERS: Final = (1, 2, 3)
KEYS: Final = [f"sk-user{number}-{'0' * 40}" for number in range(60)]
"""So many that each gateway has some, wherever they fall."""

Start: TypeAlias = "Callable[..., AbstractAsyncContextManager[tuple[str, Path]]]"


class Talk:
    """A script whose streams begin, and end when they are told to; it counts how many there are at once."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.most = 0
        self.now = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        gate = self.gates[exchange.request.json["seed"]]
        try:
            await play(sse(), word("Hello"), wait(gate), word(" world"), done())(exchange)
        finally:
            self.now -= 1


@dataclass(eq=False)
class Stream:
    """What a client has of its stream."""

    number: int
    key: str
    instance: str = ""
    """Which gateway has begun to answer."""
    body: bytes = b""
    ended: asyncio.Task[None] = field(init=False)

    @property
    def whole(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")


class Cluster:
    """Three gateways with the same config, and clients that come to them by way of the balancer."""

    def __init__(
        self,
        rig: FakeProvider,
        folder: Path,
        ports: Mapping[int, int],
        start: GatewayFor,
        stack: AsyncExitStack,
    ) -> None:
        users = {f"user{number}": {"keys": [key]} for number, key in enumerate(KEYS)}
        self._rig = rig
        self._sections: dict[str, Any] = {"users": users}
        self._server = {"trusted_proxies": ["127.0.0.1"], "drain_timeout": "1h"}
        self._folder = folder
        self._ports = ports
        self._start = start
        self._stack = stack
        self.talk = rig.script = Talk()
        self.programs: dict[int, Program] = {}
        self.streams: list[Stream] = []
        self.http: aiohttp.ClientSession

    async def host(self, *numbers: int) -> None:
        """Start some here, in the process of the test."""
        for number in numbers:
            server = self._server | {"port": self._ports[number]}
            await self._start(self._rig, server=server, cluster=named(f"gw{number}"), **self._sections)

    async def launch(self, *numbers: int) -> None:
        """Start some as programs with one file, to be stopped as such."""
        file = self._folder / "config.yaml"
        tree = settings(self._rig, server=self._server, cluster=named("gw${INSTANCE}"), **self._sections)
        file.write_text(yaml.safe_dump(tree))
        await asyncio.gather(*(self._launch(file, number) for number in numbers))

    async def _launch(self, file: Path, number: int) -> None:
        command = ("-c", str(file), "--port", str(self._ports[number]))
        program = running(*command, cwd=self._folder, env={**os.environ, "INSTANCE": str(number)})
        self.programs[number] = await self._stack.enter_async_context(program)
        await self.programs[number].url()

    async def instance(self, headers: Mapping[str, str]) -> str:
        """Ask for nothing much, and give who answers; "" if it is nobody, or one that drains."""
        async with self.http.get("v1/models", headers=headers) as answer:
            return answer.headers.get("x-gateway-instance", "") if answer.status == 200 else ""

    async def knows(self, *numbers: int) -> None:
        """Wait until the balancer sends clients to these gateways, and to no other."""

        async def met() -> bool:
            names = await asyncio.gather(*(self.instance(bearer(key)) for key in KEYS))
            return set(names) == {f"gw{number}" for number in numbers}

        await eventually(met, every=0.1)  # each look is many requests

    def begin(self, count: int) -> list[Stream]:
        """Ask for so many streams more."""
        begun = []
        for number in range(len(self.streams), len(self.streams) + count):
            stream = Stream(number, KEYS[number % len(KEYS)])
            stream.ended = asyncio.ensure_future(self._read(stream))
            begun.append(stream)
        self.streams += begun
        return begun

    async def _read(self, stream: Stream) -> None:
        body = ASK | {"stream": True, "seed": stream.number}
        async with self.http.post("v1/chat/completions", json=body, headers=bearer(stream.key)) as answer:
            assert answer.status == 200, await answer.text()
            stream.instance = answer.headers["x-gateway-instance"]
            async for piece in answer.content.iter_any():
                stream.body += piece

    def end(self, streams: list[Stream]) -> None:
        """Have their answers come to their ends."""
        for stream in streams:
            self.talk.gates[stream.number].set()

    async def close(self) -> None:
        for stream in self.streams:
            stream.ended.cancel()
        await asyncio.gather(*(stream.ended for stream in self.streams), return_exceptions=True)


def named(name: str) -> dict[str, Any]:
    return {"name": name, "instances": len(NUMBERS)}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def at(streams: list[Stream], number: int) -> list[Stream]:
    """Those that a gateway has begun to answer."""
    return [stream for stream in streams if stream.instance == f"gw{number}"]


async def have_begun(streams: list[Stream]) -> None:
    await eventually(lambda: all(stream.body for stream in streams))


@pytest.fixture
def ports() -> Iterator[dict[int, int]]:
    """A port for each gateway, which nobody else is given also while it is not there."""
    with ExitStack() as stack:
        yield {number: stack.enter_context(held_port()).getsockname()[1] for number in NUMBERS}


@pytest.fixture
async def rig(request: pytest.FixtureRequest, provider_for: ProviderFor) -> FakeProvider:
    """A provider that takes six at once, two from each gateway; or as many as a test wants."""
    return await provider_for(slots=getattr(request, "param", 6))


@pytest.fixture(params=[haproxy, envoy], ids=lambda start: start.__name__)
async def cluster(
    request: pytest.FixtureRequest,
    rig: FakeProvider,
    gateway_for: GatewayFor,
    tmp_path: Path,
    ports: dict[int, int],
    port: int,
) -> AsyncIterator[Cluster]:
    start: Start = request.param
    async with AsyncExitStack() as stack:
        url, cert = await stack.enter_async_context(start(list(ports.values()), tmp_path, port))
        made = Cluster(rig, tmp_path, ports, gateway_for, stack)
        made.http = await stack.enter_async_context(
            aiohttp.ClientSession(
                f"{url}/",
                timeout=aiohttp.ClientTimeout(total=HANG_S),
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(cert)), limit=0),
            )
        )
        stack.push_async_callback(made.close)
        yield made


async def test_a_key_meets_one_gateway_however_it_is_sent_and_who_has_none_goes_by_address(
    cluster: Cluster,
) -> None:
    await cluster.host(*NUMBERS)
    await cluster.knows(*NUMBERS)
    for key in KEYS[:10]:
        shown = [bearer(key), bearer(key), {"Authorization": f"bearer {key}"}, {"x-api-key": key}]
        assert len({await cluster.instance(headers) for headers in shown}) == 1
    nobody = set()
    for token in ("", "one", "another"):
        async with cluster.http.get("gateway/", cookies={"llmgateway": token}) as answer:
            nobody.add(answer.headers["x-gateway-instance"])
    assert len(nobody) == 1


@pytest.mark.parametrize("rig", [600], ids=["600 slots"], indirect=True)
async def test_one_gateway_after_another_is_restarted_and_none_of_200_streams_breaks(
    cluster: Cluster,
) -> None:
    await cluster.launch(*NUMBERS)
    await cluster.knows(*NUMBERS)
    under_way = cluster.begin(200)
    await have_begun(under_way)
    for number in NUMBERS:
        leaving = at(under_way, number)
        cluster.programs[number].signal(signal.SIGTERM)
        await cluster.knows(*(other for other in NUMBERS if other != number))
        under_way = [stream for stream in under_way if stream not in leaving]
        under_way += (instead := cluster.begin(len(leaving)))
        await have_begun(instead)
        assert not at(instead, number)
        cluster.end(leaving)
        assert (await cluster.programs[number].ended()).code == 0
        await cluster.launch(number)
        await cluster.knows(*NUMBERS)
    cluster.end(cluster.streams)
    await asyncio.gather(*(stream.ended for stream in cluster.streams))
    assert len(cluster.streams) > 300
    assert all(stream.whole for stream in cluster.streams)


async def test_with_a_gateway_that_is_killed_only_what_it_had_begun_breaks(cluster: Cluster) -> None:
    await cluster.host(2, 3)
    await cluster.launch(1)
    await cluster.knows(*NUMBERS)
    streams = cluster.begin(len(KEYS))
    await eventually(lambda: len([stream for stream in streams if stream.body]) == 6)
    lost = at(streams, 1)
    assert len(lost) == 2
    program = cluster.programs[1]
    program.signal(signal.SIGKILL)
    await program.ended()
    later = cluster.begin(len(KEYS))
    cluster.end(cluster.streams)
    await asyncio.gather(*(stream.ended for stream in cluster.streams), return_exceptions=True)
    assert [stream for stream in streams + later if not stream.whole] == lost
    assert all(isinstance(stream.ended.exception(), aiohttp.ClientPayloadError) for stream in lost)
    await cluster.host(1)
    await cluster.knows(*NUMBERS)
    assert cluster.talk.most == 6
