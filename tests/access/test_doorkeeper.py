"""Who asks: what counts where, what comes first, and what a session is worth when its key is not."""

from __future__ import annotations

from typing import Any

import pytest

from llmgateway.access.doorkeeper import Doorkeeper
from llmgateway.access.sessions import LIFE_S, Sessions
from llmgateway.config.load import build
from llmgateway.config.settings import Config
from llmgateway.errors import INVALID_API_KEY, GatewayError

NOON = 1_800_000_000.0
SOON = NOON + 3_600.0
ALICE = "sk-alice-0123456789abcdefghijklmnopqrstuvwxyz"
BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyzab"
USERS = {"alice": {"keys": [ALICE]}, "bob": {"keys": [{"key": BOB, "expires": "2027-01-15T09:00:00Z"}]}}


def config(**users: Any) -> Config:
    return build({"users": users})


@pytest.fixture
def door() -> Doorkeeper:
    return Doorkeeper(config(**USERS), Sessions(lambda: NOON))


def shows(*, key: str | None = None, token: str | None = None) -> dict[bytes, bytes]:
    """The head of a request, by lower-case name."""
    fields = {b"authorization": f"Bearer {key}".encode()} if key is not None else {}
    return fields | ({b"cookie": f"theme=dark; llmgateway={token}".encode()} if token is not None else {})


def refusal(door: Doorkeeper, named: dict[bytes, bytes], *, now: float = NOON, **ways: Any) -> str:
    with pytest.raises(GatewayError) as caught:
        door.who(named, now=now, **ways)
    assert caught.value.kind == INVALID_API_KEY
    assert ("WWW-Authenticate", "Bearer") in caught.value.headers
    return caught.value.message


def signed_in(door: Doorkeeper, key: str) -> dict[bytes, bytes]:
    return shows(token=door.sign_in(key, {}, now=NOON)[0])


def test_a_key_is_good_everywhere(door: Doorkeeper) -> None:
    assert door.who(shows(key=ALICE), now=NOON).user == "alice"
    assert door.who(shows(key=ALICE), now=NOON, by_session=True, by_config=True).user == "alice"


def test_a_session_is_good_only_where_it_is_let(door: Doorkeeper) -> None:
    named = signed_in(door, ALICE)
    assert door.who(named, now=NOON, by_session=True).user == "alice"
    assert "No API key" in refusal(door, named)
    assert "No API key" in refusal(door, named, by_config=True)


def test_a_key_comes_before_a_session_be_it_a_good_one_or_not(door: Doorkeeper) -> None:
    cookie = signed_in(door, ALICE)
    assert door.who(cookie | shows(key=BOB), now=NOON, by_session=True).user == "bob"
    assert refusal(door, cookie | shows(key="sk-wrong"), by_session=True) == "Invalid API key."


def test_a_session_ends_with_its_key(door: Doorkeeper) -> None:
    alice, bob = signed_in(door, ALICE), signed_in(door, BOB)
    assert "no longer valid" in refusal(door, bob, now=SOON, by_session=True)
    door.adopt(config(bob=USERS["bob"]))
    refusal(door, alice, by_session=True)
    assert door.who(bob, now=NOON, by_session=True).user == "bob"


@pytest.mark.parametrize("meanwhile", [{"bob": USERS["bob"]}, {"carol": USERS["alice"]}, {}])
def test_a_session_whose_key_was_taken_from_its_user_does_not_come_back_with_it(
    door: Doorkeeper, meanwhile: dict[str, Any]
) -> None:
    named = signed_in(door, ALICE)
    door.adopt(config(**meanwhile))
    refusal(door, named, by_session=True)
    door.adopt(config(**USERS))
    refusal(door, named, by_session=True)


def test_signing_in_ends_the_session_that_was_there_and_no_other(door: Doorkeeper) -> None:
    before, other = signed_in(door, ALICE), signed_in(door, ALICE)
    with pytest.raises(GatewayError):
        door.sign_in("sk-wrong", before, now=NOON)
    assert door.who(before, now=NOON, by_session=True).user == "alice"
    after = shows(token=door.sign_in(BOB, before, now=NOON)[0])
    refusal(door, before, by_session=True)
    assert [door.who(each, now=NOON, by_session=True).user for each in (after, other)] == ["bob", "alice"]


def test_a_session_lasts_no_longer_than_its_key(door: Doorkeeper) -> None:
    assert door.sign_in(ALICE, {}, now=NOON)[1] == LIFE_S
    assert door.sign_in(BOB, {}, now=NOON)[1] == SOON - NOON
    for key in (BOB, "sk-wrong"):
        with pytest.raises(GatewayError):
            door.sign_in(key, {}, now=SOON)


def test_signing_out_ends_one_session(door: Doorkeeper) -> None:
    first, second = signed_in(door, ALICE), signed_in(door, ALICE)
    door.sign_out(first)
    door.sign_out(shows())
    assert "No API key" in refusal(door, first, by_session=True)
    assert door.who(second, now=NOON, by_session=True).user == "alice"


def test_who_has_read_the_config_may_look_where_that_is_let_and_is_no_user(door: Doorkeeper) -> None:
    named = shows(key=door.keys.local_credentials)
    reader = door.who(named, now=NOON, by_config=True)
    assert (reader.user, reader.admin) == ("", True)
    assert refusal(door, named, by_session=True) == "Invalid API key."
    door.adopt(config(bob=USERS["bob"]))
    assert refusal(door, named, by_config=True) == "Invalid API key."


@pytest.mark.parametrize("key", [None, "", "local-", "local-None"])
def test_where_there_are_no_keys_nobody_has_read_the_config(door: Doorkeeper, key: str | None) -> None:
    door.adopt(config())
    refusal(door, shows(key=key), by_config=True)


@pytest.mark.parametrize(
    "cookie",
    ["llmgateway={}", "a=b; llmgateway={}", "a=b;llmgateway={}; c", "llmgateway=old; llmgateway={}; x"],
)
def test_a_cookie_is_found_among_others(door: Doorkeeper, cookie: str) -> None:
    token, _ = door.sign_in(ALICE, {}, now=NOON)
    assert door.who({b"cookie": cookie.format(token).encode()}, now=NOON, by_session=True).user == "alice"


@pytest.mark.parametrize("cookie", ["", "{}", "other-llmgateway={}", "llmgateway ={}", 'a="; llmgateway="'])
def test_what_is_no_cookie_of_ours_opens_nothing(door: Doorkeeper, cookie: str) -> None:
    token, _ = door.sign_in(ALICE, {}, now=NOON)
    assert "No API key" in refusal(door, {b"cookie": cookie.format(token).encode()}, by_session=True)
