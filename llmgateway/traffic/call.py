"""A request becomes a Call: what routing needs to know of it, and what goes to a provider.

Rules:

- The body is looked at, and goes on as it came.
- A body that names no model gets the default one, if the config has any, and no byte of it is lost.
- The path that a provider is asked for comes from the endpoint table, never from the client; an id in it is
  one that somebody was told.
- What a browser adds for the gateway's own page goes no further.
- A client's own id of its request goes on if it is a UUID; some servers refuse whatever else they get as one.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import parse_qsl, quote

import msgspec

from llmgateway.access.keys import Caller, key_protocols, without_keys
from llmgateway.api.endpoints import Body, Endpoint
from llmgateway.api.multipart import form_with_model, peek_multipart
from llmgateway.api.peek import Peek, peek_json
from llmgateway.api.rename import name_in, with_model
from llmgateway.api.unreadable import NoModel, bad, check_model
from llmgateway.books.entry import Entry
from llmgateway.config.settings import Config
from llmgateway.errors import INVALID_REQUEST, GatewayError
from llmgateway.fleet.address import Outgoing
from llmgateway.http.client import Client
from llmgateway.http.handshake import accept_of, require_handshake
from llmgateway.http.headers import request_head
from llmgateway.log import Events
from llmgateway.traffic.affinity import Thread, thread_of
from llmgateway.traffic.keepers import Kept
from llmgateway.veil import veiled

events = Events("app")

NO_MODEL: Final = ""
"""The model of a request that names none, and for which whoever has the path will do."""
_SANE_QUERY: Final = re.compile(r"[!$-~]*")  # visible ASCII but for `"` and `#`
_UUID: Final = re.compile(r"(?i)[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}")
_MODEL_CHARACTERS: Final = 200
_TRUE: Final = ("true", "1")
_OF_THE_PAGE: Final = frozenset({b"cookie", b"referer"})


class Call(msgspec.Struct):
    """One request to be forwarded, and the entry in which it is written down how that goes."""

    model: str
    endpoint: str
    """The name of the endpoint that it wants; "" for one that everybody has."""
    outgoing: Outgoing
    thread: Thread
    entry: Entry
    prompt_bytes: int = 0
    """The size of what costs prompt tokens; 0 for what costs none."""
    output_limit: int | None = None
    keepalive_s: float = 0.0
    """Silence after which its stream gets a comment; 0 if it must not have one."""
    writes: bool = False
    """Whether a model writes text in answer to it."""
    follows: str = ""
    """The id of the kept answer that it goes on from; empty if it begins anew."""
    keeps: bool = False
    """Whether its answer is one that can be asked for again."""
    kept: Kept | None = None
    """The kept answer that it has brought, or asks about."""
    asked: str = ""
    """What the client has asked for, if that is not the model."""
    ping_s: float = 0.0
    """Silence after which a WebSocket gets a ping; 0: seldom."""
    key_protocol: bytes = b""
    """The subprotocol by which a WebSocket's handshake shows a key, if one does."""
    check: Callable[[], object] = lambda: None
    """Raises GatewayError once the key of a WebSocket's handshake is good no more."""

    def be_for(self, model: str) -> None:
        """Be for another model than the client has asked for."""
        self.asked = self.asked or self.model
        if self.asked == model:
            self.asked = ""
        self.model = model
        self.entry.model, self.entry.asked_model = model[:_MODEL_CHARACTERS], self.asked[:_MODEL_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Forward:
    """The way of a request to a provider: its endpoint, and whether the live page asks, with its session.

    `beside` are the endpoints at the same path for other methods; `wanted` is the id in a path that has one.
    """

    endpoint: Endpoint
    from_page: bool = False
    beside: tuple[Endpoint, ...] = ()
    wanted: str = ""

    @property
    def path(self) -> str:
        """The path that a provider is asked for."""
        return self.endpoint.path.replace("{id}", self.wanted)

    @property
    def methods(self) -> list[str]:
        """The methods that the path takes."""
        return [each.method for each in (self.endpoint, *self.beside)]

    def by(self, method: str) -> "Forward | None":
        """Give the way of another method, if there is one."""
        ways = (Forward(each, wanted=self.wanted) for each in self.beside if each.method == method)
        return next(ways, None)


class CallReader:
    """Makes calls of requests, as one config wants it."""

    def __init__(self, config: Config, recognise: Callable[[Client], object]) -> None:
        """Read by a config; `recognise` raises GatewayError if nobody may ask as a client does any more."""
        self._recognise = recognise
        fields = dict.fromkeys(name.lower().encode() for name in config.affinity.headers)
        self._session_fields, self._any_session_field = tuple(fields), frozenset(fields)
        self._keepalive_s = config.streams.keepalive
        self._default_model = config.server.default_model

    def read(
        self,
        client: Client,
        route: Forward,
        caller: Caller,
        entry: Entry,
        body: Body,
        seen: Peek | None = None,
    ) -> Call:
        """Read from a request what routing needs to know; `seen` is what is known of its body already.

        Raises GatewayError (400).
        """
        endpoint = route.endpoint
        entry.bytes_in = size = len(body)
        named = client.head.named
        query = _query(client.raw_path) if "?" in client.raw_path else ""
        if endpoint.body == "socket":
            return self._read_handshake(client, endpoint, query, entry, body)
        if seen is None:
            try:
                seen = _look(endpoint, query, named, body)
            except NoModel:
                name = (endpoint.by_name and name_in(body)) or self._default_model
                if name is None:
                    raise
                seen, body = _named(name, endpoint, body, named.get(b"content-type", b""))
        model, streams, wanted = seen.model, seen.streams, endpoint.name
        follows = seen.follows if seen.follows and endpoint.dialect.fields.follows else ""
        if streams is None:
            streams = endpoint.streams_unasked
        entry.model, entry.streams = model, streams
        if len(model) > _MODEL_CHARACTERS:
            entry.model = model[:_MODEL_CHARACTERS]
        fields, head = client.fields, client.head
        if route.from_page:
            fields = tuple(field for field in fields if field[0].lower() not in _OF_THE_PAGE)
            head = request_head(fields)
        keepalive_s = 0.0
        if streams and endpoint.streams and endpoint.dialect.keepalive is not None:
            keepalive_s = self._keepalive_s
        lines = head.plain_lines if keepalive_s else head.lines
        request_id = client.request_id if b"x-request-id" not in named else _uuid(client.request_id)
        plain, method, where = keepalive_s > 0.0, endpoint.method, endpoint.body
        outgoing = Outgoing(endpoint.path, query, fields, lines, request_id, body, plain, method, where)
        prompt_bytes = (seen.prompt_bytes or size) if endpoint.reads else 0
        if not endpoint.streams:  # what answers in events builds on a KV cache, and nothing else does
            limit = seen.output_limit
            return Call(model, wanted, outgoing, Thread(), entry, prompt_bytes, limit, follows=follows)
        session = None
        if not self._any_session_field.isdisjoint(named):
            session = next(filter(None, map(named.get, self._session_fields)), None)
        thread = thread_of(seen, user=caller.party, session=session)
        limit, keeps = seen.output_limit, endpoint.keeps
        return Call(
            model, wanted, outgoing, thread, entry, prompt_bytes, limit, keepalive_s, True, follows, keeps
        )

    def recall(self, client: Client, route: Forward, entry: Entry, body: Body) -> Call:
        """Read what is asked about a kept answer. Raises GatewayError (400)."""
        endpoint, head = route.endpoint, client.head
        query = _query(client.raw_path)
        entry.bytes_in, entry.recalls = len(body), True
        entry.streams = endpoint.streams and dict(parse_qsl(query)).get("stream", "").lower() in _TRUE
        keepalive_s = self._keepalive_s if entry.streams else 0.0
        lines = head.plain_lines if keepalive_s else head.lines
        request_id = client.request_id if b"x-request-id" not in head.named else _uuid(client.request_id)
        outgoing = Outgoing(
            route.path, query, client.fields, lines, request_id, body, keepalive_s > 0.0, endpoint.method
        )
        return Call(NO_MODEL, endpoint.name, outgoing, Thread(), entry, keepalive_s=keepalive_s)

    def _read_handshake(
        self, client: Client, endpoint: Endpoint, query: str, entry: Entry, body: Body
    ) -> Call:
        """Read from a WebSocket's handshake what routing needs to know. Raises GatewayError (400, 426)."""
        if body:
            raise bad("A WebSocket's handshake has no body.")
        named = client.head.named
        require_handshake(named, client.version)
        if not client.may_switch:
            raise bad("Something stands behind the handshake that is not of a WebSocket.")
        model = _model_in(query)
        if not model and self._default_model is not None:
            model = self._default_model
            query = f"{query}{'&' if query else ''}model={quote(model, safe='')}"
        if not model:
            raise NoModel("The query names no 'model'; it belongs there, as in /v1/realtime?model=NAME.")
        entry.model, entry.streams = model[:_MODEL_CHARACTERS], True
        fields = without_keys(client.fields)
        outgoing = Outgoing(
            endpoint.path,
            query,
            fields,
            request_head(fields).lines,
            client.request_id if b"x-request-id" not in named else _uuid(client.request_id),
            b"",
            method=endpoint.method,
            names_model_in=endpoint.body,
            accept=accept_of(named[b"sec-websocket-key"]),
        )
        call = Call(model, endpoint.name, outgoing, Thread(), entry, ping_s=self._keepalive_s)
        call.check = partial(self._recognise, client)
        call.key_protocol = next(iter(key_protocols(named)), b"")
        return call


def _look(endpoint: Endpoint, query: str, named: Mapping[bytes, bytes], body: Body) -> Peek:
    """Read what the endpoint has a request say, where it has it said. Raises GatewayError (400)."""
    if endpoint.body == "json":
        return peek_json(body)
    if endpoint.body == "multipart":
        return peek_multipart(body, named.get(b"content-type", b""))
    return Peek(_model_in(query) if endpoint.body == "query" else NO_MODEL, streams=False)


def _named(model: str, endpoint: Endpoint, body: Body, content_type: bytes) -> tuple[Peek, Body]:
    """Look again at a body that names no model, with one in it: servers want to be told, too."""
    if endpoint.body == "json":
        body = with_model(body, model)
        return peek_json(body), body
    body = form_with_model(body, content_type, model)
    return peek_multipart(body, content_type), body


def _model_in(query: str) -> str:
    """Give the model that a query names; none if it names none. Raises GatewayError (400)."""
    named = {value for name, value in parse_qsl(query) if name == "model"}
    if len(named) > 1:
        raise GatewayError(INVALID_REQUEST, "The query names more than one 'model'.")
    for model in named:
        check_model(model)
        return model
    return NO_MODEL


def _uuid(request_id: str) -> str:
    """Give an id that every server takes: this one, or another in the place of what is no UUID."""
    if _UUID.fullmatch(request_id):
        return request_id
    instead = uuid.uuid4().hex
    events.debug("a request has another id at its provider", there=instead)
    return instead


def _query(raw_path: str) -> str:
    query = raw_path.partition("?")[2]
    if not _SANE_QUERY.fullmatch(query):
        raise GatewayError(INVALID_REQUEST, "The query has characters that must be percent-encoded.")
    return veiled(query)
