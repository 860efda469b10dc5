"""The settings of users: who may call, with which keys, and how much.

The rules of `settings` hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import Field, GetCoreSchemaHandler, ValidationInfo, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

from llmgateway.config import values
from llmgateway.config.fields import (
    Amount,
    Flag,
    KeyDigest,
    KeyHash,
    ListOf,
    ModelNames,
    Moment,
    Name,
    Network,
    OrNothing,
    OrOneWord,
    PersonHeader,
    PlainKey,
    Route,
    Section,
    Weight,
    single,
    wrong,
)
from llmgateway.config.tree import Scalar


class LimitsConfig(Section):
    """How much a user or a key may use; what is unset has no limit."""

    requests_per_minute: Amount | None = Field(None, description="Requests in a minute.")
    tokens_per_minute: Amount | None = Field(
        None, description="Tokens in a minute, prompts and answers together."
    )
    tokens_per_day: Amount | None = Field(None, description="Tokens in a day, prompts and answers together.")
    parallel: Amount | None = Field(None, description="Requests at the same time.")


NO_LIMITS: Final = LimitsConfig()


class KeyEntry(Section):
    """An API key as the file has it: `sha256:...`, the key itself, or a mapping with one of them."""

    name: Name | None = Field(None, description="What the key is for; shown in logs.")
    hash: KeyHash | None = Field(
        None, description="sha256: and 64 hex digits, as `python gateway.py key USER` prints it."
    )
    key: PlainKey | None = Field(
        None, description="The key itself; better from the environment, as ${NAME}.", validate_default=True
    )
    expires: Moment | None = Field(
        None, description="Last day (UTC) or the exact moment until which the key is good."
    )
    models: ModelNames | None = Field(
        None, description="Models that the key may use, as patterns such as qwen3-*; unset: all."
    )
    limits: OrNothing[LimitsConfig] = Field(
        NO_LIMITS, description="How much this key may use, of what its user may."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_one_word(cls, value: object) -> object:
        if not isinstance(value, (Scalar, str)):
            return value
        return {"hash" if values.is_hash(single(value).text) else "key": value}

    @field_validator("key")
    @classmethod
    def _one_of_both(cls, key: KeyDigest | None, info: ValidationInfo) -> KeyDigest | None:
        if "hash" not in info.data:  # it is there, but wrong
            return key
        if (key is None) == (info.data["hash"] is None):
            raise wrong(
                "exactly one of `hash` and `key` is needed; `python gateway.py key USER` prints a hash"
            )
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """An API key as the gateway knows it."""

    name: str | None = None
    digest: bytes = field(repr=False)  # SHA-256 of the whole key
    expires_at: float | None = None  # epoch seconds
    models: tuple[str, ...] = ()  # patterns; none: all models
    plain: bool = False  # written unhashed in the file
    limits: LimitsConfig = NO_LIMITS

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(_key_config, handler.generate_schema(KeyEntry))


def _key_config(value: object, handler: Callable[[object], KeyEntry]) -> KeyConfig:
    if isinstance(value, KeyConfig):
        return value
    entry = handler(value)
    one = entry.hash or entry.key
    assert one is not None  # _one_of_both
    return KeyConfig(
        name=entry.name,
        digest=one.sha256,
        expires_at=entry.expires,
        models=entry.models or (),
        plain=one.literal,
        limits=entry.limits,
    )


class UserConfig(Section):
    """Somebody who may call the gateway."""

    admin: Flag = Field(
        False, description="Whether they see what everybody does, and /metrics from everywhere."
    )
    keys: ListOf[OrOneWord[KeyConfig]] = Field((), description="The API keys of this user.")
    networks: ListOf[Network] = Field(
        (),
        alias="from",
        description="Networks from which requests without a key are taken for this user's.",
    )
    route: Route = Field(
        "any", description="Which of the usable providers: any, their own first, or only their own."
    )
    limits: OrNothing[LimitsConfig] = Field(
        NO_LIMITS, description="How much they may use, with all their keys together."
    )
    weight: Weight = Field(1.0, description="Their share of a busy provider, compared with other users.")
    person_header: PersonHeader | None = Field(
        None,
        description="Request header by which their clients name the person behind the key, for whom usage, "
        "share and limits are kept then; unset: nobody is named.",
    )
