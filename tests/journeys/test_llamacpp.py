"""Through the gateway to llama.cpp's real C++ server: the same answers, and no slot left busy for nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmgateway.servers import llamacpp
from tests.conftest import GatewayFor
from tests.journey import KEY, eventually
from tests.llamacpp.fixtures import LlamaModels, LlamaServer, llama
from tests.raw_client import Ending, RawClient, events, request

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

HELLO: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello world"}],
    "temperature": 0,
    "max_tokens": 16,
}
OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@pytest.fixture
async def gateway(gateway_for: GatewayFor, llama_server: LlamaServer) -> Gateway:
    """A gateway in front of one llama.cpp."""
    return await gateway_for(providers={"llama": llama_server.entry})


async def post(
    http: aiohttp.ClientSession, url: str, body: Mapping[str, Any], **options: Any
) -> tuple[int, dict[str, str], bytes]:
    async with http.post(url, json=body, **options) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, headers, await answer.read()


def lasting(event: Any) -> Any:
    """An event without what differs from call to call."""
    if isinstance(event, dict):
        return {key: event[key] for key in event if key not in ("id", "created", "timings", "usage")}
    return event


async def stays_idle(server: LlamaServer) -> bool:
    return await server.busy_slots() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_is_the_same_as_without_the_gateway(
    gateway: Gateway, llama_server: LlamaServer, http: aiohttp.ClientSession, stream: bool
) -> None:
    body = {**HELLO, "stream": stream}
    direct = await post(http, f"{llama_server.url}/chat/completions", body)
    through = await post(http, f"{gateway.url}/v1/chat/completions", body)
    assert through[0] == direct[0] == 200
    kept = {name: value for name, value in direct[1].items() if name not in OF_ONE_CONNECTION}
    kept.pop("content-length", None)  # timings have more digits or fewer
    assert kept.items() <= through[1].items()
    assert through[1]["x-gateway-provider"] == "llama"
    if stream:
        assert [lasting(event) for event in events(through[2])] == [
            lasting(event) for event in events(direct[2])
        ]
        assert events(through[2])[-1] == "[DONE]"
    else:
        assert lasting(json.loads(through[2])) == lasting(json.loads(direct[2]))


async def test_models_tell_the_context_of_a_slot(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{gateway.url}/v1/models") as answer:
        (model,) = (await answer.json())["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "llama")
    assert model["context_length"] == 2048


async def test_it_is_known_for_what_it_is_and_so_are_its_slots(gateway: Gateway) -> None:
    provider = gateway.fleet.providers["llama"]
    assert (provider.kind, provider.capacity) == (llamacpp.KIND, 4)


async def test_the_providers_key_is_the_gateways_business(
    gateway_for: GatewayFor, llama_keyed: LlamaServer, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(providers={"llama": llama_keyed.entry})
    for header in ({}, {"x-api-key": "sk-nonsense"}):
        status, _, _ = await post(
            http, f"{gateway.url}/v1/chat/completions", {**HELLO, "model": "tiny-keyed"}, headers=header
        )
        assert status == 200


async def test_a_wrong_key_for_the_provider_is_misconfigured_not_offline(
    gateway_for: GatewayFor, llama_keyed: LlamaServer, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(
        providers={"wrong": {"url": llama_keyed.url, "api_key": "sk-wrong"}, "none": {"url": llama_keyed.url}}
    )
    status, headers, body = await post(
        http, f"{gateway.url}/v1/chat/completions", {**HELLO, "model": "tiny-keyed"}
    )
    assert (status, headers["x-gateway-error"]) == (404, "no_provider")
    assert b"sk-wrong" not in body
    for provider in gateway.fleet.providers.values():
        assert provider.state.value == "misconfigured"
        assert "401" in provider.reason and "sk-wrong" not in provider.reason


async def test_anthropics_messages_buffered_streamed_and_counted(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    body = {"model": "tiny", "max_tokens": 8, "messages": HELLO["messages"]}
    url = f"{gateway.url}/v1/messages"
    status, _, message = await post(http, url, body)
    assert (status, json.loads(message)["type"]) == (200, "message")
    status, _, stream = await post(http, url, {**body, "stream": True})
    kinds = [event["type"] for event in events(stream)]
    assert (status, kinds[0], kinds[-1]) == (200, "message_start", "message_stop")
    status, _, count = await post(http, f"{url}/count_tokens", body)
    assert status == 200
    assert json.loads(count)["input_tokens"] > 0


async def test_anthropics_clients_get_errors_in_their_shape(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as http:
        body = {"model": "foo", "max_tokens": 8, "messages": HELLO["messages"]}
        url = f"{gateway.url}/v1/messages"
        status, headers, unknown = await post(http, url, body, headers={"x-api-key": KEY})
        assert (status, headers["x-gateway-error"]) == (404, "no_provider")
        error = json.loads(unknown)
        assert error["type"] == "error"
        assert error["error"]["message"] == "No online provider serving model 'foo' for this user."
        assert error["request_id"] == headers["x-request-id"]
        status, _, refused = await post(http, url, body, headers={"x-api-key": "sk-wrong"})
        assert (status, json.loads(refused)["type"]) == (401, "error")


async def test_what_llama_cpp_cannot_do_is_said_in_its_words(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    status, headers, body = await post(
        http, f"{gateway.url}/v1/embeddings", {"model": "tiny", "input": "hello"}
    )
    message = json.loads(body)["error"]["message"]
    assert (status, headers["x-gateway-provider"]) == (501, "llama")
    assert "embeddings" in message and "x-gateway-error" not in headers


@pytest.mark.parametrize("endpoint", ["embeddings", "rerank", "audio/transcriptions"])
async def test_what_it_says_that_it_has_not_it_is_asked_once(
    gateway: Gateway, http: aiohttp.ClientSession, endpoint: str
) -> None:
    said = []
    for _ in range(2):
        if endpoint == "audio/transcriptions":
            form = aiohttp.FormData({"model": "tiny"})
            form.add_field("file", b"RIFF" + bytes(40), filename="a.wav", content_type="audio/wav")
            async with http.post(f"{gateway.url}/v1/{endpoint}", data=form) as answer:
                said.append((answer.status, answer.headers.get("x-gateway-error"), await answer.text()))
        else:
            body = {"model": "tiny", "input": "a", "query": "a", "documents": ["b"]}
            status, headers, text = await post(http, f"{gateway.url}/v1/{endpoint}", body)
            said.append((status, headers.get("x-gateway-error"), text.decode()))
    assert said[0][1] is None and said[1][1] == "no_provider"
    status, _, _ = await post(http, f"{gateway.url}/v1/chat/completions", HELLO)
    assert status == 200


async def test_its_admin_endpoints_stay_out_of_reach(gateway: Gateway) -> None:
    for path in (
        "/v1/../slots",
        "/v1/%2e%2e/slots",
        "/slots",
        "/v1/slots",
        "/props",
        "/v1/chat/completions/../../props",
    ):
        async with RawClient(gateway.port) as client:
            await client.send(request("GET", path))
            response = await client.response()
        assert response.status in (400, 404, 405), path
        assert response.header("x-gateway-provider") is None


async def test_more_calls_than_one_connection_may_carry(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    """llama.cpp closes every connection after 100 requests."""
    for _ in range(130):
        status, _, _ = await post(http, f"{gateway.url}/v1/chat/completions", {**HELLO, "max_tokens": 1})
        assert status == 200


async def test_more_streams_than_slots_all_finish(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    answers = await asyncio.gather(
        *(post(http, f"{gateway.url}/v1/chat/completions", {**HELLO, "stream": True}) for _ in range(24))
    )
    assert [status for status, _, _ in answers] == [200] * 24
    assert all(events(body)[-1] == "[DONE]" for _, _, body in answers)


async def test_a_client_that_leaves_a_stream_frees_its_slot(
    gateway_for: GatewayFor, llama_endless: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_endless.entry})
    body = json.dumps({"model": "endless", "messages": HELLO["messages"], "stream": True}).encode()
    async with RawClient(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", body=body))
        response = await client.head()
        await client.events(response, 5)
        assert await llama_endless.busy_slots() == 1
    await eventually(lambda: stays_idle(llama_endless))


async def test_a_client_that_leaves_a_buffered_call_frees_its_slot(
    gateway_for: GatewayFor, llama_endless: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_endless.entry})
    body = json.dumps({"model": "endless", "messages": HELLO["messages"]}).encode()

    async def generates() -> bool:
        return await llama_endless.busy_slots() == 1

    async with RawClient(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", body=body))
        await eventually(generates)
    await eventually(lambda: not gateway.fleet.providers["llama"].in_flight)
    # llama.cpp looks once a second for clients that left; each question for its slots restarts that second.
    await eventually(lambda: stays_idle(llama_endless), every=1.5)


async def test_when_one_of_two_servers_dies_the_other_goes_on(
    gateway_for: GatewayFor, llama_models: LlamaModels, llama_server: LlamaServer, http: aiohttp.ClientSession
) -> None:
    with ExitStack() as second:
        mortal = second.enter_context(llama(llama_models.tiny, "tiny"))
        gateway = await gateway_for(providers={"mortal": mortal.entry, "llama": llama_server.entry})
        seen = set()
        for number in range(40):
            other = {**HELLO, "messages": [{"role": "user", "content": f"hello world {number}"}]}
            status, headers, _ = await post(http, f"{gateway.url}/v1/chat/completions", other)
            assert status == 200
            seen.add(headers["x-gateway-provider"])
            if len(seen) == 2:
                break
        assert seen == {"mortal", "llama"}
        second.close()
        for _ in range(20):
            status, headers, _ = await post(http, f"{gateway.url}/v1/chat/completions", HELLO)
            assert (status, headers["x-gateway-provider"]) == (200, "llama")


async def test_a_server_that_dies_in_a_stream_is_told_to_the_client(
    gateway_for: GatewayFor, llama_models: LlamaModels
) -> None:
    with ExitStack() as server:
        mortal = server.enter_context(llama(llama_models.endless, "endless"))
        gateway = await gateway_for(providers={"mortal": mortal.entry})
        body = json.dumps({"model": "endless", "messages": HELLO["messages"], "stream": True}).encode()
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", "/v1/chat/completions", body=body))
            response = await client.head()
            await client.events(response, 3)
            server.close()
            while await client.piece(response):
                pass
    assert response.ending is Ending.COMPLETE
    assert "mortal" in response.events[-1]["error"]["message"]
    assert "[DONE]" not in response.events
