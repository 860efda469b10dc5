"""What can be configured: the models of the file, with the default and the meaning of every setting.

Rules:

- The models hold only what the gateway acts upon; a key that does nothing is unknown.
- No message and no repr shows a key, an api_key, a header's value or anything that came from the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from llmgateway.config import values
from llmgateway.config.extra import ExtraEntry
from llmgateway.config.fields import (
    Amount,
    ApiKey,
    BasePath,
    Broadcast,
    Count,
    Duration,
    FilePath,
    Flag,
    Format,
    FreeName,
    HeaderName,
    HeaderValue,
    Hosts,
    KeyDigest,
    KeyHash,
    Level,
    ListOf,
    LogCount,
    LogPath,
    LogSize,
    Mac,
    MappingOf,
    ModelName,
    ModelNames,
    Moment,
    Name,
    Network,
    Origin,
    OrNothing,
    OrOneWord,
    OwnHeaderName,
    PersonHeader,
    PlainKey,
    Port,
    PositiveDuration,
    Proxy,
    Reference,
    Route,
    Section,
    Size,
    SocketPath,
    UnavailableStatus,
    Url,
    Weight,
    single,
    wrong,
)
from llmgateway.config.tree import Scalar

# --- The file -------------------------------------------------------------------------------------


class TlsConfig(Section):
    """The certificate with which the gateway speaks HTTPS itself."""

    cert: FilePath = Field(description="The file of the certificate and its chain, in PEM.")
    key: FilePath = Field(description="The file of its private key, in PEM, without a passphrase.")


LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class ServerConfig(Section):
    """Where the gateway listens, and what it lets in."""

    host: Hosts = Field(
        ("127.0.0.1",),
        description="Address to listen on, or a list; 0.0.0.0 is every IPv4 address here, :: every address.",
    )
    port: Port = Field(8900, description="TCP port to listen on; 0 is any free one.")
    listen: SocketPath | None = Field(
        None, description="A Unix socket to listen on, unix:PATH, in the place of host and port."
    )
    base_path: BasePath = Field(
        "", description="What stands before every path, such as /llm, when a reverse proxy passes it on."
    )
    tls: TlsConfig | None = Field(None, description="Speak HTTPS with this certificate; unset: plain HTTP.")
    max_body: Size = Field(100_000_000, description="Largest request body; larger ones get 413.")
    cors: ListOf[Origin] = Field(
        (), description='Web pages that may call from a browser: their origins, or "*" for all.'
    )
    trusted_proxies: ListOf[Network] = Field(
        (), description="Networks whose reverse proxies are believed when they name the client's address."
    )
    metrics_from: ListOf[Network] = Field(
        LOOPBACK, description="Networks that may read /metrics without a key; none: only an admin's key may."
    )
    extra_paths: ListOf[ExtraEntry] = Field(
        (),
        description="More paths to forward: those whose JSON bodies name a model, or path, method and model.",
    )
    default_model: ModelName | None = Field(
        None, description="The model of requests that name none; unset: they are refused."
    )
    unavailable_status: UnavailableStatus = Field(
        404, description="What a request gets for a model whose servers are all away: 404, or 503."
    )
    drain_timeout: Duration = Field(
        30.0, description="How long requests may take to finish when the gateway stops."
    )


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


class TimeoutsConfig(Section):
    """How long to wait for a provider."""

    connect: PositiveDuration = Field(3.0, description="For the connection.")
    first_byte: PositiveDuration = Field(
        900.0, description="For the first byte of the answer: model loading and prompt processing."
    )
    idle: PositiveDuration = Field(300.0, description="Between two pieces of an answer.")


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
    models: ModelNames | None = Field(
        None, description="What it serves; unset: ask the server, and keep asking."
    )
    timeouts: OrNothing[TimeoutsConfig] = Field(TimeoutsConfig(), description="How long to wait for it.")
    wake: WakeConfig | None = Field(None, description="How to wake it when it is needed and asleep.")

    @field_validator("headers")
    @classmethod
    def _each_once(cls, headers: dict[str, str]) -> dict[str, str]:
        if len({name.lower() for name in headers}) < len(headers):
            raise wrong(
                "two of the names differ only in upper and lower case, which is the same header; keep one"
            )
        return headers


class HealthConfig(Section):
    """How providers are watched."""

    interval: PositiveDuration = Field(10.0, description="Time between two probes of a provider.")
    timeout: PositiveDuration = Field(5.0, description="How long a probe may take.")
    fall: Count = Field(2, description="Failed probes in a row until a provider is offline.")
    rise: Count = Field(1, description="Good probes in a row until it is online again.")


class QueueConfig(Section):
    """Where requests wait when all slots are taken."""

    size: Count = Field(100, description="How many requests may wait for one model; more get 503.")
    timeout: PositiveDuration = Field(300.0, description="How long a request may wait.")


class StreamsConfig(Section):
    """What happens while a stream says nothing."""

    keepalive: Duration = Field(
        15.0,
        description="Silence after which a stream gets an SSE comment, so that no proxy cuts it; 0: never.",
    )


SESSION_HEADERS: Final = (
    "x-session-id",
    "x-session-affinity",
    "x-claude-code-session-id",
    "x-opencode-session",
    "x-openwebui-chat-id",
    "x-open-webui-chat-id",
    "x-amp-thread-id",
    "x-conversation-id",
    "session-id",
    "session_id",
    "conversation_id",
)


class AffinityConfig(Section):
    """How a conversation is recognised, to stay where its cache is."""

    headers: ListOf[HeaderName] = Field(
        SESSION_HEADERS, description="Request headers that hold a session id, the first one found counts."
    )


class LogConfig(Section):
    """What the gateway writes: events to standard error, requests to a file."""

    level: Level = Field("info", description="The least important events to write.")
    format: Format = Field("text", description="text for people, json for programs: one event per line.")
    requests: LogPath = Field(
        "requests.jsonl",
        description="The file that gets a line of JSON for each request; none: it is not written.",
    )
    requests_size: LogSize = Field(
        50_000_000, description="How large that file grows before the next one is begun."
    )
    requests_keep: LogCount = Field(10, description="How many older files are kept beside it.")


class Config(Section):
    """The whole file."""

    server: OrNothing[ServerConfig] = Field(
        ServerConfig(), description="Where the gateway listens, and what it lets in."
    )
    users: MappingOf[FreeName, OrNothing[UserConfig]] = Field({}, description="Who may call, by name.")
    groups: MappingOf[FreeName, ListOf[Reference]] = Field(
        {}, description="Names for several users, to share providers with."
    )
    providers: MappingOf[Name, ProviderConfig] = Field({}, description="The LLM servers, by name.")
    health: OrNothing[HealthConfig] = Field(HealthConfig(), description="How providers are watched.")
    queue: OrNothing[QueueConfig] = Field(
        QueueConfig(), description="Where requests wait when all slots are taken."
    )
    streams: OrNothing[StreamsConfig] = Field(
        StreamsConfig(), description="What happens while a stream says nothing."
    )
    affinity: OrNothing[AffinityConfig] = Field(
        AffinityConfig(), description="How a conversation stays where its cache is."
    )
    log: OrNothing[LogConfig] = Field(
        LogConfig(), description="What the gateway writes: events to standard error, requests to a file."
    )
