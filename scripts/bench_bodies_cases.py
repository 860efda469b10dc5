"""The large bodies that are measured, and the large answers: what `bench_bodies.py` sends, and has sent."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from backports import zstd

MB: Final = 1_000_000
FORM: Final = b'--XX\r\nContent-Disposition: form-data; name="%b\r\n\r\n%b\r\n'


def chat(messages: bytes, more: bytes = b"", model: bytes = b"m") -> bytes:
    return b'{"model":"%b","stream":false,"messages":[%b]%b}' % (model, messages, more)


def said(text: bytes) -> bytes:
    return b'{"role":"user","content":"%b"}' % text


def image(size: int) -> bytes:
    url = b"data:image/png;base64," + b"iVBORw0KGgo" * (size // 11)
    return b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"%b"}}]}' % url


def anthropic_image(size: int) -> bytes:
    data = b"iVBORw0KGgo" * (size // 11)
    source = b'{"type":"base64","media_type":"image/png","data":"%b"}' % data
    mark = b'"cache_control":{"type":"ephemeral"}'
    return b'{"role":"user","content":[{"type":"image","source":%b,%b}]}' % (source, mark)


def tool(number: int) -> bytes:
    members = b",".join(
        b'"p%d":{"type":"object","properties":{"a":{"type":"string","enum":["x","y"]}}}' % each
        for each in range(30)
    )
    schema = b'{"type":"object","properties":{%b},"required":["p1"]}' % members
    return b'{"type":"function","function":{"name":"f%d","parameters":%b}}' % (number, schema)


def turns(count: int, size: int) -> bytes:
    text = b"so it goes " * (size // 11)
    roles = b"user", b"assistant"
    return b",".join(
        b'{"role":"%b","content":"%b %d"}' % (roles[each % 2], text, each) for each in range(count)
    )


def marked_turns(count: int) -> bytes:
    mark = b'"cache_control":{"type":"ephemeral"}'
    turn = b'{"role":"user","content":[{"type":"text","text":"%b",%b}]}' % (b"so it goes " * 10, mark)
    return b",".join([turn] * count)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


@dataclass(frozen=True)
class Case:
    """A request: what makes its body, where it goes, and how it is packed."""

    make: Callable[[], bytes]
    path: str = "chat/completions"
    packing: str = ""

    def body(self) -> bytes:
        return PACKINGS[self.packing](self.make())


def _gzip(plain: bytes) -> bytes:
    return zlib.compress(plain, 1, zlib.MAX_WBITS | 16)


PACKINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": lambda plain: plain,
    "gzip": _gzip,
    "deflate": lambda plain: zlib.compress(plain, 1),
    "zstd": zstd.compress,
}
FILE: Final = FORM % (b'file"; filename="a"', b"%b")
MODEL: Final = FORM % (b'model"', b"m")
AUDIO: Final = "audio/transcriptions"
PLAIN: Final[dict[str, Case]] = {
    "1 MB of text": Case(lambda: chat(said(b"so it goes " * (MB // 11)))),
    "60 MB of text": Case(lambda: chat(said(b"so it goes " * (60 * MB // 11)))),
    "60 MB of text, marked": Case(lambda: chat(said(b"so_it_goes " * (60 * MB // 11)))),
    "60 MB image": Case(lambda: chat(image(60 * MB))),
    "95 MB image": Case(lambda: chat(image(95 * MB))),
    "95 MB in 10 images": Case(lambda: chat(b",".join([image(9_500_000)] * 10))),
    "95 MB in 100 images": Case(lambda: chat(b",".join([image(950_000)] * 100))),
    "200,000 messages": Case(lambda: chat(b",".join([said(b"so it goes")] * 200_000))),
    "20,000 messages": Case(lambda: chat(turns(20_000, 60))),
    "4,000 messages of 2 KB": Case(lambda: chat(turns(4_000, 2_000))),
    "20,000 marked": Case(lambda: chat(marked_turns(20_000))),
    "95 MB of escapes": Case(lambda: chat(said(b"\\n" * (95 * MB // 2)))),
    "50 MB of escapes": Case(lambda: chat(said(rb"\u00e9\"\\" * (5 * MB)))),
    "95 MB not ASCII": Case(lambda: chat(said("é".encode() * (95 * MB // 2)))),
    "20 MB of brackets": Case(lambda: chat(b"1", b',"x":[%b1]' % (b"[[[]]]," * (20 * MB // 7)))),
    "nested 9,000 deep": Case(lambda: chat(b"1", b',"x":%b' % (b"[" * 9_000 + b"]" * 9_000))),
    "95 MB, role last": Case(lambda: chat(b'{"content":"%b","role":"user"}' % (b"a" * 95 * MB))),
    "95 MB of numbers": Case(lambda: chat(b"1", b',"x":[%b1]' % (b"1.5," * (95 * MB // 4)))),
    "95 MB of blanks": Case(lambda: chat(b" " * 95 * MB)),
    "20 MB of tools": Case(lambda: chat(turns(9, 60), b',"tools":[%b]' % b",".join(map(tool, range(8_000))))),
    "95 MB of members": Case(lambda: chat(b"1", b"," + b",".join([b'"abc":"def"'] * (8 * MB)))),
    "95 MB of a number": Case(lambda: chat(b"1", b',"n":%b' % (b"1" * 95 * MB))),
    "95 MB of a key": Case(lambda: chat(b"1", b',"%b":1' % (b"1" * 95 * MB))),
    "one object of numbers": Case(lambda: chat(b"1", b',"x":{%b"a":1}' % (b'"a":1,' * (10 * MB)))),
    "100,000 inputs": Case(
        lambda: b'{"model":"m","input":[%b]}' % b",".join([b'"so it goes"'] * 100_000), "embeddings"
    ),
    "95 MB of inputs": Case(
        lambda: b'{"model":"m","input":[%b]}' % b",".join([b'"%b"' % (b"so it goes" * 95)] * 100_000),
        "embeddings",
    ),
    "token ids": Case(lambda: b'{"model":"m","prompt":[%b1]}' % (b"12345," * (15 * MB)), "completions"),
    "95 MB prompt": Case(
        lambda: b'{"model":"m","prompt":"%b"}' % (b"so it goes " * (95 * MB // 11)), "completions"
    ),
    "Anthropic, 95 MB": Case(
        lambda: (
            b'{"model":"m","max_tokens":9,"system":"%b","messages":[%b]}'
            % (b"so it goes " * MB, b",".join([anthropic_image(950_000)] * 85))
        ),
        "messages",
    ),
    "Responses, 95 MB": Case(
        lambda: (
            b'{"model":"m","instructions":"%b","input":[%b]}'
            % (b"so it goes " * MB, b",".join([image(950_000)] * 85))
        ),
        "responses",
    ),
    "Responses, one input": Case(
        lambda: b'{"model":"m","input":"%b"}' % (b"so it goes " * (95 * MB // 11)), "responses"
    ),
    "alias, 95 MB image": Case(lambda: chat(image(95 * MB), b"", b"alias")),
    "alias, model last": Case(lambda: b'{"messages":[%b],"model":"alias"}' % image(95 * MB)),
    "two models, 20 MB": Case(lambda: chat(image(20 * MB), b',"model":"m"', b"alias")),
    "95 MB form, model first": Case(
        lambda: form(MODEL, FORM % (b'file"; filename="a"', b"\x00\xff" * 47 * MB)), AUDIO
    ),
    "95 MB form, model last": Case(
        lambda: form(FORM % (b'file"; filename="a"', b"\x00\xff" * 47 * MB), MODEL), AUDIO
    ),
    "95 MB form of dashes": Case(
        lambda: form(FORM % (b'file"; filename="a"', b"\r\n--X" * 19 * MB), MODEL), AUDIO
    ),
    "95 MB form of parts": Case(lambda: form(*[FORM % (b'a"', b"1")] * (MB * 95 // 55), MODEL), AUDIO),
}
PACKED: Final = (
    "1 MB of text",
    "95 MB image",
    "95 MB in 100 images",
    "200,000 messages",
    "4,000 messages of 2 KB",
    "50 MB of escapes",
    "20 MB of brackets",
    "20 MB of tools",
    "100,000 inputs",
    "95 MB form, model last",
    "alias, 95 MB image",
)
BODIES: Final = PLAIN | {
    f"{name}, {packing}": replace(PLAIN[name], packing=packing)
    for packing in PACKINGS
    if packing
    for name in PACKED
}


def event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def delta(text: bytes) -> bytes:
    return (
        b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"}}]}' % text
    )


def whole(text: bytes) -> bytes:
    usage = b'"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}'
    return b'{"object":"chat.completion","choices":[{"message":{"content":"%b"}}],%b}' % (text, usage)


DONE: Final = event(b"[DONE]")
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
LISTED: Final = b'{"object":"list","data":[%b]}'
ANSWERS: Final[dict[str, tuple[bytes, Callable[[], bytes]]]] = {
    "answer of 100 MB": (JSON, lambda: whole(b"so it goes " * (100 * MB // 11))),
    "answer of 100 MB, gzip": (JSON, lambda: _gzip(whole(b"so it goes " * (100 * MB // 11)))),
    "answer of 100 MB of lines": (JSON, lambda: whole(b"x").replace(b"{", b"{" + b"\n" * 100 * MB)),
    "embeddings of 100 MB": (JSON, lambda: LISTED % (b'{"embedding":[%b1]}' % (b"0.0123456," * 10 * MB))),
    "usage again and again": (
        JSON,
        lambda: whole(b"x")[:-1] + b',"usage":{"prompt_tokens":1}' * (4 * MB) + b"}",
    ),
    "event of 50 MB": (EVENTS, lambda: event(delta(b"so it goes " * (50 * MB // 11))) + DONE),
    "event of 50 MB, gzip": (EVENTS, lambda: _gzip(event(delta(b"so it goes " * (50 * MB // 11))) + DONE)),
    "event of 50 MB of deltas": (EVENTS, lambda: event(delta(b"x") * (50 * MB // 90)) + DONE),
    "500,000 events": (EVENTS, lambda: event(delta(b"so it goes")) * 500_000 + DONE),
    "500,000 events, gzip": (EVENTS, lambda: _gzip(event(delta(b"so it goes")) * 500_000 + DONE)),
    "50 MB of short lines": (EVENTS, lambda: b":\n" * (25 * MB) + DONE),
    "50 MB of usage": (EVENTS, lambda: event(b'{"usage":{"prompt_tokens":1},"timings":{"a":1}}') * MB + DONE),
    "chunks of one byte": (EVENTS, lambda: b"1\r\n\n\r\n" * (8 * MB) + b"0\r\n\r\n"),
    "refusal of 50 MB": (JSON, lambda: b'{"error":{"message":"%b"}}' % (b"so it goes " * (50 * MB // 11))),
}
SMALL: Final = whole(b"so it goes")

CASES: Final = BODIES | {
    name: Case(
        partial(chat, said(b"so it goes"), b"", name.encode()),
        "embeddings" if "embed" in name else "chat/completions",
    )
    for name in ANSWERS
}
