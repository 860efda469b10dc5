"""Measure what a large body costs everybody else: how long the event loop is busy with it at a stretch.

A gateway runs in this process, its client and its provider in another one. A callback that comes round with
each turn of the loop takes the time: of the processor, in this thread, so that nothing else on the machine
counts. The longest turn while a body comes, is looked at and is sent, is what other streams may have to wait.
How much the process has grown by is told as well, against what it was before the first body.
"""

import argparse
import asyncio
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import uvloop
from bench_bodies_cases import ANSWERS, AUDIO, CASES, JSON, LISTED, MB, SMALL

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from llmgateway.service.serve import GC_THRESHOLDS

KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyz"
PEERS: Final = "--peers"


# --- The other process ----------------------------------------------------------------------------


def received(conn: socket.socket) -> bytes:
    """Read one request, whole, and give what it begins with; nothing if there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = conn.recv(65_536)
        if not more:
            return b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(fields.get(b"content-length", b"0")) - len(rest)
    while left > 0:
        more = conn.recv(min(left, 1 << 20))
        left -= len(more)
        data = data if len(data) > 4096 else data + more
    return data[:4096]


def answer_to(request: bytes) -> tuple[bytes, bytes]:
    """Give the lines of an answer's head, without its length, and the answer."""
    if request.startswith(b"GET"):
        models = [b'{"id":"%b","object":"model"}' % name.encode() for name in ("m", *ANSWERS)]
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", LISTED % b",".join(models)
    model = request.partition(b'"model":"')[2].partition(b'"')[0].decode()
    kind, make = ANSWERS.get(model, (JSON, lambda: SMALL))
    status = b"400 Bad Request" if "refusal" in model else b"200 OK"
    coding = b"Content-Encoding: gzip\r\n" if "gzip" in model else b""
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%b" % (status, kind, coding), make()


def provide(listener: socket.socket) -> None:
    """Be a provider, until the listener is closed."""
    while True:
        conn, _ = listener.accept()
        if os.fork() == 0:
            while request := received(conn):
                head, body = answer_to(request)
                length = b"Content-Length: %d" % len(body)
                framing = b"Transfer-Encoding: chunked" if body.endswith(b"\n0\r\n\r\n") else length
                conn.sendall(head + framing + b"\r\n\r\n")
                conn.sendall(body)
            os._exit(0)
        conn.close()


def send(port: int, name: str) -> None:
    """Send one body, and wait for the end of its answer."""
    case = CASES[name]
    body = case.body()
    kind = "multipart/form-data; boundary=XX" if case.path == AUDIO else "application/json"
    lines = [f"POST /v1/{case.path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"Content-Encoding: {case.packing}"] * bool(case.packing) + ["", ""]
    with closing(socket.create_connection(("127.0.0.1", port))) as conn:
        print("ready", flush=True)
        sys.stdin.readline()
        conn.sendall("\r\n".join(lines).encode() + body)
        answer = conn.recv(65_536)
        while conn.recv(65_536):
            pass
        print(answer.split(b" ")[1].decode(), flush=True)


# --- This process ---------------------------------------------------------------------------------


class Turns:
    """The longest turn of the loop, by the time that this thread has had of the processor."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._last = time.thread_time()
        self._handle = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        now = time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> float:
        self._handle.cancel()
        return self.longest_s


def memory(what: str) -> int:
    """Bytes of memory of this process: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{what}:")[2].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def measure(gateway: Gateway, name: str, before: int) -> str:
    peer = await asyncio.create_subprocess_exec(
        sys.executable, __file__, PEERS, str(gateway.port), name, stdin=-1, stdout=-1
    )
    assert peer.stdin is not None and peer.stdout is not None
    await peer.stdout.readline()
    forget_peak()
    turns, began = Turns(), time.monotonic()
    peer.stdin.write(b"\n")
    status = (await peer.stdout.readline()).decode().strip()
    took_s, longest_s = time.monotonic() - began, turns.stop()
    await peer.wait()
    grown_mb = (memory("VmHWM") - before) / MB
    return f"{name:32} {status:>6} {longest_s * 1e3:12.1f} {took_s:10.2f} {grown_mb:10.0f}"


async def run(names: list[str], port: int) -> None:
    config = {
        "server": {"port": 0, "spool": tempfile.gettempdir()},
        "log": {"requests": "none"},
        "users": {"bench": {"keys": [KEY]}},
        "providers": {"one": {"url": f"http://127.0.0.1:{port}/v1"}},
        "aliases": {"alias": "m"},
    }
    async with Gateway(build(config)) as gateway:
        await gateway.ready.wait()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        before = memory("VmRSS")
        print(f"{'':32} {'status':>6} {'longest ms':>12} {'seconds':>10} {'MB more':>10}")
        for name in names:
            print(await measure(gateway, name, before), flush=True)


def main() -> None:
    if sys.argv[1:2] == [PEERS]:
        if len(sys.argv) == 3:
            provide(socket.socket(fileno=int(sys.argv[2])))
        send(int(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description="Measure what large bodies cost everybody else.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(CASES)}")
    names = parser.parse_args().names or [*CASES]
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port, file = listener.getsockname()[1], listener.fileno()
        provider = subprocess.Popen([sys.executable, __file__, PEERS, str(file)], pass_fds=(file,))
    try:
        uvloop.run(run(names, port))
    finally:
        provider.terminate()
        provider.wait()


if __name__ == "__main__":
    main()
