"""A gateway below a path of a site: all of it is there, and nothing of it anywhere else."""

from __future__ import annotations

import json
import re

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking, refusal
from tests.raw_client import Ending, request
from tests.web.test_page_files import FILES
from tests.web.visit import FROM_PAGE, HOUSE, signing_in, watching, with_cookie

BASES = ["/llm", "/a/b-c/d.e", "/gateway", "/v1/gateway", "/gateway/gateway"]
every_base = pytest.mark.parametrize("base", BASES)

OURS = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("GET", "/gateway/status"),
    *(("GET", path) for path in FILES),
]


async def below(gateway_for: GatewayFor, provider: FakeProvider, base: str) -> Gateway:
    return await gateway_for(provider, users=HOUSE, server={"base_path": base})


@every_base
async def test_everything_is_below_it(gateway_for: GatewayFor, provider: FakeProvider, base: str) -> None:
    gateway = await below(gateway_for, provider, base)
    assert gateway.url.endswith(f":{gateway.port}{base}")
    for method, path in OURS:
        response = await ask(gateway.port, request(method, base + path))
        assert (response.status, response.ending) == (200, Ending.COMPLETE), path
        if path in FILES:
            assert bytes(response.body) == FILES[path]
    for target in (OPENAI, ANTHROPIC):
        assert (await ask(gateway.port, asking(base + target))).status == 200
    assert [seen.target for seen in provider.requests] == [OPENAI, ANTHROPIC]


@every_base
async def test_nothing_is_above_it_or_beside_it(
    gateway_for: GatewayFor, provider: FakeProvider, base: str
) -> None:
    gateway = await below(gateway_for, provider, base)
    paths = [path for _, path in OURS] + [OPENAI, ANTHROPIC, "/gateway/session", "/gateway/chat"]
    above = ("", f"{base}x", base.upper(), base + base, f"/{base}", f"{base}/", "/.", base[:-1])
    beside = {before + path for before in above for path in paths} - {base + path for path in paths}
    spelled = base[:1] + "".join(f"%{ord(letter):02x}" for letter in base[1:])
    for target in ("/", base, f"{base}/", f"{spelled}/v1/models", *sorted(beside)):
        refusal(await ask(gateway.port, request("GET", target)), 404, "not_found")
    assert not provider.calls


@every_base
async def test_the_redirect_and_the_cookie_stay_below_it(
    gateway_for: GatewayFor, provider: FakeProvider, base: str
) -> None:
    gateway = await below(gateway_for, provider, base)
    moved = await ask(gateway.port, request("GET", f"{base}/gateway", key=None))
    assert (moved.status, moved.header("location")) == (308, f"{base}/gateway/")
    signed_in = await ask(gateway.port, signing_in(base=base))
    cookie, *rules = (signed_in.header("set-cookie") or "").split("; ")
    assert f"Path={base}/gateway/" in rules
    seen = await ask(gateway.port, with_cookie("GET", f"{base}/gateway/status", cookie))
    assert seen.json["viewer"]["user"] == "alice"
    body = json.dumps(ASK).encode()
    asked = with_cookie("POST", f"{base}/gateway/chat", cookie, *FROM_PAGE, body=body)
    assert (await ask(gateway.port, asked)).status == 200
    assert (provider.requests[0].target, provider.requests[0].header("cookie")) == (OPENAI, None)
    signed_out = await ask(gateway.port, with_cookie("DELETE", f"{base}/gateway/session", cookie, *FROM_PAGE))
    assert f"Path={base}/gateway/" in (signed_out.header("set-cookie") or "").split("; ")


async def test_events_are_below_it(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await below(gateway_for, provider, "/llm")
    signed_in = await ask(gateway.port, signing_in(base="/llm"))
    cookie = (signed_in.header("set-cookie") or "").partition(";")[0]
    async with watching(gateway, cookie, base="/llm") as (client, events):
        assert (await client.events(events, 1))[0]["viewer"]["user"] == "alice"


@every_base
async def test_the_page_is_there_in_the_absolute_form(
    gateway_for: GatewayFor, provider: FakeProvider, base: str
) -> None:
    gateway = await below(gateway_for, provider, base)
    response = await ask(gateway.port, request("GET", f"http://gateway{base}/gateway/?x", key=None))
    assert bytes(response.body) == FILES["/gateway/"]


async def test_queries_go_on_and_the_outgoing_path_knows_nothing_of_it(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await below(gateway_for, provider, "/llm")
    assert (await ask(gateway.port, asking(f"/llm{OPENAI}?a=/llm/v1&b=%2f"))).status == 200
    assert provider.requests[0].target == f"{OPENAI}?a=/llm/v1&b=%2f"


async def test_errors_are_in_the_dialect_of_the_path_below_it(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await below(gateway_for, provider, "/llm")
    for path in (OPENAI, ANTHROPIC):
        refusal(await ask(gateway.port, asking(f"/llm{path}", key=None)), 401, "invalid_api_key", path)


async def test_extra_paths_are_below_it(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    server = {"base_path": "/llm", "extra_paths": ["/v1/tokenize"]}
    gateway = await gateway_for(provider, server=server)
    assert (await ask(gateway.port, asking("/llm/v1/tokenize"))).status == 200
    refusal(await ask(gateway.port, asking("/v1/tokenize")), 404, "not_found")


async def test_it_can_change_while_the_gateway_runs(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider)
    gateway.adopt(build(settings(provider, server={"base_path": "/new"})))
    assert (await ask(gateway.port, request("GET", "/new/v1/models"))).status == 200
    refusal(await ask(gateway.port, request("GET", "/v1/models")), 404, "not_found")


def test_the_page_names_everything_relative_to_itself() -> None:
    """It does not know its base path, so nothing in it begins with a slash."""
    for path, content in FILES.items():
        if path.endswith(("/", ".js", ".css")) and "/vendor/" not in path:
            found = re.findall(
                r"""(?:href|src|action)="/|url\(["']?/|(?:from|import) ["']/""", content.decode()
            )
            assert not found, path


async def test_the_key_is_asked_for_below_it_and_nothing_is_told_above(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await below(gateway_for, provider, "/llm")
    for key in (KEY, None):
        nowhere = await ask(gateway.port, request("GET", "/v1/models", "x-request-id: same", key=key))
        refusal(nowhere, 404, "not_found")
