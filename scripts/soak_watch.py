"""The gateway's process in scripts/soak: what is seen of it from outside and inside, and when it is quiet."""

import asyncio
import inspect
import json
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from soak_clients import KEYS

from tests.fake_provider import FakeProvider
from tests.raw_client import RawClient

MB: Final = 1_000_000
SETTLE_LIMIT_S: Final = 120.0
BACK_LIMIT_S: Final = 60.0
FIRST_LOOKS_S: Final = 5.0
LOOK_LIMIT_S: Final = 20.0
NONE_LEFT: Final = ("connections", "orders", "in_flight", "leases", "bodies_bytes")
LEVELS: Final = ("tasks", *NONE_LEFT)
LEAST_SAMPLES: Final = 8


@dataclass(slots=True)
class Watched:
    """The gateway's process, and what is seen of it from outside and inside."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    memory: list[tuple[float, int]] = field(default_factory=list)

    def rss_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    async def look(self) -> dict[str, Any]:
        """Have it tell what it holds."""
        path = self.folder / "look.json"
        path.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        await until(path.exists, LOOK_LIMIT_S, "it does not tell what it holds")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    async def get(self, path: str) -> bytes:
        """Ask for a page as an admin."""
        lines = f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEYS['alice']}\r\n\r\n"
        async with RawClient(self.port) as client:
            await client.send(lines.encode())
            response = await client.response(LOOK_LIMIT_S, to="GET")
        assert response.status == 200, f"{path}: {response.status}"
        return bytes(response.body)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)


async def until(condition: Callable[[], Any], limit_s: float, trouble: str) -> None:
    """Poll a condition, sync or async, until it holds. Raises AssertionError."""
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if (await found) if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < end, trouble
        await asyncio.sleep(0.1)


# --- Afterwards -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Held:
    """What the gateway holds when nothing moves any more."""

    inside: dict[str, Any]
    rss_bytes: int

    @property
    def levels(self) -> dict[str, int]:
        """All that has to be back where it was, in numbers.

        A connection that waits for the next look at its provider does not count: on a busy machine there is
        always one.
        """
        inside = {**self.inside, "tasks": sum(self.inside["tasks"].values())}
        descriptors = len(self.inside["files"]) - self.inside["idle"]
        return {**{name: inside[name] for name in LEVELS}, "descriptors": descriptors}


async def settled(watched: Watched, providers: Iterable[FakeProvider], before: Held | None) -> Held:
    """Wait until nothing is in flight, and no more is held than before; gives what is held in the end."""

    async def is_quiet() -> bool:
        snapshot = json.loads(await watched.get("/gateway/status"))
        busy = any(each["in_flight"] or each["waiting"] for each in snapshot["providers"])
        return not (snapshot["in_flight"] or busy)

    await until(is_quiet, SETTLE_LIMIT_S, "something is still in flight")
    end = time.monotonic() + BACK_LIMIT_S
    least: Held | None = None
    while True:
        for provider in providers:
            provider.drop_idle()
        await asyncio.sleep(0.2)
        now = Held(await watched.look(), watched.rss_bytes())
        if least is None or sum(now.levels.values()) < sum(least.levels.values()):
            least, end = now, end if before is not None else time.monotonic() + FIRST_LOOKS_S
        is_back = before is not None and not more_than(before, least)
        if is_back or time.monotonic() > end:
            return least


def more_than(before: Held, after: Held) -> list[str]:
    """Say of what there is more than there was, or any at all of what is there for requests alone."""
    found = [
        f"more {name} than at first: {before.levels[name]}, now {count}"
        for name, count in after.levels.items()
        if count > before.levels[name]
    ]
    found += [f"there are {name} left: {after.levels[name]}" for name in NONE_LEFT if after.levels[name]]
    if any("tasks" in each for each in found):
        found.append(f"tasks: {Counter(after.inside['tasks']) - Counter(before.inside['tasks'])}")
    if any("descriptors" in each for each in found):
        found.append(f"descriptors: {Counter(after.inside['files']) - Counter(before.inside['files'])}")
    return found


def grown(memory: list[tuple[float, int]]) -> tuple[int, float]:
    """Tell by how much memory grew from quarter 2 to 4, and in the second half by how many MB an hour."""
    if len(memory) < LEAST_SAMPLES:
        return 0, 0.0
    quarter = len(memory) // 4
    sizes = [size for _, size in memory]
    growth = int(statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter]))
    half = memory[len(memory) // 2 :]
    slope, _ = statistics.linear_regression([when for when, _ in half], [size for _, size in half])
    return growth, slope * 3600 / MB
