"""Every failure a caller can see, and every way a provider can fail us.

Two trees, and one border between them:

    GatewayError            what a client is told: a kind (status and type), a message, extra headers
    ProviderFailed          what one provider did to one exchange; a 502 only when no candidate is left
      ProviderUnreachable   no connection: refused, no route, no such name, TLS
      ProviderTimedOut      which wait ran out: connect, first_byte or idle
      ProviderBroke         the connection ended, or stopped making sense, before the answer did
      ProviderErrored       it answered 5xx
      ProviderLooped        it is a gateway, and the request had been there before
      ProviderRedirected    it answered 3xx: the config has not its real address
      ProviderWarming       it is loading its model; worth waiting for
      ProviderRefused       it answered 401 or 403: to the gateway's credentials, or to this request
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from llmgateway.veil import veiled


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """A row of the error table: the HTTP status and the machine-readable type."""

    status: int
    type: str


INVALID_REQUEST: Final = ErrorKind(400, "invalid_request")
INVALID_API_KEY: Final = ErrorKind(401, "invalid_api_key")
MODEL_NOT_ALLOWED: Final = ErrorKind(403, "model_not_allowed")
FORBIDDEN: Final = ErrorKind(403, "forbidden")
NO_PROVIDER: Final = ErrorKind(404, "no_provider")
NOT_FOUND: Final = ErrorKind(404, "not_found")
METHOD_NOT_ALLOWED: Final = ErrorKind(405, "method_not_allowed")
REQUEST_TIMEOUT: Final = ErrorKind(408, "request_timeout")
CANCELLED: Final = ErrorKind(410, "cancelled")
"""Ended by hand. No client library tries a 410 again: what was ended is to stay so."""
REQUEST_TOO_LARGE: Final = ErrorKind(413, "request_too_large")
UPGRADE_REQUIRED: Final = ErrorKind(426, "upgrade_required")
RATE_LIMITED: Final = ErrorKind(429, "rate_limited")
INTERNAL_ERROR: Final = ErrorKind(500, "internal_error")
UPSTREAM_ERROR: Final = ErrorKind(502, "upstream_error")
LOOP_DETECTED: Final = ErrorKind(508, "loop_detected")
OVERLOADED: Final = ErrorKind(503, "overloaded")
DRAINING: Final = ErrorKind(503, "draining")

DRAIN_RETRY_S: Final = 5


class GatewayError(Exception):
    """A failure to be told to the client, in words that name the trouble.

    `headers` are extra response headers as (name, value) pairs, such as Retry-After or Allow. `brief` is what
    is written down of it: it quotes nothing that was said to somebody's request. No key is in either.
    """

    def __init__(
        self, kind: ErrorKind, message: str, headers: tuple[tuple[str, str], ...] = (), brief: str = ""
    ) -> None:
        message = veiled(message)
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.headers = headers
        self.brief = veiled(brief) or message


def no_provider(model: str) -> GatewayError:
    """Say that nobody serves the model; the words are part of the API; others may follow them."""
    return GatewayError(NO_PROVIDER, f"No online provider serving model '{model}' for this user.")


def no_provider_that_has(path: str, model: str) -> GatewayError:
    """Say that whoever serves the model has not this path."""
    return GatewayError(NO_PROVIDER, f"No online provider serving model '{model}' has {path} for this user.")


def no_provider_with(path: str) -> GatewayError:
    """Say that nobody is there who has a path, whatever the model."""
    return GatewayError(NO_PROVIDER, f"No online provider for '{path}' for this user.")


def draining() -> GatewayError:
    """Say that the gateway takes nothing new."""
    return GatewayError(DRAINING, "The gateway is shutting down.", (("Retry-After", str(DRAIN_RETRY_S)),))


def cancelled(by: str) -> GatewayError:
    """Say that somebody has ended the request."""
    return GatewayError(CANCELLED, f"The request was ended by {by} on the gateway's page.")


class ProviderFailed(Exception):
    """One exchange with one provider did not bring an answer that can be passed on.

    `message` is for people, names the provider, and holds no credentials; `reason` is a word for logs and
    metrics; `brief` is what everybody may be shown: it quotes nothing that was said to somebody's request;
    `noted` is that as a sentence. `away` says that nobody was met there.
    """

    reason: ClassVar[str] = "failed"
    away = False

    def __init__(self, provider: str, trouble: str, brief: str = "") -> None:
        self.provider = provider
        self.message = f"Provider '{provider}' {trouble}"
        self.brief = brief or trouble.rstrip(".")
        self.noted = f"Provider '{provider}' {self.brief}."
        super().__init__(self.message)


class ProviderUnreachable(ProviderFailed):
    """No connection could be made."""

    reason = "unreachable"
    away = True


class ProviderTimedOut(ProviderFailed):
    """One of the three waits ran out. None of them is a limit on the whole answer."""

    reason = "timeout"

    def __init__(
        self,
        provider: str,
        wait: Literal["connect", "first_byte", "idle"],
        limit_s: float,
        proxy: str = "",
    ) -> None:
        way = f" by way of its proxy {proxy}" if proxy else ""
        super().__init__(provider, f"timed out: {wait} timeout after {limit_s:g} s{way}.")
        self.wait = wait
        self.away = wait == "connect"


class ProviderBroke(ProviderFailed):
    """The answer ended before its framing did, or was not HTTP; `wordless` if it had not even begun."""

    reason = "broken"

    def __init__(self, provider: str, trouble: str, *, wordless: bool = False) -> None:
        super().__init__(provider, trouble)
        self.wordless = wordless


class ProviderErrored(ProviderFailed):
    """The provider answered 5xx."""

    reason = "error_status"


class ProviderRedirected(ProviderFailed):
    """The provider answered 3xx. `moved` says that its whole API is elsewhere, as far as that can be told."""

    reason = "redirect"

    def __init__(self, provider: str, trouble: str, *, moved: bool = False) -> None:
        super().__init__(provider, trouble)
        self.moved = moved


class ProviderLooped(ProviderFailed):
    """The provider is a gateway, and says that the request has come back to one that had it already."""

    reason = "loop"


class ProviderWarming(ProviderFailed):
    """The provider is loading its model."""

    reason = "warming"


class ProviderRefused(ProviderFailed):
    """The provider answered 401 or 403; whether the gateway's credentials are to blame, a probe tells."""

    reason = "refused"
