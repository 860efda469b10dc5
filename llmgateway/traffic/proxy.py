"""The story of a forwarded request: admit, lease, send, relay, account; failover before the first byte.

`forward` is the path of every request. A provider's answer is shown to the client only once its first byte is
there, so whatever fails before that can be tried on another candidate.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.api.usage import WORDS_IN, Meter
from llmgateway.books.metrics import Metrics
from llmgateway.books.traces import passed_on
from llmgateway.errors import (
    UPSTREAM_ERROR,
    GatewayError,
    ProviderErrored,
    ProviderFailed,
    ProviderTimedOut,
    no_provider_with,
)
from llmgateway.fleet.breaker import RetryBudget
from llmgateway.fleet.health import Watch
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.redirects import is_redirect
from llmgateway.fleet.upstream import Upstream
from llmgateway.http.client import Client
from llmgateway.http.exchange import Exchange, Sink
from llmgateway.http.handshake import SWITCHING
from llmgateway.log import Events
from llmgateway.servers.kind import quote
from llmgateway.traffic.admission import Gate
from llmgateway.traffic.answers import blot_out, none_left, too_late
from llmgateway.traffic.call import Call
from llmgateway.traffic.estimate import Usual
from llmgateway.traffic.fairness import cost
from llmgateway.traffic.late import Unpacked, fit
from llmgateway.traffic.lessons import UNSUPPORTED, failure_told, is_disguised, is_refusal, worth_of
from llmgateway.traffic.line import NoCandidate, Overloaded
from llmgateway.traffic.listener import Listener
from llmgateway.traffic.naming import as_asked, asking, name_for, own_lines_of, turns
from llmgateway.traffic.order import Order
from llmgateway.traffic.session import converse
from llmgateway.traffic.slots import Slots
from llmgateway.traffic.story import Held, Story

events = Events("proxy")

_CONTENT: Final = (200, 201, 202, 203)
_NO_ANSWER: Final = 300  # from here on a status says that no model has worked
_QUOTED_S: Final = 2.0
_HELD_BYTES: Final = 1 << 20


class Proxy:
    """Carries calls to providers and their answers back.

    It is long as the story of a request, all that can go wrong in it included, is told in one place.
    """

    def __init__(
        self,
        slots: Slots,
        upstream: Upstream,
        watch: Watch,
        budget: RetryBudget,
        gate: Gate,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """Wire up; `clock` is the one that slots and providers go by."""
        self._slots = slots
        self._upstream = upstream
        self._watch = watch
        self._budget = budget
        self._gate = gate
        self._metrics = metrics
        self._keepers = slots.keepers
        self._now = clock
        self._usual = Usual()

    async def forward(self, call: Call, caller: Caller, client: Client) -> None:
        """Carry one call to a provider and its answer back, byte for byte. Raises GatewayError.

        An error raised after the client has been sent bytes is to be told as the end of the stream.
        """
        slots = self._slots
        with self._begin(call, caller, client) as story:
            if caller.limited and story.admission is None:
                story.admission = await self._gate.ask(call, caller, client)
            order = story.order
            while not order.tried or self._may_go_on(story):
                try:
                    with await slots.lease(order) as provider:
                        if await self._is_served_by(provider, story):
                            return
                except NoCandidate:
                    await self._watch.settled()  # another config may have brought somebody else
                    if not (slots.hopeful(order) or turns(story, slots)):
                        break
                except Overloaded:
                    if turns(story, slots, in_vain=True):
                        continue
                    if story.warms_at_best():
                        raise
                    break
            self._conclude(story)

    async def recall(self, call: Call, wanted: str, caller: Caller, client: Client) -> None:
        """Ask for a response where it is kept, at once, as that takes no slot. Raises GatewayError."""
        provider, call.kept = self._keepers.keeper(wanted, caller, now=self._now())
        if not provider.online:
            await self._watch.settled()  # another config may have it spoken to in another way
            provider, call.kept = self._keepers.keeper(wanted, caller, now=self._now())
        call.entry.model = call.kept.model
        if not provider.online:
            raise self._slots.keeper_is_away(provider)
        with self._begin(call, caller, client) as story:
            if caller.limited and story.admission is None:
                story.admission = await self._gate.ask(call, caller, client)
            try:
                call.entry.sent(provider.name, monotonic())
                with await self._upstream.open(provider, call.outgoing) as exchange:
                    await self._check(provider, exchange, call)
                    await self._relay(provider, exchange, story)
            except ProviderFailed as failure:
                self._learn(provider, failure, story)
                raise GatewayError(UPSTREAM_ERROR, failure.message, brief=failure.noted) from failure

    def _begin(self, call: Call, caller: Caller, client: Client) -> Story:
        """Admit a call, and let it take part. Raises GatewayError (403, 404, 429)."""
        model = call.model
        if caller.models or model in self._slots.aliases:
            model = name_for(call, caller, self._slots)
        prompt = self._usual.prompt(call.model, call.prompt_bytes) if call.prompt_bytes else 0
        call.entry.prompt_estimate = prompt
        expected = cost(prompt, self._usual.output(call.model, call.output_limit))
        only = self._keepers.keeper(call.follows, caller, now=self._now())[0].name if call.follows else ""
        admission = self._gate.admit(call, caller, client) if caller.limited else None
        self._budget.deposit(self._now())
        order = self._slots.order(caller, model, call.thread, expected, call.entry.id, call.endpoint)
        if only:
            order.only = only
        if call.entry.span is not None:
            call.outgoing.trace = passed_on(call.entry.span)
        story = Story(call, client, order, self._slots, admission)
        if call.keepalive_s:
            story.keep_alive(self._slots.line)
        return story

    def _may_go_on(self, story: Story) -> bool:
        """Tell whether a request may be tried once more, elsewhere or for another model."""
        if not story.call.outgoing.repeatable:
            return False
        hopeful = self._slots.hopeful(story.order)
        return self._budget.take(self._now()) if hopeful else turns(story, self._slots)

    # -- what it costs

    def _price(self, call: Call, order: Order) -> None:
        """Let an answer that has ended cost what it has turned out to cost, and learn from it."""
        entry = call.entry
        if (tokens := entry.reckon()) is None:
            return
        self._slots.correct(order, tokens)
        if not tokens.estimated:
            began = None if entry.streams else entry.sent_at
            seconds = 0.0 if began is None else monotonic() - began
            prompt, completion = tokens.prompt, tokens.completion
            self._usual.learn(call.model, call.prompt_bytes, prompt, completion, entry.provider, seconds)

    def _guess_output(self, provider: Provider, call: Call) -> None:
        """Say what an answer has cost that nobody waits for any more: to leave is no way round limits."""
        entry = call.entry
        if call.prompt_bytes and entry.sent_at is not None:
            for_s = monotonic() - entry.sent_at
            guess = self._usual.written(provider.name, call.model, for_s, call.output_limit)
            entry.output_estimate = guess

    def _take_nothing_for(self, story: Story) -> None:
        """Let an attempt that brought no answer cost nothing, also if the client leaves now."""
        self._slots.refund(story.order)
        story.call.entry.came_back()

    # -- one attempt

    async def _is_served_by(self, provider: Provider, story: Story) -> bool:
        """Ask one provider; tells whether its answer has reached the client, else another may be tried."""
        call, client, order = story.call, story.client, story.order
        call.entry.queue_s = order.waited_s
        call.entry.sent(provider.name, monotonic())
        order.tried.add(provider.name)
        outgoing = asking(provider, story) if provider.renames or call.asked else call.outgoing
        try:
            with await self._upstream.open(provider, outgoing) as exchange:
                status = exchange.status
                refused = status >= _NO_ANSWER
                if refused:
                    self._take_nothing_for(story)
                    await self._check(provider, exchange, call)
                elif order.endpoint not in provider.repertoire.worked:
                    refused = await is_disguised(exchange, provider, order, self._now())
                if order.doubts and not refused:
                    self._slots.blame(order)
                self._slots.answered(order, provider)
                if refused and await self._holds(provider, exchange, story):
                    self._give_up_on(provider, f"status_{status}", story)
                    return False
                if status == SWITCHING:
                    await converse(provider, exchange, story, slots=self._slots, learn=self._learn)
                else:
                    await self._relay(provider, exchange, story)
        except asyncio.CancelledError:
            if not call.entry.streams and call.entry.meter is None:
                self._guess_output(provider, call)
            raise
        except ProviderFailed as failure:
            self._learn(provider, failure, story)
            if client.answered:
                raise GatewayError(UPSTREAM_ERROR, failure.message, brief=failure.noted) from failure
            self._give_up_on(provider, failure.reason, story)
            story.failures.append(failure)
            return False
        provider.fared_well(order.model)
        return True

    async def _check(self, provider: Provider, exchange: Exchange, call: Call) -> None:
        """Raise ProviderFailed for an answer that is not for the client."""
        status = exchange.status
        if is_redirect(status, exchange.head):
            raise self._upstream.redirected(provider, call.outgoing, exchange)
        if status == UNSUPPORTED or (status < 500 and not is_refusal(status, call)):
            if status >= _NO_ANSWER:
                await blot_out(provider, exchange)
            return
        raise await failure_told(provider, exchange, call)

    async def _holds(self, provider: Provider, exchange: Exchange, story: Story) -> bool:
        """Keep an answer back if another candidate may have a better one, and if it is small."""
        call, order, held, status = story.call, story.order, story.held, exchange.status
        worth = await worth_of(exchange, provider, call, order, self._now())
        if worth and held is not None and worth < held.worth:
            return True
        if not worth or not self._slots.hopeful(order):
            return False
        body, whole = await exchange.read(_HELD_BYTES, _QUOTED_S)
        if exchange.failure is not None:
            raise exchange.failure
        if whole:
            own_lines = own_lines_of(provider, story)
            story.held = Held(provider, status, exchange.reason, exchange.head, body, own_lines, worth)
        return whole

    async def _relay(self, provider: Provider, exchange: Exchange, story: Story) -> None:
        """Pass an answer on as it comes. Raises ProviderFailed, and GatewayError if it came too late."""
        call, client, order = story.call, story.client, story.order
        outgoing = call.outgoing
        outgoing.body = b""
        if outgoing.hold is not None:
            outgoing.let_go()
        if outgoing.cargo is not None:
            client.close_unless_heard()
        head = exchange.head
        shapes, endings = WORDS_IN[client.dialect.stream]
        meter = Meter(head.framing is not None, head.coding, call.writes, shapes, endings)
        if exchange.status < _NO_ANSWER and not call.entry.recalls:
            call.entry.meter = meter
        try:
            sink: Sink | bytes = client
            if client.started and not (exchange.status in _CONTENT and client.may_add_to(head)):
                sink = await fit(provider, exchange, client, meter)
                if not isinstance(sink, bytes):
                    meter = Meter(stream=True, writes=call.writes)
                    call.entry.meter = None if call.entry.recalls else meter
            own_lines = own_lines_of(provider, story)
            client.begin(exchange.status, exchange.reason, head, own_lines)
            call.entry.first_byte_at = monotonic()
            if isinstance(sink, bytes):
                client.feed(sink, final=True)
                return
            client.watch = meter.feed
            if call.keeps and exchange.status in _CONTENT:
                client.watch = Listener(self._keepers, call, order, provider, meter, self._now)
            if exchange.complete:
                sink.feed(exchange.whole(), final=True)
            else:
                await self._pour(provider, exchange, sink, story, meter)
            if isinstance(sink, Unpacked):
                sink.check()
            if meter.stream:
                self._look_for_an_error(provider, meter, call)
        finally:
            self._price(call, order)
            if call.kept is not None and (late := call.kept.settle(call.entry, meter)) is not None:
                self._slots.correct(order, late)

    async def _pour(
        self, provider: Provider, exchange: Exchange, sink: Sink, story: Story, meter: Meter
    ) -> None:
        """Pass on what is still to come. What the API calls the end is the end, however it is left there.

        Raises ProviderFailed.
        """
        call, client = story.call, story.client
        try:
            with client.holding(exchange):
                await exchange.relay(sink, provider.config.timeouts.idle)
        except ProviderFailed as failure:
            stopped = exchange.lost or isinstance(failure, ProviderTimedOut)  # else what came makes no sense
            if not (stopped and (meter.error() or meter.has_ended(closed=exchange.hung_up))):
                raise
            client.end()
        except asyncio.CancelledError:
            try:
                self._look_for_an_error(provider, meter, call)
            except ProviderFailed as failure:
                self._learn(provider, failure, story)
            else:
                if meter.has_ended():
                    call.entry.outcome = "ok"
                    provider.fared_well(story.order.model)
            raise

    def _look_for_an_error(self, provider: Provider, meter: Meter, call: Call) -> None:
        """Raise ProviderFailed if a stream has told the client of an error, and not only of one long ago."""
        if not call.entry.recalls and (error := meter.error()) is not None:
            call.entry.outcome = UPSTREAM_ERROR.type
            brief = "told an error in its stream"
            failure = ProviderErrored(provider.name, f"{brief}: {quote(error, provider.secrets)}", brief)
            call.entry.why = failure.noted
            raise failure

    # -- what did not bring an answer

    def _give_up_on(self, provider: Provider, reason: str, story: Story) -> None:
        """Look for another provider: this one has served nothing."""
        self._take_nothing_for(story)
        self._metrics.failed_over(provider.name, reason)

    def _learn(self, provider: Provider, failure: ProviderFailed, story: Story) -> None:
        """Draw what a failure of real traffic says about the provider."""
        events.warning(
            "exchange failed", provider=provider.name, reason=failure.reason, trouble=failure.message
        )
        now, order = self._now(), story.order
        sequel = provider.fared(failure, now=now)
        if sequel.probe:
            self._watch.look_now(provider)
        if sequel.try_again:
            self._slots.allow_again(order, provider)
        if sequel.in_doubt and story.client.answered:
            provider.blamed(failure, order.model, now=now)  # it began to answer, and nobody else is asked
        elif sequel.in_doubt:
            self._slots.doubt(order, provider, failure)

    def _conclude(self, story: Story) -> None:
        """Give the client the best of what the candidates said. Raises GatewayError if that is not much."""
        call, client, held = story.call, story.client, story.held
        if held is None:
            raise none_left(story.failures) if story.failures else self._nobody_for(story)
        call.entry.provider = held.provider.name
        call.entry.first_byte_at = monotonic()
        if client.started:
            raise too_late(held.provider, held.status, held.head, held.body)
        client.close_unless_heard()
        client.begin(held.status, held.reason, held.head, held.own_lines)
        client.feed(held.body, final=True)

    def _nobody_for(self, story: Story) -> GatewayError:
        if story.call.model:
            return as_asked(self._slots.nobody_serves(story.order), story.call)
        return no_provider_with(story.call.outgoing.path)
