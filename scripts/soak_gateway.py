"""A gateway that lets scripts/soak look inside it: `gateway.py`, with what it holds written down at SIGUSR1.

To be looked at costs nothing until then. What is seen goes to the file that SOAK_LOOK names, whole or not.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gateway
from llmgateway.fleet.upstream import Pool
from llmgateway.http.downstream import ClientConnection
from llmgateway.http.room import Room
from llmgateway.service.gateway import Gateway

_MOST_TYPES = 400


def held() -> dict[str, Any]:
    """Tell what this process holds."""
    gc.unfreeze()  # what was there at the start counts as well
    gc.collect()
    objects = gc.get_objects()
    here = next(each for each in objects if type(each) is Gateway)
    tasks = [each for each in objects if isinstance(each, asyncio.Task) and not each.done()]
    return {
        "tasks": dict(Counter(task.get_coro().__qualname__ for task in tasks)),  # type: ignore[union-attr]
        "objects": len(objects),
        "types": dict(Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in objects)),
        "bodies_bytes": sum(each.held_bytes for each in objects if type(each) is Room),
        "connections": sum(type(each) is ClientConnection for each in objects),
        "orders": len(here.slots.line.orders),
        "in_flight": len(here.ledger.in_flight),
        "leases": sum(provider.in_flight for provider in here.fleet.providers.values()),
        "keepers": len(here.slots.keepers),
        "files": sorted(_files(Path("/proc/self/fd"))),
        "idle": sum(each.usable for pool in objects if type(pool) is Pool for each in pool._idle),
    }


def _files(folder: Path) -> Iterator[str]:
    """Tell what descriptors are, in kinds; without the one that the look itself takes."""
    for each in folder.iterdir():
        try:
            target = str(each.readlink())
        except OSError:
            continue
        if not target.startswith("/proc/"):
            yield target.partition(":[")[0] if ":[" in target else target


def write(path: Path) -> None:
    """Write down what is held."""
    told = held()
    told["types"] = dict(Counter(told["types"]).most_common(_MOST_TYPES))
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(told))
    beside.replace(path)


if __name__ == "__main__":
    path = Path(os.environ["SOAK_LOOK"])
    signal.signal(signal.SIGUSR1, lambda *_: write(path))
    sys.exit(gateway.main())
