"""Where the path of a request leads, and how a path may be spelled.

Paths are compared as they came, undecoded, so that no spelling of a path reaches what is not in the table.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote

from llmgateway.access.keys import Caller
from llmgateway.api.ids import is_id
from llmgateway.errors import METHOD_NOT_ALLOWED, GatewayError
from llmgateway.http.client import Client
from llmgateway.traffic.call import Forward

MODELS: Final = "/v1/models"
PAGE: Final = "/gateway/"
CHAT: Final = PAGE + "chat"
OPENAPI: Final = PAGE + "openapi.json"
REQUESTS: Final = PAGE + "requests/"
NO_STORE: Final = "Cache-Control: no-store\r\n"
"""What pages say with all that is not for keeping."""


@dataclass(frozen=True, slots=True)
class Page:
    """To one of the gateway's own pages, and the methods that it takes. It answers through the client."""

    answer: Callable[[Client], Awaitable[None]]
    methods: tuple[str, ...] = ("GET", "HEAD")
    hidden: bool = False
    """Whether other methods find nothing here, instead of being told which ones do."""

    def is_there_for(self, method: str) -> bool:
        """Tell whether the page answers this method, if only to refuse it."""
        return not self.hidden or method in self.methods

    def require(self, method: str) -> None:
        """Raise GatewayError (405) if the page does not take this method."""
        if method not in self.methods:
            raise not_allowed("page", *self.methods)


@dataclass(frozen=True, slots=True)
class Told:
    """To what the gateway tells a caller by itself, and the methods that it takes: none named are all."""

    answer: Callable[[Caller, Client], Awaitable[None]]
    methods: tuple[str, ...] = ("GET", "HEAD")


Route = Forward | Told | Page


def not_allowed(place: str, *allowed: str) -> GatewayError:
    """Say which methods a place takes."""
    methods = ", ".join(allowed)
    return GatewayError(METHOD_NOT_ALLOWED, f"This {place} takes {methods}.", (("Allow", methods),))


def path_of(raw_path: str) -> str:
    """Give the path of a request target as it was sent; the absolute form is as good (RFC 9112 3.2.2)."""
    path = raw_path.partition("?")[0]
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    return path


def below(base: str, path: str) -> str:
    """Take the base path off; what is not below it is no path of ours."""
    if not base:
        return path
    return path.removeprefix(base) if path == base or path.startswith(base + "/") else ""


def request_to_end(path: str) -> tuple[str, str] | None:
    """Give the id of the request that a path means to end, and the method for it: POST .../end, or DELETE.

    An id may hold slashes, as they are or escaped.
    """
    if not path.startswith(REQUESTS):
        return None
    rest = path.removeprefix(REQUESTS)
    wanted = rest.removesuffix("/end")
    return (unquote(wanted), "DELETE" if wanted == rest else "POST") if wanted else None


def way_to_kept(path: str, ways: Mapping[str, Forward]) -> Forward | None:
    """Give the way of a path that has an id, of the ways with `{id}` in its place; None if none fits."""
    parts = path.split("/", 4)
    if len(parts) < 4:
        return None
    wanted, parts[3] = unquote(parts[3]), "{id}"
    way = ways.get("/".join(parts))
    return replace(way, wanted=wanted) if way is not None and is_id(wanted) else None
