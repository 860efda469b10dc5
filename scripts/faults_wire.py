"""Rows of scripts/faults: connections that are none, silence, cuts, and bytes that are no HTTP."""

from __future__ import annotations

from typing import Final

import faults_server as does
from faults_fault import (
    BY_OTHER,
    ELSEWHERE,
    GONE,
    LATE,
    OFFLINE,
    ONLINE,
    PASSES,
    TOLD_IN_IT,
    UNNOTICED,
    Comes,
    Fault,
)
from faults_server import OK, SMALL, begun, endless

from tests.script import cut, drip, play, raw, reset, sse, stall

UNREACHED: Final = Comes(BY_OTHER, GONE, OFFLINE)
SILENT: Final = Comes(BY_OTHER, LATE, ONLINE)
SHORT: Final = Comes("200, cut short", "200, cut short", ONLINE)
HEADERS: Final = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 990) for number in range(300))

NO_CONNECTION: Final = (
    Fault(
        "refuses connections",
        "Another one answers; who has no other is told why, and two looks later it is offline.",
        ELSEWHERE._replace(state=OFFLINE),
        says="connection refused",
        befall=does.refuses,
    ),
    Fault(
        "lets connections wait, as its program hangs",
        "The same, after `timeouts.connect`.",
        Comes(BY_OTHER, "502 `upstream_error` (connect)", OFFLINE),
        says="no answer",
        befall=does.accepts_nobody,
    ),
    Fault(
        "has a name that leads nowhere",
        "It is offline, and the page says that the name is the trouble.",
        UNREACHED,
        says="name cannot be resolved",
        url=does.nowhere,
    ),
    Fault(
        "speaks plain HTTP where the config says https",
        "It is no candidate, and the page says what to write as its `url`.",
        UNREACHED,
        says="http://",
        url=does.plain,
    ),
    Fault(
        "has a certificate of nobody known",
        "It is no candidate, and is told neither key nor prompt.",
        UNREACHED,
        says="certificate is not accepted",
        url=does.of_strange_certificate,
        program="openssl",
    ),
)

SILENCE: Final = (
    Fault(
        "says nothing to a request",
        "Another one answers, after `timeouts.first_byte`; as it answers looks, it stays online.",
        SILENT,
        script=stall(),
    ),
    Fault(
        "says nothing to anybody any more",
        "The same, and it is offline once it cannot be at work for anybody.",
        SILENT._replace(state=OFFLINE),
        says="no answer to a probe",
        befall=does.falls_silent,
    ),
    Fault(
        "sends a head, and nothing more",
        "A head is no answer: the same as without it.",
        SILENT,
        script=play(sse(), stall()),
    ),
    Fault(
        "sends its head a byte a second",
        "The limit is for the first byte of the body: the same.",
        SILENT,
        script=drip(OK + b"X-Pad: " + b"x" * 99, pause_s=1),
    ),
    Fault(
        "falls silent in the middle of a stream",
        "It is too late for another one; after `timeouts.idle` the client is told in the stream.",
        TOLD_IN_IT,
        script=begun(stall()),
    ),
)

CUTS: Final = (
    Fault("closes without a byte", "Another one answers.", ELSEWHERE, script=cut()),
    Fault("resets without a byte", "Another one answers.", ELSEWHERE, script=reset()),
    Fault(
        "closes in the middle of a stream",
        "The client is told in the stream, and gets no `[DONE]`.",
        TOLD_IN_IT,
        script=begun(cut()),
    ),
    Fault(
        "closes in the middle of an event and of a chunk",
        "The same; the half event is ended first, so that the error is one of its own.",
        TOLD_IN_IT,
        script=begun(raw(b'40\r\ndata: {"cho'), cut()),
    ),
    Fault(
        "closes before its Content-Length is reached",
        "The client's is closed likewise, so nobody takes half an answer for a whole one.",
        SHORT,
        script=play(
            raw(OK + b'Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"id": 1'), cut()
        ),
        streams=False,
    ),
    Fault(
        "closes kept connections when the next request comes",
        "The request goes out once more, on a new connection; nobody notices.",
        UNNOTICED,
        befall=does.closes_when_asked,
    ),
    Fault("closes connections that idled", "Nobody notices.", UNNOTICED, befall=does.closes_idle_ones),
    Fault(
        "dies in the middle of streams, and is back a second later",
        "Clients are told in the stream; the next ones are served.",
        TOLD_IN_IT,
        befall=does.dies_in_the_middle,
    ),
)

FRAMING: Final = (
    Fault(
        "sends more than its Content-Length says",
        "The client gets what was announced, nobody the rest, and that connection is not used again.",
        PASSES,
        script=raw(SMALL + b"{}{}{}"),
        streams=False,
    ),
    Fault(
        "sends two answers to one request",
        "Nobody gets the second.",
        PASSES,
        script=raw(SMALL + SMALL),
        streams=False,
    ),
    Fault(
        "says something on an idle connection",
        "Nobody has asked for it: that connection is closed, and nobody notices.",
        UNNOTICED,
        befall=does.speaks_unasked,
    ),
    Fault(
        "tells two lengths",
        "That is no answer: another one answers.",
        ELSEWHERE,
        script=play(raw(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), cut()),
    ),
    Fault(
        "sends a first chunk whose size is no number",
        "Nothing was passed on yet: another one answers.",
        ELSEWHERE,
        script=play(sse(), raw(b"zz\r\nabc\r\n"), stall()),
    ),
    Fault(
        "sends such a chunk in the middle of a stream",
        "The client is told at once, though the connection stays.",
        TOLD_IN_IT,
        script=begun(raw(b"zz\r\nabc\r\n"), stall()),
    ),
    Fault(
        "speaks SSH",
        "Another one answers.",
        ELSEWHERE,
        script=play(raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), stall()),
    ),
    Fault(
        "sends a head of 300 KB",
        "64 KiB are enough: another one answers.",
        ELSEWHERE,
        script=play(raw(OK + HEADERS + b"Content-Length: 2\r\n\r\n{}"), stall()),
    ),
    Fault(
        "sends a head without end",
        "The same, and nothing grows.",
        ELSEWHERE,
        script=endless(OK, b"X-Pad: yyyyyyyy\r\n" * 4096),
    ),
    Fault(
        "sends interim answers without end",
        "The same, after 16 of them.",
        ELSEWHERE,
        script=endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 512),
    ),
    Fault(
        "changes to another protocol, unasked",
        "Another one answers.",
        ELSEWHERE,
        script=raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
    ),
)
