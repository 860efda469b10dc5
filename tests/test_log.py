"""One event per line, whatever a client or a provider put into it."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.api.multipart import peek_multipart
from llmgateway.errors import GatewayError
from llmgateway.log import MOST_WAITING_BYTES, Events, JsonLines, Outlet, TextLines, configure, request_id

HOSTILE = 'a"b\r\n2026-01-01T00:00:00.000Z info    forged\x1b[2J\u2028 user=mallory'


def line_of(formatter: logging.Formatter, event: str, **fields: object) -> str:
    record = logging.LogRecord("llmgateway.x", logging.INFO, "", 0, event, (), None)
    record.created, record.msecs = 1_800_000_000.25, 250.0
    record.many = [fields]
    return formatter.format(record)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the program logs; the loggers are put back as they were."""
    root, ours = logging.getLogger(), logging.getLogger("llmgateway")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level, ours.level = before


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("rig", "rig"),
        (3, "3"),
        (0.1 + 0.2, "0.3"),
        (1234.5678, "1234.57"),
        ("two words", '"two words"'),
        ("größe", "größe"),
        ("größe x", '"größe x"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("\u2028", '"\\u2028"'),
        ("\udcff", '"\\udcff"'),
    ],
)
def test_a_value_that_could_be_misread_is_quoted(value: object, shown: str) -> None:
    assert line_of(TextLines(), "it happened", value=value) == (
        f"2027-01-15T08:00:00.250Z info    it happened value={shown}"
    )


def test_a_fact_that_is_not_known_is_left_out() -> None:
    facts = {"user": None, "model": "", "status": 0, "streams": False}
    assert line_of(TextLines(), "it happened", **facts).endswith(" it happened status=0 streams=False")
    assert json.loads(line_of(JsonLines(), "it happened", **facts)).keys() == {
        "time",
        "level",
        "event",
        "status",
        "streams",
    }


def test_a_hostile_value_stays_in_its_line_and_field() -> None:
    text = line_of(TextLines(), "it happened", name=HOSTILE, next=1)
    assert len(text.splitlines()) == 1
    assert json.loads(text.partition("name=")[2].removesuffix(" next=1")) == HOSTILE
    assert json.loads(line_of(JsonLines(), "it happened", name=HOSTILE))["name"] == HOSTILE


def test_a_hostile_event_of_another_library_stays_in_its_line() -> None:
    assert len(line_of(TextLines(), HOSTILE).splitlines()) == 1
    assert len(line_of(JsonLines(), HOSTILE).splitlines()) == 1


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text() | st.integers() | st.none()))
def test_any_fields_make_one_line(fields: dict[str, Any]) -> None:
    assert len(line_of(TextLines(), "event", **fields).splitlines()) == 1
    assert len(line_of(JsonLines(), "event", **fields).splitlines()) == 1
    line_of(TextLines(), "event", **fields).encode("ascii", "backslashreplace")


def test_a_line_names_its_request(written: io.StringIO) -> None:
    configure(level="info", form="json", stream=written)
    token = request_id.set("id-7")
    try:
        Events("here").info("answered", status=200)
    finally:
        request_id.reset(token)
    Events("here").warning("alone")
    first, second = map(json.loads, written.getvalue().splitlines())
    assert (first["event"], first["level"], first["status"], first["request"]) == (
        "answered",
        "info",
        200,
        "id-7",
    )
    assert second["level"] == "warning"
    assert "request" not in second


def test_what_happened_many_times_has_a_line_each_at_one_time(written: io.StringIO) -> None:
    configure(level="info", form="text", stream=written)
    Events("x").info_each("request", [{"n": 1}, {"n": "two words", "request": "r2"}])
    first, second = written.getvalue().splitlines()
    assert first.endswith("Z info    request n=1") and second.endswith(' request n="two words" request=r2')
    assert first.split()[0] == second.split()[0]
    written.truncate(0)
    configure(level="info", form="json", stream=written)
    Events("x").info_each("request", [{"n": 1}, {"n": 2}])
    assert [json.loads(line)["n"] for line in written.getvalue().strip("\0").splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", ["d", "i", "w", "x"]), ("info", ["i", "w", "x"]), ("warning", ["w", "x"]), ("error", ["x"])],
)
def test_the_level_says_what_is_heard(written: io.StringIO, level: str, heard: list[str]) -> None:
    configure(level=level, form="json", stream=written)
    events = Events("here")
    events.debug("d")
    events.info("i")
    events.warning("w")
    events.exception("x")
    assert [json.loads(line)["event"] for line in written.getvalue().splitlines()] == heard


