"""Run the gateway with a sampling profiler inside: `profile_sampler.py FOLDER [arguments of gateway.py]`.

SIGUSR1 begins to sample; SIGUSR2 ends it and writes what was seen to FOLDER/NUMBER.json: stacks of functions,
the innermost first, each with how often it was seen. scripts/profile_costs.py says what that is worth.
"""

import asyncio
import dis
import json
import linecache
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
EVERY_S: Final = 0.001  # of CPU; Linux has no finer clock for it than its tick, and makes 4 ms of this
RUN: Final = asyncio.Runner.run.__code__  # what is below is the same for all
RESUME: Final = dis.opmap["RESUME"]
SENDING: Final = re.compile(r"transport\.write(lines)?\(")
LOOP: Final = "(event loop: epoll, reading, timers)"
SEND: Final = "(transport.write: sending)"

Stack = tuple[CodeType, ...]


class Sampler:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.windows = 0
        self.seen: Counter[tuple[int, Stack]] = Counter()  # by the innermost line

    def begin(self, *_: object) -> None:
        self.seen.clear()
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def sample(self, _: int, frame: FrameType | None) -> None:
        if frame is not None and entering(frame):
            frame = frame.f_back  # the time went by before the call
        line = (frame and frame.f_lineno) or 0  # an instruction may have none
        stack = []
        while frame is not None and frame.f_code is not RUN:
            stack.append(frame.f_code)
            frame = frame.f_back
        self.seen[line, tuple(stack)] += 1

    def end(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        samples = [(words(line, stack), times) for (line, stack), times in self.seen.items()]
        self.windows += 1
        draft = self.folder / "draft"
        draft.write_text(json.dumps(samples))
        draft.rename(self.folder / f"{self.windows}.json")


def entering(frame: FrameType) -> bool:
    """Whether the function has done nothing yet."""
    codes = frame.f_code.co_code
    return frame.f_lasti <= next((at for at in range(0, len(codes), 2) if codes[at] == RESUME), -1)


def words(line: int, stack: Stack) -> list[str]:
    if not stack:
        return [LOOP]
    names = [f"{Path(code.co_filename).stem}.{code.co_qualname}" for code in stack]
    sends = SENDING.search(linecache.getline(stack[0].co_filename, line))
    return [SEND, *names] if sends else names


def main(folder: Path, arguments: list[str]) -> int:
    sampler = Sampler(folder)
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR1, sampler.begin)
    signal.signal(signal.SIGUSR2, sampler.end)
    sys.path.insert(0, str(ROOT))
    from gateway import main as run_gateway

    return run_gateway(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
