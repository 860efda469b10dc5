"""A large body is read in steps as a small one is read at once: the same is read off it, and none is long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmgateway.api.peek import STEP_BYTES, Peek, peek_at_once, peek_json
from llmgateway.api.skim import Skim
from llmgateway.errors import GatewayError
from llmgateway.traffic.affinity import thread_of

thorough = settings(max_examples=400)

MOST_CALLS = 200_000
"""Of functions in one step; a call takes 0.1 us or so, and looks at no more than the bytes of a step."""


def skimmed(body: bytes, *cuts: int) -> Peek:
    """Read a body that comes in pieces."""
    growing = bytearray()
    skim = Skim(growing)
    for start, end in zip((0, *sorted(cuts)), (*sorted(cuts), len(body)), strict=True):
        growing += body[start:end]
        for _ in skim.look():
            pass
    return skim.peek()


def told(peek: Peek) -> tuple[object, ...]:
    """All that counts of it; a cache's marks may still stand in what was said."""
    return (
        peek.model, peek.streams, len(peek.system), len(peek.said), bytes(peek.text), peek.output_limit,
        peek.prompt_bytes, [thread_of(peek, user="u", session=session) for session in (None, b"s")],
    )  # fmt: skip


def outcome(read: Any, *args: Any) -> tuple[object, ...]:
    try:
        return told(read(*args))
    except GatewayError as error:
        return (error.kind, error.message)


