"""A real Redis, in a process of its own, that can be killed, started again and held up."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

from llmgateway.traffic.shared import Pace
from tests.guard import HANG_S
from tests.journey import eventually
from tests.ports import held_port
from tests.tools import package, tool

PASSWORD: Final = "open-sesame@cave"
STEADY: Final = Pace(patience=2 * HANG_S, answer=2 * HANG_S, life=2 * HANG_S, renew=0.2, retry=0.05)
"""For gateways that do not take Redis for slow, nor one another for gone, while the machine is busy."""
NOTHING_KEPT: Final = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1")


class RedisServer:
    """Use as `async with`: it runs then. It keeps its port, and nothing else, when it is started again."""

    def __init__(self, folder: Path) -> None:
        self._program = tool("redis-server")
        package("redis")
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._holder = held_port()
        self.port: int = self._holder.getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self._holder.close()

    @property
    def url(self) -> str:
        """How a config names it, with its password."""
        return f"redis://:{PASSWORD.replace('@', '%40')}@127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Run, with nothing in memory."""
        self._process = await asyncio.create_subprocess_exec(
            *(self._program, *NOTHING_KEPT, "--port", str(self.port), "--requirepass", PASSWORD),
            cwd=self._folder,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await eventually(self._answers, saying="Redis does not start")

    async def _answers(self) -> bool:
        try:
            return bool(await self.command("PING"))
        except OSError:
            return False

    async def kill(self) -> None:
        """End at once."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def knows(self, gateways: int) -> None:
        """Wait until so many gateways are connected."""

        async def connected() -> bool:
            told: str = await self.command("CLIENT", "LIST")
            return told.count("name=llmgateway ") == gateways

        await eventually(connected)

    def stop(self) -> None:
        """Answer nobody, without a word."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def command(self, *words: Any) -> Any:
        """Run a command, and give its answer."""
        from redis.asyncio import Redis
        from redis.exceptions import ConnectionError as Unreachable

        async with AsyncExitStack() as stack:
            client: Any = Redis(port=self.port, password=PASSWORD, decode_responses=True)
            stack.push_async_callback(client.aclose)
            try:
                return await client.execute_command(*words)
            except Unreachable as exc:
                raise ConnectionError(str(exc)) from None
