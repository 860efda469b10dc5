"""Fixtures of all journeys: real gateways, programs, providers, llama.cpp; and a check that nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import hypothesis
import orjson
import pytest
import yaml

from llmgateway.access.keys import Caller
from llmgateway.http.body import Patience
from llmgateway.traffic.shared import PACE, Pace
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S, LINGERS_S
from tests.journey import KEY, eventually, settings
from tests.llamacpp.fixtures import llama_embeddings, llama_endless, llama_keyed, llama_models, llama_server
from tests.ports import held_port
from tests.program import Program, running
from tests.secrecy import hear, keeping_secrets, watch
from tests.tools import what_was_skipped

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

__all__ = ["llama_embeddings", "llama_endless", "llama_keyed", "llama_models", "llama_server"]

# How long an example takes is a matter of what else the machine does.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

ADMIN = Caller("", admin=True)
ProviderFor = Callable[..., Awaitable[FakeProvider]]
GatewayFor = Callable[..., Awaitable["Gateway"]]
ProgramFor = Callable[..., Awaitable[Program]]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop that the program itself runs on."""
    try:
        import uvloop
    except ImportError:
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say at the end, in one line, which programs the tests that were skipped would have wanted."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    if said := what_was_skipped(report.longrepr[2] for report in skipped):
        terminalreporter.write_line(said)


@pytest.fixture(autouse=True)
def no_secret_is_told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail when a key, a credential, a prompt or an answer was let out where it should not be."""
    with keeping_secrets():
        yield
        if (
            folder := request.node.funcargs.get("tmp_path")
        ) is not None:  # a fixture may have skipped the test
            watch.written(folder)


@pytest.fixture
async def nothing_leaks() -> AsyncIterator[None]:
    """Fail when a journey leaves a task or an unclosed transport behind."""
    before = asyncio.all_tasks()
    yield

    def left() -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}

    await eventually(lambda: not left(), LINGERS_S, saying=lambda: f"tasks are left behind: {left()}")
    gc.collect(1)  # an unclosed transport warns when it is collected


@pytest.fixture
async def provider_for(nothing_leaks: None) -> AsyncIterator[ProviderFor]:
    """Start fake providers: `await provider_for("rig", models=["m"], weight=2)`."""
    async with AsyncExitStack() as stack:

        async def start(name: str = "rig", **options: Any) -> FakeProvider:
            return await stack.enter_async_context(FakeProvider(name, **options))

        yield start


@pytest.fixture
async def provider(provider_for: ProviderFor) -> FakeProvider:
    """One fake provider, `rig`, that serves the model `m`."""
    return await provider_for()


@pytest.fixture
async def gateway_for(nothing_leaks: None) -> AsyncIterator[GatewayFor]:
    """Start gateways: `await gateway_for(provider, other, server={"max_body": "1MB"})`, ready to serve.

    At the end they close, and must have closed every connection to the providers.
    """
    from llmgateway.config.load import build
    from llmgateway.service.gateway import Gateway

    known: list[FakeProvider] = []
    gateways: list[Gateway] = []
    async with AsyncExitStack() as stack:

        async def start(
            *providers: FakeProvider,
            patience: Patience | None = None,
            pace: Pace = PACE,
            **sections: Any,
        ) -> Gateway:
            known.extend(providers)
            config = build(settings(*providers, **sections))
            gateway = await stack.enter_async_context(Gateway(config, patience, pace=pace))
            async with asyncio.timeout(HANG_S):
                await gateway.ready.wait()
            if (look := gateway._pressure._timer) is not None:
                look.cancel()  # the loop is the test's as well: that it is behind turns nobody away
            gateways.append(gateway)
            return gateway

        yield start
        for gateway in gateways:
            look_at(gateway)

    def left() -> list[str]:
        return [f"{provider.name} from {caller}" for provider in known for caller in provider.callers]

    await eventually(
        lambda: not left(),
        LINGERS_S,
        saying=lambda: f"connections to providers are left open: {left()}",
    )


@pytest.fixture
def port() -> Iterator[int]:
    """A port for a server that cannot be asked which one it took. Nobody else is given it meanwhile."""
    with held_port() as holder:
        yield holder.getsockname()[1]


@pytest.fixture
async def http(nothing_leaks: None) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that carries alice's key and shows bodies as they came."""
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=aiohttp.ClientTimeout(total=HANG_S),
        auto_decompress=False,
        trace_configs=[_heard_by(watch.sent("what an HTTP client received"))],
    ) as session:
        yield session


@pytest.fixture
async def program_for(nothing_leaks: None, tmp_path: Path) -> AsyncIterator[ProgramFor]:
    """Start the real program on a config: `program = await program_for(provider)`; `await program.url()`.

    Takes what `settings` takes. For other command lines use `tests.program.running`.
    """
    async with AsyncExitStack() as stack:

        async def start(*providers: FakeProvider, **sections: Any) -> Program:
            file = tmp_path / "config.yaml"
            file.write_text(yaml.safe_dump(settings(*providers, **sections)))
            program = await stack.enter_async_context(running("-c", str(file), "--port", "0", cwd=tmp_path))
            await program.url()
            return program

        yield start


def look_at(gateway: Gateway) -> None:
    """Have it looked through what a gateway shows to who may see all."""
    watch.kept("the metrics", gateway.metrics.render("")[0])
    watch.kept("the live page", orjson.dumps(gateway.status.snapshot(ADMIN, wall=time.time())))


def _heard_by(heard: bytearray) -> aiohttp.TraceConfig:
    """Have a client of aiohttp add what it receives to what was heard."""

    async def body(*told: Any) -> None:
        hear(heard, told[2].chunk)

    async def head(*told: Any) -> None:
        hear(heard, repr(told[2].response.headers).encode())

    trace = aiohttp.TraceConfig()
    trace.on_response_chunk_received.append(body)
    trace.on_request_end.append(head)
    return trace
