"""What only one kind of server tells, case by case; and its words when it fails, which any kind may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgateway.servers import llamacpp, lmstudio, ollama
from llmgateway.servers.kind import Facts, Kind, quote, read_details
from llmgateway.servers.models import Model


def told(kind: Kind, models: dict[str, Model], answer: Any) -> Facts:
    """What is known of these models once the one page of details has been read."""
    (details,) = kind.details
    return read_details(details, Facts(models), json.dumps(answer).encode())


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
