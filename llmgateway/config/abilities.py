"""Read what a provider is said to be, and to have: the kind of its server, and its endpoints, by their names.

As in `values`, a function gives the value, or raises ValueError with the end of a sentence.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from llmgateway.api.endpoints import BY_NAME
from llmgateway.servers.known import BY_KIND


def kind(text: str) -> str:
    return _one_of(BY_KIND, text, "a kind of server")


def endpoint(text: str) -> str:
    return _one_of(BY_NAME, text, "an endpoint")


def _one_of(choices: Collection[str], text: str, what: str) -> str:
    if text in choices:
        return text
    if nearest := get_close_matches(text.lower(), choices, 1):
        raise ValueError(f"is not {what}; did you mean '{nearest[0]}'?")
    raise ValueError(f"is not {what}; known here: {', '.join(choices)}")
