"""What we know of the APIs: the endpoint table, the model and stream flag in a body, error shapes.

Bytes in, values out. A request body is only ever looked at: what is read from it here is never written back.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Final, Literal, assert_never

import msgspec
import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from llmgateway.errors import INVALID_REQUEST, GatewayError

Dialect = Literal["openai", "anthropic"]
BodyKind = Literal["json", "multipart"]
Body = bytes | bytearray
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table of what is forwarded."""

    path: str
    body: BodyKind = "json"
    streams: bool = False
    """Whether what it streams are server-sent events, so that a comment may stand between them."""
    reads: bool = True
    """Whether its prompt costs tokens, even where the answer does not say how many."""
    dialect: Dialect = "openai"
    """Whose errors its callers expect."""


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("/v1/chat/completions", streams=True),
    Endpoint("/v1/completions", streams=True),
    Endpoint("/v1/embeddings"),
    Endpoint("/v1/responses", streams=True),
    Endpoint("/v1/rerank"),
    Endpoint("/v1/score"),
    Endpoint("/v1/audio/speech", reads=False),
    Endpoint("/v1/images/generations", reads=False),
    Endpoint("/v1/moderations"),
    Endpoint("/v1/audio/transcriptions", body="multipart", reads=False),
    Endpoint("/v1/audio/translations", body="multipart", reads=False),
    Endpoint("/v1/images/edits", body="multipart", reads=False),
    Endpoint("/v1/messages", streams=True, dialect="anthropic"),
    Endpoint("/v1/messages/count_tokens", reads=False, dialect="anthropic"),
)


def dialect_of(path: str) -> Dialect:
    """Name the API whose error shape a caller of `path` expects, also where the path itself is wrong."""
    return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"


# --- what a request says -----------------------------------------------------------------------------------


class Peek(msgspec.Struct, frozen=True, gc=False):
    """What routing needs to know of a request body.

    `system` are the system messages that it opens with, `said` all messages behind them; both are empty if
    they are absurdly many. A plain `prompt` is in `text` instead. `output_limit` is in tokens. `prompt_bytes`
    is the size of what the prompt is made of; 0 if that cannot be told apart.
    """

    model: str
    streams: bool
    system: Sequence[Buffer] = ()
    said: Sequence[Buffer] = ()
    text: Buffer = b""
    output_limit: int | None = None
    prompt_bytes: int = 0


_ABSENT: Final = msgspec.Raw(b"null")


