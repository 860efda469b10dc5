"""Secrets of the config that others on this machine can read: no problem of the file, but told.

Hashes of keys are no secrets. What a container has mounted may have a mode that nobody can change; it is told
as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llmgateway.config import files
from llmgateway.config.references import Finding, Steps, at, counts, names_in
from llmgateway.config.settings import Config
from llmgateway.config.tree import Node, Pairs, Scalar

_SECRET_HEADER: Final = re.compile("auth|key|token|secret|passw|cookie|credential", re.IGNORECASE)
_HERE: Final = (
    "other users of this machine can read this file, and this secret in it; "
    "make it readable by the gateway only (chmod 600)"
)


def exposed(config: Config, root: Pairs, folder: Path, *, is_open_itself: bool) -> Iterator[Finding]:
    """Find what others can read: a secret in the file itself, if `is_open_itself`; the files of secrets."""
    first = next(_secrets(config, root), None) if is_open_itself else None
    if first is not None:
        yield first, _HERE
    for path, name in _files(config):
        if files.is_open_at(folder / name):
            yield path, files.OPEN


def _files(config: Config) -> Iterator[tuple[Steps, str]]:
    if config.server.tls is not None:
        yield ("server", "tls", "key"), config.server.tls.key
    for name, provider in config.providers.items():
        if provider.api_key_file is not None:
            yield ("providers", name, "api_key_file"), provider.api_key_file


def _secrets(config: Config, root: Pairs) -> Iterator[Steps]:
    """Give the paths of the secrets that stand in the file in so many words."""
    for name, user in config.users.items():
        for index, key in enumerate(user.keys):
            if key.plain:
                yield "users", name, "keys", index
    for provider in names_in(root, "providers"):
        for path, node in _credentials(root, provider):
            if isinstance(node, Scalar) and counts(node) and not node.from_env:
                yield path
    redis = at(root, "cluster", "limits")
    if isinstance(redis, Scalar) and "@" in redis.text and not redis.from_env:
        yield "cluster", "limits"


def _credentials(root: Pairs, provider: str) -> Iterator[tuple[Steps, Node | None]]:
    place = ("providers", provider)
    yield (*place, "api_key"), at(root, *place, "api_key")
    proxy = at(root, *place, "proxy")
    if isinstance(proxy, Scalar) and "@" in proxy.text:
        yield (*place, "proxy"), proxy
    headers = at(root, *place, "headers")
    for name, pair in headers.pairs.items() if isinstance(headers, Pairs) else ():
        if _SECRET_HEADER.search(name):
            yield (*place, "headers", name), pair.value
