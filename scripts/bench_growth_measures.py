"""What scripts/bench_growth measures, each in a process of its own: `... NAME NUMBER...`.

The code that is measured is that of the checkout which PYTHONPATH names, so only what has long been there is
used of it: a gateway that is not started, its slots and its fleet; or one that is, and HTTP. Time is that of
the processor in the thread of the event loop, so that nothing else on the machine counts.
"""

import asyncio
import gc
import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from statistics import median
from threading import Thread as OsThread
from typing import Any, Final

import uvloop

from llmgateway.access.keys import Caller
from llmgateway.config.load import build
from llmgateway.fleet.provider import Probe, State
from llmgateway.servers.models import Model
from llmgateway.service.gateway import Gateway
from llmgateway.service.serve import GC_THRESHOLDS
from llmgateway.traffic.affinity import Thread

KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyz"
HEADERS: Final = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
CHAT: Final = "/v1/chat/completions"
WORDS: Final = "so it goes, and so it went on " * 7
BURST_LIMIT_S: Final = 10.0
AT_ONCE: Final = 50  # requests of a burst that come in one turn of the loop
SAMPLES: Final = 20  # of what grows with each sample, or shrinks
MANY_SAMPLES: Final = 200
MB: Final = 1_000_000

Figures = dict[str, float]


