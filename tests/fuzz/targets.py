"""The table of all that is fuzzed. A new target is a row here; its corpus is a folder of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.fuzz import bodies, clients, files, names, providers, streams

TARGETS: Final = (
    bodies.PEEK,
    bodies.SKIM,
    bodies.MULTIPART,
    names.RENAME,
    names.IDS,
    streams.USAGE,
    streams.ENDINGS_TARGET,
    streams.INFLATE,
    clients.REQUEST,
    clients.REQUEST_FIELDS,
    clients.FRAMES,
    providers.ANSWER,
    providers.ANSWER_FIELDS,
    providers.SERVERS,
    files.CONFIG,
)
CORPUS: Final = Path(__file__).resolve().parents[1] / "corpus"
"""A folder for each target, of bytes that go different ways."""