class _Envelope(msgspec.Struct):
    """The fields we look at, as they stand; msgspec checks and skips the rest, and builds nothing."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT
    max_output_tokens: msgspec.Raw = _ABSENT


class _Chat(msgspec.Struct):
    """A chat request, as all SDKs write it; what is written otherwise is for _Envelope.

    The fields that make another kind of request must be absent.
    """

    model: str
    messages: list[msgspec.Raw]
    stream: bool = False
    tools: msgspec.Raw = _ABSENT
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    system: msgspec.UnsetType = msgspec.UNSET
    instructions: msgspec.UnsetType = msgspec.UNSET
    input: msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.UnsetType = msgspec.UNSET
    max_output_tokens: msgspec.UnsetType = msgspec.UNSET


class _Spoken(msgspec.Struct):
    role: str = ""


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_CHAT: Final = msgspec.json.Decoder(_Chat)
_ROLE_FIRST: Final = re.compile(rb'\{\s{0,8}"role"\s{0,8}:\s{0,8}"([a-z]{1,16})"')  # as most clients write it
_MODEL: Final = msgspec.json.Decoder(str)
_SERIES: Final = msgspec.json.Decoder(list[msgspec.Raw])
_SPOKEN: Final = msgspec.json.Decoder(_Spoken)
_CACHE: Final = b'"cache_control"'
_LONG_BYTES: Final = 8 * 1024  # of a body that is worth a look at how many underscores it has
_FEW: Final = 16  # of those: prose, most likely, and no code
_MARKED_BYTES: Final = 1 << 20  # in longer messages, which are images, marks are not looked for
_CACHE_MARK: Final = re.compile(rb'(?:,\s*)?"cache_control"\s*:\s*\{[^{}]*\}')  # linear in long blanks
_NO_LIMIT: Final = 10**9  # tokens: so many, or more, limit nothing
_MOST_DIGITS: Final = 20  # of a number that is worth a look
_MOST_COMMAS: Final = 200_000  # in a body whose turns are told apart: each takes about 400 bytes for a moment
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_MOST_SURROGATES: Final = 100_000
_NAME_CHARACTERS: Final = 1_000  # longer than any name a server advertises
_UTF8_STEP_BYTES: Final = 1 << 16


def _bad(message: str) -> GatewayError:
    return GatewayError(INVALID_REQUEST, message)


def peek_json(body: Body) -> Peek:
    """Read model, stream flag and what else counts off a JSON body.

    Of a key that stands twice the last one counts, as it does for most servers. Raises GatewayError (400) in
    words that name the trouble.
    """
    if not body:
        raise _bad("The request body is empty; a JSON object with a 'model' is needed.")
    if not body.isascii():
        _check_utf8(body)
    told_apart = len(body) <= _MOST_COMMAS or body.count(b",") <= _MOST_COMMAS
    if told_apart:
        try:
            chat = _CHAT.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # another kind of request, or not one at all
        else:
            return _peek_chat(chat, body)
    try:
        envelope = _decode(body)
    except RecursionError:
        raise _bad("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise _bad("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _bad(f"The request body is not valid JSON: {_json_trouble(exc)}.") from None
    turns = _turns(envelope, marked=_is_marked(body)) if told_apart else []
    opening = _opening(envelope, turns)
    text = b"" if envelope.prompt is _ABSENT else _text(envelope.prompt)
    return Peek(
        _model_name(envelope.model),
        envelope.stream is not _ABSENT and bytes(envelope.stream) == b"true",
        turns[:opening],
        turns[opening:],
        text,
        _least(
            *map(_tokens, (envelope.max_tokens, envelope.max_completion_tokens, envelope.max_output_tokens))
        ),
        len(text) + _size_of(envelope.tools) + sum(map(len, turns)),
    )


def _peek_chat(chat: _Chat, body: Body) -> Peek:
    """Read what most requests are by far, a chat, in one pass over its bytes."""
    model = chat.model
    if not 0 < len(model) <= _NAME_CHARACTERS:
        _check_model(model)
    turns: list[Buffer] = [memoryview(message) for message in chat.messages]
    if _is_marked(body):
        turns = list(map(_unmarked, turns))
    opening = 0
    while opening < len(turns) and _is_system(turns[opening]):
        opening += 1
    limit = _least(chat.max_tokens, chat.max_completion_tokens)
    size = sum(map(len, turns))
    if chat.tools is not _ABSENT:
        size += _size_of(chat.tools)
    return Peek(model, chat.stream, turns[:opening], turns[opening:], b"", limit, size)


def _size_of(value: msgspec.Raw) -> int:
    return 0 if value is _ABSENT else memoryview(value).nbytes


def _text(prompt: msgspec.Raw) -> Buffer:
    view = memoryview(prompt)
    return view[1:-1] if bytes(view[:1]) == b'"' else b""


def _turns(envelope: _Envelope, *, marked: bool) -> list[Buffer]:
    """Give what the prompt is made of, in its order, for chat, messages and responses.

    `marked` says that there may be Anthropic's cache marks in it.
    """
    turns: list[Buffer] = [memoryview(system) for system in _systems(envelope)]
    for series in (envelope.messages, envelope.input):
        if series is _ABSENT:
            continue
        try:
            turns += map(memoryview, _SERIES.decode(series))
        except msgspec.DecodeError:
            if bytes(memoryview(series)[:1]) == b'"':
                turns.append(memoryview(series))
    return list(map(_unmarked, turns)) if marked else turns


def _systems(envelope: _Envelope) -> list[msgspec.Raw]:
    """Give the system prompts that stand beside the messages."""
    beside = (envelope.system, envelope.instructions)
    return [system for system in beside if system is not _ABSENT and bytes(system) != b"null"]


def _opening(envelope: _Envelope, turns: Sequence[Buffer]) -> int:
    """Count the turns that come before a user, or a model, has said anything."""
    count = len(_systems(envelope))
    while count < len(turns) and _is_system(turns[count]):
        count += 1
    return min(count, len(turns))


def _is_system(message: Buffer) -> bool:
    if role := _ROLE_FIRST.match(message):
        return role[1] in (b"system", b"developer")
    try:
        return _SPOKEN.decode(message).role in ("system", "developer")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _is_marked(body: Body) -> bool:
    """Tell whether there may be cache marks in a body.

    In long prose, where underscores are rare, these are found some ten times as fast as the whole word.
    """
    at = 0
    if len(body) > _LONG_BYTES and body.count(b"_", 0, _LONG_BYTES) < _FEW:
        for _ in range(_FEW):
            at = body.find(b"_", at + 1)
            if at < 0 or body.startswith(_CACHE, max(0, at - _CACHE.index(b"_"))):
                return at >= 0
    return body.find(_CACHE, at) >= 0


def _unmarked(content: Buffer) -> Buffer:
    """Leave out what a client moves from message to message from turn to turn: Anthropic's cache marks."""
    return _CACHE_MARK.sub(b"", content) if len(content) < _MARKED_BYTES else content


def _least(*limits: int | None) -> int | None:
    """Give the lowest of the limits on an output, in tokens; what limits nothing is none."""
    return min((limit for limit in limits if limit is not None and 0 <= limit < _NO_LIMIT), default=None)


def _tokens(limit: msgspec.Raw) -> int | None:
    digits = bytes(limit)
    return int(digits) if len(digits) < _MOST_DIGITS and digits.isdigit() else None


def _decode(body: Body) -> _Envelope:
    """Parse the body; half an emoji, as JavaScript cuts it, is JSON all the same and no business of ours."""
    try:
        return _ENVELOPE.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return _ENVELOPE.decode(_mended(body))


