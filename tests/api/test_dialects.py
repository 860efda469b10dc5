"""Whatever holds for every dialect, so that one is tested by standing among them; and what each says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any, Final

import pytest
from aiohttp import web

from llmgateway.api.dialect import SSE, Counts, Dialect, Fields, Framing, Piece, Row, at_event_boundary
from llmgateway.api.dialects import anthropic, ollama, openai, responses
from llmgateway.api.endpoints import BY_NAME, DIALECTS, ELSEWHERE, ENDPOINTS, FRAMINGS, KEPT, dialect_of
from llmgateway.api.multipart import peek_multipart
from llmgateway.api.peek import peek_json
from llmgateway.api.shapes import SHAPES_IN, Shapes, shapes_of
from llmgateway.api.usage import Meter, Tokens
from llmgateway.errors import INVALID_REQUEST, UPSTREAM_ERROR, ErrorKind, GatewayError
from llmgateway.http.client import Client
from llmgateway.http.headers import AnswerHead
from tests.http.test_server import GET, talk
from tests.raw_client import Ending

BROKE = GatewayError(UPSTREAM_ERROR, 'Provider "größe" broke\n')
FORM = b"multipart/form-data; boundary=XX"


def _error(kind: ErrorKind, message: str, request_id: str) -> dict[str, object]:
    return {"trouble": message}


TOY_LINES: Final = Framing(
    media_type=b"application/x-toy", at_boundary=lambda tail: not tail or tail.endswith(b"\n"), gap=b"\n"
)
TOY: Final = Dialect(
    name="toy",
    root="/toy",
    endpoints=(Row("/toy/talk", streams=True),),
    error=_error,
    stream=TOY_LINES,
    error_event=lambda body: body + b"\n",
    keepalive=None,
    fields=Fields(turns=("messages",), tools=("tools",), limits=("max_tokens",)),
    pieces=(Piece("bit", inside=("word",)), Piece("bits", inside=("word",), listed=True)),
    counts=(
        Counts("came", "went", beside=("known",), cached=("known",), reasoning=("more", "mused"), whole=True),
    ),
)
"""A dialect that is nowhere else: it shows how little has to be told."""

every_dialect = pytest.mark.parametrize("dialect", [*DIALECTS, TOY], ids=lambda dialect: dialect.name)


def shapes_for(dialect: Dialect) -> Shapes:
    """What is known of answers in a dialect, and in those that stream as it does."""
    return shapes_of([each for each in (*DIALECTS, TOY) if each.stream is dialect.stream])


# --- paths ----------------------------------------------------------------------------------------------


def test_an_endpoint_has_a_name_of_its_own_among_all_dialects() -> None:
    names = [endpoint.name for endpoint in ENDPOINTS]
    assert len(BY_NAME) == len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)
    assert {"chat", "completions", "embeddings", "rerank", "responses", "messages"} <= BY_NAME.keys()


def test_the_table_of_endpoints_is_made_of_the_rows_of_the_dialects() -> None:
    rows = [(row, dialect) for dialect in DIALECTS for row in dialect.endpoints]
    assert [astuple(row) for row, _ in rows] == [astuple(endpoint)[:-1] for endpoint in ENDPOINTS]
    assert [dialect for _, dialect in rows] == [endpoint.dialect for endpoint in ENDPOINTS]
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS)


def test_names_and_roots_are_unique_and_one_dialect_answers_elsewhere() -> None:
    for unique in ({dialect.name for dialect in DIALECTS}, {dialect.root for dialect in DIALECTS}):
        assert len(unique) == len(DIALECTS)
    assert ELSEWHERE in DIALECTS
    assert not ELSEWHERE.root


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_paths_of_a_dialect_and_those_below_its_root_are_answered_by_it(dialect: Dialect) -> None:
    below = [f"{dialect.root}/nowhere", f"{dialect.root}/nowhere/else", dialect.root or "/"]
    for path in (*(row.path for row in dialect.endpoints), *below):
        assert dialect.covers(path)
        assert dialect_of(path, optional=True) is dialect, path
        assert (dialect_of(path) is dialect) is not dialect.optional
    assert dialect_of(f"{dialect.root}x") is ELSEWHERE


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", anthropic.DIALECT),
        ("/v1/messages/count_tokens", anthropic.DIALECT),
        ("/v1/messages/nowhere", anthropic.DIALECT),
        ("/v1/messagesx", openai.DIALECT),
        ("/v1/responses", responses.DIALECT),
        ("/api/chat", openai.DIALECT),
        ("/v1/chat/completions", openai.DIALECT),
        ("/", openai.DIALECT),
        ("*", openai.DIALECT),
        ("", openai.DIALECT),
    ],
)
def test_a_path_tells_its_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


# --- what we say ------------------------------------------------------------------------------------------


def leaves(value: object) -> Iterator[object]:
    """All plain values in some JSON."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        yield value
    else:
        for each in inner:
            yield from leaves(each)


