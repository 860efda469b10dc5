"""Measure what the gateway costs: CPU per request and per chunk, added latency, memory, cold start.

Three processes: a fake provider (bench_provider.py), the gateway as it really starts, and this one, which
makes the load and measures. Every load runs straight to the provider too; there the CPU is the provider's.
Rounds are interleaved and medians shown, so that a noisy moment of the machine hits both paths alike.
"""

import argparse
import asyncio
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
PROVIDER: Final = [sys.executable, str(ROOT / "scripts" / "bench_provider.py")]
KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"
CHUNKS: Final = 100
STAGGER_S: Final = 0.002  # between the starts of streams: people do not press Enter all at once
LOAD_LIMIT_S: Final = 120
START_LIMIT_S: Final = 20


@dataclass(frozen=True, slots=True)
class Load:
    """`connections` at once; each sends `requests` one after another. Streams get a chunk every `every_s`."""

    name: str
    connections: int
    requests: int
    every_s: float | None = None

    @property
    def chunks(self) -> int:
        return 0 if self.every_s is None else self.connections * self.requests * CHUNKS


# 500 streams come slower: at 10 ms they are 50,000 chunks a second, more than this provider can make.
LOADS: Final = (
    Load("1 KB requests, one at a time", 1, 1000),
    Load("1 KB requests, 32 at once", 32, 300),
    Load("50 streams, a chunk every 10 ms", 50, 1, 0.010),
    Load("500 streams, a chunk every 50 ms", 500, 1, 0.050),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """What one load did on one path. Latency is to the whole answer, for streams to the first chunk."""

    cpu_s: float
    took_s: float
    waits_s: list[float]
    rss_bytes: int


# --- The load ---------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """Sends one request `left` times over; knows of HTTP just enough to see an answer's end."""

    def __init__(self, request: bytes, left: int, waits_s: list[float]) -> None:
        self.request = request
        self.left = left
        self.waits_s = waits_s
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.left -= 1
        self.head = b""
        self.expected: int | None = None  # bytes of head and body; None while unknown, or when chunked
        self.seen = 0
        self.tail = b""
        self.waiting = True
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.seen += len(data)
        self.tail = (self.tail + data)[-64:]
        if self.waiting and not self.begins(data):
            return
        if self.seen == self.expected or (self.expected is None and self.tail.endswith(b"0\r\n\r\n")):
            self.ends()

    def begins(self, data: bytes) -> bool:
        """Take in the head; true once the first byte of the body is here too."""
        self.head += data
        head, blank, body = self.head.partition(b"\r\n\r\n")
        if not blank or not body:
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            self.fail(self.head.decode(errors="replace"))
            return False
        self.waits_s.append(time.perf_counter() - self.sent_at)
        self.waiting = False
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        self.expected = len(head) + 4 + int(length[1]) if length else None
        return True

    def ends(self) -> None:
        if self.expected is None and b"data: [DONE]\n\n" not in self.tail:
            self.fail("a stream ended without [DONE]")
        elif self.left:
            self.send()
        elif not self.finished.done():
            self.finished.set_result(None)
            self.transport.close()

    def fail(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(RuntimeError(f"the load failed: {reason}"))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost: {exc}")


def request_for(load: Load) -> bytes:
    body: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "x" * 950}]}
    if load.every_s is not None:
        body |= {"stream": True, "chunks": CHUNKS, "every_s": load.every_s}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def run_load(load: Load, port: int, process: psutil.Process) -> Measure:
    """Put the load on `port` and return what it cost `process`."""
    loop = asyncio.get_running_loop()
    request = request_for(load)
    waits_s: list[float] = []
    cpu_before, began = cpu_s(process.pid), time.perf_counter()
    async with asyncio.timeout(LOAD_LIMIT_S):
        clients = [Client(request, load.requests, waits_s) for _ in range(load.connections)]
        for client in clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            await asyncio.sleep(STAGGER_S if load.chunks else 0)
        rss_bytes = process.memory_info().rss
        for client in clients:
            await client.finished
            rss_bytes = max(rss_bytes, process.memory_info().rss)
    return Measure(cpu_s(process.pid) - cpu_before, time.perf_counter() - began, waits_s, rss_bytes)


