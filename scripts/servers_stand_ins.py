"""Servers that no package registry has: played, they say what `tests/servers/samples.py` has of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from servers_kinds import CHAT, MODEL

from tests.fake_provider import FakeProvider
from tests.journeys.test_llamacpp_router import as_router
from tests.script import answer
from tests.servers.samples import LMSTUDIO, OLLAMA, Sample


@dataclass(frozen=True, slots=True)
class StandIn:
    """A server that is played, and what it must pass."""

    play: Callable[[FakeProvider], object]
    model: str
    has: tuple[str, ...] = CHAT

    def provider(self) -> FakeProvider:
        """Make it; it runs as long as its block."""
        played = FakeProvider("it")
        self.play(played)
        return played


def saying(sample: Sample) -> Callable[[FakeProvider], object]:
    """Let a provider answer as a sample has it."""

    def play(provider: FakeProvider) -> None:
        provider.on["/v1/models"] = answer(200, sample.listing)
        for path, page in sample.pages.items():
            provider.on[path] = answer(200, page)
        if sample.proof is not None:
            provider.on["/api/version"] = answer(200, sample.proof)

    return play


STAND_INS: Final = {
    "llama.cpp's router, played": StandIn(partial(as_router, states={MODEL: "loaded"}, loads=True), MODEL),
    "Ollama, played": StandIn(saying(OLLAMA), "qwen3:8b"),
    "LM Studio, played": StandIn(saying(LMSTUDIO), "qwen3-8b"),
}
