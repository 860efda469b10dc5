"""The load of scripts/bench and scripts/profile: requests and streams, sent and checked.

An answer counts only whole: status 200, the length it promised, or for a stream every chunk and [DONE].
Anything else fails the load. Of streams, CPU and gaps are told of the time when all run at once: what a chunk
costs, without the start and the end of a request. Where they never do, as what is measured is too slow, they
are told of the whole load.
"""

import asyncio
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, cast

import uvloop

KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"
LOAD_LIMIT_S: Final = 20
LATE_TIMES: Final = 3  # what is planned to take longer than that limit may take so many times as long
STAGGER_S: Final = 0.001  # between the starts of streams: people do not press Enter all at once
LAST_BYTES: Final = 64
QUOTED_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Load:
    """Requests: `connections` at once, each one after another for `lasts_s`. Streams: one on each."""

    key: str
    connections: int
    lasts_s: float = 0.0
    body_bytes: int = 1024
    chunks: int = 0
    gap_ms: int = 0

    @property
    def name(self) -> str:
        if self.chunks:
            return f"{self.connections:,} streams, a chunk every {self.gap_ms} ms"
        many = "one at a time" if self.connections == 1 else f"{self.connections} at once"
        return f"{self.body_bytes // 1024} KB, {many}"

    @property
    def limit_s(self) -> float:
        """How long it may take in all."""
        planned_s = self.connections * STAGGER_S + self.chunks * self.gap_ms / 1000
        return max(LOAD_LIMIT_S, LATE_TIMES * planned_s)

    def scaled(self, factor: float) -> "Load":
        """Give the same with less of everything; streams keep their pace."""
        return replace(
            self,
            connections=max(1, round(self.connections * factor)),
            lasts_s=self.lasts_s * factor,
            chunks=max(3, round(self.chunks * factor)) if self.chunks else 0,
        )

    def request(self) -> bytes:
        fields: dict[str, object] = {"model": "m"}
        if self.chunks:
            fields |= {"stream": True, "max_tokens": self.chunks, "seed": self.gap_ms}
        empty = json.dumps(fields | {"messages": [{"role": "user", "content": ""}]})
        content = empty.replace('""', f'"{"x" * (self.body_bytes - len(empty))}"')
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return (head + content).encode()


@dataclass(frozen=True, slots=True)
class Measure:
    """What one load did. `units` are the requests, or chunks, that `cpu_s` was spent on.

    `waits_s` are to the end of an answer, of a stream to its first chunk.
    """

    cpu_s: float
    units: int
    waits_s: list[float]
    gaps_s: list[float]


class LoadFailed(Exception):
    """An answer was not what was asked for, or came too late; the text says how."""


