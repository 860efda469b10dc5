"""The gateway as a process: with a config file, or with what is found on this machine; until a signal.

The first SIGTERM or SIGINT drains, a second one ends it at once; SIGHUP has the config file read again.
"""

import asyncio
import gc
import json
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Final

from llmgateway import log
from llmgateway.access.keys import mint
from llmgateway.config.load import Loaded, build
from llmgateway.config.settings import Config
from llmgateway.fleet.search import find_servers, first_model
from llmgateway.service.demo import MODEL, demo_provider
from llmgateway.service.files import Shortage, make_space, most_connections, raise_open_files
from llmgateway.service.gateway import MOST_CONNECTIONS, Gateway
from llmgateway.service.reload import Reloader

events = log.Events("serve")

GC_THRESHOLDS: Final = (20_000, 20, 50)  # Python's own (700, 10, 10) cost a stream's chunk 3 us of 32


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Where the config comes from, so that it can be read again; `given` is what the command line sets."""

    path: Path
    loaded: Loaded
    given: Mapping[str, Any]

    @property
    def config(self) -> Config:
        """What the file said when it was loaded, and the command line says."""
        return self.amend(self.loaded.config)

    def amend(self, config: Config) -> Config:
        """Put what the command line sets in the place of what the file says."""
        return config.model_copy(update={"server": config.server.model_copy(update=self.given)})

    def reloader(self, gateway: Gateway) -> Reloader:
        """Give what keeps a running gateway in step with the file."""
        return Reloader(
            self.path,
            gateway.config,
            gateway.adopt,
            condition=gateway.condition,
            metrics=gateway.metrics,
            environ=os.environ,
            warnings=self.loaded.warnings,
            amend=self.amend,
            renew_tls=gateway.renew_certificate,
        )


def _set_log(config: Config) -> None:
    log.configure(level=config.log.level, form=config.log.format, instance=config.cluster.name or "")


async def serve(
    config: Config, *, file: ConfigFile | None = None, greeting: Callable[[str], str] | None = None
) -> int:
    """Run until a signal, and give the exit code. Raises CannotListen.

    `file` is what SIGHUP has read again; `greeting` is told the URL once it is known, and printed.
    """
    _set_log(config)
    files = raise_open_files()
    make_space(files)
    most = min(MOST_CONNECTIONS, most_connections(files))
    events.info("open files are limited", limit=files, connections=most)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Shortage(loop.time).handle)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # it would end the process
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway(config, also=[_set_log], most_connections=most))
        if file is not None:
            reloader = await stack.enter_async_context(file.reloader(gateway))
            loop.add_signal_handler(signal.SIGHUP, reloader.now)
        if greeting is not None:
            print(greeting(gateway.url), flush=True)
        return await _until_drained(gateway, signals)


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


async def serve_without_config(port: int | None) -> int:
    """Serve what is found on this machine, or else a demo, to this machine only, with a key for this run.

    Gives the exit code. Raises CannotListen.
    """
    _set_log(Config())
    key = mint()
    async with AsyncExitStack() as stack:
        servers = await find_servers()
        found, model = ", ".join(servers), first_model(servers)
        providers = {name: {"url": server.url} for name, server in servers.items()}
        if not providers:
            providers, model = {"demo": {"url": await stack.enter_async_context(demo_provider())}}, MODEL
        server = {} if port is None else {"port": port}
        tree = {
            "server": server,
            "users": {"you": {"keys": [key], "admin": True}},
            "providers": providers,
            "log": {"requests": "none"},
        }
        return await serve(build(tree), greeting=partial(_greeting, key, found, model or "MODEL"))


def _greeting(key: str, found: str, model: str, url: str) -> str:
    """Say what is served and how to try it."""
    auth = f"-H 'Authorization: Bearer {key}'"
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    chat = f"curl -N {auth} -H 'Content-Type: application/json' -d {quote(body)} {url}/v1/chat/completions"
    lines = ["There is no config.yaml; " + (f"found here: {found}." if found else "serving a demo model.")]
    if found:
        lines += ["What can be used:", "", f"  curl {auth} {url}/v1/models", ""]
    lines += ["Try it:", "", f"  {chat}", ""]
    lines += [f"Or look at {url}/gateway/ and sign in with the same key.", ""]
    return "\n".join(
        (
            *lines,
            "The command `example` prints the manual of every setting; `init` writes a first config.yaml.",
        )
    )


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end, on uvloop where it is installed; what is there by now is never garbage collected."""
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
