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
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import uvloop

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from llmgateway.service.serve import GC_THRESHOLDS

KEY: Final = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyz"
PEERS: Final = "--peers"
MB: Final = 1_000_000
FORM: Final = b'--XX\r\nContent-Disposition: form-data; name="%b\r\n\r\n%b\r\n'


def chat(messages: bytes, more: bytes = b"") -> bytes:
    return b'{"model":"m","stream":false,"messages":[%b]%b}' % (messages, more)


def image(size: int) -> bytes:
    url = b"data:image/png;base64," + b"iVBORw0KGgo" * (size // 11)
    return b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"%b"}}]}' % url


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


MODEL: Final = FORM % (b'model"', b"m")
BODIES: Final[dict[str, Callable[[], bytes]]] = {
    "1 MB of text": lambda: chat(b'{"role":"user","content":"%b"}' % (b"so it goes " * (MB // 11))),
    "60 MB image": lambda: chat(image(60 * MB)),
    "95 MB image": lambda: chat(image(95 * MB)),
    "95 MB in 100 images": lambda: chat(b",".join([image(950_000)] * 100)),
    "200,000 messages": lambda: chat(b",".join([b'{"role":"user","content":"so it goes"}'] * 200_000)),
    "95 MB of escapes": lambda: chat(b'{"role":"user","content":"%b"}' % (b"\\n" * (95 * MB // 2))),
    "95 MB not ASCII": lambda: chat(b'{"role":"user","content":"%b"}' % ("é".encode() * (95 * MB // 2))),
    "20 MB of brackets": lambda: chat(b"1", b',"x":[%b1]' % (b"[[[]]]," * (20 * MB // 7))),
    "95 MB, role last": lambda: chat(b'{"content":"%b","role":"user"}' % (b"a" * 95 * MB)),
    "95 MB of gzip": lambda: zlib.compress(chat(image(95 * MB)), 1, zlib.MAX_WBITS | 16),
    "95 MB form, model first": lambda: form(MODEL, FORM % (b'file"; filename="a"', b"\x00\xff" * 47 * MB)),
    "95 MB form, model last": lambda: form(FORM % (b'file"; filename="a"', b"\x00\xff" * 47 * MB), MODEL),
}


# --- The other process ----------------------------------------------------------------------------


def received(conn: socket.socket) -> bool:
    """Read one request, whole; tells whether there was one."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = conn.recv(65_536)
        if not more:
            return False
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(fields.get(b"content-length", b"0")) - len(rest)
    while left > 0:
        left -= len(conn.recv(min(left, 1 << 20)))
    return True


def provide(listener: socket.socket) -> None:
    """Be a provider with one model, until the listener is closed."""
    listing = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
    while True:
        conn, _ = listener.accept()
        if os.fork() == 0:
            while received(conn):
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                conn.sendall(head % len(listing) + listing)
            os._exit(0)
        conn.close()


def send(port: int, name: str) -> None:
    """Send one body, and wait for its answer."""
    body = BODIES[name]()
    kind = "multipart/form-data; boundary=XX" if "form" in name else "application/json"
    path = "audio/transcriptions" if "form" in name else "chat/completions"
    lines = [f"POST /v1/{path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", f"Content-Type: {kind}"]
    lines += ["Content-Encoding: gzip"] * ("gzip" in name) + [f"Content-Length: {len(body)}", "", ""]
    with closing(socket.create_connection(("127.0.0.1", port))) as conn:
        print("ready", flush=True)
        sys.stdin.readline()
        conn.sendall("\r\n".join(lines).encode() + body)
        print(conn.recv(65_536).split(b" ")[1].decode(), flush=True)


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
    return f"{name:24} {status:>6} {longest_s * 1e3:12.1f} {took_s:10.2f} {grown_mb:10.0f}"


async def run(names: list[str], port: int) -> None:
    config = {
        "server": {"port": 0, "spool": tempfile.gettempdir()},
        "log": {"requests": "none"},
        "users": {"bench": {"keys": [KEY]}},
        "providers": {"one": {"url": f"http://127.0.0.1:{port}/v1"}},
    }
    async with Gateway(build(config)) as gateway:
        await gateway.ready.wait()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        before = memory("VmRSS")
        print(f"{'':24} {'status':>6} {'longest ms':>12} {'seconds':>10} {'MB more':>10}")
        for name in names:
            print(await measure(gateway, name, before), flush=True)


def main() -> None:
    if sys.argv[1:2] == [PEERS]:
        if len(sys.argv) == 3:
            provide(socket.socket(fileno=int(sys.argv[2])))
        send(int(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description="Measure what large bodies cost everybody else.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BODIES)}")
    names = parser.parse_args().names or [*BODIES]
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
