"""Which path was meant, where a request came to one that is none.

Base URLs are written in many ways, and clients put their own path behind them: what reaches us has a part too
many or too few, twice, in capitals, or with slashes that do not belong. Rules:

- What is pointed at is answered here; what was asked for is told, and never followed.
- It is looked for only after a request has come to nowhere, in as many parts as any path of ours may have.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final
from urllib.parse import unquote

from llmgateway.errors import NOT_FOUND, GatewayError
from llmgateway.web.routes import MODELS, PAGE, path_of

_VERSION: Final = "v1"
_NO_PARTS: Final = ("", ".", "..")
_MOST_CHARACTERS: Final = 512  # of a path that is worth a look; names of models are long
_ALIKE: Final = 0.8  # as `difflib` counts: a letter or two


class Signpost:
    """Points from what nearly is a path of ours to that path."""

    def __init__(self, base: str, paths: Iterable[str]) -> None:
        """Know the paths that can be meant, all of them below `base`."""
        self._base = base
        below_page = PAGE.rstrip("/")
        known = [path for path in paths if path == PAGE or not path.startswith(below_page)]
        self._known = {_key(_parts(path)): path for path in known if _parts(path)}

    def meant(self, raw_path: str) -> str:
        """Give the path, without the base, that a request target most likely means; "" if none comes near."""
        asked = _parts(path_of(raw_path)[:_MOST_CHARACTERS])
        lower = [part.lower() for part in asked]
        for start in range(len(lower)):  # the longest end that is a path of ours
            if lower[start] != _VERSION and (path := self._known.get("/".join(lower[start:]))):
                return path
        if "models" in lower[:-1]:
            at = lower.index("models") + 1
            return "/".join((MODELS, *asked[at:]))
        key = _key(lower)
        if not key:
            return ""
        if nearest := get_close_matches(key, self._known, 1, _ALIKE):
            return self._known[nearest[0]]
        return next((path for known, path in self._known.items() if known.startswith(key + "/")), "")

    def no_endpoint(self, raw_path: str) -> GatewayError:
        """Say that a request leads nowhere, and where it was meant to lead, as far as that is known."""
        words = "There is no such endpoint here."
        meant = self.meant(raw_path)
        if not meant:
            return GatewayError(NOT_FOUND, f"{words} The API is below '{self._base}/{_VERSION}'.")
        words += f" Did you mean '{self._base}{meant}'?"
        if meant.startswith(f"/{_VERSION}/") and not meant.startswith(f"/{_VERSION}/messages"):
            words += f" A client's base URL ends in '{self._base}/{_VERSION}' here."
        return GatewayError(NOT_FOUND, words)


def _parts(path: str) -> list[str]:
    """Split a path, however it is spelled, into what it is made of."""
    parts = (part.strip() for part in unquote(path).replace("\\", "/").split("/"))
    return [part for part in parts if part not in _NO_PARTS]


def _key(parts: list[str]) -> str:
    """Give what tells a path from others, whatever number of versions stands before it."""
    at = 0
    while at < len(parts) and parts[at] == _VERSION:
        at += 1
    return "/".join(parts[at:])
