"""Columns for a terminal: aligned whatever stands in them, and without what steers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.cli.table import MAX_CELL, align, printable


def test_names_stand_to_the_left_and_numbers_to_the_right() -> None:
    assert align([("NAME", "KIND", "N"), ("a", "b", "1,000")], names=2) == [
        "NAME  KIND      N",
        "a     b     1,000",
    ]
    assert align([("NAME", "KIND"), ("a", "b")]) == ["NAME  KIND", "a     b"]


def test_wide_characters_keep_the_columns_aligned() -> None:
    names = ("abcd", "日本", "e\N{COMBINING ACUTE ACCENT}va")
    drawn = align([(name, "1") for name in names])
    assert drawn == [f"{name}{padding}  1" for name, padding in zip(names, ("", "", " "), strict=True)]


def test_a_cell_is_cut_to_what_there_is_place_for() -> None:
    assert align([("x" * 99, "1")], widest=9) == ["xxxxxx...  1"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"), ("a\nb", "a\\nb"), ("\r\t\0\x7f\x9b", "\\r\\t\\x00\\x7f\\x9b"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "a\\u202eb"), ("gr\xfc\xdfe \N{SNOWMAN}", "gr\xfc\xdfe \N{SNOWMAN}"),
        ("x" * MAX_CELL, "x" * MAX_CELL), ("x" * 1000, "x" * (MAX_CELL - 3) + "..."),
        ("\0" * 40, ("\\x00" * 40)[: MAX_CELL - 3] + "..."),
    ],
)  # fmt: skip
def test_names_are_shown_without_what_steers_a_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(name=st.text(min_size=1))
def test_nothing_in_a_cell_reaches_the_terminal_raw(name: str) -> None:
    assert printable(name).isprintable()
    assert all(line.isprintable() for line in align([(name, "1"), ("x", name)]))
