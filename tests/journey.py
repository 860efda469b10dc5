"""What most journeys need: a user with a key, a config around providers, and waiting without guessing."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, overload

from tests.fake_provider import FakeProvider
from tests.guard import HANG_S, MANY_LOOKS
from tests.secrecy import PROMPT, watch

T = TypeVar("T")
Saying: TypeAlias = str | Callable[[], str]

KEY = "sk-alice-0123456789abcdefghijklmnopqrstuvwxyz"
"""alice's key in every config made here."""

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
"""The body of an ordinary chat request."""


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], limit: float = ..., *, every: float = ..., saying: Saying = ...
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], limit: float = ..., *, every: float = ..., saying: Saying = ...
) -> T: ...
async def eventually(
    condition: Callable[[], Any], limit: float = HANG_S, *, every: float = 0.01, saying: Saying = ""
) -> Any:
    """Poll a condition, sync or async, until it holds; give what it returned. Fails after `limit` seconds."""
    end, looks = time.monotonic() + limit, 0
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        looks += 1
        if looks > MANY_LOOKS and time.monotonic() > end:
            said = saying() if callable(saying) else saying
            raise AssertionError(said or f"did not come true within {limit} s; last seen: {value!r}")
        await asyncio.sleep(every)


def settings(*providers: FakeProvider, **sections: Any) -> dict[str, Any]:
    """A config as the YAML file would have it: any free port, alice and her key, these providers.

    A section given by name replaces the one made here; `server` and `providers` are merged into it.
    """
    tree = {
        "users": {"alice": {"keys": [KEY]}},
        "log": {"requests": "none"},
        "health": {"timeout": "10m"},  # a probe may take its time on a busy machine
        **sections,
        "server": {"port": 0, **sections.get("server", {})},
        "providers": {provider.name: provider.entry for provider in providers}
        | sections.get("providers", {}),
    }
    watch.learn(tree)
    return tree
