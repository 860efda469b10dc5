"""Who may know of which provider, and what probes and traffic make of its state."""

from __future__ import annotations

from typing import Any

import pytest

from llmgateway.access.keys import Caller, KeyRing
from llmgateway.config.load import build
from llmgateway.config.settings import Config
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.servers import generic, ollama
from llmgateway.servers.models import Model

ALICE = "sk-alice-0123456789abcdefghijklmnopqrstuvwxyz"
PEOPLE: dict[str, Any] = {
    "users": {"alice": {"keys": [ALICE]}, "bob": {}, "carol": {}},
    "groups": {"family": ["alice", "bob"], "office": ["carol"]},
}
SAYS = {
    "+": Probe(State.ONLINE, "", {"m": Model("m")}),
    "-": Probe(State.OFFLINE, "it is unreachable"),
    "w": Probe(State.WARMING, "it is loading its model"),
    "!": Probe(State.MISCONFIGURED, "it refuses the key", certain=True),
}
SHOWN = {
    State.UNKNOWN: "?",
    State.ONLINE: "+",
    State.OFFLINE: "-",
    State.WARMING: "w",
    State.MISCONFIGURED: "!",
}

WAKES: dict[str, Any] = {"wake": {"mac": "aa:bb:cc:dd:ee:ff"}}


def config(*providers: dict[str, Any], **sections: Any) -> Config:
    entries = {
        f"p{number}": {"url": "http://127.0.0.1:9", **settings}
        for number, settings in enumerate(providers, start=1)
    }
    return build({**PEOPLE, "providers": entries, **sections})


def fleet(*providers: dict[str, Any], models: str = "m") -> Fleet:
    """A fleet of online providers, p1, p2, ..., each with these models."""
    made = Fleet(config(*providers))
    for provider in made.providers.values():
        provider.observe(Probe(State.ONLINE, "", {name: Model(name) for name in models.split()}), now=0)
    return made


def single(fall: int = 2, rise: int = 1) -> Provider:
    """A provider of which nothing is known yet."""
    return Fleet(config({}, health={"fall": fall, "rise": rise})).providers["p1"]


def states(provider: Provider, probes: str, *, now: float = 0) -> str:
    """The states after each of these probes."""
    seen = ""
    for probe in probes:
        provider.observe(SAYS[probe], now=now)
        seen += SHOWN[provider.state]
    return seen


# --- who sees what -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "seen_by"),
    [
        ({}, "alice bob carol"),
        ({"owner": "alice"}, "alice"),
        ({"owner": "bob"}, "bob"),
        ({"owner": "alice", "share": ["bob"]}, "alice bob"),
        ({"owner": "alice", "share": ["family"]}, "alice bob"),
        ({"owner": "alice", "share": ["office"]}, "alice carol"),
        ({"owner": "alice", "share": ["office", "bob"]}, "alice bob carol"),
        ({"owner": "alice", "share": ["everyone"]}, "alice bob carol"),
    ],
    ids=str,
)
def test_a_provider_is_seen_by_its_owner_and_those_it_is_shared_with(
    settings: dict[str, Any], seen_by: str
) -> None:
    them = fleet(settings)
    callers = [
        Caller("alice", frozenset({"family"})),
        Caller("bob", frozenset({"family"})),
        Caller("carol", frozenset({"office"})),
    ]
    assert " ".join(caller.user for caller in callers if them.usable_by(caller)) == seen_by
    for caller in callers:
        assert bool(them.models_for(caller)) is bool(them.usable_by(caller))


def test_a_key_of_the_config_sees_what_its_user_sees() -> None:
    known = config({"owner": "bob", "share": ["family"]}, {"owner": "carol"})
    caller = KeyRing(known.users, known.groups).recognise([ALICE], now=0)
    assert [p.usable_by(caller) for p in Fleet(known).providers.values()] == [True, False]


def test_providers_are_given_in_the_order_of_the_config_file() -> None:
    assert [provider.name for provider in fleet({}, {}, {}).usable_by(Caller("bob"))] == ["p1", "p2", "p3"]