def _mended(body: Body) -> bytearray:
    """Put U+FFFD in the place of surrogate escapes, in a copy; both are six bytes long."""
    copy = bytearray(body)
    for count, found in enumerate(_SURROGATE.finditer(body)):
        if count == _MOST_SURROGATES:
            raise _bad("The request body is not valid JSON: too many halves of surrogate pairs.")
        copy[found.start() : found.end()] = rb"\ufffd"
    return copy


def _json_trouble(exc: Exception) -> str:
    """Say where, never what: the position is kept, the content is not quoted."""
    if isinstance(exc, UnicodeDecodeError):
        return "a string is not UTF-8"
    return str(exc).removeprefix("JSON is malformed: ").lower()


def _check_utf8(body: Body) -> None:
    """Refuse what is not UTF-8, a slice at a time: decoding it whole could take four times its size."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _UTF8_STEP_BYTES):
            decoder.decode(
                view[start : start + _UTF8_STEP_BYTES], final=start + _UTF8_STEP_BYTES >= len(body)
            )
    except UnicodeDecodeError:
        raise _bad("The request body is not valid UTF-8.") from None


def _model_name(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    if isinstance(raw, msgspec.UnsetType):
        raise _bad("The request has no 'model'.")
    try:
        model = _MODEL.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _bad("'model' must be a string.") from None
    _check_model(model)
    return model


def _check_model(model: str) -> None:
    if not model:
        raise _bad("'model' must not be empty.")
    if len(model) > _NAME_CHARACTERS:
        raise _bad("'model' is too long to be the name of a model.")


_MOST_PARTS: Final = 1_000
_FORM_FIELD_BYTES: Final = 4_096  # of the fields we read; files and prompts are skipped


class _FormFields:
    """Collects the small fields named `model` and `stream` from a multipart body, and skips the rest."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.ended = False
        self._parts = 0
        self._header = self._value = b""
        self._name: str | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _bad(f"The form has more than {_MOST_PARTS} parts.")
        self._name = None
        self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        wanted = b"model" in self._value or b"stream" in self._value
        if wanted and self._header.lower() == b"content-disposition":
            name = _parameter(self._value.decode("utf-8", "replace"), "name")
            self._name = name if name in ("model", "stream") else None
            if self._name:
                self.values[self._name] = b""
        self._header = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name and len(self.values[self._name]) < _FORM_FIELD_BYTES:
            self.values[self._name] += data[start : min(end, start + _FORM_FIELD_BYTES)]

    def _end(self) -> None:
        self.ended = True


def _parameter(header: str, name: str) -> str | None:
    message = Message()
    message["content-disposition"] = header
    value = message.get_param(name, header="content-disposition")
    return value if isinstance(value, str) else None


def peek_multipart(body: Body, content_type: bytes) -> Peek:
    """Read a multipart/form-data body; files in it are skipped, not copied. Raises GatewayError (400)."""
    header = Message()
    header["content-type"] = content_type.decode("latin-1")
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise _bad("This endpoint takes multipart/form-data with a boundary.")
    fields = _FormFields()
    try:
        parser = MultipartParser(boundary.encode("latin-1"), fields.callbacks())  # type: ignore[arg-type]
        view = memoryview(body)
        for start in range(0, len(body), _UTF8_STEP_BYTES):
            parser.write(bytes(view[start : start + _UTF8_STEP_BYTES]))
    except (FormParserError, UnicodeEncodeError):
        raise _bad("The request body is not valid multipart/form-data.") from None
    if not fields.ended:
        raise _bad("The multipart body ends before its last boundary.")
    if "model" not in fields.values:
        raise _bad("The form has no field 'model'.")
    try:
        model = fields.values["model"].decode()
    except UnicodeDecodeError:
        raise _bad("The field 'model' is not valid UTF-8.") from None
    _check_model(model)
    return Peek(model, fields.values.get("stream", b"").strip().lower() == b"true")


# --- what an error looks like -------------------------------------------------------------------------------


def error_body(error: GatewayError, dialect: Dialect, request_id: str) -> bytes:
    """Render the envelope that clients of this API know."""
    message = error.message.encode("utf-8", "replace").decode()  # a name from a path need not be Unicode
    return orjson.dumps(_error(error.kind.type, message, dialect, request_id))


def error_event(error: GatewayError, dialect: Dialect, request_id: str) -> bytes:
    """Render the last event of a stream that broke."""
    name = b"event: error\n" if dialect == "anthropic" else b""
    return name + b"data: " + error_body(error, dialect, request_id) + b"\n\n"


def _error(kind: str, message: str, dialect: Dialect, request_id: str) -> dict[str, object]:
    match dialect:
        case "openai":
            return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
        case "anthropic":
            return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
        case _:
            assert_never(dialect)


def at_event_boundary(tail: bytes) -> bool:
    """Tell from its last bytes whether an SSE stream stands between events (or has not begun)."""
    return not tail or tail.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
