"""Several gateways in one status: added up, with what differs told of each."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from pytest_aiohttp import AiohttpServer

from llmgateway.cli.together import Seen, add_up
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.program import Finished, run
from tests.raw_client import RawClient, chat
from tests.script import done, play, sse, wait, word


async def status(tmp_path: Path, *urls: str, more: tuple[str, ...] = ()) -> Finished:
    """Run `status` where there is no config."""
    named = [part for url in urls for part in ("--url", url)]
    return await run("status", "--key", KEY, *named, *more, cwd=tmp_path)


def cluster(number: int) -> dict[str, Any]:
    return {"name": f"gw{number}", "instances": 2}


async def test_two_gateways_are_added_up_and_a_third_that_is_away_is_told(
    provider: FakeProvider, gateway_for: GatewayFor, tmp_path: Path, port: int
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("one"), wait(gate), done())
    shared = {"rig": {**provider.entry, "slots": 4}}
    gateways = [await gateway_for(providers=shared, cluster=cluster(number)) for number in (1, 2)]
    async with RawClient(gateways[0].port) as one, RawClient(gateways[1].port) as two:
        for client in (one, two):
            await client.send(chat(stream=True))
            await client.events(await client.head(), 1)
        urls = [*(gateway.url for gateway in gateways), f"http://127.0.0.1:{port}"]
        shown = await status(tmp_path, *urls, more=("--json",))
        table = await status(tmp_path, *urls)
        gate.set()
    assert (shown.code, table.code) == (0, 0), shown.err + table.err
    told = json.loads(shown.out)
    assert [each["name"] for each in told["instances"]] == ["gw1", "gw2", urls[2]]
    assert [each.get("in_flight") for each in told["instances"]] == [1, 1, None]
    assert "No gateway answers" in told["instances"][2]["problem"]
    assert told["in_flight"] == 2
    (rig,) = told["providers"]
    assert (rig["in_flight"], rig["slots"], rig["state"]) == (2, 4, "online")
    assert "states" not in rig
    assert sorted(each["instance"] for each in told["requests"]) == ["gw1", "gw2"]
    assert re.search(r"^rig +online +2/4 ", table.out, re.MULTILINE)
    assert re.search(r"^gw2 +ready +\w+ +1 +http://127", table.out, re.MULTILINE)
    assert re.search(rf"^{urls[2]} +\? .*No gateway answers", table.out, re.MULTILINE)
    assert re.search(r"^alice +m +rig +streaming .*  gw2$", table.out, re.MULTILINE)


async def test_what_two_gateways_see_otherwise_is_told_of_each(
    provider: FakeProvider, gateway_for: GatewayFor, tmp_path: Path, port: int
) -> None:
    sees = await gateway_for(provider, cluster=cluster(1))
    nowhere = {"rig": {"url": f"http://127.0.0.1:{port}"}}
    sees_not = await gateway_for(providers=nowhere, cluster=cluster(2))
    await eventually(lambda: [p.state.value for p in sees_not.fleet.providers.values()] == ["offline"])
    shown = await status(tmp_path, sees.url, sees_not.url, more=("--json",))
    (rig,) = json.loads(shown.out)["providers"]
    assert rig["states"] == {"gw1": "online", "gw2": "offline"}
    assert rig["state"] == "online (gw1), offline (gw2)"
    assert rig["reason"].endswith(" (gw2)")
    assert [model["id"] for model in rig["models"]] == ["m"]
    assert "online (gw1), offline (gw2)" in (await status(tmp_path, sees.url, sees_not.url)).out


async def test_what_one_of_them_does_not_let_in_is_told_and_the_other_shown(
    provider: FakeProvider, gateway_for: GatewayFor, aiohttp_server: AiohttpServer, tmp_path: Path
) -> None:
    async def told(request: web.Request) -> web.Response:
        return web.json_response({"status": "fine"})

    another = web.Application()
    another.router.add_get("/gateway/status", told)
    stranger = str((await aiohttp_server(another)).make_url("")).rstrip("/")
    ours = await gateway_for(provider, cluster=cluster(1))
    other = await gateway_for(provider, users={"bob": {"keys": ["sk-bob-0123456789"]}})
    shown = await status(tmp_path, other.url, ours.url, stranger, more=("--json",))
    assert shown.code == 0, shown.err
    instances = json.loads(shown.out)["instances"]
    assert [each["name"] for each in instances] == [other.url, "gw1", stranger]
    assert "does not know these credentials" in instances[0]["problem"]
    assert "is this the gateway?" in instances[2]["problem"]


async def test_where_none_answers_all_are_told_and_it_fails(tmp_path: Path, port: int) -> None:
    urls = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    shown = await status(tmp_path, *urls)
    assert shown.code == 1
    assert all(f"No gateway answers at {url} " in shown.err for url in urls)
    assert "Traceback" not in shown.err


def snapshot(**parts: Any) -> dict[str, Any]:
    """What a gateway tells of which nothing is known but these parts."""
    config = {"loaded_at": 1.0, "problems": [], "restart_needed": []}
    gateway = {"version": "1", "state": "ready", "now": 9.0, "started_at": 2.0, "config": config}
    usage = {"day": "2026-11-25", "rows": []}
    lists: dict[str, Any] = {name: [] for name in ("providers", "requests", "recent", "limits")}
    viewer = {"user": "alice", "admin": True}
    return {"gateway": gateway, "viewer": viewer, "in_flight": 0, "usage": usage, **lists, **parts}


def together(*snapshots: Mapping[str, Any]) -> dict[str, Any]:
    return add_up([Seen(f"http://{n}", f"gw{n}", each) for n, each in enumerate(snapshots)])


def used(user: str, prompt: int) -> dict[str, Any]:
    counts = {"requests": 1, "prompt_tokens": prompt, "completion_tokens": 1, "estimated": 0}
    return {"user": user, "person": None, "model": "m", **counts}


def test_usage_of_the_same_day_is_added_up_the_most_tokens_first() -> None:
    today = {"day": "2026-11-26", "rows": [used("bob", 5), used("ann", 3)]}
    other = {"day": "2026-11-26", "rows": [used("ann", 4)]}
    behind = {"day": "2026-11-25", "rows": [used("ann", 1000)]}
    usage = together(*(snapshot(usage=each) for each in (behind, today, other)))["usage"]
    assert usage["day"] == "2026-11-26"
    assert [(row["user"], row["requests"], row["prompt_tokens"]) for row in usage["rows"]] == [
        ("ann", 2, 7),
        ("bob", 1, 5),
    ]


def test_what_was_let_in_is_added_up_and_the_limit_stays() -> None:
    row = {"user": "ann", "person": None, "key": None, "name": "tokens_per_day", "limit": 9, "used": 2}
    sums = together(*(snapshot(limits=[{**row, "resets_in_s": s}]) for s in (3.0, 5.0)))["limits"]
    assert sums == [{**row, "used": 4, "resets_in_s": 5.0}]


def test_slots_are_unknown_where_who_is_online_knows_none() -> None:
    def slots(*told: tuple[str, int | None]) -> Any:
        row = {"name": "rig", "reason": "", "models": [], "in_flight": 0, "waiting": 0, "tokens_per_s": 0.0}
        rows = [[{**row, "hour": [0.0], "state": state, "slots": known}] for state, known in told]
        return together(*(snapshot(providers=each) for each in rows))["providers"][0]["slots"]

    assert slots(("online", 2), ("online", 1)) == 3
    assert slots(("online", 2), ("offline", None)) == 2
    assert slots(("online", 2), ("online", None)) is None
    assert slots(("offline", None), ("offline", None)) is None


def test_two_of_the_same_name_are_told_apart_by_their_addresses() -> None:
    seen = [Seen(f"http://{host}", "gw1", snapshot()) for host in "ab"]
    assert [each["name"] for each in add_up(seen)["instances"]] == ["http://a", "http://b"]
    assert add_up(seen)["gateway"]["state"] == "ready"


def test_a_problem_of_one_config_is_told_with_whose_it_is() -> None:
    bad = snapshot()
    bad["gateway"] = {**bad["gateway"], "state": "draining"}
    bad["gateway"]["config"] = {**bad["gateway"]["config"], "problems": ["line 3: no"]}
    gateway = together(snapshot(), bad)["gateway"]
    assert gateway["state"] == "ready (gw0), draining (gw1)"
    assert gateway["config"]["problems"] == ["line 3: no (gw1)"]


def test_of_many_who_say_the_same_three_are_named() -> None:
    states = [snapshot() for _ in range(5)]
    states[4]["gateway"]["state"] = "draining"
    assert together(*states)["gateway"]["state"] == "ready (gw0, gw1, gw2 +1), draining (gw4)"
