"""The official `openai` client, unmodified, with responses that live on: each call it has about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import openai
import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB
from tests.journey import KEY
from tests.journeys.test_kept_responses import HOUSE, make_by
from tests.journeys.test_openai_client import client_of
from tests.llamacpp.fixtures import LlamaServer
from tests.shelf import Shelf

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from llmgateway.service.gateway import Gateway


@pytest.fixture
async def shelves(provider_for: ProviderFor) -> list[Shelf]:
    """Two providers that keep what they make."""
    return [Shelf(await provider_for(name, models=["m"])) for name in ("a", "b")]


@pytest.fixture
async def gateway(gateway_for: GatewayFor, shelves: list[Shelf]) -> Gateway:
    return await gateway_for(*(shelf.provider for shelf in shelves), users=HOUSE)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(gateway) as client:
        yield client


async def test_a_response_is_created_retrieved_and_deleted(
    client: AsyncOpenAI, gateway: Gateway, shelves: list[Shelf]
) -> None:
    for shelf in shelves:
        wanted = await make_by(gateway, shelf)
        retrieved = await client.responses.retrieve(wanted)
        assert (retrieved.id, retrieved.output_text) == (wanted, f"words of {shelf.provider.name}")
        items = await client.responses.input_items.list(wanted, limit=5, order="asc")
        assert [item.id for item in items.data] == ["msg_0"]
        assert (await client.responses.cancel(wanted)).status == "cancelled"
        await client.responses.delete(wanted)
        methods = [request.method for request in shelf.provider.requests[-2:]]
        assert methods == ["POST", "DELETE"]


async def test_a_conversation_goes_on_where_it_began(client: AsyncOpenAI, shelves: list[Shelf]) -> None:
    for _ in range(4):
        first = await client.responses.create(model="m", input="hi", store=True)
        text = first.output_text
        for _ in range(3):
            later = await client.responses.create(model="m", input="and then?", previous_response_id=first.id)
            assert (later.previous_response_id, later.output_text) == (first.id, text)
            first = later


async def test_a_stream_that_was_left_is_taken_up_again(client: AsyncOpenAI, shelves: list[Shelf]) -> None:
    for shelf in shelves:
        shelf.hold = asyncio.Event()
    stream = await client.responses.create(model="m", input="hi", stream=True, background=True)
    created = await anext(stream)
    assert created.type == "response.created"
    await stream.close()
    again = await client.responses.retrieve(created.response.id, stream=True, starting_after=0)
    for shelf in shelves:
        assert shelf.hold is not None
        shelf.hold.set()
    events = [event async for event in again]
    assert events[-1].type == "response.completed" and events[-1].response.id == created.response.id


async def test_what_is_unknown_or_anothers_is_not_found(client: AsyncOpenAI, gateway: Gateway) -> None:
    made = await client.responses.create(model="m", input="hi")
    async with client_of(gateway, BOB) as other:
        for each, wanted in ((client, "resp_never"), (other, made.id)):
            with pytest.raises(openai.NotFoundError) as raised:
                await each.responses.retrieve(wanted)
            assert raised.value.code == "not_found"
            with pytest.raises(openai.NotFoundError) as raised:
                await each.responses.create(model="m", input="and?", previous_response_id=wanted)
            assert raised.value.code == "not_found" and wanted in raised.value.message


async def test_of_a_server_that_keeps_nothing_its_own_words_pass(
    gateway_for: GatewayFor, llama_server: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_server.entry})
    async with client_of(gateway, KEY) as client:
        made = await client.responses.create(model="tiny", input="hello", max_output_tokens=4)
        with pytest.raises(openai.APIStatusError) as raised:
            await client.responses.retrieve(made.id)
        assert raised.value.response.headers.get("x-gateway-provider") == "llama"
        assert raised.value.response.headers.get("x-gateway-error") is None
        stream = await client.responses.create(model="tiny", input="hello", max_output_tokens=4, stream=True)
        told = [event async for event in stream]
        assert told[0].type == "response.created"
        with pytest.raises(openai.APIStatusError) as raised:
            await client.responses.create(
                model="tiny", input="and?", previous_response_id=told[0].response.id
            )
        assert raised.value.response.headers.get("x-gateway-error") is None
