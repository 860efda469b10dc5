"""What is read off forms: bytes in, values out."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmgateway.api.multipart import peek_multipart
from llmgateway.api.peek import Peek
from llmgateway.errors import INVALID_REQUEST, GatewayError


def refusal(body: bytes, content_type: bytes) -> str:
    """The words of the 400 that this form gets."""
    with pytest.raises(GatewayError) as caught:
        peek_multipart(body, content_type)
    assert caught.value.kind == INVALID_REQUEST
    return caught.value.message


FORM = b"multipart/form-data; boundary=XX"


def part(name: str, value: bytes, *, more: str = "") -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
        name.encode(),
        more.encode(),
        value,
    )


FILE = part("file", b"\x00\xffRIFF\r\n--X\r\n" * 1_000, more='; filename="a.wav"\r\nContent-Type: audio/wav')
MODEL = part("model", b"whisper-1")
END = b"--XX--\r\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (MODEL + FILE + END, Peek("whisper-1", False)),
        (FILE + MODEL + END, Peek("whisper-1", False)),
        (FILE + part("stream", b"true") + MODEL + END, Peek("whisper-1", True)),
        (MODEL + part("stream", b" True\n") + END, Peek("whisper-1", True)),
        (MODEL + part("stream", b"1") + END, Peek("whisper-1", False)),
        (part("model", b"first") + part("model", b"last") + END, Peek("last", False)),
        (
            part("prompt", part("model", b"nested").replace(b"--XX", b"--YY")) + MODEL + END,
            Peek("whisper-1", False),
        ),
        (part("model", "größe".encode()) + END, Peek("größe", False)),
        (MODEL + END + b"epilogue", Peek("whisper-1", False)),
        (b"--XX\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n" + END, Peek("m", False)),
        (
            b'--XX\r\nContent-Type: text/plain\r\nContent-Disposition:form-data;name="model"\r\n\r\nm\r\n'
            + END,
            Peek("m", False),
        ),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else "",
)
def test_a_form_says_its_model_wherever_it_stands(body: bytes, expected: Peek) -> None:
    assert peek_multipart(body, FORM) == peek_multipart(bytearray(body), FORM) == expected
    assert peek_multipart(body, FORM) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (MODEL + END, b"", "multipart/form-data with a boundary"),
        (MODEL + END, b"multipart/form-data", "with a boundary"),
        (MODEL + END, b'multipart/form-data; boundary=""', "with a boundary"),
        (MODEL + END, b"multipart/mixed; boundary=XX", "multipart/form-data"),
        (b'{"model": "m"}', b"application/json", "multipart/form-data"),
        (MODEL + END, b"multipart/form-data; boundary=\xff", "not valid multipart"),
        (MODEL + END, b"multipart/form-data; boundary*=undefined''XX", "with a boundary"),
        (MODEL + END, b"multipart/form-data; boundary*=a\0b''XX", "with a boundary"),
        (b"", FORM, "before its last boundary"),
        (MODEL, FORM, "before its last boundary"),
        ((MODEL + END)[:-4], FORM, "before its last boundary"),
        (b"nonsense", FORM, "not valid multipart"),
        (MODEL.replace(b"XX", b"YY"), FORM, "not valid multipart"),
        (END, FORM, "no field 'model'"),
        (FILE + END, FORM, "no field 'model'"),
        (part("models", b"m") + END, FORM, "no field 'model'"),
        (b"--XX\r\nContent-Type: text/plain\r\n\r\nm\r\n" + END, FORM, "no field 'model'"),
        (b"--XX\r\nContent-Disposition: \xff\xfe;;;=\r\n\r\nm\r\n" + END, FORM, "no field 'model'"),
        (
            b"--XX\r\nContent-Disposition: form-data; name*=x''model\r\n\r\nm\r\n" + END,
            FORM,
            "no field 'model'",
        ),
        (part("model", b"") + END, FORM, "must not be empty"),
        (part("model", b"m" * 1_001) + END, FORM, "too long"),
        (part("model", b"m" * 1_000_000) + END, FORM, "too long"),
        (part("model", b"\xff") + END, FORM, "not valid UTF-8"),
    ],
    ids=lambda value: repr(value[-40:]) if isinstance(value, bytes) else "",
)
def test_a_form_that_cannot_be_routed_is_refused_in_words(
    body: bytes, content_type: bytes, words: str
) -> None:
    assert words in refusal(body, content_type)


def test_a_form_cut_anywhere_is_refused() -> None:
    whole = MODEL + part("file", b"RIFF") + END
    for size in range(len(whole) - len("\r\n")):
        refusal(whole[:size], FORM)


def test_a_form_of_very_many_parts_is_refused() -> None:
    body = b"".join([part("x", b"1") * 2_000, MODEL, END])
    assert "more than 1000 parts" in refusal(body, FORM)


def test_files_in_a_form_are_skipped_not_copied() -> None:
    body = part("file", b"\x00" * 30_000_000) + MODEL + END
    tracemalloc.start()
    try:
        assert peek_multipart(body, FORM).model == "whisper-1"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_an_endless_part_header_is_refused_quickly() -> None:  # a quadratic search would hang
    body = b"--XX\r\nContent-Disposition: " + b"x" * 50_000_000 + b"\r\n\r\nm\r\n" + END
    refusal(body, FORM)


@given(
    st.binary()
    | st.lists(st.sampled_from([MODEL, END, b"--XX", b"\r\n", b"model", b'; name="', b"\xff", b":"])).map(
        b"".join
    ),
    st.just(FORM) | st.binary() | st.binary().map(lambda text: b"multipart/form-data; boundary=" + text),
)
@example(b"", b"multipart/form-data; boundary*=nosuch''XX")
@example(b"", b"multipart/form-data; boundary*0*=utf-8''%ff; boundary*2=x")
@example(MODEL + END, b"multipart/form-data; boundary=" + b"X" * 10_000)
def test_any_form_is_peeked_at_or_refused(body: bytes, content_type: bytes) -> None:
    try:
        assert peek_multipart(body, content_type).model
    except GatewayError as error:
        assert error.kind == INVALID_REQUEST
