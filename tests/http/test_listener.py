"""The addresses that are listened on: both families, several at once, a Unix socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import CannotListen, Gateway
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings

BOTH = {"127.0.0.1", "::1"}
needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6 here")


def listening(provider: FakeProvider, **server: object) -> Gateway:
    return Gateway(build(settings(provider, server={"port": 0, **server})))


async def answers(address: str, port: int) -> bool:
    place = f"[{address}]" if ":" in address else address
    async with aiohttp.ClientSession() as client:
        try:
            async with client.get(f"http://{place}:{port}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectorError:
            return False


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "on"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("::", BOTH),
        (["127.0.0.1", "::1"], BOTH),
        (["::", "0.0.0.0"], BOTH),
        (["0.0.0.0", "127.0.0.1", "::1", "::1"], BOTH),
    ],
)
async def test_it_listens_on_what_is_named_and_on_nothing_else(
    provider: FakeProvider, host: object, on: set[str]
) -> None:
    async with listening(provider, host=host) as gateway:
        assert {address for address in BOTH if await answers(address, gateway.port)} == on


async def test_localhost_is_every_address_of_that_name_at_one_port(provider: FakeProvider) -> None:
    found = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    async with listening(provider, host="localhost") as gateway:
        for address in {str(place[0]) for *_, place in found}:
            assert await answers(address, gateway.port), address


async def test_two_addresses_in_a_list_are_both_served(provider: FakeProvider) -> None:
    async with listening(provider, host=["127.0.0.1", "127.0.0.2"]) as gateway:
        assert await answers("127.0.0.1", gateway.port) and await answers("127.0.0.2", gateway.port)
        assert not await answers("127.0.0.3", gateway.port)


async def test_where_one_of_two_is_taken_it_says_so_and_holds_none(provider: FakeProvider) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=r"127\.0\.0\.1 and 127\.0\.0\.2, port .* another program"):
            async with listening(provider, host=["127.0.0.1", "127.0.0.2"], port=port):
                pass
        assert not await answers("127.0.0.1", port)


async def ask_socket(path: Path, target: str = "/healthz") -> int:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        client.get(f"http://localhost{target}") as answer,
    ):
        return answer.status


async def test_a_unix_socket_is_served_and_goes_with_the_gateway(
    provider: FakeProvider, tmp_path: Path
) -> None:
    path = tmp_path / "gw.sock"
    async with listening(provider, listen=f"unix:{path}") as gateway:
        assert gateway.url == f"unix:{path}"
        assert await ask_socket(path) == 200
        assert await ask_socket(path, "/metrics") == 200, "who may open it is of this machine"
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


async def test_a_socket_that_was_left_behind_makes_room_and_one_in_use_does_not(
    provider: FakeProvider, tmp_path: Path
) -> None:
    path = tmp_path / "gw.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with listening(provider, listen=f"unix:{path}"):
        with pytest.raises(CannotListen, match="another program listens there"):
            async with listening(provider, listen=f"unix:{path}"):
                pass
        assert await ask_socket(path) == 200


async def test_a_file_that_is_no_socket_stays(provider: FakeProvider, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(CannotListen):
        async with listening(provider, listen=f"unix:{path}"):
            pass
    assert path.read_text() == "mine"


# --- A port of several ----------------------------------------------------------------------------


async def instances_met(port: int, connections: int = 64) -> set[str]:
    """Who answers, asked by so many connections; that one of two is never met is as good as impossible."""
    met = set()
    for _ in range(connections):
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port}/healthz") as answer,
        ):
            met.add(answer.headers["x-gateway-instance"])
    return met


def sharing(provider: FakeProvider, name: str, port: int, **server: object) -> Gateway:
    server = {"port": port, "reuse_port": True, **server}
    return Gateway(build(settings(provider, server=server, cluster={"name": name})))


async def test_two_gateways_share_a_port_and_who_leaves_gets_no_more_connections(
    provider: FakeProvider,
) -> None:
    async with sharing(provider, "gw1", 0) as one, sharing(provider, "gw2", one.port):
        assert await instances_met(one.port) == {"gw1", "gw2"}
        assert await one.drain()
        assert await instances_met(one.port) == {"gw2"}


async def test_a_port_is_shared_only_where_both_have_it_so(provider: FakeProvider) -> None:
    for shares, wants in ((True, False), (False, True)):
        async with sharing(provider, "gw1", 0, reuse_port=shares) as one:
            with pytest.raises(CannotListen, match="another program listens there"):
                async with sharing(provider, "gw2", one.port, reuse_port=wants):
                    pass


# --- Leaving --------------------------------------------------------------------------------------


async def asked(client: aiohttp.ClientSession) -> int:
    """The status of a chat."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with client.post("/v1/chat/completions", json=ASK, headers=headers) as answer:
        return answer.status


async def test_who_leaves_says_so_first_and_takes_requests_for_a_while_longer(provider: FakeProvider) -> None:
    async with listening(provider, drain_delay="1h") as gateway, aiohttp.ClientSession(gateway.url) as client:
        await gateway.ready.wait()
        leaving = asyncio.ensure_future(gateway.drain())
        await eventually(lambda: gateway.condition.leaving)
        async with client.get("/readyz") as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (503, "draining")
        assert await asked(client) == 200
        leaving.cancel()


async def test_after_that_while_nothing_more_is_taken(provider: FakeProvider) -> None:
    async with (
        listening(provider, drain_delay="1ms") as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        await gateway.ready.wait()
        assert await gateway.drain()
        assert await asked(client) == 503
