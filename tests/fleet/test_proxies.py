"""Providers that are reached through a proxy: SOCKS5 and HTTP's CONNECT, spoken by small scripted proxies."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.provider import State
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.fleet.test_ways import Server, openssl
from tests.journey import eventually, settings
from tests.raw_client import RawClient, chat

QUICK = {"interval": "100ms", "timeout": "5s"}
PASSWORD = "p@ss:w0rd"
ME = "me:p%40ss%3Aw0rd@"


class Proxy:
    """A proxy of both kinds, by how it is spoken to; what a test sets makes it refuse."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        """The hosts that it was to connect to, as they were named."""
        self.wants_password = False
        self.refusal: int | None = None
        """The number of SOCKS5 or status of HTTP that it answers with."""
        self.hangs = False
        self.closes = False
        self.leads_to: tuple[str, int] | None = None
        """Where all connections go, for hosts that are known here only."""

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        try:
            first = await reader.readexactly(1)
            if self.hangs:
                await reader.read()
            elif self.closes:
                return
            elif first == b"\5":
                await self._socks(reader, writer)
            else:
                await self._http(first, reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()

    async def _socks(self, reader: Reader, writer: Writer) -> None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if self.wants_password:
            if b"\2" not in methods:
                writer.write(b"\5\xff")
                await reader.read()
                return
            writer.write(b"\5\2")
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            good = (user, password) == (b"me", PASSWORD.encode())
            writer.write(b"\1\0" if good else b"\1\1")
            if not good:
                await reader.read()
                return
        else:
            writer.write(b"\5\0")
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            family, length = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, await reader.readexactly(length))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        self.asked.append(host)
        if self.refusal is not None:
            writer.write(bytes([5, self.refusal, 0, 1, 0, 0, 0, 0, 0, 0]))
            await reader.read()
            return
        await self._pass_on(host, port, reader, writer, b"\5\0\0\1\0\0\0\0\0\0")

    async def _http(self, first: bytes, reader: Reader, writer: Writer) -> None:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("CONNECT ")
        host, _, port = head.split()[1].rpartition(":")
        self.asked.append(host)
        basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        status = 407 if self.wants_password and f"Basic {basic}\r\n" not in head else self.refusal
        if status is not None:
            writer.write(f"HTTP/1.1 {status} not with {PASSWORD}\r\nContent-Length: 0\r\n\r\n".encode())
            await reader.read()
            return
        writer.write(b"HTTP/1.1 200 Fine\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)  # so that the head comes in two pieces
        await self._pass_on(host, int(port), reader, writer, b"Via: 1.1 proxy\r\n\r\n")

    async def _pass_on(self, host: str, port: int, reader: Reader, writer: Writer, yes: bytes) -> None:
        there = await asyncio.open_connection(*(self.leads_to or (host, port)))
        writer.write(yes)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, there[1]))
                group.create_task(_pump(there[0], writer))
        finally:
            there[1].transport.abort()


async def _pump(reader: Reader, writer: Writer) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
    except OSError:
        pass
    writer.close()


@asynccontextmanager
async def listening(serve: Callable[[Reader, Writer], Awaitable[None]]) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy(nothing_leaks: None) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    async with listening(proxy) as proxy.port:
        yield proxy


async def ask(port: int) -> int:
    async with RawClient(port) as client:
        await client.send(chat())
        return (await client.response()).status


SCHEMES = ("socks5", "socks5h", "http")


@pytest.mark.parametrize("credentials", ["", ME])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_provider_is_reached_through_its_proxy(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor, scheme: str, credentials: str
) -> None:
    proxy.wants_password = bool(credentials)
    provider.settings["proxy"] = f"{scheme}://{credentials}{proxy.place}"
    gateway = await gateway_for(provider)
    assert gateway.fleet.providers["rig"].online, gateway.fleet.providers["rig"].reason
    assert await ask(gateway.port) == 200
    assert len(provider.requests) == 1
    assert set(proxy.asked) == {"127.0.0.1"}


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
async def test_a_name_that_only_the_proxy_knows_is_looked_up_there(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor, scheme: str
) -> None:
    proxy.leads_to = "127.0.0.1", provider.port
    rig = {"url": "http://rig.invalid:1234/v1", "proxy": f"{scheme}://{proxy.place}"}
    gateway = await gateway_for(providers={"rig": rig})
    assert gateway.fleet.providers["rig"].online, gateway.fleet.providers["rig"].reason
    assert await ask(gateway.port) == 200
    assert set(proxy.asked) == {"rig.invalid"}


async def test_socks5_looks_a_name_up_here(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor
) -> None:
    rig = {"url": f"http://localhost:{provider.port}/v1", "proxy": f"socks5://{proxy.place}"}
    gateway = await gateway_for(providers={"rig": rig})
    assert await ask(gateway.port) == 200
    assert set(proxy.asked) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_https_goes_through_a_proxy_with_the_certificate_of_the_server(
    proxy: Proxy, gateway_for: GatewayFor, tmp_path: Path, scheme: str
) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
        *("-subj", "/CN=rig", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with await asyncio.start_server(Server(), "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        proxy.leads_to = "127.0.0.1", port
        rig = {"url": f"https://localhost:{port}/v1", "tls": {"ca": str(tmp_path / "cert.pem")}}
        gateway = await gateway_for(providers={"rig": {**rig, "proxy": f"{scheme}://{proxy.place}"}})
        assert gateway.fleet.providers["rig"].online, gateway.fleet.providers["rig"].reason
        assert await ask(gateway.port) == 200


REFUSALS = {
    "socks5 by rule": ("socks5", 2, "refused the connection (connection not allowed by ruleset)"),
    "socks5 the server is away": ("socks5h", 5, "refused the connection (connection refused by destination"),
    "socks5 an odd number": ("socks5h", 99, "gave no answer of a SOCKS5 proxy"),
    "http by rule": ("http", 403, "refused the connection (403 Forbidden)"),
    "http the server is away": ("http", 502, "refused the connection (502 Bad Gateway)"),
    "http an odd status": ("http", 799, "refused the connection (799)"),
}


@pytest.mark.parametrize(("scheme", "number", "words"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_proxy_that_refuses_is_told_by_name_and_tried_again(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor, scheme: str, number: int, words: str
) -> None:
    proxy.refusal = number
    provider.settings["proxy"] = f"{scheme}://{ME}{proxy.place}"
    gateway = await gateway_for(provider, health=QUICK)
    rig = gateway.fleet.providers["rig"]
    assert rig.state is State.OFFLINE
    assert f"its proxy {scheme}://{proxy.place} {words}" in rig.reason
    assert PASSWORD not in rig.reason and ME not in rig.reason
    proxy.refusal = None
    await eventually(lambda: rig.online)


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        ("", "refused to work without a user and password; write them into `proxy`"),
        ("me:wrong@", "refused the user and password in the config"),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_wants_another_user_is_told(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor, scheme: str, credentials: str, words: str
) -> None:
    proxy.wants_password = True
    provider.settings["proxy"] = f"{scheme}://{credentials}{proxy.place}"
    rig = (await gateway_for(provider)).fleet.providers["rig"]
    assert f"its proxy {scheme}://{proxy.place} {words}" in rig.reason
    assert "wrong" not in rig.reason


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_hangs_up_or_says_nothing_is_told(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor, scheme: str
) -> None:
    proxy.hangs = True
    provider.settings |= {"proxy": f"{scheme}://{proxy.place}", "timeouts": {"connect": "200ms"}}
    gateway = await gateway_for(provider, health=QUICK)
    rig = gateway.fleet.providers["rig"]
    place = f"its proxy {scheme}://{proxy.place}"
    assert f"timed out: connect timeout after 0.2 s by way of {place}" in rig.reason
    proxy.hangs, proxy.closes = False, True
    await eventually(lambda: place in rig.reason and "timed out" not in rig.reason)
    assert "closed the connection" in rig.reason or "gave no answer" in rig.reason


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_is_not_there_is_told(
    provider: FakeProvider, gateway_for: GatewayFor, scheme: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        provider.settings["proxy"] = place
        rig = (await gateway_for(provider)).fleet.providers["rig"]
    assert f"is unreachable: its proxy {place} is unreachable (connection refused)" in rig.reason


async def test_a_proxy_whose_name_nobody_knows_is_told(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["proxy"] = "http://proxy.invalid:3128"
    rig = (await gateway_for(provider)).fleet.providers["rig"]
    assert "its proxy http://proxy.invalid:3128 is not to be found: its host name" in rig.reason


async def test_another_proxy_is_another_provider_and_its_password_a_secret(
    provider: FakeProvider, proxy: Proxy, gateway_for: GatewayFor
) -> None:
    proxy.refusal = 2
    provider.settings["proxy"] = f"socks5://{ME}{proxy.place}"
    gateway = await gateway_for(provider, health=QUICK)
    assert gateway.fleet.providers["rig"].state is State.OFFLINE
    assert gateway.fleet.providers["rig"].secrets == [PASSWORD]
    del provider.settings["proxy"]
    gateway.adopt(build(settings(provider, health=QUICK)))
    await eventually(lambda: gateway.fleet.providers["rig"].online)
