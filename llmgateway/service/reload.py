"""A changed file becomes the config in force, and nothing that is under way is disturbed.

Rules:

- The file is polled, by its directory entry: change notification lies in containers and over mounts. Links
  are followed, as Kubernetes and editors swap those.
- What was changed is read once two looks have found the same, as it may still be written; SIGHUP is believed.
- A config with problems changes nothing: they are logged and shown, and the one in force stays. Half a file,
  or none, is such a config.
- What cannot change while the gateway runs keeps its value, and is said to need a restart.
- One look at a time, in a thread; what changes meanwhile is seen by the next one.
- No key and no value of a setting is logged, only where it stands.
"""

import asyncio
import hashlib
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from llmgateway.books.metrics import Metrics
from llmgateway.config.load import Loaded, load
from llmgateway.config.settings import Config
from llmgateway.config.source import MAX_BYTES
from llmgateway.config.tree import ConfigError, Problem, joined
from llmgateway.http.tls import BadCertificate
from llmgateway.log import Events
from llmgateway.web.status import Condition

events = Events("reload")

POLL_S: Final = 2.0
MOST_PROBLEMS: Final = 50
_MOST_NAMES: Final = 50
_FIXED: Final = ("host", "port", "listen", "reuse_port", "tls")  # of `server`
# Two writes within one tick of a file system's clock may leave the same time; FAT has the slowest, with 2 s.
_SAME_TICK_S: Final = 3.0
_PIPE: Final = (-1,)


# --- What is different ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """Where two configs differ, as paths such as `users.alice.keys`."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def compare(before: Config, after: Config) -> Changes:
    """Find what was added, removed and changed, to the last setting."""
    found: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
    for kind, path in _differences(before, after, ()):
        found[kind].append(path)
    return Changes(*(tuple(found[kind]) for kind in ("added", "removed", "changed")))


_Difference = tuple[Literal["added", "removed", "changed"], str]


def _differences(before: object, after: object, path: tuple[str, ...]) -> Iterator[_Difference]:
    if isinstance(before, BaseModel) and isinstance(after, BaseModel):
        for name, field in type(before).model_fields.items():
            yield from _differences(getattr(before, name), getattr(after, name), (*path, field.alias or name))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _between_mappings(before, after, path)
    elif before != after:
        yield "changed", joined(path)


def _between_mappings(
    before: Mapping[str, object], after: Mapping[str, object], path: tuple[str, ...]
) -> Iterator[_Difference]:
    yield from (("added", joined((*path, name))) for name in after if name not in before)
    yield from (("removed", joined((*path, name))) for name in before if name not in after)
    common = [name for name in before if name in after]
    for name in common:
        yield from _differences(before[name], after[name], (*path, name))
    if common != [name for name in after if name in before]:
        yield "changed", f"{joined(path)} (order)"


