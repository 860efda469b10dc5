"""How many files the process may have open: as many as the system grants, and what happens when it has them.

Connections are bounded below that (see crowd), so it is other things that take the last ones: connections to
providers that are kept, uploads on disk, another limit that somebody has set meanwhile.
"""

import asyncio
import errno
import fcntl
import math
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from llmgateway.log import Events

events = Events("serve")

TELL_EVERY_S: Final = 60.0
FILES_OF_A_CLIENT: Final = 2  # its connection, and one to a provider for what it asks
OTHER_FILES: Final = 64
SPACIOUS: Final = 16_384
"""So many have their place in the system's table from the beginning: 128 KiB of its memory."""
OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})


def raise_open_files() -> int:
    """Let the process have as many files open as the system allows it; gives how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS tells of no limit, and then does not grant it
        return soft
    return hard


def make_space(files: int) -> None:
    """Have the system make its table of our files large, where so many may be open.

    Linux doubles it when it is full, and waits for all CPUs each time if there are threads: 7 to 16 ms, six
    times on the way to 8,192 files, and all of them in the first second of the first rush. While there is one
    thread it waits for nobody. What the table holds is `FDSize` in /proc/self/status.
    """
    with suppress(OSError), Path(os.devnull).open() as some:  # it fails where no more may be open anyway
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(files, SPACIOUS) - 1))


def most_connections(files: int) -> int:
    """Tell how many clients may be connected where so many files may be open."""
    return max(1, (files - OTHER_FILES) // FILES_OF_A_CLIENT)


class Shortage:
    """Tells of a lack of files, which asyncio does with a traceback for each connection that waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_at = -math.inf

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what nobody has caught, for an event loop."""
        exc = context.get("exception")
        if not isinstance(exc, OSError) or exc.errno not in OUT_OF_FILES:
            loop.default_exception_handler(context)
        elif self._clock() - self._told_at >= TELL_EVERY_S:
            self._told_at = self._clock()
            events.warning("no more files can be opened; connections have to wait", why=exc.strerror)
