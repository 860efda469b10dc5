"""What is read of a list of models, whoever wrote it, and how a model is listed by us."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmgateway.api.dialect import error_body
from llmgateway.errors import NO_PROVIDER, GatewayError
from llmgateway.servers.models import Listing, Model, NotAnLLMServer, model_entry, read_listing

unhurried = settings(deadline=None)


def models_in(listing: Any) -> dict[str, Model]:
    return read_listing(json.dumps(listing).encode()).models


@pytest.mark.parametrize("empty", [{"object": "list", "data": None}, {"data": []}])
def test_a_server_without_models_is_an_llm_server_all_the_same(empty: Any) -> None:
    assert models_in(empty) == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Router</title>", "web page"),
        (b"\n <html>", "web page"),
        (b"", "not JSON"),
        (b"ok", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"data": [{"id": "\\ud800"}]}', "not JSON"),
        (b"[]", "not a list of models"),
        (b"{}", "not a list of models"),
        (b'{"models": [{"name": "m"}]}', "not a list of models"),
        (b'{"data": {"id": "m"}}', "not a list of models"),
        (b'{"data": false}', "not a list of models"),
        (b'{"data": ["m"]}', "no 'id'"),
        (b'{"data": [{"id": 3}]}', "no 'id'"),
        (b'{"data": [{"id": ""}]}', "no 'id'"),
        (b'{"data": [{"id": "ok"}, {"name": "m"}]}', "no 'id'"),
        (b'{"data": [{"id": "%b"}]}' % (b"m" * 1_001), "no 'id'"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
def test_what_is_no_list_of_models_says_what_it_is_instead(body: bytes, words: str) -> None:
    with pytest.raises(NotAnLLMServer, match=words):
        read_listing(body)


@pytest.mark.parametrize("odd", [True, -1, 0, 1.5, "7", None, [], {}, 2**70])
def test_odd_facts_about_a_model_are_left_out(odd: Any) -> None:
    entry = {"id": "m", "created": odd, "meta": odd, "max_model_len": odd, "owned_by": odd}
    listing = read_listing(json.dumps({"data": [entry]}).encode())
    told = frozenset({odd}) if isinstance(odd, str) else frozenset()
    assert listing == Listing({"m": Model("m")}, told)


@unhurried
@given(st.text(min_size=1, max_size=1_000))
@example('"]}\r\nx-evil: 1\x00\x1b[2J')
def test_a_hostile_model_id_stays_one_json_string(name: str) -> None:
    assert models_in({"data": [{"id": name}]}) == {name: Model(name)}
    error = GatewayError(NO_PROVIDER, f"No online provider serving model '{name}' for this user.")
    assert json.loads(error_body(error, "openai", "id"))["error"]["message"] == error.message


def test_a_flood_of_models_is_bounded() -> None:
    assert len(models_in({"data": [{"id": f"m{number}"} for number in range(20_000)]})) == 10_000


def test_the_owners_of_all_models_are_told() -> None:
    entries = [{"id": "a", "owned_by": "library"}, {"id": "b", "owned_by": "alice"}, {"id": "c"}]
    assert read_listing(json.dumps({"data": entries}).encode()).owners == {"library", "alice"}


@pytest.mark.parametrize(
    ("facts", "length"),
    [
        ({"max_model_len": 40_960}, 40_960),
        ({"context_length": 1, "max_model_len": 2}, 1),
        ({"loaded_context_length": 4096, "max_context_length": 40_960}, 4096),
        ({"meta": {"n_ctx": 2048, "n_ctx_train": 32_768}, "max_model_len": 3}, 2048),
        ({"meta": {"n_ctx_train": 32_768}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_context_that_a_request_can_have_is_read_by_any_of_its_names(
    facts: Any, length: int | None
) -> None:
    assert models_in({"data": [{"id": "m", **facts}]}) == {"m": Model("m", context_length=length)}


@pytest.mark.parametrize(
    ("status", "loaded"),
    [
        ({"value": "loaded", "args": []}, True),
        ({"value": "unloaded"}, False),
        ({"value": "loading"}, False),
        ({"value": "sleeping"}, False),
        ({"value": "of a later version"}, None),
        ({"value": ["loaded"]}, None),
        ({}, None),
        ("loaded", None),
        (None, None),
    ],
    ids=str,
)
def test_a_router_of_models_lists_what_it_could_load(status: Any, loaded: bool | None) -> None:
    assert models_in({"data": [{"id": "m", "status": status}]}) == {"m": Model("m", loaded=loaded)}


def test_a_model_is_listed_as_openai_lists_it() -> None:
    assert model_entry(Model("m"), owned_by="rig", created=7) == {
        "id": "m",
        "object": "model",
        "created": 7,
        "owned_by": "rig",
    }
    assert model_entry(Model("m", 5, 4096), owned_by="rig", created=7) == {
        "id": "m",
        "object": "model",
        "created": 5,
        "owned_by": "rig",
        "context_length": 4096,
    }
