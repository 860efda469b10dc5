"""A gateway, wired by hand: it listens, serves, takes over another config, and ends step by step.

Whoever makes it gives it a config; where that comes from, and what a signal means, is `serve`'s to know.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random
from socket import socket
from typing import Any, Final

from llmgateway import __version__, log
from llmgateway.access.doorkeeper import Doorkeeper
from llmgateway.access.limits import Limits
from llmgateway.access.sessions import Sessions
from llmgateway.books.journal import Journal
from llmgateway.books.ledger import Ledger
from llmgateway.books.metrics import Metrics
from llmgateway.books.totals import used_today
from llmgateway.books.traces import Traces
from llmgateway.config.addresses import in_url
from llmgateway.config.settings import Config, TlsConfig
from llmgateway.fleet.breaker import RetryBudget
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.names import LookUp, look_up
from llmgateway.fleet.rota import Rota
from llmgateway.fleet.upstream import Upstream
from llmgateway.fleet.wake import Alarm
from llmgateway.http.arrivals import BACKLOG, Arrivals, MakeProtocol
from llmgateway.http.body import Patience
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import Doorstep
from llmgateway.http.listener import listening, listening_on_file
from llmgateway.http.server import ClientServer
from llmgateway.http.tls import BadCertificate, Certificate
from llmgateway.log import Events
from llmgateway.traffic.admission import Gate
from llmgateway.traffic.affinity import Affinity
from llmgateway.traffic.proxy import Proxy
from llmgateway.traffic.shared import PACE, Pace
from llmgateway.traffic.slots import Slots
from llmgateway.web.app import App
from llmgateway.web.gauges import gauges, of_shared_limits, under_pressure
from llmgateway.web.intake import Intake
from llmgateway.web.live import Live
from llmgateway.web.ollama import OllamaPages
from llmgateway.web.pages import Pages
from llmgateway.web.pressure import Pressure
from llmgateway.web.status import Condition, Status
from llmgateway.web.visitors import Visitors

events = Events("gateway")

MOST_CONNECTIONS: Final = 100_000  # of clients at once; fewer where the system grants fewer open files
BOOKING_PAUSE_S: Final = 0.05
LAST_WORDS_S: Final = 1.0  # for handlers that were cut off to write what they have to say

Adopter = Callable[[Config], None]
"""Goes on with another config."""


class CannotListen(Exception):
    """The address to listen on can't be had; the text says why."""


