"""The face: the route table, authentication, the request id, and the one place where errors are rendered.

A key is checked before a byte of the body is read. Every request to a forwarded endpoint has its entry in the
ledger, whatever becomes of it; but for those that are shed, which are counted only.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import count
from typing import Final
from urllib.parse import unquote

from llmgateway.access.keys import Caller
from llmgateway.api.dialect import Dialect
from llmgateway.api.dialects.ollama import BLOBS
from llmgateway.api.endpoints import ENDPOINTS, KEPT, Endpoint, dialect_of, dialect_spoken
from llmgateway.books.entry import Entry
from llmgateway.books.ledger import Ledger
from llmgateway.books.line import log_all
from llmgateway.books.traces import Traces
from llmgateway.config.extra import ExtraPathConfig
from llmgateway.config.settings import Config, ServerConfig
from llmgateway.errors import (
    INTERNAL_ERROR,
    INVALID_API_KEY,
    NOT_FOUND,
    GatewayError,
    cancelled,
    draining,
)
from llmgateway.http.client import Client, whole_error
from llmgateway.http.propriety import check_head
from llmgateway.http.room import Room
from llmgateway.http.via import refuse_loop
from llmgateway.log import Events, request_id
from llmgateway.traffic.call import CallReader, Forward
from llmgateway.traffic.freight import AT_ONCE_BYTES, Freight
from llmgateway.traffic.proxy import Proxy
from llmgateway.veil import veiled
from llmgateway.web.cors import is_of_the_api, share
from llmgateway.web.live import Live
from llmgateway.web.ollama import OllamaPages
from llmgateway.web.pages import Pages
from llmgateway.web.pressure import Pressure, too_many
from llmgateway.web.routes import (
    CHAT,
    MODELS,
    NO_STORE,
    Page,
    Route,
    Told,
    below,
    not_allowed,
    path_of,
    request_to_end,
    way_to_kept,
)
from llmgateway.web.running import Running
from llmgateway.web.signpost import Signpost
from llmgateway.web.status import Condition
from llmgateway.web.visitors import Visitors

events = Events("app")

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_SOME_ID: Final = b"0" * 32  # as long as ours
_FIRST_ID: Final = 10**14  # as all numbers up to ten times that, it has 15 digits, of those that UUIDs have
_SOCKETS: Final = frozenset(each.path for each in ENDPOINTS if each.body == "socket")
_VITAL: Final = frozenset({"/healthz", "/v1/health", "/readyz", "/metrics"})
_CLIENT_GONE: Final = 499  # as nginx logs it; it is never sent


class App:
    """Answers every request: the gateway's own pages by themselves, the rest through the proxy."""

    def __init__(
        self,
        config: Config,
        condition: Condition,
        visitors: Visitors,
        pages: Pages,
        ollama: OllamaPages,
        live: Live,
        proxy: Proxy,
        ledger: Ledger,
        pressure: Pressure,
        traces: Traces,
    ) -> None:
        self._condition = condition
        self._visitors = visitors
        self._pages = pages
        self._ollama = ollama
        self._live = live
        self._proxy = proxy
        self._ledger = ledger
        self._pressure = pressure
        self._traces = traces
        self._intake = pressure.intake
        self._ids = count(_FIRST_ID)
        self._id_prefix = _version_4(secrets.token_hex(8))
        self._running = Running()
        self._room = Room(config.server.bodies_memory)
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take in a config: it holds for every request that comes from now on."""
        self._config = config
        name = config.cluster.name
        self._signature = () if name is None else (("x-gateway-instance", name),)
        self._origins = frozenset(config.server.cors)
        self._calls = CallReader(config, partial(self._visitors.who, by_protocol=True, by_network=True))
        self._room.limit_bytes = config.server.bodies_memory
        self._freight = Freight(config, self._calls, self._proxy, self._room)
        self._routes: dict[str, Route] = {
            **self._pages.routes,
            **self._live.routes,
            **self._visitors.routes,
            MODELS: Told(partial(self._pages.models, "")),
            **_ways(config.server),
            **(self._ollama.routes if config.server.ollama_api else {}),
        }
        base = config.server.base_path
        self._targets = {base + path: (path, route) for path, route in self._routes.items()}
        self._signpost = Signpost(base, self._routes)

    async def handle(self, client: Client) -> None:
        """Answer one request; whatever happens inside, it ends here, and the process goes on."""
        path, route = self._targets.get(client.raw_path) or self._find(client.raw_path)
        if isinstance(route, Forward):
            client.dialect = route.endpoint.dialect
        else:
            client.dialect = dialect_spoken(path, client.head.named, optional=self._config.server.ollama_api)
        client.request_id = self._id_of(client.head.named.get(b"x-request-id"))
        request_id.set(client.request_id)
        if self._signature:
            client.tell(self._signature)
        if self._condition.draining:
            client.close_after()
        try:
            check_head(client)
            if isinstance(route, Page) and route.is_there_for(client.method):
                route.require(client.method)
                await route.answer(client)
            elif not (self._origins and is_of_the_api(path) and share(client, self._origins)):
                await self._follow(path, route, client)
        except GatewayError as error:
            await self._tell(client, error)
        except Exception:
            events.exception("unexpected error")
            client.fail(GatewayError(INTERNAL_ERROR, "The gateway failed; its log says why."))

    async def _tell(self, client: Client, error: GatewayError) -> None:
        if error.kind is INVALID_API_KEY and not self._condition.draining:
            await self._visitors.let_wait(client)
        client.fail(error)

    def answers_always(self, client: Client) -> bool:
        """Tell whether a request is one that is answered also when there is no room for others."""
        return (self._targets.get(client.raw_path) or self._find(client.raw_path))[0] in _VITAL

    def can_wait(self, target: str) -> bool:
        """Tell whether a request is one of those that wait for a turn, and are shed in a rush."""
        return isinstance((self._targets.get(target) or self._find(target))[1], Forward)

    def shed(self, target: str) -> bytes | None:
        """Turn a request away of which nothing else was read; gives the answer, or None if it is let in."""
        route = (self._targets.get(target) or self._find(target))[1]
        if not isinstance(route, Forward) or self._pressure.lets_in():
            return None
        self._pressure.shed += 1
        return _shed_in(route.endpoint.dialect, self._signature).replace(_SOME_ID, self._id_of(None).encode())

    def _find(self, raw_path: str) -> tuple[str, Route | None]:
        """Give path and route of a target that is not in the table as it stands; None leads nowhere."""
        path = below(self._config.server.base_path, path_of(raw_path))
        route = self._routes.get(path)
        if route is None and path.startswith(MODELS + "/"):
            route = Told(partial(self._pages.models, unquote(path.removeprefix(MODELS + "/"))))
        elif route is None and path.startswith(BLOBS + "/"):
            route = self._routes.get(BLOBS)
        elif route is None and (found := request_to_end(path)) is not None:
            wanted, method = found
            route = Page(partial(self._end, wanted), (method,))
        elif route is None:
            route = way_to_kept(path, _WAYS_TO_KEPT)
        return path, route

    def _id_of(self, given: bytes | None) -> str:
        """Give the id that a client gave its request, if it is a sane one, else one of our own.

        Ours are unique, and no secrets; chance is asked once only, as asking costs. They are UUIDs: there are
        servers that take nothing else.
        """
        if given is not None and _SANE_ID.fullmatch(given) and veiled(name := given.decode()) == name:
            return name
        return f"{self._id_prefix}{next(self._ids)}"

    async def _follow(self, path: str, route: Route | None, client: Client) -> None:
        """Serve a request of the API, and write down what became of it; it is only counted if it is shed."""
        if self._pressure.sheds and isinstance(route, Forward) and not self._condition.draining:
            raise self._pressure.refusal()
        entry = Entry(client.request_id, path, time.monotonic())
        self._running.begin(client, entry)
        try:
            route = self._open(route, client, entry)
            if self._condition.draining:
                raise draining()
            if isinstance(route, Forward) and not self._intake.begins():
                await self._pressure.turn()
            if b"via" in client.head.named:
                refuse_loop(client.head.named[b"via"], self._condition.name)
            caller = self._admit(route, client)
            entry.user, entry.person, entry.key = caller.user, caller.person or None, caller.key_name
            if self._traces.tracer is not None and isinstance(route, Forward):
                self._traces.begin(self._traces.tracer, entry, client.method, client.head.named)
            if isinstance(route, Told):
                await route.answer(caller, client)
            else:
                compressed = b"content-encoding" in client.head.named
                body = None if compressed else client.body.at_hand(self._config.server.max_body)
                if body is None or len(body) > AT_ONCE_BYTES:
                    freight = self._freight.carry(client, route, caller, entry, body)
                    body = None  # it is not held here while it is carried
                    await freight
                elif route.wanted:
                    call = self._calls.recall(client, route, entry, body)
                    await self._proxy.recall(call, route.wanted, caller, client)
                else:
                    call = self._calls.read(client, route, caller, entry, body)
                    await self._proxy.forward(call, caller, client)
            entry.outcome = "ok"
        except GatewayError as error:
            entry.outcome = entry.outcome or ("truncated" if client.answered else error.kind.type)
            entry.why = error.brief
            _veil(entry)
            try:
                await self._tell(client, error)
            except asyncio.CancelledError:
                self._note_cut(entry, client)
                raise
        except asyncio.CancelledError:
            self._note_cut(entry, client)
            raise
        except Exception:
            entry.outcome = INTERNAL_ERROR.type
            raise
        finally:
            self._running.over(client)
            self._close(entry, client)

    def _note_cut(self, entry: Entry, client: Client) -> None:
        """Write down what has become of a request that was cut off: what its client was told, if anything."""
        if (cut := self._running.why_cut(client)) is not None:
            entry.outcome, entry.why = cut.kind.type, cut.brief
        elif not entry.outcome:
            entry.outcome = "ok" if client.ended and not client.missed else "client_gone"

    def _close(self, entry: Entry, client: Client) -> None:
        entry.status = client.status or (500 if entry.outcome == INTERNAL_ERROR.type else _CLIENT_GONE)
        entry.bytes_out = client.bytes_out
        if entry.span is not None:
            self._traces.end(entry.span, entry)
        if entry.outcome == INVALID_API_KEY.type:
            entry.address = self._visitors.address(client)
        if entry in self._ledger.in_flight:
            self._ledger.close(entry, now=time.monotonic(), wall=time.time())
        else:
            log_all([(entry, time.monotonic(), time.time())])

    def _open(self, route: Route | None, client: Client, entry: Entry) -> Forward | Told:
        """Open the books for what is forwarded. Raises GatewayError if it leads nowhere, or not so."""
        if isinstance(route, Forward):
            entry.endpoint = route.endpoint.path
            if client.method != route.endpoint.method:
                other = route.by(client.method)
                if other is None:
                    raise not_allowed("endpoint", *route.methods)
                route = other
            self._ledger.open(entry)
        elif route is None or isinstance(route, Page):
            raise self._signpost.no_endpoint(client.raw_path)
        elif route.methods and client.method not in route.methods:
            raise not_allowed("endpoint", *route.methods)
        return route

    def _admit(self, route: Forward | Told, client: Client) -> Caller:
        """Name the caller. Raises GatewayError."""
        if isinstance(route, Forward) and route.from_page:
            self._visitors.require_same_origin(client)
            return self._visitors.who(client, by_session=True)
        # A client sends the same head again and again: to recognise the key in it anew costs a request 3 %.
        caller: Caller
        by, caller = client.head.sender
        if by is not self._config:
            by_protocol = isinstance(route, Forward) and route.endpoint.body == "socket"
            caller = self._visitors.who(client, by_protocol=by_protocol, by_network=True)
            if caller.expires_at is None:
                client.head.sender = self._config, caller
        return caller

    # -- the end

    def drain(self) -> None:
        """Take nothing new from now on; what would not end by itself is told to."""
        self._condition.leaving = self._condition.draining = True
        self._live.drain()
        self._running.end(draining(), lambda entry: entry.endpoint in _SOCKETS)

    async def quiet(self, limit_s: float) -> bool:
        """Wait until nothing is in flight, for `limit_s` seconds at most; tells whether that was enough."""
        try:
            async with asyncio.timeout(limit_s):
                await self._running.none()
        except TimeoutError:
            events.warning("cutting what is still in flight", requests=len(self._running))
            return False
        return True

    def cut_off(self) -> None:
        """Tell everybody who is still being served that it is over."""
        self._running.end_all(draining())

    async def _end(self, wanted: str, client: Client) -> None:
        """End a request, or those that share its id: for admins, and for whose it is. Raises GatewayError."""
        self._visitors.require_same_origin(client)
        viewer = self._visitors.who(client, by_session=True)
        in_flight = self._ledger.in_flight
        ended = self._running.end(
            cancelled(viewer.user),
            lambda entry: (
                entry.id == wanted and entry in in_flight and (viewer.admin or entry.user == viewer.user)
            ),
        )
        if not ended:
            raise GatewayError(NOT_FOUND, "No request of that id is in flight.")
        events.info("request ended by hand", ended=wanted, by=viewer.user)
        client.respond(204, b"", NO_STORE.encode())


@lru_cache
def _shed_in(dialect: Dialect, signature: tuple[tuple[str, str], ...]) -> bytes:
    """Render what is said to those that are shed; to say it costs little, as it is always the same."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in signature)
    return whole_error(too_many(), dialect, _SOME_ID.decode(), lines)


