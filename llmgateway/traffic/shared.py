"""Limits that several gateways hold together: asked of Redis over one connection, many at a time.

Rules:

- A request asks once, before it is served, and waits for 50 ms at most; what it has used is told later, with
  what others have to tell. Who has no limits never comes here.
- Redis slow or away: this gateway decides by what it has counted itself, without asking, until Redis answers
  again. The log and a metric say so.
- Nothing that Redis or its library does makes a request fail.
- What was told when the connection broke is not told again: rather some tokens too few than counted twice.
- No word of ours has the credentials in it.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from llmgateway.access.limits import Admission, Limits, Reading
from llmgateway.access.rules import Wish
from llmgateway.access.shared import ADMIT, TELL, Telling, answered, asking, key_of, telling
from llmgateway.config.addresses import RedisAddress
from llmgateway.log import Events
from llmgateway.servers.kind import quote

if TYPE_CHECKING:
    from redis.asyncio import Redis

events = Events("limits")

MOST_AT_ONCE: Final = 500
_CANCEL_AGAIN_S: Final = 0.1
MOST_CHARGES: Final = 10_000
"""Counters whose tokens wait for Redis to come back."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds."""

    patience: float = 0.05
    """For an answer, until a request is decided here."""
    answer: float = 1.0
    """For an answer, until the connection is given up."""
    life: float = 30.0
    """After that a place is free whose gateway has said nothing."""
    renew: float = 3.0
    """After that it says again which it has: a Redis that was started anew knows of none."""
    retry: float = 1.0
    """From one attempt to reach Redis to the next."""


PACE: Final = Pace()


@dataclass(slots=True, eq=False)
class _Question:
    wish: Wish
    lease: str
    answer: asyncio.Future[tuple[bool, list[Reading]] | None]


@dataclass(slots=True)
class _Charge:
    tokens: int
    since: float
    window_s: int


@dataclass(slots=True)
class SharedStake:
    """What a request has taken in Redis; `lease` names it there."""

    _link: "Link"
    _wish: Wish
    lease: str

    def release(self) -> None:
        """Give back its place."""
        self._link.release(self.lease)

    def charge(self, tokens: int) -> None:
        """Book tokens."""
        self._link.charge(self._wish, tokens)


