"""The table of scripts/servers has llama.cpp's own server and those that are played as they are seen here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PAGE = SCRIPTS.parent / "docs" / "servers.md"


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


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """The rows by their names, without which version that was."""
    heading, _, *rest = (cells(line) for line in table.splitlines() if line.startswith("|"))
    found = {row[0]: dict(zip(heading, row, strict=True)) for row in rest}
    for row in found.values():
        del row["version"]
    return found


def test_the_page_has_what_is_seen_of_llamacpp_its_router_ollama_and_lm_studio(servers: Any) -> None:
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
    seen = rows_of(done.stdout)
    assert list(seen) == names
    _, _, rest = PAGE.read_text().partition(servers.BEGIN)
    table, _, _ = rest.partition(servers.END)
    assert seen.items() <= rows_of(table).items()


async def test_a_server_that_does_not_do_what_it_has_is_named(servers: Any) -> None:
    one = servers.STAND_INS["Ollama, played"]
    async with one.provider() as provider:
        row = await servers.looked_at(
            servers.Row("it"), {**provider.entry, "endpoints": ["chat"]}, one.model, ("chat", "embeddings")
        )
    assert row.tries["chat"] == "yes"
    assert row.wrong == ["it: embeddings: no"]
