"""The processes of scripts/bench and scripts/profile: started, waited for, watched, and always stopped.

Where there are two CPUs or more, what is measured has one to itself, and the load and the fake provider share
the rest. CPU time and memory are those of a process and all under it.
"""

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from bench_load import KEY, Probe
from bench_targets import DIRECT, OPEN_FILES, Target, fill

START_LIMIT_S: Final = 60
ANSWER_LIMIT_S: Final = 5
STOP_LIMIT_S: Final = 5
LOOK_EVERY_S: Final = 0.002
LAST_CHARACTERS: Final = 4000
CHAT: Final = "/v1/chat/completions"
FIRST_REQUEST: Final = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
HEADERS: Final = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


class DidNotStart(Exception):
    """A program ended, or did not answer in time; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Running:
    """A target that answers."""

    target: Target
    port: int
    process: psutil.Process
    started_in_s: float

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self.tree())

    def peak_rss_bytes(self) -> int:
        return sum(map(peak_rss_bytes, self.tree()))

    def probe(self, counting: AbstractContextManager[object] | None = None) -> Probe:
        """Give what a load looks at. Child processes are looked for now, not then, as that takes long."""
        tree = self.tree()
        return Probe(lambda: sum(map(cpu_s, tree)), counting or nullcontext())


# --- What a process has used ------------------------------------------------------------------------


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process: to the nanosecond from Linux' clock of it, elsewhere as good as psutil has it.

    That clock counts threads that have ended as well, so it never goes back.
    """
    try:
        return time.clock_gettime(~process.pid << 3 | 2)  # clock_getcpuclockid(3) makes its ids like this
    except OSError:  # another system, or the process has ended
        times = process.cpu_times()
        return float(times.user + times.system)


def peak_rss_bytes(process: psutil.Process) -> int:
    """The most memory it ever had; where the system does not tell, what it has now."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return int(process.memory_info().rss)


# --- What the machine allows ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cpus:
    """The CPUs for what is measured, and those for everything else. Empty: any."""

    measured: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()


def divide_cpus() -> Cpus:
    if not hasattr(os, "sched_getaffinity"):
        return Cpus()
    first, *others = sorted(os.sched_getaffinity(0))
    return Cpus(frozenset([first]), frozenset(others)) if others else Cpus()


@contextmanager
def on(cpus: frozenset[int]) -> Iterator[None]:
    """Run on these CPUs; what is started meanwhile stays on them."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_open_files() -> int:
    """Have this process, and what it starts, open as many files as are needed or allowed; give how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    if soft >= OPEN_FILES:
        return soft
    allowed = min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return allowed


# --- Starting and stopping --------------------------------------------------------------------------


def end_like_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP end this process by way of all its `finally`, from within an event loop too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that writes what it says to `log`; stop it afterwards, and what it started."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue
        except (ProcessLookupError, PermissionError):  # the latter is macOS' word for the former
            pass
        return


def until_it_answers(
    process: subprocess.Popen[bytes], port: int, log: Path, path: str, body: bytes | None = None
) -> None:
    """Wait for the first 200. Raises DidNotStart."""
    limit = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        if answers(port, path, body):
            return
        time.sleep(LOOK_EVERY_S)
    raise DidNotStart(log.read_text(errors="replace")[-LAST_CHARACTERS:].strip() or "it said nothing")


def answers(port: int, path: str, body: bytes | None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET" if body is None else "POST", path, body, HEADERS)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on. Somebody could take one before it is used; nobody does."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


@contextmanager
def started(target: Target, folder: Path, cpus: Cpus, provider_port: int = 0) -> Iterator[Running]:
    """Start a target in a folder of its own, and wait for its first answer. Raises DidNotStart."""
    program = target.found()
    if program is None:
        raise DidNotStart("it is not installed")
    directory = Path(tempfile.mkdtemp(dir=folder))
    port, other_port = free_ports(2)
    filled = partial(fill, directory=directory, port=port, other_port=other_port, provider_port=provider_port)
    for name, text in target.files.items():
        (directory / name).write_text(filled(text))
    command = [program, *map(filled, target.command)]
    environment = {name: filled(text) for name, text in target.environment.items()}
    log, began = directory / "log", time.perf_counter()
    with ExitStack() as stack:
        with on(cpus.others if target is DIRECT else cpus.measured):
            process = stack.enter_context(running(command, log, environment))
        until_it_answers(process, port, log, CHAT, FIRST_REQUEST)
        yield Running(target, port, psutil.Process(process.pid), time.perf_counter() - began)
