"""Turn YAML text into values that remember where they stood in the file.

Rules:

- Whatever the text is, the answer is a `Document`: what could be read, and every `Problem` with its position.
- Scalars stay text. What `on`, `1.5` or `2027-06-30` means is decided where it is known what is wanted there.
- `${NAME}` and `${file:PATH}` are replaced in values after parsing, so that they cannot change the shape of
  the file.
- Size, depth and the number of values are bounded, aliases counted as often as they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from llmgateway.config import files
from llmgateway.config.tree import START, Mark, Node, Pair, Pairs, Problem, Scalar, Series, joined

MAX_BYTES: Final = 1_000_000
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 32

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TEXT_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:str"})
_NOT_YAML: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_FILE: Final = "file:"
_SECRET: Final = frozenset({"keys", "api_key", "headers", "proxy"})  # settings, or all below them
_VARIABLE_NAME: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

# libyaml's parser is ten times faster. Only its events are used: PyYAML's composer for it recurses in C, and
# deep nesting kills the process.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says; `root` is None when nothing of it could be read."""

    root: Pairs | None
    problems: tuple[Problem, ...] = ()
    doubts: tuple[Problem, ...] = ()


def read(source: str | bytes, *, file: str, environ: Mapping[str, str]) -> Document:
    """Read one YAML document whose top is a mapping. Raises nothing."""
    composer = _Composer(file, environ)
    root: Pairs | None = None
    try:
        root = composer.document(_checked(source))
    except _Stop as stop:
        composer.report(stop.mark, stop.message)
    return Document(root, tuple(composer.problems), tuple(composer.doubts))


class _Stop(Exception):
    """Nothing after this place can be read."""

    def __init__(self, mark: Mark, message: str) -> None:
        self.mark = mark
        self.message = message


def _checked(source: str | bytes) -> str:
    """The text, if it is text that YAML allows."""
    if len(source) > MAX_BYTES:
        raise _Stop(START, f"the file is larger than {MAX_BYTES // 1_000_000} MB; is it the right one?")
    text = _decoded(source) if isinstance(source, bytes) else source
    text = text.removeprefix("\ufeff")
    if found := _NOT_YAML.search(text):
        code = f"U+{ord(found[0]):04X}"
        raise _Stop(_mark_at(text, found.start()), f"the character {code} is not allowed in YAML; remove it")
    return text


