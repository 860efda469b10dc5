"""Who is let in: by what this gateway has counted, or, where the config names a Redis, what all of them have.

The first is decided at once; only the second has to be waited for.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from llmgateway.access.keys import Caller
from llmgateway.access.limits import Admission, Limits
from llmgateway.access.rules import Wish
from llmgateway.config.settings import Config
from llmgateway.http.client import Client
from llmgateway.traffic.call import Call
from llmgateway.traffic.shared import Link, Pace


class Gate:
    """Holds calls to the limits of their callers. Use as `async with`."""

    def __init__(self, config: Config, limits: Limits, clock: Callable[[], float], pace: Pace) -> None:
        """Let in by `limits`; `clock` is the loop's, `pace` how long Redis may take."""
        self._limits = limits
        self._now = clock
        self._pace = pace
        self._address = config.cluster.limits
        self._closing: set[asyncio.Task[None]] = set()
        self.link: Link | None = None

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()
        await asyncio.gather(*self._closing)

    def adopt(self, config: Config) -> None:
        """Count where this config says from now on."""
        if config.cluster.limits != self._address:
            self._close()
            self._address = config.cluster.limits
            self._open()

    def _open(self) -> None:
        if self._address is not None:
            self.link = Link(self._address, self._limits, self._pace, self._now)
            self.link.open()

    def _close(self) -> None:
        if self.link is not None:
            closing = asyncio.create_task(self.link.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self.link = None

    def admit(self, call: Call, caller: Caller, client: Client) -> Admission | None:
        """Let a call in, by what is counted here; None if `ask` is to tell. Raises GatewayError (429)."""
        if self.link is not None:
            return None
        return _told(client, self._limits.admit(self._wish(call, caller)))

    async def ask(self, call: Call, caller: Caller, client: Client) -> Admission:
        """Let a call in, by what all have counted. Raises GatewayError (429)."""
        wish = self._wish(call, caller)
        return _told(client, self._limits.admit(wish) if self.link is None else await self.link.admit(wish))

    def _wish(self, call: Call, caller: Caller) -> Wish:
        return self._limits.wish(
            caller.user,
            caller.limits,
            caller.key_id,
            caller.key_limits,
            key_name=caller.key_name,
            person=caller.person,
            costs=not call.entry.recalls,
        )


def _told(client: Client, admission: Admission) -> Admission:
    client.tell(admission.headers(), instead_of="x-ratelimit-")
    return admission
