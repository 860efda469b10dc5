"""What the gateway answers by itself: health, the models of a caller, metrics, files, and what its API is.

Health, the files and the API's description need no key; they hold nothing. The metrics are for the networks
in `server.metrics_from`, and for admins.
"""

import asyncio
import re
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import Final

import orjson

from llmgateway.access.keys import Caller
from llmgateway.api.dialect import Dialect
from llmgateway.api.endpoints import names_of
from llmgateway.books.metrics import Metrics
from llmgateway.config.settings import Config
from llmgateway.errors import FORBIDDEN, GatewayError, draining
from llmgateway.fleet.absence import nobody_serves
from llmgateway.fleet.appearance import endpoints_of, having, having_each
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.naming import aliases_for, meant, model_for
from llmgateway.fleet.provider import Provider
from llmgateway.http.client import Client
from llmgateway.http.via import hops
from llmgateway.servers.models import Model, as_alias, model_entry
from llmgateway.web.lists import Lists
from llmgateway.web.openapi import document
from llmgateway.web.routes import NO_STORE, OPENAPI, PAGE, Page
from llmgateway.web.status import Condition
from llmgateway.web.visitors import Visitors

_CODEX_ASKS: Final = re.compile(r"(^|[?&])client_version=")
_SAFE_LINES: Final = (
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Opener-Policy: same-origin\r\n"
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n"
)
# Not by `mimetypes`, which asks the machine; browsers run no module of a type that they do not expect.
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_RING_S: Final = 0.5
_PLAIN: Final = "text/plain; charset=utf-8"


