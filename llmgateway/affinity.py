"""Which provider a conversation saw last, in bounded memory.

A conversation is known by an explicit session id or else by a chain of hashes over its messages: the next
turn begins with the messages of the last one, so the longest known chain that reaches a user message names
the provider that holds its KV cache. System messages alone are no match, and whole messages are hashed, never
the first N bytes: either mistake puts everybody who shares a system prompt on one machine.

Pure: time is an argument, nothing waits. Two bounds hold always: the number of chains, and their age.
"""

from collections import OrderedDict, deque
from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

from llmgateway.wire import Buffer, Peek, Turn

DIGEST_BYTES: Final = 16
MAX_CHAINS: Final = 20_000
MAX_LINKS: Final = 1_000  # of one request: the longest chains are what the next turn is known by
MAX_AGE_S: Final = 3_600.0  # a KV cache that nobody used for an hour has most likely gone
LIVE_S: Final = 300.0  # a conversation without a turn for so long does not count as live
MAX_LIVE: Final = 5_000
MAX_SYSTEM_PROMPTS: Final = 1_000
_COPIED_BYTES: Final = 1 << 20
SYSTEM_PROMPT_BYTES: Final = 512  # a shorter system prompt is not worth a thought


class Thread(NamedTuple):
    """What a request tells of the conversation it belongs to.

    `links` run from the shortest chain to the whole. `opening` says that nothing was said before this
    request, so that another conversation may open in just the same way.
    """

    links: tuple[bytes, ...] = ()
    system: bytes | None = None
    opening: bool = False

    @property
    def known(self) -> bool:
        """False if the request has nothing to be recognised by."""
        return bool(self.links)


def thread_of(peek: Peek, *, user: str, session: str | None) -> Thread:
    """Tell the conversation of a request: by its session id if the client sent one, else by what it says.

    What different users say, and what is said to different models, is never taken for one conversation.
    """
    scope = f"{user}\0{peek.model}"
    spoken = message_thread(scope, peek.model, peek.turns) if peek.turns else text_thread(scope, peek.text)
    return spoken if session is None else Thread(session_thread(scope, session).links, spoken.system)


def session_thread(scope: str, session: str) -> Thread:
    """Know a conversation by an id that its client gave it."""
    return Thread((_digest(b"session", scope.encode(), session.encode("utf-8", "surrogateescape")),))


def message_thread(scope: str, model: str, turns: Iterable[Turn]) -> Thread:
    """Know a conversation by its messages; `scope` keeps apart those who must not be taken for each other."""
    chain = blake2b(scope.encode(), digest_size=DIGEST_BYTES)
    links: deque[bytes] = deque(maxlen=MAX_LINKS)
    system: list[Buffer] = []
    for reaches_user, content in turns:
        chain.update(_brief(content))
        if reaches_user or links:
            links.append(chain.digest())
        else:
            system.append(content)
    return Thread(tuple(links), _system_prompt(model, system) if system else None, len(links) == 1)


def _system_prompt(model: str, contents: list[Buffer]) -> bytes | None:
    """Know a system prompt, whoever sends it; None for one that is too short to matter."""
    if sum(map(len, contents)) < SYSTEM_PROMPT_BYTES:
        return None
    system = blake2b(model.encode(), digest_size=DIGEST_BYTES)
    for content in contents:
        system.update(_brief(content))
    return system.digest()


def _brief(content: Buffer) -> bytes:
    """Give a short stand-in for a message, whole: its length, and Python's own hash of it.

    That is SipHash with a secret of this process: 64 bits that nobody can aim at, and for a long prompt five
    times as fast as blake2b. It wants a copy, so what is very long (images) is hashed as it stands.
    """
    size = len(content)
    if size > _COPIED_BYTES:
        return blake2b(content, digest_size=DIGEST_BYTES).digest()
    return b"%d:%d;" % (size, hash(bytes(content)))


def text_thread(scope: str, text: Buffer, *, block_bytes: int = 256) -> Thread:
    """Know a conversation by a prompt of plain text that grows from turn to turn, in whole blocks."""
    chain = blake2b(scope.encode(), digest_size=DIGEST_BYTES)
    links: deque[bytes] = deque(maxlen=MAX_LINKS)
    for start in range(0, len(text) - block_bytes + 1, block_bytes):
        chain.update(text[start : start + block_bytes])
        links.append(chain.digest())
    return Thread(tuple(links))


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