def _enumerated(paths: Sequence[str]) -> str:
    more = len(paths) - _MOST_NAMES
    return ", ".join(paths[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


# --- What is on disk ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sight:
    """A file as it was when it was looked at. `fresh`: another write may leave the same trace."""

    trace: tuple[int, ...]
    digest: bytes
    fresh: bool


def _trace(path: Path) -> tuple[int, ...]:
    """Give what the directory entry tells, which changes with the content; nothing if there is no entry."""
    try:
        entry = path.stat()
    except (OSError, ValueError):
        return ()
    if stat.S_ISFIFO(entry.st_mode) or stat.S_ISCHR(entry.st_mode):
        return _PIPE  # it has given what it had; to read it again would block for ever
    return entry.st_mtime_ns, entry.st_ctime_ns, entry.st_size, entry.st_ino, entry.st_dev


def _digest(path: Path) -> bytes:
    """Give the SHA-256 of the content, or else what keeps it from being read."""
    try:
        with path.open("rb") as opened:
            return hashlib.sha256(opened.read(MAX_BYTES + 1)).digest()
    except (OSError, ValueError) as exc:
        return repr(exc).encode()


def _seen_at(path: Path, before: _Sight | None, *, now: float) -> _Sight:
    """Look at the entry, and at the content only if that may have changed; `now` is epoch seconds."""
    trace = _trace(path)
    if trace == _PIPE or (before is not None and trace == before.trace and not before.fresh):
        return before or _Sight(trace, b"", fresh=False)
    fresh = bool(trace) and now - max(trace[:2]) / 1e9 < _SAME_TICK_S
    return _Sight(trace, _digest(path), fresh)


def _read(path: Path, environ: Mapping[str, str]) -> tuple[Loaded | ConfigError, bytes]:
    """Load the config; gives the digest of what was read as well, empty if it was written meanwhile."""
    before = _digest(path)
    found: Loaded | ConfigError
    try:
        found = load(path, environ)
    except ConfigError as error:
        found = error
    return found, before if _digest(path) == before else b""


# --- What becomes of it ---------------------------------------------------------------------------


class Reloader:
    """Keeps the config in force in step with its file. Use as `async with`; its task ends with it."""

    def __init__(
        self,
        path: Path,
        config: Config,
        adopt: Callable[[Config], None],
        *,
        condition: Condition,
        metrics: Metrics,
        environ: Mapping[str, str],
        warnings: Iterable[Problem] = (),
        amend: Callable[[Config], Config] = lambda config: config,
        renew_tls: Callable[[], None] = lambda: None,
        every_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with the config in force, and the warnings about it that were given already.

        `adopt` puts another one in force, `amend` adds to a file what the command line says, `renew_tls`
        loads the certificate anew or raises BadCertificate; `clock` gives epoch seconds. How it goes is
        written into `condition`.
        """
        self.config = config
        self._path = path
        self._adopt = adopt
        self._condition = condition
        self._metrics = metrics
        self._environ = environ
        self._amend = amend
        self._renew_tls = renew_tls
        self._every_s = every_s
        self._clock = clock
        self._fixed = {name: getattr(config.server, name) for name in _FIXED}
        self._warned = {_gist(warning) for warning in warnings}
        self._problems: tuple[str, ...] = ()
        self._certificate_problems: tuple[str, ...] = ()
        self._torn = False
        self._sight: _Sight | None = None
        self._taken: bytes | None = None  # the digest of what was read last
        self._certificate: list[tuple[int, ...]] | None = None
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Reloader":
        self._task = asyncio.create_task(self._keep_watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def now(self) -> None:
        """Have the file read at once, changed or not, and the log say what came of it."""
        self._asked.set()

    async def _keep_watch(self) -> None:
        while True:
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                await self._check(asked=asked)
            except Exception:
                events.exception("reload failed")
                self._end(good=False, problems=("the gateway could not take it over; its log says why",))
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._every_s):
                await self._asked.wait()
        except TimeoutError:
            pass

    async def _check(self, *, asked: bool) -> None:
        renewed = await self._check_certificate(asked=asked)
        before = self._sight
        self._sight = await asyncio.to_thread(_seen_at, self._path, before, now=self._clock())
        if self._sight.trace == _PIPE:
            if asked:
                events.warning("the config cannot be read again: it is not a regular file")
            return
        is_another = self._taken != self._sight.digest
        if is_another and not asked and before is not None and before.digest != self._sight.digest:
            return  # somebody may be writing it, and half a config can be a good one: look once more
        if not (is_another or asked or (renewed and self._problems)):  # it may be a missing certificate
            return
        found, digest = await asyncio.to_thread(_read, self._path, self._environ)
        self._taken = digest
        if isinstance(found, ConfigError):
            self._reject(found)
        else:
            config = self._with_what_is_fixed(self._amend(found.config))
            changes = await asyncio.to_thread(compare, self.config, config)
            self._accept(config, changes, found.warnings, asked=asked)

    async def _check_certificate(self, *, asked: bool) -> bool:
        """Renew the certificate if one of its files is another; tells whether that was so."""
        tls = self.config.server.tls
        if tls is None:
            return False
        before = self._certificate
        traces = await asyncio.to_thread(lambda: [_trace(Path(file)) for file in (tls.cert, tls.key)])
        self._certificate = traces
        if traces == before and not asked:
            return False
        try:
            self._renew_tls()
        except BadCertificate as trouble:
            events.warning("the certificate stays as it was", trouble=str(trouble))
            self._certificate_problems = (str(trouble),)
        else:
            (events.info if before is not None else events.debug)("the certificate is read anew")
            self._certificate_problems = ()
        self._show_problems()
        return True

    def _reject(self, error: ConfigError) -> None:
        problems = tuple(map(str, error.problems))
        events.warning("config has problems, the one in force stays", problems=len(problems))
        for problem in problems[:MOST_PROBLEMS]:
            events.warning("config problem", problem=problem)
        self._end(good=False, problems=problems[:MOST_PROBLEMS])

    def _accept(self, config: Config, changes: Changes, warnings: Sequence[Problem], *, asked: bool) -> None:
        self._warn(warnings)
        if changes or self._torn:
            self._torn = True  # should it fail half-way, the next config has to be taken over whatever it is
            self._adopt(config)
            self.config, self._torn = config, False
            told = {kind: _enumerated(getattr(changes, kind)) for kind in ("added", "removed", "changed")}
            events.info("config reloaded", **told)
        elif asked or self._problems:
            events.info("config is as it was")
        else:
            return
        self._condition.loaded_at = self._clock()
        self._end(good=True)

    def _warn(self, warnings: Sequence[Problem]) -> None:
        """Log what was not said of the file before, wherever in it that stood."""
        for warning in warnings:
            if _gist(warning) not in self._warned:
                events.warning("config warning", warning=str(warning))
        self._warned = set(map(_gist, warnings))

    def _with_what_is_fixed(self, config: Config) -> Config:
        server = config.server
        needed = tuple(
            f"server.{name}" for name, value in self._fixed.items() if getattr(server, name) != value
        )
        if needed and needed != self._condition.restart_needed:
            events.warning("a change needs a restart", settings=_enumerated(needed))
        self._condition.restart_needed = needed
        return config.model_copy(update={"server": server.model_copy(update=self._fixed)})

    def _end(self, *, good: bool, problems: tuple[str, ...] = ()) -> None:
        self._metrics.reloaded(good=good)
        self._problems = problems
        self._show_problems()

    def _show_problems(self) -> None:
        self._condition.problems = (*self._problems, *self._certificate_problems)


def _gist(warning: Problem) -> tuple[str, str]:
    """Give what makes a warning the same although lines have moved."""
    return warning.path, warning.message
