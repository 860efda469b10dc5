"""What only one kind of server tells, case by case; and its words when it fails, which any kind may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgateway.servers import llamacpp, lmstudio, ollama
from llmgateway.servers.kind import Facts, Kind, quote, read_details
from llmgateway.servers.models import Model, read_listing


def told(kind: Kind, models: dict[str, Model], answer: Any) -> Facts:
    """What is known of these models once each page of details has been read, and says this."""
    facts = Facts(models)
    for details in kind.details:
        facts = read_details(details, facts, json.dumps(answer).encode())
    return facts


# --- what it takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "sees"),
    [
        (ollama.KIND, {"models": [{"model": "m", "capabilities": ["completion", "vision"]}]}, True),
        (ollama.KIND, {"models": [{"model": "m", "capabilities": ["completion"]}]}, False),
        (ollama.KIND, {"models": [{"model": "m", "capabilities": "vision"}]}, None),
        (ollama.KIND, {"models": [{"model": "m"}]}, None),
        (lmstudio.KIND, {"data": [{"id": "m", "type": "vlm"}]}, True),
        (lmstudio.KIND, {"data": [{"id": "m", "type": "llm"}]}, False),
        (lmstudio.KIND, {"models": [{"key": "m", "type": "llm", "capabilities": {"vision": True}}]}, True),
        (lmstudio.KIND, {"models": [{"key": "m", "type": "llm", "capabilities": {"vision": 1}}]}, False),
        (llamacpp.KIND, {}, None),
    ],
)
def test_whether_a_model_takes_images_is_known_where_its_server_tells(
    kind: Kind, answer: Any, sees: bool | None
) -> None:
    assert told(kind, {"m": Model("m")}, answer).models["m"].takes_images is sees


@pytest.mark.parametrize(
    ("kind", "answer", "embeds"),
    [
        (ollama.KIND, {"models": [{"model": "m", "capabilities": ["embedding"]}]}, True),
        (ollama.KIND, {"models": [{"model": "m", "capabilities": ["completion", "embedding"]}]}, False),
        (ollama.KIND, {"models": [{"model": "m", "capabilities": []}]}, False),
        (ollama.KIND, {"models": [{"model": "m"}]}, False),
        (lmstudio.KIND, {"models": [{"key": "m", "type": "embeddings"}]}, True),
        (lmstudio.KIND, {"models": [{"key": "m", "type": "llm"}]}, False),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else str(value),
)
def test_whether_a_model_only_embeds_is_known_where_its_server_tells(
    kind: Kind, answer: Any, embeds: bool
) -> None:
    assert told(kind, {"m": Model("m")}, answer).models["m"].only_embeds is embeds


# --- the context, and the slots ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "listed", "answer", "length"),
    [
        (llamacpp.KIND, None, {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4}, 4096),
        (llamacpp.KIND, 2048, {"default_generation_settings": {"n_ctx": 4096}}, 2048),
        (ollama.KIND, None, {"models": [{"name": "m", "model": "m", "context_length": 8192}]}, 8192),
        (ollama.KIND, None, {"models": []}, None),
        (lmstudio.KIND, None, {"data": [{"id": "m", "max_context_length": 40_960}]}, 40_960),
        (
            lmstudio.KIND,
            None,
            {"data": [{"id": "m", "max_context_length": 40_960, "loaded_context_length": 4096}]},
            4096,
        ),
    ],
)
def test_the_context_is_read_where_the_listing_does_not_tell_it(
    kind: Kind, listed: int | None, answer: Any, length: int | None
) -> None:
    facts = told(kind, {"m": Model("m", context_length=listed)}, answer)
    assert facts.models["m"].context_length == length


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
    props = {"default_generation_settings": {"n_ctx": 512}, **props}
    assert told(llamacpp.KIND, {"m": Model("m")}, props).slots == slots


# --- what is in memory ------------------------------------------------------------------------------------


def in_memory(kind: Kind, names: str, answer: Any) -> list[bool | None]:
    """Which of the listed models are told to be in memory."""
    facts = told(kind, {name: Model(name) for name in names.split()}, answer)
    assert facts.slots is None
    return [model.loaded for model in facts.models.values()]


def test_ollama_tells_what_it_runs() -> None:
    names = "qwen3:8b llama3.2:3b"
    assert in_memory(ollama.KIND, names, {"models": []}) == [False, False]
    running = {"models": [{"name": "llama3.2:3b", "model": "llama3.2:3b"}]}
    assert in_memory(ollama.KIND, names, running) == [False, True]
    assert in_memory(ollama.KIND, names, {"models": [{"model": "deleted:1b"}]}) == [False, False]
    with_bad_ones = {"models": [None, {"model": 3}, {}, {"model": "llama3.2:3b"}]}
    assert in_memory(ollama.KIND, names, with_bad_ones) == [False, True]


@pytest.mark.parametrize(
    ("state", "loaded"),
    [("loaded", True), ("not-loaded", False), ("loading", False), ("new", None), (3, None)],
)
def test_lm_studio_tells_the_state_of_each_model(state: Any, loaded: bool | None) -> None:
    entries = [{"id": None}, "a", {"id": "b", "state": state}]
    assert in_memory(lmstudio.KIND, "a b", {"data": entries}) == [None, loaded]


def test_lm_studio_tells_what_each_instance_of_a_model_can_do() -> None:
    def instance(name: str, context: object, parallel: object) -> dict[str, Any]:
        return {"id": name, "config": {"context_length": context, "parallel": parallel}}

    answer = {
        "models": [
            {"key": "one", "loaded_instances": [instance("one", 4096, 4)], "max_context_length": 40_960},
            {"key": "two", "loaded_instances": [instance("fast", 8192, 2), instance("two", 512, 1)]},
            {"key": "odd", "loaded_instances": [instance("odd", "4096", 0)], "max_context_length": 99},
            {"key": "none", "loaded_instances": [], "max_context_length": 99},
            {"key": "embeds", "loaded_instances": [{"id": "embeds", "config": {"context_length": 64}}]},
            {"key": "bad", "loaded_instances": None},
            {"key": None, "loaded_instances": []},
            "bad",
        ]
    }
    names = ("one", "two", "fast", "odd", "none", "embeds", "unheard-of")
    facts = told(lmstudio.KIND, {name: Model(name) for name in names}, answer)
    assert [(m.context_length, m.loaded, m.slots) for m in facts.models.values()] == [
        (4096, True, 4),
        (512, True, 1),
        (8192, True, 2),
        (99, True, None),
        (99, False, None),
        (64, True, None),
        (None, None, None),
    ]
    assert facts.slots is None


# --- llama.cpp as a router, and asleep ----------------------------------------------------------------------

# As a router of September 2026 says them; `default_generation_settings` is there for the sake of web pages.
ROUTER: dict[str, Any] = {
    "role": "router",
    "max_instances": 4,
    "model_alias": "llama-server",
    "model_path": "none",
    "default_generation_settings": {"params": None, "n_ctx": 0},
}


@pytest.mark.parametrize("loads", [True, False, None, "no", 0])
def test_a_router_that_loads_nothing_serves_what_is_in_memory_or_sleeps(loads: Any) -> None:
    states = {"up": "loaded", "down": "unloaded", "coming": "loading", "naps": "sleeping", "new": "of later"}
    listed = [{"id": name, "owned_by": "llamacpp", "status": {"value": v}} for name, v in states.items()]
    models = read_listing(json.dumps({"data": listed}).encode()).models
    facts = told(llamacpp.KIND, models, {**ROUTER, "models_autoload": loads})
    served = [name for name, model in facts.models.items() if model.servable]
    assert served == (["up", "naps", "new"] if loads is False else list(states))
    assert facts.slots is None and not any(model.context_length for model in facts.models.values())
    assert [details.path for details in llamacpp.KIND.more(facts)] == ["/props?model=up&autoload=false"]


def test_a_router_is_asked_for_each_model_in_memory_and_may_not_load_one_for_that() -> None:
    models = {name: Model(name, loaded=True) for name in ("org/a:Q4", "b c&d")} | {"down": Model("down")}
    facts = told(llamacpp.KIND, models, ROUTER)
    of_each = llamacpp.KIND.more(facts)
    assert [details.path for details in of_each] == [
        "/props?model=org%2Fa%3AQ4&autoload=false",
        "/props?model=b%20c%26d&autoload=false",
    ]
    props = {"default_generation_settings": {"n_ctx": 512}, "total_slots": 3, "is_sleeping": False}
    facts = read_details(of_each[0], facts, json.dumps(props).encode())
    facts = read_details(of_each[1], facts, json.dumps({**props, "is_sleeping": True}).encode())
    assert list(facts.models.values()) == [
        Model("org/a:Q4", context_length=512, loaded=True, slots=3),
        Model("b c&d", context_length=512, loaded=False, asleep=True, slots=3),
        Model("down"),
    ]


@pytest.mark.parametrize(("sleeps", "loaded"), [(True, False), (False, True), (None, None), ("yes", None)])
def test_a_server_that_sleeps_has_no_model_in_memory(sleeps: Any, loaded: bool | None) -> None:
    props = {"default_generation_settings": {"n_ctx": 512}, "total_slots": 2, "is_sleeping": sleeps}
    facts = told(llamacpp.KIND, {"m": Model("m")}, props)
    assert facts == Facts({"m": Model("m", None, 512, loaded, asleep=sleeps is True)}, 2)
    assert llamacpp.KIND.more(facts) == ()


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
