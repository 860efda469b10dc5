"""The front door: read the arguments, wire the object graph by hand, run."""

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

try:
    from llmgateway import __version__, log
    from llmgateway.cli import commands
    from llmgateway.config import addresses, values
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed. Start with scripts/run, which sets up what is needed.")
from llmgateway.access.keys import mint
from llmgateway.access.limits import Limits
from llmgateway.access.sessions import Sessions
from llmgateway.books.history import COLUMNS
from llmgateway.books.journal import Journal
from llmgateway.books.ledger import Ledger
from llmgateway.books.metrics import Metrics
from llmgateway.books.totals import DAY_S, used_today
from llmgateway.config.load import Loaded, build
from llmgateway.config.settings import Config, TlsConfig
from llmgateway.fleet.breaker import RetryBudget
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.health import Watch
from llmgateway.fleet.search import find_servers
from llmgateway.fleet.upstream import Upstream
from llmgateway.fleet.wake import Alarm
from llmgateway.http.client import Patience
from llmgateway.http.server import ClientServer
from llmgateway.http.tls import BadCertificate, Certificate
from llmgateway.service.demo import MODEL, demo_provider
from llmgateway.service.reload import Reloader
from llmgateway.traffic.affinity import Affinity
from llmgateway.traffic.proxy import Proxy
from llmgateway.traffic.slots import Slots
from llmgateway.web.app import App
from llmgateway.web.pages import Pages
from llmgateway.web.status import Condition, Status

events = log.Events("gateway")

DEFAULT_CONFIG = Path("config.yaml")
BACKLOG = 1024
BOOKING_PAUSE_S = 0.05
KEY_VARIABLE = "LLMGATEWAY_KEY"
GC_THRESHOLDS = (20_000, 20, 50)  # Python's own (700, 10, 10) cost a stream's chunk 3 us of 32
LAST_WORDS_S = 1.0  # for handlers that were cut off to write what they have to say


class CannotListen(Exception):
    """The address to listen on can't be had; the text says why."""


