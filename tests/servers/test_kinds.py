"""The contract of every kind of server: known by its own listing alone, read without harm, probed for real.

A new kind is tested by standing in `known`; all it needs is a sample of what it sends.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pytest_aiohttp import AiohttpServer

from llmgateway.api.endpoints import BY_NAME, DIALECTS
from llmgateway.config.load import build
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import probe
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.fleet.upstream import Upstream
from llmgateway.http.connection import DEFAULT_IDLE_S
from llmgateway.servers import generic, known
from llmgateway.servers.kind import Details, Facts, Kind, proves, read_details
from llmgateway.servers.known import KINDS, is_loading, who_wrote
from llmgateway.servers.models import Listing, Model, read_listing
from tests.servers.samples import SAMPLES, Sample

APIS = {dialect.name for dialect in DIALECTS} | {"ollama"}
DETAILS = [(kind, details) for kind in KINDS for details in kind.details]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = "models data default_generation_settings total_slots".split()

LOADING = [kind for kind in KINDS if SAMPLES[kind.name].loading]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
every_kind_that_says_it_loads = pytest.mark.parametrize("kind", LOADING, ids=lambda kind: kind.name)


def written(kind: Kind) -> Listing:
    """The listing of a server of this kind."""
    return read_listing(json.dumps(SAMPLES[kind.name].listing).encode())


# --- what it tells ------------------------------------------------------------------------------------


def test_kinds_differ_in_name_and_port() -> None:
    assert len({kind.name for kind in KINDS}) == len({kind.title for kind in KINDS}) == len(KINDS)
    ports = [port for kind in KINDS for port in kind.ports]
    assert len(set(ports)) == len(ports)


@every_kind
def test_a_kind_speaks_what_made_it_known_and_nothing_unheard_of(kind: Kind) -> None:
    assert {"openai"} <= kind.speaks <= APIS
    assert kind.lacks <= BY_NAME.keys()
    assert not kind.may_speak & kind.speaks and kind.may_speak <= APIS
    assert all(BY_NAME[name].dialect.name in kind.speaks for name in kind.lacks), "it lacks all of the others"
    assert kind.name.isalnum() and kind.name.islower()


@every_kind
def test_a_connection_is_given_up_before_the_server_closes_it(kind: Kind) -> None:
    assert kind.idle_s is None or kind.idle_s > DEFAULT_IDLE_S


# --- how it is known ----------------------------------------------------------------------------------


@every_kind
def test_a_listing_is_recognised_by_its_own_kind_and_no_other(kind: Kind) -> None:
    claims = [each for each in KINDS if each.wrote(written(kind))]
    assert claims == ([] if kind is generic.KIND else [kind])
    assert who_wrote(written(kind)) is kind


def test_a_listing_of_nobody_known_is_generic() -> None:
    assert who_wrote(Listing({})) is generic.KIND
    assert who_wrote(Listing({"m": Model("m")}, frozenset({"somebody"}))) is generic.KIND


@every_kind
def test_a_proof_is_shown_by_the_page_of_its_own_kind_and_by_nothing_else(kind: Kind) -> None:
    assert (kind.proof is None) == (SAMPLES[kind.name].proof is None)
    if kind.proof is None:
        return
    assert proves(kind.proof, json.dumps(SAMPLES[kind.name].proof).encode())
    odd: list[Any] = [
        None,
        [],
        "0.1",
        {},
        {"version": None},
        {"version": 1},
        {"version": "0.6", "deployment_id": "x"},
    ]
    for told in odd:
        assert not proves(kind.proof, json.dumps(told).encode())
    for words in (b"", b"<html>", b"Ollama is running"):
        assert not proves(kind.proof, words)


@every_kind
def test_a_name_in_full_stays_as_it_is(kind: Kind) -> None:
    for name in ("m", "m:latest", "hf.co/u/m", "host:5000/u/m", "", "m:"):
        assert kind.full_name(kind.full_name(name)) == kind.full_name(name)


# --- what its details tell ------------------------------------------------------------------------------


@every_kind
def test_everything_that_it_tells_is_read(kind: Kind) -> None:
    sample = SAMPLES[kind.name]
    facts = Facts(written(kind).models)
    assert sample.pages.keys() == {details.path for details in kind.details}
    for details in kind.details:
        facts = read_details(details, facts, json.dumps(sample.pages[details.path]).encode())
    assert facts == sample.facts


@pytest.mark.parametrize(("kind", "details"), DETAILS, ids=[f"{k.name}{d.path}" for k, d in DETAILS])
@given(
    answer=JSON.map(json.dumps)
    | st.builds(lambda key, value: json.dumps({key: value}), st.sampled_from(KEYS), JSON.filter(bool))
    | st.sampled_from(
        ["", "<html>", '{"models":[{"model":[]}]}', '{"models":{}}', '{"data":[3]}', '{"data":{}}']
    )
)
def test_details_of_an_unexpected_shape_add_nothing(kind: Kind, details: Details, answer: str) -> None:
    before = Facts(written(kind).models, slots=3)
    assert read_details(details, before, answer.encode()) == before


# --- loading --------------------------------------------------------------------------------------------


ERRORS = [
    {"error": {"message": "no slot available", "type": "unavailable_error", "code": 503}},
    {"error": {"message": "Loading model failed: out of memory", "type": "server_error", "code": 500}},
    {"error": "model not found"},
    {"detail": "Not Found"},
    {},
]


def loading_of(kind: Kind) -> tuple[int, bytes]:
    """What a server of this kind answers while it loads."""
    loading = SAMPLES[kind.name].loading
    assert loading is not None
    return loading[0], json.dumps(loading[1]).encode()


@every_kind
def test_loading_is_told_from_broken_by_its_own_words_alone(kind: Kind) -> None:
    for other in LOADING:
        status, body = loading_of(other)
        assert kind.is_loading(status, body) is (kind is other)
        assert not any(kind.is_loading(wrong, body) for wrong in (200, 404, 500, 503) if wrong != status)
    for status in (200, 404, 500, 503):
        assert not any(kind.is_loading(status, json.dumps(error).encode()) for error in ERRORS)
        assert not kind.is_loading(status, b"")


@every_kind_that_says_it_loads
def test_who_has_not_told_its_kind_may_be_any_that_loads(kind: Kind) -> None:
    status, body = loading_of(kind)
    believe = [each for each in KINDS if is_loading(each, status, body)]
    assert set(believe) == {kind, generic.KIND}


def test_who_has_not_told_its_kind_may_be_broken_as_well() -> None:
    assert not any(is_loading(generic.KIND, 503, json.dumps(error).encode()) for error in ERRORS)


# --- a server of it, probed -------------------------------------------------------------------------------


async def serving(aiohttp_server: AiohttpServer, pages: dict[str, tuple[int, Any]]) -> str:
    """A polite server with these pages, status and JSON each; gives its base URL for a config."""

    def page(status: int, told: Any) -> Any:
        async def answered(_: web.Request) -> web.Response:
            return web.json_response(told, status=status)

        return answered

    app = web.Application()
    app.add_routes([web.get(path, page(status, told)) for path, (status, told) in pages.items()])
    return str((await aiohttp_server(app)).make_url("/v1"))


async def looked_at(url: str, **entry: Any) -> tuple[Provider, Probe]:
    """One look at the server there, by way of a provider that has taken it in."""
    (provider,) = Fleet(build({"providers": {"rig": {"url": url, **entry}}})).providers.values()
    upstream = Upstream()
    try:
        seen = await probe(upstream, provider)
    finally:
        upstream.close()
    provider.observe(seen, now=0)
    return provider, seen


def polite(sample: Sample) -> dict[str, tuple[int, Any]]:
    return {path: (200, told) for path, told in {"/v1/models": sample.listing, **sample.pages}.items()}


@every_kind
async def test_a_probe_finds_out_the_kind_and_all_that_it_tells(
    aiohttp_server: AiohttpServer, kind: Kind
) -> None:
    sample = SAMPLES[kind.name]
    provider, seen = await looked_at(await serving(aiohttp_server, polite(sample)))
    assert (provider.state, provider.kind, provider.reason) == (State.ONLINE, kind, "")
    assert Facts(dict(provider.models), seen.slots) == sample.facts
    assert provider.capacity == sample.facts.slots
    for name, model in sample.facts.models.items():
        assert provider.slots_for(name) == model.slots or sample.facts.slots


@every_kind
async def test_models_of_the_config_are_told_of_as_well(aiohttp_server: AiohttpServer, kind: Kind) -> None:
    sample = SAMPLES[kind.name]
    name = next(iter(sample.facts.models))
    url = await serving(aiohttp_server, polite(sample))
    provider, _ = await looked_at(url, models=[name, "not/listed"])
    assert provider.kind is kind
    assert list(provider.models) == [name, "not/listed"]
    assert provider.models[name] == sample.facts.models[name]


@every_kind
async def test_a_server_without_its_details_is_of_its_kind_all_the_same(
    aiohttp_server: AiohttpServer, kind: Kind
) -> None:
    listing = SAMPLES[kind.name].listing
    provider, seen = await looked_at(await serving(aiohttp_server, {"/v1/models": (200, listing)}))
    assert (provider.state, provider.kind, seen.slots) == (State.ONLINE, kind, None)
    assert dict(provider.models) == written(kind).models


@every_kind_that_says_it_loads
async def test_a_probe_that_meets_loading_finds_it_warming(aiohttp_server: AiohttpServer, kind: Kind) -> None:
    loading = SAMPLES[kind.name].loading
    assert loading is not None
    provider, seen = await looked_at(await serving(aiohttp_server, {"/v1/models": loading}))
    assert provider.state is State.WARMING
    assert seen.kind is None and provider.kind is generic.KIND, "it has not told yet"


# --- a kind more ------------------------------------------------------------------------------------------


TOY = Kind(
    name="toy",
    title="Toy",
    wrote=lambda listing: "toymaker" in listing.owners,
    speaks=frozenset({"openai"}),
    details=(
        Details("/toy/box", lambda facts, told: replace(facts, slots=told["toys"])),
        Details(
            "/toy/state",
            lambda facts, told: replace(
                facts, models={name: replace(m, loaded=told[name]) for name, m in facts.models.items()}
            ),
        ),
    ),
    is_loading=lambda status, body: status == 425 and b"winding up" in body,
)


async def test_a_kind_that_is_only_a_value_works_through_probing(
    aiohttp_server: AiohttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "KINDS", (*KINDS, TOY))
    listing = {"data": [{"id": "bear", "owned_by": "toymaker"}]}
    pages: dict[str, tuple[int, Any]] = {
        "/v1/models": (200, listing),
        "/toy/box": (200, {"toys": 2}),
        "/toy/state": (200, {"bear": True}),
    }
    provider, _ = await looked_at(await serving(aiohttp_server, pages))
    assert (provider.kind, provider.capacity) == (TOY, 2)
    assert provider.models == {"bear": Model("bear", loaded=True)}
    assert is_loading(provider.kind, 425, b"winding up")

    half = {**pages, "/toy/state": (500, {})}
    provider, _ = await looked_at(await serving(aiohttp_server, half))
    assert (provider.state, provider.capacity) == (State.ONLINE, 2), "one page is enough for what it says"

    provider, _ = await looked_at(await serving(aiohttp_server, {"/v1/models": (425, "winding up")}))
    assert provider.state is State.WARMING

    refused = {**pages, "/toy/state": (403, {})}
    provider, _ = await looked_at(await serving(aiohttp_server, refused))
    assert provider.state is State.ONLINE, "a page that is refused proves nothing"

    refused["/v1/chat/completions"] = (403, {})
    provider, _ = await looked_at(await serving(aiohttp_server, refused))
    assert provider.state is State.MISCONFIGURED
