"""docs/clients.md: what it says of each client is what scripts/clients runs; what came of that is its table.

Fenced blocks are taken word for word, but for four words that stand for somebody's own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "clients.md"
ADDRESS: Final = "http://192.168.1.10:8900"
KEY: Final = "sk-your-key"
MODEL: Final = "qwen3-8b"
EMBEDDINGS: Final = "nomic-embed"
HEADING: Final = (
    "client", "version", "list of models", "chat", "stream", "tools", "embeddings", "wrong key", "asks at",
)  # fmt: skip

_SECTION: Final = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK: Final = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_TABLE: Final = re.compile(r"(<!-- The table .*?-->\n).*?(<!-- end of the table -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the page says of one client."""

    module: str = ""
    """A piece of the language that the client is for."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Their texts, by paths in the home directory."""
    environ: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


def settings_of(page: str, own: Mapping[str, str]) -> dict[str, Settings]:
    """Give what stands on the page, with words of one's own in the place of its own, by the headings."""
    for its, ours in own.items():
        page = page.replace(its, ours)
    return {name: _settings(_BLOCK.findall(text)) for name, text in _SECTION.findall(page)}


def _settings(blocks: Iterable[tuple[str, str, str]]) -> Settings:
    module, files, environ, command = "", dict[str, str](), dict[str, str](), list[str]()
    for language, title, text in blocks:
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


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def table(rows: Iterable[Sequence[str]]) -> str:
    return row(HEADING) + f"|{'---|' * len(HEADING)}\n" + "".join(map(row, rows))


def with_table(page: str, told: str) -> str:
    """Put a table, and what is said below it, in the place of the one that was there."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{told}\n{found[2]}", page)
