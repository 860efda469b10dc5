"""The face: the route table, authentication, the request id, and the one place where errors are rendered.

Paths are compared as they came, undecoded, so that no spelling of a path reaches what is not in the table. A
key is checked before a byte of the body is read.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import unquote

import orjson
from aiohttp import web

from llmgateway.affinity import Thread, thread_of
from llmgateway.config import Config
from llmgateway.discovery import model_entry
from llmgateway.downstream import MAX_HEAD_BYTES, Client, head_size
from llmgateway.errors import (
    DRAINING,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    GatewayError,
)
from llmgateway.fleet import Fleet
from llmgateway.health import Watch
from llmgateway.keys import Caller, KeyRing, offered_keys
from llmgateway.log import Events, request_id
from llmgateway.proxy import Call, Proxy
from llmgateway.router import no_provider
from llmgateway.upstream import Outgoing
from llmgateway.wire import ENDPOINTS, Endpoint, dialect_of, peek

events = Events("app")

_MODELS: Final = "/v1/models"
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SANE_QUERY: Final = re.compile(r"[!$-~]*")  # visible ASCII but for `"` and `#`
_DRAIN_RETRY_S: Final = 5
_LOGGED_CHARACTERS: Final = 100  # of what a client chose
_BYTES_A_TOKEN: Final = 4
_MOST_PROMPT_TOKENS: Final = 100_000  # images and files make a body long, not the prompt

Handler = Callable[[web.BaseRequest, Client], Awaitable[None]]


class App:
    """Answers every request: the gateway's own pages itself, the rest through the proxy."""

    def __init__(self, config: Config, keys: KeyRing, fleet: Fleet, watch: Watch, proxy: Proxy) -> None:
        self.draining = False
        self._config = config
        self._keys = keys
        self._fleet = fleet
        self._watch = watch
        self._proxy = proxy
        self._started_at = int(time.time())
        self._running: dict[Client, asyncio.Task[None] | None] = {}
        self._none_running = asyncio.Event()
        self._none_running.set()
        self._open: Mapping[str, Handler] = {"/healthz": self._healthz, "/readyz": self._readyz}
        extra = (Endpoint(path) for path in config.server.extra_paths)
        self._endpoints = {endpoint.path: endpoint for endpoint in (*ENDPOINTS, *extra)}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever happens inside, it ends here, and the process goes on."""
        path = _path(request.raw_path)
        own_id = request.headers.get("x-request-id", "")
        client = Client(
            request, own_id if _SANE_ID.fullmatch(own_id) else secrets.token_hex(12), dialect_of(path)
        )
        request_id.set(client.request_id)
        if self.draining:
            client.close_after()
        try:
            await self._answer(request, path, client)
        except GatewayError as error:
            client.fail(error)
        except Exception:
            events.exception("unexpected error")
            client.fail(GatewayError(INTERNAL_ERROR, "The gateway failed; its log says why."))
        return client.finished()

    async def _answer(self, request: web.BaseRequest, path: str, client: Client) -> None:
        _check_head(request, client)
        if handler := self._open.get(path):
            _require_method(request, "GET", "HEAD")
            await handler(request, client)
            return
        started = time.monotonic()
        facts: dict[str, object] = {}
        self._running[client] = asyncio.current_task()
        self._none_running.clear()
        try:
            await self._serve(request, path, client, facts)
        except GatewayError as error:
            facts["error"] = error.kind.type
            client.fail(error)
        except asyncio.CancelledError:
            facts["error"] = DRAINING.type if client.ended else "client_gone"
            raise
        finally:
            del self._running[client]
            if not self._running:
                self._none_running.set()
            facts["ms"] = round((time.monotonic() - started) * 1000, 1)
            facts["bytes"] = client.bytes_out
            events.info("request", path=path[:_LOGGED_CHARACTERS], status=client.status, **facts)

    async def _serve(
        self, request: web.BaseRequest, path: str, client: Client, facts: dict[str, object]
    ) -> None:
        endpoint = self._endpoints.get(path)
        is_models = path == _MODELS or path.startswith(_MODELS + "/")
        if endpoint is not None:
            _require_method(request, "POST")
        elif is_models:
            _require_method(request, "GET", "HEAD")
        else:
            raise GatewayError(NOT_FOUND, "There is no such endpoint here.")
        if self.draining:
            raise _draining()
        caller = self._keys.recognise(offered_keys(request.headers), now=time.time())
        facts |= {"user": caller.user, "key": caller.key_name}
        if endpoint is None:
            await self._models(path, caller, client)
        else:
            await self._forward(request, endpoint, caller, client, facts)

    async def _forward(
        self,
        request: web.BaseRequest,
        endpoint: Endpoint,
        caller: Caller,
        client: Client,
        facts: dict[str, object],
    ) -> None:
        if request.headers.get("content-encoding", "").lower() not in ("", "identity"):
            raise GatewayError(
                INVALID_REQUEST, "A compressed request body is not understood; send it as it is."
            )
        call = await self._call(request, endpoint, caller, client)
        facts["model"] = call.model[:_LOGGED_CHARACTERS]
        try:
            await self._proxy.forward(call, caller, client)
        finally:
            facts |= _told_of(call)

    async def _call(
        self, request: web.BaseRequest, endpoint: Endpoint, caller: Caller, client: Client
    ) -> Call:
        """Read the request, and from its body what routing needs to know."""
        body = await client.read_body(self._config.server.max_body)
        seen = peek(body, endpoint.body, request.headers.get("content-type", ""))
        names = self._config.affinity.headers
        session = next((value for name in names if (value := request.headers.get(name))), None)
        converses = endpoint.streams  # what answers in events builds on a KV cache, and nothing else does
        return Call(
            seen.model,
            Outgoing(
                endpoint.path,
                _query(request.raw_path),
                tuple(request.raw_headers),
                client.request_id,
                body,
            ),
            thread_of(seen, user=caller.user, session=session) if converses else Thread(),
            prompt_tokens=min(len(body) // _BYTES_A_TOKEN, _MOST_PROMPT_TOKENS),
            output_limit=seen.output_limit,
            keepalive_s=self._config.streams.keepalive if seen.streams and endpoint.streams else 0.0,
        )

    # -- the gateway's own pages

    async def _healthz(self, _: web.BaseRequest, client: Client) -> None:
        client.respond(200, b'{"status":"ok"}')

    async def _readyz(self, _: web.BaseRequest, client: Client) -> None:
        if self.draining:
            raise _draining()
        if self._watch.first_round.is_set():
            client.respond(200, b'{"status":"ready"}')
        else:
            client.respond(503, b'{"status":"starting"}')

    async def _models(self, path: str, caller: Caller, client: Client) -> None:
        await self._watch.first_round.wait()
        entries = {
            name: model_entry(model, owned_by=provider, created=self._started_at)
            for name, (model, provider) in sorted(self._fleet.models_for(caller).items())
        }
        wanted = unquote(path.removeprefix(_MODELS).removeprefix("/"))
        if not wanted:
            client.respond(200, orjson.dumps({"object": "list", "data": list(entries.values())}))
        elif wanted in entries:
            client.respond(200, orjson.dumps(entries[wanted]))
        else:
            raise no_provider(wanted)

    # -- the end

    async def quiet(self, limit_s: float) -> bool:
        """Wait until nothing is in flight, for `limit_s` seconds at most; tells whether that was enough."""
        try:
            async with asyncio.timeout(limit_s):
                await self._none_running.wait()
        except TimeoutError:
            events.warning("cutting what is still in flight", requests=len(self._running))
            return False
        return True

    def cut_off(self) -> None:
        """Tell everybody who is still being served that it is over."""
        for client, task in list(self._running.items()):
            client.fail(_draining())
            if task is not None:
                task.cancel()


def _told_of(call: Call) -> dict[str, object]:
    """Give what is worth a place in the log of how a call went."""
    facts: dict[str, object] = {"provider": call.provider, "affinity": call.affinity}
    if call.attempts > 1:
        facts["attempts"] = call.attempts
    if call.waited_s:
        facts["waited_ms"] = round(call.waited_s * 1000, 1)
    return facts


def _path(raw_path: str) -> str:
    """Give the path of a request target as it was sent; the absolute form is as good (RFC 9112 3.2.2)."""
    path = raw_path.partition("?")[0]
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    return path


def _query(raw_path: str) -> str:
    query = raw_path.partition("?")[2]
    if not _SANE_QUERY.fullmatch(query):
        raise GatewayError(INVALID_REQUEST, "The query has characters that must be percent-encoded.")
    return query


def _require_method(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise GatewayError(METHOD_NOT_ALLOWED, f"This endpoint takes {allowed}.", (("Allow", allowed),))


def _check_head(request: web.BaseRequest, client: Client) -> None:
    """Refuse, and close after, what aiohttp's parser accepts though it should not."""
    trouble = ""
    if request.version not in ((1, 0), (1, 1)):
        trouble = "Only HTTP/1.0 and HTTP/1.1 are spoken here."
    elif request.version == (1, 0) and "transfer-encoding" in request.headers:
        trouble = "HTTP/1.0 has no Transfer-Encoding."
    elif request.headers.get("transfer-encoding", "chunked").lower() != "chunked":
        trouble = "No transfer coding but chunked is understood."
    elif head_size(request) > MAX_HEAD_BYTES:
        trouble = f"The request's head is over {MAX_HEAD_BYTES} bytes."
    if trouble:
        client.close_after()
        raise GatewayError(INVALID_REQUEST, trouble)


def _draining() -> GatewayError:
    return GatewayError(DRAINING, "The gateway is shutting down.", (("Retry-After", str(_DRAIN_RETRY_S)),))
