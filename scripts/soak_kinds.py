"""The clients of scripts/soak: polite and impatient ones, slow readers, and such as leave at any moment.

Each asks once, or a few times on one connection, and writes down what it has seen of each answer. What kinds
there are, and how often each comes, is the table `KINDS`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from soak_books import Asked
from soak_clients import (
    BOUNDARY,
    CHAT,
    KEYS,
    MB,
    MODELS,
    PATIENCE_S,
    World,
    ask_once,
    chat,
    form,
    hear,
    pieces,
    request,
    send_and_hear,
)
from soak_talker import talker

from tests.raw_client import RawClient

JSON: Final = "Content-Type: application/json"

Kind = Callable[[World], Awaitable[None]]


async def buffered(world: World) -> None:
    asked = world.ask("buffered")
    person = f"X-Person: {world.chance.choice(['ada', 'bert', 'carl'])}"
    await ask_once(world, asked, request(asked, world.key(), CHAT, chat(world, stream=False), person))


async def stream(world: World) -> None:
    asked = world.ask("stream")
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if world.chance.random() < 0.5 else {}
    await ask_once(world, asked, request(asked, world.key(), CHAT, chat(world, stream=True, **more)))


async def anthropic(world: World) -> None:
    streams = world.chance.random() < 0.6
    asked = world.ask("anthropic")
    data = request(asked, world.key(), "/v1/messages", chat(world, stream=streams, max_tokens=50))
    await ask_once(world, asked, data)


async def embeddings(world: World) -> None:
    asked = world.ask("embeddings")
    body = json.dumps({"model": world.chance.choice(["embed", "qwen"]), "input": ["so"] * 4}).encode()
    await ask_once(world, asked, request(asked, world.key(), "/v1/embeddings", body))


async def ollama(world: World) -> None:
    """Ollama's own API: what is forwarded, and what the gateway tells by itself."""
    chance = world.chance
    model = chance.choice(["llama3:8b", "llama3:8b", "tiny", "lost"])
    match chance.randrange(6):
        case 0:
            asked = world.ask("ollama tags", forwarded=False)
            data = request(
                asked, world.key(), chance.choice(["/api/tags", "/api/ps", "/api/version"]), method="GET"
            )
            await ask_once(world, asked, data, "GET")
            return
        case 1:
            asked = world.ask("ollama embed")
            path, body = "/api/embed", dict[str, Any]({"model": model, "input": "so"})
        case 2:
            asked = world.ask("ollama generate")
            path, body = "/api/generate", {"model": model, "prompt": "so"}
        case number:
            asked = world.ask("ollama chat")
            path, body = "/api/chat", {"model": model, "messages": [{"role": "user", "content": "so"}]}
            if number == 3:
                body["stream"] = False
    await ask_once(world, asked, request(asked, world.key(), path, json.dumps(body).encode()))


async def response(world: World) -> None:
    """Make a response, or go on from one, ask for one, end one; one's own or somebody else's."""
    chance = world.chance
    key, known = chance.choice(world.made) if world.made and chance.random() < 0.8 else (world.key(), "")
    if known and chance.random() < 0.15:
        key = world.key()
    what = chance.randrange(7) if known else 0
    if what in (0, 1, 2):
        streams = chance.random() < 0.4
        body: dict[str, Any] = {
            "model": chance.choice(["keeps", "keeps", "qwen"]),
            "input": "so",
            "stream": streams,
        }
        if known:
            body["previous_response_id"] = known
        asked = world.ask("response")
        answer = await ask_once(world, asked, request(asked, key, "/v1/responses", json.dumps(body).encode()))
        if answer is not None and answer.status == 200 and asked.ending == "whole":
            at = bytes(answer.body).find(b"resp_")
            if at >= 0:
                world.made.append((key, bytes(answer.body)[at : at + 29].decode()))
        return
    method, rest = {3: ("GET", ""), 4: ("GET", "/input_items"), 5: ("POST", "/cancel"), 6: ("DELETE", "")}[
        what
    ]
    asked = world.ask(f"response {method}{rest}")
    body_bytes = b"" if method == "POST" else None
    data = request(asked, key, f"/v1/responses/{known}{rest}", body_bytes, method=method)
    await ask_once(world, asked, data, method)


async def upload(world: World) -> None:
    """An upload with its model before the file, or behind it; sometimes large, in chunks, or broken off."""
    chance = world.chance
    size = chance.choice([2_000, 50_000, 300_000, 1_500_000, 3 * MB, 10 * MB])
    asked = world.ask(f"upload {size}")
    body = form(world, size, model_first=chance.random() < 0.5)
    fields = [f"Content-Type: multipart/form-data; boundary={BOUNDARY}"]
    if chance.random() < 0.3:
        body = (
            b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces(body, 200_000)) + b"0\r\n\r\n"
        )
        fields.append("Transfer-Encoding: chunked")
    data = request(asked, world.key(), "/v1/audio/transcriptions", body, *fields)
    if chance.random() < 0.15:
        data = data[: chance.randrange(1000, len(data))]
        async with RawClient(world.port) as client:
            await _leave_after(client, asked, data, chance.uniform(0, 1))
        return
    await ask_once(world, asked, data)


