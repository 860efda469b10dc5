"""Probes and model discovery.

A probe is `GET {url}/models`, never a completion: that would load models and burn power. Each provider is
watched by a task of its own, so that a hung one delays nobody. A provider that is streaming is alive whatever
a probe says; one that works for us in silence, as those do that can do one thing at a time, is as alive as it
was until it gives an answer, or nobody is there any more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from llmgateway.errors import ProviderFailed, ProviderRedirected, ProviderUnreachable
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.fleet.schemes import WRITE_HTTPS, complaint_about_http, told
from llmgateway.fleet.upstream import Upstream
from llmgateway.http.via import is_loop
from llmgateway.log import Events
from llmgateway.servers import generic
from llmgateway.servers.kind import Facts, Kind, proves, quote, read_details
from llmgateway.servers.known import BY_KIND, KINDS, is_loading, who_wrote
from llmgateway.servers.models import Listing, Model, NotAnLLMServer, read_listing

events = Events("health")

_LIST_BYTES: Final = 8 << 20
_DETAILS_BYTES: Final = 1 << 20
_JITTER: Final = 0.1
_REFUSED: Final = (401, 403)
_FAILED: Final = (State.OFFLINE, State.MISCONFIGURED)
_PASSING: Final = (408, 425, 429)  # no way to answer, but no sign of another program on the port either
_WARMING_S: Final = 2.0  # between probes of a provider that is loading its model
_LEAST_PAUSE_S: Final = 1.0  # between probes that failing traffic asks for


async def probe(upstream: Upstream, provider: Provider) -> Probe:
    """Look at a provider once, for at most `health.timeout`."""
    limit_s = provider.health.timeout
    try:
        async with asyncio.timeout(limit_s):
            return await _look(upstream, provider)
    except TimeoutError:
        if upstream.seeks(provider):
            return Probe(State.OFFLINE, f"its host name cannot be looked up in {limit_s:g} s", silent=True)
        return Probe(State.OFFLINE, f"no answer to a probe within {limit_s:g} s", silent=True)
    except ProviderFailed as failure:
        words = told(failure, provider.config.url)
        return Probe(State.OFFLINE, words, silent=not isinstance(failure, ProviderUnreachable))


async def _look(upstream: Upstream, provider: Provider) -> Probe:
    try:
        status, body = await upstream.get(provider, "/v1/models", _LIST_BYTES)
    except ProviderRedirected as failure:
        if failure.moved or provider.config.models is None:
            return Probe(State.MISCONFIGURED, failure.message)
        status, body = 302, b""  # it has no such list, and shows its callers in
    if status in _REFUSED:
        return _refused(provider, status)
    if complaint := complaint_about_http(status, body):
        said = quote(complaint, provider.secrets)
        return Probe(State.MISCONFIGURED, f"it wants HTTPS: {WRITE_HTTPS}; it says: {said}", certain=True)
    if is_loading(provider.kind, status, body):
        return Probe(State.WARMING, "it is loading its model")
    if is_loop(status, body):  # nobody else knows this gateway's pseudonym by a request of its own
        return Probe(State.MISCONFIGURED, "this is the gateway itself; its url leads back here", certain=True)
    if status >= 500 or (status in _PASSING and provider.config.models is None):
        return Probe(State.OFFLINE, f"it answers {status}: {quote(body, provider.secrets)}")
    if provider.config.models is not None:
        return await _configured(upstream, provider, status, body)
    if status != 200:
        where = f"not an LLM API: GET {provider.config.url.removesuffix('/.')}/models answers {status}"
        return Probe(State.MISCONFIGURED, where + await _api_beside(upstream, provider, status))
    try:
        listing = _list_in(body)
    except NotAnLLMServer as exc:
        return Probe(State.MISCONFIGURED, f"not an LLM API: {quote(str(exc).encode(), provider.secrets)}")
    models = {name: model for name, model in listing.models.items() if upstream.name not in model.via}
    return await _with_details(upstream, provider, listing, models)


def _refused(provider: Provider, status: int) -> Probe:
    key = provider.config.api_key
    reason = (
        "wants an api_key, and the config has none" if key is None else "refuses the api_key in the config"
    )
    return Probe(State.MISCONFIGURED, f"it {reason} ({status})", certain=True)


def _list_in(body: bytes) -> Listing:
    """Read a list of models. Raises NotAnLLMServer, also for one of which there was more than is read."""
    if len(body) > _LIST_BYTES:
        raise NotAnLLMServer(f"its answer is longer than {_LIST_BYTES >> 20} MiB")
    return read_listing(body)


async def _api_beside(upstream: Upstream, provider: Provider, status: int) -> str:
    """Look whether the API has no `/v1`, as some have it; gives the end of a sentence that says so."""
    root = provider.config.url.removesuffix("/v1")
    if status != 404 or root == provider.config.url:
        return ""
    try:
        status, body = await upstream.get(provider, "/models", _LIST_BYTES)
        if status == 200 and _list_in(body):
            is_origin = root.endswith(":") or (root.count("/") == 2 and not root.startswith("unix:"))
            return f", but its API is above: write {root}{'/.' if is_origin else ''} as its url"
    except (ProviderFailed, NotAnLLMServer):
        pass
    return ""


async def _configured(upstream: Upstream, provider: Provider, status: int, body: bytes) -> Probe:
    """Keep to the models that the config names, and add what the server says of them if it says anything."""
    try:
        listing = _list_in(body) if status == 200 else Listing({})
    except NotAnLLMServer:
        listing = Listing({})
    told = (provider.config.listed or {}).values()
    unknown = {name: Model(name, via=listing.via) for name in told}
    models = {name: listing.models.get(name, model) for name, model in unknown.items()}
    return await _with_details(upstream, provider, listing, models)


async def _with_details(
    upstream: Upstream, provider: Provider, listing: Listing, models: dict[str, Model]
) -> Probe:
    """Ask for what only this kind of server tells.

    A server may leave its model list open but not this. That alone proves nothing, as a program in front of
    it may keep such pages to itself; if an endpoint is refused as well, real requests would be.
    """
    facts = Facts(models)
    kind = None  # it is asked once more next time, if this time it cannot tell
    try:
        async with asyncio.timeout(provider.health.timeout / 2):
            kind = await _kind(upstream, provider, listing)
            for ask_for in (lambda facts: kind.details, kind.more):
                for details in ask_for(facts):
                    status, body = await upstream.get(provider, details.path, _DETAILS_BYTES)
                    if status in _REFUSED and await _refuses_work(upstream, provider):
                        return _refused(provider, status)
                    if status == 200:
                        facts = read_details(details, facts, body)
    except (ProviderFailed, TimeoutError):
        pass  # what was told before stays true
    trouble = quote(listing.trouble.encode(), provider.secrets)
    return Probe(State.ONLINE, trouble, facts.models, facts.slots, kind=kind)


async def _refuses_work(upstream: Upstream, provider: Provider) -> bool:
    """Ask an endpoint in a way that makes nobody work; whoever would take the key says 404 or 405."""
    status, _ = await upstream.get(provider, "/v1/chat/completions", _DETAILS_BYTES)
    return status in _REFUSED


async def _kind(upstream: Upstream, provider: Provider, listing: Listing) -> Kind:
    """Tell which kind of server it is; where nothing does, ask it, once each time that it is back.

    Raises ProviderFailed.
    """
    if provider.config.kind is not None:
        return BY_KIND[provider.config.kind]
    if listing.via:  # another gateway, which may have pages of any kind
        return generic.KIND
    kind = who_wrote(listing)
    if kind is not generic.KIND or provider.kind_is_known:
        return provider.kind if kind is generic.KIND else kind
    for suspect in KINDS:
        if suspect.proof is not None:
            status, body = await upstream.get(provider, suspect.proof.path, _DETAILS_BYTES)
            if status == 200 and proves(suspect.proof, body):
                return suspect
    return generic.KIND


@dataclass(slots=True)
class _Watched:
    """A provider under watch. `settings` are those that the task looks at it with."""

    task: asyncio.Task[None]
    settings: object
    asked: asyncio.Event
    seen: asyncio.Event


class Watch:
    """Keeps the fleet's picture of its providers current. Use as `async with`; tasks end with it."""

    def __init__(self, fleet: Fleet, upstream: Upstream, chance: Random, clock: Callable[[], float]) -> None:
        """Watch a fleet, with its providers reached by `upstream`; `clock` is the loop's."""
        self.first_round = asyncio.Event()
        """Set once every provider has been looked at, and for good."""
        self._fleet = fleet
        self._upstream = upstream
        self._chance = chance
        self._now = clock
        self._watched: dict[Provider, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Watch":
        self.adopt()
        return self

    async def __aexit__(self, *_: object) -> None:
        for provider in list(self._watched):
            self._leave(provider)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def adopt(self) -> None:
        """Watch the providers that are in the fleet now, and no others.

        One that has to be looked at in another way from now on is looked at once more.
        """
        for provider, watched in list(self._watched.items()):
            is_there = self._fleet.providers.get(provider.name) is provider
            if not is_there or watched.settings != _settings(provider):
                self._leave(provider)
        for provider in self._fleet.providers.values():
            if provider not in self._watched:
                self._begin(provider)
        self._note_first_round()

    def _begin(self, provider: Provider) -> None:
        asked, seen = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(self._keep_watch(provider, asked, seen))
        self._watched[provider] = _Watched(task, _settings(provider), asked, seen)

    def _leave(self, provider: Provider) -> None:
        watched = self._watched.pop(provider)
        watched.seen.set()  # nobody waits for what will not come
        watched.task.cancel()
        self._ending.add(watched.task)
        watched.task.add_done_callback(self._ending.discard)

    def look_now(self, provider: Provider) -> None:
        """Ask for a probe without waiting for its turn: real traffic could not reach the provider."""
        if (watched := self._watched.get(provider)) is not None:
            watched.asked.set()

    async def settled(self) -> None:
        """Wait until every provider of the fleet has been looked at, each for at most `health.timeout`.

        A provider that a newer config brings meanwhile is waited for as well.
        """
        while (unseen := self._unseen()) is not None:
            await unseen.seen.wait()

    def _unseen(self) -> _Watched | None:
        return next((watched for watched in self._watched.values() if not watched.seen.is_set()), None)

    def _note_first_round(self) -> None:
        if self._unseen() is None:
            self.first_round.set()

    async def _keep_watch(self, provider: Provider, asked: asyncio.Event, seen: asyncio.Event) -> None:
        # The first look at all is at the same time. The second comes after another part of the pause for
        # each, so that many are not looked at together for ever.
        part = 1 - self._chance.random() / 2
        while True:
            try:
                await self._look(provider)
            except Exception:
                events.exception("probe failed", provider=provider.name)
            seen.set()
            self._note_first_round()
            await self._pause(provider, asked, part)
            part = 1.0

    async def _look(self, provider: Provider) -> None:
        seen = await probe(self._upstream, provider)
        if seen.state in _FAILED and not seen.certain and self._streams(provider):
            events.debug("probe failed while streaming", provider=provider.name, reason=seen.reason)
            seen = Probe(State.ONLINE)
        if seen.silent and self._upstream.works(provider):
            events.debug("probe failed while at work", provider=provider.name, reason=seen.reason)
        else:
            provider.observe(seen, now=self._now())
        self._upstream.sweep(provider)

    def _streams(self, provider: Provider) -> bool:
        lately = self._now() - max(provider.health.interval, provider.health.timeout)
        streamed_at = self._upstream.last_byte(provider)
        # Right after a start of the machine the clock is young, and "lately" may lie before its zero.
        return streamed_at > 0 and streamed_at > lately

    async def _pause(self, provider: Provider, asked: asyncio.Event, part: float) -> None:
        """Wait for the next turn, or for somebody who asks; never less than a second, however many ask.

        `part` is how much of the usual time that is.
        """
        usual_s = provider.health.interval
        if provider.state is State.WARMING:
            usual_s = min(usual_s, _WARMING_S)
        interval_s = part * usual_s * (1 + _JITTER * (2 * self._chance.random() - 1))
        least_s = min(_LEAST_PAUSE_S, interval_s)
        await asyncio.sleep(least_s)
        try:
            async with asyncio.timeout(interval_s - least_s):
                await asked.wait()
        except TimeoutError:
            pass
        asked.clear()


def _settings(provider: Provider) -> object:
    """Give the settings that make a difference to how a provider is looked at, and how often."""
    return provider.config.models, provider.config.kind, provider.health
