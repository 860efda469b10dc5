"""Measure what the gateway costs, beside a direct connection, plain aiohttp, and the proxies installed here.

Every target runs as it really does, in front of one fake provider; this process makes the load. In each round
every target is started anew, and each load is put on all of them in turn, so that a noisy moment of the
machine hits all alike. What is shown are medians of the rounds. bench_targets.py has the targets.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from bench_load import LATE_TIMES, LOAD_LIMIT_S, Load, LoadFailed, Measure, put
from bench_process import (
    Cpus,
    DidNotStart,
    Running,
    divide_cpus,
    end_like_ctrl_c,
    on,
    raise_open_files,
    started,
)
from bench_targets import DIRECT, GATEWAY, PEERS, TARGETS, Target

LOADS: Final = (
    Load("one", connections=1, lasts_s=0.7),
    Load("many", connections=32, lasts_s=1.2),
    Load("large", connections=32, lasts_s=1.0, body_bytes=100 * 1024),
    Load("streams", connections=50, chunks=100, gap_ms=10),
    Load("slow", connections=1000, chunks=30, gap_ms=100),
)
LARGE: Final = (Load("crowd", connections=5000, chunks=40, gap_ms=500),)  # only when it is asked for
WARM_UP: Final = (
    Load("warm-up", connections=32, lasts_s=0.3),
    Load("warm-up", connections=20, chunks=20, gap_ms=10),
)
FILES_PER_STREAM: Final = 2
OTHER_FILES: Final = 200


@dataclass(slots=True)
class Results:
    """What came out for one target: a value per round. A load that failed has no measures."""

    measures: dict[str, list[Measure]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)
    idle_bytes: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    stream_bytes: list[float] = field(default_factory=list)

    def cpu_us(self, load: Load) -> list[float]:
        """CPU per request or chunk, in each round that has it."""
        runs = self.measures.get(load.key, [])
        return [run.cpu_s / run.units * 1e6 for run in runs if run.units]

    def wait_ms(self, load: Load, percent: int) -> list[float]:
        return percentiles_ms([run.waits_s for run in self.measures.get(load.key, [])], percent)

    def gap_ms(self, load: Load, percent: int) -> list[float]:
        return percentiles_ms([run.gaps_s for run in self.measures.get(load.key, [])], percent)


def percentiles_ms(rounds: Iterable[Sequence[float]], percent: int) -> list[float]:
    return [sorted(values_s)[len(values_s) * percent // 100] * 1e3 for values_s in rounds if values_s]


# --- The measuring ----------------------------------------------------------------------------------


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


class Bench:
    """Runs rounds; `results` are by the targets' names, `failed` has what is not tried again."""

    def __init__(self, targets: Sequence[Target], loads: Sequence[Load], warm_up: Sequence[Load]) -> None:
        self.targets = targets
        self.loads = loads
        self.warm_up = warm_up
        self.cpus = divide_cpus()
        self.results = {target.name: Results() for target in targets}
        self.failed: set[tuple[Target, Load | None]] = set()

    def round(self) -> None:
        with tempfile.TemporaryDirectory() as name, on(self.cpus.others), ExitStack() as stack:
            provider = stack.enter_context(started(DIRECT, Path(name), self.cpus))
            runnings = [
                running
                for target in self.targets
                if (running := self.start(target, provider, Path(name), stack)) and self.warms_up(running)
            ]
            for load in self.loads:
                for running in runnings:
                    self.measure(load, running)
            for running in runnings:
                self.look_at_memory(running)

    def start(self, target: Target, provider: Running, folder: Path, stack: ExitStack) -> Running | None:
        if (target, None) in self.failed:
            return None
        try:
            running = (
                provider
                if target is DIRECT
                else stack.enter_context(started(target, folder, self.cpus, provider.port))
            )
            idle_bytes = running.rss_bytes()
        except (DidNotStart, psutil.Error) as problem:
            self.fails(target, None, f"it did not start: {problem}")
            return None
        self.results[target.name].starts_s.append(running.started_in_s)
        self.results[target.name].idle_bytes.append(idle_bytes)
        return running

    def warms_up(self, running: Running) -> bool:
        try:
            for load in self.warm_up:
                put(load, running.port, running.probe())
        except (LoadFailed, psutil.Error) as problem:
            self.fails(running.target, None, str(problem))
            return False
        return True

    def measure(self, load: Load, running: Running) -> None:
        if (running.target, load) in self.failed:
            return
        try:
            measure = put(load, running.port, running.probe())
        except (LoadFailed, psutil.Error) as problem:
            self.fails(running.target, load, str(problem))
        else:
            self.results[running.target.name].measures.setdefault(load.key, []).append(measure)

    def look_at_memory(self, running: Running) -> None:
        try:
            peak_bytes = running.peak_rss_bytes()
        except psutil.Error:
            return  # it has ended, which the loads have told
        results = self.results[running.target.name]
        results.peak_bytes.append(peak_bytes)
        grown_bytes, streams = (
            peak_bytes - results.idle_bytes[-1],
            max(load.connections for load in self.loads),
        )
        results.stream_bytes.append(grown_bytes / streams)

    def fails(self, target: Target, load: Load | None, why: str) -> None:
        self.failed.add((target, load))
        last_line = why.strip().splitlines()[-1]
        say(f"{target.name} is left out{f' ({load.name})' if load else ''}: {last_line}")

    @property
    def good(self) -> bool:
        """Whether all went well with what is not a peer."""
        return all(target in PEERS for target, _ in self.failed)


