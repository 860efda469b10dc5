"""How streams end, and the errors that they tell, in whatever a server writes into the last lines."""

from __future__ import annotations

import pytest

from llmgateway.api.endings import ENDINGS


@pytest.mark.parametrize("kind", [b"[1]", b"{}", b"7", b"null", b'"x"'])
def test_a_type_that_is_no_name_of_a_failure_is_no_error(kind: bytes) -> None:
    assert ENDINGS.error(b'data: {"type":%b}\n\ndata: {"type":"error"}\n\n' % kind) == b'{"type":"error"}'
