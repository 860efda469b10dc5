"""The official `openai` client, unmodified, through the gateway to real llama.cpp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.conftest import GatewayFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually
from tests.llamacpp.fixtures import LlamaServer
from tests.script import answer, cut, error, play, reset, sse, wait, word

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from llmgateway.service.gateway import Gateway

LIMITED_KEY = "sk-limited-0123456789abcdefghijklmnopqrstuvw"
USERS = {"alice": {"keys": [KEY, {"name": "limited", "key": LIMITED_KEY, "models": ["other-*"]}]}}

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello world"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            # a choice of one: a word of its own the little model may go on with until it is cut off
            "properties": {"city": {"enum": ["Oslo"]}},
            "required": ["city"],
        },
    },
}

A_CALL: dict[str, Any] = {
    "tools": [WEATHER],
    "tool_choice": "required",
    "temperature": 2,  # cold, it repeats itself until it is cut off
    "seed": 1,
    "max_tokens": 400,
}


def client_of(gateway: Gateway, key: str = KEY) -> AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=HANG_S)


@pytest.fixture
async def gateway(gateway_for: GatewayFor, llama_server: LlamaServer) -> Gateway:
    """A gateway in front of one llama.cpp."""
    return await gateway_for(users=USERS, providers={"llama": llama_server.entry})


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(gateway) as client:
        yield client


@pytest.fixture
async def faked(gateway_for: GatewayFor, provider: FakeProvider) -> AsyncIterator[AsyncOpenAI]:
    """A client of a gateway in front of the fake provider."""
    async with client_of(await gateway_for(provider)) as client:
        yield client


async def test_models_are_listed_and_retrieved(client: AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    assert [(model.id, model.object, model.owned_by) for model in listed] == [("tiny", "model", "llama")]
    assert await client.models.retrieve("tiny") == listed[0]


async def test_a_buffered_chat(client: AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=8
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage and completion.usage.completion_tokens == 8


async def test_a_streamed_chat_says_what_a_buffered_one_says(client: AsyncOpenAI) -> None:
    buffered = await client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=32
    )
    words = []
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=32, stream=True
    )
    async for chunk in stream:
        assert chunk.usage is None
        words += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(words) == buffered.choices[0].message.content


async def test_a_stream_ends_in_its_usage_when_asked_to(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    last = [chunk async for chunk in stream][-1]
    assert last.choices == []
    assert last.usage and last.usage.completion_tokens == 8


async def test_tools_are_called(client: AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="tiny", messages=HELLO, **A_CALL)
    calls = completion.choices[0].message.tool_calls
    assert calls and calls[0].type == "function"
    assert calls[0].function.name == "weather"
    assert isinstance(json.loads(calls[0].function.arguments)["city"], str)


async def test_streamed_tool_calls_can_be_put_together(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **A_CALL)
    names, arguments = "", ""
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index == 0 and call.function:
                names += call.function.name or ""
                arguments += call.function.arguments or ""
    assert names == "weather"
    assert "city" in json.loads(arguments)


async def test_completions_and_responses(client: AsyncOpenAI) -> None:
    completion = await client.completions.create(
        model="tiny", prompt="hello world", temperature=0, max_tokens=4
    )
    assert completion.choices[0].text
    response = await client.responses.create(
        model="tiny", input="hello world", temperature=0, max_output_tokens=4
    )
    assert response.output_text


async def test_embeddings(gateway_for: GatewayFor, llama_embeddings: LlamaServer) -> None:
    gateway = await gateway_for(providers={"llama": llama_embeddings.entry})
    async with client_of(gateway) as client:
        embedded = await client.embeddings.create(model="tiny-embeddings", input=["hello", "world"])
    assert [len(item.embedding) for item in embedded.data] == [64, 64]


async def test_the_blocking_client_does_the_same(gateway: Gateway) -> None:
    def journey() -> None:
        with openai.OpenAI(
            base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=HANG_S
        ) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            buffered = client.chat.completions.create(
                model="tiny", messages=HELLO, temperature=0, max_tokens=16
            )
            stream = client.chat.completions.create(
                model="tiny", messages=HELLO, temperature=0, max_tokens=16, stream=True
            )
            said = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
            assert said == buffered.choices[0].message.content
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("nothing")

    async with asyncio.timeout(HANG_S):
        await asyncio.to_thread(journey)


async def test_a_wrong_key_is_an_authentication_error(gateway: Gateway) -> None:
    async with client_of(gateway, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert raised.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(raised.value)


async def test_a_model_that_the_key_may_not_use_is_a_permission_error(gateway: Gateway) -> None:
    async with client_of(gateway, LIMITED_KEY) as client:
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        assert [model async for model in client.models.list()] == []
    assert raised.value.code == "model_not_allowed"


async def test_an_unknown_model_is_a_not_found_error(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="foo", messages=HELLO)
    assert raised.value.type == "no_provider"
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["message"] == "No online provider serving model 'foo' for this user."
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("foo")


async def test_the_gateways_own_refusal_is_a_bad_request_error(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="", messages=HELLO, extra_body={"model": 3})
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize("stream", [False, True])
async def test_llama_cpps_refusal_is_a_bad_request_error_in_its_own_words(
    client: AsyncOpenAI, stream: bool
) -> None:
    too_long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello " * 9000}]
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="tiny", messages=too_long, stream=stream)
    assert raised.value.type == "exceed_context_size_error"


async def test_a_provider_that_breaks_is_an_internal_server_error(
    faked: AsyncOpenAI, provider: FakeProvider
) -> None:
    provider.script = error(500, "out of memory")
    with pytest.raises(openai.InternalServerError) as raised:
        await faked.chat.completions.create(model="m", messages=HELLO)
    assert (raised.value.status_code, raised.value.type) == (502, "upstream_error")
    assert "rig" in str(raised.value) and "out of memory" in str(raised.value)


async def test_a_refusal_of_the_provider_reaches_the_client_as_it_was(
    faked: AsyncOpenAI, provider: FakeProvider
) -> None:
    provider.script = answer(422, {"error": {"message": "no such grammar", "type": "odd", "code": 422}})
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        await faked.chat.completions.create(model="m", messages=HELLO)
    assert raised.value.type == "odd"


@pytest.mark.parametrize("break_off", [cut(), reset()], ids=["cut", "reset"])
async def test_a_broken_stream_raises_after_the_words_that_came(
    faked: AsyncOpenAI, provider: FakeProvider, break_off: Script
) -> None:
    both_came = asyncio.Event()
    provider.script = play(sse(), word("Hel"), word("lo"), wait(both_came), break_off)
    stream = await faked.chat.completions.create(model="m", messages=HELLO, stream=True)
    assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == ["Hel", "lo"]
    both_came.set()
    with pytest.raises(openai.APIError) as raised:
        await anext(stream)
    assert "rig" in raised.value.message


async def test_draining_is_an_internal_server_error_that_names_itself(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    await gateway.drain()
    async with client_of(gateway) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="m", messages=HELLO)
    assert (raised.value.status_code, raised.value.code) == (503, "draining")


async def test_leaving_a_stream_ends_it_at_the_provider(
    gateway_for: GatewayFor, llama_endless: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_endless.entry})
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(model="endless", messages=HELLO, stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        assert await llama_endless.busy_slots() == 1
        await stream.close()

        async def idle() -> bool:
            return await llama_endless.busy_slots() == 0

        await eventually(idle)
