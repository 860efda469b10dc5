"""Read off a JSON body what routing needs: the model, the stream flag, who said what.

Bytes in, values out. A request body is only ever looked at: what is read from it here is never written back.
The fields that are read are those that the dialects name, of all of them at once and in one pass.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from operator import attrgetter
from typing import Any, Final

import msgspec

from llmgateway.api.endpoints import DIALECTS, Body, Buffer
from llmgateway.api.prints import COPIED_BYTES
from llmgateway.api.turns import is_marked, role_of, unmarked
from llmgateway.api.unreadable import (
    NAME_CHARACTERS,
    NoModel,
    Unreadable,
    bad,
    check_model,
    json_trouble,
)


class Peek(msgspec.Struct, frozen=True, gc=False):
    """What routing needs to know of a request body.

    `streams` is None if it does not say. `system` are the system messages that it opens with, `said` all
    messages behind them; both are empty if they are absurdly many. A plain `prompt` is in `text` instead.
    `output_limit` is in tokens. `prompt_bytes` is the size of what the prompt is made of; 0 if that cannot be
    told apart.
    """

    model: str
    streams: bool | None
    system: Sequence[Buffer] = ()
    said: Sequence[Buffer] = ()
    text: Buffer = b""
    output_limit: int | None = None
    prompt_bytes: int = 0
    follows: str = ""
    """The id of the kept answer that it goes on from; empty if it begins anew."""
    prints: Sequence[int] | None = None
    """Those of `system` and of `said`, or of the blocks of `text`, where they have been made already."""
    model_at: tuple[int, int] | None = None
    """Where the value of `model` stands, where that is known already."""


_ABSENT: Final = msgspec.Raw(b"null")


class _Envelope(msgspec.Struct):
    """What every request has, as it stands, and beside it the fields of all dialects, in `_ENVELOPE`.

    msgspec checks and skips the rest, and builds nothing.
    """

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw = _ABSENT


class _Chat(msgspec.Struct):
    """A chat request, as all SDKs write it; what is written otherwise is for _Envelope.

    The other fields of the dialects, which make another kind of request, must be absent: see `_CHAT`.
    """

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    tools: msgspec.Raw = _ABSENT
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def _getter(names: Iterable[str]) -> Callable[[_Envelope], tuple[msgspec.Raw, ...]]:
    """Give the function that gives what stands in some fields; `attrgetter` does, of more than one."""
    some = tuple(dict.fromkeys(names))
    get: Callable[[_Envelope], Any] = attrgetter(*some)
    return get if len(some) > 1 else lambda envelope: (get(envelope),)


_FIELDS: Final = tuple(dialect.fields for dialect in DIALECTS)
_systems = _getter(name for fields in _FIELDS for name in fields.system)
_series = _getter(name for fields in _FIELDS for name in fields.turns)
_prompts = _getter(name for fields in _FIELDS for name in fields.text)
_tools = _getter(name for fields in _FIELDS for name in fields.tools)
_limits = _getter(name for fields in _FIELDS for name in fields.limits)
_ids = _getter(name for fields in _FIELDS for name in fields.follows)
_INSIDE: Final = tuple(
    (outer, inner, msgspec.json.Decoder(msgspec.defstruct("_Inside", [(inner, msgspec.Raw, _ABSENT)])))
    for fields in _FIELDS
    for outer, inner in fields.limits_inside
)
NAMES: Final = tuple(
    dict.fromkeys(
        name if isinstance(name, str) else name[0]
        for fields in _FIELDS
        for some in astuple(fields)
        for name in some
    )
)
_ENVELOPE: Final[msgspec.json.Decoder[_Envelope]] = msgspec.json.Decoder(
    msgspec.defstruct("_AnyRequest", [(name, msgspec.Raw, _ABSENT) for name in NAMES], bases=(_Envelope,))
)
_CHAT: Final[msgspec.json.Decoder[_Chat]] = msgspec.json.Decoder(
    msgspec.defstruct(
        "_NothingButChat",
        [(name, msgspec.UnsetType, msgspec.UNSET) for name in NAMES if name not in _Chat.__struct_fields__],
        bases=(_Chat,),
    )
)
_STRING: Final = msgspec.json.Decoder(str)
_SERIES: Final = msgspec.json.Decoder(list[msgspec.Raw])
_SYSTEM: Final = ("system", "developer")
_NO_LIMIT: Final = 10**9  # tokens: so many, or more, limit nothing
_MOST_DIGITS: Final = 20  # of a number that is worth a look
_MOST_COMMAS: Final = 200_000  # in a body whose turns are told apart: each takes about 400 bytes for a moment
_MOST_COMMAS_AT_ONCE: Final = 24_000  # in a chat: each may stand for a turn, and takes its time
MOST_COMMAS_OF_ANY: Final = 8_000
"""In a body that is looked at in one go, of any dialect, or odd: these take longer than a chat."""
MOST_BYTES_OF_ANY: Final = 256 * 1024
_SURROGATE: Final = re.compile(  # a pair of halves, or one
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})|[89a-fA-F][0-9a-fA-F]{2})"
)
_HALF_BYTES: Final = len(rb"\ud83d")
_MOST_SURROGATES: Final = 100_000
_PLACE: Final = re.compile(r"\(byte (\d+)\)$")  # of what is wrong, as msgspec tells it
_ODD_NUMBER: Final = re.compile(rb"[:,\[\s-](NaN|Infinity)\b")
_LEAST_LOOKS: Final = 4  # at a body with such numbers: each look mends one
_MOST_LOOKS: Final = 1_000
_MOST_LOOKED_AT: Final = 24 << 20  # bytes, in all looks together
STEP_BYTES: Final = 1 << 16
"""How much of a body is looked at, at a time."""


def peek_json(body: Body) -> Peek:
    """Read model, stream flag and what else counts off a JSON body.

    Of a key that stands twice the last one counts, as it does for most servers. Raises GatewayError (400) in
    words that name the trouble.
    """
    if not body:
        raise bad("The request body is empty; a JSON object with a 'model' is needed.")
    if not body.isascii():
        _check_utf8(body)
    told_apart = len(body) <= _MOST_COMMAS or body.count(b",") <= _MOST_COMMAS
    if told_apart and (chat := _peek_chat(body)) is not None:
        return chat
    try:
        envelope = _decode(body)
    except RecursionError:
        raise bad("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise bad("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise bad(f"The request body is not valid JSON: {json_trouble(exc)}.") from None
    return _peek_any(envelope, body, told_apart=told_apart)


def _peek_any(envelope: _Envelope, body: Body, *, told_apart: bool) -> Peek:
    """Read what any dialect has; `told_apart` says whether the turns are to be."""
    system = _beside(envelope) if told_apart else []
    turns = _turns(system, envelope, marked=is_marked(body)) if told_apart else []
    opening = _opening(turns, len(system))
    text = _text(envelope)
    return Peek(
        _model_name(envelope.model),
        _flag(envelope.stream),
        turns[:opening],
        turns[opening:],
        text,
        _least(*map(_tokens, (*_limits(envelope), *_limits_inside(envelope)))),
        len(text) + sum(map(_size_of, _tools(envelope))) + sum(map(len, turns)),
        next(filter(None, map(_text_of, _ids(envelope))), ""),
    )


def peek_at_once(body: Body) -> Peek | None:
    """Read a body as `peek_json` does; None for what is odd or wrong, and for what might take long.

    Whatever cannot be read in one pass is that. To look for it first would take longer than the pass.
    """
    commas = body.count(b",")
    if commas > _MOST_COMMAS_AT_ONCE:
        return None
    is_long = commas > MOST_COMMAS_OF_ANY or len(body) > MOST_BYTES_OF_ANY
    try:
        if not body.isascii():
            _check_utf8(body)
        if not (is_long and is_marked(body)) and (chat := _peek_chat(body)) is not None:
            return chat
        return None if is_long else _peek_any(_ENVELOPE.decode(body), body, told_apart=True)
    except (Unreadable, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _peek_chat(body: Body) -> Peek | None:
    """Read what most requests are by far, a chat, in one pass over its bytes."""
    try:
        chat = _CHAT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # another kind of request, or not one at all
    model = chat.model
    if not 0 < len(model) <= NAME_CHARACTERS:
        check_model(model)
    copied = len(body) <= COPIED_BYTES  # so long as they are small, copies cost less than views
    turns: list[Buffer] = list(map(bytes if copied else memoryview, chat.messages))
    if is_marked(body):
        turns = list(map(unmarked, turns))
    opening = _opening(turns, 0)
    limit = _least(chat.max_tokens, chat.max_completion_tokens)
    size = sum(map(len, turns))
    if chat.tools is not _ABSENT:
        size += _size_of(chat.tools)
    prints = list(map(hash, turns)) if copied else None
    return Peek(model, chat.stream, turns[:opening], turns[opening:], b"", limit, size, "", prints)


def _size_of(value: msgspec.Raw) -> int:
    return 0 if value is _ABSENT else memoryview(value).nbytes


def _text(envelope: _Envelope) -> Buffer:
    """Give a plain prompt."""
    for prompt in _prompts(envelope):
        if prompt is not _ABSENT:
            view = memoryview(prompt)
            return view[1:-1] if bytes(view[:1]) == b'"' else b""
    return b""


def _turns(system: Iterable[msgspec.Raw], envelope: _Envelope, *, marked: bool) -> list[Buffer]:
    """Give what the prompt is made of, in its order, whatever the dialect.

    `marked` says that there may be Anthropic's cache marks in it.
    """
    turns: list[Buffer] = [memoryview(each) for each in system]
    for series in _series(envelope):
        if series is _ABSENT:
            continue
        try:
            turns += map(memoryview, _SERIES.decode(series))
        except msgspec.DecodeError:
            if bytes(memoryview(series)[:1]) == b'"':
                turns.append(memoryview(series))
    return list(map(unmarked, turns)) if marked else turns


def _beside(envelope: _Envelope) -> list[msgspec.Raw]:
    """Give the system prompts that stand beside the messages."""
    return [system for system in _systems(envelope) if system is not _ABSENT and bytes(system) != b"null"]


def _opening(turns: Sequence[Buffer], count: int) -> int:
    """Count the turns that come before a user, or a model, has said anything; `count` of them are known."""
    while count < len(turns) and role_of(turns[count]) in _SYSTEM:
        count += 1
    return count


def _least(*limits: int | None) -> int | None:
    """Give the lowest of the limits on an output, in tokens; what limits nothing is none."""
    least = _NO_LIMIT
    for limit in limits:
        if limit is not None and 0 <= limit < least:
            least = limit
    return least if least < _NO_LIMIT else None


def _limits_inside(envelope: _Envelope) -> Iterator[msgspec.Raw]:
    """Give the limits that stand in objects."""
    for outer, inner, decoder in _INSIDE:
        if (value := getattr(envelope, outer)) is not _ABSENT:
            try:
                yield getattr(decoder.decode(value), inner)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # it is no object


def _flag(value: msgspec.Raw) -> bool | None:
    said = bytes(value)
    return None if said == b"null" else said == b"true"


def _tokens(limit: msgspec.Raw) -> int | None:
    if limit is _ABSENT:
        return None
    digits = bytes(limit)
    return int(digits) if len(digits) < _MOST_DIGITS and digits.isdigit() else None


def _decode(body: Body) -> _Envelope:
    """Parse the body, and what is no JSON but is taken for it by servers: a BOM, NaN, half an emoji."""
    try:
        return _ENVELOPE.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return _decode_mended(_mended(body))


def raw_model(body: Body) -> bytes:
    """Give the model that a body names as it stands there; nothing if there is none."""
    raw = _decode(body).model
    return b"" if isinstance(raw, msgspec.UnsetType) else bytes(raw)


def _decode_mended(copy: bytearray) -> _Envelope:
    """Parse a copy, in which each number that JSON does not have gives way to one, as its place is told."""
    for _ in range(max(_LEAST_LOOKS, min(_MOST_LOOKS, _MOST_LOOKED_AT // len(copy)))):
        try:
            return _ENVELOPE.decode(copy)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError as exc:
            place = _PLACE.search(str(exc))
            number = _ODD_NUMBER.match(copy, max(0, int(place[1]) - 1)) if place else None
            if number is None:
                raise
            copy[number.start(1) : number.end(1)] = b"1" * len(number[1])
    raise bad("The request body is not valid JSON: there are too many numbers in it that are none.")


def _mended(body: Body) -> bytearray:
    """Put blanks in the place of a BOM, and U+FFFD in that of lone surrogates, in a copy as long."""
    copy = bytearray(body)
    if body.startswith(codecs.BOM_UTF8):
        copy[: len(codecs.BOM_UTF8)] = b" " * len(codecs.BOM_UTF8)
    for count, found in enumerate(_SURROGATE.finditer(body)):
        if count == _MOST_SURROGATES:
            raise bad("The request body is not valid JSON: too many halves of surrogate pairs.")
        is_pair = found[1] is not None
        if is_pair == _is_escaped(body, found.start()):
            copy[found.end() - _HALF_BYTES : found.end()] = rb"\ufffd"
    return copy


def _is_escaped(body: Body, at: int) -> bool:
    """Tell whether a backslash is itself what one before it escapes."""
    size = 16
    while True:
        before = body[max(0, at - size) : at]
        run = len(before) - len(before.rstrip(b"\\"))
        if run < size:
            return run % 2 == 1
        size *= 2


def as_json(string: bytes) -> bytes:
    """Give a string so that JSON has it, as `_mended` does."""
    try:
        _STRING.decode(string)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return bytes(_mended(string))
    return string


def _check_utf8(body: Body) -> None:
    """Refuse what is not UTF-8, a slice at a time: decoding it whole could take four times its size."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), STEP_BYTES):
            decoder.decode(view[start : start + STEP_BYTES], final=start + STEP_BYTES >= len(body))
    except UnicodeDecodeError:
        raise bad("The request body is not valid UTF-8.") from None


def _text_of(raw: msgspec.Raw) -> str:
    """Give what a string says; of anything else the server is to judge."""
    try:
        return "" if raw is _ABSENT else _STRING.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _model_name(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    if isinstance(raw, msgspec.UnsetType):
        raise NoModel("The request has no 'model'.")
    if bytes(raw) == b"null":
        raise NoModel("'model' must be a string.")
    try:
        model = _STRING.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad("'model' must be a string.") from None
    check_model(model)
    return model