class Link:
    """A connection to Redis, and the one task that speaks over it, from `open` to `close`."""

    def __init__(self, address: RedisAddress, limits: Limits, pace: Pace, clock: Callable[[], float]) -> None:
        """Serve `limits`; `clock` is the loop's."""
        self._address = address
        self._limits = limits
        self._pace = pace
        self._now = clock
        self.away = False
        """True while this gateway decides alone."""
        self.alone = 0
        """How many requests it has decided so."""
        self._redis = _client(address, pace)
        self._name = secrets.token_hex(8)
        self._numbers = count()
        self._questions: list[_Question] = []
        self._held: dict[str, list[str]] = {}  # the keys of the places that requests have, by lease
        self._released: list[Telling] = []
        self._charges: dict[str, _Charge] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._renew_at = 0.0

    def open(self) -> None:
        """Begin to speak."""
        self._task = asyncio.create_task(self._speak(), name="limits")

    async def close(self) -> None:
        """Tell what is left to be told, if that is quick, and end."""
        assert self._task is not None
        while not self._task.done():
            self._task.cancel()  # which the library swallows now and then
            await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_S)
        self._leave_unanswered()
        if not self.away:
            for lease in tuple(self._held):
                self.release(lease)
            try:
                async with asyncio.timeout(self._pace.patience):
                    await self._send([], list(self._to_tell()))
            except Exception as failure:
                events.debug("redis was not told of the end", why=self._words(failure))
        await self._redis.aclose()

    # -- what requests want

    async def admit(self, wish: Wish) -> Admission:
        """Let a request in by what all gateways have counted. Raises GatewayError (429)."""
        stake = SharedStake(self, wish, f"{self._name}{next(self._numbers)}")
        found = None if self.away else await self._ask(wish, stake.lease)
        if found is None:
            self.alone += 1
            admission = self._limits.admit(wish, stake)
        else:
            admitted, readings = found
            admission = self._limits.follow(wish, readings, admitted=admitted, stake=stake)
        places = [key_of(rule) for rule in wish.holding if rule.kind.counts == "parallel"]
        if places:
            self._held[stake.lease] = places
        return admission

    async def _ask(self, wish: Wish, lease: str) -> tuple[bool, list[Reading]] | None:
        """Ask Redis; None if it does not answer in time. Who does not wait any longer cancels the answer."""
        question = _Question(wish, lease, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._work.set()
        try:
            if await self._comes(question.answer):
                return question.answer.result()
        except asyncio.CancelledError:
            if question.answer.done() and (found := question.answer.result()) is not None:
                self._take_back(question, found)
            raise
        finally:
            question.answer.cancel()
        self._lose(f"no answer within {self._pace.patience * 1000:.0f} ms")
        return None

    async def _comes(self, answer: asyncio.Future[Any]) -> bool:
        """Wait for an answer; longer if it was this process that was busy, and could not hear it."""
        for _ in range(3):
            due = self._now() + self._pace.patience
            await asyncio.wait([answer], timeout=self._pace.patience)
            if answer.done() or self._now() - due < self._pace.patience:
                break
        return answer.done()

    def release(self, lease: str) -> None:
        """Give back the place of a request."""
        for key in self._held.pop(lease, ()):
            if not self.away:  # else it runs out there
                self._released.append(Telling(key, "release", lease))
                self._work.set()

    def charge(self, wish: Wish, tokens: int) -> None:
        """Book tokens. If Redis is away it is told of them later, unless their window has ended."""
        for rule in wish.rules:
            if rule.kind.counts != "tokens":
                continue
            key = key_of(rule)
            if (charge := self._charges.get(key)) is not None:
                charge.tokens += tokens
            elif len(self._charges) < MOST_CHARGES:
                self._charges[key] = _Charge(tokens, self._now(), rule.kind.window_s)
        self._work.set()

    # -- what is said to Redis

    async def _speak(self) -> None:
        while True:
            try:
                await self._redis.ping()
                self._regain()
                while not self.away:
                    await self._hear()
                    await self._exchange()
            except Exception as failure:  # whatever the library may raise: requests do not depend on it
                self._lose(self._words(failure))
            await asyncio.sleep(self._pace.retry)

    async def _hear(self) -> None:
        """Wait until there is something to say, or places are to be held for longer."""
        try:
            async with asyncio.timeout(max(0.0, self._renew_at - self._now())):
                await self._work.wait()
        except TimeoutError:
            pass
        self._work.clear()

    async def _exchange(self) -> None:
        """Say what there is to be said, and hand out the answers."""
        while True:
            wanted = [question for question in self._questions if not question.answer.done()]
            asked, self._questions = wanted[:MOST_AT_ONCE], wanted[MOST_AT_ONCE:]
            told = list(self._to_tell())
            if not asked and not told:
                return
            try:
                answers = await self._send(asked, told)
            except BaseException:
                for question in asked:
                    if not question.answer.done():
                        question.answer.set_result(None)
                raise
            for question, answer in zip(asked, answers, strict=True):
                self._hand_out(question, answered(answer))

    def _hand_out(self, question: _Question, found: tuple[bool, list[Reading]]) -> None:
        if not question.answer.done():
            question.answer.set_result(found)
        else:
            self._take_back(question, found)

    def _take_back(self, question: _Question, found: tuple[bool, list[Reading]]) -> None:
        """Give back the place of a request that has not waited for it, and was not let in otherwise."""
        if found[0] and question.lease not in self._held:
            rules = [rule for rule in question.wish.holding if rule.kind.counts == "parallel"]
            self._released += [Telling(key_of(rule), "release", question.lease) for rule in rules]

    def _to_tell(self) -> Iterator[Telling]:
        """Give what is to be told, which then counts as told."""
        now = self._now()
        if now >= self._renew_at:
            self._renew_at = now + self._pace.renew
            life_ms = round(self._pace.life * 1000)
            yield from (
                Telling(key, "hold", lease, life_ms) for lease, keys in self._held.items() for key in keys
            )
        released, self._released = self._released, []
        yield from released
        charges, self._charges = self._charges, {}
        for key, charge in charges.items():
            if now - charge.since < charge.window_s:
                yield Telling(key, "charge", charge.tokens, charge.window_s * 1000)

    async def _send(self, asked: list[_Question], told: list[Telling]) -> list[list[int]]:
        """Send all at once: first what is told, as it may make room for what is asked."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            if told:
                pipeline.eval(TELL, *_flat(telling(told)))
            for question in asked:
                pipeline.eval(ADMIT, *_flat(asking(question.wish, question.lease, self._pace.life)))
            answers = await pipeline.execute(raise_on_error=False)  # else it quotes the script
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[1:] if told else answers

    # -- whether it is there

    def _lose(self, why: str) -> None:
        """Decide alone from now on."""
        self._leave_unanswered()
        self._released.clear()  # places run out there
        if not self.away:
            self.away = True
            events.warning("limits are counted by this gateway alone", redis=self._address.place, why=why)

    def _leave_unanswered(self) -> None:
        for question in self._questions:
            if not question.answer.done():
                question.answer.set_result(None)
        self._questions.clear()

    def _regain(self) -> None:
        self._renew_at = 0.0  # a Redis that was started anew knows of no place
        if self.away:
            self.away = False
            events.info("limits are counted in Redis again", redis=self._address.place)

    def _words(self, failure: Exception) -> str:
        words = quote(str(failure).encode(), [self._address.password] if self._address.password else [])
        return f"{type(failure).__name__}: {words}" if words else type(failure).__name__


def _client(address: RedisAddress, pace: Pace) -> "Redis":
    from redis.asyncio import Redis  # it is there where the config wants it, and only there
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis(
        host=address.host,
        port=address.port,
        db=address.number,
        username=address.user or None,
        password=address.password or None,
        ssl=address.tls,
        socket_timeout=pace.answer,  # of each piece of work; asyncio's own is lost in the library at times
        socket_connect_timeout=pace.answer,
        retry=Retry(NoBackoff(), 0),
        client_name="llmgateway",
        protocol=2,
    )


def _flat(told: tuple[int, list[Any]]) -> tuple[Any, ...]:
    return told[0], *told[1]
