"""What the gateway answers by itself to programs that take it for an Ollama: lists, a version, and a no.

Rules:

- A list holds the models that the caller can use now in this API, once by each name that a client may ask
  for. It is made of what the servers told when they were looked at last; nobody is asked for it.
- Nothing here changes a server: what Ollama has for that is refused, whoever asks.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

import orjson

from llmgateway.access.keys import Caller
from llmgateway.api.dialects.ollama import CHANGES, DIALECT, PS, TAGS, VERSION
from llmgateway.config.settings import Config
from llmgateway.errors import FORBIDDEN, GatewayError
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.naming import aliases_for
from llmgateway.fleet.provider import Provider
from llmgateway.http.client import Client
from llmgateway.servers.models import Model
from llmgateway.web.cors import share
from llmgateway.web.lists import Lists
from llmgateway.web.routes import Page, Route, Told

_NEVER: Final = "0001-01-01T00:00:00Z"
_LIKE: Final = "0.40.0"
"""Of the API, as Ollama counts: programs tell by it whether a server is too old for them."""
_CHAT: Final = "ollama_chat"
_NO_DETAILS: Final = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


class OllamaPages:
    """The pages of Ollama's API that need no server."""

    def __init__(self, config: Config, fleet: Fleet, settled: Callable[[], Awaitable[None]]) -> None:
        """Tell of a fleet; `settled` waits for the first look at its providers."""
        self._fleet = fleet
        self._settled = settled
        self._lists = Lists(fleet)
        self._started_at = time.time()
        self.routes: Mapping[str, Route] = {
            "/": Page(self._here, hidden=True),
            VERSION: Page(self._version, hidden=True),
            TAGS: Told(self._tags),
            PS: Told(self._ps),
            **dict.fromkeys(CHANGES, Told(self._refuse, ())),
        }
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take in a config: which web pages may read what everybody may."""
        self._origins = frozenset(config.server.cors)

    async def _here(self, client: Client) -> None:
        self._share(client)
        client.respond(200, b"Ollama is running", b"Content-Type: text/plain; charset=utf-8\r\n")

    async def _version(self, client: Client) -> None:
        self._share(client)
        client.respond(200, orjson.dumps({"version": _LIKE}))

    def _share(self, client: Client) -> None:
        if self._origins:
            share(client, self._origins)

    async def _refuse(self, caller: Caller, client: Client) -> None:
        words = "The gateway changes nothing on a server: models are pulled, made and deleted there."
        raise GatewayError(FORBIDDEN, words)

    async def _tags(self, caller: Caller, client: Client) -> None:
        await self._settled()
        client.respond(200, self._lists.of(caller, TAGS, partial(self._tags_of, caller)))

    def _tags_of(self, caller: Caller) -> bytes:
        models = self._models(caller)
        names = {name: name for name in models} | aliases_for(self._fleet, caller, models, _CHAT)
        return orjson.dumps({"models": [self._entry(name, models[names[name]]) for name in sorted(names)]})

    async def _ps(self, caller: Caller, client: Client) -> None:
        await self._settled()
        client.respond(200, self._lists.of(caller, PS, partial(self._ps_of, caller)))

    def _ps_of(self, caller: Caller) -> bytes:
        entries = [
            {**_known(name, model), "expires_at": _NEVER, "size_vram": 0, **model.in_memory}
            for name, model in sorted(self._models(caller, loaded=True).items())
        ]
        return orjson.dumps({"models": entries})

    def _entry(self, name: str, model: Model) -> dict[str, object]:
        made = datetime.fromtimestamp(model.created or self._started_at, UTC)
        dated = {"modified_at": made.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {**_known(name, model), **dated, **_of(model, "modified_at", "capabilities")}

    def _models(self, caller: Caller, *, loaded: bool = False) -> dict[str, Model]:
        """Give what a caller can use, or what of that is in memory somewhere, by name."""
        found: dict[str, Model] = {}
        for provider in self._fleet.usable_by(caller):
            if provider.online or provider.promising:
                for name, model in provider.models.items():
                    wanted = caller.may_use(name) and (model.loaded or not loaded)
                    if wanted and name not in found and _speaks_here(provider, name):
                        found[name] = model
        return found


def _known(name: str, model: Model) -> dict[str, object]:
    """Describe a model as Ollama does; programs that read this by a schema want all of it."""
    known = {"name": name, "model": name, "size": 0, "digest": "", **_of(model, "size", "digest")}
    details = model.more.get("details")
    return {**known, "details": {**_NO_DETAILS, **(details if isinstance(details, dict) else {})}}


def _of(model: Model, *fields: str) -> dict[str, object]:
    return {name: model.more[name] for name in fields if name in model.more}


def _speaks_here(provider: Provider, model: str) -> bool:
    return any(provider.has_endpoint(row.name, model) for row in DIALECT.endpoints)