class Gateway:
    """A running gateway: `async with Gateway(config) as gateway`.

    Leaving stops it at once; `drain` first to be kind. `adopt` another config at any time.
    """

    def __init__(self, config: Config, patience: Patience | None = None) -> None:
        """Wire everything up; nothing runs yet. Raises CannotListen if the certificate cannot be used."""
        self.config = config
        self.fleet = Fleet(config)
        self.port = 0
        self.condition = Condition()
        self.metrics = Metrics(__version__)
        self.limits = Limits(time.time)
        self.journal = Journal(**_journal(config))
        self.ledger = Ledger(
            self.metrics,
            self.journal.write,
            self.fleet.advertises,
            partial(asyncio.get_running_loop().call_later, BOOKING_PAUSE_S),
        )
        self.metrics.before_scrape(self.ledger.book)
        self._certificate = None if config.server.tls is None else _certificate(config.server.tls)
        self._upstream = Upstream()
        clock = asyncio.get_running_loop().time  # the one that slots, providers and their breakers go by
        self._watch = Watch(self.fleet, self._upstream, Random(), clock)
        self.slots = Slots(self.fleet, Affinity(), config.queue, Random(), wake=Alarm().ring, clock=clock)
        proxy = Proxy(
            self.slots, self._upstream, self._watch, RetryBudget(), self.limits, self.metrics, clock
        )
        self.status = Status(
            self.condition, self._watch, self.fleet, self.slots, self.ledger, self.limits, time.monotonic
        )
        self.metrics.observe_now(self.status.gauges)
        self.metrics.observe_dropped(lambda: self.journal.dropped)
        self._recalling = asyncio.Lock()
        self._recalled = False
        self._pages = Pages(
            self.fleet, self._watch, self.status, self.metrics, Sessions(time.time), self.recall
        )
        self._app = App(config, self._pages, proxy, self.ledger)
        self._patience = patience or Patience()
        self._server = ClientServer(self._app.handle, self._patience)
        self._stack = AsyncExitStack()

    @property
    def ready(self) -> asyncio.Event:
        """Set once every provider has been looked at."""
        return self._watch.first_round

    @property
    def url(self) -> str:
        """Where it listens, as a URL, with the base path."""
        server = self.config.server
        host = f"[{server.host}]" if ":" in server.host else server.host
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{host}:{self.port}{server.base_path}"

    async def __aenter__(self) -> "Gateway":
        """Listen and start to look at the providers. Raises CannotListen if the address can't be had."""
        server = self.config.server
        try:
            listener = await asyncio.get_running_loop().create_server(
                self._server,
                server.host,
                server.port,
                backlog=BACKLOG,
                ssl=None if self._certificate is None else self._certificate.context,
                ssl_handshake_timeout=None if self._certificate is None else self._patience.head_s,
            )
        except (OSError, UnicodeError) as exc:
            raise CannotListen(f"cannot listen on {server.host}:{server.port}: {_words(exc)}.") from exc
        self.port = listener.sockets[0].getsockname()[1]
        # Steps of the end, the last one first: cut what is in flight, close its connections, write down what
        # became of it, stop looking, stop listening.
        self._stack.callback(listener.close)
        self._stack.callback(self._upstream.close)
        await self._stack.enter_async_context(self._watch)
        await self._stack.enter_async_context(self.journal)
        self._stack.callback(self.ledger.book)
        self._stack.push_async_callback(self._server.shutdown, LAST_WORDS_S)
        self._stack.callback(self._app.cut_off)
        events.info(f"listening on {self.url}", version=__version__, providers=len(self.fleet.providers))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def adopt(self, config: Config) -> None:
        """Go on with another config: it holds for all that comes from now on; what is in flight goes on.

        What cannot change while the gateway runs (address, port, whose certificate) stays as it was.
        """
        self.config = config
        adopted = self.fleet.adopt(config)
        self._upstream.retire(adopted.gone)
        self._watch.adopt()
        self.slots.adopt(config.queue)
        self._app.adopt(config)
        self.journal.adopt(**_journal(config))

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
        """Take no new calls; wait for those in flight, within `drain_timeout`; tell whether all ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.server.drain_timeout
        self._app.drain()
        in_time = await self._app.quiet(self.config.server.drain_timeout)
        return in_time and await self._server.delivered(max(0.0, end - loop.time()))


def _journal(config: Config) -> dict[str, Any]:
    log = config.log
    path = None if log.requests is None else Path(log.requests)
    return {"path": path, "size_bytes": log.requests_size, "keep": log.requests_keep}


def _certificate(config: TlsConfig) -> Certificate:
    try:
        return Certificate(config.cert, config.key)
    except BadCertificate as exc:
        raise CannotListen(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class Source:
    """Where the config comes from, so that it can be read again; `given` is what the command line sets."""

    path: Path
    loaded: Loaded
    given: Mapping[str, Any]

    def amend(self, config: Config) -> Config:
        """Put what the command line sets in the place of what the file says."""
        return config.model_copy(update={"server": config.server.model_copy(update=self.given)})

    def reloader(self, gateway: Gateway) -> Reloader:
        """Give what keeps a running gateway in step with the file."""
        return Reloader(
            self.path,
            gateway.config,
            partial(_adopt, gateway),
            condition=gateway.condition,
            metrics=gateway.metrics,
            environ=os.environ,
            warnings=self.loaded.warnings,
            amend=self.amend,
            renew_tls=gateway.renew_certificate,
        )


def _adopt(gateway: Gateway, config: Config) -> None:
    log.configure(level=config.log.level, form=config.log.format)
    gateway.adopt(config)


async def serve(config: Config, greeting: str = "", source: Source | None = None) -> int:
    """Run until a signal: the first one drains, a second one ends it at once. Gives the exit code.

    SIGHUP has the source of the config read again.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # it would end the process
    try:
        async with AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(Gateway(config))
            if source is not None:
                reloader = await stack.enter_async_context(source.reloader(gateway))
                loop.add_signal_handler(signal.SIGHUP, reloader.now)
            if greeting:
                print(greeting.format(url=gateway.url), flush=True)
            return await _until_drained(gateway, signals)
    except CannotListen as problem:
        commands.say(str(problem))
        return 1


async def _until_drained(gateway: Gateway, signals: asyncio.Queue[signal.Signals]) -> int:
    name = (await signals.get()).name
    events.info("draining", signal=name, limit_s=gateway.config.server.drain_timeout)
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(gateway.drain())
        impatience = group.create_task(_at_once(signals, draining))
        await asyncio.wait([draining])
        impatience.cancel()
    events.info("stopping", in_time=not draining.cancelled() and draining.result())
    return 1 if draining.cancelled() else 0


async def _at_once(signals: asyncio.Queue[signal.Signals], draining: asyncio.Task[bool]) -> None:
    await signals.get()
    draining.cancel()


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


async def serve_without_config(port: int | None) -> int:
    """Serve what is found on this machine, or else a demo, to this machine only, with a key for this run."""
    key = mint()
    async with AsyncExitStack() as stack:
        providers, model = await find_servers()
        found = ", ".join(providers)
        if not providers:
            providers, model = {"demo": {"url": await stack.enter_async_context(demo_provider())}}, MODEL
        server = {} if port is None else {"port": port}
        tree = {
            "server": server,
            "users": {"you": {"keys": [key], "admin": True}},
            "providers": providers,
            "log": {"requests": "none"},
        }
        return await serve(build(tree), _greeting(key, found, model or "MODEL"))


