"""Large uploads: they go on while they come, wait on disk where they must, and memory has little of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

import pytest

from llmgateway.http.body import Patience
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_bodies import FORM_TYPE, chunked, form, memory
from tests.journeys.test_errors import OPENAI, asking, refusal
from tests.raw_client import RawClient, request
from tests.script import answer, cut, play, raw, stall

PATH = "/v1/audio/transcriptions"
NOISE = random.Random(2).randbytes(3_000_000)
FILE = ('name="file"; filename="a.wav"', NOISE)
MODEL = ('name="model"', b"m")
EARLY = form(MODEL, FILE)
"""Names its model before the file."""
LATE = form(FILE, MODEL)
FRAMINGS = pytest.mark.parametrize("framing", ["length", "chunked"])
OK = answer(200, {"text": "so"})


def cut_in_two(body: bytes, framing: str, at: int = 100_000) -> tuple[bytes, bytes]:
    """A request with a form, in two pieces, the first of which has the beginning of the file."""
    if framing == "length":
        head = request("POST", PATH, FORM_TYPE, f"Content-Length: {len(body)}")
        return head + body[:at], body[at:]
    head = request("POST", PATH, FORM_TYPE, "Transfer-Encoding: chunked")
    return head + chunked(body[:at])[:-5], chunked(body[at:])


async def at_the_head(exchange: Exchange) -> None:
    """Be told of a call when its head has come."""


@FRAMINGS
async def test_a_form_goes_on_while_it_comes(
    gateway_for: GatewayFor, provider: FakeProvider, framing: str
) -> None:
    gateway = await gateway_for(provider)
    provider.before_body, provider.script = at_the_head, OK
    first, rest = cut_in_two(EARLY, framing)
    async with RawClient(gateway.port) as client:
        await client.send(first)
        call = await provider.next_call()
        await eventually(lambda: len(call._wire.received) > 50_000)
        await client.send(rest)
        assert (await client.response()).status == 200
        await client.send(asking(PATH, EARLY, KEY, FORM_TYPE))  # the connection serves on
        if framing == "length":
            assert (await client.response()).status == 200
    assert provider.requests[0].body == EARLY
    sizes = [provider.requests[0].header(name) for name in ("content-length", "transfer-encoding")]
    assert sizes == ([str(len(EARLY)), None] if framing == "length" else [None, "chunked"])
    await eventually(lambda: not gateway._app._room.held_bytes)


@FRAMINGS
@pytest.mark.parametrize("form_", [EARLY, LATE], ids=["early", "late"])
async def test_a_form_asks_for_the_model_as_its_server_knows_it(
    gateway_for: GatewayFor, provider_for: ProviderFor, form_: bytes, framing: str
) -> None:
    provider = await provider_for(models=["the/long:name"], rename={"the/long:name": "m"})
    provider.script = OK
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(*cut_in_two(form_, framing), pause_s=0.01)
        assert (await client.response()).status == 200
    assert provider.requests[0].body == form_.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nthe/long:name\r\n")


@pytest.mark.parametrize("size", [3_000_000, 9_000_000])
async def test_a_large_form_without_a_model_gets_the_default_one(
    gateway_for: GatewayFor, provider: FakeProvider, size: int, tmp_path: Path
) -> None:
    gateway = await gateway_for(provider, server={"default_model": "m", "spool": str(tmp_path)})
    provider.script = OK
    body = form(('name="file"; filename="a"', NOISE * (size // len(NOISE))))
    async with RawClient(gateway.port) as client:
        await client.send(*cut_in_two(body, "length"))
        assert (await client.response()).status == 200
    part = b'--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    assert provider.requests[0].body == part + body


async def test_a_large_json_body_asks_for_the_model_as_its_server_knows_it(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for(models=["the/long:name"], rename={"the/long:name": "m"})
    provider.script = OK
    gateway = await gateway_for(provider)
    words = json.dumps([{"role": "user", "content": NOISE.hex()}])
    body = f'{{"model": "x", "messages": {words}, "model" : "m" }}'.encode()
    async with RawClient(gateway.port) as client:
        await client.send(asking(OPENAI, body))
        assert (await client.response()).status == 200
    assert provider.requests[0].body == body.replace(b'"m"', b'"the/long:name"')


async def test_a_provider_that_answers_in_the_middle_of_an_upload_is_heard(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.before_body = answer(413, {"error": "too much for me"})
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        first, rest = cut_in_two(EARLY, "length")
        await client.send(first)
        response = await client.response()
        assert (response.status, response.json) == (413, {"error": "too much for me"})
        assert response.header("connection") == "close"
        await client.send(rest[:-1])  # it is listened to for a while, so that the answer is not lost


async def test_a_client_that_leaves_while_its_upload_waits_for_a_slot_waits_no_more(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for(slots=1)
    provider.script = stall()
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as first, RawClient(gateway.port) as second:
        await first.send(asking(PATH, EARLY, KEY, FORM_TYPE))
        await provider.next_call()
        await second.send(cut_in_two(EARLY, "length", 900_000)[0])
        await eventually(lambda: len(gateway.ledger.in_flight) == 2)
        second.leave()
        await eventually(lambda: len(gateway.ledger.in_flight) == 1)


async def test_a_404_in_the_middle_of_an_upload_that_nobody_else_can_take_is_heard(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    providers = [await provider_for(name) for name in ("one", "other")]
    gateway = await gateway_for(*providers)

    async def refuses(exchange: Exchange) -> None:
        await eventually(lambda: len(exchange._wire.received) > 1_500_000)
        await exchange.answer(404, b'{"error": "no such model"}')

    for provider in providers:
        provider.before_body = refuses
    async with RawClient(gateway.port) as client:
        await client.send(cut_in_two(EARLY, "length", 2_000_000)[0])
        response = await client.response()
    assert (response.status, response.json) == (404, {"error": "no such model"})
    assert response.header("connection") == "close"
    assert len(providers[0].calls) + len(providers[1].calls) == 1


async def test_an_upload_is_asked_for_where_its_client_waits_for_that(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    provider.script = OK
    first, rest = cut_in_two(EARLY, "length", 0)
    async with RawClient(gateway.port) as client:
        await client.send(first.replace(b"Host:", b"Expect: 100-continue\r\nHost:"), rest)
        response = await client.response()
        assert (response.interim, response.status) == ([100], 200)
    assert provider.requests[0].body == EARLY
    assert provider.requests[0].header("expect") is None


async def test_a_client_that_stops_sending_is_told_so_and_its_provider_is_cut_off(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, patience=Patience(rate_s=0.3))
    provider.before_body = at_the_head
    async with RawClient(gateway.port) as client:
        await client.send(cut_in_two(EARLY, "length")[0])
        call = await provider.next_call()
        refusal(await client.response(), 408, "request_timeout")
        await call.hung_up()
    await eventually(lambda: not gateway._app._room.held_bytes)
    assert gateway.fleet.providers["rig"].in_flight == 0


async def test_a_client_that_leaves_in_the_middle_takes_its_upload_with_it(
    gateway_for: GatewayFor, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await gateway_for(provider)
    provider.before_body = at_the_head
    async with RawClient(gateway.port) as client:
        await client.send(cut_in_two(EARLY, "length")[0])
        call = await provider.next_call()
        client.leave()
        await call.hung_up()
    await eventually(lambda: not gateway.fleet.providers["rig"].in_flight)
    assert "unexpected" not in caplog.text


@FRAMINGS
async def test_a_small_upload_gets_in_where_there_is_no_room(
    gateway_for: GatewayFor, provider: FakeProvider, framing: str
) -> None:
    gateway = await gateway_for(provider, server={"bodies_memory": 1})
    provider.script = OK
    for form_, status in (
        (form(MODEL, (FILE[0], NOISE[:60_000])), 200),
        (form((FILE[0], NOISE[:60_000]), MODEL), 200),
        (form((FILE[0], NOISE[:70_000]), MODEL), 503),
    ):
        async with RawClient(gateway.port) as client:
            await client.send(*cut_in_two(form_, framing, 50_000), pause_s=0.01)
            assert (await client.response()).status == status


async def test_an_upload_that_turns_out_too_large_is_413(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"max_body": "1MB"})
    provider.before_body = at_the_head
    async with RawClient(gateway.port) as client:
        await client.send(*cut_in_two(EARLY, "chunked"))
        refusal(await client.response(), 413, "request_too_large")


@pytest.mark.parametrize("at", [100_000, 2_000_000])
async def test_another_provider_gets_an_upload_while_all_of_it_is_still_here(
    gateway_for: GatewayFor, provider_for: ProviderFor, at: int
) -> None:
    providers = [await provider_for(name) for name in ("one", "other")]
    gateway = await gateway_for(*providers)
    first, rest = cut_in_two(EARLY, "length", at)
    calls: list[Exchange] = []

    async def the_first_leaves(exchange: Exchange) -> None:
        calls.append(exchange)
        if len(calls) == 1:
            await eventually(lambda: len(exchange._wire.received) > at * 0.9)
            exchange.cut()

    for provider in providers:
        provider.script, provider.before_body = OK, the_first_leaves
    async with RawClient(gateway.port) as client:
        await client.send(first)
        await eventually(lambda: calls)
        await calls[0].over()
        await client.send(rest)
        response = await client.response()
    if at < 1_000_000:
        assert response.status == 200
        assert calls[1].request.body == EARLY
    else:
        refusal(response, 502, "upstream_error")
        assert len(calls) == 1


async def test_the_wait_for_an_answer_does_not_count_while_the_client_sends(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for(timeouts={"first_byte": "400ms"})
    provider.script = OK
    gateway = await gateway_for(provider)
    first, rest = cut_in_two(EARLY, "length")
    async with RawClient(gateway.port) as client:
        await client.send(
            first, *(rest[at : at + 300_000] for at in range(0, len(rest), 300_000)), pause_s=0.1
        )
        assert (await client.response()).status == 200
        provider.script = stall()
        await client.send(asking(PATH, EARLY, KEY, FORM_TYPE))
        assert "first_byte" in refusal(await client.response(), 502, "upstream_error")


async def test_a_provider_that_does_not_read_an_upload_is_not_waited_for(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    provider = await provider_for(timeouts={"first_byte": "400ms"})
    gateway = await gateway_for(provider)

    async def deaf(exchange: Exchange) -> None:
        exchange.stop_reading()
        await asyncio.get_running_loop().create_future()

    provider.before_body = deaf
    body = form(MODEL, (FILE[0], NOISE * 10))
    async with RawClient(gateway.port) as client:
        answering = asyncio.ensure_future(client.response())
        try:
            await client.send(asking(PATH, body, KEY, FORM_TYPE))
        except ConnectionError:
            pass
        assert "first_byte" in refusal(await answering, 502, "upstream_error")
    provider.calls[0].read_on()


async def test_a_form_that_names_its_model_behind_its_file_waits_on_disk(
    program_for: ProgramFor, provider: FakeProvider, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir()
    provider.script = OK
    program = await program_for(provider, server={"spool": "spool", "max_body": "1GB"})
    body = form((FILE[0], NOISE * 20), MODEL)
    async with RawClient(program.port) as client:
        await client.send(asking(PATH, form(MODEL, ('name="file"', b"x")), KEY, FORM_TYPE))
        assert (await client.response()).status == 200
        before = memory(program.pid, "VmRSS")
        first, rest = cut_in_two(body, "length", len(body) - 100)
        await client.send(first)
        await eventually(lambda: any("spool" in name for name in open_files(program.pid)))
        await client.send(rest)
        assert (await client.response()).status == 200
        await eventually(lambda: not any("spool" in name for name in open_files(program.pid)))
    assert provider.requests[1].body == body
    assert provider.requests[1].header("content-length") == str(len(body))
    assert not list((tmp_path / "spool").iterdir())
    assert memory(program.pid, "VmHWM") - before < 32 << 20


def open_files(pid: int) -> list[str]:
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            names.append(str(link.readlink()))
    return names


@FRAMINGS
async def test_an_upload_of_200_mb_takes_less_than_16_mb_of_memory(
    program_for: ProgramFor, provider: FakeProvider, framing: str
) -> None:
    provider.script = OK
    program = await program_for(provider, server={"max_body": "1GB"})
    body = form(MODEL, (FILE[0], NOISE * 67))
    async with RawClient(program.port) as client:
        await client.send(asking(PATH, EARLY, KEY, FORM_TYPE))
        assert (await client.response()).status == 200
        before = memory(program.pid, "VmRSS")
        await client.send(*cut_in_two(body, framing))
        assert (await client.response()).status == 200
    assert provider.requests[1].body == body
    assert memory(program.pid, "VmHWM") - before < 16_000_000


async def test_a_disk_that_is_full_is_told(
    gateway_for: GatewayFor, provider: FakeProvider, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    gateway = await gateway_for(provider, server={"spool": str(spool)})
    spool.rmdir()
    async with RawClient(gateway.port) as client:
        body = form((FILE[0], NOISE * 3), MODEL)
        await client.send(asking(PATH, body, KEY, FORM_TYPE))
        assert "disk" in refusal(await client.response(), 503, "overloaded")
    assert not provider.calls


async def test_a_provider_that_leaves_in_the_middle_is_told(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    provider.before_body = play(raw(b""), cut())
    async with RawClient(gateway.port) as client:
        await client.send(cut_in_two(EARLY, "length")[0])
        refusal(await client.response(), 502, "upstream_error")
