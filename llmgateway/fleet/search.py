"""Looking once: at every provider of a config, or for LLM servers on this machine.

Where to look is what the kinds of servers say of themselves. Nothing is kept, and nothing is watched.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llmgateway.config.load import build
from llmgateway.config.settings import Config
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import probe
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.fleet.upstream import Upstream
from llmgateway.servers.known import KINDS


def _places() -> Iterator[tuple[str, int]]:
    """Name each kind's ports as a config would name the providers there: `lm-studio`, `llama-cpp-9931`."""
    for kind in KINDS:
        name = "-".join(re.findall("[a-z0-9]+", kind.title.lower()))
        for number, port in enumerate(kind.ports):
            yield (f"{name}-{port}" if number else name), port


WELL_KNOWN: Final[Mapping[str, int]] = dict(_places())
_SEARCH_S: Final = 1.0


async def look_at_all(config: Config) -> list[tuple[Provider, Probe]]:
    """Probe every provider of a configuration once, all at the same time."""
    upstream = Upstream()
    providers = list(Fleet(config).providers.values())
    try:
        results = await asyncio.gather(*(probe(upstream, provider) for provider in providers))
    finally:
        upstream.close()
    return list(zip(providers, results, strict=True))


@dataclass(frozen=True, slots=True)
class Found:
    """A server on this machine, and the models that it has told of."""

    url: str
    models: tuple[str, ...]


async def find_servers() -> dict[str, Found]:
    """Look for LLM servers on this machine's well-known ports; gives them by names that a config takes."""
    providers = {name: {"url": f"http://127.0.0.1:{port}/v1"} for name, port in WELL_KNOWN.items()}
    seen = await look_at_all(build({"providers": providers, "health": {"timeout": _SEARCH_S}}))
    return {
        provider.name: Found(providers[provider.name]["url"], tuple(result.models or ()))
        for provider, result in seen
        if result.state in (State.ONLINE, State.WARMING)
    }


def first_model(servers: Mapping[str, Found]) -> str | None:
    """Name a model to try."""
    return next((model for server in servers.values() for model in server.models), None)
