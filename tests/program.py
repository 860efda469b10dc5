"""The program as it really starts: `python gateway.py ...` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guard import HANG_S
from tests.journey import eventually
from tests.secrecy import MOST_BYTES, watch

_SHOWS_A_NEW_KEY = frozenset({"init", "key"})
_SERVES_A_DEMO = "serving a demo model"  # and shows the key for it
GATEWAY = Path(__file__).resolve().parent.parent / "gateway.py"


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has come to its end."""

    code: int
    out: str
    err: str


class Program:
    """A running program and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.out = ""
        self.err = ""
        self.port = 0
        """Known once `url` has been awaited."""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def says(self, pattern: str, limit: float = HANG_S) -> re.Match[str]:
        """Wait until stderr or stdout matches."""

        def said() -> re.Match[str] | None:
            for text in (self.err, self.out):
                if match := re.search(pattern, text, re.MULTILINE):
                    return match
            if self._process.returncode is not None:
                raise AssertionError(
                    f"it ended with {self._process.returncode} without saying {pattern!r}:\n{self.err}"
                )
            return None

        try:
            match = await eventually(said, limit)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\nstderr:\n{self.err}\nstdout:\n{self.out}") from None
        assert match
        return match

    async def url(self) -> str:
        """Wait until it listens."""
        match = await self.says(r"listening on (http://127\.0\.0\.1:(\d+))")
        self.port = int(match[2])
        return match[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def ended(self, limit: float = HANG_S) -> Finished:
        """Wait until it has ended and everything it said is here."""
        async with asyncio.timeout(limit):
            code = await self._process.wait()
            await self._listening
        return Finished(code, self.out, self.err)

    async def listen(self) -> None:
        """Collect what it says, until it has ended."""

        async def collect(name: str, stream: asyncio.StreamReader) -> None:
            while data := await stream.read(65_536):
                setattr(self, name, getattr(self, name) + data.decode(errors="replace"))

        streams = {"out": self._process.stdout, "err": self._process.stderr}
        self._listening = asyncio.gather(
            *(collect(name, stream) for name, stream in streams.items() if stream is not None)
        )
        await self._listening


@asynccontextmanager
async def running(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stderr: int = asyncio.subprocess.PIPE,
    python: Sequence[str] = (sys.executable,),
) -> AsyncIterator[Program]:
    """Start the program; at the end kill it, whatever happened. `stderr` may be a file that others read."""
    process = await asyncio.create_subprocess_exec(
        *python,
        str(GATEWAY),
        *arguments,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
    program = Program(process)
    listening = asyncio.ensure_future(program.listen())
    await asyncio.sleep(0)
    try:
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        async with asyncio.timeout(HANG_S):
            await process.wait()
            await listening
        watch.kept(f"stderr of {arguments}", program.err[-MOST_BYTES:])
        if _SHOWS_A_NEW_KEY.isdisjoint(arguments) and _SERVES_A_DEMO not in program.out:
            watch.kept(f"stdout of {arguments}", program.out[-MOST_BYTES:])


async def run(*arguments: str, cwd: Path, limit: float = HANG_S) -> Finished:
    """Run the program to its end."""
    async with running(*arguments, cwd=cwd) as program:
        return await program.ended(limit)
