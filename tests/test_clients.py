"""scripts/clients: it takes its settings from the pages in docs/clients, and tells what came of a client."""

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


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table of a page, without the line below the heading."""
    return [line.split(" | ") for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)]


def test_every_client_has_its_settings_on_its_page() -> None:
    for client in kinds.CLIENTS:
        assert page.page_of(client).read_text().startswith(f"# {client.name}\n")
        settings = page.settings_of(client, OWN)
        assert bool(settings.module) == bool(client.program), client.name
        assert bool(settings.command) == bool(client.arguments), client.name
        everything = repr(settings)
        assert "http://127.0.0.1:1" in everything and KEY in everything, client.name
        assert not any(its in everything for its in OWN), client.name


def test_the_page_of_each_client_says_what_its_row_of_the_index_says() -> None:
    heading, *rows = rows_of(page.INDEX.read_text())
    assert heading == [*page.HEADING]
    assert [name for name, *_ in rows] == [f"[{each.name}]({each.slug}.md)" for each in kinds.CLIENTS]
    for client, (_, *cells) in zip(kinds.CLIENTS, rows, strict=True):
        told = rows_of(page.page_of(client).read_text())
        assert told == [[*each] for each in zip(page.HEADING[1:], cells, strict=True)], client.name


def test_what_came_of_a_client_is_written_into_the_index_and_onto_its_page() -> None:
    _, *rows = rows_of(page.INDEX.read_text())
    before = [(client, cells) for client, (_, *cells) in zip(kinds.CLIENTS, rows, strict=True)]
    assert all(path.read_text() == text for path, text in page.written(before).items())
    written = page.written([(client, ["9.9", *cells[1:]]) for client, cells in before])
    assert written.pop(page.INDEX).count(" | 9.9 | ") == len(kinds.CLIENTS)
    assert [*written] == [page.page_of(client) for client in kinds.CLIENTS]
    assert all("| version | 9.9 |" in text for text in written.values())


def test_every_page_is_linked_from_the_index_and_is_in_the_nav() -> None:
    pages = {each.name for each in page.PAGES.glob("*.md")}
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", page.INDEX.read_text()))
    assert linked == pages - {page.INDEX.name}
    nav = (SCRIPTS.parent / "mkdocs.yml").read_text()
    assert set(re.findall(r"^      - .*?\bclients/(.+)$", nav, re.MULTILINE)) == pages


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
    seen = await trial.Trial(client, HERE, gateway.url, KEY).seen()
    assert seen.failed == dict.fromkeys(client.tries, "")
    assert seen.refused.endswith("Error")


async def test_a_client_that_gets_no_answer_is_told_with_its_own_words(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for()
    client = named("OpenAI, Python")
    seen = await trial.Trial(client, HERE, gateway.url, KEY).seen()
    result = clients.Result(client, "1.0", seen)
    assert clients.cells(result, [])[1:7] == (*["FAILED"] * 5, "AuthenticationError")
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
        *("1.0", "-", "yes", "yes", "-", "-"),
        *("Invalid API key.", "`/v1/chat/completions`"),
    )


def test_one_that_cannot_be_had_is_not_run_and_no_failure() -> None:
    result = clients.Result(named("Codex"), why="npm is not installed")
    assert clients.failures(result, []) == []
    assert clients.cells(result, [])[0] == "not run: npm is not installed"
