"""What the gateway answers by itself: health, models, metrics, the live page with its sign-in and events.

The page's files need no key; they hold nothing. Everything that tells something asks who is there: an API
key, the cookie of a session, or (for the snapshot alone, and on this machine only) what proves that somebody
can read the config file. What changes anything must come from the page itself, not from another site.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import orjson
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from llmgateway.access.keys import Caller, KeyRing, digest, offered_keys
from llmgateway.access.sessions import LIFE_S, Sessions
from llmgateway.books.metrics import Metrics
from llmgateway.config.settings import Config
from llmgateway.errors import (
    FORBIDDEN,
    INVALID_API_KEY,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    OVERLOADED,
    GatewayError,
    draining,
    no_provider,
)
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.http.client import Client
from llmgateway.http.headers import request_head
from llmgateway.http.peers import TRACES, Peer, peer_of
from llmgateway.log import Events
from llmgateway.servers.models import model_entry
from llmgateway.web.status import Status

events = Events("pages")

MODELS: Final = "/v1/models"
PAGE: Final = "/gateway/"
CHAT: Final = PAGE + "chat"
COOKIE: Final = "llmgateway"
PERIOD_S: Final = 0.5
"""The least time between two snapshots for one viewer."""
MOST_VIEWERS: Final = 100
MOST_VIEWERS_OF_A_USER: Final = 20
VIEWERS_RETRY_S: Final = 30
_SIGN_IN_BYTES: Final = 4_096
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
}
_PLAIN: Final = "text/plain; charset=utf-8"
_FRESH: Final = "Cache-Control: no-store\r\n"
_JSON: Final = f"Content-Type: application/json\r\n{_FRESH}".encode()

Page = Callable[[web.BaseRequest, Client], Awaitable[web.StreamResponse | None]]


class Pages:
    """The gateway's own pages, by path; one answers through the client, or gives a response of aiohttp's."""

    def __init__(
        self,
        fleet: Fleet,
        watch: Watch,
        status: Status,
        metrics: Metrics,
        sessions: Sessions,
        recall: Callable[[], Awaitable[None]],
    ) -> None:
        """Answer from these; `recall` is awaited before anybody is shown what was used."""
        self._recall = recall
        self._fleet = fleet
        self._watch = watch
        self._status = status
        self._metrics = metrics
        self._sessions = sessions
        self._started_at = int(time.time())
        self._files = _page_files()
        self._viewers: dict[Client, tuple[str, web.BaseRequest]] = {}
        self._closing = asyncio.Event()
        self._pages: Mapping[str, tuple[tuple[str, ...], Page]] = {
            "/healthz": (("GET", "HEAD"), self._healthz),
            "/readyz": (("GET", "HEAD"), self._readyz),
            "/metrics": (("GET", "HEAD"), self._scrape),
            "/gateway": (("GET", "HEAD"), self._to_page),
            PAGE + "session": (("POST", "DELETE"), self._session),
            PAGE + "status": (("GET", "HEAD"), self._snapshot),
            PAGE + "events": (("GET",), self._events),
        }

    def adopt(self, config: Config, keys: KeyRing) -> None:
        """Take in a config and its keys."""
        self._config = config
        self._keys = keys
        self._status.adopt(keys)

    def at(self, path: str, method: str) -> Page | None:
        """Give the page at a path, if it is one of ours. Raises GatewayError (405)."""
        if path in self._pages:
            methods, page = self._pages[path]
        elif path in self._files:
            methods, page = ("GET", "HEAD"), partial(self._file, path)
        else:
            return None
        if method not in methods:
            allowed = ", ".join(methods)
            raise GatewayError(METHOD_NOT_ALLOWED, f"This page takes {allowed}.", (("Allow", allowed),))
        return page

    def drain(self) -> None:
        """Send viewers away, those who do not read by force: their connections would hold the end up."""
        self._status.condition.draining = True
        self._closing.set()
        for transport in [request.transport for _, request in self._viewers.values()]:
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()

    # -- who asks

    def viewer(self, request: web.BaseRequest) -> Caller:
        """Name who looks at the page: by a key, else by the session. Raises GatewayError (401)."""
        now = time.time()
        key_digest = self._sessions.key_digest(request.cookies.get(COOKIE, ""))
        offered = _offered(request)
        if offered or key_digest is None:
            return self._keys.recognise(offered, now=now)
        caller = self._keys.find(key_digest)
        if caller is None or (caller.expires_at is not None and now >= caller.expires_at):
            raise GatewayError(
                INVALID_API_KEY,
                "The API key of this session is no longer valid; sign in again.",
                (("WWW-Authenticate", "Bearer"),),
            )
        return caller

    def require_same_origin(self, request: web.BaseRequest) -> None:
        """Refuse what another site made a browser send. Raises GatewayError (403).

        Browsers tell by `Sec-Fetch-Site` on secure pages, else by `Origin`. JSON from another site would need
        a preflight, which the page never grants.
        """
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site is not None:
            good = site == "same-origin"
        else:
            good = origin is None or _authority(origin) == request.headers.get("host", "").lower()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not good:
            raise GatewayError(FORBIDDEN, "This must come from the gateway's own page.")
        if kind != "application/json":
            raise GatewayError(INVALID_REQUEST, "The Content-Type must be application/json.")

    def peer(self, request: web.BaseRequest, client: Client) -> Peer:
        """Tell who is behind a request."""
        headers = {name: ",".join(request.headers.getall(name)) for name in TRACES if name in request.headers}
        server = self._config.server
        return peer_of(client.address, headers, server.trusted_proxies, over_tls=request.secure)

    def caller_address(self, request: web.BaseRequest, client: Client) -> str:
        """Give the address to hold a refused key against: the client's, else that of whoever is connected."""
        return str(self.peer(request, client).address or client.address)

    # -- health, models, metrics

    async def _healthz(self, _: web.BaseRequest, client: Client) -> None:
        client.respond(200, b'{"status":"ok"}')

    async def _readyz(self, _: web.BaseRequest, client: Client) -> None:
        if self._closing.is_set():
            raise draining()
        if self._watch.first_round.is_set():
            client.respond(200, b'{"status":"ready"}')
        else:
            client.respond(503, b'{"status":"starting"}')

    async def models(self, path: str, caller: Caller, client: Client) -> None:
        """Answer with the models that a caller can use now, or one of them."""
        await self._watch.settled()
        entries = {
            name: model_entry(model, owned_by=provider, created=self._started_at)
            for name, (model, provider) in sorted(self._fleet.models_for(caller).items())
        }
        wanted = unquote(path.removeprefix(MODELS).removeprefix("/"))
        if not wanted:
            client.respond(200, orjson.dumps({"object": "list", "data": list(entries.values())}))
        elif wanted in entries:
            client.respond(200, orjson.dumps(entries[wanted]))
        else:
            raise no_provider(wanted)

    async def _scrape(self, request: web.BaseRequest, client: Client) -> None:
        peer = self.peer(request, client)
        if not peer.is_in(self._config.server.metrics_from) or _may_be_rebound(request, peer):
            caller = self._keys.recognise(_offered(request), now=time.time())
            if not caller.admin:
                raise GatewayError(FORBIDDEN, "From here, metrics are for admins.")
        body, content_type = self._metrics.render(request.headers.get("accept", ""))
        client.respond(200, body, f"Content-Type: {content_type}\r\n{_FRESH}".encode())

    # -- the live page

    async def _to_page(self, _: web.BaseRequest, client: Client) -> None:
        client.respond(308, b"", f"Location: {self._config.server.base_path}{PAGE}\r\n".encode())

    async def _file(self, path: str, _: web.BaseRequest, client: Client) -> None:
        body, lines = self._files[path]
        client.respond(200, body, lines)

    async def _session(self, request: web.BaseRequest, client: Client) -> None:
        self.require_same_origin(request)
        if request.method == "DELETE":
            self._sessions.close(request.cookies.get(COOKIE, ""))
            client.respond(204, b"", f"{self._cookie(request, client, '', 0)}{_FRESH}".encode())
            return
        key = _key_in(await client.body.read(_SIGN_IN_BYTES))
        try:
            caller = self._keys.recognise([key], now=time.time())
        except GatewayError:
            events.info("sign-in refused", client=self.caller_address(request, client))
            raise
        left_s = LIFE_S if caller.expires_at is None else min(LIFE_S, caller.expires_at - time.time())
        token = self._sessions.open(digest(key))
        client.respond(204, b"", f"{self._cookie(request, client, token, int(left_s))}{_FRESH}".encode())

    def _cookie(self, request: web.BaseRequest, client: Client, token: str, life_s: int) -> str:
        path = self._config.server.base_path + PAGE
        secure = "; Secure" if self.peer(request, client).secure else ""
        rules = f"Path={path}; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}"
        return f"Set-Cookie: {COOKIE}={token}; {rules}\r\n"

    async def _snapshot(self, request: web.BaseRequest, client: Client) -> None:
        viewer = self._local(request, client) or self.viewer(request)
        await self._recall()
        client.respond(200, orjson.dumps(self._status.snapshot(viewer, wall=time.time())), _JSON)

    def _local(self, request: web.BaseRequest, client: Client) -> Caller | None:
        """Recognise `gateway.py status` on this machine: it has read the config file."""
        credentials = self._keys.local_credentials
        peer = self.peer(request, client)
        if credentials is None or peer.proxied or peer.address is None:
            return None
        if not (peer.address.is_loopback or str(peer.address) == client.own_address):
            return None
        shown = digest(credentials)
        if any(digest(offered) == shown for offered in _offered(request)):
            return Caller("", admin=True)
        return None

    async def _events(self, request: web.BaseRequest, client: Client) -> web.StreamResponse:
        viewer = self.viewer(request)
        if self._closing.is_set():
            raise draining()
        if request.version < (1, 1):
            raise GatewayError(INVALID_REQUEST, "Events need HTTP/1.1.")
        own = sum(user == viewer.user for user, _ in self._viewers.values())
        if len(self._viewers) >= MOST_VIEWERS or own >= MOST_VIEWERS_OF_A_USER:
            again = (("Retry-After", str(VIEWERS_RETRY_S)),)
            raise GatewayError(OVERLOADED, "There are too many viewers already.", again)
        response = EventSourceResponse(headers={"x-request-id": client.request_id})
        self._viewers[client] = viewer.user, request
        try:
            await self._recall()
            await response.prepare(request)
            client.status = 200
            async with response:
                await self._show(request, response)
        except (ConnectionError, TimeoutError):
            pass  # it left, or does not read
        finally:
            del self._viewers[client]
        return response

    async def _show(self, request: web.BaseRequest, response: EventSourceResponse) -> None:
        """Send a snapshot whenever something has changed, for as long as the viewer may look."""
        last: dict[str, Any] = {}
        while not self._closing.is_set():
            try:
                viewer = self.viewer(request)
            except GatewayError:
                return
            snapshot = self._status.snapshot(viewer, wall=time.time())
            if (lasting := _lasting(snapshot)) != last:
                last = lasting
                await response.send(orjson.dumps(snapshot).decode(), event="snapshot")
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._closing.wait()
            except TimeoutError:
                pass


def _offered(request: web.BaseRequest) -> list[bytes]:
    return offered_keys(request_head(request.raw_headers).named)


def _lasting(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a snapshot what changes only because time passes: viewers have clocks of their own."""
    return {
        **snapshot,
        "gateway": {**snapshot["gateway"], "now": None},
        "requests": [{**row, "age_s": None} for row in snapshot["requests"]],
        "limits": [{**row, "resets_in_s": None} for row in snapshot["limits"]],
    }


def _may_be_rebound(request: web.BaseRequest, peer: Peer) -> bool:
    """Tell whether a web page in a browser on this machine may be asking, by a name that it made mean us.

    Such a name has a dot and is no address; programs of this machine ask for an address or a short name.
    """
    if peer.address is None or not peer.address.is_loopback:
        return False
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    return "." in host and not host.replace(".", "").isdigit() and not host.endswith(".localhost")


def _authority(origin: str) -> str | None:
    """Give the host and port of an origin; None if it has none, such as `null`, or is not one."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _key_in(body: bytes | bytearray) -> str:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    key = given.get("key") if isinstance(given, dict) else None
    if not isinstance(key, str):
        raise GatewayError(INVALID_REQUEST, 'The body must be {"key": "..."}.')
    return key.strip()


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
