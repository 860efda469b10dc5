"""The request log read back: the lines of all its files, in the order in which they were written.

Rules:

- The log is streamed, oldest file first; of a log of any size only one line is held.
- A line that cannot be used is counted and skipped: a full disk or a crash cuts lines.
- Of several logs each line counts once, however many hold it: some are collected, and the originals kept.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from errno import ENOENT
from pathlib import Path
from typing import BinaryIO, Final

from llmgateway.books.line import Line, read_line

MAX_LINE_BYTES: Final = 64 * 1024  # ours have about 500; a damaged file may be one endless line
MOST_KNOWN: Final = 2_000_000  # lines that are known again, at some 70 bytes; of more, those of late


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
            raise FileNotFoundError(ENOENT, "there is no request log", str(self._path))
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


def read_all(logs: Sequence[History], since: float = 0.0) -> Iterator[Line]:
    """Give the requests of several logs, one log after the other, each request once.

    It is the same if its id, its end and its gateway are: clients may choose ids. Raises as `History.read`.
    """
    if len(logs) == 1:
        yield from logs[0].read(since)
        return
    known, before = set[int](), set[int]()
    for log in logs:
        for line in log.read(since):
            key = hash((line.id, line.time, line.instance))
            if line.id and (key in known or key in before):
                continue
            known.add(key)
            if len(known) >= MOST_KNOWN // 2:
                known, before = set(), known
            yield line
