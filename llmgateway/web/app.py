"""The face: the route table, authentication, the request id, and the one place where errors are rendered.

Paths are compared as they came, undecoded, so that no spelling of a path reaches what is not in the table. A
key is checked before a byte of the body is read. Every request to a forwarded endpoint has its entry in the
ledger, whatever becomes of it.
"""

import asyncio
import re
import secrets
import time
from dataclasses import replace
from itertools import count
from typing import Final, NamedTuple

from aiohttp import web

from llmgateway.access.keys import Caller, KeyRing, offered_keys
from llmgateway.api.endpoints import ENDPOINTS, Body, Endpoint, dialect_of
from llmgateway.books.entry import Entry
from llmgateway.books.ledger import Ledger
from llmgateway.books.line import log_all
from llmgateway.config.settings import Config
from llmgateway.errors import (
    DRAINING,
    INTERNAL_ERROR,
    INVALID_API_KEY,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    GatewayError,
    draining,
)
from llmgateway.http.client import Client
from llmgateway.http.server import check_head
from llmgateway.log import Events, request_id
from llmgateway.traffic.call import CallReader, refuse_compressed
from llmgateway.traffic.proxy import Proxy
from llmgateway.web.pages import CHAT, MODELS, PAGE, Pages

events = Events("app")

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_SANE_FIELD_LIST: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_CLIENT_GONE: Final = 499  # as nginx logs it; it is never sent
_PREFLIGHT_S: Final = 86_400


class _Recognised(NamedTuple):
    """Whose key a head shows."""

    by: KeyRing
    caller: Caller


