"""Offer a gateway three times what it can carry, and print what became of that.

First some clients ask again as soon as they have their answer: what they get is what the gateway carries.
Then requests come at three times that rate, whatever becomes of those before them. Both happen on connections
that are kept, on a new one for each request, and on new ones from afar, on which nothing comes at first.
Meanwhile somebody else asks for the gateway's own pages ten times a second, on a new connection each
time, from as far. At the end the time is taken until answers are prompt again.

The gateway has a CPU to itself; the fake provider and all who ask share the others.
"""

import argparse
import math
import re
import select
import socket
import tempfile
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench_load import KEY, Load
from bench_process import divide_cpus, end_like_ctrl_c, on, raise_open_files, started
from bench_targets import DIRECT, GATEWAY

TIMES: Final = 3
AT_ONCE: Final = 64
CARRIED_FOR_S: Final = 5.0
MOST_CONNECTIONS: Final = 6_000
LAST_ANSWERS_S: Final = 30.0
TICK_S: Final = 0.002
FAR_S: Final = 0.02
"""How long it takes a connection from afar until something comes on it."""
LOOK_EVERY_S: Final = 0.1
LOOK_LIMIT_S: Final = 30.0
PROMPT_S: Final = 0.1
PROMPT_IN_A_ROW: Final = 20
CHAT: Final = Load("", 1).request()
_PAGE: Final = b"%b HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n%b\r\n%b"
_SIGN_IN: Final = b'{"key": "%b"}' % KEY.encode()
_OF_IT: Final = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(_SIGN_IN)
PAGES: Final = {
    "`/healthz`": _PAGE % (b"GET /healthz", b"", b""),
    "`/metrics`": _PAGE % (b"GET /metrics", b"", b""),
    "sign-in": _PAGE % (b"POST /gateway/session", _OF_IT, _SIGN_IN),
}
_LENGTH: Final = re.compile(rb"(?i)\ncontent-length: *(\d+)")
_RETRY: Final = re.compile(rb"(?i)\nretry-after: *\d")
_LAG: Final = re.compile(rb"(?m)^gateway_loop_lag_seconds (\S+)$")


class Client:
    """A connection that asks one thing at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", port))
        self.asked_at = 0.0
        self.unfinished = False
        self.is_far = False

    def ask(self) -> None:
        self.asked_at, self.received, self.unsent = time.perf_counter(), b"", CHAT

    def write(self) -> bool:
        """Send what the system takes; tells whether that was all."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:  # it is not connected yet
            return False
        return not self.unsent

    def read(self) -> str:
        """Take in what is there; tells how the request has ended, if it has."""
        try:
            data = self.socket.recv(65_536)
        except BlockingIOError:
            return ""
        except OSError:
            data = b""
        self.received += data
        return ending_of(self.received) if data else "closed"


def ending_of(received: bytes) -> str:
    """Tell what an answer says; nothing if it is not whole."""
    head, blank, body = received.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not blank or length is None or len(body) < int(length[1]):
        return ""
    status = head[9:12].decode()
    return "shed" if status == "503" and _RETRY.search(head) else status


@dataclass
class Tally:
    """What became of requests: how long they took, by how they ended."""

    lasted_s: float = 0.0
    asked: int = 0
    times_s: dict[str, list[float]] = field(default_factory=lambda: {"200": [], "shed": []})

    def count(self, ending: str) -> int:
        return len(self.times_s[ending])

    def others(self) -> str:
        """Say what became of those that were neither answered nor shed."""
        told = {ending: len(times_s) for ending, times_s in self.times_s.items()}
        told["never ended"] = self.asked - sum(told.values())
        del told["200"], told["shed"]
        return ", ".join(f"{count:,} {ending}" for ending, count in told.items() if count) or "0"

    def slowest_ms(self, ending: str) -> str:
        times_s = self.times_s[ending]
        return f"{max(times_s) * 1000:.0f} ms" if times_s else "-"


class Flood:
    """Clients that ask at a rate, whatever becomes of it; without one, some that ask again when answered."""

    def __init__(self, port: int, *, keep: bool, rate: float = 0.0, far_s: float = 0.0) -> None:
        self.port = port
        self.keep = keep
        self.rate = rate
        self.far_s = far_s
        self._from_afar: deque[Client] = deque()
        self.tally = Tally()
        self._poll = select.epoll()
        self._waiting: dict[int, Client] = {}
        self._idle: list[Client] = []

    def last(self, seconds: float) -> Tally:
        """Ask for so long, and wait for the last answers."""
        began = now = time.perf_counter()
        due = 0
        while now < began + seconds:
            before, due = due, int((now - began) * self.rate)
            for _ in range(due - before if self.rate else AT_ONCE - len(self._waiting)):
                self._ask()
            self._hear()
            now = time.perf_counter()
        self.tally.lasted_s = now - began
        while self._waiting and time.perf_counter() < now + LAST_ANSWERS_S:
            self._hear()
        for client in (*self._waiting.values(), *self._idle):
            client.socket.close()
        return self.tally

    def _ask(self) -> None:
        if self._idle:
            client = self._idle.pop()
        elif len(self._waiting) < MOST_CONNECTIONS:
            client = Client(self.port)
            self._poll.register(client.socket, select.EPOLLIN)
            client.is_far = self.far_s > 0.0
        else:
            return
        self.tally.asked += 1
        self._waiting[client.socket.fileno()] = client
        client.ask()
        if client.is_far:
            self._from_afar.append(client)
        else:
            self._write(client)

    def _write(self, client: Client) -> None:
        try:
            whole = client.write()
        except OSError:  # it was closed in the meantime
            self._end(client, "closed")
        else:
            if not whole or client.unfinished:
                client.unfinished = not whole
                self._poll.modify(
                    client.socket, select.EPOLLIN if whole else select.EPOLLIN | select.EPOLLOUT
                )

    def _send_from_afar(self) -> None:
        while self._from_afar and time.perf_counter() >= self._from_afar[0].asked_at + self.far_s:
            client = self._from_afar.popleft()
            client.is_far = False
            if client.socket.fileno() in self._waiting:  # it was not closed in the meantime
                self._write(client)

    def _hear(self) -> None:
        self._send_from_afar()
        for number, event in self._poll.poll(TICK_S):
            client = self._waiting.get(number)
            if client is None:
                self._drop_idle(number)
                continue
            if event & select.EPOLLOUT:
                self._write(client)
            if event & ~select.EPOLLOUT and number in self._waiting and (ending := client.read()):
                self._end(client, ending)

    def _end(self, client: Client, ending: str) -> None:
        self.tally.times_s.setdefault(ending, []).append(time.perf_counter() - client.asked_at)
        del self._waiting[client.socket.fileno()]
        if self.keep and ending != "closed" and b"\r\nConnection: close\r\n" not in client.received:
            self._idle.append(client)
        else:
            client.socket.close()

    def _drop_idle(self, number: int) -> None:
        client = next(each for each in self._idle if each.socket.fileno() == number)
        self._idle.remove(client)
        client.socket.close()


