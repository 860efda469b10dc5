"""What a large body was found to say, and what of that counts.

The values that count are known by their places in the body; of what was said there are the prints.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, overload

import msgspec
from msgspec.structs import replace

from llmgateway.api.endpoints import DIALECTS, Body, Buffer
from llmgateway.api.multipart import Span
from llmgateway.api.peek import NAMES, Peek, peek_json
from llmgateway.api.prints import BLOCK_BYTES, COPIED_BYTES, LongPrint
from llmgateway.api.turns import MARKED_BYTES, is_marked, role_of, unmarked
from llmgateway.api.unreadable import bad

MOST_TURNS: Final = 20_000
"""Of a large body; with more of them it has none that are worth to be known."""
_SMALL_BYTES: Final = 8 * 1024  # of a value that is read, and not only measured
_SHORT_BYTES: Final = 2 * 1024  # of system prompts whose exact size may matter


def _names(some: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in some for name in names))


SYSTEMS: Final = _names(dialect.fields.system for dialect in DIALECTS)
SERIES: Final = _names(dialect.fields.turns for dialect in DIALECTS)
TEXTS: Final = _names(dialect.fields.text for dialect in DIALECTS)
_TOOLS: Final = _names(dialect.fields.tools for dialect in DIALECTS)
KNOWN: Final = frozenset(("model", "stream", *NAMES))
SAID: Final = frozenset((*SYSTEMS, *SERIES))
_NOT_READ: Final = frozenset((*SAID, *TEXTS, *_TOOLS))


class Value:
    """What stands behind a key of the body: its place and, where something was said, its turns."""

    __slots__ = (
        "_long",
        "_long_at",
        "leading",
        "listed",
        "prints",
        "said_bytes",
        "start",
        "starts",
        "stop",
        "stops",
        "too_many",
    )

    def __init__(self, start: int) -> None:
        self.start = self.stop = start
        self.listed = False
        self.starts, self.stops, self.prints = array("q"), array("q"), array("q")
        self.said_bytes = 0
        self.leading = 0
        """How many of its turns, from the first one on, are the system's."""
        self.too_many = False
        self._long: LongPrint | None = None
        self._long_at = 0

    def hear(self, body: Body, start: int, at: int) -> None:
        """Have the print made of a turn that is still coming, if it is a long one."""
        if at - start <= COPIED_BYTES:
            return
        if self._long is None:
            self._long, self._long_at = LongPrint(), start
        while self._long_at < at:
            stop = min(at, self._long_at + COPIED_BYTES)
            self._long.add(body[self._long_at : stop])
            self._long_at = stop

    def take(self, body: Body, start: int, stop: int) -> None:
        """Take in a turn that stands here."""
        if self.too_many:
            return
        self.hear(body, start, stop)
        if self._long is not None:
            self.prints.append(self._long.value())
            self.said_bytes += stop - start
            self._long = None
        else:
            content: Buffer = bytes(body[start:stop])
            if len(content) < MARKED_BYTES:
                content = unmarked(content)
            self.prints.append(hash(content))
            self.said_bytes += len(content)
        if self.leading == len(self.starts) and _speaks_for_the_system(body, start, stop):
            self.leading += 1
        self.starts.append(start)
        self.stops.append(stop)
        self.too_many = len(self.starts) > MOST_TURNS

    def take_short(self, body: Body, places: Sequence[Span]) -> None:
        """Take in short turns that follow one another, in a third of the time that `take` needs."""
        contents: list[Buffer] = [bytes(body[start:stop]) for start, stop in places]
        if is_marked(body[places[0][0] : places[-1][1]]):
            contents = list(map(unmarked, contents))
        for at, (start, stop) in enumerate(places, len(self.starts)):
            if self.leading != at or not _speaks_for_the_system(body, start, stop):
                break
            self.leading += 1
        self.prints.extend(map(hash, contents))
        self.said_bytes += sum(map(len, contents))
        self.starts.extend(start for start, _ in places)
        self.stops.extend(stop for _, stop in places)
        self.too_many = len(self.starts) > MOST_TURNS

    def hear_text(self, body: Body, at: int) -> None:
        """Have the prints made of a plain prompt that is still coming, block by block."""
        start = self.start + 1 + len(self.prints) * BLOCK_BYTES
        while start + BLOCK_BYTES <= at and len(self.prints) < MOST_TURNS:
            self.prints.append(hash(bytes(body[start : start + BLOCK_BYTES])))
            start += BLOCK_BYTES


