"""Show where the gateway's CPU time goes: the top costs of a request, and of a chunk of a stream.

The gateway runs as it really does, with a sampling profiler in its own process (profile_sampler.py) that is
switched on and off. Each load is put on it by turns without and with sampling. The shares are the samples';
what they are shares of is the CPU time per request or chunk without the profiler, measured like scripts/bench
does, so that the microseconds are true.

Why samples by a timer of CPU time: they cost a few per cent, while cProfile makes a request cost 2.3 times as
much, and small functions look dear. A thread that looks at the main one's frames sees the event loop in 90 of
100 looks, as that is where the interpreter lets go of its lock. Against `perf`, which sees no Python and
which few have, the shares of sending, of the event loop and of the rest were right within 5 points.

What is distorted: Python takes note of a signal only at the next call or jump. So a function's C calls (JSON,
regular expressions) count as its own time, all but sending, which is told apart by the line that does it.
What the event loop does before it resumes a coroutine counts as the coroutine's. Threads count where the main
thread was. A line of ten samples is mostly luck.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final

from bench_load import Load, put
from bench_process import LOOK_EVERY_S, Running, divide_cpus, end_like_ctrl_c, on, raise_open_files, started
from bench_targets import DIRECT, GATEWAY

# More streams than scripts/bench has, as samples come by CPU time. Each wake-up then brings several chunks,
# and one costs less. Not 10 ms: ticks come every 4 ms, and would often meet the same moment of a burst.
LOADS: Final = (
    Load("request", connections=32, lasts_s=3.0),
    Load("chunk", connections=250, chunks=400, gap_ms=11),
)
WARM_UP: Final = (
    Load("warm-up", connections=32, lasts_s=0.5),
    Load("warm-up", connections=20, chunks=20, gap_ms=10),
)
WRITTEN_LIMIT_S: Final = 10


@dataclass(slots=True)
class Costs:
    """What was seen of one load. CPU in microseconds per request or chunk, one value per round."""

    cpu_us: list[float] = field(default_factory=list)
    sampled_cpu_us: list[float] = field(default_factory=list)
    user_s: float = 0.0
    system_s: float = 0.0
    samples: int = 0
    own: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, samples: list[tuple[list[str], int]]) -> None:
        for names, times in samples:
            self.samples += times
            self.own[names[0]] += times
            self.total.update(dict.fromkeys(names, times))


class Profiled:
    """A running gateway with a sampler, which writes to `folder`."""

    def __init__(self, gateway: Running, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self.windows = 0

    def round(self, load: Load, costs: Costs) -> None:
        costs.cpu_us.append(self.put(load, self.timed(costs)))
        costs.sampled_cpu_us.append(self.put(load, self.sampled()))
        costs.add(json.loads(self.written().read_text()))

    def put(self, load: Load, counting: AbstractContextManager[None] | None = None) -> float:
        measure = put(load, self.gateway.port, self.gateway.probe(counting))
        return measure.cpu_s / measure.units * 1e6

    @contextmanager
    def timed(self, costs: Costs) -> Iterator[None]:
        before = self.gateway.process.cpu_times()
        yield
        after = self.gateway.process.cpu_times()
        costs.user_s += after.user - before.user
        costs.system_s += after.system - before.system

    @contextmanager
    def sampled(self) -> Iterator[None]:
        self.gateway.process.send_signal(signal.SIGUSR1)
        yield
        self.gateway.process.send_signal(signal.SIGUSR2)
        self.windows += 1

    def written(self) -> Path:
        """Wait for the samples of the last window."""
        file = self.folder / f"{self.windows}.json"
        limit = time.monotonic() + WRITTEN_LIMIT_S
        while not file.exists():
            if time.monotonic() > limit:
                raise SystemExit(f"The sampler did not write {file.name} within {WRITTEN_LIMIT_S} s.")
            time.sleep(LOOK_EVERY_S)
        return file


def measure(loads: Sequence[Load], rounds: int) -> list[Costs]:
    """Give the costs for each of the loads."""
    cpus, costs = divide_cpus(), [Costs() for _ in loads]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on(cpus.others))
        provider = stack.enter_context(started(DIRECT, folder, cpus))
        command = ("$root/scripts/profile_sampler.py", str(folder), *GATEWAY.command[1:])
        target = replace(GATEWAY, command=command)
        profiled = Profiled(stack.enter_context(started(target, folder, cpus, provider.port)), folder)
        for load in WARM_UP:
            profiled.put(load)
        for _ in range(rounds):
            for load, of_load in zip(loads, costs, strict=True):
                profiled.round(load, of_load)
    return costs


# --- The report -------------------------------------------------------------------------------------


def summary(load: Load, costs: Costs) -> str:
    cpu_us, sampled_cpu_us = median(costs.cpu_us), median(costs.sampled_cpu_us)
    kernel = costs.system_s / ((costs.user_s + costs.system_s) or 1)
    return (
        f"A {load.key} ({load.name}): {cpu_us:.1f} us of CPU, of it {kernel:.0%} ({kernel * cpu_us:.1f} us) "
        f"in system calls. {costs.samples} samples, with which it took {sampled_cpu_us:.1f} us."
    )


def table(load: Load, costs: Costs, by: Counter[str], rows: int) -> Iterator[str]:
    yield f"| function | CPU | us/{load.key} | us with all it calls |"
    yield "|---|--:|--:|--:|"
    for name, _ in by.most_common(rows):
        own, total = (of[name] / costs.samples for of in (costs.own, costs.total))
        cpu_us = median(costs.cpu_us)
        yield f"| {name} | {own:.1%} | {own * cpu_us:.1f} | {total * cpu_us:.1f} |"


def report(loads: Sequence[Load], costs: Sequence[Costs], order: str, rows: int) -> Iterator[str]:
    for load, of_load in zip(loads, costs, strict=True):
        by = of_load.own if order == "own" else of_load.total
        yield summary(load, of_load)
        yield ""
        yield from table(load, of_load, by, rows)
        yield ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show the top costs of a request, and of a chunk.")
    parser.add_argument("--rounds", type=int, default=2, help="rounds to add up the samples of (2)")
    parser.add_argument("--rows", type=int, default=25, help="how many functions to show (25)")
    parser.add_argument(
        "--by", choices=("own", "total"), default="own", help="the order: by a function's own time, or all"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="make the loads smaller: 0.1 (1)")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    raise_open_files()
    loads = [load.scaled(given.scale) for load in LOADS]
    print("\n".join(report(loads, measure(loads, given.rounds), given.by, given.rows)))


if __name__ == "__main__":
    end_like_ctrl_c()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