# --- those who look, in a process of their own -------------------------------------------------------


@dataclass
class Looks:
    """How long each page took, and the most that the gateway was late."""

    times_s: dict[str, list[float]]
    lag_s: float = 0.0

    def slow_ms(self, name: str) -> tuple[float, float]:
        """Tell what 95 % are faster than, and the slowest."""
        times_s = sorted(self.times_s[name])
        return times_s[int(len(times_s) * 0.95)] * 1000, times_s[-1] * 1000


def look(port: int, seconds: float, far_s: float) -> Looks:
    """Ask for the pages, again and again."""
    looks = Looks({name: [] for name in PAGES})
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        for name, message in PAGES.items():
            took_s, answer = fetch(port, message, far_s)
            looks.times_s[name].append(took_s)
            if found := _LAG.search(answer):
                looks.lag_s = max(looks.lag_s, float(found[1]))
        time.sleep(max(0.0, began + LOOK_EVERY_S - time.perf_counter()))
    return looks


def fetch(port: int, message: bytes, far_s: float) -> tuple[float, bytes]:
    """Ask on a new connection; it took for ever if there is no good answer. To be far away does not count."""
    began = time.perf_counter()
    answer = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), LOOK_LIMIT_S) as one:
        time.sleep(far_s)
        one.sendall(message)
        while piece := one.recv(262_144):
            answer += piece
    took_s = time.perf_counter() - began - far_s
    return (took_s if answer.startswith(b"HTTP/1.1 20") else math.inf), answer


def prompt_after_s(port: int) -> float:
    """Ask at a small rate until answers are prompt; tells after how many seconds they were."""
    began = time.perf_counter()
    since, in_a_row = began, 0
    while in_a_row < PROMPT_IN_A_ROW:
        tally = Flood(port, keep=False, rate=1 / PROMPT_S).last(PROMPT_S * 1.5)
        in_a_row += 1
        if tally.count("200") != tally.asked or max(tally.times_s["200"], default=math.inf) > PROMPT_S:
            since, in_a_row = time.perf_counter(), 0
    return since - began


# --- the table ---------------------------------------------------------------------------------------


def row(
    port: int, pool: ProcessPoolExecutor, name: str, *, keep: bool, far_s: float, seconds: float
) -> list[str]:
    """Flood a gateway; gives its row of the table."""
    before = Flood(port, keep=keep).last(CARRIED_FOR_S)
    carried = before.count("200") / before.lasted_s
    looking = pool.submit(look, port, seconds, far_s)
    tally = Flood(port, keep=keep, rate=carried * TIMES, far_s=far_s).last(seconds)
    prompt_s = prompt_after_s(port)
    looks = looking.result()
    return [
        name,
        f"{carried:,.0f}",
        f"{tally.asked / tally.lasted_s:,.0f}",
        f"{tally.count('200') / tally.lasted_s:,.0f}, {tally.slowest_ms('200')}",
        f"{tally.count('shed') / tally.lasted_s:,.0f}, {tally.slowest_ms('shed')}",
        tally.others(),
        *(f"{ms:.0f}, {most_ms:.0f} ms" for ms, most_ms in map(looks.slow_ms, PAGES)),
        f"{looks.lag_s * 1000:.0f} ms",
        f"{prompt_s:.1f} s",
    ]


ROWS: Final = (
    ("kept", True, 0.0),
    ("a new one each", False, 0.0),
    ("a new one each, from afar", False, FAR_S),
)
HEAD: Final = (
    "connections",
    "carried a second",
    "offered",
    "answered, slowest",
    "told 503 with `Retry-After`, slowest",
    "anything else",
    *(f"{name}: 95 %, slowest" for name in PAGES),
    "most lag",
    "prompt again after",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Offer a gateway three times what it can carry.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each flood lasts")
    arguments = parser.parse_args()
    end_like_ctrl_c()
    raise_open_files()
    cpus = divide_cpus()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        stack.enter_context(on(cpus.others))
        pool = stack.enter_context(ProcessPoolExecutor(1))
        pool.submit(time.sleep, 0).result()
        provider = stack.enter_context(started(DIRECT, folder, cpus))
        for name, keep, far_s in ROWS:
            with started(GATEWAY, folder, cpus, provider.port) as gateway:
                cells = row(gateway.port, pool, name, keep=keep, far_s=far_s, seconds=arguments.seconds)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