def _greeting(key: str, found: str, model: str) -> str:
    """Say what is served and how to try it; `{url}` is filled in once the port is known."""
    auth = f"-H 'Authorization: Bearer {key}'"
    messages = '[{{"role": "user", "content": "Hello"}}]'
    body = f'{{{{"model": "{model}", "stream": true, "messages": {messages}}}}}'
    chat = f"curl -N {auth} -H 'Content-Type: application/json' -d '{body}' {{url}}/v1/chat/completions"
    lines = [
        f"There is no {DEFAULT_CONFIG}; " + (f"found here: {found}." if found else "serving a demo model.")
    ]
    if found:
        lines += ["What can be used:", "", f"  curl {auth} {{url}}/v1/models", ""]
    lines += ["Try it:", "", f"  {chat}", ""]
    lines += ["Or look at {url}/gateway/ and sign in with the same key.", ""]
    return "\n".join((*lines, "config.example.yaml is the manual of every setting; copy it to config.yaml."))


def run(path: Path | None, host: str | None, port: int | None) -> int:
    """Run the gateway with the config file, or without one if none was named and none is there."""
    if path is None and not DEFAULT_CONFIG.exists():
        if host is not None:
            commands.say("--host needs a config file: without one the gateway serves this machine only.")
            return 2
        log.configure(level="info", form="text")
        return _run(serve_without_config(port))
    loaded = commands.read_config(path or DEFAULT_CONFIG, os.environ)
    if loaded is None:
        return 1
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    source = Source(path or DEFAULT_CONFIG, loaded, given)
    config = source.amend(loaded.config)
    log.configure(level=config.log.level, form=config.log.format)
    return _run(serve(config, source=source))


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where it is installed; leave what is there by now out of garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have an argument read as the config file would read it."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r} {exc}") from None

    return checked


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    anywhere = argparse.ArgumentParser(add_help=False)
    anywhere.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the config file (config.yaml)",
    )
    listening = argparse.ArgumentParser(add_help=False)
    listening.add_argument(
        "--host",
        type=_checked(addresses.host),
        default=argparse.SUPPRESS,
        help="listen on this address instead of the config's",
    )
    listening.add_argument(
        "--port",
        type=_checked(values.port),
        default=argparse.SUPPRESS,
        help="listen on this port instead of the config's; 0: any free",
    )
    parser = argparse.ArgumentParser(
        prog="gateway.py",
        description="A self-hosted gateway for home and small-office LLM servers.",
        parents=[anywhere, listening],
    )
    parser.add_argument("--version", action="version", version=__version__)
    names = parser.add_subparsers(dest="command", metavar="COMMAND")
    names.add_parser("run", parents=[anywhere, listening], help="run the gateway (also without a command)")
    check = names.add_parser("check", parents=[anywhere], help="validate the config file")
    check.add_argument("--probe", action="store_true", help="ask every provider and show what it would serve")
    key = names.add_parser("key", parents=[anywhere], help="make a new API key")
    key.add_argument("user", metavar="USER", type=_checked(values.free_name))
    names.add_parser(
        "init", parents=[anywhere], help="write a first config file: what is found here, and a key"
    )
    usage = names.add_parser("usage", parents=[anywhere], help="show who used what, from the request log")
    usage.add_argument(
        "--since",
        type=_checked(values.positive_duration),
        default=30 * DAY_S,
        metavar="TIME",
        help="how far back: 12h, 7d (30d)",
    )
    usage.add_argument(
        "--by",
        type=_names,
        default=["user", "model"],
        metavar="COLUMNS",
        help=f"what to add up by, of {', '.join(COLUMNS)} (user,model)",
    )
    status = names.add_parser("status", parents=[anywhere], help="show what the running gateway is doing")
    status.add_argument("--json", action="store_true", help="print one snapshot as JSON")
    status.add_argument("--url", help="the gateway to ask (the one of the config file)")
    status.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"an API key to ask with (${KEY_VARIABLE}; else what the config file shows)",
    )
    names.add_parser("schema", parents=[anywhere], help="print the JSON Schema of the config file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; gives the exit code. Wrong usage ends the process with 2."""
    try:
        return _main(_arguments(argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gateway.py schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(given: argparse.Namespace) -> int:
    config: Path | None = getattr(given, "config", None)
    match given.command:
        case "check":
            return commands.check(config or DEFAULT_CONFIG, os.environ, with_probe=given.probe)
        case "key":
            return commands.show_key(given.user)
        case "schema":
            return commands.show_schema()
        case "init":
            return commands.init(config or DEFAULT_CONFIG)
        case "usage":
            path = config or DEFAULT_CONFIG
            return commands.show_usage(path, os.environ, since_s=given.since, by=given.by)
        case "status":
            path = config or DEFAULT_CONFIG
            return commands.show_status(path, os.environ, url=given.url, key=given.key, as_json=given.json)
        case _:
            return run(config, getattr(given, "host", None), getattr(given, "port", None))


if __name__ == "__main__":
    sys.exit(main())
