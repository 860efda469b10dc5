"""What all clients of scripts/soak share: keys, bytes, and how they write down what they see."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from soak_books import Asked, Books

from tests.raw_client import Ending, RawClient, Response

PATIENCE_S: Final = 60.0
MODELS: Final = ("qwen", "qwen", "qwen", "mini", "mini", "fast", "gpt-4o-mini", "big", "lost", "llama3:8b")
CHAT: Final = "/v1/chat/completions"
KEYS: Final = {
    "alice": "sk-soak-alice-0123456789",
    "bob": "sk-soak-bob-0123456789",
    "page": "sk-soak-page-0123456789",
    "guest": "sk-soak-guest-0123456789",
}
ALWAYS_GOOD: Final = frozenset(KEYS.values()) - {KEYS["guest"]}
BOUNDARY: Final = "soaksoaksoak"
MB: Final = 1_000_000


@dataclass(slots=True)
class World:
    """What all clients share."""

    port: int
    books: Books
    chance: random.Random
    made: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=500))
    """Responses that may be asked for: the key of whose it is, and its id."""
    lately: deque[str] = field(default_factory=lambda: deque(maxlen=50))

    def key(self) -> str:
        """Somebody's key."""
        return self.chance.choices([*KEYS.values()], [4, 4, 3, 1])[0]

    def ask(self, what: str, *, forwarded: bool = True) -> Asked:
        """Begin a page for a request, with an id of its own: a UUID, which goes on to the provider."""
        digits = f"{self.chance.getrandbits(128):032x}"
        asked = Asked(f"{digits[:12]}4{digits[13:16]}8{digits[17:]}", what, forwarded)
        if forwarded:
            self.lately.append(asked.id)
        return self.books.ask(asked)


# --- Bytes ------------------------------------------------------------------------------------------


def request(
    asked: Asked, key: str, path: str, body: bytes | None = None, *fields: str, method: str = "POST"
) -> bytes:
    """The bytes of a request; its body's checksum is written down, unless it is in chunks."""
    asked.known = key in ALWAYS_GOOD
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {key}"]
    lines += [f"x-request-id: {asked.id}", *fields]
    if body is not None and not any(each.lower().startswith("transfer-encoding") for each in fields):
        lines.append(f"Content-Length: {len(body)}")
        asked.sent = zlib.crc32(body)
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chat(world: World, *, stream: bool, size: int = 200, **more: Any) -> bytes:
    """A chat, of some turns."""
    chance = world.chance
    words = "so it goes " * (chance.randrange(1, size) // 11 + 1)
    messages = [{"role": "user", "content": f"{chance.randrange(40)} {words}"}]
    if chance.random() < 0.4:
        messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": words}]
    body = {"model": chance.choice(MODELS), "messages": messages, "stream": stream, **more}
    return json.dumps(body).encode()


def form(world: World, size: int, *, model_first: bool) -> bytes:
    """An upload."""
    model = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (
        BOUNDARY.encode(),
        world.chance.choice([b"whisper", b"whisper", b"hear"]),
    )
    file = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n%b\r\n"
    ) % (BOUNDARY.encode(), b"\x00\xff" * (size // 2))
    return b"".join([model, file] if model_first else [file, model]) + b"--%b--\r\n" % BOUNDARY.encode()


def pieces(body: bytes, size: int) -> list[bytes]:
    """Cut a body."""
    return [body[at : at + size] for at in range(0, len(body), size)]


# --- Steps ------------------------------------------------------------------------------------------


def seen(asked: Asked, response: Response) -> None:
    """Write down the head of an answer."""
    asked.status = response.status
    asked.error = response.header("x-gateway-error") or ""
    given = response.header("x-request-id")
    if given != asked.id and asked.error == "overloaded":
        asked.forwarded = False  # refused with its connection: nobody has read it
        return
    assert given == asked.id, f"the answer of {asked.id} says {given}"


async def hear(client: RawClient, asked: Asked, method: str = "POST") -> Response | None:
    """Read an answer to its end, whatever that is."""
    response = None
    try:
        response = await client.head(PATIENCE_S, to=method)
        seen(asked, response)
        while await client.piece(response, PATIENCE_S):
            pass
        whole = response.ending in (Ending.COMPLETE, Ending.CLOSED)
        asked.ending = "whole" if whole else "cut"
    except EOFError:
        asked.ending = "cut"
    if response is not None:
        asked.body_bytes = len(response.body)
        kind = response.header("content-type") or ""
        in_events = "event-stream" in kind or "ndjson" in kind
        asked.told = response.status == 200 and in_events and _tells_error(bytes(response.body))
    return response


def _tells_error(body: bytes) -> bool:
    return any(sign in body for sign in (b'"error":', b'"error" :', b"event: error"))


async def send_and_hear(
    client: RawClient, asked: Asked, data: bytes, method: str = "POST"
) -> Response | None:
    """Send a request and read its answer; that may come before all is sent."""
    sending = asyncio.ensure_future(client.send(data, limit=PATIENCE_S))
    try:
        return await hear(client, asked, method)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def ask_once(world: World, asked: Asked, data: bytes, method: str = "POST") -> Response | None:
    """Ask on a connection of its own."""
    async with RawClient(world.port) as client:
        return await send_and_hear(client, asked, data, method)
