"""Let a server do wrong in every way, each beside a fresh gateway: what was promised, and what came of it.

The gateway is a process of its own with two servers: one that does wrong, which is the client's own and so is
asked first, and another one, which has one of its models as well. Two clients ask at once, one for that model
and one for what only the wrong one has. Meanwhile a bystander asks the other server ten times a second, and
must get every answer. At the end the wrong one behaves, and must serve again by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from faults_answers import CONTENT, LISTS, STATUSES
from faults_fault import BY_IT, BY_OTHER, ONLINE, TOLD, Fault
from faults_server import MB, MODELS, Bad
from faults_wire import CUTS, FRAMING, NO_CONNECTION, SILENCE

from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.program import Program, running
from tests.raw_client import Ending, RawClient, Response, chat, request

FAULTS: Final = (*NO_CONNECTION, *SILENCE, *CUTS, *FRAMING, *STATUSES, *CONTENT, *LISTS)
AT_ONCE: Final = 3
MORE_TRIES: Final = 2
START_S: Final = 60.0
ANSWER_S: Final = 30.0
LOOKS: Final = 3  # more than change a state
LOOKS_LIMIT_S: Final = 30.0
BACK_S: Final = 20.0
NOT_BACK: Final = f"not within {BACK_S:.0f} s"
ASK_EVERY_S: Final = 0.1
KEPT_BYTES: Final = 64 * 1024
MOST_GROWTH_BYTES: Final = 64 * MB
MOST_TOKENS: Final = 10**9  # of all that is asked here
TIMEOUTS: Final = {"connect": "2s", "first_byte": "3s", "idle": "3s"}
HEADING: Final = (
    "a server that",
    "promised",
    "if another has the model",
    "if nobody has",
    "it is then",
    "mended, it serves",
)


def config(bad: Bad, good: FakeProvider, url: str) -> dict[str, Any]:
    """Give the config: alice's own server goes first, and she sees why a server is not well."""
    return {
        "server": {"port": 0},
        "users": {"alice": {"keys": [KEY], "admin": True, "route": "prefer_own"}},
        "providers": {
            "bad": {**bad.entry, "url": url, "owner": "alice", "timeouts": TIMEOUTS},
            "good": good.entry,
        },
        "health": {"interval": "1s", "timeout": "2s"},
        "streams": {"keepalive": 0},
        "log": {"requests": "none"},
    }


@dataclass
class Seen:
    """What has been seen of one row."""

    beside: str = ""
    alone: str = ""
    state: str = ""
    reason: str = ""
    back: str = "-"
    growth_bytes: int = 0
    tokens: list[int] = field(default_factory=list)
    answers: int = 0
    """That the bystander got."""
    wrong: list[str] = field(default_factory=list)
    """What no fault excuses."""

    @property
    def starved(self) -> bool:
        """True if the gateway turned requests away as the machine left it no time: that tells nothing."""
        return any("`overloaded`" in each for each in (self.beside, self.alone, *self.wrong))

    def cells(self) -> tuple[str, ...]:
        """Give what the table has of it."""
        reason = re.sub(r"127\.0\.0\.1:\d+", "HOST", self.reason.rstrip("."))
        state = f"{self.state}: {reason}" if reason else self.state
        return self.beside, self.alone, state, self.back


# --- one client -----------------------------------------------------------------------------------


async def asked(port: int, model: str, *, stream: bool) -> str:
    """Ask for a model; tells in a few words what came."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello?"}], "stream": stream}
    try:
        async with asyncio.timeout(ANSWER_S), RawClient(port) as client:
            await client.send(chat(json.dumps(body).encode()))
            response = await client.head(ANSWER_S)
            while await client.piece(response, ANSWER_S):
                if len(response.body) > 2 * KEPT_BYTES:
                    del response.body[:-KEPT_BYTES]
            return told(response)
    except TimeoutError:
        return f"nothing in {ANSWER_S:.0f} s"
    except (OSError, EOFError):
        return "a closed connection"


def told(response: Response) -> str:
    """Say in a few words what an answer was."""
    if kind := response.header("x-gateway-error"):
        limit = re.search(r"\b(connect|first_byte|idle)\b", response.json["error"]["message"])
        return f"{response.status} `{kind}`" + (f" ({limit[1]})" if limit else "")
    if response.ending is not Ending.COMPLETE:
        return f"{response.status}, cut short"
    who = {"good": "the other", "bad": "it"}[response.header("x-gateway-provider") or ""]
    last = response.events[-1] if response.events else None
    if isinstance(last, dict) and last.get("error", {}).get("type") == "upstream_error":
        return TOLD
    return f"whole, by {who}" if last == "[DONE]" else f"{response.status}, as it came"


async def status(port: int) -> Any:
    async with RawClient(port) as client:
        await client.send(request("GET", "/gateway/status"))
        return (await client.response()).json


async def standing(port: int) -> tuple[str, str]:
    """Tell what the gateway says of the wrong server: its state, and why."""
    (entry,) = (each for each in (await status(port))["providers"] if each["name"] == "bad")
    return entry["state"], entry["reason"]


async def is_ready(port: int) -> bool:
    async with RawClient(port) as client:
        await client.send(request("GET", "/readyz"))
        return (await client.response()).status == 200


async def comes_true(condition: Callable[[], Awaitable[bool]], limit_s: float) -> float | None:
    """Wait until a condition holds; gives the seconds that took, or None."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > limit_s:
            return None
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def bystander(port: int, seen: Seen) -> None:
    """Ask the other server, again and again, as somebody who has nothing to do with all this."""
    while True:
        if (came := await asked(port, "other", stream=True)) != BY_OTHER:
            seen.wrong.append(f"a bystander got {came}")
        seen.answers += 1
        await asyncio.sleep(ASK_EVERY_S)