class Turns:
    """The longest turn of the loop since the last look."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last = time.thread_time()
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        now = time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> float:
        self._handle.cancel()
        return self.longest_s


def configured(providers: int, models: int, slots: int | None, url: str = "http://127.0.0.1:9/v1") -> Gateway:
    """A gateway that is not started, with so many providers, all online."""
    entry: dict[str, Any] = {"url": url} if slots is None else {"url": url, "slots": slots}
    config = {
        "server": {"host": "127.0.0.1", "port": 0, "spool": tempfile.gettempdir()},
        "log": {"requests": "none", "level": "error"},
        "queue": {"size": 1_000_000, "timeout": 3_000},
        "health": {"interval": 3_000},
        "users": {"bench": {"keys": [KEY]}},
        "providers": {f"p{number}": entry for number in range(providers)},
    }
    gateway = Gateway(build(config))
    go_online(gateway, models)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    return gateway


def go_online(gateway: Gateway, models: int) -> None:
    """Have all providers online: each with the model `m`, and a tenth of the others."""
    now = asyncio.get_running_loop().time()
    for at, provider in enumerate(gateway.fleet.providers.values()):
        names = "m", *(f"model-{number}" for number in range(1, models) if number % 10 == at % 10)
        listed = {name: Model(name) for name in names}
        for _ in range(provider.health.rise):
            provider.observe(Probe(State.ONLINE, "", listed), now=now)


async def us(what: Callable[[], Awaitable[None]], times: int) -> float:
    """Give the median of what something takes, in microseconds."""
    seen = []
    for _ in range(times):
        began = time.thread_time()
        await what()
        seen.append(time.thread_time() - began)
    return median(seen) * 1e6


# --- The line ---------------------------------------------------------------------------------------


class Crowd:
    """Requests of some users that wait for slots which others hold; each goes on with what a holder began."""

    def __init__(self, gateway: Gateway, users: int) -> None:
        self.slots = gateway.slots
        self.users = users
        self.providers = len(gateway.fleet.providers)
        self.numbers = count()
        self.held: list[Callable[[], None]] = []
        self.granted = 0
        self.tasks: list[asyncio.Task[None]] = []

    def comes(self) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.ask(next(self.numbers))))

    async def ask(self, number: int) -> None:
        begun, links = number % self.providers, (number,)
        thread = Thread(links if number < self.providers else (begun, number), None)
        order = self.slots.order(Caller(f"user-{number % self.users}"), "m", thread, 100.0, f"r{number}")
        lease = await self.slots.lease(order)

        def ends() -> None:
            lease.__exit__(None, None, None)
            self.slots.leave(order)

        self.granted += 1
        self.held.append(ends)

    async def one_comes(self) -> None:
        self.comes()
        await asyncio.sleep(0)

    async def one_is_granted(self) -> None:
        """Have the one who has had a slot for longest end, and wait until the next has got it."""
        before, ends = self.granted, self.held.pop(0)
        ends()
        while self.granted == before:
            await asyncio.sleep(0)

    async def burst(self, size: int) -> tuple[int, float]:
        """Let so many come; gives how many could within the limit, and what that took."""
        began, waiting = time.thread_time(), 0
        while waiting < size and time.thread_time() - began < BURST_LIMIT_S:
            for _ in range(min(AT_ONCE, size - waiting)):
                self.comes()
                waiting += 1
            await asyncio.sleep(0)
        return waiting, time.thread_time() - began


async def waiting(size: int, providers: int, users: int) -> Figures:
    crowd = Crowd(configured(providers, 1, slots=1), users)
    await crowd.burst(providers)
    while crowd.granted < providers:
        await asyncio.sleep(0)
    turns = Turns()
    stand, took_s = await crowd.burst(size)
    longest_s = turns.stop()
    grant_us = await us(crowd.one_is_granted, SAMPLES)
    arrival_us = await us(crowd.one_comes, SAMPLES)
    return {
        "stand": stand,
        "arrival_us": arrival_us,
        "grant_us": grant_us,
        "burst_s": took_s,
        "longest_ms": longest_s * 1e3,
    }


# --- The choice and the fair share ------------------------------------------------------------------


async def choosing(candidates: int, slots: int) -> Figures:
    """One request alone, from its order to its end. No slots means that nobody knows how many there are."""
    slots_of = configured(candidates, 1, slots or None).slots
    numbers, caller = count(), Caller("user")

    def order() -> Any:
        return slots_of.order(caller, "m", Thread((next(numbers),), None, True), 100.0, "r")

    for _ in range(candidates // 2):
        await slots_of.lease(order())  # so that some are busy

    async def request() -> None:
        wish = order()
        with await slots_of.lease(wish):
            pass
        slots_of.leave(wish)

    return {"choice_us": await us(request, MANY_SAMPLES)}


async def returning(users: int) -> Figures:
    slots = configured(1, 1, None).slots
    thread = Thread()
    for number in range(users):
        slots.order(Caller(f"user-{number}"), "m", thread, 100.0, "r")
    caller = Caller("one who returns")

    async def request() -> None:
        slots.leave(slots.order(caller, "m", thread, 100.0, "r"))

    return {"return_us": await us(request, MANY_SAMPLES)}


async def changed(models: int, providers: int) -> Figures:
    """The first choice after a provider has changed."""
    gateway = configured(providers, models, 4)
    slots, provider, numbers = gateway.slots, gateway.fleet.providers["p0"], count()
    seen = []
    for _ in range(MANY_SAMPLES):
        provider.warm("it is loading its model")
        provider.observe(Probe(State.ONLINE), now=asyncio.get_running_loop().time())
        wish = slots.order(Caller("user"), "m", Thread((next(numbers),), None, True), 100.0, "r")
        began = time.thread_time()
        with await slots.lease(wish):
            seen.append(time.thread_time() - began)
        slots.leave(wish)
    return {"changed_us": median(seen) * 1e6}


# --- Over a connection ------------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b'{"object":"list","data":[{"id":"m","object":"model"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b'{"object":"chat.completion","choices":[]}')

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.wfile.write(head + body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def providing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.daemon_threads = True
    OsThread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


Request = tuple[str, str, bytes | None]


def send(port: int, requests: list[Request]) -> None:
    """Send these one after another, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for method, path, body in requests:
        connection.request(method, path, body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {path} was answered {answer.status}")
    connection.close()


async def cost_us(gateway: Gateway, requests: list[Request]) -> float:
    """Give the mean of what a request takes, in microseconds."""
    began = time.thread_time()
    await asyncio.to_thread(send, gateway.port, requests)
    return (time.thread_time() - began) / len(requests) * 1e6


async def longest_ms(gateway: Gateway, requests: list[Request]) -> float:
    turns = Turns()
    await asyncio.to_thread(send, gateway.port, requests)
    return turns.stop() * 1e3


async def listing(models: int, providers: int) -> Figures:
    async with configured(providers, models, None) as gateway:
        await gateway.ready.wait()
        go_online(gateway, models)
        ask: Request = ("GET", "/v1/models", None)
        await cost_us(gateway, [ask] * 3)
        return {"listing_us": await cost_us(gateway, [ask] * SAMPLES)}


def turn(number: int, messages: int) -> Request:
    """A conversation of so many messages, of which the last is new each time."""
    said = [
        {"role": ("user", "assistant")[at % 2], "content": f"{at}: {WORDS}"} for at in range(messages - 1)
    ]
    last = {"role": "user", "content": f"And now, for the {number}th time? {WORDS}"}
    return "POST", CHAT, json.dumps({"model": "m", "messages": [*said, last]}).encode()


async def conversing(messages: int) -> Figures:
    """What a request costs by which a long conversation goes on."""
    with providing() as url:
        async with configured(1, 1, None, url) as gateway:
            await gateway.ready.wait()
            await cost_us(gateway, [turn(number, messages) for number in range(3)])
            turns = [turn(number, messages + 2 * number) for number in range(SAMPLES)]
            return {"turn_us": await cost_us(gateway, turns), "longest_ms": await longest_ms(gateway, turns)}


async def large(megabytes: int) -> Figures:
    with providing() as url:
        async with configured(1, 1, None, url) as gateway:
            await gateway.ready.wait()
            message = {"role": "user", "content": "so it goes " * (megabytes * MB // 11)}
            body = json.dumps({"model": "m", "messages": [message]}).encode()
            return {"longest_ms": await longest_ms(gateway, [("POST", CHAT, body)])}


MEASURES: Final[dict[str, Callable[..., Coroutine[Any, Any, Figures]]]] = {
    "waiting": waiting,
    "choosing": choosing,
    "returning": returning,
    "changed": changed,
    "listing": listing,
    "conversing": conversing,
    "large": large,
}


def main(name: str, *numbers: str) -> None:
    print(json.dumps(uvloop.run(MEASURES[name](*map(int, numbers)))), flush=True)
    os._exit(0)  # what waits need not be told that it waits for nothing


if __name__ == "__main__":
    main(*sys.argv[1:])
