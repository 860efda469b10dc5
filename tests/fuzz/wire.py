"""A connection with nobody at its other end: what is written to it is kept, and nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

LOOP: Final = asyncio.SelectorEventLoop()
"""Runs one input after another; none leaves a task in it."""


class Line(asyncio.Transport):
    """A transport that takes everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._closing = False
        self.reading = True

    def write(self, data: Any) -> None:
        if not self._closing:
            self.written += bytes(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
