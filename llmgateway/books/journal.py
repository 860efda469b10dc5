"""The request log on disk: JSON lines, written behind the event loop's back, rotated by size.

Lines wait in a bounded buffer, in blocks as they were booked. A task hands what has gathered to a thread, a
few times a second at most. A full or broken disk costs lines, never requests: what cannot be written is
dropped, counted, and complained about once.
"""

import asyncio
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from llmgateway.log import Events

events = Events("journal")

MOST_LINES: Final = 20_000
PAUSE_S: Final = 0.25
_LAST_WORDS_S: Final = 2.0
_MODE: Final = 0o600  # it tells who used what, and when


class Journal:
    """Writes the request log. Use as `async with`; leaving writes what is left."""

    def __init__(self, path: Path | None, *, size_bytes: int, keep: int) -> None:
        self.dropped = 0
        """Lines that could not be written since the start."""
        self._file = _Rotated(path, size_bytes, keep)
        self._blocks: deque[tuple[bytes, int]] = deque()
        """Lines that are not written yet, and how many."""
        self._held = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._broken = False

    def adopt(self, path: Path | None, *, size_bytes: int, keep: int) -> None:
        """Write to another file, or by other rules, whatever is not written yet."""
        if path != self._file.path:
            self._broken = False
        self._file = _Rotated(path, size_bytes, keep)

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take lines; they are on disk a moment later."""
        if self._file.path is None or not lines:
            return
        if taken := lines[: MOST_LINES - self._held]:
            block = b"".join([orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in taken])
            self._blocks.append((block, len(taken)))
            self._held += len(taken)
        if len(taken) < len(lines):
            self._lose(len(lines) - len(taken), "the disk is too slow")
        self._news.set()

    async def __aenter__(self) -> "Journal":
        self._task = asyncio.create_task(self._keep_writing())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._write_all()
        except TimeoutError:
            self._lose(self._held, "the disk is too slow")

    async def _keep_writing(self) -> None:
        while True:
            await self._news.wait()
            await self._write_all()
            await asyncio.sleep(PAUSE_S)  # so that a busy gateway writes many lines at a time

    async def _write_all(self) -> None:
        self._news.clear()
        if not self._blocks or self._file.path is None:
            self._forget(len(self._blocks))
            return
        blocks = [block for block, _ in self._blocks]
        writing = _aside(partial(self._file.append, blocks))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing], timeout=_LAST_WORDS_S)  # else they would be written once more
            raise
        except OSError:
            pass  # it is told below
        finally:
            self._judge(writing, self._forget(len(blocks)))

    def _forget(self, blocks: int) -> int:
        """Let go of the oldest lines; gives how many they are."""
        lines = sum(self._blocks.popleft()[1] for _ in range(blocks))
        self._held -= lines
        return lines

    def _judge(self, writing: asyncio.Future[None], lines: int) -> None:
        """Tell whether so many lines are written or lost."""
        trouble = writing.exception() if writing.done() else TimeoutError("the disk is too slow")
        if trouble is None:
            self._broken = False
        else:
            self._lose(lines, getattr(trouble, "strerror", None) or str(trouble))

    def _lose(self, count: int, why: str) -> None:
        self.dropped += count
        if count and not self._broken:
            self._broken = True
            events.warning(
                "cannot write the request log; its lines are dropped", file=self._file.path, why=why
            )


def _aside(function: Callable[[], None]) -> asyncio.Future[None]:
    """Run a function in a thread that does not keep the process from ending, as those of an executor do.

    A disk that hangs (a share whose server is gone, a pipe that nobody reads) must not hold up the end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(trouble: BaseException | None) -> None:
        if done.done():
            return
        if trouble is None:
            done.set_result(None)
        else:
            done.set_exception(trouble)

    def run() -> None:
        trouble: BaseException | None = None
        try:
            function()
        except Exception as exc:
            trouble = exc
        try:
            loop.call_soon_threadsafe(tell, trouble)
        except RuntimeError:
            pass  # the loop has ended meanwhile

    threading.Thread(target=run, name="request log", daemon=True).start()
    return done


class _Rotated:
    """A file, and those it was before: `name`, `name.1`, `name.2`, ..."""

    def __init__(self, path: Path | None, size_bytes: int, keep: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._keep = keep

    def append(self, blocks: Sequence[bytes]) -> None:
        """Write to the end; the file is opened anew each time, as it may have been moved or removed.

        Raises OSError.
        """
        assert self.path is not None
        if self._is_full(self.path):
            self._rotate(self.path)
        with open(self.path, "ab", opener=_private) as opened:
            regular = stat.S_ISREG(os.fstat(opened.fileno()).st_mode)  # /dev/stdout, a pipe, is as good
            cut = regular and opened.tell() > 0 and not self._ends_with_a_line()
            opened.writelines((b"\n", *blocks) if cut else blocks)

    def _ends_with_a_line(self) -> bool:
        """Tell whether the last line is whole; a full disk may have cut it."""
        assert self.path is not None
        with self.path.open("rb") as opened:
            opened.seek(-1, 2)
            return opened.read(1) == b"\n"

    def _is_full(self, path: Path) -> bool:
        try:
            return path.stat().st_size >= self._size_bytes
        except FileNotFoundError:
            return False

    def _rotate(self, path: Path) -> None:
        if not self._keep:
            path.unlink()
            return
        beyond = self._keep + 1
        while numbered(path, beyond).exists():  # more were kept once
            numbered(path, beyond).unlink()
            beyond += 1
        for number in range(self._keep - 1, 0, -1):
            older = numbered(path, number)
            if older.exists():
                older.replace(numbered(path, number + 1))
        path.replace(numbered(path, 1))


def numbered(path: Path, number: int) -> Path:
    """Give the name of an older file of the log; 1 is the newest of those."""
    return path.with_name(f"{path.name}.{number}")


def _private(path: str, flags: int) -> int:
    waits = Path(path).is_fifo()  # for a reader, however long that takes
    return os.open(path, flags | (os.O_NONBLOCK if waits else 0), _MODE)
