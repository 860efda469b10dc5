"""Fuzzed: what is read off the bodies of requests, JSON and forms, against other readers of the same."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from llmgateway.api.multipart import form_with_model, peek_multipart
from llmgateway.api.peek import Peek, as_json, peek_json
from llmgateway.api.rename import with_model
from llmgateway.api.skim import Skim
from llmgateway.api.unreadable import NoModel
from llmgateway.errors import GatewayError
from tests.fuzz.target import Choices, Target, behind, lengthened, pieces, words

_BOM: Final = "\ufeff"
_MOST_ODD: Final = 200  # of numbers that are none, and levels of nesting: more may be refused
_NAME_CHARACTERS: Final = 1_000
_SURROGATE: Final = re.compile("[\ud800-\udfff\U00010000-\U0010ffff\ufffd]+")


class _Number(str):
    """A number as it was written: Python would not read one of thousands of digits."""


# --- JSON ------------------------------------------------------------------------------------------


def as_others_read_it(body: bytes) -> Any:
    """Read JSON as most servers do. Raises ValueError and RecursionError."""
    text = body.decode().removeprefix(_BOM)
    try:
        return _read(text)
    except ValueError:
        return _read(text.replace("-NaN", "NaN"))  # nobody's, but no harm: the server judges it


def _read(text: str) -> Any:
    return json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_Number)


def _is_simple(body: bytes) -> bool:
    """Tell whether a body has so little in it that is odd that nobody may refuse it."""
    odd = body.count(b"NaN") + body.count(b"Infinity")
    return odd < _MOST_ODD and body.count(b"[") + body.count(b"{") < _MOST_ODD


def _same_name(ours: str, theirs: str) -> bool:
    """Half a character is another one for everybody."""
    return _SURROGATE.sub("?", ours) == _SURROGATE.sub("?", theirs)


def peek(data: bytes) -> None:
    """What is read off a body is what a JSON reader reads there, and what one takes is not refused."""
    try:
        theirs = as_others_read_it(data)
    except (ValueError, RecursionError):
        theirs = None
    try:
        ours = peek_json(data)
    except NoModel:
        assert isinstance(theirs, dict), "others take it for no object"
        assert theirs.get("model") in (None, ""), "it has a model"
        _check_with_model(data, theirs)
        return
    except GatewayError as error:
        assert error.kind.status == 400
        model = theirs.get("model") if isinstance(theirs, dict) else None
        usable = type(model) is str and 0 < len(model) <= _NAME_CHARACTERS
        assert not (usable and _is_simple(data)), f"others take it: {error.message}"
        return
    assert isinstance(theirs, dict), "others take it for no object"
    assert type(theirs.get("model")) is str
    assert _same_name(ours.model, theirs["model"])
    told = theirs.get("stream")
    assert ours.streams is (None if told is None else told is True)
    _check_turns(ours, theirs, data)


def _check_with_model(body: bytes, theirs: dict[str, Any]) -> None:
    named = with_model(body, 'a"b\\c\u00e9')
    assert as_others_read_it(named) == theirs | {"model": 'a"b\\c\u00e9'}
    assert peek_json(named).model == 'a"b\\c\u00e9'


def _check_turns(ours: Peek, theirs: dict[str, Any], body: bytes) -> None:
    """Nobody's words are lost or made up, where nothing is mended or left out."""
    messages = theirs.get("messages")
    plain = set(theirs) <= {"model", "stream", "messages"} and isinstance(messages, list)
    if not plain or body.count(b'"messages"') != 1 or b"cache_control" in body or not _is_plain(body):
        return
    assert [as_others_read_it(bytes(turn)) for turn in (*ours.system, *ours.said)] == messages
    told = [bytes(turn) for turn in ours.system if bytes(turn).count(b'"role"') == 1]
    assert all(as_others_read_it(turn)["role"] in ("system", "developer") for turn in told)


def _is_plain(body: bytes) -> bool:
    return b"\\" not in body and not any(odd in body for odd in (b"NaN", b"Infinity", _BOM.encode()))


def _json_seeds() -> Iterator[bytes]:
    yield b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}'
    yield b'{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}'
    yield b'{"model":"m","prompt":"once","max_tokens":5,"stream":false}'
    yield b'{"input":["a","b"],"model":"e","temperature":NaN}'
    yield b'\xef\xbb\xbf{"model":"m","x":"\\ud83d"}'
    yield b'{"system":"s","messages":[{"role":"user","content":[{"cache_control":{}}]}],"model":"c"}'
    yield b'{"model":null,"a":-Infinity}'
    yield b'{"instructions":"i","input":[{"role":"developer","content":"x"}],"model":"r"}'
    yield b'{"stream":true,"a":1}'
    yield b'{"model":"a\\u0041\\\\ud800","stream":null}'