def test_whom_a_caller_may_use_does_not_depend_on_who_is_up() -> None:
    them = fleet({}, {}, {}, {})
    for provider, state in zip(them.providers.values(), "-w!", strict=False):
        states(provider, state * 2)
    assert [provider.name for provider in them.usable_by(Caller("bob"))] == ["p1", "p2", "p3", "p4"]


@pytest.mark.parametrize(
    ("settings", "probes", "listed"),
    [
        ({}, "", False),
        ({}, "+", True),
        ({}, "+w", True),  # a request for it would wait until it has loaded
        ({}, "+--", False),
        ({}, "+!", False),
        (WAKES, "", False),  # nobody knows yet what it serves,
        ({**WAKES, "models": ["m"]}, "", True),  # but for the config
        (WAKES, "--", False),
        (WAKES, "+--", True),
        (WAKES, "+w", True),
        (WAKES, "+!", False),
        (WAKES, "+!--", True),
    ],
    ids=str,
)
def test_models_are_listed_while_a_request_for_them_would_be_served_or_could_wait(
    settings: dict[str, Any], probes: str, listed: bool
) -> None:
    them = Fleet(config(settings))
    states(them.providers["p1"], probes)
    assert bool(them.models_for(Caller("bob"))) is listed


@pytest.mark.parametrize(
    ("route", "names"),
    [("any", ["p1", "p2", "p3"]), ("prefer_own", ["p1", "p2", "p3"]), ("only_own", ["p2"])],
)
def test_only_own_hides_what_belongs_to_others_or_everybody(route: Any, names: list[str]) -> None:
    them = fleet({}, {"owner": "bob"}, {"owner": "alice", "share": ["bob"]})
    caller = Caller("bob", route=route)
    assert [provider.name for provider in them.usable_by(caller)] == names
    assert {provider for _, provider in them.models_for(caller).values()} == {names[0]}


def test_a_model_of_several_providers_is_one_entry_of_the_first_that_is_online() -> None:
    them = fleet({}, {}, models="a b")
    them.providers["p2"].models = {"b": Model("b", context_length=2), "c": Model("c")}
    assert them.models_for(Caller("bob")) == {
        "a": (Model("a"), "p1"),
        "b": (Model("b"), "p1"),
        "c": (Model("c"), "p2"),
    }
    states(them.providers["p1"], "--")
    assert them.models_for(Caller("bob")) == {
        "b": (Model("b", context_length=2), "p2"),
        "c": (Model("c"), "p2"),
    }


def test_a_key_that_is_limited_to_models_sees_only_those() -> None:
    limited = {"key": ALICE, "models": ["qwen3-*"]}
    known = config({}, users={"alice": {"keys": [limited]}, "bob": {}, "carol": {}})
    caller = KeyRing(known.users, known.groups).recognise([ALICE], now=0)
    assert list(fleet({}, models="qwen3-8b llama qwen3-30b").models_for(caller)) == ["qwen3-8b", "qwen3-30b"]


def test_the_kind_of_a_server_stays_known_until_it_tells_another() -> None:
    provider = single()
    assert provider.kind is generic.KIND
    provider.observe(Probe(State.ONLINE, kind=ollama.KIND), now=0)
    states(provider, "--w+")
    assert provider.kind is ollama.KIND
    provider.observe(Probe(State.ONLINE, kind=generic.KIND), now=0)
    assert provider.kind is generic.KIND


# --- the state machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fall", "rise", "probes", "expected"),
    [
        (2, 1, "", ""),
        (2, 1, "+", "+"),
        (2, 3, "+", "+"),  # the first answer counts at once,
        (3, 1, "-", "-"),  # whatever it is
        (3, 3, "w", "w"),
        (3, 3, "!", "!"),
        (2, 1, "+-+", "+++"),
        (2, 1, "+--", "++-"),
        (2, 1, "+-+-+-", "++++++"),  # only failures in a row count
        (3, 1, "+--+---", "++++++-"),
        (1, 1, "+-+", "+-+"),
        (2, 1, "--+", "--+"),
        (2, 2, "-++", "--+"),
        (2, 3, "-++-+++", "------+"),
        (2, 2, "+--+-++", "++----+"),
        (2, 1, "w-+", "ww+"),
        (2, 1, "w--", "ww-"),
        (2, 3, "w+", "w+"),  # it said that it would come
        (2, 1, "+w", "+w"),
        (2, 3, "-w+", "-w+"),
        (3, 1, "+!", "+!"),  # nothing that waiting would mend
        (3, 1, "+!-", "+!-"),
        (3, 3, "!+++", "!!!+"),
        (2, 1, "!+", "!+"),
        (2, 1, "-!+", "-!+"),
        (2, 1, "+-!+-", "++!++"),
    ],
)
def test_probes_change_the_state(fall: int, rise: int, probes: str, expected: str) -> None:
    assert states(single(fall, rise), probes) == expected


