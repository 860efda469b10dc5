"""The config is edited while the gateway is busy: no stream breaks, and no request fails that may be served.

The real program, a hundred streams, and fifty versions of its file, good and bad, written in every way in
which editors and people write files.
"""

from __future__ import annotations

import asyncio
import copy
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.conftest import ProviderFor
from tests.crowd import ask, ask_for
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.program import Program, running
from tests.raw_client import Ending, RawClient, Response
from tests.script import SSE, polite

STREAMS: Final = 100
BOB: Final = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyz00"


class Beat:
    """A script that sends a word at every beat and ends its stream when told to; other calls are answered."""

    def __init__(self) -> None:
        self.beats = 1
        self._over = False
        self._next = asyncio.Condition()

    async def __call__(self, exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await polite()(exchange)
            return
        await exchange.head(200, SSE)
        sent = 0
        while not self._over or sent < self.beats:
            if sent < self.beats:
                sent += 1
                await exchange.event({"beat": sent})
            else:
                async with self._next:
                    await self._next.wait_for(lambda: self._over or sent < self.beats)  # noqa: B023
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    async def strike(self, *, last: bool = False) -> None:
        async with self._next:
            self.beats += 1
            self._over = last
            self._next.notify_all()


class File:
    """The config file, and the versions that follow one another."""

    def __init__(self, path: Path, rig: FakeProvider, box: FakeProvider) -> None:
        self.path = path
        self._rig, self._box = rig, box
        self.tree = settings(rig, log={"requests": "none"})
        self._good = self._changes()
        self._bad = cycle((self._cut, self._misspell, self._remove, self._repeat))
        self._put = cycle((self._in_place, self._rename_over))
        self._in_place(yaml.safe_dump(self.tree))

    def good(self, number: int) -> None:
        """Write the next good version; the log tells of its number when it is in force."""
        next(self._good)
        self.tree["groups"] = {f"version-{number}": ["alice"]}
        next(self._put)(yaml.safe_dump(self.tree))

    def bad(self) -> None:
        next(self._bad)()

    def _changes(self) -> Iterator[None]:
        """Change what can be changed, for ever."""
        providers, users = self.tree["providers"], self.tree["users"]
        number = 0
        while True:
            number += 1
            users["bob"] = {"keys": [BOB]}
            yield
            providers["rig"]["headers"] = {"X-Number": str(number)}  # another provider, for all we know
            yield
            providers["box"] = copy.deepcopy(self._box.entry)
            yield
            providers["rig"] |= {
                "slots": 200 + number,
                "weight": number,
                "timeouts": {"connect": f"{number + 2}s"},
            }
            yield
            self.tree["providers"] = providers = dict(reversed(providers.items()))
            yield
            users["bob"]["weight"] = number + 1
            self.tree |= {"queue": {"size": 100 + number}, "health": {"interval": f"{number + 5}s"}}
            yield
            del providers["box"]
            yield
            del users["bob"]
            yield

    def asks(self) -> Iterator[tuple[str, bytes, int]]:
        """Give requests, and the status that each must get as long as this version is in force."""
        yield "alice asks for m", ask_for("m"), 200
        yield "alice asks for n", ask_for("n"), 200 if "box" in self.tree["providers"] else 404
        yield "bob asks for m", ask_for("m", key=BOB), 200 if "bob" in self.tree["users"] else 401

    # -- ways of writing

    def _in_place(self, text: str) -> None:
        self.path.write_text(text)

    def _rename_over(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    # -- ways of going wrong

    def _cut(self) -> None:
        self._in_place(yaml.safe_dump(self.tree)[:-40] + "[")

    def _misspell(self) -> None:
        self._rename_over(yaml.safe_dump({**self.tree, "heatlh": {}}))

    def _remove(self) -> None:
        self.path.unlink()

    def _repeat(self) -> None:
        self._in_place(yaml.safe_dump(self.tree) + "\nusers: {}\n")


@asynccontextmanager
async def streams(program: Program, rig: FakeProvider) -> AsyncIterator[list[tuple[RawClient, Response]]]:
    """A hundred streams that have begun."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(program.port)) for _ in range(STREAMS)]
        for client in clients:
            await client.send(ask_for(stream=True))
        yield [(client, await client.head()) for client in clients]


async def keep_asking(program: Program, stop: asyncio.Event) -> int:
    """Ask for what every version of the file allows, without a pause; tells how often."""
    count = 0
    while not stop.is_set():
        response = await ask(program.port, ask_for("m", key=KEY))
        assert response.status == 200, (count, response.body)
        count += 1
    return count


async def edit(program: Program, file: File, number: int, *, hang_up: bool) -> None:
    """Write a good and a bad version, and wait for each until the log says what came of it."""
    file.good(number)
    if hang_up:
        program.signal(signal.SIGHUP)
    await program.says(rf"config reloaded .*\bgroups\.version-{number}\b")
    await as_the_file_says(program, file)
    bad_before = program.err.count("config has problems")
    file.bad()
    if hang_up:
        program.signal(signal.SIGHUP)
    await eventually(lambda: program.err.count("config has problems") > bad_before)
    await as_the_file_says(program, file)


async def as_the_file_says(program: Program, file: File) -> None:
    for what, message, status in file.asks():
        response = await ask(program.port, message)
        assert response.status == status, (what, response.body)


@pytest.mark.parametrize(("edits", "hang_up"), [(25, True), (1, False)], ids=["SIGHUP", "polled"])
async def test_a_hundred_streams_go_on_while_the_file_is_rewritten(
    provider_for: ProviderFor, tmp_path: Path, edits: int, hang_up: bool
) -> None:
    rig, box = await provider_for("rig"), await provider_for("box", models=["n"])
    beat = rig.script = Beat()
    file = File(tmp_path / "config.yaml", rig, box)
    async with running("-c", str(file.path), "--port", "0", cwd=tmp_path) as program:
        await program.url()
        async with streams(program, rig) as running_streams, asyncio.TaskGroup() as group:
            stop = asyncio.Event()
            asking = group.create_task(keep_asking(program, stop))
            for number in range(edits):
                await edit(program, file, number, hang_up=hang_up)
                await beat.strike()
                for client, response in running_streams:
                    await client.events(response, number + 2)
            stop.set()
            await beat.strike(last=True)
            for client, response in running_streams:
                while await client.piece(response):
                    pass
                assert response.ending is Ending.COMPLETE
                assert response.events == [*({"beat": n + 1} for n in range(edits + 2)), "[DONE]"]
        assert asking.result() >= edits
        program.signal(signal.SIGTERM)
        finished = await program.ended()
    assert finished.code == 0
    assert "Traceback" not in finished.err
    for secret in (KEY, BOB):
        assert secret not in finished.err
