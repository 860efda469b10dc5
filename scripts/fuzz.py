#!/usr/bin/env python3
"""Fuzz the parsers, guided by coverage: `scripts/fuzz [--minutes N] [--jobs N] [--keep] [TARGET ...]`.

`tests/fuzz/targets.py` has the table of targets. Each gets its share of the time, in a process of its own
that libFuzzer (by way of atheris) bounds: in the length of an input, in seconds for one, in memory. It begins
with the target's seeds, its corpus in tests/corpus, and what earlier runs have left in build/fuzz; a find
ends it, and is written to build/fuzz/TARGET/finds, with a traceback in build/fuzz/TARGET/log. `--keep` merges
what is new into tests/corpus: inputs that go new ways, the shortest for each.

`--short` is for the build server: so many executions of each target as take seconds, from tests/corpus on and
the same in every run, so that what is found is of a change and not of chance.

A find becomes a test, and its file is put into tests/corpus/TARGET once it is mended.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
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
ONE_INPUT_S: Final = 10  # on a busy machine too
MEMORY_MB: Final = 1_024
MERGE_S: Final = 300
LONGEST_KEPT_BYTES: Final = 2_048
MERGE: Final = "LLMGATEWAY_FUZZ_MERGE"  # names the target whose inputs a process of libFuzzer's own tries
HASH: Final = re.compile("[0-9a-f]{40}")  # what libFuzzer calls an input
DONE: Final = re.compile(rb"(?m)^#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
PULSE: Final = re.compile(rb"(?m)^#(\d+)\t\S+ +cov: (\d+) ft: (\d+) corp: (\d+)/")


@dataclass(frozen=True, slots=True)
class Told:
    """What a run of one target told at its end, or last before a find."""

    executions: int = 0
    edges: int = 0
    features: int = 0
    inputs: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """The fuzzing of one target. `seconds` is 0 for a short one, which ends by itself."""

    target: Target
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        return BUILD / self.target.name if self.seconds else BUILD / "short" / self.target.name

    @property
    def kept(self) -> Path:
        return CORPUS / self.target.name

    @property
    def finds(self) -> list[Path]:
        return sorted((self.folder / "finds").iterdir())

    def prepare(self) -> None:
        """Lay out the folders, the seeds and the words."""
        if not self.seconds:
            shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("corpus", "earlier", "finds", "seeds"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.kept.mkdir(exist_ok=True)
        for path in self.finds:
            path.rename(self.folder / "earlier" / path.name)  # it is tried first, and found unless mended
        for seed in self.target.seeds():
            (self.folder / "seeds" / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
        lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in self.target.words)
        (self.folder / "words").write_text("\n".join(lines))

    def arguments(self) -> Iterator[str]:
        """Give what libFuzzer is to do: write new inputs to the first folder, and read all."""
        folder = self.folder
        yield f"-max_len={self.target.most_bytes}"
        yield f"-timeout={ONE_INPUT_S}"
        yield f"-rss_limit_mb={MEMORY_MB}"
        yield f"-artifact_prefix={folder / 'finds'}/"
        if self.target.words:
            yield f"-dict={folder / 'words'}"
        if self.seconds:
            yield f"-max_total_time={max(1, round(self.seconds))}"
        else:
            yield from (f"-runs={self.target.short_runs}", "-seed=1")
        yield from map(str, (folder / "corpus", folder / "earlier", folder / "seeds", self.kept))

    def start(self) -> int:
        """Fuzz in a process of its own, which need not import anything again; gives its id."""
        self.prepare()
        if (child := os.fork()) == 0:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            atheris.Setup([sys.argv[0], *self.arguments()], self.target.run)
            atheris.Fuzz()  # never returns
        return child

    def told(self) -> Told:
        """Read what was told at the end."""
        log = (self.folder / "log").read_bytes()
        lines = DONE.findall(log) or PULSE.findall(log)
        return Told(*map(int, lines[-1])) if lines else Told()

    def keep(self) -> None:
        """Make the corpus anew, of it and what goes new ways, but short; finds have names, and stay."""
        short, merged = self.folder / "short", self.folder / "merged"
        for folder in (short, merged):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for path in (*(self.folder / "corpus").iterdir(), *(self.folder / "seeds").iterdir()):
            if path.stat().st_size <= LONGEST_KEPT_BYTES:
                shutil.copyfile(path, short / path.name)
        merge = ("-merge=1", f"-max_len={LONGEST_KEPT_BYTES}", *map(str, (merged, self.kept, short)))
        done = subprocess.run(
            [sys.executable, __file__, *merge],
            env=os.environ | {MERGE: self.target.name},
            capture_output=True,
            text=True,
            timeout=MERGE_S,
            check=False,
        )
        if done.returncode:
            print(f"{self.target.name}: merging failed:\n{done.stderr[-1_000:]}", file=sys.stderr)
            return
        for path in self.kept.iterdir():
            if HASH.fullmatch(path.name):
                path.unlink()
        for path in merged.iterdir():
            shutil.copyfile(path, self.kept / path.name)

    def row(self) -> str:
        told, kept = self.told(), [path.stat().st_size for path in self.kept.iterdir()]
        a_second = f"{told.executions / self.seconds:,.0f}" if self.seconds else "-"
        counts = (told.edges, told.features, told.inputs, len(kept), sum(kept), len(self.finds))
        cells = (self.target.name, f"{told.executions:,}", a_second, *(f"{each:,}" for each in counts))
        return f"| {' | '.join(cells)} |"


def run(waiting: list[Run], jobs: int) -> None:
    """Fuzz so many at a time, and say of each what came of it."""
    print("| target | executions | a second | edges | features | inputs | in tests/corpus | bytes | finds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    running = dict[int, Run]()
    while waiting or running:
        while waiting and len(running) < jobs:
            each = waiting.pop(0)
            running[each.start()] = each
        child, _ = os.wait()
        print(running.pop(child).row(), flush=True)


def parsed(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the parsers, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together (default 1)")
    parser.add_argument("--short", action="store_true", help="some seconds, and the same in every run")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time (default 1)")
    parser.add_argument("--keep", action="store_true", help="merge what goes new ways into tests/corpus")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.targets if name not in names]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(names)}")
    return chosen


def main() -> int:
    table = {target.name: target for target in TARGETS}
    if name := os.environ.get(MERGE):
        # libFuzzer has a shell start it again, from its first argument on, to try what may kill it.
        again = shlex.join([sys.executable, __file__])
        atheris.Setup([again, *sys.argv[1:]], table[name].run)
        atheris.Fuzz()
    chosen = parsed([*table])
    some = [table[name] for name in chosen.targets] or [*TARGETS]
    seconds = 0.0 if chosen.short else chosen.minutes * 60 * chosen.jobs / len(some)
    runs = [Run(target, seconds) for target in some]
    run([*runs], chosen.jobs)
    if chosen.keep:
        for each in runs:
            each.keep()
    found = [path for each in runs for path in each.finds]
    for path in found:
        print(f"find: {path.relative_to(ROOT)}; {path.parents[1].relative_to(ROOT)}/log has the traceback")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
