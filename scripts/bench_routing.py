"""Measure what the gateway's routing is worth on real llama.cpp servers.

Simulated people hold conversations: each turn sends all that was said so far, as chat clients do. Where a
conversation is pinned, or goes by round robin or least in flight, the client itself plays that and talks to
the servers; the gateway runs as it really starts. Every policy gets the same conversations and pauses, in
interleaved rounds, on servers (and a gateway) of its own: they start in 0.2 s, and nothing is left over in a
cache or a memory of conversations. How many prompt tokens were computed is what llama.cpp's `timings` say.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Final

import aiohttp
from bench_process import free_ports, running, until_it_answers
from bench_targets import ROOT

from tests.llamacpp.fixtures import llama
from tests.llamacpp.make_tiny_gguf import WORDS

MAKER: Final = ROOT / "tests" / "llamacpp" / "make_tiny_gguf.py"
SHAPE: Final = "--dim 256 --layers 6 --eos-prob 0 --tool-prob 0".split()  # about 4,000 prompt tokens a second
SLOTS: Final = 4
CONTEXT: Final = 3_072 * SLOTS
ANSWER_TOKENS: Final = 32
USERS: Final = 4
FIRST_WORDS: Final = (300, 700)  # somebody pastes a text, then asks about it
LATER_WORDS: Final = (15, 50)
# People answer at once several times, then look at something else. Even pauses would make caches worthless
# with more conversations than slots: the one that rested longest loses its slot, and speaks next.
PAUSE_S: Final = (0.2, 0.6)
REST_S: Final = (3.0, 6.0)
RESTS: Final = 0.25
ARRIVAL_S: Final = 5.0  # within this all conversations begin
RUN_LIMIT_S: Final = 120

GATEWAY: Final = "gateway"
ROUND_ROBIN: Final = "round robin"
LEAST: Final = "least in flight"
PINNED: Final = "each pinned"  # to a server, evenly: what keeping caches can reach if nobody ever moves


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    servers: int
    conversations: int
    turns: int
    policies: tuple[str, ...]
    system_words: int = 0


DAILY: Final = Scenario("Enough slots", 3, 10, 6, (ROUND_ROBIN, LEAST, GATEWAY))
CROWDED: Final = Scenario("More conversations than slots", 2, 14, 6, (ROUND_ROBIN, PINNED, GATEWAY))
SHARED: Final = Scenario(
    "A system prompt of 2,000 words that all share", 3, 10, 2, (ROUND_ROBIN, GATEWAY), system_words=2_000
)
SCENARIOS: Final = (DAILY, CROWDED, SHARED)

Route = Callable[[int], AbstractContextManager[str]]  # the URL for one turn of a conversation, till its end
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Script:
    """What one person will say, and how long they think before each turn."""

    number: int
    system: str
    questions: list[str]
    pauses_s: list[float]

    @property
    def user(self) -> str:
        return f"user-{self.number % USERS}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer. `computed` of its `prompt` tokens were not in the server's cache."""

    server: str
    text: str
    prompt: int
    computed: int
    computing_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """All conversations, each with its turns, under one policy."""

    conversations: list[list[Turn]]
    took_s: float

    @property
    def turns(self) -> list[Turn]:
        return [turn for turns in self.conversations for turn in turns]

    @property
    def later_pairs(self) -> list[tuple[Turn, Turn]]:
        """Each turn from the second on, with the one before it."""
        return [pair for turns in self.conversations for pair in pairwise(turns)]

    def computed(self) -> int:
        return sum(turn.computed for turn in self.turns)

    def recomputed(self) -> int:
        return sum(turn.computed for _, turn in self.later_pairs)

    def new(self) -> int:
        """The tokens of later turns that no server can have seen: what the best routing still computes."""
        return sum(turn.prompt - before.prompt - ANSWER_TOKENS for before, turn in self.later_pairs)

    def moved(self) -> int:
        return sum(turn.server != before.server for before, turn in self.later_pairs)

    def homes(self) -> list[int]:
        """Conversations per server that has any, each counted where most of its turns were."""
        homes = [Counter(turn.server for turn in turns).most_common(1)[0][0] for turns in self.conversations]
        return sorted(Counter(homes).values(), reverse=True)

    def first_token_ms(self, percent: int) -> float:
        waits_s = [turn.first_token_s for turn in self.turns]
        return quantiles(waits_s, n=100, method="inclusive")[percent - 1] * 1e3


# --- The people -------------------------------------------------------------------------------------


def scripts(scenario: Scenario, seed: int) -> list[Script]:
    random = Random(seed)

    def text(words: tuple[int, int]) -> str:
        return " ".join(random.choices(WORDS, k=random.randint(*words)))

    def pause_s() -> float:
        return random.uniform(*(REST_S if random.random() < RESTS else PAUSE_S))

    system, later = text((scenario.system_words,) * 2), range(scenario.turns - 1)
    return [
        Script(
            number=number,
            system=system,
            questions=[text(FIRST_WORDS), *(text(LATER_WORDS) for _ in later)],
            pauses_s=[random.uniform(0, ARRIVAL_S), *(pause_s() for _ in later)],
        )
        for number in range(scenario.conversations)
    ]


