"""What is read of a provider's own words: its models, its details, its errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmgateway.api.dialect import error_body
from llmgateway.errors import NO_PROVIDER, GatewayError
from llmgateway.servers.models import (
    Facts,
    Model,
    NotAnLLMServer,
    details_for,
    is_loading,
    model_entry,
    parse_models,
    quote,
    read_details,
)

unhurried = settings(deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

# --- model lists ---------------------------------------------------------------------------------------

LLAMACPP = {
    "models": [{"name": "tiny"}],
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "object": "model",
            "created": 1_790_000_000,
            "owned_by": "llamacpp",
            "meta": {"n_ctx": 2048, "n_ctx_train": 32768},
        }
    ],
}
OLLAMA = {
    "object": "list",
    "data": [{"id": "qwen3:8b", "object": "model", "created": 1_790_000_001, "owned_by": "library"}],
}
VLLM = {
    "object": "list",
    "data": [
        {
            "id": "Qwen/Qwen3-8B",
            "object": "model",
            "created": 1_790_000_002,
            "owned_by": "vllm",
            "root": "Qwen/Qwen3-8B",
            "max_model_len": 40960,
        }
    ],
}
LM_STUDIO = {
    "data": [{"id": "qwen3-8b", "object": "model", "owned_by": "organization_owner"}],
    "object": "list",
}


@pytest.mark.parametrize(
    ("listing", "model"),
    [
        (LLAMACPP, Model("tiny", 1_790_000_000, 2048)),
        (OLLAMA, Model("qwen3:8b", 1_790_000_001)),
        (VLLM, Model("Qwen/Qwen3-8B", 1_790_000_002, 40960)),
        (LM_STUDIO, Model("qwen3-8b")),
    ],
    ids=["llama.cpp", "Ollama", "vLLM", "LM Studio"],
)
def test_each_kind_of_server_tells_its_models(listing: Any, model: Model) -> None:
    assert parse_models(json.dumps(listing).encode()) == {model.id: model}


@pytest.mark.parametrize("empty", [{"object": "list", "data": None}, {"data": []}])
def test_a_server_without_models_is_an_llm_server_all_the_same(empty: Any) -> None:
    assert parse_models(json.dumps(empty).encode()) == {}


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
        parse_models(body)


@pytest.mark.parametrize("odd", [True, -1, 0, 1.5, "7", None, [], {}, 2**70])
def test_odd_facts_about_a_model_are_left_out(odd: Any) -> None:
    entry = {"id": "m", "created": odd, "meta": odd, "max_model_len": odd, "owned_by": odd}
    body = json.dumps({"data": [entry]}).encode()
    assert parse_models(body) == {"m": Model("m")}
    assert details_for(body) is None


@unhurried
@given(st.text(min_size=1, max_size=1_000))
@example('"]}\r\nx-evil: 1\x00\x1b[2J')
def test_a_hostile_model_id_stays_one_json_string(name: str) -> None:
    models = parse_models(json.dumps({"data": [{"id": name}]}).encode())
    assert models == {name: Model(name)}
    error = GatewayError(NO_PROVIDER, f"No online provider serving model '{name}' for this user.")
    assert json.loads(error_body(error, "openai", "id"))["error"]["message"] == error.message


def test_a_flood_of_models_is_bounded() -> None:
    body = json.dumps({"data": [{"id": f"m{number}"} for number in range(20_000)]}).encode()
    assert len(parse_models(body)) == 10_000


@pytest.mark.parametrize(
    ("listing", "path", "details", "length"),
    [
        (
            {"data": [{"id": "tiny", "owned_by": "llamacpp"}]},
            "/props",
            {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4},
            4096,
        ),
        (LLAMACPP, "/props", {"default_generation_settings": {"n_ctx": 4096}}, 2048),
        (
            OLLAMA,
            "/api/ps",
            {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "context_length": 8192}]},
            8192,
        ),
        (OLLAMA, "/api/ps", {"models": []}, None),
        (LM_STUDIO, "/api/v0/models", {"data": [{"id": "qwen3-8b", "max_context_length": 40960}]}, 40960),
        (
            LM_STUDIO,
            "/api/v0/models",
            {"data": [{"id": "qwen3-8b", "max_context_length": 40960, "loaded_context_length": 4096}]},
            4096,
        ),
    ],
)
def test_details_are_read_where_a_server_offers_them(
    listing: Any, path: str, details: Any, length: int | None
) -> None:
    body = json.dumps(listing).encode()
    where = details_for(body)
    assert where is not None
    assert where.path == path
    facts = read_details(where, parse_models(body), json.dumps(details).encode())
    assert [model.context_length for model in facts.models.values()] == [length]


@pytest.mark.parametrize(
    ("props", "slots"),
    [
        ({"total_slots": 4}, 4),
        ({"total_slots": 1}, 1),
        ({}, None),
        *(({"total_slots": odd}, None) for odd in (0, -1, 1.5, True, "4", None, [4])),
    ],
    ids=str,
)
def test_llama_cpp_tells_its_slots(props: Any, slots: int | None) -> None:
    body = json.dumps(LLAMACPP).encode()
    where = details_for(body)
    assert where is not None
    props = {"default_generation_settings": {"n_ctx": 512}, **props}
    assert read_details(where, parse_models(body), json.dumps(props).encode()).slots == slots


def in_memory(listing: Any, details: Any = None) -> list[bool | None]:
    """Which of the listed models are told to be in memory."""
    body = json.dumps(listing).encode()
    models = parse_models(body)
    if details is not None:
        where = details_for(body)
        assert where is not None
        facts = read_details(where, models, json.dumps(details).encode())
        assert facts.slots is None
        models = facts.models
    return [model.loaded for model in models.values()]


def test_most_servers_do_not_say_what_is_in_memory() -> None:
    for listing in (LLAMACPP, OLLAMA, VLLM, LM_STUDIO):
        assert in_memory(listing) == [None]


def test_ollama_tells_what_it_runs() -> None:
    listing = {"data": [{"id": name, "owned_by": "library"} for name in ("qwen3:8b", "llama3.2:3b")]}
    assert in_memory(listing, {"models": []}) == [False, False]
    assert in_memory(listing, {"models": [{"name": "llama3.2:3b", "model": "llama3.2:3b"}]}) == [False, True]
    assert in_memory(listing, {"models": [{"model": "deleted:1b"}]}) == [False, False]


@pytest.mark.parametrize(
    ("state", "loaded"),
    [("loaded", True), ("not-loaded", False), ("loading", False), ("new", None), (3, None)],
)
def test_lm_studio_tells_the_state_of_each_model(state: Any, loaded: bool | None) -> None:
    listing = {"data": [{"id": name, "owned_by": "organization_owner"} for name in ("a", "b")]}
    assert in_memory(listing, {"data": [{"id": "b", "state": state}]}) == [None, loaded]


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
def test_llama_cpp_as_a_router_lists_what_it_could_load(status: Any, loaded: bool | None) -> None:
    assert in_memory({"data": [{"id": "tiny", "owned_by": "llamacpp", "status": status}]}) == [loaded]


def test_a_server_of_no_known_kind_has_no_details() -> None:
    assert details_for(json.dumps(VLLM).encode()) is None
    assert details_for(b'{"data": []}') is None


KEYS = "models data default_generation_settings total_slots".split()


@pytest.mark.parametrize("listing", [LLAMACPP, OLLAMA, LM_STUDIO], ids=["llama.cpp", "Ollama", "LM Studio"])
@unhurried
@given(
    answer=JSON.map(json.dumps)
    | st.builds(lambda key, value: json.dumps({key: value}), st.sampled_from(KEYS), JSON.filter(bool))
    | st.sampled_from(
        ["", "<html>", '{"models":[{"model":[]}]}', '{"models":{}}', '{"data":[3]}', '{"data":{}}']
    )
)
def test_details_of_an_unexpected_shape_add_nothing(listing: Any, answer: str) -> None:
    body = json.dumps(listing).encode()
    where = details_for(body)
    assert where is not None
    assert read_details(where, parse_models(body), answer.encode()) == Facts(parse_models(body))


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


# --- its errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"error": "model not found"}', "model not found"),
        (b'{"message": "no"}', "no"),
        (b'{"detail": "Server is pinned"}', "Server is pinned"),
        (b'{"detail": [{"msg": "x"}]}', '{"detail": [{"msg": "x"}]}'),
        (b'{"error": {"message": ["a"]}}', '{"error": {"message": ["a"]}}'),
        (b"Internal\r\n  Server\tError\n", "Internal Server Error"),
        (b'["x"]', '["x"]'),
        (b"\xff\xfe", "��"),
        (b"", ""),
        (b"[" * 2_000, "[" * 299 + "…"),
        (b"x" * 300, "x" * 300),
        (b"x" * 301, "x" * 299 + "…"),
    ],
)
def test_a_servers_own_words_are_quoted_in_one_line(body: bytes, words: str) -> None:
    assert quote(body) == words


def test_a_secret_that_a_server_repeats_is_blotted_out() -> None:
    body = json.dumps({"error": {"message": "key sk-rig/1 is wrong: sk-rig/1"}}).replace("/", "\\/").encode()
    assert quote(body, ["sk-rig/1"]) == "key *** is wrong: ***"
    at_the_cut = b"x" * 290 + b" sk-rig-0123456789 "
    assert "sk-" not in quote(at_the_cut, ["sk-rig-0123456789"])


@pytest.mark.parametrize(
    ("status", "body", "loading"),
    [
        (503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', True),
        (500, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', False),
        (503, b'{"error":{"message":"no slot available","type":"unavailable_error","code":503}}', False),
        (503, b"", False),
    ],
)
def test_loading_is_told_from_broken(status: int, body: bytes, loading: bool) -> None:
    assert is_loading(status, body) is loading
