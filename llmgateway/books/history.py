"""Who used what, read from the request log: the log's lines, added up to a table.

Rules:

- The log is streamed, oldest file first; of a log of any size only one line and the sums are held.
- A line that cannot be used is counted and skipped: a full disk or a crash cuts lines.
- What a log says is foreign: no name reaches a terminal raw.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final

from llmgateway.books.line import Line, read_line

MAX_LINE_BYTES: Final = 64 * 1024  # ours have about 500; a damaged file may be one endless line
MAX_GROUPS: Final = 10_000  # names in a log may come from anybody who can send a request
MAX_CELL: Final = 48

COLUMNS: Final = ("user", "key", "model", "provider", "endpoint", "day", "outcome")
NOBODY: Final = "-"
OTHERS: Final = "(others)"


# --- Reading --------------------------------------------------------------------------------------


class History:
    """A request log with its rotated files: `requests.jsonl`, then `.1`, `.2` and so on, ever older."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped = 0

    def read(self, since: float = 0.0) -> Iterator[Line]:
        """Give the requests that ended at `since` (epoch seconds) or later, oldest file first.

        Counts what it cannot use in `skipped`. Raises FileNotFoundError if there is no log, and OSError.
        """
        self.skipped = 0
        # The log has one form of time, so that the order of the text is the order of time.
        earliest = datetime.fromtimestamp(max(0.0, since), UTC).isoformat(timespec="milliseconds")[:23]
        with ExitStack() as stack:
            for file in reversed(self._open(stack)):
                if os.fstat(file.fileno()).st_mtime >= since:
                    yield from self._lines(file, earliest)

    def _open(self, stack: ExitStack) -> list[BinaryIO]:
        """Open all files, newest first: one that is rotated meanwhile is met twice, not missed."""
        files: dict[tuple[int, int], BinaryIO] = {}
        for path in self._paths():
            try:
                file = stack.enter_context(path.open("rb"))
            except FileNotFoundError:
                continue
            about = os.fstat(file.fileno())
            files.setdefault((about.st_dev, about.st_ino), file)
        if not files:
            raise FileNotFoundError(f"there is no request log at {self._path}")
        return list(files.values())

    def _paths(self) -> list[Path]:
        rotated = re.compile(re.escape(self._path.name) + r"\.([1-9][0-9]{0,5})")
        siblings = self._path.parent.iterdir() if self._path.parent.is_dir() else ()
        numbered = [(int(match[1]), path) for path in siblings if (match := rotated.fullmatch(path.name))]
        return [self._path, *(path for _, path in sorted(numbered))]

    def _lines(self, file: BinaryIO, earliest: str) -> Iterator[Line]:
        while text := file.readline(MAX_LINE_BYTES):
            line = read_line(text)
            if line is None:
                self.skipped += 1
            elif line.time >= earliest:
                yield line


# --- Adding up ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """What some requests came to. `failed` are those that did not end well, whoever was to blame."""

    requests: int = 0
    failed: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    estimated: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion; what was cached and what was reasoning are parts of these."""
        return self.prompt + self.completion

    def add(self, line: Line) -> None:
        """Count one request of the log."""
        tokens = line.tokens
        self.requests += 1
        self.failed += line.outcome != "ok"
        self.prompt += tokens.prompt
        self.completion += tokens.completion
        self.cached += tokens.cached
        self.reasoning += tokens.reasoning
        self.estimated += tokens.estimated


@dataclass(frozen=True, slots=True)
class Table:
    """Sums by group, the one with the most tokens first; a group has one name for each of `by`."""

    by: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], Sums], ...]
    total: Sums


def tabulate(lines: Iterable[Line], by: Sequence[str] = ("user", "model")) -> Table:
    """Add up requests by some of COLUMNS. Days are those of UTC. Raises ValueError for another column."""
    by = _known(by)
    groups: dict[tuple[str, ...], Sums] = {}
    total = Sums()
    for line in lines:
        group = tuple([getattr(line, column) or NOBODY for column in by])
        if group not in groups:
            if len(groups) >= MAX_GROUPS:
                group = (OTHERS,) * len(by)
            groups.setdefault(group, Sums())
        groups[group].add(line)
        total.add(line)
    ordered = sorted(groups.items(), key=lambda each: (-each[1].tokens, -each[1].requests, each[0]))
    return Table(by, tuple(ordered), total)


def _known(by: Sequence[str]) -> tuple[str, ...]:
    allowed = ", ".join(COLUMNS)
    for column in by:
        if column not in COLUMNS:
            raise ValueError(f"cannot group by '{printable(column)}'; choose from: {allowed}")
    if not by:
        raise ValueError(f"group by at least one of: {allowed}")
    return tuple(dict.fromkeys(by))


# --- Showing --------------------------------------------------------------------------------------

_SUMS: Final = tuple(field.name for field in fields(Sums))
_values: Final = attrgetter(*_SUMS)


def render(table: Table) -> str:
    """Draw a table for a terminal, with a row of totals; nothing in it can steer the terminal."""
    names = len(table.by)
    body = [(*map(printable, group), *_numbers(sums)) for group, sums in table.groups]
    lines = [
        (*table.by, *_SUMS),
        *body,
        ("total", *[""] * (names - 1), *_numbers(table.total)),
    ]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    drawn = [_line(line, widths, names) for line in lines]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join((drawn[0].upper(), rule, *drawn[1:-1], rule, drawn[-1]))


def _numbers(sums: Sums) -> list[str]:
    return [f"{value:,}" for value in _values(sums)]


def _line(cells: Sequence[str], widths: Sequence[int], names: int) -> str:
    """Pad the cells to their columns: names to the right of them, numbers to the left."""
    padded = []
    for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(cell))
        padded.append(cell + space if at < names else space + cell)
    return "  ".join(padded).rstrip()


def printable(name: str) -> str:
    """Write what a terminal does not simply show as escapes, and cut what is long."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name[:MAX_CELL]
    )
    return shown if len(name) <= MAX_CELL and len(shown) <= MAX_CELL else shown[: MAX_CELL - 3] + "..."


def _width(text: str) -> int:
    """Count the places that a text takes in a terminal: two for a wide character, none for an accent."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
