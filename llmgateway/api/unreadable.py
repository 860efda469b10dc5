"""What is said of a body that cannot be routed."""

from typing import Final

from llmgateway.errors import INVALID_REQUEST, GatewayError

NAME_CHARACTERS: Final = 1_000
"""Longer than any name of a model that a server advertises."""


class Unreadable(GatewayError):
    """A body cannot be routed."""

    def __init__(self, words: str) -> None:
        super().__init__(INVALID_REQUEST, words)


class NoModel(Unreadable):
    """A request names no model: it says nothing of one, or null, or an empty name."""


def bad(message: str) -> GatewayError:
    """Give the error that a body which cannot be routed gets."""
    return Unreadable(message)


def json_trouble(exc: Exception) -> str:
    """Say where, never what: the position is kept, the content is not quoted."""
    if isinstance(exc, UnicodeDecodeError):
        return "a string is not UTF-8"
    return str(exc).removeprefix("JSON is malformed: ").lower()


def check_model(model: str) -> None:
    """Refuse what cannot be the name of a model. Raises GatewayError (400)."""
    if not model:
        raise NoModel("'model' must not be empty.")
    if len(model) > NAME_CHARACTERS:
        raise bad("'model' is too long to be the name of a model.")
