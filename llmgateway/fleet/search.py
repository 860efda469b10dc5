"""Looking once: at every provider of a config, or for LLM servers on this machine.

Where to look is what the kinds of servers say of themselves. Nothing is kept, and nothing is watched.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

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


async def find_servers() -> tuple[dict[str, Any], str]:
    """Look for LLM servers on this machine's well-known ports.

    Gives the `providers` of a config, and the id of a model that one of them serves ("" if there is none).
    """
    providers = {name: {"url": f"http://127.0.0.1:{port}/v1"} for name, port in WELL_KNOWN.items()}
    seen = await look_at_all(build({"providers": providers, "health": {"timeout": _SEARCH_S}}))
    found = {p.name: providers[p.name] for p, result in seen if result.state in (State.ONLINE, State.WARMING)}
    return found, next((model for _, result in seen for model in result.models or ()), "")
