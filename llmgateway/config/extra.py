"""A path to forward beside the endpoints: in one word, or as a mapping that tells its method and its model.

A word is a path whose JSON body names the model, and stays a word. A GET has no body to name one in.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, ValidationInfo, field_validator

from llmgateway.api.dialect import BodyKind
from llmgateway.config import addresses
from llmgateway.config.fields import (
    AnyPath,
    Method,
    OneWordOr,
    OrOneWord,
    Section,
    WhereModel,
    extra_path,
    wrong,
)

_KINDS: Final[dict[str, BodyKind]] = {"body": "json", "query": "query", "none": "none"}


class ExtraPathConfig(Section):
    """A path to forward, how it is asked for, and where it names its model."""

    method: Method = Field("POST", description="GET or POST.")
    model: WhereModel | None = Field(
        None,
        description="Where the model is named: in the JSON body (default of POST), in the query (of GET), "
        "or none: then any server that has the path will do.",
    )
    path: AnyPath = Field(description="The path, such as /v1/audio/voices.")

    @field_validator("model")
    @classmethod
    def _is_where_it_can_be(cls, model: str | None, info: ValidationInfo) -> str | None:
        if model == "body" and info.data.get("method") == "GET":
            raise wrong("a GET has no body to name a model in; write query or none")
        return model

    @field_validator("path")
    @classmethod
    def _is_not_forwarded_anyway(cls, path: str, info: ValidationInfo) -> str:
        if info.data.get("method") == "POST":
            try:
                addresses.extra_path(path)
            except ValueError as exc:
                raise wrong(f"'{path}' {exc}") from None
        return path

    @property
    def names_model_in(self) -> BodyKind:
        """Where a request names its model, as the table of endpoints has it."""
        return _KINDS[self.model or ("query" if self.method == "GET" else "body")]


ExtraEntry = OrOneWord[Annotated[ExtraPathConfig | str, OneWordOr(ExtraPathConfig, extra_path)]]
