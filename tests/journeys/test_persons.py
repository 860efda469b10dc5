"""Persons behind one key: a key that is trusted to name them is used by each as by a user of their own."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from llmgateway.access.keys import Caller
from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, Turns, ask, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.raw_client import Response, chat
from tests.script import answer

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

ADMIN = Caller("", admin=True)
HEADER = "X-OpenWebUI-User-Email"
USAGE = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}


def users(**webui: Any) -> dict[str, Any]:
    """alice is a chat page that many persons use; bob is one person."""
    return {"alice": {"keys": [KEY], "person_header": HEADER, **webui}, "bob": {"keys": [BOB]}}


def by(person: str | None, *, key: str = KEY, words: str = "hi") -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": words}]}).encode()
    return chat(body, *([f"{HEADER}: {person}"] if person is not None else []), key=key)


async def booked(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    await eventually(lambda: not gateway.ledger.in_flight)
    gateway.ledger.book()
    assert len(gateway.ledger.recent) == count
    return list(gateway.ledger.recent)


def snapshot(gateway: Gateway, viewer: Caller = ADMIN) -> dict[str, Any]:
    return gateway.status.snapshot(viewer, wall=time.time())


def refused(response: Response) -> str:
    assert response.status == 429
    return str(response.json["error"]["message"])


# Who it is.


@pytest.mark.parametrize(
    ("sent", "person"),
    [
        ("ann@example.org", "ann@example.org"),
        ("  Ann Lee ", "Ann Lee"),
        ("a/b", "a/b"),
        ("Zoë", "Zoë"),
        ("x" * 5_000, "x" * 100),
        ("", None),
        (None, None),
    ],
)
async def test_the_person_that_a_trusted_key_names_is_written_down(
    provider: FakeProvider, gateway_for: GatewayFor, sent: str | None, person: str | None
) -> None:
    provider.script = answer(200, {"choices": [], "usage": USAGE})
    gateway = await gateway_for(provider, users=users())
    response = await ask(gateway.port, by(sent))
    assert response.status == 200
    (line,) = await booked(gateway, 1)
    assert (line["user"], line.get("person")) == ("alice", person)
    (row,) = snapshot(gateway)["usage"]["rows"]
    assert (row["user"], row["person"], row["prompt_tokens"]) == ("alice", person, 40)


async def test_a_key_that_is_not_trusted_names_nobody(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users())
    await ask(gateway.port, by("ann", key=BOB))
    (line,) = await booked(gateway, 1)
    assert (line["user"], line.get("person")) == ("bob", None)


async def test_the_header_goes_on_to_the_server_as_it_came(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users())
    await ask(gateway.port, by("ann@example.org"))
    assert provider.requests[0].header(HEADER) == "ann@example.org"


# What each of them uses.


async def test_usage_is_kept_for_each_person_and_the_metrics_know_their_user_only(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answer(200, {"choices": [], "usage": USAGE})
    gateway = await gateway_for(provider, users=users())
    for person in ("ann", "ben", "ann", None):
        await ask(gateway.port, by(person))
    await booked(gateway, 4)
    rows = {row["person"]: row["requests"] for row in snapshot(gateway)["usage"]["rows"]}
    assert rows == {"ann": 2, "ben": 1, None: 1}
    assert {row["person"] for row in snapshot(gateway, Caller("alice"))["usage"]["rows"]} == rows.keys()
    assert snapshot(gateway, Caller("bob"))["usage"]["rows"] == []
    page, _ = gateway.metrics.render("")
    assert b"ann" not in page and b'user="alice"' in page


async def test_who_is_in_flight_is_told_with_the_person(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    turns = provider.script = Turns()
    gateway = await gateway_for(provider, users=users())
    async with crowd(gateway.port) as send:
        await send(by("ann"))
        await eventually(lambda: len(provider.calls) == 1)
        (row,) = snapshot(gateway)["requests"]
        assert (row["user"], row["person"]) == ("alice", "ann")
        turns.end()


# What each of them may use.


async def test_the_limits_of_the_user_hold_for_each_person(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users(limits={"requests_per_minute": 2}))
    for person in ("ann", "ben", None):
        for _ in range(2):
            assert (await ask(gateway.port, by(person))).status == 200
    assert "for person 'ann' of user 'alice'" in refused(await ask(gateway.port, by("ann")))
    assert "for user 'alice'" in refused(await ask(gateway.port, by(None)))
    assert (await ask(gateway.port, by("cat"))).status == 200
    shown = {(row["person"], row["used"]) for row in snapshot(gateway)["limits"]}
    assert shown == {(None, 2), ("ann", 2), ("ben", 2), ("cat", 1)}


async def test_tokens_and_parallel_requests_are_limited_for_each_person(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answer(200, {"choices": [], "usage": USAGE})
    gateway = await gateway_for(provider, users=users(limits={"tokens_per_day": 100, "parallel": 1}))
    assert (await ask(gateway.port, by("ann"))).status == 200
    await eventually(lambda: not gateway.ledger.in_flight)
    assert "100 tokens per day" in refused(await ask(gateway.port, by("ann")))
    turns = provider.script = Turns()
    async with crowd(gateway.port) as send:
        for number, person in enumerate(("ben", "cat"), start=2):
            await send(by(person))
            await eventually(lambda number=number: len(provider.calls) == number)  # type: ignore[misc]
        assert "1 parallel request" in refused(await ask(gateway.port, by("ben")))
        turns.end(2)


async def test_the_limits_of_the_key_hold_for_all_of_them_together(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    keys = [{"name": "page", "key": KEY, "limits": {"requests_per_minute": 3}}]
    gateway = await gateway_for(provider, users=users(keys=keys))
    for person in ("ann", "ben", "cat"):
        assert (await ask(gateway.port, by(person))).status == 200
    assert "for key 'page' of user 'alice'" in refused(await ask(gateway.port, by("dan")))


async def test_persons_wait_as_users_do(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    rig = await provider_for(slots=1)
    turns = rig.script = Turns()
    gateway = await gateway_for(rig, users=users())
    async with crowd(gateway.port) as send:
        for number in range(5):
            await send(by("ann", words=f"ann {number}"))
            await eventually(lambda: len(rig.calls) + gateway.slots.line.depth("m") > number)  # noqa: B023
        await waiting(gateway, 4)
        await send(by("ben", words="ben"))
        await waiting(gateway, 5)
        turns.end()
        await eventually(lambda: len(rig.calls) == 2)
        assert rig.requests[1].json["messages"][0]["content"] == "ben"
        turns.end(5)
        await eventually(lambda: len(rig.calls) == 6)


async def test_in_a_full_queue_a_person_with_many_makes_room(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=1)
    turns = rig.script = Turns()
    gateway = await gateway_for(rig, users=users(), queue={"size": 3})
    async with crowd(gateway.port) as send:
        sent = []
        for number in range(4):
            sent.append(await send(by("ann")))
            await eventually(lambda: len(rig.calls) + gateway.slots.line.depth("m") > number)  # noqa: B023
        await waiting(gateway, 3)
        ben = await send(by("ben"))
        assert (await sent[-1].response()).status == 503
        turns.end(4)
        assert (await ben.response()).status == 200


async def test_two_persons_who_open_alike_have_two_conversations(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig"), await provider_for("other"), users=users())
    found = [(await ask(gateway.port, by(person))) for person in ("ann", "ben")]
    assert [one.header("x-gateway-affinity") for one in found] == ["miss", "miss"]
    assert Counter(one.header("x-gateway-provider") for one in found) == {"rig": 1, "other": 1}


async def test_a_config_that_no_longer_trusts_a_user_to_name_persons_holds_at_once(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=users())
    await ask(gateway.port, by("ann"))
    gateway.adopt(build(settings(provider, users=users(person_header=None))))
    await ask(gateway.port, by("ann"))
    assert [line.get("person") for line in await booked(gateway, 2)] == ["ann", None]