def read_events(stream: bytes) -> list[tuple[str, str]]:
    """Read server-sent events as the HTML standard says: the type and the data of each that is complete."""
    found: list[tuple[str, str]] = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = [line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")]
        data = [value for name, value in fields if name == "data"]
        if data:
            found.append((dict(fields).get("event", "message"), "\n".join(data)))
    return found


def as_event(dialect: Dialect, event: Any) -> bytes:
    """An event of an answer."""
    text = json.dumps(event).encode()
    return b"data: " + text + b"\n\n" if dialect.stream is SSE else text + b"\n"


@every_dialect
@pytest.mark.parametrize("message", [BROKE.message, "", "half an emoji: \ud83d"])
def test_the_body_of_an_error_is_json_with_what_it_says(dialect: Dialect, message: str) -> None:
    body = json.loads(dialect.error_body(GatewayError(UPSTREAM_ERROR, message), "id-1"))
    assert isinstance(body, dict)
    assert message.replace("\ud83d", "?") in leaves(body)


@every_dialect
def test_an_error_that_ends_a_stream_is_one_event_after_whatever_stood_there(dialect: Dialect) -> None:
    body = dialect.error_body(BROKE, "id-1")
    event = dialect.error_event(body)
    framing = dialect.stream
    assert framing.at_boundary(b"")
    assert framing.at_boundary(event[-4:])
    assert not any(framing.at_boundary(event[:size][-4:]) for size in range(1, len(event)))
    broken_off = event[: len(event) // 2] + framing.gap
    assert framing.at_boundary(broken_off[-4:])
    if framing is SSE:
        (last,) = read_events(event)
        assert json.loads(last[1]) == json.loads(body)
        assert read_events(broken_off + event)[-1] == last


@every_dialect
def test_a_sign_of_life_ends_where_an_event_can_follow_and_is_nothing_to_a_reader(dialect: Dialect) -> None:
    if dialect.keepalive is None:
        return
    sign = dialect.keepalive("waiting, position 3 in the queue")
    assert dialect.stream.at_boundary(sign[-4:])
    shapes = shapes_for(dialect)
    assert metered(as_event(dialect, {}) + sign, shapes) == metered(as_event(dialect, {}), shapes)
    if dialect.stream is SSE:
        assert "message" not in {name for name, _ in read_events(sign)}, "it would be taken for a piece"


@every_dialect
def test_a_stream_is_known_by_its_media_type(dialect: Dialect) -> None:
    assert dialect.stream.media_type == dialect.stream.media_type.lower()
    assert dialect is TOY or dialect.stream in FRAMINGS


# --- what answers tell ------------------------------------------------------------------------------------


def metered(body: bytes, shapes: Shapes, *, stream: bool = True) -> Tokens:
    meter = Meter(stream, shapes=shapes)
    meter.feed(body)
    return meter.tokens(77)


def usage_of(counts: Counts) -> dict[str, Any]:
    """What an answer tells: 12 prompt tokens, 3 in each count beside, 34 of output; 3 cached, 20 thought."""
    told: dict[str, Any] = {counts.prompt: 12, counts.completion: 34, **dict.fromkeys(counts.beside, 3)}
    if counts.total is not None:
        told[counts.total] = 46
    for path, count in ((counts.cached, 3), (counts.reasoning, 20)):
        if len(path) == 2:
            told[path[0]] = {path[1]: count}
        elif path:
            told[path[0]] = count
    return told


def told_as(counts: Counts, usage: dict[str, Any]) -> dict[str, Any]:
    """Where in an answer the counts stand."""
    return usage if counts.flat else {"usage": usage}


def cost_by(counts: Counts) -> Tokens:
    cached, reasoning = 3 if counts.cached else 0, 20 if counts.reasoning else 0
    return Tokens(12 + 3 * len(counts.beside), 34, cached, reasoning, estimated=False)


@every_dialect
def test_what_an_answer_cost_is_read_by_the_names_that_the_dialect_gives(dialect: Dialect) -> None:
    for counts in dialect.counts:
        answer, shapes = {"id": "1", **told_as(counts, usage_of(counts))}, shapes_for(dialect)
        assert metered(json.dumps(answer).encode(), shapes, stream=False) == cost_by(counts)
        assert metered(as_event(dialect, {}) + as_event(dialect, answer), shapes) == cost_by(counts)


@every_dialect
def test_the_plainest_usage_is_read(dialect: Dialect) -> None:
    for counts in dialect.counts:
        usage = {counts.prompt: 12, counts.completion: 34, counts.total or "else": 46}
        answer = json.dumps(told_as(counts, usage)).encode()
        assert metered(answer, shapes_for(dialect), stream=False) == Tokens(12, 34, estimated=False)


@every_dialect
def test_counts_add_up_over_the_events_of_a_stream_but_for_what_its_opening_cannot_know(
    dialect: Dialect,
) -> None:
    for counts in dialect.counts:
        told = usage_of(counts)
        completion = told.pop(counts.completion)
        opening = {"type": counts.opening or "start", **told_as(counts, {**told, counts.completion: 1})}
        closing = {"type": "end", **told_as(counts, {counts.completion: completion})}
        shapes = shapes_for(dialect)
        assert metered(as_event(dialect, opening) + as_event(dialect, closing), shapes) == cost_by(counts)
        if counts.opening is not None:
            assert metered(as_event(dialect, opening), shapes).estimated


@every_dialect
def test_an_event_with_a_piece_of_output_counts_as_a_token(dialect: Dialect) -> None:
    for piece in dialect.pieces:
        for text, count in (("word", 1), ("", 0)):
            values: list[Any] = [{key: text} for key in piece.inside] or [text]
            for value in values:
                event = as_event(dialect, {"index": 0, piece.key: [value] if piece.listed else value})
                assert metered(event * 3, shapes_for(dialect)) == Tokens(77, 3 * count, estimated=True), event


def test_what_no_dialect_tells_is_not_read() -> None:
    (counts,) = TOY.counts
    for shapes in SHAPES_IN.values():
        assert metered(json.dumps({"usage": usage_of(counts)}).encode(), shapes, stream=False).estimated
        assert not metered(as_event(TOY, {"bit": {"word": "x"}}), shapes).completion


# --- what requests say --------------------------------------------------------------------------------------


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_of_every_endpoint_the_model_is_known_and_whether_it_streams(endpoint: Any) -> None:
    if endpoint.body == "json":
        seen = peek_json(b'{"model": "m", "stream": true}')
    else:
        form = b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        seen = peek_multipart(form % (b"model", b"m") + form % (b"stream", b"true") + b"--XX--\r\n", FORM)
    assert (seen.model, seen.streams) == ("m", True)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_is_said_is_found_in_the_fields_that_the_dialect_names(dialect: Dialect) -> None:
    fields = dialect.fields
    for turns in fields.turns:
        for system in fields.system or [None]:
            body: dict[str, Any] = {"model": "m", turns: [user("a"), user("b")]}
            body |= {system: "Be brief."} if system else {}
            seen = peek_json(json.dumps(body).encode())
            assert [json.loads(bytes(each)) for each in seen.said] == [user("a"), user("b")]
            assert [json.loads(bytes(each)) for each in seen.system] == ["Be brief."] * (system is not None)
    for text in fields.text:
        assert bytes(peek_json(json.dumps({"model": "m", text: "once"}).encode()).text) == b"once"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_limits_and_the_size_of_tools_are_found_in_the_fields_that_the_dialect_names(
    dialect: Dialect,
) -> None:
    fields = dialect.fields
    said: list[dict[str, Any]] = [{limit: 8} for limit in fields.limits]
    said += [{outer: {"else": [1], inner: 8}} for outer, inner in fields.limits_inside]
    for limit in said:
        for turns in fields.turns:
            body = json.dumps({"model": "m", turns: [], **limit}).encode()
            assert peek_json(body).output_limit == 8
    for tools in fields.tools:
        body = json.dumps({"model": "m", tools: ["a tool"]}).encode()
        assert peek_json(body).prompt_bytes == len('["a tool"]')


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_an_answer_goes_on_from_is_found_where_the_dialect_names_it(dialect: Dialect) -> None:
    for name in dialect.fields.follows:
        for value, seen in (('"resp_1"', "resp_1"), (r'"resp_\u0031"', "resp_1"), ("null", ""), ("7", "")):
            body = f'{{"{name}": "resp_0", "model": "m", "{name}": {value}}}'.encode()
            assert peek_json(body).follows == seen
    assert not peek_json(b'{"model": "m", "input": "hi"}').follows


def test_what_is_asked_about_a_kept_answer_has_its_id_in_the_path_and_no_model() -> None:
    assert len({(row.path, row.method) for row in KEPT}) == len(KEPT)
    for row in KEPT:
        assert row.path.count("{id}") == 1 and dialect_of(row.path) is row.dialect
        assert row.body == "none" and not row.reads and not row.name
        assert any(each.keeps for each in ENDPOINTS if each.dialect is row.dialect)


# --- what each says -----------------------------------------------------------------------------------------


def test_an_error_has_the_envelope_of_its_dialect() -> None:
    for dialect in (openai.DIALECT, responses.DIALECT):
        assert json.loads(dialect.error_body(BROKE, "id-1")) == {
            "error": {
                "message": BROKE.message,
                "type": "upstream_error",
                "param": None,
                "code": "upstream_error",
            }
        }
    assert json.loads(anthropic.DIALECT.error_body(BROKE, "id-1")) == {
        "type": "error",
        "error": {"type": "api_error", "message": BROKE.message},
        "request_id": "id-1",
    }


def test_an_error_of_ollamas_is_a_sentence() -> None:
    body = ollama.DIALECT.error_body(BROKE, "id-1")
    assert json.loads(body) == {"error": BROKE.message}
    assert ollama.DIALECT.error_event(body) == body + b"\n"
    assert ollama.DIALECT.keepalive is None


def test_the_events_of_our_own_are_those_that_clients_know() -> None:
    for dialect in (openai.DIALECT, responses.DIALECT):
        assert dialect.error_event(b"{}") == b"data: {}\n\n"
        assert dialect.keepalive is not None
        assert dialect.keepalive("waiting") == b": waiting\n\n"
    assert anthropic.DIALECT.error_event(b"{}") == b"event: error\ndata: {}\n\n"
    assert anthropic.DIALECT.keepalive is not None
    assert anthropic.DIALECT.keepalive("waiting") == b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_only_after_an_empty_line_does_a_stream_stand_between_events(ending: bytes) -> None:
    stream = (b"event: a" + ending + b"data: {}" + ending * 2) * 2 + b": ping" + ending * 2
    ends = [size for size in range(len(stream) + 1) if stream[:size].endswith(ending * 2)]
    for size in range(len(stream) + 1):
        for tail_bytes in (4, 7, len(stream)):
            expected = size == 0 or size in ends
            assert at_event_boundary(stream[:size][-tail_bytes:]) is expected, stream[:size]


# --- a dialect that nobody else knows of --------------------------------------------------------------------


def answering(*fed: bytes, begun: bool = True, head: AnswerHead | None = None) -> Any:
    """A handler for a client that speaks the toy: its provider breaks after these pieces."""

    async def work(client: Client, _: web.BaseRequest) -> None:
        client.dialect = TOY
        client.say("waiting")
        assert not client.started, "it has nothing to say while it waits"
        if begun:
            lines = b"Content-Type: application/x-toy\r\n"
            client.begin(200, b"", head or AnswerHead(lines, None, TOY_LINES, may_grow=True))
        for piece in fed:
            client.feed(piece, final=False)
        raise GatewayError(INVALID_REQUEST, "No.")

    return work


async def test_an_error_is_answered_as_the_dialect_has_it() -> None:
    response, _ = await talk(answering(begun=False), GET)
    assert (response.status, response.json) == (400, {"trouble": "No."})
    assert response.header("x-gateway-error") == "invalid_request"


@pytest.mark.parametrize(("fed", "gap"), [([b"{}\n"], b""), ([b"{}\n", b'{"bit'], b"\n"), ([], b"")])
async def test_a_stream_that_breaks_ends_as_the_dialect_has_it(fed: list[bytes], gap: bytes) -> None:
    response, _ = await talk(answering(*fed), GET)
    assert bytes(response.body) == b"".join(fed) + gap + b'{"trouble":"No."}\n'
    assert response.ending is Ending.COMPLETE


async def test_a_stream_of_another_framing_is_not_added_to() -> None:
    response, _ = await talk(answering(b"data: 1", head=AnswerHead(b"", None, SSE, may_grow=True)), GET)
    assert (bytes(response.body), response.ending) == (b"data: 1", Ending.CUT)