async def converse(http: aiohttp.ClientSession, script: Script, route: Route) -> list[Turn]:
    messages: list[Message] = [{"role": "system", "content": script.system}] if script.system else []
    turns: list[Turn] = []
    for question, pause_s in zip(script.questions, script.pauses_s, strict=True):
        await asyncio.sleep(pause_s)
        messages.append({"role": "user", "content": question})
        with route(script.number) as url:
            turns.append(await ask(http, url, script.user, messages))
        messages.append({"role": "assistant", "content": turns[-1].text})
    return turns


async def ask(http: aiohttp.ClientSession, url: str, user: str, messages: Sequence[Message]) -> Turn:
    body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS, "stream": True}
    body["stream_options"] = {"include_usage": True}
    headers = {"Authorization": f"Bearer {key_of(user)}"}
    text, first_token_s, sent_at = "", 0.0, time.perf_counter()
    async with http.post(f"{url}/chat/completions", json=body, headers=headers) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if event.get("usage"):
                timings = event["timings"]
                return Turn(
                    server=answer.headers.get("x-gateway-provider", url),
                    text=text,
                    prompt=event["usage"]["prompt_tokens"],
                    computed=timings["prompt_n"],
                    computing_s=timings["prompt_ms"] / 1e3,
                    first_token_s=first_token_s,
                )
            text += event["choices"][0]["delta"].get("content") or ""
            first_token_s = first_token_s or (time.perf_counter() - sent_at if text else 0.0)
    raise RuntimeError(f"{url} sent a stream without an end")


async def run_scripts(people: Sequence[Script], route: Route) -> Run:
    began = time.perf_counter()
    # A connection for each turn: llama.cpp closes idle ones after 5 s, which would be another difference.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        asyncio.timeout(RUN_LIMIT_S),
        aiohttp.ClientSession(connector=connector) as http,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(converse(http, script, route)) for script in people]
    return Run([task.result() for task in tasks], time.perf_counter() - began)


# --- The policies -----------------------------------------------------------------------------------


def balancing(urls: Sequence[str], *, by_load: bool) -> Route:
    """Take the servers in turn, or the one with the fewest in flight; then ties are taken in turn."""
    in_flight = dict.fromkeys(urls, 0)

    @contextmanager
    def route(number: int) -> Iterator[str]:
        url = min(in_flight, key=lambda url: in_flight[url] if by_load else 0)
        in_flight[url] = in_flight.pop(url) + 1  # to the end of the line
        try:
            yield url
        finally:
            in_flight[url] -= 1

    return route


def pinning(urls: Sequence[str]) -> Route:
    return lambda number: nullcontext(urls[number % len(urls)])


@contextmanager
def gateway(urls: Sequence[str]) -> Iterator[Route]:
    """Run the real gateway; if the bench fails meanwhile, show what it logged."""
    names = [f"user-{number}" for number in range(USERS)]
    digests = {name: hashlib.sha256(key_of(name).encode()).hexdigest() for name in names}
    users = {name: {"keys": [f"sha256:{digest}"]} for name, digest in digests.items()}
    providers = {f"server-{number}": {"url": url} for number, url in enumerate(urls)}
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "config.yaml")
        config.write_text(json.dumps({"users": users, "providers": providers}))
        (port,), log = free_ports(1), Path(name, "log")
        command = [sys.executable, str(ROOT / "gateway.py"), "-c", str(config), "--port", str(port)]
        with running(command, log) as process:
            until_it_answers(process, port, log, "/readyz")
            try:
                yield pinning([f"http://127.0.0.1:{port}/v1"])
            except Exception:
                print(log.read_text()[-4_000:], file=sys.stderr)
                raise


CLIENT_SIDE: Final[dict[str, Callable[[Sequence[str]], Route]]] = {
    ROUND_ROBIN: partial(balancing, by_load=False),
    LEAST: partial(balancing, by_load=True),
    PINNED: pinning,
}


def key_of(user: str) -> str:
    return f"sk-bench-of-{user}"


def run_policy(policy: str, scenario: Scenario, people: Sequence[Script], model: Path) -> Run:
    """Let the people talk under this policy, on servers of its own."""
    with ExitStack() as stack:
        options = ("-np", str(SLOTS), "-c", str(CONTEXT))
        urls = [stack.enter_context(llama(model, "m", *options)).url for _ in range(scenario.servers)]
        route = stack.enter_context(gateway(urls)) if policy == GATEWAY else CLIENT_SIDE[policy](urls)
        return asyncio.run(run_scripts(people, route))


