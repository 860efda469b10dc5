"""Requests that are ended by hand, what is told of those that failed, and the log's last lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from llmgateway.log import LAST_LINES, Events, LastLines, configure, last_lines
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import ask_for
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import RawClient, Response, chat, request
from tests.script import chunk, done, error, event, head, play, sse, wait, word
from tests.web.visit import BOB, FROM_PAGE, HOUSE, cookie_of, snapshot, with_cookie

SECRET = "the cat sleeps on the router"


def ending(wanted: str, cookie: str, *headers: str, method: str = "POST", base: str = "") -> bytes:
    path = f"{base}/gateway/requests/{quote(wanted, safe='')}{'/end' if method == 'POST' else ''}"
    return with_cookie(method, path, cookie, *(headers or FROM_PAGE), body=b"{}")


async def one_in_flight(gateway: Gateway) -> str:
    """Wait until a single request is answered, and give its id."""
    rows = (await snapshot(gateway))["requests"]
    assert len(rows) == 1
    return str(rows[0]["id"])


async def last_of(gateway: Gateway) -> Any:
    return (await snapshot(gateway))["recent"][0]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_an_admin_ends_a_stream_which_is_told_so_and_booked_as_cancelled(
    provider: FakeProvider, gateway_for: GatewayFor, method: str
) -> None:
    provider.script = play(sse(), word("Never"), wait(asyncio.Event()))
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway)
    async with RawClient(gateway.port) as client:
        await client.send(ask_for("m", key=BOB, stream=True))
        response = await client.head()
        await client.events(response, 1)
        call = await provider.next_call()
        ended = await ask(gateway.port, ending(await one_in_flight(gateway), cookie, method=method))
        assert ended.status == 204
        told = (await client.events(response, 2))[-1]
        assert told["error"]["type"] == "cancelled"
        assert "alice" in told["error"]["message"]
        await call.hung_up()
    line = await last_of(gateway)
    assert (line["user"], line["status"], line["outcome"]) == ("bob", 200, "cancelled")
    assert "ended by alice" in line["why"]


async def test_one_that_is_told_so_behind_its_last_words_is_booked_as_cancelled(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse(), word("Bye"), chunk(b"data: [DONE]\n\n"), wait(asyncio.Event()))
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway)
    async with RawClient(gateway.port) as client:
        await client.send(ask_for("m", key=BOB, stream=True))
        response = await client.head()
        await client.events(response, 2)
        assert (await ask(gateway.port, ending(await one_in_flight(gateway), cookie))).status == 204
        assert (await client.events(response, 3))[-1]["error"]["type"] == "cancelled"
    assert (await last_of(gateway))["outcome"] == "cancelled"


async def test_one_that_waits_for_its_refusal_is_booked_as_what_it_was_told(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway)
    tries = gateway._visitors.tries
    for _ in range(100):
        tries.refuse("127.0.0.1", now=asyncio.get_running_loop().time())
    asked = asyncio.ensure_future(ask(gateway.port, ask_for("m", key="sk-of-nobody-at-all")))
    await eventually(lambda: tries._waiting)
    assert (await ask(gateway.port, ending(await one_in_flight(gateway), cookie))).status == 204
    refusal(await asked, 410, "cancelled")
    line = await last_of(gateway)
    assert (line["user"], line["status"], line["outcome"]) == (None, 410, "cancelled")
    assert not tries._waiting


async def test_one_that_has_no_answer_yet_gets_one_that_no_library_tries_again(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(wait(asyncio.Event()))
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway, BOB)
    asked = asyncio.ensure_future(ask(gateway.port, ask_for("m", key=BOB)))
    await provider.next_call()
    assert (await ask(gateway.port, ending(await one_in_flight(gateway), cookie))).status == 204
    refusal(await asked, 410, "cancelled")
    assert (await last_of(gateway))["outcome"] == "cancelled"
    assert (await snapshot(gateway))["providers"][0]["in_flight"] == 0


async def test_one_that_waits_in_the_queue_leaves_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    rig = await provider_for("rig", slots=1)
    rig.script = play(wait(gate), head(200), wait(asyncio.Event()))
    gateway = await gateway_for(rig, users=HOUSE)
    cookie = await cookie_of(gateway)
    first = asyncio.ensure_future(ask(gateway.port, ask_for("m", key=KEY)))
    await rig.next_call()
    second = asyncio.ensure_future(ask(gateway.port, ask_for("m", key=BOB)))
    rows: list[Any] = []
    while len(rows) < 2:
        rows = (await snapshot(gateway))["requests"]
    for row in rows:
        assert (await ask(gateway.port, ending(row["id"], cookie))).status == 204
    for each in (first, second):
        refusal(await each, 410, "cancelled")
    assert (await snapshot(gateway))["providers"][0]["waiting"] == 0


async def test_others_cannot_end_it_nor_learn_that_it_is_there(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate))
    gateway = await gateway_for(provider, users=HOUSE)
    alice, bob = await cookie_of(gateway), await cookie_of(gateway, BOB)
    async with RawClient(gateway.port) as client:
        await client.send(ask_for("m", key=KEY, stream=True))
        await client.events(await client.head(), 1)
        wanted = await one_in_flight(gateway)
        refusal(await ask(gateway.port, ending(wanted, bob)), 404, "not_found")
        refusal(await ask(gateway.port, ending("nobody", alice)), 404, "not_found")
        elsewhere = ("Origin: http://evil.example", "Content-Type: application/json")
        refusal(await ask(gateway.port, ending(wanted, alice, *elsewhere)), 403, "forbidden")
        refusal(await ask(gateway.port, ending(wanted, "theme=dark")), 401, "invalid_api_key")
        assert await one_in_flight(gateway) == wanted
        gate.set()


async def test_an_id_that_a_client_chose_may_hold_slashes(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(wait(asyncio.Event()))
    gateway = await gateway_for(provider, users=HOUSE, server={"base_path": "/llm"})
    response = await ask(gateway.port, with_key_at("/llm"))
    cookie = (response.header("set-cookie") or "").partition(";")[0]
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    sent = request("POST", "/llm/v1/chat/completions", "x-request-id: a/b+c=/end", body=body, key=KEY)
    asked = asyncio.ensure_future(ask(gateway.port, sent))
    await provider.next_call()
    assert (await ask(gateway.port, ending("a/b+c=/end", cookie, base="/llm"))).status == 204
    refusal(await asked, 410, "cancelled")


def with_key_at(base: str) -> bytes:
    return request(
        "POST", f"{base}/gateway/session", *FROM_PAGE, body=json.dumps({"key": KEY}).encode(), key=None
    )


async def test_what_failed_says_why_without_quoting_what_a_server_said_to_a_prompt(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on["/v1/chat/completions"] = error(500, f"cannot render {SECRET}")
    gateway = await gateway_for(provider, users=HOUSE)
    told = await ask(gateway.port, chat())
    refusal(told, 502, "upstream_error")
    assert SECRET in told.json["error"]["message"]  # to who asked
    line = await last_of(gateway)
    assert line["why"] == "Provider 'rig' answered 500."
    refusal(await ask(gateway.port, ask_for("nobody-has-it", key=KEY)), 404, "no_provider")
    assert "nobody-has-it" in (await last_of(gateway))["why"]


async def test_an_error_inside_a_stream_says_that_it_was_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse(), word("Hel"), event({"error": {"message": SECRET}}), done())
    gateway = await gateway_for(provider, users=HOUSE)
    await ask(gateway.port, chat(stream=True))
    line = await last_of(gateway)
    assert (line["outcome"], line["why"]) == ("upstream_error", "Provider 'rig' told an error in its stream.")


# The log.


@pytest.fixture
def kept() -> Iterator[None]:
    """The log as the program sets it up; the loggers are put back as they were."""
    root, ours = logging.getLogger(), logging.getLogger("llmgateway")
    before = root.handlers[:], root.level, ours.level
    root.addHandler(LastLines())
    ours.setLevel("INFO")
    yield
    root.handlers[:], root.level, ours.level = before


async def lines_for(gateway: Gateway, key: str = KEY) -> Response:
    return await ask(gateway.port, request("GET", "/gateway/log", key=key))


async def test_admins_read_the_logs_last_lines_and_others_do_not(
    kept: None, provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=HOUSE)
    assert (await ask(gateway.port, chat(None, "x-request-id: my-id"))).status == 200
    gateway.ledger.book()
    got = await lines_for(gateway)
    assert (got.status, got.header("cache-control")) == (200, "no-store")
    lines = got.json["lines"]
    assert any(" info    request " in line and "request=my-id" in line for line in lines)
    assert any("listening on" in line and "request=" not in line for line in lines)
    assert KEY not in json.dumps(lines)
    refusal(await lines_for(gateway, BOB), 403, "forbidden")
    refusal(await lines_for(gateway, "sk-nobody"), 401, "invalid_api_key")


def test_no_more_than_the_last_lines_are_kept(kept: None) -> None:
    events = Events("x")
    events.info_each("request", [{"number": number} for number in range(LAST_LINES * 2)])
    events.info("the last")
    lines = last_lines()
    assert len(lines) == LAST_LINES
    assert lines[-2].endswith(f"number={LAST_LINES * 2 - 1}")
    assert lines[-1].endswith("the last")


def test_a_traceback_is_kept_as_lines_and_holds_nothing_alive(kept: None) -> None:
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        Events("x").exception("failed")
    assert last_lines()[-1] == "RuntimeError: boom"


def test_the_program_keeps_them(kept: None) -> None:
    logging.getLogger().handlers.clear()
    configure(level="info", form="json", stream=io.StringIO())
    Events("x").info("hello")
    assert last_lines()[-1].endswith("hello")
