"""API keys: how they are made, who is recognised by them, and what they are good for."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from llmgateway.access.keys import Caller, KeyRing, digest, mint, offered_keys
from llmgateway.config.load import build
from llmgateway.errors import INVALID_API_KEY, MODEL_NOT_ALLOWED, GatewayError
from llmgateway.http.headers import request_head

ALICE = "sk-alice-0123456789abcdefghijklmnopqrstuvwxyz"
LAPTOP = "sk-laptop-0123456789abcdefghijklmnopqrstuvwxy"
BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyzab"
STRANGER = "sk-stranger-0123456789abcdefghijklmnopqrstuvw"
NOON = 1_800_000_000.0
USERS = {
    "alice": {
        "keys": [ALICE, {"name": "laptop", "hash": f"sha256:{hashlib.sha256(LAPTOP.encode()).hexdigest()}"}],
        "route": "prefer_own",
    },
    "bob": {"keys": [{"key": BOB, "expires": "2027-01-15T08:00:00Z", "models": ["qwen3-*", "demo"]}]},
}


def ring(users: Any = USERS, groups: Any = None) -> KeyRing:
    config = build({"users": users, "groups": groups or {}})
    return KeyRing(config.users, config.groups)


def refusal(*offered: str, now: float = NOON) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        ring().recognise(offered, now=now)
    assert caught.value.kind == INVALID_API_KEY
    assert ("WWW-Authenticate", "Bearer") in caught.value.headers
    return caught.value


def test_a_minted_key_is_sk_and_256_random_bits() -> None:
    keys = {mint() for _ in range(1_000)}
    assert len(keys) == 1_000
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key) for key in keys)
    for position in range(3, 45):  # the last character holds but 4 bits
        assert len({key[position] for key in keys}) > 32


def test_a_digest_is_the_sha_256_of_the_whole_key() -> None:
    assert digest(ALICE) == hashlib.sha256(ALICE.encode()).digest()


def test_a_caller_is_made_once_be_the_key_shown_or_all_callers_asked_for() -> None:
    keys = ring(groups={"staff": ["bob", "alice"], "night": ["bob"]})
    shown = keys.recognise([BOB], now=NOON - 1)
    assert shown.groups == {"staff", "night"}
    assert [caller.key_name for caller in keys.callers] == [None, "laptop", None]
    assert [caller.user for caller in keys.callers] == ["alice", "alice", "bob"]
    assert keys.callers[2] is shown is keys.find(digest(BOB))
    assert keys.find(digest("sk-of-nobody")) is None


def test_a_key_names_its_user_in_whatever_form_the_file_has_it() -> None:
    caller = ring().recognise([ALICE], now=NOON)
    assert (caller.user, caller.key_name, caller.route) == ("alice", None, "prefer_own")
    caller = ring().recognise([LAPTOP], now=NOON)
    assert (caller.user, caller.key_name, caller.route) == ("alice", "laptop", "prefer_own")
    assert ring().recognise([BOB], now=NOON - 1).route == "any"


def test_a_caller_is_in_the_groups_of_their_user() -> None:
    groups = {"family": ["alice", "bob"], "office": ["alice"], "others": []}
    assert ring(groups=groups).recognise([ALICE], now=NOON).groups == {"family", "office"}
    assert ring(groups=groups).recognise([BOB], now=NOON - 1).groups == {"family"}


@pytest.mark.parametrize(
    "offered", [(STRANGER, ALICE), (ALICE, STRANGER), (BOB, ALICE), ("", ALICE), ("\udcff", ALICE)]
)
def test_any_offered_key_that_is_good_will_do(offered: tuple[str, ...]) -> None:
    assert ring().recognise(offered, now=NOON).user == "alice"


def test_the_first_good_key_counts() -> None:
    assert ring().recognise([BOB, ALICE], now=NOON - 1).user == "bob"


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ((), "No API key given"),
        ((STRANGER,), "Invalid API key"),
        ((ALICE[:-1],), "Invalid API key"),
        ((ALICE + " ",), "Invalid API key"),
        ((ALICE.upper(),), "Invalid API key"),
        (("",), "Invalid API key"),
        (("\udc80\udcff",), "Invalid API key"),
        ((hashlib.sha256(ALICE.encode()).hexdigest(),), "Invalid API key"),
        ((BOB,), "expired"),
    ],
)
def test_any_other_key_is_refused_in_words_that_do_not_repeat_it(
    offered: tuple[str, ...], words: str
) -> None:
    error = refusal(*offered)
    assert words in error.message
    assert not any(key in error.message for key in offered if key)


@pytest.mark.parametrize(("now", "good"), [(NOON - 0.001, True), (NOON, False), (NOON + 1, False)])
def test_a_key_is_good_until_the_moment_it_expires(now: float, good: bool) -> None:
    if good:
        assert ring().recognise([BOB], now=now).user == "bob"
    else:
        assert "expired" in refusal(BOB, now=now).message


def test_without_users_every_key_is_refused() -> None:
    with pytest.raises(GatewayError):
        ring({}).recognise([ALICE], now=NOON)


@pytest.mark.parametrize(
    ("globs", "model", "allowed"),
    [
        ([], "anything/at:all", True),
        (["qwen3-*"], "qwen3-8b", True),
        (["qwen3-*"], "qwen3-", True),
        (["qwen3-*"], "my-qwen3-8b", False),
        (["qwen3-*"], "Qwen3-8b", False),
        (["qwen3-*"], "qwen3-8b\nx", True),
        (["*"], "Qwen/Qwen3-8B", True),
        (["Qwen/*"], "Qwen/a/b", True),
        (["demo"], "demo", True),
        (["demo"], "demo\n", False),
        (["demo"], "demo2", False),
        (["a.c"], "abc", False),
        (["m?"], "m1", True),
        (["m?"], "m", False),
        (["a", "b"], "b", True),
    ],
)
def test_globs_say_which_models_a_key_is_good_for(globs: list[str], model: str, allowed: bool) -> None:
    key: dict[str, Any] = {"key": ALICE, **({"models": globs} if globs else {})}
    caller = ring({"alice": {"keys": [key]}}).recognise([ALICE], now=NOON)
    assert caller.may_use(model) is allowed
    if allowed:
        caller.require(model)
        return
    with pytest.raises(GatewayError) as caught:
        caller.require(model)
    assert caught.value.kind == MODEL_NOT_ALLOWED
    assert f"'{model}'" in caught.value.message


def test_a_caller_whose_key_names_no_models_may_use_all() -> None:
    assert Caller("alice").may_use("m")


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ([], []),
        (["Authorization: Bearer K"], [b"K"]),
        (["authorization: bearer K"], [b"K"]),
        (["AUTHORIZATION: BEARER K"], [b"K"]),
        (["Authorization: Bearer   K  "], [b"K"]),
        (["Authorization: Bearer \xff"], [b"\xff"]),
        (["Authorization: Bearer"], []),
        (["Authorization: Bearer "], []),
        (["Authorization: K"], []),
        (["Authorization: BearerK"], []),
        (["Authorization: Basic K"], []),
        (["Authorization: Basic Bearer K"], []),
        (["Authorization: "], []),
        (["X-Api-Key: K"], [b"K"]),
        (["x-api-key:  K "], [b"K"]),
        (["x-api-key: "], []),
        (["x-api-key: A", "Authorization: Bearer B"], [b"B", b"A"]),
        (["x-api-key: A", "Authorization: Basic B"], [b"A"]),
    ],
)
def test_a_request_shows_keys_in_two_headers(lines: list[str], keys: list[bytes]) -> None:
    fields = [line.encode("latin-1").partition(b": ")[::2] for line in lines]
    assert list(offered_keys(request_head(fields).named)) == keys


def test_header_bytes_that_are_not_utf_8_are_hashed_as_they_came() -> None:
    assert digest(b"\xff\x80") == hashlib.sha256(b"\xff\x80").digest()
