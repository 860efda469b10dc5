"""Find the id that a kept answer has, in the first bytes of it as they pass, streamed or not.

An answer in one piece has it as `id`, a stream in the `response` of its first events. The rules:

- Only there: what stands deeper may be the words of anybody. A model's words are inside strings.
- However an answer is cut into pieces, the same is found. Whatever the bytes, nothing raises.
- Each byte is looked at once, and no more than so many of them; nothing but the last few are kept.
"""

import re
import zlib
from typing import Final

from llmgateway.api.inflate import Inflater, TooMuch

MOST_BYTES: Final = 64 * 1024
"""How much of an answer is looked at, as it is when decompressed."""
_MOST_STEPS: Final = 8_000
_ID_CHARACTERS: Final = 512
_ID: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_~:=+-]|\.(?!\.))*+")
_DATA: Final = b"data:"
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_STEP: Final = re.compile(rb'[{}\[\],\n]|"(?:[^"\\\n]++|\\[^\n])*+("?)')
_REST: Final = re.compile(rb'(?:[^"\\\n]++|\\[^\n])*+("?)')


def is_id(text: str) -> bool:
    """Tell whether something can be the id of an answer: it is as safe in a path as it is."""
    return len(text) <= _ID_CHARACTERS and _ID.fullmatch(text) is not None


class IdFinder:
    """Looks for the id of one answer."""

    __slots__ = (
        "_depth",
        "_inflater",
        "_inside",
        "_key",
        "_left",
        "_level",
        "_long",
        "_steps",
        "_text",
        "over",
    )

    def __init__(self, coding: bytes = b"") -> None:
        """Begin; `coding` is the answer's Content-Encoding."""
        self.over = False
        """True once there is nothing more to look for."""
        self._inflater: Inflater | None = None
        if coding not in (b"", b"identity"):
            self._inflater = Inflater(coding) if coding in Inflater.CODINGS else None
            self.over = self._inflater is None
        self._left = MOST_BYTES
        self._steps = _MOST_STEPS
        self._text = b""
        """What came, and could not be looked at yet."""
        self._level = 0
        """How deep the id stands: 1 in an answer in one piece, 2 in an event, 0 before that is known."""
        self._depth = -1
        """How deep we are: 0 at the beginning of some JSON, -1 where there is none."""
        self._inside = False
        self._key = b""
        """The last string since a comma or a brace, with its quotes: where another follows, its key."""
        self._long = False
        """Whether we are in a string that is too long to matter."""

    def feed(self, data: bytes) -> str:
        """Look at the next piece of an answer; gives the id once it has come, and nothing before."""
        if self.over:
            return ""
        if self._inflater is None:
            return self._look(data)
        try:
            for piece in self._inflater.inflate(data):
                if (found := self._look(piece)) or self.over:
                    return found
        except (zlib.error, TooMuch):
            self.over = True
        return ""

    def _look(self, data: bytes) -> str:
        if self.over:
            return ""
        text, self._text = self._text + data[: self._left], b""
        self._left -= len(data)
        found = self._walk(text)
        if self._left <= 0 or self._steps <= 0:
            self.over = True
        return found

    def _walk(self, text: bytes) -> str:
        """Go from one brace, comma or string to the next."""
        at = 0
        if not self._level:
            at = len(text) - len(text.lstrip(_BLANK))
            if at == len(text):
                return ""
            self._level, self._depth = (1, 0) if text.startswith(b"{", at) else (2, -1)
        while self._steps > 0 and not self.over:
            if self._depth < 0:
                at = self._to_data(text, at)
                if self._depth < 0:
                    return ""
            step = (_REST.match if self._long else _STEP.search)(text, at)
            if step is None:
                return ""
            at, what = step.end(), step[0]
            if step[1] is not None and not step[1] and self._goes_on(text, step):
                return ""
            self._steps -= 1
            self._long, was_long = False, self._long
            if found := self._take(b'""' if was_long else what):
                return found
        return ""

    def _to_data(self, text: bytes, at: int) -> int:
        """Go on from the beginning of a line to the data of the next event."""
        if not text.startswith(_DATA, at):
            found = text.find(b"\n" + _DATA, at)
            if found < 0:
                rest = text[max(at, text.rfind(b"\n") + 1) :]
                self._text = rest if _DATA.startswith(rest) else b":"  # some other field
                return len(text)
            at = found + 1
        self._depth = 0
        return at + len(_DATA)

    def _goes_on(self, text: bytes, step: re.Match[bytes]) -> bool:
        """Tell whether a string that has no end yet may have one in the next piece."""
        left = len(text) - step.end()
        if left > 1 or (left and not text.endswith(b"\\")):
            return False  # a line ends in it: it is none
        if self._long or len(step[0]) > _ID_CHARACTERS + 1:
            self._long, self._text = True, text[step.end() :]
        else:
            self._text = text[step.start() :]
        return True

    def _take(self, what: bytes) -> str:
        """Learn what comes next; gives the id if that is it."""
        if what[:1] == b'"':
            if self._inside and self._depth == self._level and self._key == b'"id"':
                self.over = True
                found = what[1:-1].decode("latin-1")
                return found if is_id(found) else ""
            self._key = what
            return ""
        if what in b"{[":
            self._depth += 1
            if self._depth == self._level:
                self._inside = self._depth == 1 or self._key == b'"response"'
        elif what in b"}]":
            self._depth = max(0, self._depth - 1)
            self.over = self._level == 1 and not self._depth
        elif what == b"\n" and self._level == 2:
            self._depth = -1
        self._key = b""
        return ""
