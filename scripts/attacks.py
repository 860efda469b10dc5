"""Let strangers be slow, many and wrong, each kind against a fresh gateway, and print what came of it.

The gateway is a process of its own, with a fake provider that answers at once. While an attack lasts,
somebody with a good key asks for an answer every tenth of a second, and somebody else whether the gateway is
well: the table tells the slowest of each. Strangers are at the same address as they, but for crowds.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tests.fake_provider import FakeProvider
from tests.journey import settings
from tests.program import running
from tests.raw_client import RawClient, chat, request

MANY: Final = 200
ASK_EVERY_S: Final = 0.1
LONGEST_S: Final = 100.0
STRANGE: Final = "127.0.0.2"
WRONG: Final = "sk-wrong-" + "w" * 40
BODY: Final = request("POST", "/v1/chat/completions", "Content-Length: 60000")
WRONG_UPLOAD: Final = request("POST", "/v1/chat/completions", "Content-Length: 90000000", key=WRONG)


@dataclass
class Ground:
    """Where an attack takes place: the port, and how others fare meanwhile."""

    port: int
    chats_s: list[float] = field(default_factory=list)
    looks_s: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    async def ask(self) -> None:
        """Ask, again and again, as others do."""
        while True:
            await self._ask_once(chat(), self.chats_s, "chats")
            await self._ask_once(request("GET", "/healthz"), self.looks_s, "looks")
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask_once(self, message: bytes, times_s: list[float], what: str) -> None:
        began = time.monotonic()
        try:
            async with RawClient(self.port) as client:
                await client.send(message)
                if (await client.response()).status == 200:
                    times_s.append(time.monotonic() - began)
                else:
                    self.refused[what] += 1
        except (OSError, EOFError, TimeoutError):
            self.refused[what] += 1

    def row(self) -> list[str]:
        """Tell the slowest of each, and how many got no answer."""
        cells = []
        for what, times_s in (("chats", self.chats_s), ("looks", self.looks_s)):
            words = f"{max(times_s) * 1000:.0f} ms" if times_s else "-"
            lost = f", {self.refused[what]} of {self.refused[what] + len(times_s)} refused"
            cells.append(words + (lost if self.refused[what] else ""))
        return cells


async def fate(port: int, first: bytes, drip: bytes = b"", every_s: float = 1.0) -> tuple[str, float]:
    """Send something, and then a piece from time to time; tell how that ended, and after how many seconds."""
    began = time.monotonic()
    status = "closed"
    try:
        async with asyncio.timeout(LONGEST_S), RawClient(port) as client, asyncio.TaskGroup() as group:
            await client.send(first)
            dripping = group.create_task(_drip(client, drip, every_s))
            with suppress(EOFError):
                status = str((await client.response(LONGEST_S)).status)
            dripping.cancel()
    except TimeoutError:
        status = "still there"
    except OSError:
        status = "refused"
    return status, time.monotonic() - began


async def _drip(client: RawClient, piece: bytes, every_s: float) -> None:
    with suppress(OSError):
        while piece:
            await client.send(piece)
            await asyncio.sleep(every_s)


async def fates(port: int, many: int, first: bytes, drip: bytes = b"") -> str:
    """Let many do the same at once; tell how it ended for them."""
    ends = await asyncio.gather(*(fate(port, first, drip) for _ in range(many)))
    times_s = sorted(seconds for _, seconds in ends)
    counts = Counter(status for status, _ in ends)
    words = ", ".join(f"{count} x {status}" for status, count in counts.most_common())
    return f"{words}, after {times_s[0]:.1f} to {times_s[-1]:.1f} s"


# --- the attacks ----------------------------------------------------------------------------------


async def silent(port: int) -> str:
    return await fates(port, MANY, b"")


async def slow_heads(port: int) -> str:
    return await fates(port, MANY, b"POST /v1/chat/completions HTTP/1.1\r\nX-Pad: ", b"x")


async def slow_bodies(port: int) -> str:
    return await fates(port, MANY, BODY + b"{", b" ")


async def stopped_bodies(port: int) -> str:
    return await fates(port, MANY, BODY + b"{")


async def wrong_bodies(port: int) -> str:
    return await fates(port, MANY, WRONG_UPLOAD, b" " * 1000)


async def slow_uplink(port: int) -> str:
    body = b'{"model": "m"}'.ljust(80 * 1024)
    head = request("POST", "/v1/chat/completions", f"Content-Length: {len(body)}")
    status, seconds = await fate(port, head + body[:1024], b" " * 2048)
    return f"{status}, after {seconds:.1f} s"


async def wrong_keys(port: int) -> str:
    counts: Counter[int] = Counter()

    async def guess() -> None:
        while True:
            with suppress(OSError, EOFError):
                async with RawClient(port) as client:
                    while True:
                        await client.send(request("GET", "/v1/models", key=WRONG))
                        counts[(await client.response()).status] += 1

    with suppress(TimeoutError):
        async with asyncio.timeout(15):
            await asyncio.gather(*(guess() for _ in range(15)))
    return f"{counts[401] / 15:.0f} tries a second on 15 connections"


async def unread(port: int) -> str:
    clients = []
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            clients.append(client := await stack.enter_async_context(RawClient(port, receive_buffer=4096)))
            with suppress(TimeoutError, OSError):
                await client.send(request("GET", "/gateway/") * 40, limit=0.05)
        await asyncio.sleep(10)
    return f"{len(clients)} connections are held back"


async def crowd(port: int) -> str:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(port, source=STRANGE)) for _ in range(2 * MANY)]
        told = await asyncio.gather(*(told_off(client) for client in clients))
        return f"{told.count(False)} let in, {told.count(True)} told 503"


async def told_off(client: RawClient) -> bool:
    try:
        return (await client.response(3)).status == 503
    except EOFError:
        return True
    except TimeoutError:
        return False


async def comings(port: int) -> str:
    end, count = time.monotonic() + 10, 0
    while time.monotonic() < end:
        with suppress(OSError):
            async with RawClient(port, source=STRANGE):
                count += 1
    return f"{count / 10:.0f} connections a second, made and left"


@dataclass(frozen=True)
class Attack:
    """A kind of attack: what it is, how it is done, and what the gateway is given for it."""

    words: str
    run: Callable[[int], Awaitable[str]]
    server: dict[str, Any] = field(default_factory=dict)
    open_files: int = 0


ATTACKS: Final = {
    "silent": Attack(f"{MANY} connections that send nothing", silent),
    "slow-heads": Attack(f"{MANY} heads, a byte a second", slow_heads),
    "slow-bodies": Attack(f"{MANY} bodies with a good key, a byte a second", slow_bodies),
    "stopped-bodies": Attack(f"{MANY} bodies with a good key that stop", stopped_bodies),
    "slow-uplink": Attack("no attack: a body at 2 KiB a second", slow_uplink),
    "wrong-bodies": Attack(f"{MANY} bodies of 90 MB with a wrong key", wrong_bodies),
    "wrong-keys": Attack("wrong keys, one after the other", wrong_keys),
    "unread": Attack(f"{MANY} connections that ask for 40 pages and read nothing", unread),
    "crowd": Attack(
        f"{2 * MANY} connections, where an address may have 100", crowd, {"connections_per_address": 100}
    ),
    "no-files": Attack(  # with the bound of who is elsewhere, as strangers are
        f"{2 * MANY} connections where 256 files may be open", crowd, {"connections_per_address": 64}, 256
    ),
    "comings": Attack("connections that come and go", comings),
}


async def attacked(attack: Attack, folder: Path) -> list[str]:
    """Let one kind of attack happen; gives its row of the table."""
    async with FakeProvider("rig") as provider:
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(settings(provider, server=attack.server)))
        few = ("sh", "-c", f'ulimit -n {attack.open_files} && exec "$@"', "sh")
        python = (*few, sys.executable) if attack.open_files else (sys.executable,)
        async with running("-c", str(file), "--port", "0", cwd=folder, python=python) as program:
            await program.url()
            ground = Ground(program.port)
            asking = asyncio.create_task(ground.ask())
            observed = await attack.run(program.port)
            asking.cancel()
            assert program.running and "Traceback" not in program.err, program.err
            return [attack.words, observed, *ground.row()]


async def main() -> None:
    parser = argparse.ArgumentParser(description="Attack a fresh gateway, and print what came of it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; all by default")
    names = parser.parse_args().names or list(ATTACKS)
    print("| attack | observed | slowest answer to a good key | slowest `/healthz` |\n|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(await attacked(ATTACKS[name], Path(folder)))} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
