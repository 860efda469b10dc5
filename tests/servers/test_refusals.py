"""What servers say where they have not what was asked for, and what that is about."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.api.endpoints import BY_NAME, ENDPOINTS
from llmgateway.servers.refusals import REFUSALS, scope_of

QWEN = ("qwen3:8b", "Qwen/Qwen3-8B")


def about(status: int, said: Any, endpoint: str = "rerank") -> str | None:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return scope_of(status, body, BY_NAME[endpoint].path, QWEN)


def openai(message: str, type_: str = "not_found_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "code": 404}}


OF_THE_PATH: dict[str, tuple[int, Any]] = {
    "llama.cpp": (404, openai("File Not Found")),
    "Go, so Ollama": (404, b"404 page not found"),
    "Go's other one": (405, b"405 method not allowed"),
    "FastAPI, so vLLM": (404, {"detail": "Not Found"}),
    "FastAPI, the method": (405, {"detail": "Method Not Allowed"}),
    "Express": (
        404,
        b"<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<title>Error</title>\n</head>\n<body>\n"
        b"<pre>Cannot POST /v1/rerank</pre>\n</body>\n</html>\n",
    ),
    "LM Studio, were it a 404": (404, {"error": "Unexpected endpoint or method. (POST /v1/rerank)"}),
    "aiohttp": (404, b"404: Not Found"),
    "Flask": (
        404,
        b"<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"
        b"<p>The requested URL was not found on the server. If you entered the URL manually please"
        b" check your spelling and try again.</p>\n",
    ),
    "nginx": (404, b"<head><title>404 Not Found</title></head><body><hr><center>nginx/1.24.0</center>"),
    "Fastify": (404, {"message": "Route POST:/v1/rerank not found", "error": "Not Found", "statusCode": 404}),
    "OpenAI": (404, openai("Invalid URL (POST /v1/rerank)", "invalid_request_error")),
    "OpenAI of late": (404, openai("Unknown request URL: POST /v1/rerank. Please check the URL for typos.")),
    "Spring": (404, {"status": 404, "error": "Not Found", "message": "No static resource v1/rerank."}),
    "a method of which nothing is said": (405, b""),
    "a path below another": (404, {"detail": "/llama/rerank is unknown"}),
    "a 501 with the path": (501, {"error": "POST /v1/rerank is not implemented"}),
}  # fmt: skip
OF_THE_PATH_FOR_A_MODEL: dict[str, tuple[int, Any]] = {
    "llama.cpp": (501, openai("This server does not support reranking. Start it with `--reranking`")),
    "vLLM": (501, openai("The model does not support Rerank API")),
    "vLLM, by its name": (501, openai("The model `Qwen/Qwen3-8B` does not support the Rerank API")),
    "Python": (501, b"<p>Error code: 501</p><p>Message: Unsupported method ('POST').</p>"),
    "somebody": (501, {"error": "not implemented"}),
    "nobody": (501, b""),
    "a method for a model": (405, {"detail": "qwen3:8b takes no such requests"}),
    "the other way about": (501, openai("Reranking is not enabled")),
}
OF_SOMETHING_ELSE: dict[str, tuple[int, Any]] = {
    "vLLM": (404, openai("The model `x` does not exist.", "NotFoundError")),
    "Ollama": (404, {"error": "model 'qwen3:8b' not found"}),
    "Ollama of old": (404, {"error": "model \"qwen3:8b\" not found, try pulling it first"}),
    "llama.cpp's router": (404, openai("model not found")),
    "the name alone": (404, {"error": "qwen3:8b: not found"}),
    "another gateway": (404, openai("No online provider serving model 'qwen3:8b' has /v1/rerank.")),
    "what it was to go on from": (404, openai("Response with id 'resp_12' not found.")),
    "a file": (404, openai("No such file: file-abc")),
    "an image": (404, openai("Failed to fetch the image: 404 Not Found")),
    "LoRA": (404, {"detail": "adapter not found"}),
    "axum, which says nothing": (404, b""),
    "JSON that says nothing": (404, {"odd": 1}),
    "the same of a method": (405, {"odd": 1}),
    "a list of problems": (404, {"detail": [{"loc": ["body"], "msg": "not found"}]}),
    "eyes": (501, openai("This server does not support multimodal. Start it with `--mmproj`")),
    "a feature": (501, openai("tool calls are not supported")),
    "no word of it": (501, openai("it broke")),
    "another status": (400, openai("Invalid URL (POST /v1/rerank)")),
    "a failure": (500, {"detail": "Not Found"}),
}  # fmt: skip


@pytest.mark.parametrize(("status", "said"), OF_THE_PATH.values(), ids=OF_THE_PATH.keys())
def test_that_a_server_has_not_the_path_is_known_by_what_it_says_of_it(status: int, said: Any) -> None:
    assert about(status, said) == "server"


@pytest.mark.parametrize(
    ("status", "said"), OF_THE_PATH_FOR_A_MODEL.values(), ids=OF_THE_PATH_FOR_A_MODEL.keys()
)
def test_what_may_hold_for_the_model_alone_holds_for_no_other(status: int, said: Any) -> None:
    assert about(status, said) == "model"


@pytest.mark.parametrize(("status", "said"), OF_SOMETHING_ELSE.values(), ids=OF_SOMETHING_ELSE.keys())
def test_what_may_be_about_the_model_or_the_request_says_nothing_of_the_path(status: int, said: Any) -> None:
    assert about(status, said) is None


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("embeddings", "This server does not support embeddings. Start it with `--embeddings`"),
        ("embeddings", "The model does not support Embeddings API"),
        ("chat", "This server does not support completions. Start it without `--embeddings`"),
        ("chat", "The model does not support Chat Completions API"),
        ("completions", "This server does not support completions. Start it without `--embeddings`"),
        ("transcriptions", "The model does not support Transcriptions API"),
        ("transcriptions", "The current model does not support audio input."),
        ("images", "qwen3:8b does not support image generation"),
        ("responses", "The model does not support Responses API"),
    ],
)
def test_a_501_names_what_the_endpoint_does(endpoint: str, said: str) -> None:
    assert about(501, openai(said), endpoint) == "model"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("chat", "The current model does not support audio input."),
        ("chat", "The chat template does not support a system role"),
        ("chat", "This server does not support multimodal. Start it with `--mmproj`"),
        ("chat", "This server does not support embeddings. Start it with `--embeddings`"),
        ("responses", "Streaming is not supported for responses"),
        ("messages", "System messages are not supported"),
        ("messages", "It does not support system messages"),
        ("embeddings", "dimensions are not supported"),
    ],
)
def test_a_501_about_a_feature_of_the_request_says_nothing_of_the_endpoint(endpoint: str, said: str) -> None:
    assert about(501, openai(said), endpoint) is None


def test_no_model_is_missed_for_being_called_like_a_part_of_a_word() -> None:
    for name in ("m", "a", "not", ".", "(", "found"):
        assert scope_of(405, b'{"detail":"Method Not Allowed"}', "/v1/rerank", (name,)) is not None
    assert scope_of(404, b"404 page not found", "/v1/rerank", ("m",)) == "server"
    assert scope_of(404, b"m is not found", "/v1/rerank", ("m",)) is None


@pytest.mark.parametrize("word", ["<", "<style", "support the ", "<a ", "v1 ", "not found "])
def test_no_page_is_so_odd_that_it_takes_long_to_read(word: str) -> None:
    for status in REFUSALS:  # a square of 64 KiB would be minutes
        assert about(status, word.encode() * (65_536 // len(word))) in ("server", "model", None)


@given(
    st.sampled_from(REFUSALS),
    st.binary() | st.text().map(str.encode) | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "message", "detail"]), inner)
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(ENDPOINTS),
    st.lists(st.text(min_size=1)),
)  # fmt: skip
def test_nothing_that_a_server_says_is_too_odd(
    status: int, body: bytes, endpoint: Any, models: list[str]
) -> None:
    assert scope_of(status, body, endpoint.path, models) in ("server", "model", None)
