"""docs/clients: what the page of a client says is what scripts/clients runs; what came of that is its table.

Fenced blocks are taken word for word, but for four words that stand for somebody's own. The index has a table
of all clients, and the page of each client has its row of that, upright.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from clients_kinds import Client

PAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "clients"
INDEX: Final = PAGES / "index.md"
ADDRESS: Final = "http://192.168.1.10:8900"
KEY: Final = "sk-your-key"
MODEL: Final = "qwen3-8b"
EMBEDDINGS: Final = "nomic-embed"
HEADING: Final = (
    "client", "version", "list of models", "chat", "stream", "tools", "embeddings", "wrong key", "asks at",
)  # fmt: skip

_BLOCK: Final = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_TABLE: Final = re.compile(r"(<!-- The table .*?-->\n).*?(<!-- end of the table -->)", re.DOTALL)

Came: TypeAlias = tuple[Client, Sequence[str]]
"""A client, and its cells below HEADING without its name."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the page of a client says."""

    module: str = ""
    """A piece of the language that the client is for."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Their texts, by paths in the home directory."""
    environ: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


def page_of(client: Client) -> Path:
    return PAGES / f"{client.slug}.md"


def settings_of(client: Client, own: Mapping[str, str]) -> Settings:
    """Give what stands on a client's page, with words of one's own in the place of its own."""
    page = page_of(client).read_text()
    for its, ours in own.items():
        page = page.replace(its, ours)
    module, files, environ, command = "", dict[str, str](), dict[str, str](), list[str]()
    for language, title, text in _BLOCK.findall(page):
        if title:
            files[title.removeprefix("~/")] = text
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["export"]:
                    environ |= dict(word.split("=", 1) for word in words[1:])
                else:
                    command = words
        else:
            module = module or text  # what follows is an example
    return Settings(module, files, environ, command)


def table(came: Iterable[Came]) -> str:
    """Give the table of the index; names lead to the pages."""
    return _table(HEADING, *((f"[{client.name}]({client.slug}.md)", *cells) for client, cells in came))


def _table(heading: Sequence[str], *rows: Sequence[str]) -> str:
    return _row(heading) + f"|{'---|' * len(heading)}\n" + "".join(map(_row, rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def written(came: Sequence[Came]) -> dict[Path, str]:
    """Give the texts of the index and of the clients' pages, with new tables in the place of theirs."""
    tables = {page_of(client): _table(*zip(HEADING[1:], cells, strict=True)) for client, cells in came}
    return {page: _with(page.read_text(), told) for page, told in {INDEX: table(came), **tables}.items()}


def _with(page: str, told: str) -> str:
    return _TABLE.sub(lambda found: f"{found[1]}\n{told}\n{found[2]}", page)