# --- The report -------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Results], str]]


def number(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    return format(median(values) / scale, form) if values else "-"


def cpu(of: Results, gateway: Results, load: Load, form: str) -> str:
    """CPU per request or chunk, and how many times the gateway's that is."""
    ours, theirs = gateway.cpu_us(load), of.cpu_us(load)
    return number(theirs, form) + (f" ({median(theirs) / median(ours):.2f})" if ours and theirs else "")


def request_columns(load: Load, gateway: Results) -> Iterator[Column]:
    yield f"{load.name}: CPU us/request", lambda of: cpu(of, gateway, load, ",.0f")
    yield "p50 ms", lambda of: number(of.wait_ms(load, 50), ",.2f")


def stream_columns(load: Load, gateway: Results) -> Iterator[Column]:
    yield f"{load.name}: CPU us/chunk", lambda of: cpu(of, gateway, load, ",.1f")
    yield "TTFT p50 ms", lambda of: number(of.wait_ms(load, 50), ",.2f")
    yield "TTFT p99 ms", lambda of: number(of.wait_ms(load, 99), ",.2f")
    yield "gap p99 ms", lambda of: number(of.gap_ms(load, 99), ",.2f")


STARTING: Final[tuple[Column, ...]] = (
    ("idle RSS MB", lambda of: number(of.idle_bytes, ",.0f", 2**20)),
    ("cold start s", lambda of: number(of.starts_s, ".2f")),
)
FULL: Final[tuple[Column, ...]] = (
    ("peak RSS MB", lambda of: number(of.peak_bytes, ",.0f", 2**20)),
    ("KB/stream", lambda of: number(of.stream_bytes, ",.1f", 2**10)),
)


def table(results: dict[str, Results], columns: Sequence[Column]) -> Iterator[str]:
    yield f"| path | {' | '.join(head for head, _ in columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for name, of in results.items():
        yield f"| {name} | {' | '.join(cell(of) for _, cell in columns)} |"
    yield ""


def tables(results: dict[str, Results], loads: Sequence[Load]) -> Iterator[str]:
    gateway = results.get(GATEWAY.name, Results())
    requests = [column for load in loads if not load.chunks for column in request_columns(load, gateway)]
    streams = [column for load in loads if load.chunks for column in stream_columns(load, gateway)]
    if requests:
        yield from table(results, [*requests, *STARTING])
    if streams:
        yield from table(results, [*streams, *FULL])


def spread(results: dict[str, Results], loads: Sequence[Load]) -> tuple[float, str]:
    """How far the rounds differ in a CPU figure, as a share of the median: the worst, and whose that is."""
    figures = ((name, of.cpu_us(load)) for name, of in results.items() for load in loads)
    spreads = (((max(values) - min(values)) / median(values), name) for name, values in figures if values)
    return max(spreads, default=(0.0, "none"))


LEGEND: Final = f"""\
CPU is what the target's processes used; in brackets, how many times the gateway's. For `direct` it is the
fake provider's own. Chunks count while all streams run, without the start and end of a request; of a target
too slow for that, all count, with both. `p50` of requests is to the end of the answer; with many at once that
is mostly queueing, for the target or, where that is quicker, in the load. TTFT: to the first chunk. RSS: idle
after the first answer; the peak of the whole run, and what that is above idle for each of the streams.
`-`: failed, or not done within {LOAD_LIMIT_S} s, or {LATE_TIMES} times what is planned, if that is more."""


def conditions(cpus: Cpus, rounds: int, load_before: float, worst: tuple[float, str]) -> Iterator[str]:
    yield f"{os.cpu_count()} CPUs, Python {platform.python_version()}."
    if cpus.measured:
        yield "The target had a CPU to itself; the load and the provider shared the rest."
    else:
        yield "The target, the load and the provider shared the CPUs."
    yield f"Load of the machine before: {load_before:.1f}."
    if rounds > 1:
        yield f"Medians of {rounds} rounds, whose CPU figures differed by up to {worst[0]:.0%} ({worst[1]})."


# --- The command line -------------------------------------------------------------------------------


def chosen(names: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    if names is None:
        return list(default)
    wanted = names.split(",")
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"There is no {', '.join(unknown)}; there are {', '.join(known)}.")
    return wanted


def possible(loads: Sequence[Load]) -> list[Load]:
    """Leave out what needs more open files than are allowed."""
    allowed = raise_open_files()
    too_many = [load for load in loads if FILES_PER_STREAM * load.connections + OTHER_FILES > allowed]
    for load in too_many:
        say(f"{load.name}: left out, as a process may open only {allowed} files here (ulimit -n)")
    return [load for load in loads if load not in too_many]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the gateway costs, beside others.")
    paths, loads = (", ".join(one.name for one in TARGETS), ", ".join(load.key for load in LOADS + LARGE))
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (3)")
    parser.add_argument("--paths", metavar="NAMES", help=f"of {paths} (all that are installed)")
    parser.add_argument("--loads", metavar="NAMES", help=f"of {loads} (all but {LARGE[0].key})")
    parser.add_argument("--scale", type=float, default=1.0, help="make the loads smaller: 0.1 (1)")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    names = chosen(given.paths, [one.name for one in TARGETS], [one.name for one in TARGETS if one.found()])
    keys = chosen(given.loads, [load.key for load in LOADS + LARGE], [load.key for load in LOADS])
    loads = possible([load.scaled(given.scale) for load in LOADS + LARGE if load.key in keys])
    warm_up = [load.scaled(given.scale) for load in WARM_UP]
    bench = Bench([one for one in TARGETS if one.name in names], loads, warm_up)
    load_before = os.getloadavg()[0]
    for _ in range(given.rounds):
        bench.round()
    results = {name: of for name, of in bench.results.items() if of.measures}
    print("\n".join(tables(results, loads)))
    print(f"{LEGEND}\n")
    print(" ".join(conditions(bench.cpus, given.rounds, load_before, spread(results, loads))))
    return 0 if bench.good else 1


if __name__ == "__main__":
    end_like_ctrl_c()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