async def large(world: World) -> None:
    """A large JSON body, as it is or compressed."""
    chance = world.chance
    asked = world.ask("large")
    url = "data:image/png;base64," + "iVBORw0KGgo" * (chance.choice([10_000, 100_000, 600_000]) // 11 * 3)
    part = {"type": "image_url", "image_url": {"url": url}}
    body: Any = {"messages": [{"role": "user", "content": [part]}], "model": chance.choice(MODELS)}
    data, fields = json.dumps(body).encode(), ["Content-Type: application/json"]
    coding = chance.choice(["", "", "gzip", "deflate"])
    if coding:
        data = gzip.compress(data, 1) if coding == "gzip" else zlib.compress(data, 1)
        if chance.random() < 0.1:
            data = data[: len(data) // 2]
        fields.append(f"Content-Encoding: {coding}")
    await ask_once(world, asked, request(asked, world.key(), CHAT, data, *fields))


async def leaver(world: World) -> None:
    """Ask for a stream, and leave at some moment: at once, while it waits, within the answer."""
    chance = world.chance
    asked = world.ask("leaver")
    data = request(asked, world.key(), CHAT, chat(world, stream=chance.random() < 0.7, size=3000))
    async with RawClient(world.port) as client:
        await _leave_after(client, asked, data, chance.choice([0, 0.001, 0.01, chance.uniform(0, 2)]))
        if chance.random() < 0.4:
            client.reset()


async def _leave_after(client: RawClient, asked: Asked, data: bytes, limit_s: float) -> None:
    """Send all, and read for a while; the answer may be over by then."""
    try:
        async with asyncio.timeout(limit_s):
            await send_and_hear(client, asked, data)
    except (TimeoutError, ConnectionError):
        asked.ending = "left"
    if asked.ending != "whole":
        asked.ending = "left"


async def half_closer(world: World) -> None:
    """Say that no more is sent, and read on."""
    asked = world.ask("half closer")
    async with RawClient(world.port) as client:
        await client.send(request(asked, world.key(), CHAT, chat(world, stream=True)))
        try:
            client.half_close()
        except OSError:  # it was refused, and closed
            pass
        await hear(client, asked)
    if asked.ending != "whole":
        asked.ending = "left"


async def half_open(world: World) -> None:
    """Send half a head, or nothing, and wait."""
    async with RawClient(world.port) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nX-A"[: world.chance.randrange(48)]
        )
        try:
            await client.closed(limit=world.chance.uniform(0.1, 12))
        except TimeoutError:
            pass


async def slow_reader(world: World) -> None:
    """Read a long stream a little at a time."""
    asked = world.ask("slow reader")
    async with RawClient(world.port, read_size=400, pause_s=0.02, receive_buffer=4096) as client:
        await client.send(request(asked, world.key(), CHAT, chat(world, stream=True)))
        await hear(client, asked)


async def reluctant(world: World) -> None:
    """Ask for more than fits into any buffer, read some of it slowly; then all of it, or leave."""
    asked = world.ask("reluctant")
    data = request(asked, world.key(), CHAT, chat(world, stream=True, words=12_000))
    async with RawClient(world.port, read_size=2_000, pause_s=0.05, receive_buffer=4096) as client:
        await _leave_after(client, asked, data, world.chance.uniform(0.2, 2))
        if asked.ending == "left" and world.chance.random() < 0.5:
            client.reset()


async def old(world: World) -> None:
    """Ask by HTTP/1.0, which has no chunks."""
    asked = world.ask("old")
    data = request(asked, world.key(), CHAT, chat(world, stream=world.chance.random() < 0.5))
    await ask_once(world, asked, data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))


async def invited(world: World) -> None:
    """Wait to be asked for the body, and send it in chunks."""
    asked = world.ask("invited")
    body = chat(world, stream=False, size=60_000)
    fields = ["Expect: 100-continue", "Transfer-Encoding: chunked"]
    head = request(asked, world.key(), CHAT, b"", *fields)
    asked.sent = zlib.crc32(body)
    async with RawClient(world.port) as client:
        await client.send(head)
        await asyncio.sleep(world.chance.uniform(0, 0.3))
        for each in [*pieces(body, 7_000), b""]:
            await client.send(b"%x\r\n%b\r\n" % (len(each), each))
        await hear(client, asked)


