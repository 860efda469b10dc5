"""Measure what becomes of the gateway when there is much of something: who wait, providers, users, words.

Each measurement runs in a process of its own (bench_growth_measures.py), in interleaved rounds; what is shown
is the best of them, as a noisy machine only ever adds. With `--beside`, another checkout of this project is
measured in the same run, so that before and after can be compared.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench_process import end_like_ctrl_c
from bench_targets import ROOT

MEASURES: Final = Path(__file__).with_name("bench_growth_measures.py")
LIMIT_S: Final = 300

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure: its name in what a measurement prints, its head in the table, and how it is written."""

    key: str
    head: str
    form: str = ",.0f"

    def cell(self, found: Sequence[Figures]) -> str:
        """Give the best there was."""
        values = [figures[self.key] for figures in found if self.key in figures]
        return format(min(values), self.form) if values else f"not in {LIMIT_S} s"


@dataclass(frozen=True, slots=True)
class Part:
    """A table: one measurement, of several sizes. The words of a row are filled with its numbers."""

    name: str
    title: str
    row: str
    sizes: tuple[tuple[int, ...], ...]
    columns: tuple[Column, ...]


LONGEST: Final = Column("longest_ms", "longest turn of the loop, ms", ",.1f")
PARTS: Final = (
    Part(
        "waiting",
        "Requests that wait, all for the same model",
        "{0:,} wait for {1:,} providers, {2:,} users",
        (
            (100, 10, 10),
            (300, 10, 10),
            (1_000, 10, 10),
            (10_000, 10, 100),
            (300, 500, 300),
            (10_000, 500, 10_000),
        ),
        (
            Column("stand", "came in the burst"),
            Column("burst_s", "the burst, s", ",.2f"),
            LONGEST,
            Column("arrival_us", "one more comes, us"),
            Column("grant_us", "one is granted, us"),
        ),
    ),
    Part(
        "choosing",
        "Providers that could take a request",
        "{0:,} candidates, slots {1}",
        tuple((size, slots) for slots in (4, 0) for size in (1, 3, 30, 100, 300, 500)),
        (Column("choice_us", "order, choice and end, us", ",.1f"),),
    ),
    Part(
        "returning",
        "Users with requests in flight",
        "{0:,} users",
        ((100,), (1_000,), (10_000,)),
        (Column("return_us", "one more comes and goes, us", ",.1f"),),
    ),
    Part(
        "listing",
        "Models",
        "{0:,} models of {1:,} providers",
        ((30, 100), (300, 100)),
        (Column("listing_us", "`/v1/models`, us of CPU"),),
    ),
    Part(
        "changed",
        "A provider has changed",
        "{0:,} models of {1:,} providers",
        ((30, 100), (300, 100)),
        (Column("changed_us", "the first choice after it, us"),),
    ),
    Part(
        "conversing",
        "Messages of one conversation, 220 bytes each",
        "{0:,} messages",
        ((4,), (400,), (1_000,), (4_000,)),
        (Column("turn_us", "a request, us of CPU"), LONGEST),
    ),
    Part("large", "A long body", "{0} MB of JSON", ((60,),), (LONGEST,)),
)


def measured(checkout: Path, name: str, size: Sequence[int]) -> Figures:
    """Give what one measurement prints; nothing, if it takes too long."""
    command = [sys.executable, str(MEASURES), name, *map(str, size)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        finished = subprocess.run(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True
        )
    except subprocess.TimeoutExpired:
        return {}
    figures: Figures = json.loads(finished.stdout)
    return figures


def table(part: Part, checkouts: Sequence[tuple[str, Path]], rounds: int) -> Iterator[str]:
    yield f"| {part.title} | {' | '.join(column.head for column in part.columns)} |"
    yield f"|---|{'--:|' * len(part.columns)}"
    for size in part.sizes:
        found: dict[str, list[Figures]] = {name: [] for name, _ in checkouts}
        for _ in range(rounds):
            for name, checkout in checkouts:
                found[name].append(measured(checkout, part.name, size))
        words = part.row.format(*size).replace("slots 0", "slots unknown").replace("slots 4", "slots known")
        cells = (" -> ".join(column.cell(of) for of in found.values()) for column in part.columns)
        yield f"| {words} | {' | '.join(cells)} |"
    yield ""


LEGEND: Final = """\
All of it is time of the processor in the thread of the event loop, the best of the rounds, each in a process
of its own. A burst comes 50 in a turn of the loop, until all stand in line or 10 s have gone by: the
count says how many stood then, at which the rest of the row is measured. A grant is from the end of one
request until the next runs. Every request that waits goes on with a conversation that has a home."""


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "?"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what grows with how much there is.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(one.name for one in PARTS)}")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, shown first")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the best of (3)")
    parser.add_argument("--most", type=int, metavar="N", help="leave out the rows with a number above this")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if unknown := sorted(set(given.parts) - {part.name for part in PARTS}):
        raise SystemExit(f"There is no {', '.join(unknown)}; there are {', '.join(p.name for p in PARTS)}.")
    checkouts = [("after", ROOT)]
    if given.beside is not None:
        checkouts.insert(0, ("before", given.beside.resolve()))
    load_before = os.getloadavg()[0]
    for part in PARTS:
        if not given.parts or part.name in given.parts:
            sizes = tuple(size for size in part.sizes if given.most is None or max(size) <= given.most)
            for line in table(replace(part, sizes=sizes), checkouts, given.rounds):
                print(line, flush=True)
    print(f"{LEGEND}\n")
    commits = " -> ".join(commit(checkout) for _, checkout in checkouts)
    machine = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {given.rounds} rounds"
    print(f"Commits: {commits}. {machine}. Load of the machine before: {load_before:.1f}.")


if __name__ == "__main__":
    end_like_ctrl_c()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
