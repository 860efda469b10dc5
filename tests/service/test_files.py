"""When no more files can be opened."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from llmgateway.service.files import OTHER_FILES, Shortage, most_connections
from tests.conftest import GatewayFor, ProviderFor
from tests.journey import eventually
from tests.raw_client import RawClient, chat


@pytest.mark.parametrize(("files", "most"), [(20_000, 9_968), (1_024, 480), (OTHER_FILES, 1), (8, 1)])
def test_clients_get_what_leaves_the_rest_enough(files: int, most: int) -> None:
    assert most_connections(files) == most


async def test_that_there_are_no_files_is_told_once_a_minute_and_everything_else_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    shortage = Shortage(lambda: now)
    loop = asyncio.get_running_loop()
    for _ in range(1_000):
        shortage.handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "too many")})
    assert len(caplog.records) == 1 and caplog.records[0].exc_info is None
    now = 60.0
    shortage.handle(loop, {"message": "accept", "exception": OSError(errno.ENFILE, "too many")})
    assert len(caplog.records) == 2
    shortage.handle(loop, {"message": "another trouble"})
    assert "another trouble" in caplog.text


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    fillers = [probe]
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 64, hard))
    try:
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in fillers:
            os.close(each)


async def test_connections_that_are_kept_make_room_for_one_to_another_provider(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    first = await provider_for("first", models=["m"])
    second = await provider_for("second", models=["n"])
    gateway = await gateway_for(first, second)
    asked = [chat(), chat(b'{"model": "n", "messages": []}')]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(4)]
        for client in clients:
            await client.send(asked[0])
        for client in clients:
            assert (await client.response()).status == 200
        pool = gateway._upstream.pool(gateway.fleet.providers["second"])
        pool.close_idle()
        await eventually(lambda: not second.connections)
        with no_more_files():
            await clients[0].send(asked[1])
            assert (await clients[0].response()).status == 200
