"""Which header fields pass through the gateway, in which direction, and which end in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.api.dialect import SSE
from llmgateway.http.headers import (
    Field,
    HeadReader,
    answer_head,
    keep_alive_limits,
    request_head,
    whole_number,
)

HOP_BY_HOP = (
    "Connection: x-nothing",
    "Keep-Alive: timeout=5",
    "Proxy-Authenticate: Basic",
    "Proxy-Authorization: Basic eA==",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Trailer: X-Sum",
    "Transfer-Encoding: chunked",
    "Upgrade: h2c",
)
TOKENS = st.sampled_from(["a", "b", "x-c", "Connection"])


def fields_of(*lines: str) -> list[Field]:
    pairs = (line.partition(":") for line in lines)
    return [(name.encode(), value.strip().encode("latin-1")) for name, _, value in pairs]


def sent_on(*lines: str, replaced: frozenset[bytes] = frozenset()) -> list[str]:
    """The header lines that a provider gets, without the request id that the gateway adds."""
    passed = request_head(fields_of(*lines), replaced=replaced).lines.decode("latin-1").split("\r\n")
    assert passed.pop() == ""
    return passed


def returned(*lines: str) -> list[str]:
    """The header lines that a client gets of a provider's."""
    return answer_head(fields_of(*lines)).lines.decode("latin-1").split("\r\n")[:-1]


@pytest.mark.parametrize(
    "line",
    [
        *HOP_BY_HOP,
        "Authorization: Bearer sk-alice",
        "X-Api-Key: sk-alice",
        "Host: gateway",
        "Content-Length: 12",
        "Expect: 100-continue",
        "X-Request-Id: theirs",
    ],
)
def test_what_ends_at_the_gateway_never_reaches_a_provider(line: str) -> None:
    name, _, value = line.partition(":")
    for spelling in (name, name.lower(), name.upper()):
        assert sent_on("A: 1", f"{spelling}:{value}", "B: 2") == ["A: 1", "B: 2"]


@pytest.mark.parametrize(
    "line",
    [
        *HOP_BY_HOP,
        "Content-Length: 12",
        "X-Request-Id: theirs",
        "X-Gateway-Provider: forged",
        "X-Gateway-Error: forged",
    ],
)
def test_what_the_gateway_says_itself_never_comes_from_a_provider(line: str) -> None:
    name, _, value = line.partition(":")
    for spelling in (name, name.lower(), name.upper()):
        assert returned("A: 1", f"{spelling}:{value}", "B: 2") == ["A: 1", "B: 2"]


PASSING = (
    "content-TYPE: application/json",
    "Accept: */*",
    "Accept-Encoding: gzip",
    "Content-Encoding: gzip",
    "Cookie: a=1",
    "Cookie: b=2",
    "Empty:",
    "X-Odd: caf\xe9 \xff\x80",
    "OpenAI-Organization: o",
)


def test_everything_else_passes_in_its_order_spelling_and_bytes() -> None:
    as_sent = [line.replace("Empty:", "Empty: ") for line in PASSING]
    assert sent_on(*PASSING) == as_sent
    assert returned(*PASSING) == as_sent


@pytest.mark.parametrize(
    "connection",
    ["close, X-Private", "x-private", "X-PRIVATE , keep-alive", ",,x-private,", "keep-alive,\tx-private\t"],
)
def test_a_field_that_connection_names_ends_here_both_ways(connection: str) -> None:
    lines = ("X-Private: 1", "X-Public: 2", f"coNNection: {connection}")
    assert sent_on(*lines) == returned(*lines) == ["X-Public: 2"]


def test_each_of_several_connection_fields_counts() -> None:
    lines = ("Connection: a", "A: 1", "B: 2", "C: 3", "Connection: b")
    assert sent_on(*lines) == returned(*lines) == ["C: 3"]


@given(st.lists(st.tuples(TOKENS, TOKENS)))
def test_no_field_that_connection_names_ever_passes(pairs: list[tuple[str, str]]) -> None:
    lines = [f"{name}: {value}" for name, value in pairs]
    named = {"connection"} | {value.lower() for name, value in pairs if name == "Connection"}
    passing = [line for line in lines if line.partition(":")[0].lower() not in named]
    assert sent_on(*lines) == returned(*lines) == passing


def test_what_the_config_sets_for_a_provider_replaces_what_the_client_sent() -> None:
    replaced = frozenset({b"x-extra", b"user-agent"})
    assert sent_on("X-Extra: theirs", "USER-AGENT: curl", "A: 1", replaced=replaced) == ["A: 1"]