class Gateway:
    """A running gateway: `async with Gateway(config) as gateway`.

    Leaving stops it at once; `drain` first to be kind. `adopt` another config at any time.
    """

    def __init__(
        self,
        config: Config,
        patience: Patience | None = None,
        look_up: LookUp = look_up,
        *,
        also: Sequence[Adopter] = (),
        pace: Pace = PACE,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        """Wire everything up; nothing runs yet. Raises CannotListen if the certificate cannot be used.

        `look_up` finds the hosts of providers, and may block; `also` are others who adopt each new config;
        `pace` is how long it waits for a Redis.
        """
        self.config = config
        self.fleet = Fleet(config)
        self.port = 0
        self.condition = Condition()
        self.metrics = Metrics(__version__)
        self.limits = Limits(time.time)
        self.journal = Journal(**_journal(config))
        self.ledger = _ledger(self.metrics, self.journal, self.fleet)
        self._traces = Traces(__version__)
        self._rota = Rota(self.fleet, config, Random())
        self._certificate = None if config.server.tls is None else _certificate(config.server.tls)
        self._upstream = Upstream(look_up, self.condition.name)
        loop = asyncio.get_running_loop()
        clock = loop.time  # the one that slots, providers and their breakers go by
        self._watch = Watch(self.fleet, self._upstream, Random(), clock)
        self.gate = Gate(config, self.limits, clock, pace)
        self.slots = Slots(self.fleet, Affinity(), config.queue, Random(), wake=Alarm().ring, clock=clock)
        proxy = Proxy(self.slots, self._upstream, self._watch, RetryBudget(), self.gate, self.metrics, clock)
        self.sessions = Sessions(time.time)
        self._doorkeeper = Doorkeeper(config, self.sessions)
        self.status = Status(
            self.condition,
            self._watch,
            self.fleet,
            self.slots,
            self.ledger,
            self.limits,
            self._doorkeeper,
            time.monotonic,
        )
        self.metrics.observe_now(partial(gauges, self.condition, self.fleet, self.slots))
        self._pressure = Pressure(Intake(loop, clock), clock)
        self.metrics.observe_now(partial(under_pressure, self._pressure))
        self.metrics.observe_now(partial(of_shared_limits, self.gate))
        self._recalling = asyncio.Lock()
        self._recalled = False
        self._visitors = Visitors(config, self._doorkeeper)
        self._pages = Pages(config, self.condition, self._watch, self.fleet, self.metrics, self._visitors)
        self._live = Live(self.status, self._visitors, self.recall)
        self._ollama = OllamaPages(config, self.fleet, self._watch.settled)
        self._app = App(
            config,
            self.condition,
            self._visitors,
            self._pages,
            self._ollama,
            self._live,
            proxy,
            self.ledger,
            self._pressure,
            self._traces,
        )
        self._patience = patience or Patience()
        self._crowd = Crowd(most_connections, clock)
        self._doorstep = Doorstep(self._pressure, self._app.can_wait, self._app.shed, self._crowd)
        self._server = ClientServer(
            self._app.handle, self._patience, self._crowd, self._app.answers_always, self._doorstep
        )
        self._adopt_bounds(config)
        self._adopt_name(config)
        self._adopt_traces(config)
        self.metrics.observe_refused(lambda: self._crowd.refused)
        self._listeners: list[asyncio.Server] = []
        self._arrivals: list[Arrivals] = []
        self._stack = AsyncExitStack()
        self._adopters = (*also, *self._who_adopts())

    @property
    def ready(self) -> asyncio.Event:
        """Set once every provider has been looked at."""
        return self._watch.first_round

    @property
    def url(self) -> str:
        """Where it listens, as a URL, with the base path."""
        server = self.config.server
        if server.listen is not None:
            return f"unix:{server.listen}"
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{in_url(server.host[0])}:{self.port}{server.base_path}"

    async def __aenter__(self) -> "Gateway":
        """Listen and start to look at the providers. Raises CannotListen if the address can't be had."""
        await self._listen()
        # Steps of the end, the last one first: cut what is in flight, stop listening, close all connections,
        # write down what became of them, stop looking.
        self._stack.callback(self._upstream.close)
        self._stack.enter_context(self._rota)
        self._stack.enter_context(self._pressure.watching(asyncio.get_running_loop()))
        await self._stack.enter_async_context(self._watch)
        await self._stack.enter_async_context(self.gate)
        await self._stack.enter_async_context(self.journal)
        self._stack.push_async_callback(self._traces.close)
        self._stack.callback(self.ledger.book)
        self._stack.push_async_callback(self._server.shutdown, LAST_WORDS_S)
        self._stack.callback(self._doorstep.clear)
        self._stack.push_async_callback(self._stop_listening)
        self._stack.callback(self._app.cut_off)
        events.info(f"listening on {self.url}", version=__version__, providers=len(self.fleet.providers))
        return self

    async def _listen(self) -> None:
        server = self.config.server
        try:
            if server.listen is not None:
                sockets = [listening_on_file(server.listen)]
                self._stack.callback(Path(server.listen).unlink, missing_ok=True)
            else:
                sockets = listening(server.host, server.port, shared=server.reuse_port)
                self.port = sockets[0].getsockname()[1]
            for one in sockets:
                await self._listen_on(one)
        except (OSError, UnicodeError) as exc:
            place = server.listen or f"{' and '.join(server.host)}, port {server.port}"
            raise CannotListen(f"cannot listen on {place}: {_words(exc)}.") from exc

    async def _listen_on(self, one: socket) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {"ssl": self._certificate.context, "ssl_handshake_timeout": self._patience.head_s}
        makes = self._server, self._server.let_in
        make: MakeProtocol = partial(self._doorstep.meet, *makes)
        if not isinstance(loop, asyncio.BaseEventLoop):  # asyncio's own accepts all by itself
            connect = partial(loop.connect_accepted_socket, **tls)
            arrivals = Arrivals(one, self._doorstep, *makes, connect, legible=not tls)
            self._stack.callback(arrivals.close)
            self._arrivals.append(arrivals)
            make = arrivals
        listener = await loop.create_server(make, sock=one, backlog=BACKLOG, **tls)
        self._stack.callback(listener.close)
        self._listeners.append(listener)

    async def _stop_listening(self) -> None:
        for arrivals in self._arrivals:
            arrivals.close()
        for listener in self._listeners:
            listener.close()
        await asyncio.sleep(0)  # by then what the loop has accepted is made

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def adopt(self, config: Config) -> None:
        """Go on with another config: it holds for all that comes from now on; what is in flight goes on.

        What cannot change while the gateway runs (address, port, whose certificate) stays as it was.
        """
        self.config = config
        for adopt in self._adopters:
            adopt(config)

    def _who_adopts(self) -> tuple[Adopter, ...]:
        """Give all who keep a config, or a part of it, in the order in which they get another one."""
        return (
            self._rota.adopt,
            self._adopt_providers,  # before those that look at providers
            self.slots.adopt,
            self.gate.adopt,
            self._doorkeeper.adopt,
            self._visitors.adopt,
            self._pages.adopt,
            self._ollama.adopt,
            self._app.adopt,
            self._adopt_journal,
            self._adopt_bounds,
            self._adopt_name,
            self._adopt_traces,
        )

    def _adopt_providers(self, config: Config) -> None:
        self._upstream.retire(self.fleet.adopt(config))
        self._watch.adopt()

    def _adopt_journal(self, config: Config) -> None:
        self.journal.adopt(**_journal(config))

    def _adopt_bounds(self, config: Config) -> None:
        self._server.min_rate = config.server.min_rate
        self._crowd.bound(config.server.connections_per_address, config.server.trusted_proxies)

    def _adopt_name(self, config: Config) -> None:
        self.metrics.instance = self.ledger.instance = config.cluster.name or ""

    def _adopt_traces(self, config: Config) -> None:
        self._traces.adopt(config.telemetry.otlp, config.cluster.name or "")

    def renew_certificate(self) -> None:
        """Take in a certificate that has changed on disk. Raises BadCertificate; then the old one stays."""
        if self._certificate is not None:
            self._certificate.renew()

    async def recall(self) -> None:
        """Add up what the request log tells of today, before this start; once, when somebody asks."""
        requests, before = self.config.log.requests, self.condition.started_at
        async with self._recalling:
            if requests is None or self._recalled:
                return
            try:
                self.ledger.totals.merge(await asyncio.to_thread(used_today, Path(requests), before))
            except FileNotFoundError:
                pass  # the first start
            except OSError as exc:
                events.warning("cannot read the request log", file=requests, why=exc.strerror)
            self._recalled = True

    async def drain(self) -> bool:
        """Take no new calls; wait for those in flight, within `drain_timeout`; tell whether all ended.

        For `drain_delay` before that it takes them while it says that it is not ready, so that whoever shares
        them out has the time to notice.
        """
        self._leave()
        if self.config.server.drain_delay:
            await asyncio.sleep(self.config.server.drain_delay)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.server.drain_timeout
        await _within(end, self._doorstep.lobby.all_before())  # who has asked on an open connection is served
        self._app.drain()
        for arrivals in self._arrivals:  # so that they are told, and not reset
            arrivals.take_in_all()
        self._doorstep.lobby.begin_all()
        for arrivals in self._arrivals:
            await _within(end, arrivals.all_connected())
        in_time = await self._app.quiet(max(0.0, end - loop.time()))
        return in_time and await self._server.delivered(max(0.0, end - loop.time()))

    def _leave(self) -> None:
        self.condition.leaving = True
        if self.config.server.reuse_port:  # the system would go on sending us clients, as it asks nobody
            for arrivals in self._arrivals:
                arrivals.take_in_all()
            for listener in self._listeners:
                listener.close()


async def _within(end: float, what: Awaitable[None]) -> None:
    """Wait for something, until a time of the loop's clock at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(end):
            await what


def _ledger(metrics: Metrics, journal: Journal, fleet: Fleet) -> Ledger:
    """Open the books, of which the metrics and the journal tell."""
    book_later = partial(asyncio.get_running_loop().call_later, BOOKING_PAUSE_S)
    ledger = Ledger(metrics, journal.write, fleet.advertises, book_later)
    metrics.before_scrape(ledger.book)
    metrics.observe_dropped(lambda: journal.dropped, log.dropped_lines)
    return ledger


def _journal(config: Config) -> dict[str, Any]:
    log = config.log
    path = None if log.requests is None else Path(log.requests)
    return {"path": path, "size_bytes": log.requests_size, "keep": log.requests_keep}


def _certificate(config: TlsConfig) -> Certificate:
    try:
        return Certificate(config.cert, config.key)
    except BadCertificate as exc:
        raise CannotListen(str(exc)) from exc


def _words(exc: OSError | UnicodeError) -> str:
    match exc:
        case OSError(errno=98 | 48):
            return "another program listens there; stop it, or choose another port with --port"
        case PermissionError():
            return "the system does not allow it; ports below 1024 need privileges"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()
        case _:
            return "there is no such address on this machine"
