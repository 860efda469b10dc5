#!/usr/bin/env python3
"""Fuzz the parsers, guided by coverage: `scripts/fuzz [--minutes N] [--jobs N] [--keep] [TARGET ...]`.

`tests/fuzz/targets.py` has the table of targets. Each gets its share of the time, in a process of its own
that libFuzzer (by way of atheris) bounds: in the length of an input, in seconds for one, in memory. It begins
with the target's seeds, its corpus in tests/corpus, and what earlier runs have left in build/fuzz; a find
ends it, and is written to build/fuzz/TARGET/finds, with a traceback in build/fuzz/TARGET/log. `--keep` merges
what is new into tests/corpus: inputs that go new ways, the shortest for each.

A find becomes a test, and its file is put into tests/corpus/TARGET once it is mended.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from hashlib import sha1
from io import StringIO
from pathlib import Path
from typing import Final

import atheris

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
_ours: Final = atheris.instrument_imports(["llmgateway", "python_multipart"], enable_loader_override=False)
with redirect_stderr(StringIO()), _ours:  # it says what it instruments
    from tests.fuzz.target import Target
    from tests.fuzz.targets import CORPUS, TARGETS

BUILD: Final = ROOT / "build" / "fuzz"
ONE_INPUT_S: Final = 10  # for one, on a busy machine too
MEMORY_MB: Final = 1_024
MERGE_S: Final = 300
LONGEST_KEPT_BYTES: Final = 4_096
MERGE: Final = "LLMGATEWAY_FUZZ_MERGE"  # names the target whose inputs a process of libFuzzer's own tries
DONE: Final = re.compile(rb"(?m)^#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
PULSE: Final = re.compile(rb"(?m)^#(\d+)\t\S+ +cov: (\d+) ft: (\d+) corp: (\d+)/")


@dataclass(frozen=True, slots=True)
class Told:
    """What a run of one target told at its end, or last before a find."""

    executions: int = 0
    edges: int = 0
    features: int = 0
    inputs: int = 0


def folder_of(target: Target) -> Path:
    return BUILD / target.name


def log_of(target: Target) -> Path:
    return folder_of(target) / "log"


def finds(target: Target) -> list[Path]:
    return sorted((folder_of(target) / "finds").iterdir())


def prepare(target: Target) -> None:
    """Lay out the folders of a target, its seeds and its words."""
    folder = folder_of(target)
    for name in ("corpus", "earlier", "finds", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in (folder / "finds").iterdir():
        path.rename(folder / "earlier" / path.name)  # to be tried first, and found again unless it is mended
    for seed in target.seeds():
        (folder / "seeds" / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words)
    (folder / "words").write_text("\n".join(lines))


def arguments(target: Target, seconds: float) -> Iterator[str]:
    """Give what libFuzzer is to do: write new inputs to the first folder, and read all."""
    folder = folder_of(target)
    yield from (
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.most_bytes}",
        f"-timeout={ONE_INPUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={folder / 'finds'}/",
        "-print_final_stats=1",
    )
    if target.words:
        yield f"-dict={folder / 'words'}"
    inputs = (folder / "corpus", folder / "earlier", folder / "seeds", CORPUS / target.name)
    yield from map(str, inputs)


def fuzz(target: Target, some: Sequence[str]) -> None:
    """Become libFuzzer; never returns."""
    log = os.open(log_of(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    atheris.Setup([sys.argv[0], *some], target.run)
    atheris.Fuzz()


def start(target: Target, seconds: float) -> int:
    """Fuzz in a process of its own, which need not import anything again; gives its id."""
    prepare(target)
    (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
    if (child := os.fork()) == 0:
        fuzz(target, [*arguments(target, seconds)])
    return child


def told_by(target: Target) -> Told:
    """Read what a run has told."""
    log = log_of(target).read_bytes()
    lines = DONE.findall(log) or PULSE.findall(log)
    if not lines:
        return Told()
    executions, edges, features, inputs = map(int, lines[-1])
    return Told(executions, edges, features, inputs)


def keep(target: Target) -> None:
    """Merge what goes new ways into tests/corpus, less what is long."""
    (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
    short = folder_of(target) / "short"
    short.mkdir(exist_ok=True)
    for path in (*(folder_of(target) / "corpus").iterdir(), *(folder_of(target) / "seeds").iterdir()):
        if path.stat().st_size <= LONGEST_KEPT_BYTES:
            (short / path.name).write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, __file__, "-merge=1", f"-max_len={LONGEST_KEPT_BYTES}", CORPUS / target.name, short],
        env=os.environ | {MERGE: target.name},
        capture_output=True,
        text=True,
        timeout=MERGE_S,
        check=False,
    )
    if done.returncode:
        print(f"{target.name}: merging failed:\n{done.stderr[-1_000:]}", file=sys.stderr)


def row(target: Target, seconds: float) -> str:
    told, kept = told_by(target), [*(CORPUS / target.name).iterdir()]
    cells = (
        target.name,
        f"{told.executions:,}",
        f"{told.executions / seconds:,.0f}",
        f"{told.edges:,}",
        f"{told.features:,}",
        f"{told.inputs:,}",
        f"{len(kept):,}",
        f"{sum(path.stat().st_size for path in kept):,}",
        f"{len(finds(target))}",
    )
    return f"| {' | '.join(cells)} |"


def parsed(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the parsers, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time (default 1)")
    parser.add_argument("--keep", action="store_true", help="merge what goes new ways into tests/corpus")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.targets if name not in names]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(names)}")
    return chosen


def run(some: Sequence[Target], seconds: float, jobs: int) -> None:
    """Fuzz them, so many at a time and each for so long, and say of each what came of it."""
    print("| target | executions | a second | edges | features | inputs | in tests/corpus | bytes | finds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    waiting, running = list(some), dict[int, Target]()
    while waiting or running:
        while waiting and len(running) < jobs:
            target = waiting.pop(0)
            running[start(target, seconds)] = target
        child, _ = os.wait()
        print(row(running.pop(child), seconds), flush=True)


def main() -> int:
    table = {target.name: target for target in TARGETS}
    if name := os.environ.get(MERGE):
        # libFuzzer has a shell start it again, from its first argument on, to try what may kill it.
        again = shlex.join([sys.executable, __file__])
        atheris.Setup([again, *sys.argv[1:]], table[name].run)
        atheris.Fuzz()
    chosen = parsed([*table])
    some = [table[name] for name in chosen.targets] or [*TARGETS]
    run(some, chosen.minutes * 60 * chosen.jobs / len(some), chosen.jobs)
    if chosen.keep:
        for target in some:
            keep(target)
    found = [path for target in some for path in finds(target)]
    for path in found:
        print(f"find: {path.relative_to(ROOT)}; {path.parents[1].relative_to(ROOT)}/log has the traceback")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
