"""Other bytes in the place of some of a body: wherever its pieces end, and however long they are."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmgateway.http.upload import Edit

BODY = bytes(range(40))


@given(
    st.tuples(st.integers(0, 39), st.integers(0, 39)).map(sorted),
    st.binary(min_size=1, max_size=9),
    st.lists(st.integers(1, 39), unique=True, max_size=8).map(sorted),
)
def test_a_body_is_edited_whatever_its_pieces_are(at: list[int], value: bytes, cuts: list[int]) -> None:
    start, stop = at
    edit = Edit((start, stop), value)
    pieces = (edit.of(BODY[one:other], one) for one, other in pairwise([0, *cuts, len(BODY)]))
    edited = b"".join(pieces)
    assert edited == BODY[:start] + value + BODY[stop:]
    assert len(edited) == len(BODY) + edit.more_bytes
