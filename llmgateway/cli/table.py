"""Columns of text for a terminal: wide characters keep in line, and nothing in a cell steers the terminal."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

MAX_CELL: Final = 48


def align(rows: Iterable[Sequence[str]], *, names: int | None = None, widest: int = MAX_CELL) -> list[str]:
    """Draw rows of cells as lines, in columns as wide as need be; a cell is cut to `widest` characters.

    The first `names` columns (all, if None) stand to the left, those of numbers to the right.
    """
    cells = [[printable(cell, widest) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return [_line(row, widths, len(widths) if names is None else names) for row in cells]


def _line(cells: Sequence[str], widths: Sequence[int], names: int) -> str:
    """Pad the cells to their columns: names behind them, numbers before them."""
    padded = []
    for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(cell))
        padded.append(cell + space if at < names else space + cell)
    return "  ".join(padded).rstrip()


def printable(text: str, longest: int = MAX_CELL) -> str:
    """Write what a terminal does not simply show as escapes, and cut what is long."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:longest]
    )
    return shown if len(text) <= longest and len(shown) <= longest else shown[: longest - 3] + "..."


def _width(text: str) -> int:
    """Count the places that a text takes in a terminal: two for a wide character, none for an accent."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
