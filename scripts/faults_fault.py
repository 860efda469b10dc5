"""A row of scripts/faults: something that a server does wrong, and what the gateway promises of it."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from faults_server import Bad

from tests.exchange import Script

BY_OTHER, BY_IT = "whole, by the other", "whole, by it"
AS_IT_CAME = "200, as it came"
BROKE = "502 `upstream_error`"
LATE = "502 `upstream_error` (first_byte)"
GONE = "404 `no_provider`"
TOLD = "200, then an error event"
ONLINE, OFFLINE, WRONG = "online", "offline", "misconfigured"


class Comes(NamedTuple):
    """What a promise comes to."""

    beside: str
    """What a client gets whose model another server has as well."""
    alone: str
    """What one gets whose model nobody else has."""
    state: str
    """What the server is said to be then."""


ELSEWHERE: Final = Comes(BY_OTHER, BROKE, ONLINE)
TOLD_IN_IT: Final = Comes(TOLD, TOLD, ONLINE)
UNNOTICED: Final = Comes(BY_IT, BY_IT, ONLINE)
PASSES: Final = Comes(AS_IT_CAME, AS_IT_CAME, ONLINE)
NO_CANDIDATE: Final = Comes(BY_OTHER, GONE, WRONG)


@dataclass(frozen=True)
class Fault:
    """One row. Of what it does not say, the server does as good ones do."""

    words: str
    promise: str
    comes: Comes
    says: str = ""
    """What the page says of it, in part."""
    script: Script | None = None
    """How it answers calls."""
    lists: Script | None = None
    """How it answers `GET /v1/models`."""
    befall: Callable[[Bad], Awaitable[None]] | None = None
    """What happens to it once the gateway has seen it well."""
    url: Callable[[Bad], Awaitable[str]] | None = None
    """Where the config says that it is; it cannot be mended without another config then."""
    streams: bool = True
    program: str = ""
    """A program that is needed for it."""

    @property
    def possible(self) -> bool:
        return not self.program or shutil.which(self.program) is not None
