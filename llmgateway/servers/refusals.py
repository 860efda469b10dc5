"""What a 404, 405 or 501 is about: that the server has not the path, or something else, such as the model.

- To be wrong that a path is missing costs an hour without it, to be wrong that it is there costs one request
  that is tried elsewhere. So only what cannot well be about the model or the request is about the path.
- A 501 may be about the model even where it does not name it: a program that runs a server for each model
  passes on what that one says.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

import orjson

from llmgateway.servers.kind import message_in

Scope = Literal["server", "model"]
"""Whether a path is missing for all models of a server, or surely only for the one that was asked for."""

REFUSALS: Final = (404, 405, 501)
NOT_FOUND, _NO_METHOD, _UNSUPPORTED = REFUSALS
_MOST_BYTES: Final = 4096
_NO_TEXT: Final = "\ufffd"  # what decoding makes of bytes that are none; the last may be half a character
_TAG: Final = re.compile(r"<[^<>]*>")
_MODEL: Final = re.compile(r"\bmodels?\b")
_NUMBER: Final = re.compile(r"[\d.]+")
# What web servers and frameworks say of any path that they do not have is made of these words alone.
_PLAIN_WORDS: Final = frozenset(
    (
        "a again allowed an and apache api at be by caddy can cannot check code could detail does"
        " endpoint entered error error_code exist explanation file for found get here http if implemented"
        " in invalid is it manually matched matching message method method_not_allowed nginx no not"
        " not_found not_implemented of on openresty operation or page path please post request requested"
        " resource response route server spelling status such support supported that the this try"
        " unexpected unknown unrecognized unsupported uri url was with you your"
    ).split()
)
_FILLER: Final = r"(?:(?:the|this|any|openai|anthropic|openai's|chat|text|audio|image|images|v1)\W+)*?"


def scope_of(status: int, body: bytes, path: str, models: Iterable[str]) -> Scope | None:
    """Tell for which models an answer says that there is no such path; None if it says something else.

    `path` is as in the endpoint table; `models` are the names of the model that was asked for.
    """
    text = _text_of(body)
    if text is None or status not in REFUSALS:
        return None
    tail = path.removeprefix("/v1").lower()
    names_path = tail in text
    text = text.replace(tail, " ")
    about_model = bool(_MODEL.search(text)) or any(_names(text, model) for model in models)
    if status == NOT_FOUND:
        of_path = names_path or (text and _is_plain(text))  # one without a word may be of anything
        return "server" if of_path and not about_model else None
    if status == _NO_METHOD:
        return "model" if about_model else "server"
    if names_path and not about_model:
        return "server"
    return "model" if names_path or _is_plain(text) or _lacking(path).search(text) else None


def _text_of(body: bytes) -> str | None:
    """Give what an answer says, in lower case; None if it is JSON and says nothing, or no text at all."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        page = _TAG.sub(" ", body[:_MOST_BYTES].decode("utf-8", "replace"))
        text = None if _NO_TEXT in page[:-1] else page
    else:
        text = message_in(body)
    return None if text is None else " ".join(text[:_MOST_BYTES].lower().split())


def _names(text: str, model: str) -> bool:
    return re.search(rf"(?<![\w./-]){re.escape(model.lower())}(?![\w/-])", text) is not None


def _is_plain(text: str) -> bool:
    """Tell whether a text is empty, or one that any web server might say of any path."""
    words = re.findall(r"[\w.']+", text)
    return all(word.strip(".'") in _PLAIN_WORDS or _NUMBER.fullmatch(word) for word in words)


@lru_cache(64)
def _lacking(path: str) -> re.Pattern[str]:
    """Find the sentence that what an endpoint does is not supported, with its name in the endpoint's path."""
    last = re.escape(path.rpartition("/")[2]).replace("_", "[ _]")
    name = rf"{last.removesuffix('s')}\w*"
    if "/audio/" in path:
        name = rf"(?:{name}|audio input)"
    return re.compile(
        rf"\bsupport(?:s|ed)?\W+{_FILLER}{name}"
        rf"|^{_FILLER}{name}(?:\W+\w+)?\W+(?:is|are)\W+not\W+(?:supported|implemented|available|enabled)"
    )
