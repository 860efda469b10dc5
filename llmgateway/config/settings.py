"""What can be configured: the models of the file, with the type, the default and the limits of every setting.

Rules:

- The models hold only what the gateway acts upon; a key that does nothing is unknown.
- Leaves are read from text (`tree.Scalar`) or plain Python values, through the same functions of `values`.
- No message and no repr shows a key, an api_key, a header's value or anything that came from the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmgateway.config import addresses, values
from llmgateway.config.tree import Scalar, from_python, quoted

T = TypeVar("T")


# --- Single values --------------------------------------------------------------------------------


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{message}", {"message": message})


def _scalar(value: object) -> Scalar:
    """The one value that is wanted here; plain Python values come from code that builds a config itself."""
    if value is None:
        raise _wrong("nothing stands here; write a value, or leave the line out")
    try:
        node = from_python(value)
    except TypeError:
        raise _wrong(f"a {type(value).__name__} cannot stand here; write a single value") from None
    if not isinstance(node, Scalar):
        raise _wrong("a single value belongs here; write one, without a list or a mapping")
    if node.broken:
        raise PydanticCustomError("reported", "reported already")
    return node


def _reader(convert: Callable[[str], T], noun: str, *, bare: str = "") -> Callable[[object], T]:
    """Read one value; the noun stands for it in messages where it may be a secret, else it is quoted.

    `bare` says what is to be written without quotes, if the value must be.
    """

    def check(value: object) -> T:
        scalar = _scalar(value)
        try:
            if bare and not scalar.bare:
                raise ValueError(f"is text; write {bare} without quotes")
            return convert(scalar.text)
        except ValueError as exc:
            raise _wrong(f"{noun or quoted(scalar)} {exc}") from None

    return check


def _value(convert: Callable[[str], Any], noun: str = "", *, bare: str = "") -> BeforeValidator:
    return BeforeValidator(_reader(convert, noun, bare=bare))


def _number(convert: Callable[[str], Any]) -> BeforeValidator:
    return _value(convert, bare="the number")


_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}


@dataclass(frozen=True, slots=True)
class _Also:
    """Let the JSON Schema accept what the file accepts beside the type itself."""

    other: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(core), dict(self.other)]}


_OR_NOTHING: Final = _Also({"type": "null"})


def _or_variable(**json_schema: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [json_schema, _VARIABLE]})


# A word that YAML or an editor takes for a number or a boolean (`1.5`, `on`) is text here all the same.
_WORD: Final = WithJsonSchema({"type": ["string", "number", "boolean"]})
_LENGTH_OF_TIME: Final = WithJsonSchema(
    {"type": ["string", "number"], "examples": ["500ms", "10s", "15m", "1h30m", 10]}
)

_SIZE: Final = WithJsonSchema({"type": ["string", "integer"], "examples": ["100MB", "64KiB"]})

Port = Annotated[int, _number(values.port), _or_variable(type="integer", minimum=0, maximum=65535)]
Count = Annotated[int, _number(values.count), _or_variable(type="integer", minimum=1)]
Weight = Annotated[float, _number(values.weight), _or_variable(type="number", exclusiveMinimum=0)]
Amount = Annotated[
    int,
    _number(values.amount),
    WithJsonSchema({"type": ["string", "integer"], "examples": [60, "500k", "2M"]}),
]
Flag = Annotated[bool, _value(values.flag, bare="true or false"), _or_variable(type="boolean")]
Size = Annotated[int, _value(values.size), _SIZE]
LogSize = Annotated[int, _value(values.log_size), _SIZE]
LogCount = Annotated[
    int, _number(values.log_count), _or_variable(type="integer", minimum=0, maximum=values.MOST_LOGS)
]
Duration = Annotated[float, _value(values.duration), _LENGTH_OF_TIME]
Patience = Annotated[float, _value(values.positive_duration), _LENGTH_OF_TIME]
Mac = Annotated[str, _value(addresses.mac), _WORD]
Broadcast = Annotated[str, _value(addresses.broadcast), _WORD]
Moment = Annotated[
    float, _value(values.moment), WithJsonSchema({"type": "string", "examples": ["2027-06-30"]})
]
Host = Annotated[str, _value(addresses.host), _WORD]
Url = Annotated[str, _value(addresses.base_url, "the URL"), WithJsonSchema({"type": "string"})]
ExtraPath = Annotated[str, _value(addresses.extra_path), WithJsonSchema({"type": "string"})]
BasePath = Annotated[str, _value(addresses.base_path), WithJsonSchema({"type": "string"})]
Origin = Annotated[str, _value(addresses.origin), WithJsonSchema({"type": "string"})]
Network = Annotated[IPv4Network | IPv6Network, _value(addresses.network), WithJsonSchema({"type": "string"})]
FilePath = Annotated[str, _value(values.file_path), _WORD]
LogPath = Annotated[str | None, _value(values.log_path), _WORD]
Name = Annotated[str, _value(values.name), _WORD]
FreeName = Annotated[str, _value(values.free_name), WithJsonSchema({"type": "string"})]
Reference = Annotated[str, _value(str), _WORD]  # whether it names anybody, `references` knows
Model = Annotated[str, _value(values.model), _WORD]
ApiKey = Annotated[str, _value(values.api_key, "the api_key"), _WORD]
HeaderName = Annotated[str, _value(values.header_name), WithJsonSchema({"type": "string"})]
HeaderValue = Annotated[str, _value(values.header_value, "the value of this header"), _WORD]
Route = Annotated[Literal["any", "prefer_own", "only_own"], _value(str), _Also(_VARIABLE)]
Level = Annotated[Literal["debug", "info", "warning", "error"], _value(str), _Also(_VARIABLE)]
Format = Annotated[Literal["text", "json"], _value(str), _Also(_VARIABLE)]


# --- Collections of values ------------------------------------------------------------------------


def _mapping(value: object) -> object:
    """A section with nothing in it, or only comments, is an empty one."""
    if value is None:
        return {}
    if isinstance(value, (Scalar, str, int, float, list, tuple)):
        raise _wrong("a mapping belongs here: indented lines such as `name: value`")
    return value


def _list(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, (Scalar, str, int, float)):
        raise _wrong("a list belongs here; put the value in brackets: [one, two]")
    if isinstance(value, dict):
        raise _wrong("a list belongs here; write `- one` on lines of their own, or [one, two]")
    return value


def _names_models(value: object) -> object:
    """An empty list reads like "none" but would mean "all"."""
    if isinstance(value, (list, tuple)) and not value:
        raise _wrong("an empty list names no model; name one, or leave the line out")
    return None if value is None else _list(value)


_LIST: Final = BeforeValidator(_list)
_MAPPING: Final = BeforeValidator(_mapping)
Models = Annotated[tuple[Model, ...], BeforeValidator(_names_models)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, value: object) -> object:
        return _mapping(value)


# --- The file -------------------------------------------------------------------------------------


class TlsConfig(Section):
    """The certificate with which the gateway speaks HTTPS itself."""

    cert: FilePath = Field(description="The file of the certificate and its chain, in PEM.")
    key: FilePath = Field(description="The file of its private key, in PEM, without a passphrase.")


LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class ServerConfig(Section):
    """Where the gateway listens, and what it lets in."""

    host: Host = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 is every IPv4 address of this machine."
    )
    port: Port = Field(8900, description="TCP port to listen on; 0 is any free one.")
    base_path: BasePath = Field(
        "", description="What stands before every path, such as /llm, when a reverse proxy passes it on."
    )
    tls: TlsConfig | None = Field(None, description="Speak HTTPS with this certificate; unset: plain HTTP.")
    max_body: Size = Field(100_000_000, description="Largest request body; larger ones get 413.")
    cors: Annotated[tuple[Origin, ...], _LIST, _OR_NOTHING] = Field(
        (), description='Web pages that may call from a browser: their origins, or "*" for all.'
    )
    trusted_proxies: Annotated[tuple[Network, ...], _LIST, _OR_NOTHING] = Field(
        (), description="Networks whose reverse proxies are believed when they name the client's address."
    )
    metrics_from: Annotated[tuple[Network, ...], _LIST, _OR_NOTHING] = Field(
        LOOPBACK, description="Networks that may read /metrics without a key; none: only an admin's key may."
    )
    extra_paths: Annotated[tuple[ExtraPath, ...], _LIST, _OR_NOTHING] = Field(
        (), description="More paths to forward, beside the OpenAI endpoints; their JSON bodies name a model."
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


@dataclass(frozen=True, slots=True)
class _Digest:
    sha256: bytes
    literal: bool  # the key itself stands in the file


def _hash(value: object) -> _Digest:
    return _Digest(_reader(values.hash_digest, "the hash")(value), literal=False)


def _key(value: object) -> _Digest:
    return _Digest(_reader(values.key_digest, "the key")(value), literal=not _scalar(value).from_env)


class KeyEntry(Section):
    """An API key as the file has it: `sha256:...`, the key itself, or a mapping with one of them."""

    name: Name | None = Field(None, description="What the key is for; shown in logs.")
    hash: Annotated[_Digest, PlainValidator(_hash), WithJsonSchema({"type": "string"})] | None = Field(
        None, description="sha256: and 64 hex digits, as `python gateway.py key USER` prints it."
    )
    key: Annotated[_Digest, PlainValidator(_key), _WORD] | None = Field(
        None, description="The key itself; better from the environment, as ${NAME}.", validate_default=True
    )
    expires: Moment | None = Field(
        None, description="Last day (UTC) or the exact moment until which the key is good."
    )
    models: Models | None = Field(
        None, description="Models that the key may use, as patterns such as qwen3-*; unset: all."
    )
    limits: Annotated[LimitsConfig, _OR_NOTHING] = Field(
        NO_LIMITS, description="How much this key may use, of what its user may."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_one_word(cls, value: object) -> object:
        if not isinstance(value, (Scalar, str)):
            return value
        return {"hash" if values.is_hash(_scalar(value).text) else "key": value}

    @field_validator("key")
    @classmethod
    def _one_of_both(cls, key: _Digest | None, info: ValidationInfo) -> _Digest | None:
        if "hash" not in info.data:  # it is there, but wrong
            return key
        if (key is None) == (info.data["hash"] is None):
            raise _wrong(
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
    keys: Annotated[tuple[Annotated[KeyConfig, _Also({"type": "string"})], ...], _LIST, _OR_NOTHING] = Field(
        (), description="The API keys of this user."
    )
    route: Route = Field(
        "any", description="Which of the usable providers: any, their own first, or only their own."
    )
    limits: Annotated[LimitsConfig, _OR_NOTHING] = Field(
        NO_LIMITS, description="How much they may use, with all their keys together."
    )
    weight: Weight = Field(1.0, description="Their share of a busy provider, compared with other users.")


class TimeoutsConfig(Section):
    """How long to wait for a provider."""

    connect: Patience = Field(3.0, description="For the connection.")
    first_byte: Patience = Field(
        900.0, description="For the first byte of the answer: model loading and prompt processing."
    )
    idle: Patience = Field(300.0, description="Between two pieces of an answer.")


class WakeConfig(Section):
    """How to wake a machine that sleeps (wake-on-LAN)."""

    mac: Mac = Field(description="The MAC address of its network card.")
    broadcast: Broadcast = Field("255.255.255.255", description="Where the packet goes: a broadcast address.")


class ProviderConfig(Section):
    """An LLM server."""

    url: Url = Field(description="Base URL of its OpenAI API; without a path, /v1 is meant.")
    owner: Reference | None = Field(
        None, description="The user whose server this is; unset: it belongs to everybody."
    )
    share: Annotated[tuple[Reference, ...], _LIST, _OR_NOTHING] = Field(
        (), description="Users and groups who may use it beside its owner, or `everyone`."
    )
    api_key: ApiKey | None = Field(
        None, repr=False, description="The key this server wants, sent as a Bearer token."
    )
    headers: Annotated[dict[HeaderName, HeaderValue], _MAPPING, _OR_NOTHING] = Field(
        {}, repr=False, description="Headers to send with every request to it."
    )
    slots: Count | None = Field(
        None, description="How many requests it works on at once; unset: ask the server, else no limit."
    )
    weight: Weight = Field(1.0, description="Its share of the requests, compared with the other providers.")
    models: Models | None = Field(None, description="What it serves; unset: ask the server, and keep asking.")
    timeouts: Annotated[TimeoutsConfig, _OR_NOTHING] = Field(
        TimeoutsConfig(), description="How long to wait for it."
    )
    wake: WakeConfig | None = Field(None, description="How to wake it when it is needed and asleep.")

    @field_validator("headers")
    @classmethod
    def _each_once(cls, headers: dict[str, str]) -> dict[str, str]:
        if len({name.lower() for name in headers}) < len(headers):
            raise _wrong(
                "two of the names differ only in upper and lower case, which is the same header; keep one"
            )
        return headers


class HealthConfig(Section):
    """How providers are watched."""

    interval: Patience = Field(10.0, description="Time between two probes of a provider.")
    timeout: Patience = Field(5.0, description="How long a probe may take.")
    fall: Count = Field(2, description="Failed probes in a row until a provider is offline.")
    rise: Count = Field(1, description="Good probes in a row until it is online again.")


class QueueConfig(Section):
    """Where requests wait when all slots are taken."""

    size: Count = Field(100, description="How many requests may wait for one model; more get 503.")
    timeout: Patience = Field(300.0, description="How long a request may wait.")


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

    headers: Annotated[tuple[HeaderName, ...], _LIST, _OR_NOTHING] = Field(
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

    server: Annotated[ServerConfig, _OR_NOTHING] = Field(
        ServerConfig(), description="Where the gateway listens, and what it lets in."
    )
    users: Annotated[dict[FreeName, Annotated[UserConfig, _OR_NOTHING]], _MAPPING, _OR_NOTHING] = Field(
        {}, description="Who may call, by name."
    )
    groups: Annotated[
        dict[FreeName, Annotated[tuple[Reference, ...], _LIST, _OR_NOTHING]], _MAPPING, _OR_NOTHING
    ] = Field({}, description="Names for several users, to share providers with.")
    providers: Annotated[dict[Name, ProviderConfig], _MAPPING, _OR_NOTHING] = Field(
        {}, description="The LLM servers, by name."
    )
    health: Annotated[HealthConfig, _OR_NOTHING] = Field(
        HealthConfig(), description="How providers are watched."
    )
    queue: Annotated[QueueConfig, _OR_NOTHING] = Field(
        QueueConfig(), description="Where requests wait when all slots are taken."
    )
    streams: Annotated[StreamsConfig, _OR_NOTHING] = Field(
        StreamsConfig(), description="What happens while a stream says nothing."
    )
    affinity: Annotated[AffinityConfig, _OR_NOTHING] = Field(
        AffinityConfig(), description="How a conversation stays where its cache is."
    )
    log: Annotated[LogConfig, _OR_NOTHING] = Field(
        LogConfig(), description="What the gateway writes: events to standard error, requests to a file."
    )
