"""The values of a config file before anybody decided what they mean, and the problems found in them.

Every value and key remembers where it stood. Scalars stay text; their repr hides it, it may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file, counted from 1; line 0 means that there is no file."""

    line: int
    column: int


NOWHERE: Final = Mark(0, 0)
START: Final = Mark(1, 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or doubtful), where it is, and what to write instead."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(Exception):
    """The config cannot be used; `problems` holds every reason, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = in_order(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Sort by position and drop what was said twice."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.line, p.column, p.path, p.message)))


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as text, before anybody decided what it means."""

    text: str = field(repr=False)
    mark: Mark = NOWHERE
    bare: bool = False  # no quotes, or from a variable: it may be read as a number
    null: bool = False
    from_env: bool = False  # then it may be a secret, and no message shows it
    broken: bool = False  # a Problem about it exists already


@dataclass(frozen=True, slots=True)
class Series:
    items: tuple[Node, ...]
    mark: Mark = NOWHERE


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands under a key, and where the key stands."""

    value: Node
    key_mark: Mark = NOWHERE


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping: its values by their keys, in the order of the file."""

    pairs: Mapping[str, Pair]
    mark: Mark = NOWHERE


Node = Scalar | Series | Pairs


def from_python(value: object) -> Node:
    """Give plain Python values the form of a file, so that both go through the same checks.

    Raises TypeError for anything but mappings, lists, tuples, strings, numbers, dates and None.
    """
    match value:
        case Scalar() | Series() | Pairs():
            return value
        case Mapping():
            return Pairs({str(key): Pair(from_python(item)) for key, item in value.items()})
        case list() | tuple():
            return Series(tuple(map(from_python, value)))
        case None:
            return Scalar("", bare=True, null=True)
        case str():
            return Scalar(value)
        case bool():
            return Scalar(str(value).lower(), bare=True)
        case int() | float():
            return Scalar(repr(value), bare=True)
        case date():
            return Scalar(value.isoformat(), bare=True)
    raise TypeError(f"a config cannot hold {type(value).__name__}")


def joined(path: Sequence[str | int]) -> str:
    """A path as people write it: `users.alice.keys[0].name`."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in path)
    return "".join(parts).removeprefix(".")


def shown(text: str, limit: int = 60) -> str:
    """Text as one short, printable piece of a message."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def quoted(scalar: Scalar) -> str:
    """The subject of a sentence about this value."""
    return "this value" if scalar.from_env else f"'{shown(scalar.text)}'"
