"""Runs what a client is tried with, and says of each what came: one line of JSON, in a place of its own.

Each program beside this one imports its client from `settings`, which is what its page in docs/clients says,
word for word.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

MODEL: Final = os.environ["CLIENTS_MODEL"]
EMBEDDINGS: Final = os.environ["CLIENTS_EMBEDDINGS"]
HELLO: Final = [{"role": "user", "content": "hello world"}]
# A choice of one: a word of its own the little model may go on with until it is cut off.
CITY: Final = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
FUNCTION: Final = {"name": "weather", "description": "Tell the weather.", "parameters": CITY}
TOOL: Final = {"type": "function", "function": FUNCTION}
TEXTS: Final = ["hello", "world"]


def tell(**tries: Callable[[], Any]) -> None:
    """Run those that the command line names."""
    for name in sys.argv[1:]:
        try:
            tried(tries[name])
            line = {"try": name, "failed": None}
        except Exception as exc:  # whatever it is, it is what this client shows of it
            line = {"try": name, "failed": type(exc).__name__, "says": str(exc)}
        with Path(os.environ["CLIENTS_SEEN"]).open("a") as file:
            file.write(json.dumps(line) + "\n")


def tried(attempt: Callable[[], Any]) -> None:
    """Try it, and once more where nothing came: the little model may end its turn with its first token."""
    try:
        attempt()
    except AssertionError:
        attempt()


def has_text(text: str | None) -> None:
    assert text and text.strip(), f"no text: {text!r}"


def has_pieces(pieces: Iterable[str | None]) -> None:
    """Streamed: in more than one."""
    came = [piece for piece in pieces if piece]
    assert len(came) > 1, f"one piece: {came}"


def is_the_call(name: str | None, arguments: Any) -> None:
    """The arguments as JSON, or what that holds."""
    came = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert (name, came) == ("weather", {"city": "Oslo"}), f"{name}({came})"


def has_vectors(vectors: Iterable[Iterable[float]]) -> None:
    came = [list(vector) for vector in vectors]
    assert len(came) == len(TEXTS), f"{len(came)} vectors for {len(TEXTS)} texts"
    assert all(any(vector) for vector in came), "a vector of zeros"


def has_model(names: Iterable[str], model: str = MODEL) -> None:
    came = list(names)
    assert model in came, f"{model} is not among {came}"
