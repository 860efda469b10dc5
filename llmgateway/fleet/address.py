"""Where a provider is, and how requests to it are written.

Everything is asked below the prefix of the provider's own URL: what stands beside it on the same host may be
another program, which must not get this one's key. What never changes about requests is written once.
"""

from typing import Final, assert_never
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec.structs import replace

from llmgateway.api.dialect import BodyKind
from llmgateway.api.endpoints import Body
from llmgateway.api.multipart import Span
from llmgateway.api.rename import form_with, json_with, query_with
from llmgateway.config.providers import ProviderConfig
from llmgateway.http.headers import Field, request_head
from llmgateway.http.room import Hold
from llmgateway.http.upload import Cargo, Edit, Packed

_MOST_OPENINGS: Final = 64
_OF_TRACES: Final = frozenset({b"traceparent", b"tracestate"})


class Outgoing(msgspec.Struct, gc=False):
    """A request on its way to whichever provider takes it.

    `path` is the gateway's own (from the endpoint table), `query` what followed `?`, `fields` what the client
    sent, `lines` what passes on of it. `body` is dropped once an answer is relayed: it may be large, and the
    answer may take an hour.
    """

    path: str
    query: str
    fields: tuple[Field, ...]
    lines: bytes
    request_id: str
    body: Body
    plain: bool = False
    """Whether the answer must not be compressed."""
    method: str = "POST"
    names_model_in: BodyKind = "json"
    hold: Hold | None = None
    """What the body holds of the room for bodies, if it is a large one."""
    model_at: Span | None = None
    """Where the model stands in the body, if that is known."""
    accept: bytes = b""
    """What grants the change to another protocol, where one is asked for."""
    around: tuple[bytes, bytes] = (b"", b"")
    """What has to stand around the model there, if the body has none."""
    trace: bytes = b""
    """Lines that make it a part of a trace, in the place of the client's own."""
    cargo: Cargo | None = None
    """A body that is too large to be written at once, in the place of `body`."""

    def let_go(self) -> None:
        """Hold a large body no more: nobody else will be sent it."""
        if self.hold is not None and (self.cargo is None or self.cargo.upload.let_go()):
            self.hold.release()

    @property
    def repeatable(self) -> bool:
        """True while it can be sent from its beginning."""
        return self.cargo is None or self.cargo.upload.repeatable

    def asking_for(self, model: str) -> "Outgoing":
        """Give the same request for another model: nothing but the bytes of its name are others."""
        if self.cargo is not None and self.model_at is not None:
            return self._edited(Edit(self.model_at, self._written(model)))
        match self.names_model_in:
            case "json":
                return replace(self, body=json_with(self.body, model, self.model_at))
            case "multipart":
                return replace(self, body=form_with(self.body, self._content_type, model, self.model_at))
            case "query" | "socket":
                return replace(self, query=query_with(self.query, model))
            case "none":
                return self
        assert_never(self.names_model_in)

    def _edited(self, edit: Edit) -> "Outgoing":
        """Give the same request with other bytes in its cargo, which then is not compressed any more."""
        assert self.cargo is not None
        edited = replace(self, cargo=Cargo(self.cargo.upload, edit))
        if isinstance(self.cargo.upload, Packed):
            edited.fields = tuple(each for each in self.fields if each[0].lower() != b"content-encoding")
            head = request_head(edited.fields)
            edited.lines = head.plain_lines if self.plain else head.lines
        return edited

    def _written(self, model: str) -> bytes:
        """Write a model as it stands in the body."""
        before, behind = self.around
        name = msgspec.json.encode(model) if self.names_model_in == "json" else model.encode()
        return b"".join((before, name, behind))

    @property
    def _content_type(self) -> bytes:
        return next((value for name, value in self.fields if name.lower() == b"content-type"), b"")


class Address:
    """Where a provider is, and what never changes about requests to it."""

    def __init__(self, config: ProviderConfig, gateway: str) -> None:
        """Take the address from the config; `gateway` is the pseudonym of who sends the requests."""
        url, self.socket = _with_socket(config.url)
        """The path of the Unix socket that it listens on; "" if it is on a network."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host = unquote(parts.hostname)
        """A name, or an address; an IPv6 one may have a zone, as `fe80::1%eth0`."""
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self._base = parts.path.removesuffix("/.")  # which says that the base is the root
        self._prefix = self._base.removesuffix("/v1")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self.replaced = frozenset(name.lower().encode() for name in config.headers)
        lines = [f"Host: {_without_zone(parts.netloc)}"] if b"host" not in self.replaced else []
        if config.api_key is not None:
            lines.append(f"Authorization: Bearer {config.api_key}")
        lines += [f"{name}: {value}" for name, value in config.headers.items()]
        self.lines = "".join(f"{line}\r\n" for line in lines).encode()
        self.via = f"Via: 1.1 {gateway}\r\n"
        """Goes behind what the client's request says of the way it has come."""
        self._openings: dict[str, bytes] = {}

    def target(self, path: str) -> str:
        """Place a path below the provider's URL: of `/v1` below all of it, others beside its `/v1`."""
        return self._base + path.removeprefix("/v1") if path.startswith("/v1/") else self._prefix + path

    def url(self, path: str) -> str:
        """Give the whole URL of a path; of none, the base URL itself."""
        return self._origin + (self.target(path) if path else self._base)

    def base_in(self, url: str, path: str) -> str:
        """Give what the base URL would be, were `url` where this path is; "" if that cannot be."""
        end = self.target(path).removeprefix(self._base if path.startswith("/v1/") else self._prefix)
        base = url.rstrip("/").removesuffix(end)
        return base if base != url.rstrip("/") and urlsplit(base).netloc else ""

    def head(self, request: Outgoing) -> bytes:
        """Write the head of a request as it goes to this provider."""
        plain = not request.query and request.method == "POST"
        opening = self._openings.get(request.path) if plain else self._opening(request)
        if opening is None:
            if len(self._openings) >= _MOST_OPENINGS:  # there are paths with ids in them
                self._openings.clear()
            opening = self._openings[request.path] = self._opening(request)
        lines = request.lines
        if self.replaced or request.trace:
            replaced = self.replaced | _OF_TRACES if request.trace else self.replaced
            anew = request_head(request.fields, replaced=replaced)
            lines = (anew.plain_lines if request.plain else anew.lines) + request.trace
        size = f"Content-Length: {len(request.body)}\r\n" if request.body or request.method == "POST" else ""
        if request.cargo is not None:
            size = request.cargo.framing
        own = f"{self.via}X-Request-Id: {request.request_id}\r\n{size}\r\n"
        return opening + lines + own.encode()

    def _opening(self, request: Outgoing) -> bytes:
        query = f"?{request.query}" if request.query else ""
        return f"{request.method} {self.target(request.path)}{query} HTTP/1.1\r\n".encode() + self.lines


def _with_socket(url: str) -> tuple[str, str]:
    """Give a URL that HTTP knows, and the path of a Unix socket if that is where it leads."""
    if not url.startswith("unix:"):
        return url, ""
    socket, _, path = url.removeprefix("unix:").partition(":")
    return f"http://localhost{path}", socket


def _without_zone(netloc: str) -> str:
    """Leave out what means something on this machine only (RFC 6874 3)."""
    host, percent, rest = netloc.partition("%")
    return f"{host}{rest[rest.index(']') :]}" if percent else netloc
