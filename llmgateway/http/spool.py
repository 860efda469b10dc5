"""A body in a temporary file without a name: written and read in threads, gone when it is let go."""

import asyncio
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from types import TracebackType
from typing import Final, TypeVar

from llmgateway.api.endpoints import Body, Buffer
from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.http.room import RETRY_S
from llmgateway.http.upload import PIECE_BYTES, Upload
from llmgateway.log import Events

events = Events("spool")

T = TypeVar("T")

BATCH_BYTES: Final = 1 << 20
"""So much is written at a time: to go to a thread and back costs more than a piece."""


class Spool:
    """A file for one body. Use as `with`."""

    def __init__(self, folder: str | None) -> None:
        """Have it in a folder, once it is written to; None is the system's for temporary files."""
        self.size = 0
        self._folder = folder
        self._file: FileIO | None = None
        self._at_work = threading.Lock()
        self._ended = False

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self.size or self._at_work.locked():  # a thread: to give back a large file takes its time
            asyncio.get_running_loop().run_in_executor(None, self._close)

    async def add(self, data: Body) -> None:
        """Write more of the body. Raises GatewayError (503)."""
        self.size += len(data)
        await self._in_thread(lambda: self._write(data))

    async def read(self, offset: int) -> bytes:
        """Give the piece that begins at an offset; nothing at the end. Raises GatewayError (503)."""
        return await self._in_thread(lambda: self._read(offset))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as exc:
            events.warning("the spool cannot be used", folder=self._folder or "", trouble=exc.strerror)
            words = "There is no room on disk for so large a body; a form may name its model before its file."
            raise GatewayError(OVERLOADED, words, (("Retry-After", str(RETRY_S)),)) from None

    # -- in threads

    def _write(self, data: Body) -> None:
        with self._at_work:
            if self._ended:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def _read(self, offset: int) -> bytes:
        with self._at_work:
            if self._ended or self._file is None:
                return b""
            self._file.seek(offset)
            return self._file.read(PIECE_BYTES)

    def _close(self) -> None:
        with self._at_work, suppress(OSError):
            if self._file is not None:
                self._file.close()


class Spooled(Upload):
    """A body of which all but its beginning is in a file."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool.size)
        self._spool = spool

    async def read(self, offset: int) -> Buffer:
        """Give a part of it."""
        return await self._spool.read(offset)