def test_an_event_stream_is_not_held_back_by_proxies_in_between() -> None:
    head = answer_head(fields_of("Content-Type: text/event-stream; charset=utf-8"))
    assert (head.framing, head.may_grow) == (SSE, True)
    assert head.lines.endswith(b"X-Accel-Buffering: no\r\nCache-Control: no-cache\r\n")


def test_what_a_provider_says_about_caching_its_stream_stays() -> None:
    lines = ("Content-Type: text/event-stream", "cache-control: no-store", "X-ACCEL-Buffering: yes")
    assert returned(*lines) == list(lines)


@pytest.mark.parametrize(
    ("lines", "may_grow"),
    [
        (("Content-Type: TEXT/Event-Stream",), True),
        (("content-type: application/json",), False),
        (("Content-Type: text/plain; x=text/event-stream",), False),
        (("Content-Type: text/event-stream", "Content-Encoding: gzip"), False),
        ((), False),
    ],
)
def test_only_an_uncompressed_event_stream_may_be_added_to(lines: tuple[str, ...], may_grow: bool) -> None:
    assert answer_head(fields_of(*lines)).may_grow is may_grow


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b"0", 0),
        (b" 12 ", 12),
        (b"0" * 5_000 + b"12", 12),
        (b"9" * 20, 99999999999999999999),
        (b"9" * 21, None),
        (b"", None),
        (b"-1", None),
        (b"1, 1", None),
    ],
)
def test_a_length_is_a_whole_number_of_some_digits(text: bytes, length: int | None) -> None:
    assert whole_number(text) == length


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        ("timeout=5, max=100", (5.0, 100)),
        ("TIMEOUT=5,MAX=100", (5.0, 100)),
        (" max = 7 , timeout = 60 ", (60.0, 7)),
        ("timeout=0", (0.0, None)),
        ("max=1", (None, 1)),
        ("timeout=-5", (None, None)),
        ("timeout=1.5", (None, None)),
        ("timeout=\xb2", (None, None)),
        ("timeout", (None, None)),
        ("=5", (None, None)),
        ("timeout=5=6; max=3", (None, None)),
        ("", (None, None)),
        (",,,", (None, None)),
        ("\xff\xfe", (None, None)),
    ],
)
def test_the_limits_of_a_kept_connection_are_read(
    value: str, limits: tuple[float | None, int | None]
) -> None:
    assert keep_alive_limits(value.encode()) == limits


def test_a_connection_of_which_nothing_is_said_has_no_limits() -> None:
    assert keep_alive_limits(b"") == (None, None)


@pytest.mark.parametrize("digits", [400, 5_000])
def test_absurd_limits_of_a_kept_connection_do_not_fail(digits: int) -> None:
    keep_alive_limits(b"timeout=%b, max=%b" % (b"9" * digits, b"9" * digits))


@given(st.binary())
def test_any_keep_alive_field_can_be_read(value: bytes) -> None:
    keep_alive_limits(value)


def test_values_are_found_by_their_lower_case_name_and_those_of_one_name_are_a_list() -> None:
    named = request_head(fields_of("X-Twice: first", "A: 1", "x-TWICE: second")).named
    assert named == {b"x-twice": b"first, second", b"a": b"1"}


LENGTHS = st.sampled_from(["Content-Length: 1", "content-length: 22", "Content-Length: 1"])
LINES = st.sampled_from(
    ["A: 1", "a: 1", "A: 2", "Connection: a", "Content-Type: x", "Transfer-Encoding: chunked"]
)


@st.composite
def heads(draw: st.DrawFn) -> list[str]:
    lines = draw(st.lists(LINES, max_size=3))
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), draw(LENGTHS))
    return lines


@given(st.lists(heads(), max_size=8))
def test_a_head_says_the_same_whatever_came_before_it_on_the_connection(sent: list[list[str]]) -> None:
    reader = HeadReader()
    for lines in sent:
        fields = tuple(fields_of(*lines))
        read, alone = reader.read(fields), request_head(fields)
        alone.named.pop(b"content-length", None)
        assert (read.named, read.lines) == (alone.named, alone.lines)
        assert abs(read.size - alone.size) <= 1


def test_a_head_that_comes_again_is_not_read_again() -> None:
    reader = HeadReader()
    first, second = (tuple(fields_of("A: 1", f"Content-Length: {n}", "B: 2")) for n in (10, 999))
    assert reader.read(second) is reader.read(first)


def test_a_long_head_is_not_remembered() -> None:
    reader = HeadReader()
    fields = tuple(fields_of("A: " + "1" * 9_000, "Content-Length: 1"))
    assert reader.read(fields) is not reader.read(fields)
