"""HTTPS of the gateway's own: streams, renewal while it is in use, and clients that do not speak it well."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from llmgateway.config.load import build
from llmgateway.config.settings import TlsConfig
from llmgateway.http.body import Patience
from llmgateway.http.tls import BadCertificate, Certificate
from llmgateway.service.gateway import CannotListen, Gateway
from tests.conftest import GatewayFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import ASK, eventually, settings
from tests.program import run, running
from tests.raw_client import RawClient, chat, events, request
from tests.script import chunk, cut, done, head, play, reset, sse, stall, wait, word
from tests.web.visit import signing_in

RSA, EC = ("rsa:2048",), ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Pair:
    """A certificate for 127.0.0.1 and its key, as two files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"

    @classmethod
    def made(cls, folder: Path, kind: tuple[str, ...] = EC) -> Pair:
        pair = cls(folder)
        openssl(
            *("req", "-x509", "-newkey", *kind, "-noenc", "-days", "2", "-subj", "/CN=gateway"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", pair.key, "-out", pair.cert),
        )
        return pair

    def take(self, cert: Path, key: Path) -> None:
        """Have other files in the place of these, as a renewal does."""
        shutil.copyfile(cert, self.cert)
        shutil.copyfile(key, self.key)

    @property
    def config(self) -> TlsConfig:
        return TlsConfig(cert=str(self.cert), key=str(self.key))

    @property
    def section(self) -> dict[str, dict[str, str]]:
        return {"tls": {"cert": str(self.cert), "key": str(self.key)}}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.cert.read_text())).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Pairs to copy from: keys are slow to make."""
    folder = tmp_path_factory.mktemp("pairs")
    kinds = {"first": EC, "second": EC, "rsa": RSA}
    return {name: Pair.made(folder / name, kind) for name, kind in kinds.items()}


@pytest.fixture
def pair(made: dict[str, Pair], tmp_path: Path) -> Pair:
    """The files that the gateway is given."""
    used = Pair(tmp_path / "tls")
    used.take(made["first"].cert, made["first"].key)
    return used


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider, pair: Pair) -> Gateway:
    return await gateway_for(provider, server=pair.section)


def trusting(*pairs: Pair) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for each in pairs:
        context.load_verify_locations(each.cert)
    return context


def blind() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def connected(
    port: int, *, name: str | None = "localhost", context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection to whatever certificate there is; `name` is the SNI."""
    async with asyncio.timeout(HANG_S):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context or blind(), server_hostname=name or ""
        )
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def shown_at(
    port: int, *, name: str | None = "localhost", context: ssl.SSLContext | None = None
) -> str:
    """The fingerprint of the certificate that a new connection gets."""
    async with connected(port, name=name, context=context) as (_, writer):
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return hashlib.sha256(der).hexdigest()


# Speaking it.


async def test_clients_are_answered_and_the_certificate_holds(
    gateway: Gateway, http: aiohttp.ClientSession, pair: Pair
) -> None:
    assert gateway.url == f"https://127.0.0.1:{gateway.port}"
    url = f"{gateway.url}/v1/chat/completions"
    async with http.post(url, json=ASK, ssl=trusting(pair)) as response:
        assert (response.status, response.version) == (200, aiohttp.HttpVersion11)
        assert (await response.json())["choices"][0]["message"]["content"] == "Hello world"


