"""What is read of a list of models, whoever wrote it, and how a model is listed by us."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmgateway.api.endpoints import ELSEWHERE
from llmgateway.errors import NO_PROVIDER, GatewayError
from llmgateway.servers.models import Listing, Model, NotAnLLMServer, model_entry, read_listing


def models_in(listing: Any) -> dict[str, Model]:
    return read_listing(json.dumps(listing).encode()).models


@pytest.mark.parametrize("empty", [{"object": "list", "data": None}, {"data": []}])
def test_a_server_without_models_is_an_llm_server_all_the_same(empty: Any) -> None:
    assert models_in(empty) == {}


@pytest.mark.parametrize(("sender", "way"), [("b", ("b", "c")), ("\\ud800", ()), ("\udcff", ())])
def test_a_gateway_whose_name_is_no_text_is_left_out_of_the_way(sender: str, way: tuple[str, ...]) -> None:
    body = '{"via": "%s", "data": [{"id": "m", "via": ["\udcff", "c", "\\ud800"]}]}' % sender  # noqa: UP031
    listing = read_listing(body.encode("utf-8", "surrogateescape"))
    assert (listing.via, listing.models["m"].via) == (way[:1], way)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Router</title>", "web page"),
        (b"\n <html>", "web page"),
        (b"", "not JSON"),
        (b"ok", "not JSON"),
        (gzip.compress(b'{"data": []}', mtime=0), "compressed"),
        (b"[" * 200_000, "not JSON"),
        (b'{"data": [' + b'{"id": "m"}, ' * 100_000 + b"]}", "not JSON"),
        (b"[]", "not a list of models"),
        (b"{}", "not a list of models"),
        (b'{"models": [{"name": "m"}]}', "not a list of models"),
        (b'{"data": {"id": "m"}}', "not a list of models"),
        (b'{"data": false}', "not a list of models"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
def test_what_is_no_list_of_models_says_what_it_is_instead(body: bytes, words: str) -> None:
    with pytest.raises(NotAnLLMServer, match=words):
        read_listing(body)


BAD_ENTRIES = [
    (b'"m"', "('m')"),
    (b"null", "(None)"),
    (b"7", "(7)"),
    (b"[]", "([])"),
    (b"{}", "(none)"),
    (b'{"name": "m"}', "(none)"),
    (b'{"id": null}', "(None)"),
    (b'{"id": 3}', "(3)"),
    (b'{"id": true}', "(True)"),
    (b'{"id": ""}', "('')"),
    (b'{"id": ["m"]}', "(['m'])"),
    (b'{"id": {"m": 1}, "owned_by": []}', "({'m': 1})"),
    (b'{"id": "%b"}' % (b"m" * 1_001), "('%s...)" % ("m" * 59)),
    (b'{"id": "\\ud800"}', "('\\ud800')"),
    (b'{"id": "\xff"}', "('\\udcff')"),
    (b'{"id": NaN}', "(nan)"),
]
each_bad_entry = pytest.mark.parametrize(
    ("entry", "shown"), BAD_ENTRIES, ids=[repr(entry[:30]) for entry, _ in BAD_ENTRIES]
)


@each_bad_entry
def test_a_bad_entry_is_left_out_and_told_and_the_others_hold(entry: bytes, shown: str) -> None:
    for entries in (b'{"id": "good"}, %b' % entry, b'%b, {"id": "good", "created": NaN}' % entry):
        listing = read_listing(b'{"data": [%b]}' % entries)
        assert listing.models == {"good": Model("good")}
        assert listing.trouble == f"in its list of models 1 entry has no usable 'id' {shown}"


@each_bad_entry
def test_a_list_of_bad_entries_alone_is_no_list_of_models(entry: bytes, shown: str) -> None:
    with pytest.raises(NotAnLLMServer, match="not a list of models") as told:
        read_listing(b'{"data": [%b, %b]}' % (entry, entry))
    assert shown in str(told.value)


@pytest.mark.parametrize(
    "body", [b'\xef\xbb\xbf{"data": [{"id": "m"}]}', b'{"data": [{"id": "m", "x": NaN}]}']
)
def test_what_python_takes_for_json_is_taken(body: bytes) -> None:
    assert read_listing(body) == Listing({"m": Model("m")})


def test_of_models_of_one_name_the_first_holds_and_the_others_are_told() -> None:
    one = {"id": "m", "created": 1, "max_model_len": 5}
    listing = read_listing(json.dumps({"data": [one, {"id": "m", "created": 2}, {"id": "m"}, {}]}).encode())
    assert listing.models == {"m": Model("m", 1, 5)}
    assert listing.trouble == (
        "in its list of models 1 entry has no usable 'id' (none), and 2 entries repeat an earlier one"
    )


@pytest.mark.parametrize("odd", [True, -1, 0, 1.5, "7", None, [], {}, 2**70])
def test_odd_facts_about_a_model_are_left_out(odd: Any) -> None:
    entry = {"id": "m", "created": odd, "meta": odd, "max_model_len": odd, "owned_by": odd}
    listing = read_listing(json.dumps({"data": [entry]}).encode())
    told = frozenset({odd}) if isinstance(odd, str) else frozenset()
    assert listing == Listing({"m": Model("m")}, told)


@given(st.text(min_size=1, max_size=1_000))
@example('"]}\r\nx-evil: 1\x00\x1b[2J')
def test_a_hostile_model_id_stays_one_json_string(name: str) -> None:
    assert models_in({"data": [{"id": name}]}) == {name: Model(name)}
    error = GatewayError(NO_PROVIDER, f"No online provider serving model '{name}' for this user.")
    assert json.loads(ELSEWHERE.error_body(error, "id"))["error"]["message"] == error.message


def test_a_flood_of_models_is_bounded() -> None:
    body = json.dumps({"data": [{"id": f"m{number}"} for number in range(20_000)]}).encode()
    listing = read_listing(body)
    assert len(listing.models) == 10_000
    assert listing.trouble == "in its list of models only the first 10,000 of 20,000 entries are read"


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
        ({"value": "unloaded", "failed": True, "exit_code": 1}, False),
        ({"value": "downloading", "progress": {}}, False),
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
    asleep = status == {"value": "sleeping"}
    expected = {"m": Model("m", loaded=loaded, asleep=asleep)}
    assert models_in({"data": [{"id": "m", "status": status}]}) == expected


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
