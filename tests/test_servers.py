"""The table of scripts/servers has llama.cpp's own server and those that are played as they are seen here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
DOCS = SCRIPTS.parent / "docs" / "servers"


@pytest.fixture(scope="module")
def servers() -> Any:
    """The script, which imports its neighbours by their names."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("servers")
    finally:
        sys.path.remove(str(SCRIPTS))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def by_name(table: Iterable[list[str]]) -> dict[str, dict[str, str]]:
    """The rows by their names, without which version that was."""
    heading, _, *rest = table
    found = {row[0]: dict(zip(heading, row, strict=True)) for row in rest}
    for row in found.values():
        del row["version"]
    return found


def written(servers: Any, page: str) -> list[list[str]]:
    """The table of a page, cell by cell."""
    _, _, rest = (DOCS / f"{page}.md").read_text().partition(servers.BEGIN)
    table, _, _ = rest.partition(servers.END)
    return [cells(line) for line in table.splitlines() if line.startswith("|")]


def test_the_list_has_what_is_seen_of_llamacpp_its_router_ollama_and_lm_studio(servers: Any) -> None:
    names = [*servers.LLAMACPP, *servers.STAND_INS]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "servers.py", "--exactly", *names],
        cwd=SCRIPTS.parent,
        env={"PYTHONPATH": str(SCRIPTS.parent)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = by_name(map(cells, done.stdout.splitlines()))
    assert list(seen) == names
    assert seen.items() <= by_name(written(servers, "index")).items()


def test_the_page_of_each_server_has_its_rows_as_columns(servers: Any) -> None:
    heading, _, *rows = written(servers, "index")
    assert {row[0] for row in rows} == {name for names in servers.PAGES.values() for name in names}
    for page, names in servers.PAGES.items():
        first, _, *others = written(servers, page)
        columns = [list(column) for column in zip(first, *others, strict=True)]
        assert columns == [heading, *(row for name in names for row in rows if row[0] == name)], page


async def test_a_server_that_does_not_do_what_it_has_is_named(servers: Any) -> None:
    one = servers.STAND_INS["Ollama, played"]
    async with one.provider() as provider:
        row = await servers.looked_at(
            servers.Row("it"), {**provider.entry, "endpoints": ["chat"]}, one.model, ("chat", "embeddings")
        )
    assert row.tries["chat"] == "yes"
    assert row.wrong == ["it: embeddings: no"]
