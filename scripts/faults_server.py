"""The server that does wrong in scripts/faults: what befalls it, and how it answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import zlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.script import chunk, cut, done, error, listing, loading, play, polite, sse, stall, word

MODELS: Final = ("m", "solo")
MB: Final = 1 << 20
HUGE: Final = 256 * MB
OK: Final = b"HTTP/1.1 200 OK\r\n"
SMALL: Final = OK + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Bad(FakeProvider):
    """The server that does wrong, until it is mended."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__("bad", models=MODELS, **settings)
        self.folder = folder
        self.until_mended = AsyncExitStack()
        self.restarting: asyncio.Task[None] | None = None

    async def mend(self) -> None:
        """Behave from now on."""
        await self.until_mended.aclose()
        self.script, self.models = polite(), list(MODELS)
        self.on.clear()
        if self._server is None:
            await self.come_back()

    def hang_up_and_restart(self) -> Script:
        """Cut, and be away for a second."""

        async def away() -> None:
            await self.stop_accepting()
            await asyncio.sleep(1)
            await self.come_back()

        async def script(exchange: Exchange) -> None:
            exchange.cut()
            self.restarting = self.restarting or asyncio.create_task(away())

        return script


# --- what befalls it ------------------------------------------------------------------------------


async def refuses(bad: Bad) -> None:
    await bad.refuse()


async def accepts_nobody(bad: Bad) -> None:
    """Have the kernel's queue of new connections full, as of a program that hangs."""
    await bad.refuse()
    full = socket.socket()
    full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    full.bind(("127.0.0.1", bad.port))
    full.listen(0)
    for each in (full, *(socket.socket() for _ in range(4))):
        bad.until_mended.callback(each.close)
        if each is not full:
            each.setblocking(False)
            each.connect_ex(full.getsockname())


async def falls_silent(bad: Bad) -> None:
    bad.script = bad.on["/v1/models"] = stall()


async def closes_idle_ones(bad: Bad) -> None:
    bad.drop_idle()


async def loses_its_models(bad: Bad) -> None:
    bad.models = ["another"]
    bad.script = error(404, "The model `m` does not exist.", "not_found_error")


async def speaks_unasked(bad: Bad) -> None:
    for wire in bad._wires:
        wire.transport.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


async def lists_slowly(bad: Bad) -> None:
    bad.on["/v1/models"] = play(waits(4), listing(*MODELS))


async def dies_in_the_middle(bad: Bad) -> None:
    bad.script = play(sse(), word("Hel"), waits_for(asyncio.Barrier(2)), bad.hang_up_and_restart())


async def closes_when_asked(bad: Bad) -> None:
    """Close a kept connection just when a request comes on it; answer on a new one."""
    known = bad.accepted

    async def script(exchange: Exchange) -> None:
        await (cut() if exchange.request.connection <= known else polite())(exchange)

    bad.script = script


async def loads(bad: Bad) -> None:
    """Load its model, for three seconds."""
    until = asyncio.get_running_loop().time() + 3

    async def script(exchange: Exchange) -> None:
        is_loading = asyncio.get_running_loop().time() < until
        ready = listing(*MODELS) if exchange.request.method == "GET" else polite()
        await (loading() if is_loading else ready)(exchange)

    bad.script = bad.on["/v1/models"] = script


async def nowhere(bad: Bad) -> str:
    return "http://no-such-host.invalid:8000/v1"


async def plain(bad: Bad) -> str:
    """Have what speaks plain HTTP, and says so to all else, spoken to in TLS."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    bad.until_mended.callback(server.close)
    return f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def of_strange_certificate(bad: Bad) -> str:
    """Listen with a certificate that nobody knows."""
    key, certificate = bad.folder / "key.pem", bad.folder / "certificate.pem"
    ask = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=bad"
    made = [*ask.split(), "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, made, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    bad.until_mended.callback(server.close)
    return f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


# --- how it answers -------------------------------------------------------------------------------


def waits(seconds: float) -> Script:
    return lambda exchange: asyncio.sleep(seconds)


def waits_for(barrier: asyncio.Barrier) -> Script:
    """Go on once as many are here."""

    async def script(exchange: Exchange) -> None:
        await barrier.wait()

    return script


def endless(first: bytes, more: bytes, total: int = HUGE) -> Script:
    """Some bytes, and then the same ones again and again."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(first)
        for _ in range(total // len(more)):
            await exchange.send(more)

    return script


def bomb(headers: Mapping[str, str]) -> Script:
    """A gigabyte of zeros in a megabyte of gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {**headers, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
        await exchange.chunk(first)
        for _ in range(1023):
            await exchange.chunk(again)
        await exchange.end()

    return script


def usage(prompt: str, completion: str) -> Script:
    """A stream that tells such a usage."""
    told = f'{{"prompt_tokens": {prompt}, "completion_tokens": {completion}}}'
    last = f'data: {{"choices": [], "usage": {told}}}\n\n'
    return play(sse(), word("Hello"), chunk(last.encode()), done())


def begun(*then: Script) -> Script:
    """A stream that begins well, and goes on so."""
    return play(sse(), word("Hel"), word("lo"), *then)


def entries(*names: Any) -> Script:
    """A list of models of these names, whatever they are."""
    return listing(*({"id": name} for name in names))