@dataclass(slots=True, eq=False)
class Conversation:
    """Where a conversation lives, when it last had a turn, and the chain that it had reached by then."""

    home: Hashable
    last_turn: float
    tip: bytes


@dataclass(slots=True)
class _House:
    """What one provider holds: its live conversations and system prompts, the least recently used first."""

    live: OrderedDict[int, Conversation] = field(default_factory=OrderedDict)
    systems: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class Affinity:
    """The memory of all conversations."""

    def __init__(self, *, max_chains: int = MAX_CHAINS, max_age_s: float = MAX_AGE_S) -> None:
        self._max_chains = max_chains
        self._max_age_s = max_age_s
        self._chains: OrderedDict[bytes, Conversation] = OrderedDict()
        self._houses: dict[Hashable, _House] = {}

    def __len__(self) -> int:
        return len(self._chains)

    def find(self, thread: Thread, *, now: float) -> Conversation | None:
        """Give the conversation that this request goes on, if it is known."""
        return self._match(thread, now)[1]

    def _match(self, thread: Thread, now: float) -> tuple[bytes, Conversation | None]:
        for link in reversed(thread.links):
            conversation = self._chains.get(link)
            if conversation is not None and now - conversation.last_turn <= self._max_age_s:
                return link, conversation
        return b"", None

    def settle(self, thread: Thread, home: Hashable, *, now: float) -> None:
        """Remember that this turn of a conversation was given to a provider.

        A request that leaves a conversation at an earlier turn is a conversation of its own from then on; the
        other one stays where it is.
        """
        if not thread.known:
            return
        tip = thread.links[-1]
        link, conversation = self._match(thread, now)
        if conversation is None or link != conversation.tip or (thread.opening and conversation.home != home):
            conversation = Conversation(home, now, tip)
        if conversation.home != home:
            self._house(conversation.home).live.pop(id(conversation), None)
        conversation.home, conversation.last_turn, conversation.tip = home, now, tip
        self._chains[tip] = conversation
        self._chains.move_to_end(tip)
        house = self._house(home)
        house.live[id(conversation)] = conversation
        house.live.move_to_end(id(conversation))
        self._trim(house, now)

    def computed(self, thread: Thread, home: Hashable, *, now: float) -> None:
        """Remember that a provider has begun to answer, so that it holds the system prompt from now on."""
        if thread.system is not None:
            house = self._house(home)
            house.systems[thread.system] = now
            house.systems.move_to_end(thread.system)
            self._trim(house, now)

    def keep(self, homes: Container[Hashable]) -> None:
        """Forget what other providers than these hold: they are gone."""
        self._houses = {home: house for home, house in self._houses.items() if home in homes}

    def live(self, home: Hashable, *, now: float) -> int:
        """Count the conversations that live with a provider."""
        house = self._houses.get(home)
        if house is None:
            return 0
        self._trim_live(house, now)
        return len(house.live)

    def holds_system(self, thread: Thread, home: Hashable, *, now: float) -> bool:
        """Tell whether a provider has lately seen the system prompt that this request begins with."""
        house = self._houses.get(home)
        if thread.system is None or house is None:
            return False
        seen = house.systems.get(thread.system)
        return seen is not None and now - seen <= self._max_age_s

    def _house(self, home: Hashable) -> _House:
        return self._houses.setdefault(home, _House())

    def _trim(self, house: _House, now: float) -> None:
        while self._chains and (
            len(self._chains) > self._max_chains
            or now - next(iter(self._chains.values())).last_turn > self._max_age_s
        ):
            self._chains.popitem(last=False)
        while len(house.systems) > MAX_SYSTEM_PROMPTS:
            house.systems.popitem(last=False)
        self._trim_live(house, now)

    def _trim_live(self, house: _House, now: float) -> None:
        for key in _aged(house.live, now):
            del house.live[key]
        while len(house.live) > MAX_LIVE:
            house.live.popitem(last=False)


def _aged(live: OrderedDict[int, Conversation], now: float) -> list[int]:
    aged = []
    for key, conversation in live.items():
        if now - conversation.last_turn <= LIVE_S:
            break
        aged.append(key)
    return aged
