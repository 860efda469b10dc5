"""What a session has cost is read off its provider's events, compressed or not, however they are cut."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from llmgateway.api.usage import Tokens
from llmgateway.http.frames import Follower
from llmgateway.traffic.overheard import MOST_BYTES, Overheard

PLAIN = b"Sec-WebSocket-Accept: x\r\n"
DONE = {
    "type": "response.done",
    "response": {
        "status": "completed",
        "output": [{"content": [{"transcript": 'he said "usage": {"input_tokens": 9, "output_tokens": 9}'}]}],
        "usage": {
            "total_tokens": 30,
            "input_tokens": 20,
            "output_tokens": 10,
            "input_token_details": {"cached_tokens": 4, "text_tokens": 16, "audio_tokens": 4},
            "output_token_details": {"text_tokens": 4, "audio_tokens": 6},
        },
    },
}
CREATED = {"type": "response.created", "response": {"usage": None}}


def audio(size: int) -> dict[str, str]:
    return {"type": "response.output_audio.delta", "delta": "QUJD" * (size // 4)}


def frames_of(event: Any, *, parts: int = 1) -> list[Frame]:
    data = json.dumps(event).encode()
    size = -(-len(data) // parts)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [
        Frame(Opcode.CONT if number else Opcode.TEXT, piece, fin=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]


def written(frames: list[Frame], deflate: PerMessageDeflate | None = None) -> bytes:
    return b"".join(frame.serialize(mask=False, extensions=[deflate] if deflate else []) for frame in frames)


def heard(data: bytes, lines: bytes = PLAIN, size: int = 65_536) -> Tokens | None:
    ear, follower = Overheard(lines), Follower()
    for start in range(0, len(data), size):
        for piece in follower.follow(data[start : start + size]):
            ear.hear(piece)
    return ear.tokens


def test_a_session_that_tells_no_usage_has_none() -> None:
    assert heard(written([*frames_of(CREATED), *frames_of(audio(1_000))])) is None


@pytest.mark.parametrize("size", [1, 7, 65_536])
def test_what_its_answers_have_cost_is_added_up(size: int) -> None:
    events = [CREATED, audio(500_000), DONE, audio(400), DONE]
    data = b"".join(written(frames_of(event)) for event in (events if size > 1 else events[2:]))
    assert heard(data, size=size) == Tokens(40, 20, 8, 0, estimated=False)


def test_vllm_words_count_as_well() -> None:
    done = {"type": "transcription.done", "text": "x", "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
    assert heard(written(frames_of(done))) == Tokens(5, 3, estimated=False)


def test_a_message_in_several_frames_with_pings_between_them_counts_once() -> None:
    frames = frames_of(DONE, parts=5)
    pings = [Frame(Opcode.PING, b'"usage"')] * len(frames)
    data = written([one for pair in zip(frames, pings, strict=True) for one in pair])
    assert heard(data, size=11) == Tokens(20, 10, 4, 0, estimated=False)


def test_a_binary_message_tells_nothing() -> None:
    assert heard(written([Frame(Opcode.BINARY, json.dumps(DONE).encode())])) is None


@pytest.mark.parametrize("alone", [False, True])
@given(parts=st.integers(1, 4), size=st.sampled_from([1, 3, 100, 65_536]))
def test_compression_is_undone(alone: bool, parts: int, size: int) -> None:
    deflate = PerMessageDeflate(False, alone, 15, 15)
    frames = [*frames_of(CREATED), *frames_of(DONE, parts=parts), *frames_of(audio(10_000)), *frames_of(DONE)]
    told = b"; server_no_context_takeover" if alone else b""
    lines = b"sec-websocket-extensions: permessage-deflate%b\r\n" % told
    assert heard(written(frames, deflate), lines, size) == Tokens(40, 20, 8, 0, estimated=False)


def test_what_is_too_long_to_be_an_answer_is_let_go() -> None:
    ear, follower = Overheard(PLAIN), Follower()
    data = written(frames_of(audio(4 * MOST_BYTES)))
    for start in range(0, len(data), 65_536):
        for piece in follower.follow(data[start : start + 65_536]):
            ear.hear(piece)
            assert len(ear._kept) <= MOST_BYTES
    assert ear.tokens is None


def test_a_bomb_is_given_up() -> None:
    packed = zlib.compressobj(wbits=-15)
    bomb = packed.compress(bytes(200_000_000)) + packed.flush(zlib.Z_SYNC_FLUSH)
    frame = bytes((0xC1, 127)) + len(bomb).to_bytes(8, "big") + bomb
    assert heard(frame + written(frames_of(DONE))) == Tokens(20, 10, 4, 0, estimated=False)


@given(st.binary(max_size=300))
def test_whatever_it_hears_nothing_raises(data: bytes) -> None:
    heard(data)
    heard(bytes((0xC1, 126)) + len(data).to_bytes(2, "big") + data + data)
