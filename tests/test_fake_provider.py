"""The equipment itself: what the fake provider and the raw client say they saw is what happened."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable

import aiohttp
import pytest

from tests.conftest import ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider, black_hole
from tests.journey import ASK, eventually
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import (
    answer,
    cut,
    done,
    error,
    flood,
    head,
    interim,
    packets,
    play,
    raw,
    reset,
    sse,
    stall,
    stream,
    wait,
    word,
    zipped,
)


async def test_a_stream_comes_in_whole_events_and_ends_properly(provider: FakeProvider) -> None:
    provider.script = stream("Hello", " world")
    async with RawClient(provider.port) as client:
        await client.send(chat(stream=True))
        response = await client.response()
    assert (response.status, response.ending) == (200, Ending.COMPLETE)
    assert [event["choices"][0]["delta"].get("content") for event in response.events[:-2]] == [
        None,
        "Hello",
        " world",
    ]
    assert response.events[-1] == "[DONE]"


async def test_requests_are_recorded_byte_for_byte_with_their_connection(provider: FakeProvider) -> None:
    body = b'{ "model":"m",\r\n "x": 1e400, "y": "\\u00e9" }'
    async with RawClient(provider.port) as client:
        for _ in range(2):
            await client.send(request("POST", "/v1/chat/completions?a=%2f", "X-Odd:  two  words ", body=body))
            await client.response()
    first, second = provider.requests
    assert (first.method, first.target, first.body) == ("POST", "/v1/chat/completions?a=%2f", body)
    assert ("X-Odd", "two  words") in first.headers
    assert (first.connection, second.connection) == (1, 1)


async def test_a_chunked_request_is_joined(provider: FakeProvider) -> None:
    async with RawClient(provider.port) as client:
        await client.send(request("POST", "/v1/completions", "Transfer-Encoding: chunked"))
        await client.send(b"2\r\nab\r\n", b"1;x=y\r\nc\r\n", b"0\r\n\r\n")
        await client.response()
    assert provider.requests[0].body == b"abc"


async def test_it_lists_its_models_asks_for_its_key_and_knows_no_other_get(provider_for: ProviderFor) -> None:
    provider = await provider_for(models=["a", {"id": "b", "max_model_len": 7}], key="sk-p")
    async with aiohttp.ClientSession() as session:
        async with session.get(provider.url + "/models") as refused:
            assert refused.status == 401
        key = {"Authorization": "Bearer sk-p"}
        async with session.get(provider.url + "/models", headers=key) as listed:
            entries = (await listed.json())["data"]
        async with session.get(provider.url + "/props", headers=key) as unknown:
            assert unknown.status == 404
    assert [entry["id"] for entry in entries] == ["a", "b"]
    assert len(provider.probes) == 3 and not provider.calls


@pytest.mark.parametrize("leave", [RawClient.leave, RawClient.reset])
async def test_a_client_that_leaves_is_noticed_at_once(
    provider: FakeProvider, leave: Callable[[RawClient], None]
) -> None:
    provider.script = play(sse(), word("Hel"), stall())
    async with RawClient(provider.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        assert len(await client.events(response, 1)) == 1
        leave(client)
        exchange = await provider.next_call()
        await exchange.hung_up()
    await eventually(lambda: provider.connections == 0)


async def test_who_stays_to_the_end_has_not_hung_up(provider: FakeProvider) -> None:
    async with RawClient(provider.port) as client:
        await client.send(chat())
        await client.response()
    exchange = await provider.next_call()
    with pytest.raises(AssertionError, match="its own end"):
        await exchange.hung_up()


@pytest.mark.parametrize(
    ("break_off", "ending"), [(cut(), Ending.CUT), (reset(), Ending.RESET)], ids=["cut", "reset"]
)
async def test_a_broken_stream_is_seen_for_what_it_is(
    provider: FakeProvider, break_off: Script, ending: Ending
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), break_off)
    async with RawClient(provider.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        gate.set()
        assert await client.piece(response) == b""
    assert response.ending is ending
    exchange = await provider.next_call()
    await exchange.over()
    assert not exchange.left_early


async def test_a_slow_reader_holds_the_writer_back(provider: FakeProvider) -> None:
    total = 200_000_000
    provider.script = play(sse(), flood(total), done())
    async with RawClient(provider.port, receive_buffer=4096) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        exchange = await provider.next_call()
        before = -1
        while before != (before := exchange.written):  # until a tenth of a second brings no more
            await asyncio.sleep(0.1)
        assert 0 < before < 20_000_000
        await client.piece(response)
        await eventually(lambda: exchange.written > 0)
    await exchange.hung_up()
    assert exchange.written < total


async def test_refusing_and_coming_back_on_the_same_port(provider: FakeProvider) -> None:
    port = provider.port
    async with RawClient(port) as client:
        await client.send(chat())
        await client.response()
        await provider.refuse()
        assert await client.closed() in (Ending.CUT, Ending.RESET)
    with pytest.raises(ConnectionRefusedError):
        async with RawClient(port):
            pass
    await provider.come_back()
    async with RawClient(port) as client:
        await client.send(chat())
        assert (await client.response()).status == 200


async def test_a_black_hole_neither_accepts_nor_refuses() -> None:
    async with black_hole() as url:
        port = int(url.split(":")[2].split("/")[0])
        connecting = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port))
        await asyncio.wait([connecting], timeout=0.3)
        assert not connecting.done()
        connecting.cancel()


async def test_one_answer_each_and_then_the_usual_one(provider: FakeProvider) -> None:
    provider.once(error(503), zipped("squeezed"), play(interim(103), answer(204)))
    async with RawClient(provider.port) as client:
        responses = []
        for _ in range(4):
            await client.send(chat())
            responses.append(await client.response())
    assert [response.status for response in responses] == [503, 200, 204, 200]
    unzipped = json.loads(gzip.decompress(responses[1].body))
    assert unzipped["choices"][0]["message"]["content"] == "squeezed"
    assert responses[2].interim == [103]


async def test_answers_without_a_length_and_in_http_1_0(provider: FakeProvider) -> None:
    provider.script = play(head(200), raw(b"until", b" the end"), cut())
    async with RawClient(provider.port) as client:
        await client.send(chat())
        unframed = await client.response()
    provider.script = play(raw(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nnot all"), cut())
    async with RawClient(provider.port) as client:
        await client.send(chat())
        short = await client.response()
    assert (bytes(unframed.body), unframed.ending) == (b"until the end", Ending.CLOSED)
    assert (bytes(short.body), short.ending) == (b"not all", Ending.CUT)


async def test_an_answer_may_come_before_the_body(provider: FakeProvider) -> None:
    provider.before_body = answer(413, {"error": "too much"})
    async with RawClient(provider.port) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nstart")
        assert (await client.response()).status == 413
        assert await client.closed() in (Ending.CUT, Ending.RESET)


async def test_a_script_that_fails_fails_its_test() -> None:
    async def wrong(exchange: Exchange) -> None:
        assert exchange.request.json["model"] == "another"

    with pytest.raises(BaseExceptionGroup, match="scripts of rig failed"):
        async with FakeProvider() as provider:
            provider.script = wrong
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.post(provider.url + "/chat/completions", json=ASK)


class Packets(asyncio.Protocol):
    """A client that notes what it is given at once."""

    def __init__(self) -> None:
        self.came: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.came.append(data)


async def test_packets_are_read_one_by_one(provider: FakeProvider) -> None:
    pieces = [b"HTTP/1.1 200 OK\r\n", b"\r\n", *(b"%d" % number for number in range(200))]
    provider.script = packets(*pieces)
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(Packets, "127.0.0.1", provider.port)
    transport.write(chat())
    await (await provider.next_call()).over()
    assert client.came == pieces
    transport.close()


async def test_the_raw_client_records_what_came_as_it_came(provider: FakeProvider) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0A;x\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n"
    provider.script = raw(whole)
    async with RawClient(provider.port, record=True) as client:
        await client.send(chat())
        assert (await client.response()).body == b"0123456789"
        assert client.recorded == whole
