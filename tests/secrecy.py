"""Whatever the tests let go through a gateway, no secret may leave with it: looked through after each test.

What leaves the process comes here as it leaves: the log, all that programs say, request logs, the metrics and
the live page as every gateway has them at its end, what clients receive, what providers receive. Secrets are
what `settings` puts into a config, whatever begins as a key does, and the cookies that clients were given; of
what is *kept*, also the prompts and answers that most tests send. A test that lets one out fails, whatever
else it is about.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from llmgateway.access.sessions import COOKIE
from llmgateway.log import TextLines

MOST_BYTES: Final = 256 * 1024
"""So much is kept of each thing that leaves; the rest of a flood is the same."""
MOST_THINGS: Final = 5_000
LEAST_KEPT: Final = 4
LEAST_SENT: Final = 8
"""Characters of a secret; a shorter one stands in many a sentence."""
PROMPT: Final = "hi, for your ears only"
_SAID: Final = (PROMPT.encode(), b"Hello world", b'" world"')
_LIKE_A_KEY: Final = re.compile(rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9][A-Za-z0-9_/.-]{4,}|local-[0-9a-f]{64}")
# A browser fails where none of the subprotocols that it offers is taken, and its key may be the only one.
_KEY_PROTOCOL: Final = re.compile(rb"(?<=Sec-WebSocket-Protocol: openai-insecure-api-key\.)\S+")
_SESSION: Final = re.compile(rf"{COOKIE}=([\w-]+)")
_LOUD: Final = ("llmgateway", "aiohttp", "asyncio")


class Secrecy:
    """What one test has let out, and which secrets must not be in it."""

    def __init__(self, *, listens: bool = True) -> None:
        self.begin(listens=listens)

    def begin(self, *, listens: bool) -> None:
        """Know of nothing yet; listen, or let all pass from now on, as where no test is running."""
        self._room = MOST_THINGS if listens else 0
        self.secrets: set[bytes] = set()
        self.cookies: set[bytes] = set()
        """Of sessions. Only their clients receive them, once."""
        self.own: dict[int, set[bytes]] = {}
        """What each provider may be told, by its port: its credentials."""
        self._kept: list[tuple[str, bytearray]] = []
        self._sent: list[tuple[str, bytearray]] = []
        self._received: list[tuple[int, bytearray]] = []

    # -- what is secret

    def learn(self, tree: Mapping[str, Any]) -> None:
        """Take in the secrets of a config, in the form of its file."""
        for user in (tree.get("users") or {}).values():
            for key in user.get("keys", ()) if isinstance(user, Mapping) else ():
                self._add(key.get("key") if isinstance(key, Mapping) else key)
        for provider in (tree.get("providers") or {}).values():
            own = {self._add(each) for each in _credentials(provider)} - {b""}
            if (port := urlsplit(provider["url"]).port) is not None:
                self.own.setdefault(port, set()).update(own)
        redis = urlsplit(str((tree.get("cluster") or {}).get("limits") or ""))
        if redis.password:
            self._add(redis.password)
            self._add(unquote(redis.password))

    def learn_cookies(self, line: str) -> None:
        """Take in the session that a client was given, from a Set-Cookie line, and may have in its head."""
        for token in _SESSION.findall(line) if self._room > 0 else ():
            self.cookies.add(token.encode())

    def _add(self, secret: object) -> bytes:
        text = secret.encode() if isinstance(secret, str) else b""
        if len(text) < LEAST_KEPT or text.startswith(b"sha256:"):
            return b""
        self.secrets.add(text)
        return text

    # -- what leaves

    def kept(self, by: str, data: bytes | str = b"") -> bytearray:
        """Begin with what is written down somewhere; gives what more can be added to."""
        return self._begin(self._kept, by, data)

    def sent(self, to: str) -> bytearray:
        """Begin with what a client receives."""
        return self._begin(self._sent, to, b"")

    def received(self, port: int, data: bytes) -> None:
        """Take in what a provider has received at its port."""
        if self._room > 0:
            self._room -= 1
            self._received.append((port, bytearray(data[:MOST_BYTES])))

    def written(self, folder: Path) -> None:
        """Take in the request logs in a folder."""
        for file in folder.rglob("*.jsonl*"):
            if file.is_file():
                self.kept(file.name, file.read_bytes()[-MOST_BYTES:])

    def _begin(self, kind: list[tuple[str, bytearray]], name: str, data: bytes | str) -> bytearray:
        heard = bytearray(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
        if self._room > 0:
            self._room -= 1
            kind.append((name, heard))
        return heard

    # -- what is found

    def leaks(self) -> list[str]:
        """Say what was let out, and where."""
        return [
            *_found(self._kept, (*self.secrets, *self.cookies, *_SAID)),
            *_found(
                [(name, _KEY_PROTOCOL.sub(b"", data)) for name, data in self._sent],
                {each for each in self.secrets if len(each) >= LEAST_SENT},
            ),
            *self._crossed(),
        ]

    def _crossed(self) -> Iterator[str]:
        for port, data in self._received:
            own = self.own.get(port, set())
            yield from _found([(f"the provider at {port}", data)], (self.secrets | self.cookies) - own, own)


def _credentials(provider: Mapping[str, Any]) -> Iterator[str]:
    yield str(provider.get("api_key") or "")
    headers = provider.get("headers") or {}
    yield from (str(value) for name, value in headers.items() if name.lower() != "host")
    proxy = urlsplit(str(provider.get("proxy") or ""))
    if proxy.password:
        pair = f"{unquote(proxy.username or '')}:{unquote(proxy.password)}"
        yield from (proxy.password, unquote(proxy.password), b64encode(pair.encode()).decode())


def _found(
    told: Sequence[tuple[str, bytes | bytearray]], secrets: Any, own: Any = frozenset()
) -> Iterator[str]:
    for name, data in told:
        hits = {each for each in secrets if each in data}
        if b"sk-" in data or b"local-" in data:
            hits |= {hit for hit in _LIKE_A_KEY.findall(data) if not any(hit in each for each in own)}
        for hit in hits:
            at = data.find(hit)
            yield f"{name} tells {hit!r}: ...{bytes(data[max(0, at - 200) : at + 200])!r}"


watch = Secrecy(listens=False)
"""Of the test that is running."""


class _Ear(logging.Handler):
    def __init__(self, heard: bytearray) -> None:
        super().__init__()
        self.setFormatter(TextLines())
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        hear(self._heard, self.format(record).encode("utf-8", "backslashreplace") + b"\n")


def hear(heard: bytearray, data: bytes) -> None:
    """Add to what was heard, within its bound."""
    if len(heard) < MOST_BYTES:
        heard += data


@contextmanager
def keeping_secrets() -> Iterator[Secrecy]:
    """Watch all that leaves, the log down to its least lines; at the end nothing may have been told."""
    watch.begin(listens=True)
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    ear = _Ear(watch.kept("the log"))
    for logger in loggers:
        logger.addHandler(ear)
    loggers[0].setLevel(logging.DEBUG)
    try:
        yield watch
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(ear)
            logger.setLevel(level)
    leaks = watch.leaks()
    watch.begin(listens=False)
    assert not leaks, "\n".join(leaks)