async def counter(world: World) -> None:
    """Ask how many tokens something has, which not everybody knows."""
    asked = world.ask("counter")
    path = world.chance.choice(["/v1/messages/count_tokens", "/tokenize", "/v1/rerank", "/v1/completions"])
    await ask_once(world, asked, request(asked, world.key(), path, chat(world, stream=False)))


async def slow_sender(world: World) -> None:
    """Send the body a little at a time."""
    asked = world.ask("slow sender")
    data = request(asked, world.key(), CHAT, chat(world, stream=False, size=4000))
    async with RawClient(world.port) as client:
        for piece in pieces(data, len(data) // 12 + 1):
            await client.send(piece, pause_s=0.05)
        await hear(client, asked)


async def dawdler(world: World) -> None:
    """Send the body so slowly that it is told to stop."""
    asked = world.ask("dawdler")
    data = request(asked, world.key(), CHAT, chat(world, stream=False, size=4000))
    async with RawClient(world.port) as client:
        head, separator, body = data.partition(b"\r\n\r\n")
        await client.send(head + separator)
        hearing = asyncio.ensure_future(hear(client, asked))
        try:
            for each in pieces(body, 1)[: int(PATIENCE_S)]:
                await client.send(each, pause_s=1)
                if hearing.done():
                    return
            asked.ending = "left"
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)


async def regular(world: World) -> None:
    """Ask again and again on one connection; now and then for what is in no book."""
    async with RawClient(world.port) as client:
        for _ in range(world.chance.randrange(2, 8)):
            key = world.key()
            if world.chance.random() < 0.25:
                asked = world.ask("models", forwarded=False)
                answer = await send_and_hear(
                    client, asked, request(asked, key, "/v1/models", method="GET"), "GET"
                )
            else:
                asked = world.ask("regular")
                data = request(asked, key, CHAT, chat(world, stream=world.chance.random() < 0.5))
                answer = await send_and_hear(client, asked, data)
            if answer is None or asked.ending != "whole" or answer.header("connection") == "close":
                return
            await asyncio.sleep(world.chance.uniform(0, 0.2))


async def pipeline(world: World) -> None:
    """Send several requests at once, and read the answers; or leave after the first of them."""
    some = [world.ask("pipeline") for _ in range(world.chance.randrange(2, 6))]
    key = world.key()
    data = [request(asked, key, CHAT, chat(world, stream=world.chance.random() < 0.4)) for asked in some]
    leaves = world.chance.random() < 0.25
    async with RawClient(world.port) as client:
        await client.send(b"".join(data))
        for asked in some:
            answer = await hear(client, asked)
            if answer is None or asked.ending != "whole" or answer.header("connection") == "close" or leaves:
                break
        for asked in some:
            asked.ending = asked.ending or "left"


async def stranger(world: World) -> None:
    """Ask with a key that is no good, or for what is not there."""
    asked = world.ask("stranger")
    key = f"sk-wrong-{world.chance.randrange(1_000_000)}"
    await ask_once(world, asked, request(asked, key, CHAT, chat(world, stream=False)))


async def fool(world: World) -> None:
    """Send what makes no sense: it is told so."""
    body = world.chance.choice(
        [b"", b"{", b'{"model": 1}', b"[]", b'{"messages": []}', b"\xff\xfe", b'{"model":"none"}']
    )
    asked = world.ask("fool")
    await ask_once(world, asked, request(asked, world.key(), CHAT, body))


async def hand(world: World) -> None:
    """End by hand, on the gateway's page, what somebody asked lately; most of it has ended by itself."""
    for victim in list(world.lately)[:-6:-1]:
        asked = world.ask("hand", forwarded=False)
        data = request(asked, KEYS["alice"], f"/gateway/requests/{victim}/end", b"", JSON)
        await ask_once(world, asked, data)


async def watcher(world: World) -> None:
    """Look at the page's news, and the metrics, for a while."""
    asked = world.ask("watcher", forwarded=False)
    path = world.chance.choice(["/gateway/events", "/gateway/status", "/metrics", "/healthz"])
    data = request(asked, KEYS["alice"], path, method="GET")
    async with RawClient(world.port) as client:
        await client.send(data)
        try:
            async with asyncio.timeout(world.chance.uniform(0.1, 4)):
                await client.response(PATIENCE_S, to="GET")
        except (TimeoutError, EOFError):
            pass


KINDS: Final[Mapping[Kind, float]] = {
    buffered: 12,
    stream: 16,
    anthropic: 6,
    embeddings: 5,
    ollama: 9,
    response: 14,
    upload: 7,
    large: 3,
    leaver: 10,
    half_closer: 1,
    half_open: 1,
    slow_reader: 2,
    slow_sender: 2,
    reluctant: 3,
    dawdler: 0.3,
    old: 2,
    invited: 2,
    counter: 2,
    regular: 5,
    pipeline: 3,
    stranger: 1,
    fool: 2,
    talker: 5,
    hand: 2,
    watcher: 2,
}
