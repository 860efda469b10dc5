"""Ways to a provider: its own certificate authority, a Unix socket, a name among several on one host."""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmgateway.config.load import build, load
from llmgateway.config.tree import ConfigError
from llmgateway.fleet.provider import State
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider, redirect
from tests.journey import eventually, settings
from tests.raw_client import RawClient, chat
from tests.script import listing

QUICK = {"interval": "100ms", "timeout": "5s"}
BODY = b'{"object": "list", "data": [{"id": "m"}]}'


async def ask(port: int) -> int:
    async with RawClient(port) as client:
        await client.send(chat())
        return (await client.response()).status


class Server:
    """A server that answers everything with a list of models, and remembers how it was asked."""

    def __init__(self) -> None:
        self.heads: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (f[15:] for f in head.lower().split("\r\n") if f.startswith("content-length:")), 0
                )
                await reader.readexactly(int(length))
                self.heads.append(head)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()


# --- whose certificate is believed ----------------------------------------------------------------


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem`, and `server.pem` with `server.key` signed by it; `other.pem` is a stranger's."""
    folder = tmp_path_factory.mktemp("certificates")
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    for name in ("ca", "other"):
        openssl(
            *("req", "-x509", *ec, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"),
        )
    openssl(
        *("req", "-x509", *ec, "-days", "2", "-subj", "/CN=rig", "-addext", "subjectAltName=DNS:localhost"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"),
        *("-keyout", folder / "server.key", "-out", folder / "server.pem"),
    )
    return folder


@asynccontextmanager
async def over_tls(certificates: Path) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with await asyncio.start_server(Server(), "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


TRUST: dict[str, tuple[dict[str, Any], str, bool]] = {
    "who has signed it": ({"ca": "ca.pem"}, "localhost", True),
    "its own certificate": ({"ca": "server.pem"}, "localhost", True),
    "somebody else": ({"ca": "other.pem"}, "localhost", False),
    "the system's authorities": ({}, "localhost", False),
    "a name that it has not": ({"ca": "ca.pem"}, "127.0.0.1", False),
    "anybody": ({"verify": False}, "127.0.0.1", True),
}


@pytest.mark.parametrize(("tls", "host", "believed"), TRUST.values(), ids=TRUST.keys())
async def test_a_provider_is_believed_by_what_its_tls_says(
    gateway_for: GatewayFor, certificates: Path, tls: dict[str, Any], host: str, believed: bool
) -> None:
    if "ca" in tls:
        tls = {"ca": str(certificates / tls["ca"])}
    async with over_tls(certificates) as port:
        gateway = await gateway_for(providers={"rig": {"url": f"https://{host}:{port}/v1", "tls": tls}})
        rig = gateway.fleet.providers["rig"]
        assert rig.online is believed, rig.reason
        if believed:
            assert await ask(gateway.port) == 200
        else:
            assert "certificate" in rig.reason


async def test_a_certificate_authority_that_changes_on_disk_is_taken_in(
    gateway_for: GatewayFor, certificates: Path, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copyfile(certificates / "other.pem", ca)
    async with over_tls(certificates) as port:
        rig = {"url": f"https://localhost:{port}/v1", "tls": {"ca": str(ca)}}
        gateway = await gateway_for(providers={"rig": rig}, health=QUICK)
        known = gateway.fleet.providers["rig"]
        assert known.state is State.OFFLINE
        shutil.copyfile(certificates / "ca.pem", ca)
        await eventually(lambda: known.online)
        ca.write_text("nothing")
        assert await ask(gateway.port) == 200, "a connection that exists lives on"


async def test_another_tls_is_another_provider(gateway_for: GatewayFor, certificates: Path) -> None:
    async with over_tls(certificates) as port:
        url = f"https://localhost:{port}/v1"
        gateway = await gateway_for(providers={"rig": {"url": url}}, health=QUICK)
        assert gateway.fleet.providers["rig"].state is State.OFFLINE
        trusting = {"url": url, "tls": {"ca": str(certificates / "ca.pem")}}
        gateway.adopt(build(settings(providers={"rig": trusting}, health=QUICK)))
        await eventually(lambda: gateway.fleet.providers["rig"].online)


def test_the_file_of_an_authority_counts_from_the_configs_folder_and_must_hold_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("providers: {rig: {url: 'https://rig', tls: {ca: ca.pem}}}\n")
    place = "config.yaml:1:49: providers.rig.tls.ca: "
    with pytest.raises(ConfigError, match=f"{place}there is no such file"):
        load(file, {})
    (tmp_path / "ca.pem").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(ConfigError, match=f"{place}the file holds no certificate in PEM"):
        load(file, {})
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    assert load(file, {}).config.providers["rig"].tls.ca == str(tmp_path / "ca.pem")


def test_checking_nothing_is_warned_of_and_needs_no_authority(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("providers: {rig: {url: 'https://rig', tls: {verify: false}}}\n")
    assert any("providers.rig.tls.verify" in str(warning) for warning in load(file, {}).warnings)
    file.write_text("providers: {rig: {url: 'https://rig', tls: {ca: config.yaml, verify: false}}}\n")
    with pytest.raises(ConfigError, match="nothing is checked with this, so `ca` means nothing"):
        load(file, {})


# --- a Unix socket --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "base"), [("", "/v1"), (":/v1", "/v1"), (":/llm/v1", "/llm/v1"), (":/.", "")]
)
async def test_a_provider_on_a_unix_socket_is_reached(
    gateway_for: GatewayFor, tmp_path: Path, path: str, base: str
) -> None:
    server = Server()
    async with await asyncio.start_unix_server(server, tmp_path / "llm.sock"):
        gateway = await gateway_for(providers={"rig": {"url": f"unix:{tmp_path}/llm.sock{path}"}})
        assert gateway.fleet.providers["rig"].online, gateway.fleet.providers["rig"].reason
        assert await ask(gateway.port) == 200
    assert f"GET {base}/models HTTP/1.1\r\nHost: localhost\r\n" in server.heads[0]
    assert f"POST {base}/chat/completions HTTP/1.1\r\n" in server.heads[-1]


async def test_a_socket_that_is_not_there_is_told_and_found_when_it_comes(
    gateway_for: GatewayFor, tmp_path: Path
) -> None:
    socket = tmp_path / "llm.sock"
    gateway = await gateway_for(providers={"rig": {"url": f"unix:{socket}"}}, health=QUICK)
    rig = gateway.fleet.providers["rig"]
    assert rig.state is State.OFFLINE and "there is no such socket" in rig.reason
    async with await asyncio.start_unix_server(Server(), socket):
        await eventually(lambda: rig.online)


# --- a name among several -------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["Host", "host"])
async def test_a_host_of_the_config_is_sent_once_and_alone(
    provider: FakeProvider, gateway_for: GatewayFor, spelling: str
) -> None:
    rig = {"url": provider.url, "headers": {spelling: "llm.example"}}
    gateway = await gateway_for(providers={"rig": rig})
    assert await ask(gateway.port) == 200
    for request in (*provider.probes, *provider.requests):
        came = [value for name, value in request.headers if name.lower() == "host"]
        assert came == ["llm.example"]


async def test_a_host_is_no_secret(provider: FakeProvider) -> None:
    rig = {"url": provider.url, "headers": {"Host": "llm.example"}}
    provider.on["/v1/models"] = redirect("https://llm.example/v1/models")
    async with Gateway(build(settings(providers={"rig": rig}))) as gateway:
        await gateway.ready.wait()
        assert "write https://llm.example/v1 as its `url`" in gateway.fleet.providers["rig"].reason
    provider.on["/v1/models"] = listing("m")


# --- large bodies ---------------------------------------------------------------------------------


async def test_a_large_body_arrives_whole_over_tls(gateway_for: GatewayFor, certificates: Path) -> None:
    server, received = Server(), []

    async def keeping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read_exactly = reader.readexactly

        async def exactly(n: int) -> bytes:
            received.append(await read_exactly(n))
            return received[-1]

        reader.readexactly = exactly  # type: ignore[method-assign]
        await server(reader, writer)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    body = b'{"messages": "%b", "model": "m"}' % random.Random(3).randbytes(10_000_000).hex().encode()
    async with await asyncio.start_server(keeping, "127.0.0.1", 0, ssl=context) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        gateway = await gateway_for(providers={"rig": {"url": url, "tls": {"verify": False}}})
        async with RawClient(gateway.port) as client:
            await client.send(chat(body))
            assert (await client.response()).status == 200
    assert body in received
