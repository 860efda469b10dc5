"""Limits in a Redis that several gateways count in: the scripts that it runs, what these are told and answer.

The library `limits` has a storage in Redis too, but that is asked for one window at a time, so that what the
second refuses has taken of the first. Here one script checks all and takes all. It counts as is counted in
memory (see `limits`): requests in a window that moves, tokens in one that begins with the first charge. The
time is that of the server.

A place among parallel requests is a lease that is renewed while the request goes on: those of a gateway that
is gone run out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llmgateway.access.limits import PARALLEL_RETRY_S, Reading
from llmgateway.access.rules import Rule, Wish

Argument = str | int

_NOW: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

# KEYS: the counter of each rule. ARGV: the lease, and its life; of each rule what it counts, the amount, the
# window, and 1 if the request takes of it; when to try again for a place. Times are in ms.
ADMIT: Final = (
    _NOW
    + """
local lease, life = ARGV[1], tonumber(ARGV[2])

local function rule(i)
    local at = 3 + 4 * (i - 1)
    return KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3] == '1'
end

local read = {}
function read.requests(key, amount, window)
    local oldest = redis.call('LINDEX', key, 0)
    while oldest and oldest + window <= now do
        redis.call('LPOP', key)
        oldest = redis.call('LINDEX', key, 0)
    end
    local count = redis.call('LLEN', key)
    local opens = count >= amount and redis.call('LINDEX', key, -amount) + window - now or 0
    local whole = count > 0 and redis.call('LINDEX', key, -1) + window - now or 0
    return math.min(count, amount), opens, whole
end
function read.tokens(key, amount)
    local used = tonumber(redis.call('GET', key) or 0)
    local left = used > 0 and math.max(redis.call('PTTL', key), 0) or 0
    return used, used >= amount and math.max(left, 1) or 0, left
end
function read.parallel(key, amount)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local used = redis.call('ZCARD', key)
    return used, used >= amount and tonumber(ARGV[#ARGV]) or 0, 0
end

local admitted = 1
for i = 1, #KEYS do
    local key, counts, amount, window, takes = rule(i)
    local _, opens = read[counts](key, amount, window)
    if takes and opens > 0 then admitted = 0 end
end
for i = 1, #KEYS do
    local key, counts, amount, window, takes = rule(i)
    if admitted == 1 and takes and counts == 'requests' then
        redis.call('RPUSH', key, now)
        redis.call('PEXPIRE', key, window)
    elseif admitted == 1 and takes and counts == 'parallel' then
        redis.call('ZADD', key, now + life, lease)
        redis.call('PEXPIRE', key, life)
    end
end
local answer = {admitted}
for i = 1, #KEYS do
    local key, counts, amount, window = rule(i)
    for _, value in ipairs({read[counts](key, amount, window)}) do
        table.insert(answer, value)
    end
end
return answer
"""
)

# KEYS: the counter of each thing told. ARGV: of each what it is, of what, and a time in ms.
TELL: Final = (
    _NOW
    + """
for i = 1, #KEYS do
    local key, what, of, number = KEYS[i], ARGV[3 * i - 2], ARGV[3 * i - 1], tonumber(ARGV[3 * i])
    if what == 'release' then
        redis.call('ZREM', key, of)
    elseif what == 'hold' then
        redis.call('ZADD', key, now + number, of)
        redis.call('PEXPIRE', key, number)
    elseif redis.call('INCRBY', key, of) == tonumber(of) then
        redis.call('PEXPIRE', key, number)
    end
end
"""
)


def key_of(rule: Rule) -> str:
    """Give the key of a rule's counter."""
    return f"llmgateway:{rule.item.key_for(*rule.who)}"


@dataclass(frozen=True, slots=True)
class Telling:
    """What is told of a counter: a lease to `hold` for so long, or to `release`; tokens to `charge`."""

    key: str
    what: str
    of: Argument
    ms: int = 0


def asking(wish: Wish, lease: str, life_s: float) -> tuple[int, list[Argument]]:
    """Give what ADMIT is told: how many keys there are, and these and the arguments."""
    told: list[Argument] = [key_of(rule) for rule in wish.rules]
    told += [lease, _ms(life_s)]
    for rule in wish.rules:
        told += (rule.kind.counts, rule.amount, _ms(rule.kind.window_s), int(rule in wish.holding))
    told.append(_ms(PARALLEL_RETRY_S))
    return len(wish.rules), told


def telling(tellings: Iterable[Telling]) -> tuple[int, list[Argument]]:
    """Give what TELL is told: how many keys there are, and these and the arguments."""
    keys: list[Argument] = []
    arguments: list[Argument] = []
    for each in tellings:
        keys.append(each.key)
        arguments += (each.what, each.of, each.ms)
    return len(keys), keys + arguments


def answered(answer: Sequence[int]) -> tuple[bool, list[Reading]]:
    """Understand what ADMIT answers: whether the request is let in, and how each rule reads now."""
    admitted, *numbers = answer
    readings = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return admitted == 1, [Reading(used, opens / 1000, whole / 1000) for used, opens, whole in readings]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
