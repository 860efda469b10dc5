"""One event per line: constant text, varying fields, and the id of the request it belongs to.

Never a key, a prompt or an answer. Values are escaped, so that nothing a client or provider sends can forge a
line. Who does not read the log holds nobody up: lines are dropped, counted, and told of later.
"""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from copy import copy
from functools import lru_cache
from typing import Any, Final, Literal, TextIO

from llmgateway.veil import veiled

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")

MOST_WAITING_BYTES: Final = 256 * 1024
LAST_WORDS_S: Final = 1.0
LAST_LINES: Final = 300
"""So many of the log's lines are kept in memory, to be shown."""
_ROOT: Final = "llmgateway"
_BARE: Final = re.compile(r"[A-Za-z0-9_./:-]+")  # most values; the rest is looked at more closely
_MARKS: Final = frozenset(' "=')


class Events:
    """A named source of events; a thin face on a standard logger, so that any logging set-up works."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    @property
    def tells_info(self) -> bool:
        """True if what happens is logged, so that it pays to gather the facts."""
        return self._logger.isEnabledFor(logging.INFO)

    def debug(self, event: str, **fields: object) -> None:
        """Log what only somebody looking for a fault wants to read."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what happened."""
        self._emit(logging.INFO, event, fields)

    def info_each(self, event: str, many: Sequence[dict[str, object]]) -> None:
        """Log what happened many times: a line for the fields of each, in one record."""
        self._emit(logging.INFO, event, *many)

    def warning(self, event: str, **fields: object) -> None:
        """Log what the owner may want to mend."""
        self._emit(logging.WARNING, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log a fault of our own, with the traceback of the exception being handled."""
        self._emit(logging.ERROR, event, fields, traceback=True)

    def _emit(self, level: int, event: str, *many: dict[str, object], traceback: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        # Not by `log`, which would look through the stack for a caller that no line of ours names.
        failure = sys.exc_info() if traceback else None
        record = logging.LogRecord(self._logger.name, level, "", 0, event, None, failure)
        record.many = many
        self._logger.handle(record)


def configure(
    *, level: str, form: Literal["text", "json"], stream: TextIO | None = None, instance: str = ""
) -> None:
    """Send the program's log to `stream` (standard error by default), as text in colour on a terminal.

    `instance` is what this gateway is called among several, in every line.

    Other libraries speak from warning up. NO_COLOR in the environment keeps colours out (no-color.org).
    """
    # No line of ours names them (https://docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    coloured = (stream or sys.stderr).isatty() and not os.environ.get("NO_COLOR")
    handler = (
        logging.StreamHandler(stream) if stream is not None else _outlet() or Outlet(sys.stderr.fileno())
    )
    handler.setFormatter(JsonLines(instance) if form == "json" else TextLines(instance, coloured=coloured))
    root = logging.getLogger()
    if handler not in root.handlers:
        logging.basicConfig(handlers=[handler, LastLines()], force=True)
    root.setLevel(logging.WARNING)
    for name in ("python_multipart", "opentelemetry.trace"):  # they warn of bytes that clients send
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(_ROOT).setLevel(level.upper())


def dropped_lines() -> int:
    """Count the log lines that nobody was there to read."""
    outlet = _outlet()
    return 0 if outlet is None else outlet.dropped


def last_lines() -> list[str]:
    """Give the log's last lines, the oldest first."""
    kept = next((each for each in logging.getLogger().handlers if isinstance(each, LastLines)), None)
    return [] if kept is None else kept.lines()


def _outlet() -> "Outlet | None":
    return next((each for each in logging.getLogger().handlers if isinstance(each, Outlet)), None)


class LastLines(logging.Handler):
    """Keeps the log's last lines in memory. They are put into words when somebody wants to read them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextLines())
        self._kept: deque[str | tuple[logging.LogRecord, dict[str, object], str]] = deque(maxlen=LAST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a record tells, and nothing that its traceback or its arguments hold on to."""
        many = getattr(record, "many", None)
        if many is None or record.exc_info:
            self._kept.extend(self.format(record).split("\n"))
        else:
            current = request_id.get()
            self._kept.extend([(record, fields, current) for fields in many[-LAST_LINES:]])

    def lines(self) -> list[str]:
        """Give them, the oldest first."""
        self.acquire()
        kept = list(self._kept)
        self.release()
        return [each if isinstance(each, str) else self._line(*each) for each in kept]

    def _line(self, record: logging.LogRecord, fields: dict[str, object], current: str) -> str:
        one = copy(record)
        one.many = (fields,)
        reader = request_id.set(current)
        try:
            return self.format(one)
        finally:
            request_id.reset(reader)


class Outlet(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own, as far as they are read there."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        """How many lines found no room."""
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._untold = 0
        self._ended = False
        self._work = threading.Condition()
        # Not waited for when Python ends: it may never come back from a pipe that nobody reads.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written in a moment."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        lines = (text + "\n").encode("utf-8", "backslashreplace")
        with self._work:
            if self._waiting_bytes + len(lines) > MOST_WAITING_BYTES:
                count = lines.count(b"\n")
                self.dropped += count
                self._untold += count
                return
            self._lines.append(lines)
            self._waiting_bytes += len(lines)
            self._work.notify()

    def close(self) -> None:
        """Write what waits, if it is read soon enough."""
        with self._work:
            self._ended = True
            self._work.notify()
        self._thread.join(LAST_WORDS_S)
        super().close()

    def _write_all(self) -> None:
        while True:
            with self._work:
                while not self._lines and not self._ended:
                    self._work.wait()
                if not self._lines:
                    return
                data = b"".join(self._lines)
                self._lines.clear()
            self._write(data)
            with self._work:
                self._waiting_bytes -= len(data)
                untold, self._untold = self._untold, 0
            if untold:
                self._write(self._confession(untold))

    def _confession(self, count: int) -> bytes:
        record = logging.LogRecord(_ROOT, logging.WARNING, "", 0, "log lines were dropped", None, None)
        record.many = ({"lines": count, "why": "nobody read them"},)
        return (self.format(record) + "\n").encode()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # who gave us the descriptor has set it so
                select.select([], [self._descriptor], [])
            except OSError:  # its reader has gone for good
                with self._work:
                    self.dropped += bytes(view).count(b"\n")
                return


def _fields_of(record: logging.LogRecord, instance: str) -> Iterator[dict[str, Any]]:
    """Give the fields of each line that a record makes; one of another library makes a line without any."""
    current = request_id.get()
    each: dict[str, Any]
    for each in getattr(record, "many", ({},)):
        fields = each if not current or "request" in each else each | {"request": current}
        fields = fields | {"instance": instance} if instance else fields
        yield {name: value for name, value in fields.items() if value is not None and value != ""}


class _Lines(logging.Formatter):
    """What both forms have in common: the time, which is told anew only once a second."""

    def __init__(self, instance: str = "") -> None:
        super().__init__()
        self._instance = instance
        self._second = (0, "")

    def stamp(self, record: logging.LogRecord) -> str:
        """Give the time in UTC, to the millisecond."""
        second = int(record.created)
        if self._second[0] != second:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second[1]}.{str(1000 + int(record.msecs))[1:]}Z"


_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}  # SGR


class TextLines(_Lines):
    """`time level event name=value ...`, for people."""

    def __init__(self, instance: str = "", *, coloured: bool = False) -> None:
        super().__init__(instance)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback follows on lines of its own."""
        level = f"{record.levelname.lower():<7}"
        before = after = ""
        if self._coloured:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
            before, after = "\x1b[2m", "\x1b[0m"
        head = f"{self.stamp(record)} {level} {_one_line(record.getMessage())}{before}"
        lines = [f"{head}{_facts(fields)}{after}" for fields in _fields_of(record, self._instance)]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return veiled("\n".join(lines))


class JsonLines(_Lines):
    """One JSON object a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback is one more field."""
        head = {"time": self.stamp(record), "level": record.levelname.lower(), "event": record.getMessage()}
        tail = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        told = _fields_of(record, self._instance)
        lines = (json.dumps(head | fields | tail, default=str) for fields in told)
        return veiled("\n".join(lines))


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


def _facts(fields: dict[str, Any]) -> str:
    return "".join(
        [
            f" {name}={_plain(value) if type(value) is str else _plain(_words(value))}"
            for name, value in fields.items()
        ]
    )


def _words(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@lru_cache(1024)  # most of what is logged has been logged before
def _plain(text: str) -> str:
    if (
        (text.isascii() and text.isalnum())
        or _BARE.fullmatch(text)
        or (text.isprintable() and text and not _MARKS.intersection(text))
    ):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
