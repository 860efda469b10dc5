"""Read off a large JSON body, as it comes, what `peek` reads off a small one.

Rules:

- It is looked at in steps, and no step is long, whatever it is made of: who looks lets others go on between.
- Strings, and objects without objects in them, are skipped by a pattern each; nothing is built of them.
- What is no JSON to `peek` may pass here, if it is only deep inside of a value: servers judge that. What
  passes there passes here, and says the same; but half a surrogate pair in what was said stays as it came.
- The body may grow between two looks; nothing holds on to its memory.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from llmgateway.api.endpoints import Body
from llmgateway.api.found import KNOWN, SAID, SERIES, SYSTEMS, TEXTS, Findings, Value
from llmgateway.api.multipart import Span
from llmgateway.api.peek import STEP_BYTES, Peek, as_json
from llmgateway.api.unreadable import bad
from llmgateway.errors import GatewayError

_DENSE_STEP_BYTES: Final = 4 * 1024  # of what is no string and no plain turn: each bracket takes its time
_STEP_TURNS: Final = 256  # plain ones, which take less than a microsecond each
_MOST_DEPTH: Final = 10_000
_MOST_KNOWN: Final = 10_000  # members that say something to us: each takes its time, and the last counts
_KEY_BYTES: Final = 256  # of one that may be among those we know, escapes and all
_BLANK: Final = re.compile(rb"[ \t\r\n]*+")
_COMMAS: Final = re.compile(rb"[ \t\r\n,]*+")
_IN_STRING: Final = re.compile(rb'(?s:[^"\\]++|\\.)*+')
_SCALAR: Final = re.compile(rb'[^ \t\r\n,:"\[\]{}]*+')
_STRING: Final = rb'"(?s:[^"\\]++|\\.)*+"'
_WHOLE_STRING: Final = re.compile(_STRING)
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MOST_ROUNDS: Final = 64  # of pairs that are taken out of a step: what is nested deeper takes longer
_FLAT: Final = rb'[^"\[\]{}]*+(?:%b[^"\[\]{}]*+)*+' % _STRING
_PLAIN_TURN: Final = rb"[ \t\r\n,]*+(%b|\{%b\})"
_ANY_PLAIN_TURN: Final = re.compile(_PLAIN_TURN % (_STRING, _FLAT))
# Where no backslash follows another, whatever is no quote is skipped in a third of the time.
_SIMPLE_STRING: Final = rb'"[^"]*+(?:(?<=\\)"[^"]*+)*+"'
_SIMPLE_PLAIN_TURN: Final = re.compile(_PLAIN_TURN % (_SIMPLE_STRING, _FLAT.replace(_STRING, _SIMPLE_STRING)))
# Up to the next bracket that counts: it opens (1) or closes (2) something, or a string begins that is not at
# its end yet (3).
_BRACKET: Final = re.compile(
    rb'(?:[^"\[\]{}]++|%b|\{%b\}|\[%b\])*+(?:([\[{])|([\]}])|("))?' % (_STRING, _FLAT, _FLAT)
)


# Members, up to the last comma, that say nothing to us and are no deeper than an object.
_UNKNOWN: Final = re.compile(
    rb'(?:[ \t\r\n]*+"(?!(?:%b)")[^"\\]*+"[ \t\r\n]*+:[ \t\r\n]*+'
    rb'(?:%b|[^ \t\r\n,:"\[\]{}]++|\{%b\}|\[%b\])[ \t\r\n]*+,)++'
    % ("|".join(KNOWN).encode(), _STRING, _FLAT, _FLAT)
)


class Skim:
    """A look at one body. `look` whenever there is more of it; `peek` at its end.

    It is long as each state of the reading is a method of it, of a few lines.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self._at = 0
        self._seen = 0
        self._checked = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        # Of the class and not of this object, which would hold itself, and the body, until it is found.
        self._state: Callable[[Skim, int], bool] = Skim._opening
        self._then: Callable[[Skim], None] = Skim._key_done
        self._key = ""
        self._value = Value(0)
        self._findings = Findings(body)
        self._start = 0
        self._depth = self._floor = 0
        self._outer: Callable[[Skim], None] = Skim._key_done
        self._closed_at = -1
        self._known = 0
        self._took_turns = False
        """True if plain turns were taken in this step."""
        self.is_empty = True
        """True if the object has no member."""

    # -- for who has the body

    def look(self) -> Iterator[None]:
        """Look at what has come since the last time, a step at a time. Raises GatewayError (400)."""
        size = len(self.body)
        while self._seen < size:
            self._took_turns = False
            dense = self._is_dense
            end = min(self._seen + (_DENSE_STEP_BYTES if dense else STEP_BYTES), size)
            self._check_utf8(end)
            while self._at < end and self._state(self, end):
                if not dense and self._is_dense:
                    dense, end = True, min(end, self._at + _DENSE_STEP_BYTES)
            self._seen = self._at if self._took_turns else end
            if self._listens:
                self._value.hear(self.body, self._start, self._at)
            yield

    def peek(self, default: str = "") -> Peek:
        """Tell what the whole body says, with a model for one that has none. Raises GatewayError (400)."""
        self._check_utf8(len(self.body), final=True)
        if not self.body:
            raise bad("The request body is empty; a JSON object with a 'model' is needed.")
        if self._closed_at < 0:
            raise bad("The request body is not valid JSON: input data was truncated.")
        return self._findings.peek(default)

    @property
    def closed_at(self) -> int:
        """Where the brace stands that ends the body."""
        return self._closed_at

    # -- steps: each goes on from where the last one stopped, and tells whether it got anywhere

    def _check_utf8(self, end: int, *, final: bool = False) -> None:
        try:
            if self._checked < end or final:
                self._utf8.decode(self.body[self._checked : end], final=final)
        except UnicodeDecodeError:
            raise bad("The request body is not valid UTF-8.") from None
        self._checked = max(self._checked, end)

    def _next(self, blank: re.Pattern[bytes], end: int) -> int:
        """Give the next byte behind blanks; -1 if there is none yet."""
        found = blank.match(self.body, self._at, end)
        assert found is not None
        self._at = found.end()
        return self.body[self._at] if self._at < end else -1

    def _opening(self, end: int) -> bool:
        if not self._at and self.body.startswith(codecs.BOM_UTF8[:end]) and end:
            if end < len(codecs.BOM_UTF8):
                return False
            self._at = len(codecs.BOM_UTF8)
        byte = self._next(_BLANK, end)
        if byte < 0:
            return False
        if byte != ord("{"):
            if byte in b'["-0123456789tfn':
                raise bad("The request body must be a JSON object.")
            raise self._malformed()
        self._at += 1
        self._state = Skim._key_or_end
        return True

    def _key_or_end(self, end: int) -> bool:
        byte = self._next(_BLANK, end)
        if byte == ord("}"):
            self._close()
            return True
        return self._key_begins(byte)

    def _next_key(self, end: int) -> bool:
        if (found := _UNKNOWN.match(self.body, self._at, end)) is not None:
            self._at = found.end()
        return self._key_begins(self._next(_BLANK, end))

    def _key_begins(self, byte: int) -> bool:
        if byte < 0:
            return False
        if byte != ord('"'):
            raise self._malformed()
        self.is_empty = False
        self._value = Value(self._at)
        self._key = ""
        self._begin_string(Skim._key_done)
        return True

    def _begin_string(self, then: Callable[["Skim"], None]) -> None:
        self._start = self._at
        self._at += 1
        self._state, self._then = Skim._string, then

    def _string(self, end: int) -> bool:
        found = _IN_STRING.match(self.body, self._at, end)
        assert found is not None
        self._at = found.end()
        if self._key in TEXTS and self._depth == 0:
            self._value.hear_text(self.body, self._at)
        if self._at >= end or self.body[self._at] != ord('"'):
            return False  # a backslash waits for what it escapes
        self._at += 1
        self._then(self)
        return True

    def _key_done(self) -> None:
        if self._at - self._start < _KEY_BYTES:
            written = bytes(self.body[self._start : self._at])
            if b"\\" in written:
                try:
                    self._key = msgspec.json.decode(as_json(written), type=str)
                except msgspec.DecodeError:
                    raise self._malformed() from None
            else:
                self._key = written[1:-1].decode("utf-8", "replace")
        self._state = Skim._colon

    def _colon(self, end: int) -> bool:
        byte = self._next(_BLANK, end)
        if byte < 0:
            return False
        if byte != ord(":"):
            raise self._malformed()
        self._at += 1
        self._state = Skim._value_begins
        return True

    def _value_begins(self, end: int) -> bool:
        byte = self._next(_BLANK, end)
        if byte < 0:
            return False
        value = self._value = Value(self._at)
        self._start = self._at
        if byte == ord('"'):
            self._begin_string(Skim._value_done)
        elif byte == ord("[") and self._key in SERIES:
            value.listed = True
            self._at += 1
            self._depth = 1
            self._state = Skim._between
        elif byte in b"[{":
            self._begin_inside(Skim._value_done)
        else:
            self._state, self._then = Skim._scalar, Skim._value_done
        return True

    def _scalar(self, end: int) -> bool:
        found = _SCALAR.match(self.body, self._at, end)
        assert found is not None
        self._at = found.end()
        if self._at >= end:
            return False
        if self._at == self._start:
            raise self._malformed()
        self._then(self)
        return True

    def _begin_inside(self, then: Callable[["Skim"], None]) -> None:
        self._start = self._at
        self._at += 1
        self._depth += 1
        self._state = Skim._inside
        self._floor, self._outer = self._depth - 1, then

    def _inside(self, end: int) -> bool:
        """Go to the bracket that closes a value."""
        if self._at == self._seen and self._passes_over(end):
            return False
        body, at, depth, floor = self.body, self._at, self._depth, self._floor
        match = _BRACKET.match
        while at < end:
            found = match(body, at, end)
            assert found is not None
            at = found.end()
            what = found.lastindex
            if what == 1:
                depth += 1
            elif what == 2:
                depth -= 1
                if depth == floor:
                    self._at, self._depth = at, depth
                    self._outer(self)
                    return True
            elif what == 3:
                self._state, self._then = Skim._string, Skim._go_on_inside
                break
        self._at, self._depth = at, depth
        self._check_depth()
        return self._state == Skim._string

    def _passes_over(self, end: int) -> bool:
        """Go over a step in one go, if the value surely does not end there and no string is cut off."""
        rest = _WHOLE_STRING.sub(b"", self.body[self._at : end])
        if b'"' in rest:
            return False
        brackets = rest.translate(None, _NO_BRACKETS)
        for _ in range(_MOST_ROUNDS):
            before, brackets = brackets, brackets.replace(b"[]", b"").replace(b"{}", b"")
            if len(before) == len(brackets):
                break
        closing = brackets.count(b"]") + brackets.count(b"}")
        if closing >= self._depth - self._floor:
            return False
        self._at, self._depth = end, self._depth + len(brackets) - 2 * closing
        self._check_depth()
        return True

    def _check_depth(self) -> None:
        if self._depth > _MOST_DEPTH:
            raise bad("The request body is nested too deeply.")

    def _go_on_inside(self) -> None:
        self._state = Skim._inside

    def _between(self, end: int) -> bool:
        """Go through the elements of a list of turns."""
        if self._value.too_many:
            self._state, self._floor, self._outer = Skim._inside, 0, Skim._value_done
            return True
        self._take_plain_turns(end)
        byte = self._next(_COMMAS, end)
        if byte < 0:
            return False
        start = self._at
        if byte == ord("]"):
            self._at += 1
            self._depth = 0
            self._value_done()
        elif self._took_turns:
            return False  # it may be a plain one that the end of the step has cut off
        elif byte == ord('"'):
            self._begin_string(Skim._element_done)
        elif byte in b"[{":
            self._begin_inside(Skim._element_done)
        else:
            self._start = start
            self._state, self._then = Skim._scalar, Skim._element_done
        return True

    def _take_plain_turns(self, end: int) -> None:
        """Take the turns that come next, as far as they are strings, or objects without objects in them."""
        body, at = self.body, self._at
        is_simple = body.find(rb"\\", at, end) < 0
        match = (_SIMPLE_PLAIN_TURN if is_simple else _ANY_PLAIN_TURN).match
        places: list[Span] = []
        while len(places) < _STEP_TURNS and (found := match(body, at, end)) is not None:
            at = found.end()
            places.append(found.span(1))
        if places:
            self._value.take_short(body, places)
            self._at = self._start = at
            self._took_turns = True

    def _element_done(self) -> None:
        self._state = Skim._between
        self._take(self._start, self._at)

    def _value_done(self) -> None:
        value = self._value
        value.stop = self._at
        if self._key in SAID and not value.listed and self._is_turn(value):
            self._take(value.start, value.stop)
        if self._key in KNOWN:
            self._known += 1
            if self._known > _MOST_KNOWN:
                raise bad(f"The request body says '{self._key}' and the like again and again.")
            self._findings.found[self._key] = value
        self._key = ""
        self._state = Skim._comma

    def _is_turn(self, value: Value) -> bool:
        return self._key in SYSTEMS or self.body[value.start] == ord('"')

    def _comma(self, end: int) -> bool:
        byte = self._next(_BLANK, end)
        if byte < 0:
            return False
        if byte == ord(","):
            self._at += 1
            self._state = Skim._next_key
        elif byte == ord("}"):
            self._close()
        else:
            raise self._malformed()
        return True

    def _close(self) -> None:
        self._closed_at = self._at
        self._at += 1
        self._state = Skim._behind

    def _behind(self, end: int) -> bool:
        if self._next(_BLANK, end) >= 0:
            raise bad(f"The request body is not valid JSON: trailing characters (byte {self._at}).")
        return False

    def _malformed(self) -> GatewayError:
        return bad(f"The request body is not valid JSON: invalid character (byte {self._at}).")

    @property
    def _is_dense(self) -> bool:
        """False for what is gone over quickly, however much there is of it."""
        return self._state not in (Skim._string, Skim._between)

    @property
    def _listens(self) -> bool:
        """True while one thing that was said is being read."""
        return self._key in SAID and not self._value.too_many and self._state != Skim._between

    def _take(self, start: int, stop: int) -> None:
        self._value.take(self.body, start, stop)
        self._start = stop