def test_a_change_of_state_starts_the_count_anew() -> None:
    provider = single(fall=3)
    states(provider, "+--")
    provider.warm("it is loading its model")
    assert states(provider, "--") == "ww"


def test_a_state_comes_with_the_reason_of_the_probe_that_made_it() -> None:
    provider = single()
    assert (provider.state, provider.reason, provider.online) == (State.UNKNOWN, "not asked yet", False)
    states(provider, "+-")
    assert (provider.online, provider.reason) == (True, "")
    states(provider, "-")
    assert (provider.online, provider.reason) == (False, "it is unreachable")
    provider.observe(Probe(State.OFFLINE, "it timed out"), now=0)
    assert provider.reason == "it timed out"


def test_the_models_stay_through_a_blip_and_change_with_the_next_list() -> None:
    provider = single()
    states(provider, "+--w!")
    assert set(provider.models) == {"m"}
    provider.observe(Probe(State.ONLINE, "", {"n": Model("n")}), now=0)
    assert set(provider.models) == {"n"}
    provider.observe(Probe(State.ONLINE, "", {}), now=0)
    assert not provider.models


def test_a_model_that_is_being_loaded_makes_a_provider_warming_until_the_next_good_probe() -> None:
    provider = single(rise=3)
    states(provider, "+")
    provider.warm("it is loading its model")
    assert (provider.state, provider.reason) == (State.WARMING, "it is loading its model")
    assert states(provider, "+") == "+"


# --- what it can take --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told", "capacity"),
    [
        ({}, [], None),
        ({}, [None], None),
        ({}, [4], 4),
        ({}, [4, None], 4),  # a probe that could not ask changes nothing
        ({}, [4, 2], 2),
        ({"slots": 3}, [], 3),
        ({"slots": 3}, [8], 3),
    ],
    ids=str,
)
def test_the_config_knows_the_slots_best_then_the_server(
    settings: dict[str, Any], told: list[int | None], capacity: int | None
) -> None:
    provider = Fleet(config(settings)).providers["p1"]
    for slots in told:
        provider.observe(Probe(State.ONLINE, "", {"m": Model("m")}, slots), now=0)
    assert provider.capacity == capacity


@pytest.mark.parametrize(
    ("slots", "in_flight", "free"),
    [(None, 0, True), (None, 999, True), (2, 1, True), (2, 2, False), (2, 3, False)],
)
def test_a_slot_is_free_until_all_are_taken(slots: int | None, in_flight: int, free: bool) -> None:
    provider = Fleet(config({"slots": slots})).providers["p1"]
    provider.in_flight = in_flight
    assert provider.has_free_slot is free
    assert provider.has_room_for("m") is free


def test_who_listens_hears_of_every_change_that_could_matter_to_a_waiter_and_of_nothing_else() -> None:
    them = Fleet(config({}, {}))
    provider = them.providers["p1"]
    heard: list[str] = []
    them.on_change(
        lambda: heard.append(f"{SHOWN[provider.state]} {provider.capacity} {len(provider.models)}")
    )
    one, two = {"m": Model("m")}, {"m": Model("m"), "n": Model("n")}
    for probe in (
        Probe(State.ONLINE, "", one),
        Probe(State.ONLINE, "", one),
        Probe(State.ONLINE, "", one, 2),
        Probe(State.ONLINE, "", one, 2),
        Probe(State.ONLINE, "", two, 2),
        Probe(State.OFFLINE, "it timed out"),
        Probe(State.OFFLINE, "it timed out"),
    ):
        provider.observe(probe, now=0)
    provider.warm("it is loading its model")
    assert heard == ["+ None 1", "+ 2 1", "+ 2 2", "- 2 2", "w 2 2"]


