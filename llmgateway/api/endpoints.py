"""All dialects, and the table of what is forwarded, which is made of their rows.

A path is in the table as clients send it; nothing that is not in it, nor in the config, is forwarded.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Final

from llmgateway.api.dialect import Dialect, Row
from llmgateway.api.dialects import anthropic, ollama, openai, responses

Body = bytes | bytearray
Buffer = bytes | memoryview

DIALECTS: Final = (openai.DIALECT, responses.DIALECT, anthropic.DIALECT, ollama.DIALECT)
ELSEWHERE: Final = openai.DIALECT
"""Answers where no other dialect does."""
FRAMINGS: Final = tuple({dialect.stream: None for dialect in DIALECTS})

_SIGNS: Final = {dialect.sign: dialect for dialect in DIALECTS if dialect.sign}
_LONGEST_ROOT_FIRST: Final = tuple(sorted(DIALECTS, key=lambda dialect: len(dialect.root), reverse=True))
_BY_DEFAULT: Final = tuple(dialect for dialect in _LONGEST_ROOT_FIRST if not dialect.optional)


@dataclass(frozen=True, slots=True)
class Endpoint(Row):
    """A row of the table of what is forwarded."""

    dialect: Dialect = field(kw_only=True)


ENDPOINTS: Final = tuple(
    Endpoint(*astuple(row), dialect=dialect) for dialect in DIALECTS for row in dialect.endpoints
)

KEPT: Final = tuple(Endpoint(*astuple(row), dialect=dialect) for dialect in DIALECTS for row in dialect.kept)
"""What can be asked about an answer that is kept, by its id."""

OPTIONAL: Final = frozenset(
    path
    for dialect in DIALECTS
    if dialect.optional
    for path in (*(row.path for row in dialect.endpoints), *dialect.own)
)
"""The paths that are there only where the config says so."""

BY_NAME: Final = {endpoint.name: endpoint for endpoint in ENDPOINTS if endpoint.name}
"""The endpoints that a provider may be known not to have."""


def names_of(*, optional: bool) -> tuple[str, ...]:
    """Give the names of what is forwarded; `optional` is as for `dialect_of`."""
    return tuple(name for name, each in BY_NAME.items() if optional or not each.dialect.optional)


def dialect_of(path: str, *, optional: bool = False) -> Dialect:
    """Give the dialect that a caller of `path` speaks, also where the path itself is wrong.

    `optional` tells whether those are spoken as well that a config has to ask for.
    """
    among = _LONGEST_ROOT_FIRST if optional else _BY_DEFAULT
    return next(dialect for dialect in among if dialect.covers(path))


def dialect_spoken(path: str, named: Mapping[bytes, bytes], *, optional: bool = False) -> Dialect:
    """Give the dialect of a path; of one that is no dialect's own, the one that a header field tells."""
    dialect = dialect_of(path, optional=optional)
    if dialect is not ELSEWHERE:
        return dialect
    return next((each for sign, each in _SIGNS.items() if sign in named), dialect)
