"""Count the instructions of a request and of a chunk, and tell which part of the gateway they are for.

The gateway runs under valgrind's callgrind, with client and provider in memory (profile_counted.py). What is
counted is the same on a busy machine and on an idle one, so that a change of one per cent can be seen; what
it is worth in time is for scripts/bench to say. Neither the kernel counts, nor the waiting for memory.

Twice: as it is, which gives the totals; and with each Python function apart (profile_hook.c), which gives the
shares. What a function calls in C is its own: JSON, regular expressions. A chunk is what one more of them
costs in a stream: the difference of a short one and one of twice the length.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_process import end_like_ctrl_c
from bench_targets import ROOT

PLAIN: Final = (60, 6, 76)  # requests, streams, and chunks in each: 38 are what the meter looks at in one go
APART: Final = (12, 1, 38)  # the same, where callgrind writes at each call
LIMIT_S: Final = 600
BY_TIME: Final = (  # what happens every quarter of a second, or once a second, comes far too often here
    "llmgateway/web/pressure",
    "llmgateway/books/journal.py Journal._",
    "llmgateway/books/journal.py _",
    "llmgateway/fleet/dialing",
    "llmgateway/fleet/names",
    "llmgateway/books/line.py moment",
    *("- format_datetime", "- _format_timetuple", "- formatdate"),
    *("- Condition", "- Thread", "- shield", "- Timeout", "- timeout", "- _BaseV4", "- IPv4"),
)
REST: Final = "the event loop and asyncio"
PARTS: Final = (
    (
        "client and provider of this script",
        ("- Client.", "- Wire.", "- Loop.", "- main", "- Event", "- sleep"),
    ),
    (
        "server side: reading the request, writing the answer",
        ("http/server", "http/downstream", "http/lobby", "http/heartbeat", "http/crowd", "- RequestHandler"),
    ),
    ("the exchange with the provider", ("http/client", "http/exchange", "fleet/upstream")),
    ("connections of both sides: heads and frames", ("http/",)),
    ("pages and routes", ("web/",)),
    ("key and limits", ("access/",)),
    (
        "look at the body",
        ("api/peek", "api/skim", "api/prints", "api/turns", "traffic/call", "traffic/estimate"),
    ),
    ("conversation", ("traffic/affinity",)),
    ("choice and slot", ("traffic/slots", "traffic/router", "traffic/line", "traffic/fairness", "fleet/")),
    ("meter: what the answer tells", ("api/", "traffic/overheard", "servers/")),
    ("the proxy itself", ("traffic/", "errors")),
    ("booking, metrics and log", ("books/", "log")),
)


# --- The counting -----------------------------------------------------------------------------------

Counts = Counter[str]  # instructions by function


@dataclass(frozen=True, slots=True)
class Costs:
    """What one request costs, and one chunk."""

    request: Mapping[str, float]
    chunk: Mapping[str, float]


def measure(folder: Path, *, apart: bool) -> Costs:
    counts = folder / f"counts-{apart}"
    options = ("--tool=callgrind", "--instr-atstart=no", "--combine-dumps=yes")
    files = (f"--callgrind-out-file={counts}", f"--log-file={folder}/valgrind")
    program = (sys.executable, str(Path(__file__).with_name("profile_counted.py")))
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{folder}:{ROOT}"}
    requests, streams, chunks = APART if apart else PLAIN
    numbers = map(str, (int(apart), requests, streams, chunks))
    command = ("valgrind", *options, *files, *program, str(folder), *numbers)
    subprocess.run(command, env=environment, timeout=LIMIT_S, check=True)
    of_requests, of_few, of_many = windows(counts.read_text(errors="replace"))
    request = {name: count / requests for name, count in of_requests.items()}
    return Costs(request, {name: (n - of_few[name]) / streams / chunks for name, n in of_many.items()})


def windows(written: str) -> Iterator[Counts]:
    """Read what callgrind wrote: for each time that was counted, the instructions by function."""
    counts, name = Counts(), ""
    for line in written.splitlines():
        if line.startswith("desc: Trigger: Client Request: "):
            name = line.removeprefix("desc: Trigger: Client Request: ")
        elif line.startswith("totals: ") and name == "end":
            yield counts
            counts, name = Counts(), ""
        elif line.startswith("totals: ") and name and not name.startswith(BY_TIME):
            counts[name] += int(line.removeprefix("totals: "))
            name = ""


def compile_hook(folder: Path) -> None:
    """Make the module that runs functions apart. Raises SystemExit where that is not possible."""
    for program in ("valgrind", "cc"):
        if shutil.which(program) is None:
            raise SystemExit(f"This needs {program}, which is not installed.")
    include = sysconfig.get_paths()["include"]
    options = ["-O2", "-shared", "-fPIC", "-w", f"-I{include}", "-o", str(folder / "profile_hook.so")]
    command = ["cc", *options, str(Path(__file__).with_name("profile_hook.c"))]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit("This needs the headers of Python and of valgrind.")


# --- The report -------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    function = name.removeprefix("llmgateway/")
    return next((part for part, prefixes in PARTS if function.startswith(prefixes)), REST)


def report(plain: Costs, apart: Costs, rows: int) -> Iterator[str]:
    """Tell what each part and function costs: its share, of what all costs where none is told apart."""
    found = {
        "request": (Counter(apart.request), sum(plain.request.values())),
        "chunk": (Counter(apart.chunk), sum(plain.chunk.values())),
    }
    yield f"| part | {' | '.join(f'a {what}' for what in found)} |\n|---|--:|--:|"
    for part in (*(part for part, _ in PARTS), REST):
        cells = []
        for costs, total in found.values():
            share = sum(cost for name, cost in costs.items() if part_of(name) == part) / costs.total()
            cells.append(f"{share * total:,.0f} ({share:.1%})")
        yield f"| {part} | {' | '.join(cells)} |"
    yield f"| all | {' | '.join(f'{total:,.0f}' for _, total in found.values())} |"
    for what, (costs, total) in found.items():
        yield f"\n| function, of a {what} | instructions | share |\n|---|--:|--:|"
        for name, cost in costs.most_common(rows):
            share = cost / costs.total()
            yield f"| {name.removeprefix('llmgateway/')} | {share * total:,.0f} | {share:.1%} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count the instructions of a request and of a chunk.")
    parser.add_argument("--rows", type=int, default=25, help="how many functions to show (25)")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_hook(folder)
        plain, apart = measure(folder, apart=False), measure(folder, apart=True)
    print("\n".join(report(plain, apart, given.rows)))


if __name__ == "__main__":
    end_like_ctrl_c()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