class App:
    """Answers every request: the gateway's own pages by `Pages`, the rest through the proxy."""

    def __init__(self, config: Config, pages: Pages, proxy: Proxy, ledger: Ledger) -> None:
        self.draining = False
        self._ids = count(1)
        self._id_prefix = secrets.token_hex(8)
        self._cutting = False
        self._pages = pages
        self._proxy = proxy
        self._ledger = ledger
        self._running: set[Client] = set()
        self._none_running: asyncio.Event | None = None
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take in a config: it holds for every request that comes from now on."""
        self._config = config
        self._keys = KeyRing(config.users, config.groups)
        self._pages.adopt(config, self._keys)
        extra = (Endpoint(path, dialect=dialect_of(path)) for path in config.server.extra_paths)
        self._endpoints = {endpoint.path: endpoint for endpoint in (*ENDPOINTS, *extra)}
        base = config.server.base_path
        self._targets = {base + path: endpoint for path, endpoint in self._endpoints.items()}
        self._chat = replace(self._endpoints["/v1/chat/completions"])  # the page's, to be told from the API's
        self._origins = frozenset(config.server.cors)
        self._calls = CallReader(config)

    async def handle(self, client: Client) -> web.StreamResponse | None:
        """Answer one request; whatever happens inside, it ends here, and the process goes on."""
        endpoint = self._targets.get(client.raw_path)  # as almost always: the rest is for the other spellings
        path = endpoint.path if endpoint else _below(self._config.server.base_path, _path(client.raw_path))
        client.dialect = endpoint.dialect if endpoint else dialect_of(path)
        client.request_id = self._id_of(client.head.named.get(b"x-request-id"))
        request_id.set(client.request_id)
        if self.draining:
            client.close_after()
        try:
            check_head(client)
            if endpoint is None and (page := self._pages.at(path, client.method)):
                return await page(client.request, client)
            if not (self._origins and _is_of_the_api(path) and self._share(client)):
                await self._follow(path, client)
        except GatewayError as error:
            client.fail(error)
        except Exception:
            events.exception("unexpected error")
            client.fail(GatewayError(INTERNAL_ERROR, "The gateway failed; its log says why."))
        return None

    def _id_of(self, given: bytes | None) -> str:
        """Give the id that a client gave its request, if it is a sane one, else one of our own.

        Ours are unique, and no secrets; chance is asked once only, as asking costs.
        """
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode()
        return f"{self._id_prefix}{next(self._ids)}"

    def _share(self, client: Client) -> bool:
        """Let pages of the origins in `server.cors` use the API; tells whether that was all that was asked.

        The Fetch standard's CORS protocol, without credentials: a page sends its key by itself.
        """
        named = client.head.named
        origin = named[b"origin"].decode("latin-1") if b"origin" in named else None
        anybody = "*" in self._origins
        # Vary also where there is no origin: caches must not mix the answers up
        client.tell([] if anybody else [("Vary", "Origin")], instead_of="access-control-")
        if origin is None or not (anybody or origin.lower() in self._origins):
            return False
        client.tell(
            [
                ("Access-Control-Allow-Origin", "*" if anybody else origin),
                ("Access-Control-Expose-Headers", "*"),
            ]
        )
        if client.method != "OPTIONS" or b"access-control-request-method" not in named:
            return False
        wanted = named.get(b"access-control-request-headers", b"").decode("latin-1")
        client.tell(
            [
                ("Access-Control-Allow-Methods", "GET, POST"),
                ("Access-Control-Max-Age", str(_PREFLIGHT_S)),
                *([("Access-Control-Allow-Headers", wanted)] if _SANE_FIELD_LIST.fullmatch(wanted) else []),
            ]
        )
        client.respond(204, b"", b"")
        return True

    async def _follow(self, path: str, client: Client) -> None:
        """Serve a request of the API, and write down what became of it."""
        entry = Entry(client.request_id, path, time.monotonic())
        self._running.add(client)
        try:
            endpoint = self._open(path, client, entry)
            from_page = endpoint is self._chat
            caller = self._admit(client, from_page=from_page)
            entry.user, entry.key = caller.user, caller.key_name
            if endpoint is None:
                await self._pages.models(path, caller, client)
            else:
                if b"content-encoding" in client.head.named:
                    refuse_compressed(client.head.named)
                body = client.body.at_hand(self._config.server.max_body)
                if body is None:
                    body = await self._late_body(client, entry)
                call = self._calls.read(client, endpoint, caller, entry, body, from_page)
                await self._proxy.forward(call, caller, client)
            entry.outcome = "ok"
        except GatewayError as error:
            entry.outcome = "truncated" if client.answered else error.kind.type
            client.fail(error)
        except asyncio.CancelledError:
            entry.outcome = DRAINING.type if self._cutting else "client_gone"
            raise
        except Exception:
            entry.outcome = INTERNAL_ERROR.type
            raise
        finally:
            self._running.discard(client)
            if self._none_running is not None and not self._running:
                self._none_running.set()
            self._close(entry, client)

    def _close(self, entry: Entry, client: Client) -> None:
        entry.status = client.status or (500 if entry.outcome == INTERNAL_ERROR.type else _CLIENT_GONE)
        entry.bytes_out = client.bytes_out
        if entry.outcome == INVALID_API_KEY.type:
            entry.address = self._pages.caller_address(client.request, client)
        if entry in self._ledger.in_flight:
            self._ledger.close(entry, now=time.monotonic(), wall=time.time())
        else:
            log_all([(entry, time.monotonic(), time.time())])

    def _open(self, path: str, client: Client, entry: Entry) -> Endpoint | None:
        """Find the endpoint, None for the list of models, and open the books. Raises GatewayError."""
        endpoint = self._chat if path == CHAT else self._endpoints.get(path)
        if endpoint is not None:
            if client.method != "POST":
                raise _not_allowed("POST")
            entry.endpoint = endpoint.path
            self._ledger.open(entry)
            return endpoint
        if path != MODELS and not path.startswith(MODELS + "/"):
            raise GatewayError(NOT_FOUND, "There is no such endpoint here.")
        if client.method not in ("GET", "HEAD"):
            raise _not_allowed("GET, HEAD")
        return None

    async def _late_body(self, client: Client, entry: Entry) -> Body:
        """Wait for the rest of a body. Raises GatewayError."""
        asked_at = time.monotonic()
        body = await client.body.read(self._config.server.max_body)
        entry.body_s = time.monotonic() - asked_at
        return body

    def _admit(self, client: Client, *, from_page: bool) -> Caller:
        """Name the caller. Raises GatewayError."""
        if self.draining:
            raise draining()
        if from_page:
            self._pages.require_same_origin(client.request)
            return self._pages.viewer(client.request)
        known = client.head.sender
        if isinstance(known, _Recognised) and known.by is self._keys:
            return known.caller
        caller = self._keys.recognise(offered_keys(client.head.named), now=time.time())
        if caller.expires_at is None:
            client.head.sender = _Recognised(self._keys, caller)
        return caller

    # -- the end

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.draining = True
        self._pages.drain()

    async def quiet(self, limit_s: float) -> bool:
        """Wait until nothing is in flight, for `limit_s` seconds at most; tells whether that was enough."""
        self._none_running = asyncio.Event()
        try:
            async with asyncio.timeout(limit_s):
                if self._running:
                    await self._none_running.wait()
        except TimeoutError:
            events.warning("cutting what is still in flight", requests=len(self._running))
            return False
        return True

    def cut_off(self) -> None:
        """Tell everybody who is still being served that it is over."""
        self._cutting = True
        for client in list(self._running):
            client.fail(draining())
            client.cancel()


def _path(raw_path: str) -> str:
    """Give the path of a request target as it was sent; the absolute form is as good (RFC 9112 3.2.2)."""
    path = raw_path.partition("?")[0]
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    return path


def _below(base: str, path: str) -> str:
    """Take the base path off; what is not below it is no path of ours."""
    if not base:
        return path
    return path.removeprefix(base) if path == base or path.startswith(base + "/") else ""


def _is_of_the_api(path: str) -> bool:
    """Tell what pages of other sites may be let in to: not what is above the base path, nor the live page."""
    return bool(path) and not path.startswith(PAGE)


def _not_allowed(allowed: str) -> GatewayError:
    return GatewayError(METHOD_NOT_ALLOWED, f"This endpoint takes {allowed}.", (("Allow", allowed),))
