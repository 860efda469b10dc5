"""What is fuzzed: a function of bytes that must hold for any, and what makes chance likely to find something.

A target raises AssertionError, or lets through what should not have been raised; both are finds. Its first
bytes choose among the ways to go, as `Choices`; the rest is what is given to the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")
_MOST_RUNS: Final = 5  # of long ones, in one input
_BYTE_BY_BYTE: Final = 600  # longer ones are cut in a few places only


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is fuzzed."""

    name: str
    run: Callable[[bytes], None]
    """Gives the bytes to the code, and asserts what must hold."""
    seeds: Callable[[], Iterable[bytes]]
    """What to begin with, beside the corpus."""
    words: tuple[bytes, ...] = ()
    """What means something to the code."""
    most_bytes: int = 2_048
    """No find needs more, and what is longer is slower to try."""
    short_runs: int = 20_000
    """As many as some seconds are enough for."""


class Choices:
    """Takes choices off the front of the bytes; behind their end it is always the first that is chosen."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int = 256) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value % below

    def flag(self) -> bool:
        return self.number(2) == 1

    def one_of(self, *some: T) -> T:
        return some[self.number(len(some))]

    @property
    def rest(self) -> bytes:
        return self._data[self._at :]


def pieces(data: bytes, cutting: int) -> list[bytes]:
    """Cut bytes into pieces, of which none is empty: 0 not at all, 1 everywhere, others here and there."""
    if cutting == 0 or len(data) < 2:
        return [data] if data else []
    chance = Random(cutting)
    if cutting == 1 and len(data) <= _BYTE_BY_BYTE:
        places = set(range(1, len(data)))
    else:
        places = {chance.randrange(1, len(data)) for _ in range(chance.choice((1, 2, 5, 20)))}
    return [data[start:end] for start, end in pairwise([0, *sorted(places), len(data)])]


def lengthened(body: bytes, run_bytes: int) -> bytes:
    """Put long runs where a byte stands for one: what is long is treated otherwise."""
    return body.replace(b"\1", b"x" * run_bytes, _MOST_RUNS)


def words(spaced: bytes, *others: bytes) -> tuple[bytes, ...]:
    """Take words apart that stand between blanks, and add those that have blanks in them."""
    return (*spaced.split(), *others)


def behind(*choices: int) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    """Give what puts the same choices in front of each of some bytes."""
    return lambda some: (bytes(choices) + each for each in some)
