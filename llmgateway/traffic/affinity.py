"""Which provider a conversation saw last, in bounded memory.

A conversation is known by a chain of hashes over its messages: the next turn begins with the messages of the
last one, so the longest known chain that reaches a user message names the provider that holds its KV cache.
System messages alone are no match, and whole messages are hashed, never the first N bytes: either mistake
puts everybody who shares a system prompt on one machine.

Some clients decorate the user's last message, and only that: the next turn has it without. So the chain up to
that message, the eve of the turn, is known too. But eves are what strangers may share, if all begin with the
same examples: an eve says nothing to a request that has said no more than that, and one that leads to several
providers leads to none.

Where the client sends a session id, a conversation is known by that and what it begins with, whatever becomes
of the rest. Not by the id alone: clients have titles and tags made in the same session, and those share
nothing with the conversation, but would take its slot.

Pure: time is an argument, nothing waits. Two bounds hold always: the number of chains, and their age.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Container, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from llmgateway.api.endpoints import Buffer
from llmgateway.api.peek import Peek
from llmgateway.api.prints import blocks_of, print_of
from llmgateway.api.turns import role_of

MAX_CHAINS: Final = 20_000
MAX_LINKS: Final = 1_000  # of one request: the longest chains are what the next turn is known by
MAX_AGE_S: Final = 3_600.0  # a KV cache that nobody used for an hour has most likely gone
LIVE_S: Final = 300.0  # a conversation without a turn for so long does not count as live
MAX_LIVE: Final = 20_000
TRIM_S: Final = 1.0  # what is too old is not found, so that it need not go at once
MAX_SYSTEM_PROMPTS: Final = 3_000
SYSTEM_PROMPT_BYTES: Final = 512
_BLOCK: Final = 64  # of messages
_LAST_MESSAGES: Final = 16  # among which that of the user is looked for: the others are calls of tools


class Thread(msgspec.Struct, frozen=True, gc=False):
    """What a request tells of the conversation it belongs to.

    `links` run from the shortest chain to the whole. `opening` says that nothing was said before this
    request, so that another conversation may open in just the same way. `eve` is the chain up to the user's
    last message, if that is more than an opening. `session` is the client's own id of a session, and `length`
    the number of messages in it.
    """

    links: tuple[Hashable, ...] = ()
    system: Hashable | None = None
    opening: bool = False
    eve: Hashable | None = None
    session: Hashable | None = None
    length: int = 0

    @property
    def known(self) -> bool:
        """False if the request has nothing to be recognised by."""
        return bool(self.links)


def thread_of(peek: Peek, *, user: str, session: bytes | None) -> Thread:
    """Tell the conversation of a request: by what it says and, if the client sent one, by its session id.

    What different users say, and what is said to different models, is never taken for one conversation.
    """
    prints = peek.prints
    if prints is None:
        said = peek.said if not peek.text else blocks_of(peek.text)
        prints = [print_of(each) for each in (*peek.system, *said)]
    chain = own = hash((user, peek.model) if session is None else (user, peek.model, session))
    system = None
    if peek.system:
        opening, prints = tuple(prints[: len(peek.system)]), prints[len(peek.system) :]
        chain = hash((chain, opening))
        if sum(map(len, peek.system)) >= SYSTEM_PROMPT_BYTES:  # a shorter one is not worth a thought
            system = hash((peek.model, opening))
    if session is not None:
        start = hash((chain, prints[0])) if prints else chain
        return Thread((start,), system, session=own, length=len(prints))
    if len(prints) == 1:
        return Thread((hash((chain, prints[0])),), system, not peek.text)
    links: list[Hashable] = []
    if len(prints) > _BLOCK:
        chain, prints = _go_far(chain, prints, links)
    for each in prints:
        chain = hash((chain, each))
        links.append(chain)
    eve = _eve(peek.said, links) if len(links) > 2 and not peek.text else None
    return Thread(tuple(links[-MAX_LINKS:]), system, eve=eve)


def _go_far(chain: int, prints: Sequence[int], links: list[Hashable]) -> tuple[int, Sequence[int]]:
    """Go over all blocks but the last one; give the chain up to that, and its prints.

    Of a long conversation only the last links are known again, so that far back a step is a block.
    """
    last = (len(prints) - 1) // _BLOCK * _BLOCK
    known = len(prints) - MAX_LINKS
    for start in range(0, last, _BLOCK):
        block = prints[start : start + _BLOCK]
        if start + _BLOCK > known:
            link = chain
            for each in block:
                link = hash((link, each))
                links.append(link)
        chain = hash((chain, tuple(block)))
    return chain, prints[last:]


def _eve(said: Sequence[Buffer], links: Sequence[Hashable]) -> Hashable | None:
    """Give the chain up to the user's last message, if that is more than an opening."""
    for at in range(len(said) - 1, 1, -1)[:_LAST_MESSAGES]:
        if role_of(said[at]) == "user":
            return links[at - 1 - len(said)]
    return None


@dataclass(slots=True, eq=False)
class Conversation:
    """Where a conversation lives, when it last had a turn, and the chain that it had reached by then."""

    home: Hashable | None
    """None for what stands for several that live apart."""
    last_turn: float
    tip: Hashable
    eve: Hashable | None = None
    length: int = 0


Match = tuple[Hashable, Conversation | None]
"""The longest known link of a thread, and the conversation that it belongs to."""
NO_MATCH: Final[Match] = (0, None)
_EVE: Final = "eve"