def test_other_libraries_speak_from_warning_up(written: io.StringIO) -> None:
    configure(level="debug", form="text", stream=written)
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble")
    assert [line.split()[2] for line in written.getvalue().splitlines()] == ["trouble"]


def test_a_client_cannot_have_a_library_write_into_the_log(written: io.StringIO) -> None:
    configure(level="debug", form="text", stream=written)
    with pytest.raises(GatewayError):
        peek_multipart(b"junk", b"multipart/form-data; boundary=B")
    assert not written.getvalue()


def test_a_fault_of_our_own_comes_with_its_traceback(written: io.StringIO) -> None:
    for form in ("text", "json"):
        configure(level="info", form="json" if form == "json" else "text", stream=written)
        try:
            raise ValueError("a bug")
        except ValueError:
            Events("here").exception("unexpected error", path="/v1/models")
    *text, last = written.getvalue().splitlines()
    assert text[0].endswith("error   unexpected error path=/v1/models")
    assert text[-1] == "ValueError: a bug"
    assert "ValueError: a bug" in json.loads(last)["traceback"]


def test_configuring_twice_logs_once(written: io.StringIO) -> None:
    configure(level="info", form="text", stream=written)
    configure(level="info", form="text", stream=written)
    Events("here").info("once")
    assert written.getvalue().count("once") == 1


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_has_colours_on_a_terminal_only(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    for stream in (terminal, written):
        configure(level="info", form="text", stream=stream)
        Events("here").warning("look", at=1)
    assert "\x1b[33mwarning" in terminal.getvalue()
    assert "\x1b" not in written.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    configure(level="info", form="text", stream=plain)
    Events("here").warning("look", at=1)
    assert "\x1b" not in plain.getvalue()


# --- whoever does not read it ------------------------------------------------------------------------


def say(outlet: Outlet, number: int) -> None:
    outlet.handle(
        logging.LogRecord("llmgateway.x", logging.INFO, "", 0, f"event {number} {'x' * 90}", (), None)
    )


def test_a_log_that_nobody_reads_holds_nobody_up_and_tells_later_what_is_missing() -> None:
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    outlet.setFormatter(TextLines())
    count = 0
    while not outlet.dropped:
        say(outlet, count)
        count += 1
    assert count * 200 > MOST_WAITING_BYTES
    missing = outlet.dropped
    text = b""

    def read() -> None:
        nonlocal text
        while piece := os.read(reading, 1 << 16):
            text += piece

    reader = threading.Thread(target=read)
    reader.start()
    outlet.close()
    os.close(writing)
    reader.join(10)
    os.close(reading)
    lines = text.decode().splitlines()
    assert sum(" event " in line for line in lines) == count - missing
    told = f'log lines were dropped lines={missing} why="nobody read them"'
    assert next(line for line in lines if " event " not in line).endswith(told)


def test_a_log_whose_reader_has_gone_is_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    outlet = Outlet(writing)
    outlet.setFormatter(TextLines())
    say(outlet, 1)
    outlet.close()
    os.close(writing)
    assert outlet.dropped == 1


def test_a_pipe_that_must_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outlet = Outlet(writing)
    outlet.setFormatter(TextLines())
    for number in range(1_000):
        say(outlet, number)
    text = b""
    while text.count(b"\n") < 1_000:
        text += os.read(reading, 1 << 16)
    outlet.close()
    for descriptor in (reading, writing):
        os.close(descriptor)
    assert not outlet.dropped
