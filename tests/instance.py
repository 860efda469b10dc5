"""A gateway in a process of its own, whose places in Redis run out soon after it is gone: for a test to kill.

Run as `python -m tests.instance CONFIG`; it says where it listens in its log, as the program does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmgateway import log
from llmgateway.config.load import load
from llmgateway.service.gateway import Gateway
from tests.redis_server import STEADY

PACE: Final = replace(STEADY, life=3.0)


async def serve(path: Path) -> None:
    config = load(path, os.environ).config
    log.configure(level="info", form="text")
    async with Gateway(config, pace=PACE) as gateway:
        await gateway.ready.wait()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[-1])))