async def test_a_stream_comes_as_it_is_made(
    gateway: Gateway, http: aiohttp.ClientSession, provider: FakeProvider, pair: Pair
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    url = f"{gateway.url}/v1/chat/completions"
    async with http.post(url, json={**ASK, "stream": True}, ssl=trusting(pair)) as response:
        first = await response.content.readuntil(b"\n\n")
        assert events(first)[0]["choices"][0]["delta"] == {"content": "Hel"}
        gate.set()
        assert events(await response.read())[-1] == "[DONE]"


async def test_a_client_that_leaves_ends_the_exchange_with_the_provider(
    gateway: Gateway, provider: FakeProvider
) -> None:
    provider.script = play(sse(), word("Hel"), stall())
    async with connected(gateway.port) as (reader, writer):
        writer.write(chat(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        exchange = await provider.next_call()
        writer.transport.abort()
        await exchange.hung_up()


async def test_the_cookie_of_the_page_is_for_tls_only(gateway: Gateway) -> None:
    async with connected(gateway.port) as (reader, writer):
        writer.write(signing_in())
        answered = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert "; Secure\r\n" in answered
    assert "Path=/gateway/" in answered


async def test_old_versions_of_tls_are_not_spoken(gateway: Gateway) -> None:
    old = blind()
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shown_at(gateway.port, context=old)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        good = blind()
        good.minimum_version = good.maximum_version = version
        assert await shown_at(gateway.port, context=good)


# Streams that break. A client must be able to tell: over TLS, too.


def half_an_answer(gate: asyncio.Event, breaks: Script) -> Script:
    """JSON that breaks in the middle, once the gate opens: a reset would overtake what is on its way."""
    json_head = head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
    return play(json_head, chunk(b'{"half": '), wait(gate), breaks)


@pytest.mark.parametrize("breaks", [cut, reset])
async def test_a_broken_answer_has_no_proper_end(
    gateway: Gateway,
    http: aiohttp.ClientSession,
    provider: FakeProvider,
    pair: Pair,
    breaks: Callable[[], Script],
) -> None:
    gate = asyncio.Event()
    provider.script = half_an_answer(gate, breaks())
    url = f"{gateway.url}/v1/chat/completions"
    async with http.post(url, json=ASK, ssl=trusting(pair)) as response:
        assert response.status == 200
        gate.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_broken_answer_of_which_only_closing_tells_the_end_is_reset(
    gateway: Gateway, provider: FakeProvider
) -> None:
    gate = asyncio.Event()
    provider.script = half_an_answer(gate, reset())
    strict = blind()
    strict.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    async with connected(gateway.port, context=strict) as (reader, writer):
        writer.write(chat().replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        gate.set()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            async with asyncio.timeout(HANG_S):
                await reader.read()


async def test_a_broken_stream_of_events_ends_with_an_error(
    gateway: Gateway, http: aiohttp.ClientSession, provider: FakeProvider, pair: Pair
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), reset())
    url = f"{gateway.url}/v1/chat/completions"
    async with http.post(url, json={**ASK, "stream": True}, ssl=trusting(pair)) as response:
        gate.set()
        told = events(await response.read())
    assert told[-1]["error"]["type"] == "upstream_error"


# Clients that do not speak it.


@pytest.mark.parametrize(
    "garbage",
    [
        request("GET", "/healthz"),
        b"\x00" * 1000,
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        b"SSH-2.0-x\r\n",
        b"\x80",
    ],
)
async def test_what_is_no_tls_is_closed_and_the_next_client_is_served(
    gateway_for: GatewayFor,
    provider: FakeProvider,
    pair: Pair,
    garbage: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = await gateway_for(provider, server=pair.section, patience=Patience(head_s=1))
    async with RawClient(gateway.port) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(garbage)
        await client.closed()
    assert await shown_at(gateway.port) == pair.fingerprint
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_a_client_that_connects_and_never_speaks_is_sent_away(
    gateway_for: GatewayFor, provider: FakeProvider, pair: Pair
) -> None:
    gateway = await gateway_for(provider, server=pair.section, patience=Patience(head_s=1))
    async with RawClient(gateway.port) as client:
        await client.closed()


async def test_a_client_that_shakes_hands_and_then_says_half_a_head_is_sent_away(
    gateway_for: GatewayFor, provider: FakeProvider, pair: Pair
) -> None:
    gateway = await gateway_for(provider, server=pair.section, patience=Patience(head_s=1))
    async with connected(gateway.port) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost:")
        async with asyncio.timeout(HANG_S):
            assert b" 408 " in await reader.read()


async def test_clients_that_never_speak_keep_nobody_waiting(gateway: Gateway, pair: Pair) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            await stack.enter_async_context(RawClient(gateway.port))
        assert await shown_at(gateway.port) == pair.fingerprint


async def test_clients_without_a_name_are_served(gateway: Gateway, pair: Pair, made: dict[str, Pair]) -> None:
    assert await shown_at(gateway.port, name=None) == pair.fingerprint
    pair.take(made["second"].cert, made["second"].key)
    gateway.renew_certificate()
    assert await shown_at(gateway.port, name=None) == pair.fingerprint


# Renewal.


@pytest.mark.parametrize("path_to_it", [("second",), ("rsa",), ("rsa", "second"), ("rsa", "first")])
async def test_a_renewed_certificate_is_shown_to_new_clients_while_a_stream_goes_on(
    gateway: Gateway, provider: FakeProvider, made: dict[str, Pair], pair: Pair, path_to_it: tuple[str, ...]
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    async with connected(gateway.port) as (reader, writer):
        writer.write(chat(stream=True))
        await reader.readuntil(b"\n\n")
        for name in path_to_it:
            pair.take(made[name].cert, made[name].key)
            gateway.renew_certificate()
            assert await shown_at(gateway.port) == made[name].fingerprint
        gate.set()
        async with asyncio.timeout(HANG_S):
            assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")


async def test_a_client_that_resumes_its_session_after_a_renewal_is_served(
    gateway: Gateway, made: dict[str, Pair], pair: Pair
) -> None:
    def visit(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
        ):
            secured.sendall(request("GET", "/healthz"))
            assert b" 200 " in secured.recv(1000)
            return secured.session

    context = blind()
    session = await asyncio.to_thread(visit, None)
    assert await asyncio.to_thread(visit, session)
    pair.take(made["second"].cert, made["second"].key)
    gateway.renew_certificate()
    assert await asyncio.to_thread(visit, session)


def mismatched(pair: Pair, made: dict[str, Pair]) -> None:
    pair.take(made["second"].cert, made["first"].key)


def mismatched_in_kind(pair: Pair, made: dict[str, Pair]) -> None:
    pair.take(made["rsa"].cert, made["first"].key)


def half_written(pair: Pair, made: dict[str, Pair]) -> None:
    pair.cert.write_bytes(made["second"].cert.read_bytes()[:300])


def empty(pair: Pair, made: dict[str, Pair]) -> None:
    pair.key.write_bytes(b"")


def removed(pair: Pair, made: dict[str, Pair]) -> None:
    pair.cert.unlink()


def not_pem(pair: Pair, made: dict[str, Pair]) -> None:
    pair.cert.write_bytes(b"\x00\xff" * 500)


def encrypted(pair: Pair, made: dict[str, Pair]) -> None:
    openssl("pkcs8", "-topk8", "-in", made["first"].key, "-out", pair.key, "-passout", "pass:secret")


def a_folder(pair: Pair, made: dict[str, Pair]) -> None:
    pair.cert.unlink()
    pair.cert.mkdir()


BAD = [mismatched, mismatched_in_kind, half_written, empty, removed, not_pem, encrypted, a_folder]
Spoil = Callable[[Pair, dict[str, Pair]], None]


@pytest.mark.parametrize("spoil", BAD)
async def test_what_cannot_be_used_is_refused_and_the_old_certificate_stays(
    gateway: Gateway, made: dict[str, Pair], pair: Pair, spoil: Spoil
) -> None:
    spoil(pair, made)
    with pytest.raises(BadCertificate, match=r"^server\.tls: \S.{10,}"):
        gateway.renew_certificate()
    for _ in range(2):
        assert await shown_at(gateway.port) == made["first"].fingerprint
    if pair.cert.is_dir():
        pair.cert.rmdir()
    pair.take(made["second"].cert, made["second"].key)
    gateway.renew_certificate()
    assert await shown_at(gateway.port) == made["second"].fingerprint


@pytest.mark.parametrize("spoil", BAD)
async def test_a_gateway_does_not_start_without_a_good_certificate(
    provider: FakeProvider, made: dict[str, Pair], pair: Pair, spoil: Spoil
) -> None:
    spoil(pair, made)
    with pytest.raises(BadCertificate):
        Certificate(pair.config.cert, pair.config.key)
    with pytest.raises(CannotListen, match=r"server\.tls"):
        Gateway(build(settings(provider, server=pair.section)))


def test_nobody_is_asked_for_a_passphrase(made: dict[str, Pair], pair: Pair) -> None:
    encrypted(pair, made)
    with pytest.raises(BadCertificate, match="give one without a passphrase"):
        Certificate(pair.config.cert, pair.config.key)


async def test_renewing_where_there_is_no_tls_does_nothing(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    gateway.renew_certificate()


async def test_a_drain_over_tls_ends_with_the_last_stream(gateway: Gateway, provider: FakeProvider) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), done())
    async with connected(gateway.port) as (reader, writer):
        writer.write(chat(stream=True))
        await reader.readuntil(b"\n\n")
        draining = asyncio.ensure_future(gateway.drain())
        gate.set()
        async with asyncio.timeout(HANG_S):
            assert await draining
            assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")


# The program.


def config_file(folder: Path, provider: FakeProvider, pair: Pair) -> Path:
    file = folder / "config.yaml"
    tls = {"cert": "tls/cert.pem", "key": "tls/key.pem"}
    file.write_text(yaml.safe_dump(settings(provider, server={"tls": tls})))
    assert pair.cert == folder / "tls/cert.pem"
    return file


@pytest.mark.parametrize("spoil", [mismatched, removed, not_pem, encrypted, empty, a_folder])
async def test_the_program_says_what_is_wrong_with_a_certificate_and_ends(
    tmp_path: Path, provider: FakeProvider, made: dict[str, Pair], pair: Pair, spoil: Spoil
) -> None:
    file = config_file(tmp_path, provider, pair)
    spoil(pair, made)
    finished = await run("-c", str(file), cwd=tmp_path)
    assert finished.code == 1
    assert "server.tls" in finished.err
    assert "Traceback" not in finished.err
    assert "PRIVATE KEY" not in finished.err


async def test_the_program_speaks_tls_and_takes_up_a_renewed_certificate(
    tmp_path: Path, provider: FakeProvider, made: dict[str, Pair], pair: Pair
) -> None:
    file = config_file(tmp_path, provider, pair)
    async with running("-c", str(file), cwd=tmp_path) as program:
        port = int((await program.says(r"listening on https://127\.0\.0\.1:(\d+)"))[1])
        assert await shown_at(port) == made["first"].fingerprint
        pair.take(made["rsa"].cert, made["rsa"].key)

        async def renewed() -> bool:
            return await shown_at(port) == made["rsa"].fingerprint

        await eventually(renewed, every=0.1)
        assert "Traceback" not in program.err