class Pages:
    """The pages that are the same for whoever asks, or the same for whoever may ask."""

    def __init__(
        self,
        config: Config,
        condition: Condition,
        watch: Watch,
        fleet: Fleet,
        metrics: Metrics,
        visitors: Visitors,
    ) -> None:
        self._condition = condition
        self._watch = watch
        self._fleet = fleet
        self._metrics = metrics
        self._visitors = visitors
        self._lists = Lists(fleet)
        self._started_at = int(time.time())
        self.adopt(config)
        self.routes: Mapping[str, Page] = {
            "/healthz": Page(self._healthz),
            "/health": Page(self._healthz),  # as llama.cpp and vLLM have it, and as clients ask them
            "/v1/health": Page(self._healthz),
            "/": Page(self._healthz, ("HEAD",), hidden=True),
            "/readyz": Page(self._readyz),
            "/metrics": Page(self._scrape),
            PAGE.rstrip("/"): Page(self._to_page),
            OPENAPI: Page(self._openapi),
            **{path: Page(partial(_file, *file)) for path, file in _page_files().items()},
        }

    def adopt(self, config: Config) -> None:
        """Take in a config: who may scrape, and below which path the page is."""
        self._server = config.server
        self._endpoints = names_of(optional=config.server.ollama_api)
        self._lists.clear()

    async def models(self, wanted: str, caller: Caller, client: Client) -> None:
        """Answer with the models that a caller can use now, or with the one that is wanted."""
        via = hops(client.head.named.get(b"via", b""))
        await self._settled(of_a_gateway=bool(via))
        if not wanted:
            query = client.raw_path.partition("?")[2]
            what = client.dialect.name, via, query
            make = partial(self._list, caller, via, client.dialect, query)
            client.respond(200, self._lists.of(caller, what, make))
            return
        name = meant(self._fleet, caller, wanted)
        if (found := model_for(self._fleet, caller, name, via)) is None:
            raise nobody_serves(name, self._fleet, caller, wall=time.time())
        model, provider = found
        entry = self._entry(model, provider, having(model.id, self._fleet.usable_by(caller)))
        if name != wanted:
            entry = as_alias(wanted, entry)
        client.respond(200, orjson.dumps(client.dialect.model(entry) if client.dialect.model else entry))

    def _list(self, caller: Caller, via: Collection[str], dialect: Dialect, query: str) -> bytes:
        entries = self._entries(caller, via)
        if dialect.models is not None:
            return orjson.dumps(dialect.models(entries, query))
        sender = {"via": self._condition.name} if via else {}
        # Codex reads this list of its own, and what it finds there takes the place of all that it knows
        # of a model, its instructions as well: it knows better.
        of_codex: dict[str, list[object]] = {"models": []} if _CODEX_ASKS.search(query) else {}
        return orjson.dumps({"object": "list", **sender, "data": entries, **of_codex})

    def _entries(self, caller: Caller, via: Collection[str]) -> list[dict[str, object]]:
        """Give the entries of all names that a caller can use now, aliases among them, in their order."""
        models = self._fleet.models_for(caller, via)
        by = having_each(models, self._fleet.usable_by(caller))
        entries = {
            name: self._entry(model, provider, by[name], by_way=bool(via))
            for name, (model, provider) in models.items()
        }
        for alias, name in aliases_for(self._fleet, caller, models).items():
            entries[alias] = as_alias(alias, entries[name])
        return [entries[name] for name in sorted(entries)]

    def _entry(
        self, model: Model, provider: str, by: Sequence[Provider], *, by_way: bool = False
    ) -> dict[str, object]:
        """Make an entry of the list; `by` are the providers that have the model and may be told of."""
        entry = model_entry(model, owned_by=provider, created=self._started_at, by_way=by_way)
        entry["endpoints"] = endpoints_of(model.id, by, self._endpoints)
        entry["providers"] = [p.name for p in by]
        return entry

    async def _settled(self, *, of_a_gateway: bool) -> None:
        """Wait for the first look at the providers; another gateway may be one, and wait for this one."""
        try:
            async with asyncio.timeout(_RING_S if of_a_gateway else None):
                await self._watch.settled()
        except TimeoutError:
            pass

    async def _healthz(self, client: Client) -> None:
        client.respond(200, b'{"status":"ok"}')

    async def _readyz(self, client: Client) -> None:
        if self._condition.leaving:
            raise draining()
        if self._watch.first_round.is_set():
            client.respond(200, b'{"status":"ready"}')
        else:
            client.respond(503, b'{"status":"starting"}')

    async def _scrape(self, client: Client) -> None:
        at_hand = self._visitors.is_from(client, self._server.metrics_from)
        if not at_hand and not self._visitors.who(client).admin:
            raise GatewayError(FORBIDDEN, "From here, metrics are for admins.")
        accepted = client.head.named.get(b"accept", b"").decode("latin-1")
        body, content_type = self._metrics.render(accepted)
        client.respond(200, body, f"Content-Type: {content_type}\r\n{NO_STORE}".encode())

    async def _openapi(self, client: Client) -> None:
        client.respond(200, document(self._server.base_path), _file_lines(OPENAPI))

    async def _to_page(self, client: Client) -> None:
        client.respond(308, b"", f"Location: {self._server.base_path}{PAGE}\r\n".encode())


async def _file(body: bytes, lines: bytes, client: Client) -> None:
    client.respond(200, body, lines)


def _page_files() -> dict[str, tuple[bytes, bytes]]:
    """Read the page's files, once: their bytes and header lines, by path."""
    root = resources.files("llmgateway.web") / "page"
    found = {}
    waiting = [(PAGE, root)]
    while waiting:
        path, folder = waiting.pop()
        for each in folder.iterdir():
            if each.is_dir():
                waiting.append((f"{path}{each.name}/", each))
            else:
                found[path + each.name] = (each.read_bytes(), _file_lines(each.name))
    found[PAGE] = found.pop(PAGE + "index.html")
    return found


def _file_lines(name: str) -> bytes:
    kind = _KINDS.get(PurePosixPath(name).suffix, _PLAIN)
    return f"Content-Type: {kind}\r\nCache-Control: no-cache\r\n{_SAFE_LINES}".encode()