class Tally:
    """What all clients of one load have seen so far."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.waits_s: list[float] = []
        self.gaps_s: list[float] = []
        self.chunks = 0
        self.all_run = asyncio.Event()
        self.first_ended = asyncio.Event()

    def waited(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        if len(self.waits_s) == self.load.connections:
            self.all_run.set()

    def ended(self) -> None:
        self.first_ended.set()
        self.all_run.set()  # nobody has to wait for it any more


class Client(asyncio.Protocol):
    """Sends a request; again until `until`, if it is of no stream. Knows HTTP just enough to see the end."""

    def __init__(self, request: bytes, until: float, tally: Tally) -> None:
        self.request = request
        self.until = until
        self.tally = tally
        self.load = tally.load
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        self.head = b""
        self.expected_bytes: int | None = None  # of head and body; None while unknown, or when chunked
        self.seen_bytes = 0
        self.tail = b""
        self.chunks = 0
        self.in_head = True
        self.sent_at = self.heard_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.seen_bytes += len(data)
        if self.load.chunks:
            self.count(data)
        self.tail = (self.tail + data)[-LAST_BYTES:]
        if self.in_head and not self.begins(data):
            return
        if self.expected_bytes is None:
            whole = self.tail.endswith(b"0\r\n\r\n")
        else:
            whole = self.seen_bytes == self.expected_bytes
        if whole:
            self.ends()

    def count(self, data: bytes) -> None:
        """Count the events that end here, and how long none came before."""
        events = (self.tail[-1:] + data).count(b"\n\n")
        if not events:
            return
        now = time.perf_counter()
        if self.chunks:
            self.tally.gaps_s.append(now - self.heard_at)
        else:
            self.tally.waited(now - self.sent_at)
        self.heard_at = now
        self.chunks += events
        self.tally.chunks += events

    def begins(self, data: bytes) -> bool:
        """Take in the head; true once the first byte of the body is here too."""
        self.head += data
        head, blank, body = self.head.partition(b"\r\n\r\n")
        if not blank:
            return False
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or (length and int(length[1]) == 0):
            said = " ".join(self.head.decode(errors="replace").split())
            self.fail(f"it answered {said[:QUOTED_CHARACTERS]}")
            return False
        self.in_head = not body
        self.expected_bytes = len(head) + 4 + int(length[1]) if length else None
        return not self.in_head

    def ends(self) -> None:
        now = time.perf_counter()
        if self.load.chunks:
            self.ends_stream()
            return
        self.tally.waited(now - self.sent_at)
        if now < self.until:
            self.send()
        else:
            self.finish()

    def ends_stream(self) -> None:
        if b"data: [DONE]" not in self.tail:
            self.fail("a stream ended without [DONE]")
        elif self.chunks <= self.load.chunks:
            self.fail(f"a stream ended after {self.chunks} events; {self.load.chunks} chunks were to come")
        else:
            self.finish()

    def finish(self) -> None:
        self.tally.ended()
        if not self.finished.done():
            self.finished.set_result(None)
        self.transport.close()

    def fail(self, reason: str) -> None:
        self.tally.ended()
        if not self.finished.done():
            self.finished.set_exception(LoadFailed(reason))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection was closed: {exc}")


async def connect(load: Load, port: int, tally: Tally, clients: list[Client]) -> None:
    """Start the load, one connection after another."""
    loop = asyncio.get_running_loop()
    request, until = load.request(), time.perf_counter() + load.lasts_s
    for _ in range(load.connections):
        client = Client(request, until, tally)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
        clients.append(client)
        if load.chunks:
            await asyncio.sleep(STAGGER_S)


@dataclass(frozen=True, slots=True)
class Probe:
    """How to look at what is measured: its CPU time so far, and what to enter while it counts."""

    cpu_s: Callable[[], float]
    counting: AbstractContextManager[object] = field(default_factory=nullcontext)


async def put_requests(load: Load, port: int, probe: Probe, clients: list[Client]) -> Measure:
    tally = Tally(load)
    with probe.counting:
        before_s = probe.cpu_s()
        await connect(load, port, tally, clients)
        await asyncio.gather(*(client.finished for client in clients))
        return Measure(probe.cpu_s() - before_s, len(tally.waits_s), tally.waits_s, [])


async def put_streams(load: Load, port: int, probe: Probe, clients: list[Client]) -> Measure:
    tally, start_s = Tally(load), probe.cpu_s()
    await connect(load, port, tally, clients)
    await tally.all_run.wait()
    with probe.counting:
        before_s, chunks, gaps = probe.cpu_s(), tally.chunks, len(tally.gaps_s)
        await tally.first_ended.wait()
        cpu_s, counted, gaps_s = probe.cpu_s() - before_s, tally.chunks - chunks, tally.gaps_s[gaps:]
    await asyncio.gather(*(client.finished for client in clients))
    if counted:
        return Measure(cpu_s, counted, tally.waits_s, gaps_s)
    return Measure(probe.cpu_s() - start_s, tally.chunks, tally.waits_s, tally.gaps_s)


async def put_limited(load: Load, port: int, probe: Probe) -> Measure:
    clients: list[Client] = []
    try:
        async with asyncio.timeout(load.limit_s):
            return await (put_streams if load.chunks else put_requests)(load, port, probe, clients)
    except TimeoutError:
        raise LoadFailed(f"not done within {load.limit_s:.0f} s") from None
    except OSError as exc:
        raise LoadFailed(str(exc)) from None
    finally:
        for client in clients:
            client.transport.abort()
        await asyncio.gather(*(client.finished for client in clients), return_exceptions=True)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A pause of the load would count as one of what it measures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def put(load: Load, port: int, probe: Probe) -> Measure:
    """Put the load on `port` and wait until all is answered. Raises LoadFailed."""
    with no_garbage_collection():
        return uvloop.run(put_limited(load, port, probe))
