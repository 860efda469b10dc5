"""Fuzzed: the config file, whatever somebody wrote into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.composer import ComposerError

from llmgateway.config.load import parse
from llmgateway.config.source import read
from llmgateway.config.tree import ConfigError, Node, Pairs, Problem, Scalar, Series
from tests.fuzz.target import Target, words

_AS_TEXT: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_FILE: Final = "/nonexistent/config.yaml"
_ENVIRON: Final = {"NAME": "value", "EMPTY": "", "PORT": "8900"}
_ABSOLUTE: Final = re.compile(rb"file:[^}]*/")  # would read files of this machine
_EXAMPLE: Final = Path(__file__).resolve().parents[2] / "config.example.yaml"


def config(data: bytes) -> None:
    """Any text is a config, or has problems that stand where it says; what is read is what YAML says."""
    data = _ABSOLUTE.sub(b"file:", data)
    document = read(data, file=_FILE, environ=_ENVIRON)
    _check_places(document.problems, data)
    if document.root is not None and not document.problems and b"${" not in data and b"<<" not in data:
        _check_against_yaml(document.root, data)
    try:
        loaded = parse(data, file=_FILE, environ=_ENVIRON, now=0.0)
    except ConfigError as error:
        assert error.problems
        _check_places(error.problems, data)
    else:
        _check_places(loaded.warnings, data)
        repr(loaded.config)


def _check_against_yaml(root: Node, data: bytes) -> None:
    try:
        theirs = yaml.load(data.decode(), _AS_TEXT)  # noqa: S506  (there is nothing in it but text)
    except ComposerError:
        return  # it takes an anchor once only
    assert _plain(root) == theirs


def _check_places(problems: tuple[Problem, ...], data: bytes) -> None:
    lines = len(re.split(r"\r\n|[\r\n\x85\u2028\u2029]", data.decode("utf-8", "replace")))
    for problem in problems:
        assert 1 <= problem.line <= lines + 1, problem
        assert problem.column >= 1
        assert problem.message


def _plain(node: Node) -> Any:
    match node:
        case Scalar():
            return node.text
        case Series():
            return [_plain(item) for item in node.items]
        case Pairs():
            return {key: _plain(pair.value) for key, pair in node.pairs.items()}


_SMALL: Final = b"""\
server: {port: 8900, max_body: 1MB}
users: {ann: {keys: [sk-0123456789abcdef0123456789]}}
providers:
  rig: {url: "http://127.0.0.1:1", slots: 2, api_key: ${NAME:-x}}
"""
_ODD: Final = b"""\
a: &a {b: 1}
c: {<<: *a}
d: [on, ~, 1.5, 2027-06-30, 'x', "\\x41"]
e: |
  text
f: ${EMPTY:-y}
"""


def _config_seeds() -> Iterator[bytes]:
    yield _SMALL
    yield _ODD
    example = _EXAMPLE.read_bytes()
    sections = re.split(rb"(?m)^(?=# ?[a-z_]+:|[a-z_]+:)", example)
    yield from (section[:1_500] for section in sections if section.strip())
    yield from (re.sub(rb"(?m)^# ?", b"", section)[:1_500] for section in sections if section.strip())


def _keys() -> Iterator[bytes]:
    """The keys that the example shows."""
    yield from {key + b":" for key in re.findall(rb"(?m)^[# ]*([a-z_]{3,20}):", _EXAMPLE.read_bytes())}


CONFIG: Final = Target(
    "config",
    config,
    _config_seeds,
    words(
        b"""${NAME} ${PORT} ${EMPTY:-x} ${file:x} $${ <<: *a &a !!str --- ... | > ~ null true off everyone
        http://127.0.0.1:1 sk-0123456789abcdef0123456789 10s 1MB 2027-06-30 2001:db8::/32""",
        *sorted(_keys()),
        b"\n  ",
        b"\n- ",
        b": ",
    ),
    most_bytes=1_500,
    short_runs=4_000,
)
