"""One event per line: constant text, varying fields, and the id of the request it belongs to.

Never a key, a prompt or an answer. Values are escaped, so that nothing a client or provider sends can forge a
line.
"""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")

_ROOT: Final = "llmgateway"


class Events:
    """A named source of events; a thin face on a standard logger, so that any logging set-up works."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def debug(self, event: str, **fields: object) -> None:
        """Log what only somebody looking for a fault wants to read."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what happened."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what the owner may want to mend."""
        self._emit(logging.WARNING, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log a fault of our own, with the traceback of the exception being handled."""
        self._emit(logging.ERROR, event, fields, traceback=True)

    def _emit(self, level: int, event: str, fields: dict[str, object], *, traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=traceback, extra={"fields": fields})


def configure(*, level: str, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Send the program's log to `stream` (standard error by default).

    Other libraries speak from warning up.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_ROOT).setLevel(level.upper())


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = {name: value for name, value in getattr(record, "fields", {}).items() if value not in ("", None)}
    if current := request_id.get():
        facts.setdefault("request", current)
    return facts


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextLines(logging.Formatter):
    """`time level event name=value ...`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback follows on lines of its own."""
        facts = "".join(f" {name}={_plain(value)}" for name, value in _facts(record).items())
        line = f"{_stamp(record)} {record.levelname.lower():<7} {_one_line(record.getMessage())}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback is one more field."""
        line = {"time": _stamp(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= _facts(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


def _plain(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text.isprintable() and text and not any(mark in text for mark in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
