"""Where a provider is: below a path, at the root, at an address with a zone; nobody else gets its key."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.address import Address, Outgoing
from llmgateway.fleet.provider import State
from llmgateway.servers import llamacpp
from tests.conftest import GatewayFor, ProviderFor
from tests.raw_client import RawClient, chat, request
from tests.script import answer, error, listing

LLAMA = {"id": "m", "object": "model", "owned_by": "llamacpp"}
KEY = "sk-of-llama"


async def ask(port: int) -> int:
    async with RawClient(port) as client:
        await client.send(chat())
        return (await client.response()).status


@pytest.mark.parametrize("prefix", ["/llama", "/a/b"])
@pytest.mark.parametrize("v1", ["/v1", ""])
async def test_everything_is_asked_below_the_urls_own_prefix(
    provider_for: ProviderFor, gateway_for: GatewayFor, prefix: str, v1: str
) -> None:
    provider = await provider_for()
    provider.on[f"{prefix}{v1}/models"] = listing(LLAMA)
    provider.on[f"{prefix}/props"] = answer(
        200, {"default_generation_settings": {"n_ctx": 9}, "total_slots": 3}
    )
    provider.on["/props"] = provider.on["/v1/models"] = error(401)
    rig = {"url": f"http://127.0.0.1:{provider.port}{prefix}{v1}", "api_key": KEY}
    gateway = await gateway_for(providers={"rig": rig})
    known = gateway.fleet.providers["rig"]
    assert (known.state, known.kind, known.capacity) == (State.ONLINE, llamacpp.KIND, 3)
    assert await ask(gateway.port) == 200
    assert provider.requests[0].target == f"{prefix}{v1}/chat/completions"
    assert all(probe.target.startswith(prefix) for probe in provider.probes), "nobody else gets its key"


async def test_more_paths_are_below_the_prefix_too(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for()
    provider.on["/llm/v1/models"] = listing("m")
    rig = {"url": f"http://127.0.0.1:{provider.port}/llm/v1"}
    gateway = await gateway_for(providers={"rig": rig}, server={"extra_paths": ["/tokenize", "/v1/tokenize"]})
    async with RawClient(gateway.port) as client:
        for path in ("/tokenize", "/v1/tokenize"):
            await client.send(request("POST", path, body=b'{"model": "m"}'))
            assert (await client.response()).status == 200
    assert [request.target for request in provider.requests] == ["/llm/tokenize", "/llm/v1/tokenize"]


@pytest.mark.parametrize("end", ["/.", "/./"])
async def test_a_dot_says_that_the_api_is_at_the_root(
    provider_for: ProviderFor, gateway_for: GatewayFor, end: str
) -> None:
    provider = await provider_for()
    provider.on["/models"] = listing("m")
    gateway = await gateway_for(providers={"rig": {"url": f"http://127.0.0.1:{provider.port}{end}"}})
    assert gateway.fleet.providers["rig"].online
    assert await ask(gateway.port) == 200
    assert provider.requests[0].target == "/chat/completions"
    assert [probe.target for probe in provider.probes] == ["/models", "/api/version"]


@pytest.mark.parametrize(("prefix", "remedy"), [("", "/."), ("/llm", "/llm")])
async def test_an_api_without_v1_is_found_and_the_reason_says_what_to_write(
    provider_for: ProviderFor, gateway_for: GatewayFor, prefix: str, remedy: str
) -> None:
    provider = await provider_for()
    provider.on["/v1/models"] = error(404)
    provider.on[f"{prefix}/models"] = listing("m")
    origin = f"http://127.0.0.1:{provider.port}"
    gateway = await gateway_for(providers={"rig": {"url": f"{origin}{prefix}/v1"}})
    known = gateway.fleet.providers["rig"]
    assert known.state is State.MISCONFIGURED
    assert known.reason.endswith(f"write {origin}{remedy} as its url")


def link_local() -> tuple[str, str]:
    """An address of this machine that needs its zone, and the zone; any IPv6 one will do."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, *_, zone = line.split()
        if digits.startswith("fe80"):
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), zone
    return "::1", "lo"


@asynccontextmanager
async def listening(host: str, zone: str) -> AsyncIterator[tuple[int, list[str]]]:
    """A server there: its port, and the Host fields of the requests that came."""
    hosts: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        hosts.extend(line[6:] for line in head.splitlines() if line.lower().startswith("host: "))
        length = re.search(r"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        body = json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    listener = socket.socket(socket.AF_INET6)
    listener.bind((host, 0, 0, socket.if_nametoindex(zone)))
    server = await asyncio.start_server(serve, sock=listener)
    async with server:
        yield listener.getsockname()[1], hosts


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("percent", ["%25", "%"])
@pytest.mark.parametrize("by", ["name", "number"])
async def test_an_ipv6_address_with_a_zone_is_reached(gateway_for: GatewayFor, percent: str, by: str) -> None:
    host, interface = link_local()
    zone = interface if by == "name" else str(socket.if_nametoindex(interface))
    async with listening(host, interface) as (port, hosts):
        gateway = await gateway_for(providers={"rig": {"url": f"http://[{host}{percent}{zone}]:{port}"}})
        assert gateway.fleet.providers["rig"].online, gateway.fleet.providers["rig"].reason
        assert await ask(gateway.port) == 200
    assert set(hosts) == {f"[{host}]:{port}"}, "the zone means nothing to others"


async def test_a_zone_that_this_machine_does_not_have_is_named(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(providers={"rig": {"url": "http://[fe80::1%25Nope0]:9"}})
    known = gateway.fleet.providers["rig"]
    assert known.state is State.OFFLINE
    assert "this machine has no network interface Nope0" in known.reason


def test_paths_with_ids_in_them_are_not_remembered_for_ever() -> None:
    config = build({"providers": {"rig": {"url": "http://rig/v1"}}}).providers["rig"]
    address = Address(config, "gw")
    for number in range(1_000):
        path = f"/v1/responses/resp_{number}/cancel"
        head = address.head(Outgoing(path, "", (), b"", "id", b""))
        assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert len(address._openings) <= 64
