"""What looks like a key is shown to nobody, wherever it came in: a client's settings are easily mixed up.

A key that stands where a model, a path or a request's id belongs would be in the log, and in an error that
the client's own log repeats. Only keys as `gateway.py key` makes them, and as most services do, can be told
by their looks.
"""

import re
from typing import Final

_MARK: Final = "sk-"
_KEY: Final = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}")


def veiled(text: str) -> str:
    """Give a text without the keys in it."""
    return _KEY.sub("sk-***", text) if _MARK in text else text