# --- another config ----------------------------------------------------------------------------------


def entry(**settings: Any) -> dict[str, Any]:
    return {"url": "http://127.0.0.1:9", **settings}


def providers(**entries: dict[str, Any]) -> Config:
    return build({**PEOPLE, "providers": entries})


def met(provider: Provider) -> Provider:
    """A provider of which much is known."""
    provider.observe(Probe(State.ONLINE, "", {"m": Model("m", context_length=4096)}, 3), now=0)
    for _ in range(5):
        provider.fared_badly(None, now=0)
    provider.in_flight = 2
    return provider


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"slots": 1},
        {"weight": 2},
        {"owner": "alice", "share": ["family"]},
        {"timeouts": {"idle": "1s"}},
        WAKES,
        {"url": "http://127.0.0.1:9/v1"},  # what was meant before
    ],
    ids=str,
)
def test_a_provider_that_is_reached_as_before_keeps_what_is_known_of_it(settings: dict[str, Any]) -> None:
    them = Fleet(providers(rig=entry()))
    rig = met(them.providers["rig"])
    config = providers(rig=entry(**settings))
    assert not them.adopt(config)
    assert them.providers["rig"] is rig
    assert (rig.state, list(rig.models), rig.in_flight) == (State.ONLINE, ["m"], 2)
    assert rig.capacity == (config.providers["rig"].slots or 3)
    assert not rig.conduct.machine.lets_through(1)
    assert (rig.config, rig.gone) == (config.providers["rig"], False)


@pytest.mark.parametrize(
    "settings", [{"url": "http://127.0.0.1:10"}, {"api_key": "sk-new"}, {"headers": {"X-New": "1"}}], ids=str
)
def test_a_provider_that_is_reached_in_another_way_is_another_one(settings: dict[str, Any]) -> None:
    them = Fleet(providers(rig=entry()))
    old = met(them.providers["rig"])
    assert them.adopt(providers(rig=entry(**settings))) == (old,)
    new = them.providers["rig"]
    assert new is not old
    assert (new.state, dict(new.models), new.capacity, new.in_flight) == (State.UNKNOWN, {}, None, 0)
    assert new.conduct.machine.lets_through(0)
    assert (old.gone, new.gone, old.in_flight) == (True, False, 2)


def test_providers_come_and_go_and_stand_in_the_order_of_the_new_file() -> None:
    them = Fleet(providers(a=entry(), b=entry(), c=entry()))
    c = them.providers["c"]
    b = them.providers["b"]
    assert them.adopt(providers(d=entry(), c=entry(), a=entry(slots=2))) == (b,)
    assert list(them.providers) == ["d", "c", "a"]
    assert them.providers["c"] is c


def test_new_health_settings_hold_for_every_provider() -> None:
    them = fleet({}, {})
    them.adopt(config({}, {}, health={"fall": 1}))
    for provider in them.providers.values():
        assert states(provider, "-") == "-"


def test_who_listens_hears_of_a_new_config_once_when_it_is_in_force() -> None:
    them = Fleet(providers(a=entry(), b=entry()))
    heard: list[str] = []
    them.on_change(lambda: heard.append(" ".join(them.providers)))
    them.adopt(providers(c=entry(), a=entry(slots=2)))
    assert heard == ["c a"]


@pytest.mark.parametrize(
    ("before", "after", "served"),
    [
        (["a"], ["b", "c"], "b c"),  # a new list counts at once
        (["a"], None, "a"),  # the last known ones stay until the server has been asked
        (None, ["m", "b"], "m b"),
        (["m", "b"], ["m", "b"], "m b"),
    ],
    ids=str,
)
def test_a_new_list_of_models_counts_at_once_and_none_means_to_ask(
    before: list[str] | None, after: list[str] | None, served: str
) -> None:
    them = Fleet(providers(rig=entry(**({"models": before} if before else {}))))
    rig = met(them.providers["rig"])
    them.adopt(providers(rig=entry(**({"models": after} if after else {}))))
    assert them.providers["rig"] is rig
    assert " ".join(rig.models) == served
    if "m" in rig.models:
        assert rig.models["m"].context_length == 4096, "what the server told of it stays true"