KEYS = (
    "model stream messages system instructions input prompt tools max_tokens max_completion_tokens "
    "max_output_tokens mod modelx x cache_control"
).split()
TEXT = st.text(max_size=8) | st.sampled_from(["\\", '"', '\\"', "é", "a" * 700, "\\u0041", "}", "[{", "m"])
MARKED = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", 3]), "content": TEXT},
    optional={"cache_control": st.sampled_from([{}, {"type": "ephemeral"}, 3])},
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | MARKED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), VALUES),
        st.tuples(st.sampled_from(["messages", "input"]), st.lists(MARKED | VALUES, max_size=6)),
        st.tuples(st.sampled_from(["stream", "model", "max_tokens"]), st.sampled_from([True, "m", 5, "m2"])),
        st.tuples(TEXT, VALUES),
    ),
    max_size=8,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects with keys that come twice, blanks and escapes."""
    members = draw(MEMBERS)
    if draw(st.integers(0, 5)):
        members.insert(draw(st.integers(0, len(members))), ("model", "m"))
    ascii_only = draw(st.booleans())
    gap = draw(st.sampled_from(["", " ", "\r\n\t"]))
    separators = (f"{gap},{gap}", f"{gap}:{gap}")
    written = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{separators[1]}"
        f"{json.dumps(value, ensure_ascii=ascii_only, separators=separators)}"
        for key, value in members
    ]
    return f"{gap}{{{gap}{separators[0].join(written)}{gap}}}{gap}".encode("utf-8", "surrogatepass")


@thorough
@given(bodies(), st.data())
@example(b'{"model":"x","model":"m","stream":true,"messages":[{"role":"system","content":"a"},"b"]}', None)
@example(b'{"messages":[{"content":"a","cache_control":{}},1,[{}],{"a":{}}],"model":"\\u006d"}', None)
@example(b'{"\\u006dodel":"m","prompt":"%b","system":null}' % (b"\\n" * 400), None)
@example(b'\xef\xbb\xbf{"model":"m","x":NaN,"y":"\\ud800"}', None)
@example(b'{"model":"\\ud83d\\ude00","max_tokens":5,"max_completion_tokens":3}', None)
def test_a_body_says_the_same_however_it_is_read(body: bytes, data: st.DataObject | None) -> None:
    places = st.lists(st.integers(0, len(body)), max_size=6)
    cuts = range(1, len(body)) if data is None else data.draw(places)
    expected = outcome(peek_json, body)
    assert outcome(skimmed, body, *cuts) == expected
    assert peek_at_once(body) is None or outcome(peek_at_once, body) == expected


@pytest.mark.parametrize("size", [100, 1_100])
@pytest.mark.parametrize("count", [1, 2, 64, 700])
def test_a_long_chat_is_read_at_once_and_says_the_same(count: int, size: int) -> None:
    turns = [
        {"role": ("user", "assistant")[at % 2], "content": f"{at} é " * (size // 8)} for at in range(count)
    ]
    members = {"model": "m", "stream": True, "messages": [{"role": "system", "content": "Be brief."}, *turns]}
    body = json.dumps(members, ensure_ascii=False).encode()
    assert outcome(peek_at_once, body) == outcome(peek_json, body) == outcome(skimmed, body)


LONG: Final = b"a" * 300_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[%b1]}' % (b"1," * 30_000),
        b'{"model":"m","input":[%b1]}' % (b"1," * 10_000),
        b'{"model":"m","messages":[{"role":"user","content":"%b","cache_control":{}}]}' % LONG,
        b'{"model":"m","input":"%b"}' % LONG,
        b'{"model":"m","messages":[],"n":NaN}',
        b'{"model":"","messages":[]}',
        b'{"messages":[]}',
        b'{"model":"m",',
    ],
    ids=[
        "turns",
        "turns of any",
        "marks",
        "another dialect",
        "to be mended",
        "no name",
        "no model",
        "cut off",
    ],
)
def test_what_may_take_long_or_is_wrong_is_not_read_at_once(body: bytes) -> None:
    assert peek_at_once(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"a","cache_control":{}}]}',
        b'{"model":"m","input":"a","instructions":"b"}',
        b'{"model":"m","prompt":"a","stream":true}',
        b'{"model":"m","system":"a","messages":[1]}',
    ],
)
def test_what_is_short_is_read_at_once_whatever_its_dialect(body: bytes) -> None:
    assert peek_at_once(body) == peek_json(body)


@pytest.mark.parametrize("text", [b"so it goes, ", rb"said \"so\", ", rb"C:\\so\\", rb"\\\""])
def test_a_long_conversation_takes_few_steps_and_says_the_same(text: bytes) -> None:
    turn = b'{"role":"user","content":"%b"}' % (text * 20)
    in_parts = b'{"role":"user","content":[{"type":"text","text":"%b"}]}' % text
    for turns in ([turn] * 2_000, [turn] * 999 + [in_parts] + [turn] * 1_000, [in_parts] * 2):
        body = b'{"model":"m","messages":[%b]}' % b", ".join(turns)
        steps = sum(1 for _ in Skim(body).look())
        assert steps <= 2 + 3 * len(body) / STEP_BYTES
        assert told(skimmed(body)) == told(peek_json(body))


@thorough
@given(bodies(), st.data())
def test_what_passes_at_once_passes_in_steps(body: bytes, data: st.DataObject) -> None:
    """Bodies with something wrong in them: in steps no more are refused."""
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        broken[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"]", b",", b":", b"\xff", b" ", b"1"])
        )
    try:
        expected = told(peek_json(broken))
    except GatewayError:
        return
    try:
        msgspec.json.decode(broken)
    except msgspec.DecodeError:  # half an emoji, say: what is mended for a look is another conversation
        assert told(skimmed(bytes(broken)))[:6] == expected[:6]
    else:
        assert told(skimmed(bytes(broken))) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"), (b"x", "not valid JSON"), (b"[]", "object"), (b'"m"', "object"), (b"3", "object"),
        (b" null", "object"), (b'{"model": "m"', "not valid JSON"), (b'{"model": "m"} x', "not valid JSON"),
        (b'{"model" "m"}', "not valid JSON"), (b'{"model": "m",}', "not valid JSON"),
        (b"{'model': 'm'}", "not valid JSON"), (b'{"model": }', "not valid JSON"), (b"{}", "no 'model'"),
        (b'{"model": ""}', "must not be empty"), (b'{"model": ["m"]}', "must be a string"),
        (b'{"model": "%b"}' % (b"m" * 5_000), "too long"), (b'{"model": "%b"}' % (b"m" * 9_000), "too long"),
        (b'{"model": [%b]}' % (b"1," * 9_000), "must be a string"), (b'{"x": "\xff"}', "UTF-8"),
        (b'{"x": "\xc3', "UTF-8"), (b'{"x": "%b' % (b"\\" * 200_001), "not valid JSON"),
        (b'{"model": "m", "x": %b' % (b"[" * 200_000), "nested too deeply"),
        (b'{"model": "m", "x": %b' % (b'{"a":' * 200_000), "nested too deeply"),
    ],
    ids=range(23),
)  # fmt: skip
def test_what_is_wrong_is_told(body: bytes, words: str) -> None:
    with pytest.raises(GatewayError, match=words) as told:
        skimmed(body)
    assert told.value.kind.status == 400
    assert len(told.value.message) < 200


def test_a_body_of_absurdly_many_messages_has_no_turns() -> None:
    for element in (b"1", b"{}", b'""', b"[[]]"):
        seen = skimmed(b'{"model": "m", "messages": [%b], "stream": true}' % b",".join([element] * 50_000))
        assert (seen.model, seen.streams, len(seen.said), seen.prompt_bytes) == ("m", True, 0, 0)


@pytest.mark.parametrize("piece", [b"a", b"\\n", "é".encode(), b"\\u00e9"])
@pytest.mark.parametrize("role_first", [True, False])
def test_a_conversation_with_an_image_is_known_from_one_turn_to_the_next(
    piece: bytes, role_first: bool
) -> None:
    image = piece * (1_500_000 // len(piece))
    shape = b'{"role":"user","content":"%b"}' if role_first else b'{"content":"%b","role":"user"}'
    turns = [shape % b"hi", shape % image, b'{"role":"assistant","content":"so"}', shape % b"and?"]
    first, later = (b'{"model":"m","messages":[%b]}' % b",".join(turns[:count]) for count in (2, 4))
    for read in (skimmed, peek_json):
        before = thread_of(read(first), user="u", session=None)
        after = thread_of(skimmed(later), user="u", session=None)
        assert before.links[-1] in after.links
        assert after.eve == after.links[2]


MANY = 300_000


def hard() -> Iterator[tuple[str, bytes]]:
    """Bodies that ask for long looks."""
    yield "image", b'{"model":"m","messages":["%b"]}' % (b"a" * 10 * MANY)
    yield "escapes", b'{"model":"m","messages":["%b"]}' % (b"\\n" * MANY)
    yield "prompt", b'{"model":"m","prompt":"%b"}' % (b"a" * 5 * MANY)
    yield "not ASCII", b'{"model":"m","x":"%b"}' % ("é".encode() * MANY)
    yield "messages", b'{"model":"m","messages":[%b1]}' % (b'{"role":"user","content":"a"},' * 200_000)
    yield "most turns", b'{"model":"m","messages":[%b1]}' % (b'{"content":"a","role":"system"},' * 19_999)
    yield "nothing", b'{"model":"m","messages":[%b{}]}' % (b"{}," * (MANY // 3))
    yield "depths", b'{"model":"m","x":[%b1]}' % (b"[[[[]]]]," * (MANY // 9))
    yield "members", b'{"model":"m"%b}' % (b',"x":1' * (MANY // 6))
    yield "models", b'{"model":"m"%b}' % (b',"model":"m"' * 9_000)
    yield "numbers", b'{"model":"m","input":[%b1]}' % (b"1," * (MANY // 2))
    yield "marks", b'{"model":"m","messages":[{%b"x":1}]}' % (b'"cache_control":{},' * 50_000)
    yield "blanks", b'{"model":"m",%b"x":1}' % (b" " * MANY)


def calls_in(step: Callable[[], object]) -> tuple[object, int]:
    """Run something; give what it returns, and how many functions it has called, those in C included."""
    calls = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        result = step()
    finally:
        sys.setprofile(None)
    return result, calls


@pytest.mark.parametrize("name", [name for name, _ in hard()])
def test_no_step_is_long(name: str) -> None:
    """By what is called in it: what a call can look at is bounded by the bytes of a step."""
    body = dict(hard())[name]
    skim = Skim(bytearray(body))
    steps = skim.look()
    longest, more = 0, True
    while more:
        result, calls = calls_in(partial(next, steps, 0))
        longest, more = max(longest, calls), result is None
    peek = skim.peek()
    _, calls = calls_in(partial(thread_of, peek, user="u", session=None))
    assert max(longest, calls) < MOST_CALLS, name


def test_what_stands_again_and_again_in_a_large_body_is_refused_before_it_takes_long() -> None:
    often = b"{" + b'"model":"m",' * 9_999 + b'"messages":[]}'
    assert skimmed(often).model == "m"
    with pytest.raises(GatewayError, match="says 'model' and the like again and again"):
        skimmed(often.replace(b"{", b"{" + b'"model":"x",' * 3, 1))
