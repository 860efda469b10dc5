"""What an answer costs is found wherever it stands, and estimated by bytes where it stands nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgateway.api.usage import Meter, Tokens
from tests.conftest import GatewayFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import RawClient, chat, request
from tests.script import answer, chunk, end, head, play, sse

USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
LONG = "x" * 100_000
WORDS = "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 20
CHUNKED = {"Transfer-Encoding": "chunked"}


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def lines(size: int) -> bytes:
    pieces = [WORDS[at : at + size] for at in range(0, len(WORDS), size)]
    return b"".join(event(piece).removeprefix(b"data: ").replace(b"\n\n", b"\n") for piece in pieces)


def pieces(size: int) -> bytes:
    return b"".join(event(WORDS[at : at + size]) for at in range(0, len(WORDS), size))


async def booked(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script, asked: bytes
) -> dict[str, Any]:
    provider.script = script
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(asked)
        response = await client.head()
        while await client.piece(response):
            pass
        await eventually(lambda: len(gateway.ledger.recent) == 1)
    line: dict[str, Any] = gateway.ledger.recent[-1]
    return line


MIDDLE: dict[str, bytes] = {
    "unstreamed": json.dumps({"a": LONG, "usage": USAGE, "b": LONG}).encode(),
    "unstreamed, pretty": json.dumps({"a": ["x" * 70] * 2_000, "usage": USAGE, "b": LONG}, indent=2).encode(),
    "a long event": b"data: " + json.dumps({"a": LONG, "usage": USAGE, "b": LONG}).encode() + b"\n\n",
    "timings": json.dumps({"a": LONG, "timings": {"prompt_n": 12, "predicted_n": 34}, "b": LONG}).encode(),
}


@pytest.mark.parametrize("name", MIDDLE)
async def test_usage_in_the_middle_of_a_long_answer_is_found(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    body = MIDDLE[name]
    streams = body.startswith(b"data:")
    script = play(sse(), chunk(body), end()) if streams else answer(200, body)
    line = await booked(provider, gateway_for, script, chat(stream=streams))
    assert (line["prompt_tokens"], line["completion_tokens"], line["estimated"]) == (12, 34, False)


@pytest.mark.parametrize("name", MIDDLE)
@pytest.mark.parametrize("size", [1, 7, 4_096, 16_411, 65_536])
def test_it_is_found_in_any_pieces(name: str, size: int) -> None:
    body = MIDDLE[name]
    meter = Meter(stream=body.startswith(b"data:"), writes=True)
    for at in range(0, len(body), size):
        meter.feed(body[at : at + size])
    assert meter.tokens(0) == Tokens(12, 34, estimated=False)


TEXT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}}]}
PLAIN = {"Content-Type": "text/plain"}
UNTOLD: dict[str, tuple[Script, bytes]] = {
    "a chat": (answer(200, TEXT), chat()),
    "a long chat": (answer(200, {"choices": [{"message": {"content": WORDS * 100}}]}), chat()),
    "a message": (
        answer(200, {"type": "message", "content": [{"type": "text", "text": WORDS}]}),
        request("POST", "/v1/messages", body=b'{"model":"m","messages":[],"max_tokens":9}'),
    ),
    "br": (answer(200, b"\x8f" * len(WORDS), {"Content-Encoding": "br"}), chat()),
    "zstd": (answer(200, b"\x8f" * len(WORDS), {"Content-Encoding": "zstd"}), chat(stream=True)),
    "SSE as text": (play(head(200, {**CHUNKED, **PLAIN}), chunk(pieces(5)), end()), chat(stream=True)),
    "SSE without a type": (play(head(200, CHUNKED), chunk(pieces(5)), end()), chat(stream=True)),
    "NDJSON": (
        play(head(200, {**CHUNKED, "Content-Type": "application/x-ndjson"}), chunk(lines(5)), end()),
        chat(stream=True),
    ),
    "several tokens in a piece": (play(sse(), chunk(pieces(40)), end()), chat(stream=True)),
    "everything in a piece": (play(sse(), chunk(event(WORDS * 30)), end()), chat(stream=True)),
}


@pytest.mark.parametrize("name", UNTOLD)
async def test_what_is_not_told_is_estimated_by_bytes(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    script, asked = UNTOLD[name]
    line = await booked(provider, gateway_for, script, asked)
    times = {"a long chat": 100, "everything in a piece": 30}.get(name, 1)
    assert line["estimated"]
    assert line["completion_tokens"] == pytest.approx(times * len(WORDS) / 4.5, rel=0.25)


async def test_what_is_no_text_has_no_output(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    body = json.dumps({"model": "m", "input": "hi"}).encode()
    script = answer(200, {"data": [{"embedding": [0.25] * 5_000}]})
    line = await booked(provider, gateway_for, script, request("POST", "/v1/embeddings", body=body))
    assert (line["completion_tokens"], line["estimated"]) == (0, True)


@pytest.mark.parametrize(
    ("offered", "passed"),
    [
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("br", "identity"),
        ("*", "identity"),
        ("br;q=1.0, GZIP;q=0.5", "GZIP;q=0.5"),
        ("gzip,  deflate;q=0.1", "gzip,  deflate;q=0.1"),
        ("x-gzip", "x-gzip"),
    ],
)
async def test_no_server_is_offered_a_coding_that_cannot_be_read(
    provider: FakeProvider, gateway_for: GatewayFor, offered: str, passed: str
) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(None, f"Accept-Encoding: {offered}"))
        assert (await client.response()).status == 200
    assert provider.requests[0].header("accept-encoding") == passed