def _decoded(source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError as exc:
        before = source[: exc.start].decode()
        raise _Stop(_mark_at(before, len(before)), "the file is not UTF-8 text; save it as UTF-8") from None


def _mark_at(text: str, index: int) -> Mark:
    ends = list(_LINE_END.finditer(text, 0, index))
    return Mark(len(ends) + 1, index - (ends[-1].end() if ends else 0) + 1)


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark else START


def _syntax(exc: yaml.YAMLError, text: str) -> _Stop:
    """Translate PyYAML's complaint into a place and a sentence."""
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    place = _mark(mark)
    lines = _LINE_END.split(text)
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if line[place.column - 1 : place.column] == "\t" or line[: place.column - 1].strip(" ").startswith("\t"):
        return _Stop(place, "a tab cannot indent YAML; use spaces")
    why = getattr(exc, "problem", None) or "it cannot be read"
    context, began = getattr(exc, "context", None), getattr(exc, "context_mark", None)
    if context and began and began.line + 1 != place.line:
        why += f", {context} that began on line {began.line + 1}"
    hint = (
        "put ${NAME} in quotes inside { }"
        if "${" in line
        else "check the indentation, quotes and brackets here"
    )
    return _Stop(place, f"this is not valid YAML: {why}; {hint}")


class _Composer:
    """Builds the tree out of the parser's events, and collects problems on the way."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.environ = environ
        self.problems: list[Problem] = []
        self.doubts: list[Problem] = []
        self.anchors: dict[
            str, tuple[Node, int] | None
        ] = {}  # with its number of values; None while it is open
        self.count = 0
        self.events: Iterator[Any] = iter(())
        self.path: list[str | int] = []

    def report(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(self.file, mark.line, mark.column, joined(self.path), message))

    def document(self, text: str) -> Pairs:
        self.events = _events(text)
        event = self._next()
        while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
            event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise _Stop(START, "the file is empty; config.example.yaml is a good start")
        root = self._node(event, 0)
        self._end()
        if isinstance(root, Scalar) and root.null:
            raise _Stop(START, "the file is empty; config.example.yaml is a good start")
        if not isinstance(root, Pairs):
            raise _Stop(
                root.mark,
                "the file must be a mapping: lines such as `providers:` with indented lines under them",
            )
        return root

    def _end(self) -> None:
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise _Stop(
                _mark(event.start_mark),
                "a second YAML document begins here; one file holds one, without `---`",
            )

    def _next(self) -> Any:
        return next(self.events)

    def _node(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        mark = _mark(event.start_mark)
        if depth > MAX_DEPTH:
            raise _Stop(mark, f"this is nested more than {MAX_DEPTH} levels deep; nothing here needs that")
        before = self.count
        self._grow(1, mark)
        if event.anchor:
            self.anchors[event.anchor] = None
        node = self._fresh(event, mark, depth)
        if event.anchor:
            self.anchors[event.anchor] = node, self.count - before
        return node

    def _fresh(self, event: Any, mark: Mark, depth: int) -> Node:
        if event.tag not in _TEXT_TAGS or (event.tag and not isinstance(event, yaml.ScalarEvent)):
            self.report(mark, "YAML tags (words that begin with !) have no use here; write the plain value")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, mark)
        if isinstance(event, yaml.SequenceStartEvent):
            items = enumerate(self._until(yaml.SequenceEndEvent))
            return Series(tuple(self._below(index, each, depth) for index, each in items), mark)
        return self._pairs(mark, depth)

    def _below(self, step: str | int, event: Any, depth: int) -> Node:
        self.path.append(step)
        node = self._node(event, depth + 1)
        self.path.pop()
        return node

    def _until(self, end: type[Any]) -> Iterator[Any]:
        while not isinstance(event := self._next(), end):
            yield event

    def _grow(self, values: int, mark: Mark) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise _Stop(
                mark,
                f"the file holds more than {MAX_VALUES} values, with aliases counted each time; shorten it",
            )

    def _alias(self, event: Any, depth: int) -> Node:
        mark = _mark(event.start_mark)
        if event.anchor not in self.anchors:
            raise _Stop(
                mark, "no anchor of this name stands before; a value that begins with * must be in quotes"
            )
        anchored = self.anchors[event.anchor]
        if anchored is None:
            raise _Stop(mark, "this alias stands inside its own anchor; write the value out")
        node, values = anchored
        self._grow(values, mark)
        if depth + _height(node) > MAX_DEPTH:
            raise _Stop(mark, f"this is nested more than {MAX_DEPTH} levels deep; nothing here needs that")
        return node

    def _pairs(self, mark: Mark, depth: int) -> Pairs:
        pairs: dict[str, Pair] = {}
        first: dict[str, Mark] = {}
        merged: list[tuple[Node, Mark]] = []
        for event in self._until(yaml.MappingEndEvent):
            key, key_mark, merges = self._key(event, depth)
            value = self._below(key or "", self._next(), depth)
            if key is None:
                continue
            if key in first:
                self._duplicate(key, key_mark, first[key])
            elif merges:
                merged.append((value, key_mark))
            else:
                pairs[key] = Pair(value, key_mark)
            first.setdefault(key, key_mark)
        for value, key_mark in merged:
            self._merge(value, key_mark, pairs)
        return Pairs(pairs, mark)

    def _key(self, event: Any, depth: int) -> tuple[str | None, Mark, bool]:
        """A key as it is written: never a number, never a boolean, never from a variable."""
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and not event.anchor and event.tag in _TEXT_TAGS:
            self._grow(1, mark)
            return event.value, mark, event.value == "<<" and bool(event.implicit[0])
        self._node(event, depth + 1)
        self.report(mark, "a key must be a plain word; put it in quotes if it begins with a sign")
        return None, mark, False

    def _duplicate(self, key: str, mark: Mark, first: Mark) -> None:
        self.path.append(key)
        self.report(mark, f"this key stands here twice, first on line {first.line}; keep one of them")
        self.path.pop()

    def _merge(self, value: Node, mark: Mark, pairs: dict[str, Pair]) -> None:
        """`<<`: what is written in the mapping itself wins over what is merged, and earlier over later."""
        for each in value.items if isinstance(value, Series) else (value,):
            if not isinstance(each, Pairs):
                self.report(mark, "<< takes an alias of a mapping, such as `<<: *defaults`")
                continue
            for key, pair in each.pairs.items():
                pairs.setdefault(key, pair)

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        plain = bool(event.implicit[0])
        text, substituted, from_env, broken = self._substituted(event.value, mark)
        return Scalar(
            text,
            mark,
            bare=plain or substituted,
            null=plain and not from_env and not broken and text in _NULLS,
            from_env=from_env,
            broken=broken,
        )

    def _substituted(self, text: str, mark: Mark) -> tuple[str, bool, bool, bool]:
        """The text with its variables filled in; were there any, any from the environment, any wrong."""
        if "${" not in text:
            return text, False, False, False
        parts: list[str] = []
        substituted = from_env = broken = False
        at = 0
        for found in _VARIABLE.finditer(text):
            parts.append(text[at : found.start()])
            at = found.end()
            if found[0] == "$${":
                parts.append("${")
                continue
            substituted = True
            value, known = self._variable(found, mark)
            parts.append(value or "")
            from_env |= known
            broken |= value is None
        return "".join([*parts, text[at:]]), substituted, from_env, broken

    def _variable(self, found: re.Match[str], mark: Mark) -> tuple[str | None, bool]:
        """One variable's value (None if there is none, which is reported); does the environment have it."""
        if found[2] and found[1].startswith(_FILE):
            return self._content(found[1].removeprefix(_FILE), mark), True
        named = _VARIABLE_NAME.fullmatch(found[1]) if found[2] else None
        if named is None:
            self.report(
                mark,
                "${ begins a variable, ${NAME}, ${NAME:-default} or ${file:PATH}; "
                "write $${ for the two signs themselves",
            )
            return None, False
        name, default = named[1], named[2]
        value = self.environ.get(name)
        if value is None and default is None:
            self.report(
                mark, f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        if default is not None and not value:  # as in sh, :- also stands in for an empty one
            return default, False
        return value, value is not None

    def _content(self, name: str, mark: Mark) -> str | None:
        """What a file holds, such as a secret of Docker; None if it cannot be read, which is reported."""
        path = Path(self.file).parent / name
        try:
            content = files.secret(path)
        except ValueError as exc:  # as well for what is no path at all
            self.report(mark, f"${{file:...}} stands for what a file holds, and {exc}")
            return None
        if _SECRET.intersection(self.path) and files.is_open_at(path):
            self.doubts.append(Problem(self.file, mark.line, mark.column, joined(self.path), files.OPEN))
        return content


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.YAMLError as exc:
        raise _syntax(exc, text) from None


def _height(node: Node) -> int:
    match node:
        case Scalar():
            return 0
        case Series():
            return 1 + max(map(_height, node.items), default=0)
        case Pairs():
            return 1 + max((_height(pair.value) for pair in node.pairs.values()), default=0)
