"""scripts/clients: it takes what docs/clients.md says for its settings, and tells what came of a client."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_ollama_api import ON, as_ollama
from tests.journeys.test_ollama_client import real_enough
from tests.llamacpp.fixtures import LlamaServer
from tests.script import answer
from tests.web.test_ollama_pages import TOLD

SCRIPTS: Final = Path(__file__).resolve().parent.parent / "scripts"
HERE: Final = Path(sys.executable).parent
A_LINE: Final = {"endpoint": "/v1/chat/completions", "status": 200, "stream": True, "outcome": "ok"}


def imported(name: str) -> Any:
    """Import one of the scripts; each imports its neighbours by their names."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


kinds, page, trial, clients = map(imported, ("clients_kinds", "clients_page", "clients_trial", "clients"))
OWN: Final = {
    page.ADDRESS: "http://127.0.0.1:1",
    page.KEY: KEY,
    page.MODEL: "tiny",
    page.EMBEDDINGS: "embeds",
}


def named(name: str) -> Any:
    return next(each for each in kinds.CLIENTS if each.name == name)


def test_every_client_has_its_settings_on_the_page() -> None:
    told = page.settings_of(page.PAGE.read_text(), OWN)
    for client in kinds.CLIENTS:
        settings = told[client.name]
        assert bool(settings.module) == bool(client.program), client.name
        assert bool(settings.command) == bool(client.arguments), client.name
        everything = repr(settings)
        assert "http://127.0.0.1:1" in everything and KEY in everything, client.name
        assert not any(its in everything for its in OWN), client.name


def test_the_table_of_the_page_has_a_row_for_each_client() -> None:
    rows = re.findall(r"^\| (.+?) \|", page.PAGE.read_text(), re.MULTILINE)
    assert rows == [page.HEADING[0], *(client.name for client in kinds.CLIENTS)]


@pytest.mark.parametrize("client", [each for each in kinds.CLIENTS if each.quick], ids=lambda each: each.slug)
async def test_a_client_does_all_that_the_table_says_of_it(
    client: Any,
    gateway_for: GatewayFor,
    llama_server: LlamaServer,
    llama_embeddings: LlamaServer,
    provider: FakeProvider,
) -> None:
    as_ollama(provider, kinds.OF_OLLAMA).script = real_enough
    provider.on["/api/tags"] = answer(
        200, {"models": [{"model": kinds.OF_OLLAMA, "name": kinds.OF_OLLAMA, **TOLD}]}
    )
    entries = {"llama": llama_server.entry, "embeds": llama_embeddings.entry}
    gateway = await gateway_for(provider, providers=entries, **ON)
    seen = await trial.Trial(client, HERE, page.PAGE.read_text(), gateway.url, KEY).seen()
    assert seen.failed == dict.fromkeys(client.tries, "")
    assert seen.refused.endswith("Error")


async def test_a_client_that_gets_no_answer_is_told_with_its_own_words(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for()
    client = named("OpenAI, Python")
    seen = await trial.Trial(client, HERE, page.PAGE.read_text(), gateway.url, KEY).seen()
    result = clients.Result(client, "1.0", seen)
    assert clients.cells(result, [])[2:8] == (*["FAILED"] * 5, "AuthenticationError")
    told = clients.failures(result, [])
    assert any(line.startswith("OpenAI, Python: chat: NotFoundError: ") for line in told)
    assert told[-1] == "OpenAI, Python: it has asked nothing"


def test_what_a_client_asked_in_vain_is_told_though_it_went_on() -> None:
    seen = SimpleNamespace(failed={"chat": ""}, refused="Invalid API key.", said="")
    result = clients.Result(named("Codex"), "1.0", seen)
    assert clients.failures(result, [A_LINE]) == []
    refused = {**A_LINE, "endpoint": "/v1/responses", "status": 404, "outcome": "refused"}
    assert clients.failures(result, [A_LINE, refused]) == ["Codex: /v1/responses: 404 refused"]
    assert clients.cells(result, [A_LINE, refused]) == (
        *("Codex", "1.0", "-", "yes", "yes", "-", "-"),
        *("Invalid API key.", "`/v1/chat/completions`"),
    )


def test_one_that_cannot_be_had_is_not_run_and_no_failure() -> None:
    result = clients.Result(named("Codex"), why="npm is not installed")
    assert clients.failures(result, []) == []
    assert clients.cells(result, [])[:2] == ("Codex", "not run: npm is not installed")