# --- The measuring ----------------------------------------------------------------------------------


def model_file() -> Path:
    """Make the model once; the name changes with whatever makes it."""
    made_from = hashlib.sha256(MAKER.read_bytes() + repr(SHAPE).encode()).hexdigest()[:12]
    file = Path(tempfile.gettempdir(), f"llmgateway-bench-{os.getuid()}", f"{made_from}.gguf")
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [sys.executable, str(MAKER), str(draft), *SHAPE], check=True, stdout=sys.stderr, timeout=60
        )
        draft.replace(file)
    return file


def moved_share(runs: Sequence[Run]) -> float:
    return sum(run.moved() for run in runs) / sum(len(run.later_pairs) for run in runs)


def row(policy: str, scenario: Scenario, runs: Sequence[Run]) -> str:
    homes = (run.homes() + [0] * (scenario.servers - len(run.homes())) for run in runs)
    cells = (
        f"{median(run.computed() for run in runs):,.0f}",
        f"{median(run.recomputed() for run in runs):,.0f}",
        f"{moved_share(runs):.1%}",
        ", ".join("-".join(map(str, counts)) for counts in homes),
        f"{median(run.first_token_ms(50) for run in runs):,.0f}",
        f"{median(run.first_token_ms(95) for run in runs):,.0f}",
        f"{median(run.took_s for run in runs):,.1f}",
    )
    return f"| {policy} | {' | '.join(cells)} |"


def report(scenario: Scenario, runs: dict[str, list[Run]]) -> None:
    shape = f"{scenario.servers} servers x {SLOTS} slots, {scenario.conversations} conversations"
    print(f"\n{scenario.title}: {shape} x {scenario.turns} turns\n")
    print("| policy | computed | recomputed | moved | conversations per server | p50 ms | p95 ms | wall s |")
    print("|---|--:|--:|--:|---|--:|--:|--:|")
    for policy in scenario.policies:
        print(row(policy, scenario, runs[policy]))
    new = median(run.new() for runs in runs.values() for run in runs)
    print(f"\n{new:,.0f} tokens of later turns are new, whatever the routing.", flush=True)


def verdicts(runs: dict[Scenario, dict[str, list[Run]]]) -> Iterator[tuple[str, float, float]]:
    """What is expected of the gateway: words, the value, and its limit."""

    def ratio(scenario: Scenario, measure: Callable[[Run], float]) -> float:
        ours, theirs = (median(map(measure, runs[scenario][policy])) for policy in (GATEWAY, ROUND_ROBIN))
        return ours / theirs

    yield "recomputed tokens / round robin's", ratio(DAILY, Run.recomputed), 0.2
    yield "turns that moved", moved_share(runs[DAILY][GATEWAY]), 0.03
    yield "p50 to the first token / round robin's", ratio(DAILY, lambda run: run.first_token_ms(50)), 0.7
    for scenario in (DAILY, SHARED):
        fullest = max(run.homes()[0] for run in runs[scenario][GATEWAY]) / scenario.conversations
        yield f"share of the fullest server, {scenario.title.lower()}", fullest, 0.5
    crowded = ratio(CROWDED, Run.computed)
    yield f"computed / round robin's, {CROWDED.title.lower()}", crowded, 0.75


LEGEND: Final = """
Tokens, wall time and times to the first token (p50, p95) are medians of the rounds; `recomputed` is what was
computed from the second turn on; a conversation's server is where most of its turns were.
"""


def measure(rounds: int) -> bool:
    """Measure and print; true if the gateway did what is expected of it."""
    model, load = model_file(), os.getloadavg()[0]
    runs: dict[Scenario, dict[str, list[Run]]] = {}
    for scenario in SCENARIOS:
        of_policy = runs[scenario] = {policy: [] for policy in scenario.policies}
        for seed in range(rounds):
            people = scripts(scenario, seed)
            for policy in scenario.policies:
                of_policy[policy].append(run_policy(policy, scenario, people, model))
        report(scenario, of_policy)
    turns = [turn for turn in runs[DAILY][GATEWAY][0].turns if turn.computed >= FIRST_WORDS[0]]
    speed = median(turn.computed / turn.computing_s for turn in turns)
    cores = os.cpu_count()
    print(LEGEND + f"Load before: {load:.1f} on {cores} cores; {speed:,.0f} prompt tokens a second.\n")
    good = True
    for words, value, limit in verdicts(runs):
        good = good and value <= limit
        print(f"{'ok' if value <= limit else 'MISSED':<7} {words}: {value:.3f}, expected at most {limit}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the gateway's routing is worth.")
    parser.add_argument("--rounds", type=int, default=1, help="rounds to take the median of (default: 1)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # end by way of all the `finally`, which stop the servers
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(0 if measure(arguments.rounds) else 1)


if __name__ == "__main__":
    main()
