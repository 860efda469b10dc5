"""Rows of scripts/faults: statuses, what is in an answer, and lists of models."""

from __future__ import annotations

from typing import Final

import faults_server as does
from faults_fault import (
    BY_IT,
    BY_OTHER,
    ELSEWHERE,
    NO_CANDIDATE,
    OFFLINE,
    ONLINE,
    PASSES,
    UNNOTICED,
    Comes,
    Fault,
)
from faults_server import HUGE, MODELS, OK, begun, bomb, endless, entries, usage

from tests.script import (
    SSE,
    answer,
    chunk,
    end,
    error,
    event,
    listing,
    play,
    raw,
    sse,
    stream,
    word,
)

HTML: Final = {"Content-Type": "text/html"}
PAGE: Final = b"<html><title>It works!</title></html>"
RETRY: Final = {"Retry-After": "7"}


def elsewhere_or(status: int) -> Comes:
    """Another one answers; who has no other gets a status as it came."""
    return Comes(BY_OTHER, f"{status}, as it came", ONLINE)


STATUSES: Final = (
    Fault(
        "answers 500",
        "Another one answers; else the client is told what it said.",
        ELSEWHERE,
        script=error(500),
    ),
    Fault(
        "answers 502 with the page of a proxy before it",
        "The same.",
        ELSEWHERE,
        script=answer(502, PAGE, HTML),
    ),
    Fault(
        "answers 503 while it loads its model, for three seconds",
        "That is no failure: another one answers, or the request waits until it is loaded.",
        Comes(BY_OTHER, BY_IT, ONLINE),
        befall=does.loads,
    ),
    Fault(
        "answers 503 with Retry-After, always",
        "Another one answers.",
        ELSEWHERE,
        script=answer(503, b"busy", RETRY),
    ),
    Fault(
        "answers 429 with Retry-After",
        "Another one answers; else the client gets it as it came.",
        elsewhere_or(429),
        script=answer(429, {"error": {"message": "slow down"}}, RETRY),
    ),
    Fault(
        "answers 401 to requests, not to looks",
        "The client's key is good, so it never sees that; it may be about one model: it stays online.",
        ELSEWHERE,
        script=error(401, "who are you"),
    ),
    Fault(
        "answers 401 to everything",
        "It is no candidate, and the page says that it wants a key.",
        NO_CANDIDATE,
        says="wants an api_key",
        script=error(401),
        lists=error(401),
    ),
    Fault(
        "answers 404 for a model that it lists",
        "Another one answers; else the client gets it as it came.",
        elsewhere_or(404),
        script=error(404, "model `m` not found", "not_found_error"),
    ),
    Fault(
        "answers 400",
        "That is about the request: the client gets it as it came, and nobody else is asked.",
        Comes("400, as it came", "400, as it came", ONLINE),
        script=error(400, "too long", "invalid_request_error"),
    ),
    Fault(
        "sends clients elsewhere (307)",
        "No client is led past the gateway, and no prompt elsewhere: another one answers.",
        ELSEWHERE,
        script=answer(307, b"", {"Location": "http://127.0.0.1:9/v1/chat/completions"}),
    ),
)

CONTENT: Final = (
    Fault(
        "answers with a web page, and 200",
        "Not held back: what it says with 200 is the client's, as it came.",
        PASSES,
        script=answer(200, PAGE, HTML),
    ),
    Fault(
        "answers with half a JSON object, and its length",
        "The same.",
        PASSES,
        script=answer(200, b'{"id":'),
        streams=False,
    ),
    Fault(
        "says that its stream is text/plain",
        "It passes as it came, piece by piece.",
        UNNOTICED,
        script=play(sse({"Content-Type": "text/plain"}), word("Hi"), chunk(b"data: [DONE]\n\n"), end()),
    ),
    Fault(
        "ends its streams without `[DONE]`",
        "Some never send it: what ends properly is whole, and left alone.",
        PASSES,
        script=stream("Hello", with_done=False),
    ),
    Fault(
        "tells an error in its stream",
        "It passes as it came, and is booked as a failure.",
        PASSES,
        script=begun(event({"error": {"message": "out of memory", "code": 500}}), end()),
    ),
    Fault(
        "sends a line of 256 MB in a stream",
        "It passes, and nothing grows.",
        PASSES,
        script=play(sse(), raw(b"%x\r\n" % HUGE), endless(b"", b"x" * 65_536, HUGE), raw(b"\r\n"), end()),
    ),
    Fault(
        "sends a gigabyte of zeros in a megabyte of gzip",
        "It passes packed, and little of it is unpacked to be looked at.",
        PASSES,
        script=bomb(SSE),
    ),
    Fault(
        "tells a usage of -5 and NaN tokens",
        "What cannot be is not booked, but an estimate.",
        UNNOTICED,
        script=usage("-5", "NaN"),
    ),
    Fault(
        "tells a usage of 10^30 tokens", "The same.", UNNOTICED, script=usage("1" + "0" * 30, "1" + "0" * 30)
    ),
)

LISTS: Final = (
    Fault(
        "lists its models as a web page",
        "It is no candidate, and the page says what it answers.",
        NO_CANDIDATE,
        says="a web page",
        lists=answer(200, PAGE, HTML),
    ),
    Fault(
        "lists them in broken JSON",
        "The same.",
        NO_CANDIDATE,
        says="not JSON",
        lists=answer(200, b'{"data": ['),
    ),
    Fault(
        "lists them in another shape",
        "The same.",
        NO_CANDIDATE,
        says="not a list of models",
        lists=answer(200, {"models": list(MODELS)}),
    ),
    Fault("lists them as 404", "The same.", NO_CANDIDATE, says="answers 404", lists=answer(404, b"nothing")),
    Fault(
        "lists them in a gigabyte, packed",
        "The same, and nothing grows.",
        NO_CANDIDATE,
        says="compressed",
        lists=bomb({}),
    ),
    Fault(
        "lists models without end",
        "The same: 8 MiB are enough.",
        NO_CANDIDATE,
        says="longer than 8 MiB",
        lists=play(
            raw(OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % HUGE),
            endless(b'{"data": [', b'{"id": "x"}, ' * 4096),
        ),
    ),
    Fault(
        "lists 100,000 models",
        "The first 10,000 count, and the page says so.",
        UNNOTICED,
        says="only the first 10,000",
        lists=entries(*MODELS, *(f"model-{number}" for number in range(100_000))),
    ),
    Fault(
        "lists no model",
        "It is online, and no candidate for anything.",
        NO_CANDIDATE._replace(state=ONLINE),
        lists=listing(),
    ),
    Fault(
        'lists names that are none ("", null, 7) beside good ones',
        "The good ones are served, and the page tells of the others.",
        UNNOTICED,
        says="no usable 'id'",
        lists=entries("", None, 7, *MODELS),
    ),
    Fault(
        "has lost a model that it had",
        "Another one answers; else its 404 passes, and after the next look it is the gateway's.",
        elsewhere_or(404),
        befall=does.loses_its_models,
    ),
    Fault(
        "takes longer than `health.timeout` to list, and answers well",
        "Who asks is served; while nobody does, it is offline.",
        Comes(BY_IT, BY_IT, OFFLINE),
        says="no answer to a probe",
        befall=does.lists_slowly,
    ),
)
