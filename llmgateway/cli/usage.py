"""`gateway.py usage`: who used what, as the request log tells it, added up to a table for a terminal.

Only the sums are held, whatever the size of the log, and only so many of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from typing import Any, Final

from llmgateway.books.line import Line
from llmgateway.cli.table import align, printable

MAX_GROUPS: Final = 10_000  # names in a log may come from anybody who can send a request

COLUMNS: Final = ("user", "person", "key", "model", "provider", "endpoint", "day", "outcome", "instance")
_USUAL: Final = ("user", "person", "model")
NOBODY: Final = "-"
OTHERS: Final = "(others)"


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
class Usage:
    """Sums by group, the one with the most tokens first; a group has one name for each of `by`."""

    by: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], Sums], ...]
    total: Sums


def add_up(lines: Iterable[Line], by: Sequence[str] | None = None) -> Usage:
    """Add up requests by some of COLUMNS, else by user and model and, where there are any, persons.

    Days are those of UTC. Raises ValueError for another column.
    """
    if by is None:
        return _without_nobody(add_up(lines, _USUAL), "person")
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
    return Usage(by, tuple(ordered), total)


def _without_nobody(usage: Usage, column: str) -> Usage:
    """Leave out a column in which nobody is named."""
    at = usage.by.index(column)
    if any(group[at] not in (NOBODY, OTHERS) for group, _ in usage.groups):
        return usage
    groups = tuple(((*group[:at], *group[at + 1 :]), sums) for group, sums in usage.groups)
    return Usage((*usage.by[:at], *usage.by[at + 1 :]), groups, usage.total)


def _known(by: Sequence[str]) -> tuple[str, ...]:
    allowed = ", ".join(COLUMNS)
    for column in by:
        if column not in COLUMNS:
            raise ValueError(f"cannot group by '{printable(column)}'; choose from: {allowed}")
    if not by:
        raise ValueError(f"group by at least one of: {allowed}")
    return tuple(dict.fromkeys(by))


_SUMS: Final = tuple(field.name for field in fields(Sums))
_values: Final = attrgetter(*_SUMS)


def render(usage: Usage) -> str:
    """Draw a table with a row of totals."""
    rows = [(*group, *_numbers(sums)) for group, sums in usage.groups]
    total = ("total", *[""] * (len(usage.by) - 1), *_numbers(usage.total))
    head, *body, last = align([(*usage.by, *_SUMS), *rows, total], names=len(usage.by))
    rule = "-" * len(head)
    return "\n".join((head.upper(), rule, *body, rule, last))


def as_json(usage: Usage) -> dict[str, Any]:
    """Give the sums of each group, with its names, and those of all."""
    rows = [dict(zip(usage.by, group, strict=True)) | asdict(sums) for group, sums in usage.groups]
    return {"by": usage.by, "rows": rows, "total": asdict(usage.total)}


def _numbers(sums: Sums) -> list[str]:
    return [f"{value:,}" for value in _values(sums)]