class Findings:
    """The values that a body has behind the keys that we know; of a key that stands twice, the last one."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.found: dict[str, Value] = {}

    def peek(self, default: str) -> Peek:
        """Tell what it says, with a default model where there is one. Raises GatewayError (400)."""
        turns, opening = self._turns()
        system, said = _Words(self.body, turns, 0, opening), _Words(self.body, turns, opening)
        text = self._text()
        text_bytes = 0 if text is None else text.stop - text.start - 2
        tools_bytes = sum(value.stop - value.start for value in self._some(_TOOLS))
        model = self.found.get("model")
        short = sum(map(len, system)) <= _SHORT_BYTES
        return replace(
            self._peek_small(default),
            system=[*map(unmarked, system)] if short else system,
            said=said,
            text=b"" if text is None else memoryview(self.body)[text.start + 1 : text.stop - 1],
            prompt_bytes=text_bytes + tools_bytes + turns.said_bytes,
            prints=[*turns.prints[:opening], *text.prints]
            if text is not None and text_bytes
            else turns.prints,
            model_at=None if model is None else (model.start, model.stop),
        )

    def _peek_small(self, default: str) -> Peek:
        """Read all values but what was said, as a body that has nothing else."""
        members = []
        for name, value in self.found.items():
            if value.stop - value.start < _SMALL_BYTES and name not in _NOT_READ:
                members.append(b'"%b":%b' % (name.encode(), bytes(self.body[value.start : value.stop])))
            elif name == "model":
                is_string = self.body[value.start] == ord('"')
                raise bad(
                    "'model' is too long to be the name of a model."
                    if is_string
                    else "'model' must be a string."
                )
        if default:
            members.append(b'"model":%b' % msgspec.json.encode(default))
        return peek_json(b"{%b}" % b",".join(members))

    def _some(self, names: Iterable[str]) -> list[Value]:
        return [self.found[name] for name in names if name in self.found]

    def _turns(self) -> tuple["Value", int]:
        """Give the turns in the order in which `peek` has them, and how many of them come before all said."""
        turns, opening = Value(0), 0
        systems = [value for value in self._some(SYSTEMS) if not self._is_null(value)]
        for value in systems:
            value.leading = len(value.prints)
        for value in (*systems, *self._some(SERIES)):
            if value.too_many or len(turns.prints) + len(value.prints) > MOST_TURNS:
                return Value(0), 0
            if opening == len(turns.prints):
                opening += value.leading
            turns.starts += value.starts
            turns.stops += value.stops
            turns.prints += value.prints
            turns.said_bytes += value.said_bytes
        return turns, opening

    def _is_null(self, value: Value) -> bool:
        return value.stop - value.start == 4 and self.body[value.start : value.stop] == b"null"

    def _text(self) -> Value | None:
        """Give a plain prompt; of several fields the first one counts."""
        for value in self._some(TEXTS):
            return value if self.body[value.start] == ord('"') else None
        return None


class _Words(Sequence[Buffer]):
    """Some of the turns, each as it stands in the body, once somebody asks for it."""

    def __init__(self, body: Body, turns: Value, first: int, behind: int | None = None) -> None:
        self._body = body
        self._starts, self._stops = turns.starts[first:behind], turns.stops[first:behind]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> Buffer: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Buffer]: ...
    def __getitem__(self, at: int | slice) -> Buffer | Sequence[Buffer]:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        return memoryview(self._body)[self._starts[at] : self._stops[at]]


def _speaks_for_the_system(body: Body, start: int, stop: int) -> bool:
    with memoryview(body) as view, view[start:stop] as message:
        return role_of(message) in ("system", "developer")