def _veil(entry: Entry) -> None:
    """Take keys out of what a client chose, and nobody has known."""
    entry.model, entry.asked_model = veiled(entry.model), veiled(entry.asked_model)
    entry.endpoint = veiled(entry.endpoint)


def _version_4(digits: str) -> str:
    """Make the first 17 of the 32 digits of a UUID that is made by chance (RFC 9562 5.4), of 16."""
    return f"{digits[:12]}4{digits[13:]}8"


def _ways(server: ServerConfig) -> dict[str, Forward]:
    """Give the ways of all that is forwarded, by path, but for paths with an id in them."""
    optional = server.ollama_api
    spoken = [each for each in ENDPOINTS if optional or not each.dialect.optional]
    endpoints = {(each.path, each.method): each for each in spoken}
    for entry in server.extra_paths:
        more = entry if isinstance(entry, ExtraPathConfig) else ExtraPathConfig(path=entry)
        dialect = dialect_of(more.path, optional=optional)
        extra = Endpoint(more.path, "", more.names_model_in, method=more.method, dialect=dialect)
        endpoints.setdefault((extra.path, extra.method), extra)
    chat = Forward(endpoints["/v1/chat/completions", "POST"], from_page=True)
    return {CHAT: chat, **_by_path(endpoints.values())}


def _by_path(endpoints: Iterable[Endpoint]) -> dict[str, Forward]:
    ways: dict[str, Forward] = {}
    for endpoint in endpoints:
        before = ways.get(endpoint.path)
        ways[endpoint.path] = (
            Forward(endpoint)
            if before is None
            else Forward(before.endpoint, beside=(*before.beside, endpoint))
        )
    return ways


_WAYS_TO_KEPT: Final = _by_path(KEPT)
