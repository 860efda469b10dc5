"""What scripts/servers asks of every server, and what it makes of the answer."""

from __future__ import annotations

import io
import json
import math
import struct
import wave
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.raw_client import Ending, RawClient, Response, request

ANSWER_S: Final = 120.0
RATE: Final = 16_000
NOT_HAD: Final = frozenset({404, 405, 501})
BOUNDARY: Final = "a-boundary"
SAYS: Final = [{"role": "user", "content": "hello world"}]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one try, in words, and what is odd about it."""

    words: str
    passed: bool
    seen: tuple[str, ...] = ()


Try = Callable[[int, str], Awaitable[Result]]


async def answered(port: int, path: str, body: bytes, content_type: str = "application/json") -> Response:
    """Ask the gateway."""
    async with RawClient(port) as client:
        await client.send(request("POST", path, f"Content-Type: {content_type}", body=body))
        return await client.response(ANSWER_S)


def asking(path: str, body: Mapping[str, Any], *want: str) -> Try:
    """A try that is passed by a JSON answer with one of these fields."""

    async def attempt(port: int, model: str) -> Result:
        response = await answered(port, path, json.dumps({**body, "model": model}).encode())
        return result(response, lambda: any(field in response.json for field in want))

    return attempt


def result(response: Response, is_right: Callable[[], bool]) -> Result:
    """Judge an answer that is not streamed."""
    if response.status in NOT_HAD:  # by the gateway, where it knows, or else by the server
        return Result("no", passed=False)
    if response.status != 200:
        return Result(str(response.status), passed=False)
    try:
        return Result("yes", passed=True) if is_right() else Result("200, without an answer", passed=False)
    except ValueError:
        return Result("200, not JSON", passed=False)


async def streamed(port: int, model: str) -> Result:
    """Stream a chat, and look at how it ends."""
    body = {"model": model, "messages": SAYS, "max_tokens": 8, "stream": True}
    body["stream_options"] = {"include_usage": True}
    response = await answered(port, "/v1/chat/completions", json.dumps(body).encode())
    if response.status != 200:
        return result(response, lambda: False)
    events = response.events
    pieces = [each for each in events if isinstance(each, dict)]
    odd = {
        "ends without `[DONE]`": "[DONE]" not in events,
        "tells no tokens in a stream": not any(each.get("usage") for each in pieces),
    }
    passed = response.ending is Ending.COMPLETE and any(each.get("choices") for each in pieces)
    words = "yes" if passed else "200, cut short"
    return Result(words, passed, tuple(each for each, is_so in odd.items() if is_so))


async def transcribed(port: int, model: str) -> Result:
    """Send a second of a tone."""
    fields = {"model": model, "temperature": "0"}
    head = "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="tone.wav"\r\n'
    body = f"{head}Content-Type: audio/wav\r\n\r\n".encode() + tone() + f"\r\n--{BOUNDARY}--\r\n".encode()
    response = await answered(
        port, "/v1/audio/transcriptions", body, f"multipart/form-data; boundary={BOUNDARY}"
    )
    return result(response, lambda: "text" in response.json)


def tone() -> bytes:
    """Give a second of sound."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(b"".join(struct.pack("<h", int(8000 * math.sin(at / 5))) for at in range(RATE)))
    return file.getvalue()


TRIES: Final[Mapping[str, Try]] = {
    "chat": asking("/v1/chat/completions", {"messages": SAYS, "max_tokens": 8}, "choices"),
    "stream": streamed,
    "responses": asking(
        "/v1/responses", {"input": "hello world", "max_output_tokens": 16, "stream": False}, "output"
    ),
    "messages": asking("/v1/messages", {"messages": SAYS, "max_tokens": 8}, "content"),
    "embeddings": asking("/v1/embeddings", {"input": "hello world"}, "data"),
    "transcription": transcribed,
}