# --- one row --------------------------------------------------------------------------------------


def memory(program: Program, what: str) -> int:
    """Give VmRSS, or VmHWM, the most that ever was."""
    lines = Path(f"/proc/{program.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


async def tried(fault: Fault) -> Seen:
    """Let one fault happen."""
    with tempfile.TemporaryDirectory() as folder:
        bad = Bad(Path(folder))
        async with bad, FakeProvider("good", models=["m", "other"]) as good, bad.until_mended:
            bad.script = fault.script or bad.script
            if fault.lists is not None:
                bad.on["/v1/models"] = fault.lists
            url = await fault.url(bad) if fault.url else bad.url
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump(config(bad, good, url)))
            async with running("-c", str(file), cwd=Path(folder)) as program:
                await program.says("listening on", START_S)
                await program.url()
                return await watched(fault, bad, program)


async def watched(fault: Fault, bad: Bad, program: Program) -> Seen:
    """Ask while it happens, look at the gateway, and see whether the server comes back."""
    seen, port = Seen(), program.port
    await comes_true(lambda: is_ready(port), BACK_S)
    before = memory(program, "VmRSS")
    async with asyncio.TaskGroup() as group:
        other = group.create_task(bystander(port, seen))
        if fault.befall is not None:
            await fault.befall(bad)
        seen.beside, seen.alone = await asyncio.gather(
            *(asked(port, model, stream=fault.streams) for model in MODELS)
        )
        await looked_at(port, bad, fault.comes.state)
        seen.state, seen.reason = await standing(port)
        rows = (await status(port))["usage"]["rows"]
        seen.tokens = [n for row in rows for n in (row["prompt_tokens"], row["completion_tokens"])]
        if fault.url is None:
            await bad.mend()
            seen.back = await back(port)
        other.cancel()
    seen.growth_bytes = memory(program, "VmHWM") - before
    if not program.running or "Traceback" in program.err:
        seen.wrong.append(f"it said: {program.err[-300:]}")
    return seen


async def looked_at(port: int, bad: Bad, state: str) -> None:
    """Wait until the gateway has seen what changes its mind, or would change it if anything did."""
    before = len(bad.looks)

    async def is_seen() -> bool:
        if state == ONLINE:
            return len(bad.looks) >= before + LOOKS
        return (await standing(port))[0] == state

    await comes_true(is_seen, LOOKS_LIMIT_S)


async def back(port: int) -> str:
    """Wait until the server that behaves now serves again; tells after how long."""

    async def serves() -> bool:
        return await asked(port, "solo", stream=True) == BY_IT

    took_s = await comes_true(serves, BACK_S)
    if took_s is None:
        return NOT_BACK
    return "at once" if took_s < 0.5 else f"after {took_s:.0f} s"


def disagreements(fault: Fault, seen: Seen) -> list[str]:
    """Tell in what a row is not as promised."""
    came = (seen.beside, seen.alone, seen.state)
    found = [
        f"{was} instead of {promised}"
        for was, promised in zip(came, fault.comes, strict=True)
        if was != promised
    ]
    if fault.says not in seen.reason:
        found.append(f"the page says {seen.reason!r}, without {fault.says!r}")
    if seen.back == NOT_BACK:
        found.append("it does not serve again")
    if seen.growth_bytes > MOST_GROWTH_BYTES:
        found.append(f"memory has grown by {seen.growth_bytes / MB:.0f} MB")
    if not all(0 <= count < MOST_TOKENS for count in seen.tokens):
        found.append(f"booked {seen.tokens} tokens")
    return [f"not as promised: {fault.words}: {each}" for each in (*found, *dict.fromkeys(seen.wrong))]


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


async def tell(faults: Sequence[Fault]) -> list[str]:
    """Let all of them happen, and print the table; gives what is not as promised."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(fault: Fault) -> Seen:
        async with gate:
            seen = await tried(fault)
            for _ in range(MORE_TRIES):
                if not seen.starved:
                    break
                seen = await tried(fault)
            return seen

    found, answers, growth = list[str](), 0, 0
    print(f"{row(HEADING)}\n|{'---|' * len(HEADING)}")
    async with asyncio.TaskGroup() as group:
        for fault, trying in [(fault, group.create_task(one(fault))) for fault in faults]:
            seen = await trying
            print(row((fault.words, fault.promise, *seen.cells())), flush=True)
            found += disagreements(fault, seen)
            answers, growth = answers + seen.answers, max(growth, seen.growth_bytes)
    print(
        f"\n{len(faults)} rows, {len(found)} not as promised. Bystanders got {answers:,} answers; the"
        f" gateway's memory grew by {growth / MB:.0f} MB at most."
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Let a server do wrong, and print what came of it.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="of the rows that are wanted; all by default"
    )
    words = parser.parse_args().words
    wanted = [fault for fault in FAULTS if not words or any(word in fault.words for word in words)]
    possible = [fault for fault in wanted if fault.possible]
    found = asyncio.run(tell(possible))
    left_out = [
        f"not tried, as {each.program} is missing: {each.words}" for each in wanted if each not in possible
    ]
    print(*found, *left_out, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
