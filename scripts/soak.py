"""Let all that can happen to a gateway happen at once, for as long as asked; then count.

A real gateway runs as a process. Its providers and clients are here: providers that are slow, cut, stall,
lie, come and go (`soak_providers`), clients of every kind that stay, dawdle or leave (`soak_clients`), and a
config that changes every few seconds (`soak_config`). When the traffic has ended and nothing moves any more,
every request must stand in four books, once and alike (`soak_books`), and the process must hold no more than
after a first part of the same (`soak_watch`): tasks, descriptors, memory, slots, places in the queue, bodies.
Then it is stopped amid traffic, and what it wrote of that must be as true.

The same seed draws the same numbers; what happens is up to the clock and the machine all the same.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import soak_config
from bench_process import end_like_ctrl_c, free_ports, running
from soak_books import Books, disagreements
from soak_clients import World
from soak_report import complaints, judge, log_lines, table
from soak_traffic import Traffic, let_happen, providers_of
from soak_watch import Watched, settled, until

START_LIMIT_S: Final = 30.0
AMID_S: Final = 3.0
DRAIN_S: Final = 2.0
END_LIMIT_S: Final = 20.0
WARM_UP_PART: Final = 0.15
WARM_UP_MOST_S: Final = 120.0
GATEWAY: Final = Path(__file__).parent / "soak_gateway.py"


async def stopped(watched: Watched, books: Books, traffic: Traffic) -> list[str]:
    """Stop the gateway amid traffic; gives where its log is not true then."""
    coming = asyncio.create_task(traffic.run(AMID_S + DRAIN_S))
    await asyncio.sleep(AMID_S)
    watched.process.send_signal(signal.SIGTERM)
    found = []
    try:
        code = await asyncio.to_thread(watched.process.wait, DRAIN_S + END_LIMIT_S)
        found += [f"it ended with {code}"] * bool(code)
    except subprocess.TimeoutExpired:
        found.append("it does not end")
    await coming
    lines = log_lines(watched.folder)
    print(table({"cut off by the end": sum(line["outcome"] == "draining" for line in lines)}))
    return found + [f"when it was stopped: {each}" for each in disagreements(books, lines)]


def logs(folder: Path) -> list[Path]:
    """Give the logs of all starts."""
    return [*folder.glob("log.*")]


async def started_again(stack: AsyncExitStack, folder: Path, port: int) -> list[str]:
    """Start it once more; gives where what it remembers is not what it wrote."""
    watched = await started(stack, folder, port)
    snapshot = json.loads(await watched.get("/gateway/status"))
    return [
        f"when it was started again: {each}"
        for each in disagreements(None, log_lines(folder), snapshot=snapshot)
    ]


async def started(stack: AsyncExitStack, folder: Path, port: int) -> Watched:
    """Start the gateway, and wait until it is ready."""
    command = [sys.executable, str(GATEWAY), "-c", str(folder / "config.yaml")]
    environment = {"SOAK_LOOK": str(folder / "look.json"), "PYTHONPATH": str(GATEWAY.parent.parent)}
    log = folder / f"log.{len(logs(folder))}"
    process = stack.enter_context(running(command, log, environment))
    watched = Watched(process, port, folder)

    async def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return b'"ready"' in await watched.get("/gateway/status")
        except (OSError, EOFError, AssertionError):
            return False

    await until(is_ready, START_LIMIT_S, "it does not start")
    return watched


async def soak(minutes: float, seed: int, rate: float, folder: Path) -> list[str]:
    """Do all of it; gives every disagreement."""
    chance, books = random.Random(seed), Books(renames={"slow"})
    (port,) = free_ports(1)
    providers = providers_of(books, chance)
    async with AsyncExitStack() as stack:
        for provider in providers.values():
            await stack.enter_async_context(provider)
        spool = folder / "spool"
        spool.mkdir()
        entries = {name: provider.entry for name, provider in providers.items()}
        tree = soak_config.tree_of(entries, port=port, spool=spool)
        soak_config.write(tree, folder / "config.yaml")
        watched = await started(stack, folder, port)
        traffic, for_s = Traffic(World(port, books, chance), rate), minutes * 60
        warm_up_s = min(WARM_UP_MOST_S, for_s * WARM_UP_PART)
        await let_happen(watched, traffic, providers, tree, warm_up_s, chance)
        first = await settled(watched, providers.values(), None)
        watched.memory.clear()
        began = time.monotonic()
        await let_happen(watched, traffic, providers, tree, for_s - warm_up_s, chance)
        last = await settled(watched, providers.values(), first)
        found = await judge(watched, books, traffic, first, last, time.monotonic() - began)
        found += await stopped(watched, books, traffic)
        found += await started_again(stack, folder, port)
        left = list(spool.iterdir())
        found += [each for log in logs(folder) for each in complaints(log)]
        found += [f"a client failed: {each}" for each in traffic.failures]
        return found + [f"left in the spool: {each.name}" for each in left]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Let all that can happen to a gateway happen at once; then count."
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="clients a second (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    given = parser.parse_args()
    end_like_ctrl_c()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        found = asyncio.run(soak(given.minutes, given.seed, given.rate, folder))
    finally:
        if given.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print("\n".join(["", "Disagreements:", *found] if found else ["", "No disagreements."]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
