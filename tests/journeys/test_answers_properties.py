"""Any body, framed in any way and cut anywhere, arrives as it was.

Most chunks have a packet of their own here, as in most streams, mixed with those that do not; many look like
framing themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from llmgateway.service.gateway import Gateway
from tests.answers import ANY_TYPE, CHUNKED, EVENT_TYPE, EVENTS, LOOKALIKES, Answer, Kind, Part, head
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journeys.test_answers import RAW_CLIENTS, barely
from tests.script import cut, packets, play, raw

OWN_PACKET = frozenset({Kind.END})


@dataclass(frozen=True)
class Piece:
    """A piece of a body, which is a chunk where the body is in chunks, and how packets cut it."""

    word: bytes
    times: int = 1
    size: bytes = b"%x"
    """How its size is written."""
    apart: frozenset[Kind] = OWN_PACKET
    """The parts of it behind which a packet ends."""
    inside: tuple[int, ...] = ()
    """Where else a packet ends, counted from its first byte."""

    @property
    def data(self) -> bytes:
        return self.word * self.times

    def parts(self, framing: str) -> list[Part]:
        data = (Kind.DATA, self.data)
        if framing != "chunked":
            return [data, (Kind.END, b"")]
        return [(Kind.SIZE, self.size % len(self.data) + b"\r\n"), data, (Kind.END, b"\r\n")]


def assembled(
    pieces: list[Piece], framing: str, content_type: bytes, trailers: bytes
) -> tuple[Answer, set[int]]:
    """An answer, and the places where its packets begin."""
    length = b"Content-Length: %d" % sum(len(piece.data) for piece in pieces)
    told = {"chunked": (CHUNKED,), "length": (length,)}.get(framing, ())
    parts = [head(content_type, *told, http=b"HTTP/1.0" if framing == "HTTP/1.0" else b"HTTP/1.1")]
    at = len(parts[0][1])
    places = {at}
    for piece in pieces:
        places |= {at + offset for offset in piece.inside}
        for kind, data in piece.parts(framing):
            parts.append((kind, data))
            at += len(data)
            places |= {at} if kind in piece.apart else set()
    if framing == "chunked":
        parts += [(Kind.LAST, b"0\r\n"), (Kind.TRAILERS, trailers + b"\r\n")]
    return Answer("", tuple(parts), until_close=framing in ("close", "HTTP/1.0")), places


PARTS = (Kind.SIZE, Kind.DATA, Kind.END)
EVERY_PART = frozenset(PARTS)
WORDS = st.sampled_from([*LOOKALIKES, *EVENTS]) | st.binary(min_size=1, max_size=40)
TIMES = st.sampled_from([1] * 9 + [2_000])
SIZES = st.sampled_from([b"%x"] * 5 + [b"%X", b"0%x", b"%x;a=b", b'%x;a="5"'])
APART = st.sampled_from([OWN_PACKET, EVERY_PART, frozenset()]) | st.frozensets(st.sampled_from(PARTS))
INSIDE = st.just(()) | st.tuples(st.integers(1, 40)) | st.tuples(st.integers(1, 9), st.integers(1, 80_000))
PIECES = st.builds(Piece, WORDS) | st.builds(Piece, WORDS, TIMES, SIZES, APART, INSIDE)


@pytest.fixture
async def gateway(provider: FakeProvider, gateway_for: GatewayFor) -> Gateway:
    return await gateway_for(provider)


@settings(
    max_examples=400,
    # Where answers never end every example takes its limit: smaller ones would take minutes to find.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
    # One gateway serves all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    pieces=st.lists(PIECES, max_size=12),
    framing=st.sampled_from(["chunked"] * 4 + ["length", "close", "HTTP/1.0"]),
    content_type=st.sampled_from([EVENT_TYPE, ANY_TYPE]),
    trailers=st.sampled_from([b"", b"X-Sum: 1\r\n5: hello\r\n"]),
    client=st.sampled_from(sorted(RAW_CLIENTS)),
    hasty=st.booleans(),
)
@example(  # the bytes of a chunk are what looks like one, and have a packet of their own
    pieces=[Piece(b"data: x\n\n"), Piece(b"5\r\nhello\r\n", apart=EVERY_PART), Piece(b"data: y\n\n")],
    framing="chunked",
    content_type=EVENT_TYPE,
    trailers=b"",
    client="1.1",
    hasty=False,
)
@example(  # a packet is what looks like a chunk of 2, behind the first digit of the real size, 18
    pieces=[Piece(b"data: x\n\n"), Piece(b"xy\r\nand 14 more...", inside=(1, 8)), Piece(b"data: y\n\n")],
    framing="chunked",
    content_type=EVENT_TYPE,
    trailers=b"",
    client="1.1",
    hasty=False,
)
async def test_any_body_arrives_as_it_was_however_it_is_framed_and_cut(
    provider: FakeProvider,
    gateway: Gateway,
    pieces: list[Piece],
    framing: str,
    content_type: bytes,
    trailers: bytes,
    client: str,
    hasty: bool,
) -> None:
    answer, places = assembled(pieces, framing, content_type, trailers)
    sent = (raw if hasty else packets)(*answer.cut(lambda _: places))
    provider.script = play(sent, cut()) if answer.until_close else sent
    seen = await barely(gateway.port, answer, client)
    assert (seen.status, seen.body) == (200, answer.body)
