"""Measure how many requests one, two and three gateways behind HAProxy carry, as ratios in one run.

All that takes part is on this machine and shares its CPUs: the load, the fake provider, HAProxy with the file
of contrib/ (without TLS), and the gateways, as they really start. Every round puts the same load on each, one
after the other, and the best of the rounds counts. Where others use the machine, too, more gateways get more
of it because they are more. What does not depend on that is the CPU time of a request, and `at most` is how
many that allows: each gateway has one CPU, and all of them together have no more than there are.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import uvloop
from bench_load import KEY, Client, Load, Tally, no_garbage_collection
from bench_process import cpu_s, end_like_ctrl_c, free_ports, running, until_it_answers
from bench_targets import ROOT, SYSTEM_FOLDERS

from tests.in_front import AS_ROOT, CONTRIB, replaced

COUNTS: Final = (1, 2, 3)
USERS: Final = 64
KEYS: Final = [f"{KEY[:-4]}{number:04}" for number in range(USERS)]
LOAD: Final = Load("1k", USERS, 3.0)
LIMIT_S: Final = 30
CPUS: Final = os.cpu_count() or 1
HEADING: Final = (
    "| gateways | requests/s | ratio | CPU us/request: gateways | HAProxy | load and provider | CPUs used "
    "| at most requests/s | ratio |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


@dataclass(frozen=True, slots=True)
class Way:
    """A port to ask at, and what works behind it."""

    name: str
    count: int
    port: int
    gateways: Sequence[psutil.Process]
    balancer: Sequence[psutil.Process]


@dataclass(frozen=True, slots=True)
class Result:
    """What one load did, with the CPU seconds of all who took part."""

    requests: int
    lasted_s: float
    gateways_s: float
    balancer_s: float
    others_s: float

    @property
    def per_second(self) -> float:
        return self.requests / self.lasted_s

    @property
    def spent_s(self) -> float:
        return self.gateways_s + self.balancer_s + self.others_s

    @property
    def used(self) -> float:
        """The part of the machine that all of them used."""
        return self.spent_s / self.lasted_s / CPUS

    def at_most(self, gateways: int) -> float:
        """How many requests a second their CPU time allows, on a machine that nobody else uses."""
        return self.requests * min(gateways / self.gateways_s, CPUS / self.spent_s)

    def us(self, spent_s: float) -> float:
        return spent_s / self.requests * 1e6


# --- What takes part ------------------------------------------------------------------------------


@contextmanager
def ways(folder: Path) -> Iterator[tuple[list[Way], psutil.Process]]:
    """Start everything; gives the ways to ask, and the provider."""
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path=SYSTEM_FOLDERS)
    if haproxy is None:
        sys.exit("scripts/bench_instances: haproxy is not installed.")
    provider_port, *ports = free_ports(1 + 2 * len(COUNTS))
    own, fronts = ports[: len(COUNTS)], ports[len(COUNTS) :]
    with ExitStack() as stack:

        def start(name: str, *command: str, port: int, path: str, instance: int = 0) -> psutil.Process:
            log = folder / f"{name}.log"
            process = stack.enter_context(running(command, log, {"INSTANCE": str(instance)}))
            until_it_answers(process, port, log, path)
            return psutil.Process(process.pid)

        program = (sys.executable, str(ROOT / "scripts" / "bench_provider.py"), str(provider_port))
        provider = start("provider", *program, port=provider_port, path="/v1/models")
        config = folder / "config.yaml"
        config.write_text(json.dumps(tree(folder, provider_port)))
        gateways = []
        for number, port in enumerate(own, 1):
            command = (sys.executable, str(ROOT / "gateway.py"), "-c", str(config), "--port", str(port))
            gateways.append(start(f"gw{number}", *command, port=port, path="/readyz", instance=number))
        found = [Way("1, without HAProxy", 1, own[0], gateways, ())]
        for count, port in zip(COUNTS, fronts, strict=True):
            file = folder / f"haproxy-{count}.cfg"
            file.write_text(in_front_of(own[:count], folder, port))
            balancer = start(file.stem, haproxy, "-db", "-f", str(file), port=port, path="/readyz")
            found.append(Way(str(count), count, port, gateways, [balancer]))
        yield found, provider


def tree(folder: Path, provider_port: int) -> dict[str, object]:
    """The config of all gateways."""
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS]
    return {
        "server": {"trusted_proxies": ["127.0.0.1"]},
        "cluster": {"name": "gw${INSTANCE}", "instances": len(COUNTS)},
        "users": {f"user{number}": {"keys": [f"sha256:{digest}"]} for number, digest in enumerate(digests)},
        "providers": {"fake": {"url": f"http://127.0.0.1:{provider_port}/v1"}},
        "log": {"requests": str(folder / "requests-${INSTANCE}.jsonl")},
    }


def in_front_of(gateways: Sequence[int], folder: Path, port: int) -> str:
    """contrib/haproxy.cfg for these gateways, without TLS."""
    changes = {
        AS_ROOT: "",
        "bind :443 ssl crt /etc/haproxy/llm.example.org.pem alpn h2,http/1.1": f"bind 127.0.0.1:{port}",
        "/run/haproxy/admin.sock": str(folder / f"admin-{port}.sock"),
    }
    head = replaced((CONTRIB / "haproxy.cfg").read_text(), changes).partition("    server gw1 ")[0]
    return head + "".join(f"    server gw{at} 127.0.0.1:{one}\n" for at, one in enumerate(gateways, 1))


# --- The measuring --------------------------------------------------------------------------------


async def put(load: Load, port: int) -> int:
    """Have each user ask again and again; gives how many answers there were."""
    loop, tally = asyncio.get_running_loop(), Tally(load)
    request, until = load.request(), time.perf_counter() + load.lasts_s
    clients = [Client(request.replace(KEY.encode(), key.encode()), until, tally) for key in KEYS]
    try:
        async with asyncio.timeout(LIMIT_S):
            for client in clients:
                await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            await asyncio.gather(*(client.finished for client in clients))
    finally:
        await asyncio.gather(*(client.finished for client in clients), return_exceptions=True)
    return len(tally.waits_s)


def measure(load: Load, way: Way, provider: psutil.Process) -> Result:
    groups = (way.gateways, way.balancer, (provider, psutil.Process()))
    with no_garbage_collection():
        before, began = [sum(map(cpu_s, group)) for group in groups], time.perf_counter()
        requests = uvloop.run(put(load, way.port))
        lasted_s = time.perf_counter() - began
        spent = [sum(map(cpu_s, group)) - spent_s for group, spent_s in zip(groups, before, strict=True)]
    return Result(requests, lasted_s, *spent)


def row(way: Way, result: Result, one: Result) -> str:
    spent = (result.gateways_s, result.balancer_s, result.others_s)
    cells = (
        f"{result.per_second:,.0f}",
        f"{result.per_second / one.per_second:.2f}",
        *(f"{result.us(spent_s):,.0f}" for spent_s in spent),
        f"{result.used:.0%}",
        f"{result.at_most(way.count):,.0f}",
        f"{result.at_most(way.count) / one.at_most(1):.2f}",
    )
    return f"| {way.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what several gateways behind HAProxy carry.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the best of (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="how long each load is, of 3 s (default: 1)")
    arguments = parser.parse_args()
    end_like_ctrl_c()
    load_before = os.getloadavg()[0]
    load = Load(LOAD.key, LOAD.connections, LOAD.lasts_s * arguments.scale)
    with tempfile.TemporaryDirectory() as name, ways(Path(name)) as (found, provider):
        results: dict[str, list[Result]] = {way.name: [] for way in found}
        for _ in range(arguments.rounds):
            for way in found:
                results[way.name].append(measure(load, way, provider))
    best = {name: max(runs, key=lambda run: run.per_second) for name, runs in results.items()}
    print(HEADING)
    for way in found:
        print(row(way, best[way.name], best["1"]))
    print(f"\n{load.name}; {CPUS} CPUs, load before: {load_before:.1f}; best of {arguments.rounds} rounds.")


if __name__ == "__main__":
    main()
