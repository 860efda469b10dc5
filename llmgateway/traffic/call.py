"""A request becomes a Call: what routing needs to know of it, and what goes to a provider.

Rules:

- The body is looked at, and goes on as it came; what is compressed cannot be looked at, and is refused.
- The path that a provider is asked for comes from the endpoint table, never from the client.
- What a browser adds for the gateway's own page goes no further.
- A client's own id of its request goes on if it is a UUID; some servers refuse whatever else they get as one.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.endpoints import Body, Endpoint
from llmgateway.api.multipart import peek_multipart
from llmgateway.api.peek import peek_json
from llmgateway.books.entry import Entry
from llmgateway.config.settings import Config
from llmgateway.errors import INVALID_REQUEST, GatewayError
from llmgateway.fleet.address import Outgoing
from llmgateway.http.client import Client
from llmgateway.http.headers import request_head
from llmgateway.log import Events
from llmgateway.traffic.affinity import Thread, thread_of

events = Events("app")

_SANE_QUERY: Final = re.compile(r"[!$-~]*")  # visible ASCII but for `"` and `#`
_UUID: Final = re.compile(r"(?i)[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}")
_MODEL_CHARACTERS: Final = 200
_OF_THE_PAGE: Final = frozenset({b"cookie", b"referer"})


class Call(msgspec.Struct):
    """One request to be forwarded, and the entry in which it is written down how that goes."""

    model: str
    outgoing: Outgoing
    thread: Thread
    entry: Entry
    prompt_bytes: int = 0
    """The size of what costs prompt tokens; 0 for what costs none."""
    output_limit: int | None = None
    keepalive_s: float = 0.0
    """Silence after which its stream gets a comment; 0 if it must not have one."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The way of a request to a provider: its endpoint, and whether the live page asks, with its session."""

    endpoint: Endpoint
    from_page: bool = False


class CallReader:
    """Makes calls of requests, as one config wants it."""

    def __init__(self, config: Config) -> None:
        self._session_fields = dict.fromkeys(name.lower().encode() for name in config.affinity.headers)
        self._keepalive_s = config.streams.keepalive

    def read(self, client: Client, route: Forward, caller: Caller, entry: Entry, body: Body) -> Call:
        """Read from a request what routing needs to know. Raises GatewayError (400)."""
        endpoint = route.endpoint
        entry.bytes_in = size = len(body)
        named = client.head.named
        if endpoint.body == "json":
            seen = peek_json(body)
        else:
            seen = peek_multipart(body, named.get(b"content-type", b""))
        model, streams = seen.model, seen.streams
        entry.model, entry.streams = model[:_MODEL_CHARACTERS], streams
        fields, head = client.fields, client.head
        if route.from_page:
            fields = tuple(field for field in fields if field[0].lower() not in _OF_THE_PAGE)
            head = request_head(fields)
        keepalive_s = self._keepalive_s if streams and endpoint.streams else 0.0
        lines = head.plain_lines if keepalive_s else head.lines
        query = _query(client.raw_path) if "?" in client.raw_path else ""
        request_id = client.request_id if b"x-request-id" not in named else _uuid(client.request_id)
        outgoing = Outgoing(endpoint.path, query, fields, lines, request_id, body, keepalive_s > 0.0)
        prompt_bytes = (seen.prompt_bytes or size) if endpoint.reads else 0
        if not endpoint.streams:  # what answers in events builds on a KV cache, and nothing else does
            return Call(model, outgoing, Thread(), entry, prompt_bytes, seen.output_limit)
        session = None
        if not self._session_fields.keys().isdisjoint(named):
            session = next(filter(None, map(named.get, self._session_fields)), None)
        thread = thread_of(seen, user=caller.party, session=session)
        return Call(model, outgoing, thread, entry, prompt_bytes, seen.output_limit, keepalive_s)


def refuse_compressed(named: Mapping[bytes, bytes]) -> None:
    """Refuse a request, by its header fields, whose body cannot be looked at. Raises GatewayError (400)."""
    if named.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
        words = "A compressed request body is not understood; send it as it is."
        raise GatewayError(INVALID_REQUEST, words)


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
    return query