PEEK: Final = Target(
    "peek",
    peek,
    _json_seeds,
    words(
        rb""""model" "stream" "messages" "role" "content" "system" "user" "tools" "max_tokens" "prompt"
        "input" "max_completion_tokens" "instructions" "cache_control" true false null NaN Infinity -Infinity
        \ud800 \udc00 \ufffd \\ \" 1e9 -0 {} []""",
        codecs.BOM_UTF8,
    ),
)


# --- large bodies ----------------------------------------------------------------------------------


def skim(data: bytes) -> None:
    """A large body says what it would say as a small one, in whatever pieces it comes."""
    choices = Choices(data)
    cutting, run_bytes = choices.number(), choices.one_of(300, 5_000, 70_000)
    body = lengthened(choices.rest, run_bytes)
    whole = _skimmed(pieces(body, 0))
    for way in (1, cutting):
        assert _skimmed(pieces(body, way)) == whole, "it depends on the cuts"
    try:
        small = peek_json(body)
    except GatewayError:
        return
    assert _mended(whole) == _mended(_told(small)), "a small body would say something else"


def _mended(told: tuple[object, ...]) -> tuple[object, ...]:
    """Have U+FFFD for half a surrogate pair in a text, as a small body has it, and a large one has not."""
    return tuple(as_json(b'"%b"' % each) if isinstance(each, bytes) else each for each in told)


def _skimmed(some: list[bytes]) -> tuple[object, ...]:
    growing = bytearray()
    skim = Skim(growing)
    try:
        for piece in some:
            growing += piece
            for _ in skim.look():
                pass
        return _told(skim.peek())
    except GatewayError as error:
        assert error.kind.status == 400
        return ("refused",)


def _told(peek: Peek) -> tuple[object, ...]:
    return (
        peek.model, peek.streams, len(peek.system), len(peek.said), bytes(peek.text), peek.output_limit,
        peek.prompt_bytes, peek.follows,
    )  # fmt: skip


SKIM: Final = Target("skim", skim, lambda: behind(3, 0)(_json_seeds()), PEEK.words, 1_024, 4_000)

# --- forms -----------------------------------------------------------------------------------------

_BOUNDARY: Final = b"XbX"
FORM: Final = b"multipart/form-data; boundary=" + _BOUNDARY
_NAMES: Final = (b"model", b"stream", b"file", b"prompt", b"Model", b"models")


def form(data: bytes) -> None:
    """A form that is one says what is in its fields, and whatever is none is refused."""
    choices = Choices(data)
    if choices.flag():
        _check_a_form(choices)
        return
    content_type, _, body = choices.rest.partition(b"\n")
    _peek_form(body, content_type)


def _peek_form(body: bytes, content_type: bytes) -> Peek | None:
    try:
        return peek_multipart(body, content_type)
    except NoModel:
        named = form_with_model(body, content_type, "m")
        assert peek_multipart(named, content_type).model == "m"
    except GatewayError as error:
        assert error.kind.status == 400
    return None


def _check_a_form(choices: Choices) -> None:
    """Make a form of fields, separated by NUL bytes, and see what is read off it."""
    names = [choices.one_of(*_NAMES) for _ in range(4)]
    values = [value for value in choices.rest.split(b"\0", 4) if _BOUNDARY not in value]
    fields = list(zip(names, values, strict=False))
    if not fields:
        return
    told = _peek_form(b"".join(_made_of(fields)), FORM)
    said = dict(fields)
    model = said.get(b"model", b"").decode("utf-8", "replace")
    usable = 0 < len(model) <= _NAME_CHARACTERS and "\ufffd" not in model
    if usable:
        assert told is not None and told.model == model
        assert bool(told.streams) is (said.get(b"stream", b"").strip().lower() == b"true")
    elif "\ufffd" not in model:
        assert told is None


def _made_of(fields: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in fields:
        yield b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (_BOUNDARY, name, value)
    yield b"--%b--\r\n" % _BOUNDARY


def _form_seeds() -> Iterator[bytes]:
    yield b"\1\0\1\2\3whisper\0true\0\xff\xfe\r\n--Xb\0words"
    yield b"\1\2\0\1\0RIFF....WAVE\0m\0false\0n"
    yield b"\0" + FORM + b"\n" + b"".join(_made_of([(b"model", b"m"), (b"stream", b" TRUE")]))
    yield b"\0" + FORM + b"\n" + b"".join(_made_of([(b"file", b"m")]))
    yield b'\0multipart/form-data; charset=x; boundary="X;b"\n\r\n--X;b\r\nA: b\r\n\r\n\r\n--X;b--'


MULTIPART: Final = Target(
    "multipart",
    form,
    _form_seeds,
    words(
        b"""--XbX --XbX-- XbX; boundary= name= model stream filename= form-data multipart/form-data
        Content-Disposition: Content-Type: name*=utf-8''model name*0="mod" boundary*=utf-8''X""",
        b"\r\n",
        b"\r\n\r\n",
        b'; name="model"',
    ),
)
