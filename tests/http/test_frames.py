"""The follower of WebSocket frames: however bytes are cut, it knows where it stands, and holds nothing."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from llmgateway.http.frames import GOING_AWAY, Follower, close_frame, ping_frame

MASK = b"\x01\x80\xff\x00"
DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([124, 125, 126, 127, 65_535, 65_536, 70_000]))
FRAMES = st.lists(
    st.builds(
        lambda opcode, size, fin: Frame(
            opcode, b"x" * (size if opcode in DATA else min(size, 125)), fin=fin or opcode not in DATA
        ),
        st.sampled_from([*DATA, Opcode.PING, Opcode.PONG]),
        SIZES,
        st.booleans(),
    ),
    max_size=6,
)


def written(frames: list[Frame], *, mask: bool, flags: int = 0) -> list[bytes]:
    each = [frame.serialize(mask=mask) for frame in frames]
    return [bytes((one[0] | flags,)) + one[1:] if one[0] & 0x08 == 0 else one for one in each]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(FRAMES, st.booleans(), st.booleans(), st.lists(st.integers(0, 200_000), max_size=12))
def test_however_frames_are_cut_it_knows_where_they_end(
    frames: list[Frame], mask: bool, compressed: bool, places: list[int]
) -> None:
    each = written(frames, mask=mask, flags=0x40 if compressed else 0)
    ends = {0, *itertools.accumulate(map(len, each))}
    follower, passed = Follower(), 0
    for piece in cut(b"".join(each), places):
        follower.pass_by(piece)
        passed += len(piece)
        assert follower.between == (passed in ends)
    assert not follower.closed


@given(FRAMES, st.lists(st.integers(0, 200_000), max_size=12))
def test_what_data_frames_hold_is_given_whole_and_in_its_order(
    frames: list[Frame], places: list[int]
) -> None:
    follower = Follower()
    pieces = [
        one for data in cut(b"".join(written(frames, mask=False)), places) for one in follower.follow(data)
    ]
    data = [frame for frame in frames if frame.opcode in DATA]
    assert b"".join(piece.payload for piece in pieces) == b"".join(bytes(frame.data) for frame in data)
    assert sum(piece.last for piece in pieces) == sum(frame.fin for frame in data)


@given(FRAMES, st.integers(0, 200_000))
def test_the_rest_of_a_frame_is_what_it_lacks_and_no_byte_more(frames: list[Frame], place: int) -> None:
    each = written(frames, mask=True)
    data = b"".join(each)
    place %= len(data) + 1
    follower = Follower()
    follower.pass_by(data[:place])
    rest = follower.rest_of_frame(data[place:])
    ends = [0, *itertools.accumulate(map(len, each))]
    assert place + len(rest) == min(end for end in ends if end >= place)
    assert follower.between


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8bye"])
def test_a_close_counts_once_it_is_whole(payload: bytes, mask: bool) -> None:
    data = Frame(Opcode.CLOSE, payload).serialize(mask=mask)
    follower = Follower()
    for at in range(len(data)):
        assert not follower.closed
        follower.pass_by(data[at : at + 1])
    assert follower.closed


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_whatever_comes_it_neither_raises_nor_holds_more_than_a_header(
    data: bytes, places: list[int]
) -> None:
    follower = Follower()
    for piece in cut(data, places):
        follower.pass_by(piece)
        assert len(follower._header) < 14


def test_a_frame_of_an_exabyte_takes_no_memory() -> None:
    follower = Follower()
    follower.pass_by(b"\x82\x7f\x0f" + bytes(7))
    for _ in range(1_000):
        follower.pass_by(bytes(10_000))
    assert not follower.between
    assert sys.getsizeof(follower._header) < 100


@given(st.text(max_size=200))
def test_our_close_is_one_that_others_read(words: str) -> None:
    code = b"\x03\xe9"
    frame = close_frame(GOING_AWAY, words)
    assert frame[:2] == bytes((0x88, len(frame) - 2)) and len(frame) <= 127
    assert frame[2:4] == code
    said = Close.parse(frame[2:])
    assert said.code == GOING_AWAY
    assert words.encode("utf-8", "replace").decode().startswith(said.reason)
    masked = close_frame(GOING_AWAY, words, MASK)
    assert masked[2:6] == MASK
    assert bytes(byte ^ MASK[at % 4] for at, byte in enumerate(masked[6:])) == frame[2:]


def test_our_ping_is_empty() -> None:
    assert ping_frame() == b"\x89\x00"
    assert ping_frame(MASK) == b"\x89\x80" + MASK
