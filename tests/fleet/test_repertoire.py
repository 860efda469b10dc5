"""Which endpoints a provider has: by its kind, by the config, and by what it has said of itself."""

from __future__ import annotations

from typing import Any

import pytest

from llmgateway.access.keys import Caller
from llmgateway.api.endpoints import BY_NAME
from llmgateway.config.load import build
from llmgateway.errors import ProviderErrored, ProviderUnreachable
from llmgateway.fleet.appearance import shown_reason
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.fleet.repertoire import _MOST_LEARNT, BELIEVED_S
from llmgateway.servers import generic, llamacpp, lmstudio, ollama
from llmgateway.servers.kind import Kind
from llmgateway.servers.known import KINDS
from llmgateway.servers.models import Model

BOB = Caller("bob")


def fleet(**entry: Any) -> Fleet:
    return Fleet(build({"providers": {"rig": {"url": "http://127.0.0.1:9", **entry}}}))


def seen(them: Fleet, *models: str, kind: Kind | None = None, now: float = 0) -> Provider:
    """The provider of a fleet, as one look found it: online, with these models."""
    rig = them.providers["rig"]
    rig.observe(Probe(State.ONLINE, "", {name: Model(name) for name in models or "m"}, kind=kind), now=now)
    return rig


def lacks(rig: Provider, model: str = "m") -> set[str]:
    return {name for name in BY_NAME if not rig.has_endpoint(name, model)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_provider_has_what_its_kind_has(kind: Kind) -> None:
    rig = seen(fleet(), kind=kind)
    spoken = kind.speaks | kind.may_speak
    foreign = {name for name, each in BY_NAME.items() if each.dialect.name not in spoken}
    assert lacks(rig) == kind.lacks | foreign
    assert {"chat", "completions", "embeddings", "responses", "messages"}.isdisjoint(lacks(rig))


def test_a_kind_in_the_config_overrules_what_the_server_looks_like() -> None:
    them = fleet()
    rig = seen(them, kind=llamacpp.KIND)
    rig.adopt(fleet(kind="lmstudio").providers["rig"].config, rig.health)
    assert rig.kind is lmstudio.KIND and not rig.has_endpoint("rerank")
    seen(them, kind=lmstudio.KIND)  # as a probe by such a config takes it
    rig.adopt(fleet().providers["rig"].config, rig.health)
    assert rig.kind is llamacpp.KIND and rig.has_endpoint("rerank"), "and is gone as it came"
    assert not rig.kind_is_known, "so that it is looked for"


def test_endpoints_in_the_config_overrule_its_kind_and_all_that_it_says() -> None:
    rig = seen(fleet(kind="ollama", endpoints=["rerank", "chat"]))
    assert lacks(rig) == BY_NAME.keys() - {"rerank", "chat"}
    rig.said_it_lacks("chat", "m", every=True, now=0)
    assert rig.has_endpoint("chat", "m")
    assert rig.has_endpoint("", "m"), "what has no name is had by everybody"


def test_what_it_says_that_it_lacks_is_believed_for_an_hour() -> None:
    them = fleet()
    rig = seen(them, kind=generic.KIND)
    assert them.serving(BOB, "m", "rerank") == [rig]
    rig.said_it_lacks("rerank", "m", every=True, now=10)
    assert not them.serving(BOB, "m", "rerank") and them.serving(BOB, "m", "chat") == [rig]
    seen(them, now=9 + BELIEVED_S)
    assert not them.serving(BOB, "m", "rerank")
    seen(them, now=10 + BELIEVED_S)
    assert them.serving(BOB, "m", "rerank") == [rig]


def test_what_it_lacks_for_one_model_it_may_have_for_another() -> None:
    rig = seen(fleet(kind="ollama"), "m:latest", "n:latest")
    rig.said_it_lacks("embeddings", "m", every=False, now=0)
    assert not rig.has_endpoint("embeddings", "m") and not rig.has_endpoint("embeddings", "m:latest")
    assert rig.has_endpoint("embeddings", "n")
    rig.said_it_lacks("embeddings", "n", every=True, now=0)
    assert not rig.has_endpoint("embeddings", "n") and not rig.has_endpoint("embeddings", "else")


def loses_sight(rig: Provider) -> None:
    rig.observe(Probe(State.OFFLINE, "gone", certain=True), now=0)


def loads(rig: Provider) -> None:
    rig.warm("it is loading its model")


def refuses_a_request(rig: Provider) -> None:
    rig.fared(ProviderUnreachable("rig", "refused"), now=0)


def has_another_model(rig: Provider) -> None:
    rig.observe(Probe(State.ONLINE, "", {"m": Model("m"), "n": Model("n")}), now=0)


def is_of_another_kind(rig: Provider) -> None:
    rig.observe(Probe(State.ONLINE, "", {"m": Model("m")}, kind=ollama.KIND), now=0)


RESTARTS = (loses_sight, loads, refuses_a_request, has_another_model, is_of_another_kind)


@pytest.mark.parametrize("restarts", RESTARTS, ids=lambda each: each.__name__)
def test_it_is_asked_again_once_it_may_have_been_started_anew(restarts: Any) -> None:
    them = fleet()
    rig = seen(them, kind=llamacpp.KIND)
    rig.said_it_lacks("embeddings", "m", every=True, now=0)
    assert not them.serving(BOB, "m", "embeddings")
    restarts(rig)
    seen(them, *rig.models)
    assert them.serving(BOB, "m", "embeddings") == [rig]


def test_what_passes_is_no_restart() -> None:
    them = fleet()
    rig = seen(them, kind=llamacpp.KIND)
    rig.said_it_lacks("embeddings", "m", every=True, now=0)
    rig.fared(ProviderErrored("rig", "answered 500"), now=0)
    rig.observe(Probe(State.OFFLINE, "silent", silent=True), now=0)
    seen(them, kind=llamacpp.KIND)
    assert not them.serving(BOB, "m", "embeddings")


def test_who_waits_is_told_when_it_changes() -> None:
    told = []
    them = fleet()
    rig = seen(them)
    them.on_change(lambda: told.append(sorted(rig.repertoire.learnt)))
    rig.said_it_lacks("rerank", "m", every=True, now=0)
    rig.said_it_lacks("rerank", "m", every=False, now=0)
    assert told == [[("rerank", "")]], "the second was no news"
    seen(them, now=BELIEVED_S)
    assert told == [[("rerank", "")], []]


def test_what_has_worked_is_missing_of_the_model_alone_and_until_the_next_look() -> None:
    them = fleet(kind="ollama")
    rig = seen(them, "m:latest", "n:latest")
    rig.repertoire.worked.add("chat")
    rig.said_it_lacks("chat", "m", every=True, now=5)
    assert not rig.has_endpoint("chat", "m:latest") and rig.has_endpoint("chat", "n")
    seen(them, "m:latest", "n:latest", now=6)
    assert rig.has_endpoint("chat", "m:latest")
    rig.said_it_lacks("chat", "m", every=False, now=7)
    seen(them, "m:latest", "n:latest", now=8)
    assert not rig.has_endpoint("chat", "m:latest"), "what is said of a model is believed"
    loses_sight(rig)
    seen(them, "m:latest", "n:latest", now=9)
    rig.said_it_lacks("chat", "m", every=True, now=9)
    assert not rig.has_endpoint("chat", "n"), "it has been started anew, and nothing has worked since"


def test_what_it_says_that_it_lacks_is_shown_with_its_state() -> None:
    rig = seen(fleet())
    assert shown_reason(rig, 0) == ""
    rig.said_it_lacks("rerank", "m", every=True, now=0)
    rig.said_it_lacks("embeddings", "m", every=False, now=0)
    assert shown_reason(rig, 0) == "it says that it has no rerank, embeddings for 'm'"
    for name in ("speech", "images", "score"):
        rig.said_it_lacks(name, "m", every=True, now=0)
    assert shown_reason(rig, 0).endswith("embeddings for 'm', speech, images and 1 more")


def test_what_is_learnt_has_a_bound() -> None:
    rig = seen(fleet(), *map(str, range(_MOST_LEARNT + 10)))
    for number in range(_MOST_LEARNT + 10):
        rig.said_it_lacks("chat", str(number), every=False, now=0)
    assert len(rig.repertoire.learnt) == _MOST_LEARNT
    assert rig.has_endpoint("chat", "9") and not rig.has_endpoint("chat", "10")
