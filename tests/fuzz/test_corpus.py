"""What was once worth to be kept while fuzzing still holds: all of it is tried, without a fuzzer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.target import Choices, Target, pieces
from tests.fuzz.targets import CORPUS, TARGETS

MOST_CORPUS_BYTES = 500_000


def inputs(target: Target) -> Iterator[tuple[str, bytes]]:
    """The seeds of a target, and its corpus, each with a name."""
    for number, seed in enumerate(target.seeds()):
        yield f"seed {number}", seed
    for path in sorted((CORPUS / target.name).iterdir()):
        yield path.name, path.read_bytes()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_all_that_is_kept_of_a_target_holds(target: Target) -> None:
    for name, data in inputs(target):
        try:
            target.run(data)
        except BaseException as exc:
            exc.add_note(f"It was {name} of {target.name}: {data!r}")
            raise


def test_each_target_has_a_corpus_and_each_corpus_a_target() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(target.name for target in TARGETS)


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_CORPUS_BYTES


# --- how bytes become choices and pieces ---------------------------------------------------------------


def test_bytes_that_have_run_out_choose_the_first() -> None:
    choices = Choices(b"\5")
    assert (choices.number(3), choices.flag(), choices.one_of("a", "b"), choices.rest) == (2, False, "a", b"")


@pytest.mark.parametrize("cutting", [0, 1, 2, 77, 255])
@pytest.mark.parametrize("data", [b"", b"x", b"some bytes of which pieces are made", b"long" * 1_000])
def test_pieces_are_not_empty_and_all_of_it(data: bytes, cutting: int) -> None:
    some = pieces(data, cutting)
    assert b"".join(some) == data
    assert all(some)
    assert cutting != 0 or len(some) <= 1
