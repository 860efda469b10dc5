"""Compressed request bodies: looked at as what they stand for, and forwarded as they came."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable

import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_bodies import FORM_TYPE, chunked, form, memory
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import request
from tests.script import answer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ASK = b'{"messages": [{"role": "user", "content": "%b"}], "model": "m"}'
PATH = "/v1/audio/transcriptions"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def members(body: bytes) -> bytes:
    return gzip.compress(body[:20]) + gzip.compress(body[20:])


def frames(body: bytes) -> bytes:
    return zstd.compress(body[:20]) + zstd.compress(body[20:])


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("x-gzip", members),
    ("gzip, identity", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstd.compress),
    ("zstd", frames),
]
packed = pytest.mark.parametrize(("coding", "pack"), PACKERS, ids=range(len(PACKERS)))


@packed
@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_compressed_body_is_forwarded_as_it_came(
    gateway_for: GatewayFor, provider: FakeProvider, coding: str, pack: Callable[[bytes], bytes], size: int
) -> None:
    provider.script = answer(200, {})
    gateway = await gateway_for(provider)
    body = pack(ASK % (b"a" * size))
    field = f"Content-Encoding: {coding}"
    framed = request("POST", OPENAI, field, "Transfer-Encoding: chunked") + chunked(body, 7 + size // 1000)
    for message in (asking(OPENAI, body, KEY, field), asking(ANTHROPIC, body, KEY, field), framed):
        assert (await ask(gateway.port, message)).status == 200
    for sent in provider.requests:
        assert sent.body == body
        assert (sent.header("content-encoding"), sent.header("content-length")) == (coding, str(len(body)))
    await eventually(lambda: not gateway._app._room.held_bytes)


@packed
async def test_a_compressed_form_is_forwarded_as_it_came(
    gateway_for: GatewayFor, provider: FakeProvider, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    provider.script = answer(200, {})
    gateway = await gateway_for(provider)
    body = pack(form(('name="file"; filename="a"', b"a" * 500_000), ('name="model"', b"m")))
    fields = (FORM_TYPE, f"Content-Encoding: {coding}")
    assert (await ask(gateway.port, asking(PATH, body, KEY, *fields))).status == 200
    assert provider.requests[0].body == body


async def test_a_compressed_body_that_asks_for_another_name_goes_on_uncompressed(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for(models=["other"], rename={"other": "m"})
    provider.script = answer(200, {})
    gateway = await gateway_for(provider, server={"default_model": "m"})
    body = ASK % b"hi"
    wants = [body.replace(b'"m"', b'"other"'), b'{"x": 1,"model":"other"}', b'{"model":"other"}']
    for plain in (body, b'{"x": 1}', b"{}"):
        message = asking(OPENAI, gzip.compress(plain), KEY, "Content-Encoding: gzip")
        assert (await ask(gateway.port, message)).status == 200
    plain = form(('name="file"; filename="a"', b"a"))
    part = b'--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n'
    fields = (FORM_TYPE, "Content-Encoding: gzip")
    assert (await ask(gateway.port, asking(PATH, gzip.compress(plain), KEY, *fields))).status == 200
    assert [sent.body for sent in provider.requests] == [*wants, part + plain]
    assert {sent.header("content-encoding") for sent in provider.requests} == {None}


@packed
async def test_a_bomb_is_413_and_takes_no_memory(
    program_for: ProgramFor, provider: FakeProvider, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    program = await program_for(provider, server={"max_body": "2MB"})
    bomb = pack(ASK % (b"a" * 100_000_000))
    field = f"Content-Encoding: {coding}"
    await ask(program.port, asking(OPENAI, pack(ASK % b"a"), KEY, field))
    before = memory(program.pid, "VmRSS")
    refusal(await ask(program.port, asking(OPENAI, bomb, KEY, field)), 413, "request_too_large")
    assert memory(program.pid, "VmHWM") - before < 20_000_000


@packed
async def test_what_is_wrong_with_a_compressed_body_is_named(
    gateway_for: GatewayFor, provider: FakeProvider, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    gateway = await gateway_for(provider)
    whole = pack(ASK % b"hi")
    for body, words in (
        (whole[:-3], "decompressed"),
        (whole + b"more", "decompressed"),
        (b"\x00\x01" + whole, "decompressed"),
        (ASK % b"hi", "decompressed"),
        (b"", "empty"),
        (pack(b""), "empty"),
        (pack(b'{"model": 3, "padding": "of some bytes"}'), "must be a string"),
        (pack(b'{"model": "m", and so on, and so on}'), "not valid JSON"),
        (pack(b'{"x": "no model here at all"}'), "no 'model'"),
    ):
        message = asking(OPENAI, body, KEY, f"Content-Encoding: {coding}")
        assert words in refusal(await ask(gateway.port, message), 400, "invalid_request"), (body, words)
    assert not provider.calls


async def test_a_compressed_body_is_charged_with_what_it_stands_for(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"bodies_memory": "1MB"})
    body = json.dumps({"model": "m", "prompt": "a" * 1_000_000}).encode()
    message = asking(OPENAI, gzip.compress(body), KEY, "Content-Encoding: gzip")
    refusal(await ask(gateway.port, message), 503, "overloaded")
    assert not gateway._app._room.held_bytes