class Affinity:
    """The memory of all conversations; of each kind, the least recently used is forgotten first."""

    def __init__(self, *, max_chains: int = MAX_CHAINS, max_age_s: float = MAX_AGE_S) -> None:
        self._max_chains = max_chains
        self._max_age_s = max_age_s
        self._chains: OrderedDict[Hashable, Conversation] = OrderedDict()
        self._live: OrderedDict[int, Conversation] = OrderedDict()
        self._living: Counter[Hashable] = Counter()
        """How many live with each home, so that nobody has to count them for every choice."""
        self._systems: OrderedDict[Hashable, dict[Hashable, float]] = OrderedDict()
        """Who has begun to answer with each system prompt, and when last."""
        self._trimmed_at = 0.0

    def __len__(self) -> int:
        return len(self._chains)

    def find(self, thread: Thread, *, now: float) -> Conversation | None:
        """Give the conversation that this request goes on, if it is known."""
        return self.match(thread, now=now)[1]

    def match(self, thread: Thread, *, now: float) -> Match:
        """Give the conversation that this request goes on, and where it leaves it."""
        chains, eve, before_eve = self._chains, thread.eve, False
        for link in reversed(thread.links):
            conversation = chains.get(link)
            if conversation is None and before_eve:
                conversation = chains.get((_EVE, link))
            if (
                conversation is not None
                and conversation.home is not None
                and self._is_fresh(conversation, now)
            ):
                return link, conversation
            if link == eve:
                before_eve = True
        return NO_MATCH

    def _is_fresh(self, conversation: Conversation, now: float) -> bool:
        return now - conversation.last_turn <= self._max_age_s

    def remember(self, thread: Thread, home: Hashable, *, now: float, match: Match | None = None) -> None:
        """Remember that this turn of a conversation was given to a provider. `match` is what it matches now.

        A request that leaves a conversation at an earlier turn is a conversation of its own from then on; the
        other one stays where it is.
        """
        if not thread.links:
            return
        tip = thread.links[-1]
        link, conversation = match or self.match(thread, now=now)
        if (
            conversation is None
            or (link != conversation.tip and link != conversation.eve)
            or (thread.opening and conversation.home != home)
        ):
            conversation = Conversation(home, now, tip, length=thread.length)
        else:
            if conversation.home != home:
                if self._live.pop(id(conversation), None) is not None:
                    self._living[conversation.home] -= 1
                conversation.home = home
            conversation.last_turn, conversation.tip = now, tip
        chains, live, key = self._chains, self._live, id(conversation)
        if key not in live:
            self._living[home] += 1
        chains[tip] = live[key] = conversation
        chains.move_to_end(tip)
        live.move_to_end(key)
        if thread.eve is not None:
            self._remember_eve(thread.eve, conversation, now)
        if thread.session is not None:
            self._remember_session(thread.session, thread.length, conversation, now)
        if now - self._trimmed_at > TRIM_S or len(chains) > self._max_chains or len(live) > MAX_LIVE:
            self._trim(now)

    def _remember_eve(self, eve: Hashable, conversation: Conversation, now: float) -> None:
        conversation.eve = eve
        key, chains = (_EVE, eve), self._chains
        known = chains.get(key)
        if known is None or known.home == conversation.home or not self._is_fresh(known, now):
            chains[key] = conversation
        else:
            chains[key] = Conversation(None, now, eve)
        chains.move_to_end(key)

    def _remember_session(
        self, session: Hashable, length: int, conversation: Conversation, now: float
    ) -> None:
        """Note which conversation a session is about: that which last grew. What is asked aside does not."""
        subject = self._chains.get(session)
        if subject is None or length > conversation.length or not self._is_fresh(subject, now):
            self._chains[session] = conversation
        self._chains.move_to_end(session)
        conversation.length = length

    def subject(self, thread: Thread, *, now: float) -> Conversation | None:
        """Give the conversation that the session of a request is about, if there is one."""
        subject = self._chains.get(thread.session) if thread.session is not None else None
        return subject if subject is not None and self._is_fresh(subject, now) else None

    def computed(self, thread: Thread, home: Hashable, *, now: float) -> None:
        """Remember that a provider has begun to answer, so that it holds the system prompt from now on."""
        if thread.system is not None:
            self._systems.setdefault(thread.system, {})[home] = now
            self._systems.move_to_end(thread.system)
            if len(self._systems) > MAX_SYSTEM_PROMPTS:
                self._systems.popitem(last=False)

    def keep(self, homes: Container[Hashable]) -> None:
        """Forget what other providers than these hold: they are gone."""
        self._live = OrderedDict((key, each) for key, each in self._live.items() if each.home in homes)
        self._living = Counter(each.home for each in self._live.values())
        for seen in self._systems.values():
            for home in [home for home in seen if home not in homes]:
                del seen[home]

    def living(self, *, now: float) -> Counter[Hashable]:
        """Count the conversations that live with each provider."""
        self._trim_live(now)
        return self._living

    def holders(self, thread: Thread, *, now: float) -> Collection[Hashable]:
        """Name the providers that have lately seen the system prompt that this request begins with."""
        if thread.system is None:
            return ()
        seen = self._systems.get(thread.system, {})
        return {home for home, last in seen.items() if now - last <= self._max_age_s}

    def _trim(self, now: float) -> None:
        self._trimmed_at = now
        while self._chains and (
            len(self._chains) > self._max_chains
            or now - next(iter(self._chains.values())).last_turn > self._max_age_s
        ):
            self._chains.popitem(last=False)
        self._trim_live(now)

    def _trim_live(self, now: float) -> None:
        live = self._live
        while live and (len(live) > MAX_LIVE or now - next(iter(live.values())).last_turn > LIVE_S):
            _, conversation = live.popitem(last=False)
            self._living[conversation.home] -= 1
