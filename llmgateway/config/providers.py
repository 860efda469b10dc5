"""The settings of providers: where the LLM servers are, whose, and how they are spoken to.

The rules of `settings` hold.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from llmgateway.config.fields import (
    ApiKey,
    Broadcast,
    Count,
    EndpointNames,
    FilePath,
    Flag,
    HeaderValue,
    ListOf,
    Mac,
    MappingOf,
    ModelName,
    ModelsOf,
    OneWordOr,
    OrAnyWord,
    OrNothing,
    OwnHeaderName,
    PositiveDuration,
    Proxy,
    Reference,
    Section,
    ServerKind,
    Url,
    Weight,
    model_name,
    wrong,
)


class TimeoutsConfig(Section):
    """How long to wait for a provider."""

    connect: PositiveDuration = Field(3.0, description="For the connection.")
    first_byte: PositiveDuration = Field(
        900.0, description="For the first byte of the answer: model loading and prompt processing."
    )
    idle: PositiveDuration = Field(
        300.0, description="Between two pieces of an answer, or signs of life of a WebSocket."
    )


class TrustConfig(Section):
    """How the certificate of a provider that speaks HTTPS is checked."""

    ca: FilePath | None = Field(
        None,
        description="The file with the certificate of who has signed it, in PEM; unset: the system's.",
    )
    verify: Flag = Field(True, description="Whether it is checked at all.")


class WakeConfig(Section):
    """How to wake a machine that sleeps (wake-on-LAN)."""

    mac: Mac = Field(description="The MAC address of its network card.")
    broadcast: Broadcast = Field("255.255.255.255", description="Where the packet goes: a broadcast address.")


class ModelConfig(Section):
    """A model whose server knows it by another name than clients do."""

    name: ModelName = Field(description="What clients see.")
    told_as: ModelName = Field(alias="as", description="What the server is told.")


ModelEntry = OrAnyWord[Annotated[ModelConfig | str, OneWordOr(ModelConfig, model_name)]]


class ProviderConfig(Section):
    """An LLM server."""

    url: Url = Field(
        description="Base URL of its OpenAI API, or unix:SOCKET:PATH; no path means /v1, and /. the root."
    )
    owner: Reference | None = Field(
        None, description="The user whose server this is; unset: it belongs to everybody."
    )
    share: ListOf[Reference] = Field(
        (), description="Users and groups who may use it beside its owner, or `everyone`."
    )
    api_key: ApiKey | None = Field(
        None, repr=False, description="The key this server wants, sent as a Bearer token."
    )
    api_key_file: FilePath | None = Field(
        None, description="A file that holds the api_key, such as a secret of Docker or systemd."
    )
    headers: MappingOf[OwnHeaderName, HeaderValue] = Field(
        {}, repr=False, description="Headers to send with every request to it."
    )
    tls: OrNothing[TrustConfig] = Field(TrustConfig(), description="How its certificate is checked.")
    proxy: Proxy | None = Field(None, repr=False, description="A proxy to it: socks5:// or http://.")
    slots: Count | None = Field(
        None, description="How many requests it works on at once; unset: ask the server, else no limit."
    )
    weight: Weight = Field(1.0, description="Its share of the requests, compared with the other providers.")
    models: ModelsOf[ModelEntry] | None = Field(
        None,
        description="What it serves: names, or `name` for clients and `as` for the server; unset: ask the "
        "server, and keep asking.",
    )
    rename: MappingOf[ModelName, ModelName] = Field(
        {}, description="Other names for its models: what the server lists, and what clients see instead."
    )
    kind: ServerKind | None = Field(None, description="What kind of LLM server it is; unset: found out.")
    endpoints: EndpointNames | None = Field(
        None, description="All that it is asked for, by name; unset: what its kind has, less what it lacks."
    )
    timeouts: OrNothing[TimeoutsConfig] = Field(TimeoutsConfig(), description="How long to wait for it.")
    wake: WakeConfig | None = Field(None, description="How to wake it when it is needed and asleep.")

    @property
    def listed(self) -> dict[str, str] | None:
        """What the server is told for each model that it is said to serve, by what clients see."""
        if self.models is None:
            return None
        renamed = self.rename.get
        return dict((renamed(m, m), m) if isinstance(m, str) else (m.name, m.told_as) for m in self.models)

    @field_validator("headers")
    @classmethod
    def _each_once(cls, headers: dict[str, str]) -> dict[str, str]:
        if len({name.lower() for name in headers}) < len(headers):
            raise wrong(
                "two of the names differ only in upper and lower case, which is the same header; keep one"
            )
        return headers