# --- The processes ----------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of a process: to the nanosecond from Linux' scheduler, elsewhere as good as psutil has it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Start a program that logs `listening on http://127.0.0.1:PORT`; stop it afterwards."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield psutil.Process(process.pid), port_in(log, process)
        finally:
            process.terminate()
            try:
                process.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def port_in(log: Path, process: subprocess.Popen[bytes]) -> int:
    limit = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        found = re.search(rb"listening on http://127\.0\.0\.1:(\d+)", log.read_bytes())
        if found:
            return int(found[1])
        time.sleep(0.002)
    raise SystemExit(f"{' '.join(process.args)} did not start:\n{log.read_text()}")  # type: ignore[arg-type]


async def answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    return b" 200 " in status


async def until_it_answers(port: int, path: str) -> None:
    async with asyncio.timeout(START_LIMIT_S):
        while not await answers(port, path):
            await asyncio.sleep(0.002)


def gateway_command(directory: Path, provider_port: int) -> list[str]:
    config = directory / "config.yaml"
    config.write_text(
        f"users: {{bench: {{keys: ['sha256:{hashlib.sha256(KEY.encode()).hexdigest()}']}}}}\n"
        f"providers: {{fake: {{url: 'http://127.0.0.1:{provider_port}/v1'}}}}\n"
    )
    return [sys.executable, str(ROOT / "gateway.py"), "-c", str(config), "--host", "127.0.0.1", "--port", "0"]


# --- The measuring ----------------------------------------------------------------------------------


def cold_start_s(command: list[str], log: Path) -> float:
    began = time.perf_counter()
    with running(command, log) as (_, port):
        asyncio.run(until_it_answers(port, "/healthz"))
        return time.perf_counter() - began


def wait_ms(runs: list[Measure], percent: int) -> float:
    """The median over the rounds of a percentile of the waits."""
    return median(quantiles(run.waits_s, n=100, method="inclusive")[percent - 1] for run in runs) * 1e3


def row(load: Load, path: str, runs: list[Measure]) -> str:
    requests = load.connections * load.requests
    cpu_us = median(run.cpu_s for run in runs) * 1e6
    cells = (
        f"{cpu_us / requests:,.0f}",
        f"{cpu_us / load.chunks:,.1f}" if load.chunks else "",
        f"{(load.chunks or requests) / median(run.took_s for run in runs):,.0f}",
        f"{wait_ms(runs, 50):,.2f}",
        f"{wait_ms(runs, 99):,.2f}",
        f"{median(run.rss_bytes for run in runs) / 2**20:,.1f}",
    )
    return f"| {load.name} | {path} | {' | '.join(cells)} |"


def report(measures: dict[tuple[Load, str], list[Measure]], idle_bytes: int, starts_s: list[float]) -> None:
    print("| load | path | CPU us/request | CPU us/chunk | per second | p50 ms | p99 ms | peak RSS MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for (load, path), runs in measures.items():
        print(row(load, path, runs))
    print(
        "\nCPU and RSS are of the provider (direct) or the gateway. `per second` counts requests, or chunks."
    )
    print("p50 and p99 are to the first byte of the body; with 32 at once most of it is queueing.")
    print("There the gateway adds:\n")
    for load in LOADS:
        direct, through = measures[load, "direct"], measures[load, "gateway"]
        p50_ms, p99_ms = (wait_ms(through, percent) - wait_ms(direct, percent) for percent in (50, 99))
        print(f"- {load.name}: p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms")
    print(f"\nIdle RSS {idle_bytes / 2**20:.1f} MB; cold start to /healthz {median(starts_s):.2f} s.")


def measure(rounds: int) -> None:
    measures: dict[tuple[Load, str], list[Measure]] = {}
    with tempfile.TemporaryDirectory() as name, running(PROVIDER, Path(name, "provider.log")) as provider:
        command = gateway_command(Path(name), provider[1])
        starts_s = [cold_start_s(command, Path(name, "start.log")) for _ in range(rounds)]
        with running(command, Path(name, "gateway.log")) as gateway:
            asyncio.run(until_it_answers(gateway[1], "/readyz"))
            idle_bytes = gateway[0].memory_info().rss
            paths = (("direct", *provider), ("gateway", *gateway))
            for number, load, (path, process, port) in product(range(rounds + 1), LOADS, paths):
                measured = asyncio.run(run_load(load, port, process))
                if number:  # round 0 warms up
                    measures.setdefault((load, path), []).append(measured)
    report(measures, idle_bytes, starts_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the gateway costs.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default: 3)")
    measure(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
