"""The types of the settings: how each is read from the file, and how the JSON Schema tells of it.

Rules:

- A value is read from text (`tree.Scalar`) or a plain Python value, through the same function of `values` or
  `addresses`.
- What does not fit is told in a sentence with what to write instead, and no message shows a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmgateway.api.endpoints import BY_NAME
from llmgateway.config import abilities, addresses, values
from llmgateway.config.tree import Scalar, from_python, quoted
from llmgateway.http import peers
from llmgateway.servers.known import BY_KIND

K = TypeVar("K")
T = TypeVar("T")


# --- Single values --------------------------------------------------------------------------------


def wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{message}", {"message": message})


def single(value: object) -> Scalar:
    """The one value that is wanted here; plain Python values come from code that builds a config itself."""
    if value is None:
        raise wrong("nothing stands here; write a value, or leave the line out")
    try:
        node = from_python(value)
    except TypeError:
        raise wrong(f"a {type(value).__name__} cannot stand here; write a single value") from None
    if not isinstance(node, Scalar):
        raise wrong("a single value belongs here; write one, without a list or a mapping")
    if node.broken:
        raise PydanticCustomError("reported", "reported already")
    return node


def _reader(convert: Callable[[str], T], noun: str, *, bare: str = "") -> Callable[[object], T]:
    """Read one value; the noun stands for it in messages where it may be a secret, else it is quoted.

    `bare` says what is to be written without quotes, if the value must be.
    """

    def check(value: object) -> T:
        scalar = single(value)
        try:
            if bare and not scalar.bare:
                raise ValueError(f"is text; write {bare} without quotes")
            return convert(scalar.text)
        except ValueError as exc:
            raise wrong(f"{noun or quoted(scalar)} {exc}") from None

    return check


def _value(convert: Callable[[str], Any], noun: str = "", *, bare: str = "") -> BeforeValidator:
    return BeforeValidator(_reader(convert, noun, bare=bare))


def _number(convert: Callable[[str], Any]) -> BeforeValidator:
    return _value(convert, bare="the number")


_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}


@dataclass(frozen=True, slots=True, eq=False)  # a dict has no hash, which `X | None` wants
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
UnavailableStatus = Annotated[int, _number(values.unavailable_status), _or_variable(enum=[404, 503])]
Count = Annotated[int, _number(values.count), _or_variable(type="integer", minimum=1)]
Instances = Annotated[
    int | Literal["own"],
    _value(values.instances),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["own"]}, _VARIABLE]}),
]
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
PositiveDuration = Annotated[float, _value(values.positive_duration), _LENGTH_OF_TIME]
Mac = Annotated[str, _value(addresses.mac), _WORD]
Broadcast = Annotated[str, _value(addresses.broadcast), _WORD]
Moment = Annotated[
    float, _value(values.moment), WithJsonSchema({"type": "string", "examples": ["2027-06-30"]})
]
Host = Annotated[str, _value(addresses.host), _WORD]
SocketPath = Annotated[str, _value(addresses.unix_socket), WithJsonSchema({"type": "string"})]
Url = Annotated[str, _value(addresses.base_url, "the URL"), WithJsonSchema({"type": "string"})]
AnyPath = Annotated[str, _value(addresses.free_path), WithJsonSchema({"type": "string"})]
Proxy = Annotated[
    addresses.ProxyAddress, _value(addresses.proxy, "the proxy"), WithJsonSchema({"type": "string"})
]
Redis = Annotated[
    addresses.RedisAddress, _value(addresses.redis, "the URL"), WithJsonSchema({"type": "string"})
]
Collector = Annotated[str, _value(addresses.collector, "the URL"), WithJsonSchema({"type": "string"})]
BasePath = Annotated[str, _value(addresses.base_path), WithJsonSchema({"type": "string"})]
Origin = Annotated[str, _value(addresses.origin), WithJsonSchema({"type": "string"})]
Network = Annotated[peers.Network, _value(addresses.network), WithJsonSchema({"type": "string"})]
FilePath = Annotated[str, _value(values.file_path), _WORD]
FolderPath = Annotated[str | None, _value(values.folder_path), _WORD]
LogPath = Annotated[str | None, _value(values.log_path), _WORD]
Name = Annotated[str, _value(values.name), _WORD]
FreeName = Annotated[str, _value(values.free_name), WithJsonSchema({"type": "string"})]
Reference = Annotated[str, _value(str), _WORD]  # whether it names anybody, `references` knows
ModelName = Annotated[str, _value(values.model), _WORD]
ApiKey = Annotated[str, _value(values.api_key, "the api_key"), _WORD]
HeaderName = Annotated[str, _value(values.header_name), WithJsonSchema({"type": "string"})]
PersonHeader = Annotated[str, _value(values.person_header), WithJsonSchema({"type": "string"})]
OwnHeaderName = Annotated[str, _value(values.own_header_name), WithJsonSchema({"type": "string"})]
HeaderValue = Annotated[str, _value(values.header_value, "the value of this header"), _WORD]
Route = Annotated[Literal["any", "prefer_own", "only_own"], _value(str), _Also(_VARIABLE)]
Method = Annotated[Literal["GET", "POST"], _value(str.upper), _Also(_VARIABLE)]
WhereModel = Annotated[
    Literal["body", "query", "none"],
    _value(str),
    _or_variable(type="string", enum=["body", "query", "none"]),
]
ServerKind = Annotated[str, _value(abilities.kind), _or_variable(enum=list(BY_KIND))]
EndpointName = Annotated[str, _value(abilities.endpoint), _or_variable(enum=list(BY_NAME))]
Level = Annotated[Literal["debug", "info", "warning", "error"], _value(str), _Also(_VARIABLE)]
Format = Annotated[Literal["text", "json"], _value(str), _Also(_VARIABLE)]


extra_path: Final = _reader(addresses.extra_path, "")
"""Reads a path that is written in one word."""
model_name: Final = _reader(values.model, "")
"""Reads the name of a model that is written in one word."""


# --- Collections of values ------------------------------------------------------------------------


def mapping(value: object) -> object:
    """A section with nothing in it, or only comments, is an empty one."""
    if value is None:
        return {}
    if isinstance(value, (Scalar, str, int, float, list, tuple)):
        raise wrong("a mapping belongs here: indented lines such as `name: value`")
    return value


def _list(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, (Scalar, str, int, float)):
        raise wrong("a list belongs here; put the value in brackets: [one, two]")
    if isinstance(value, dict):
        raise wrong("a list belongs here; write `- one` on lines of their own, or [one, two]")
    return value


def _names_some(what: str) -> Callable[[object], object]:
    """An empty list reads like "none" but would mean "all"."""

    def check(value: object) -> object:
        if isinstance(value, (list, tuple)) and not value:
            raise wrong(f"an empty list names no {what}; name one, or leave the line out")
        return None if value is None else _list(value)

    return check


# The first two are read in `settings`; only the JSON Schema has to be told.
OrNothing = Annotated[T, _OR_NOTHING]
OrOneWord = Annotated[T, _Also({"type": "string"})]
OrAnyWord = Annotated[T, _Also({"type": ["string", "number", "boolean"]})]
ListOf = Annotated[tuple[T, ...], BeforeValidator(_list), _OR_NOTHING]
MappingOf = Annotated[dict[K, T], BeforeValidator(mapping), _OR_NOTHING]
ModelNames = Annotated[tuple[ModelName, ...], BeforeValidator(_names_some("model"))]
ModelsOf = Annotated[tuple[T, ...], BeforeValidator(_names_some("model"))]
EndpointNames = Annotated[tuple[EndpointName, ...], BeforeValidator(_names_some("endpoint"))]


def _one_or_more(noun: str) -> BeforeValidator:
    """One value is as good as a list of it."""

    def check(value: object) -> object:
        if value is None or isinstance(value, (Scalar, str)):
            return (value,)
        if not _list(value):
            raise wrong(f"an empty list names no {noun}; name one, or leave the line out")
        return value

    return BeforeValidator(check)


Hosts = Annotated[tuple[Host, ...], _one_or_more("address"), _Also({"type": "string"})]
SomeModels = Annotated[tuple[ModelName, ...], _one_or_more("model"), _Also({"type": "string"})]


class Section(BaseModel):
    """A part of the file that is a mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, value: object) -> object:
        return mapping(value)


@dataclass(frozen=True, slots=True)
class OneWordOr:
    """Read an entry that is one word, which `read` checks, or a mapping of its own."""

    section: type[Section]
    read: Callable[[object], str]

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        as_mapping = handler.generate_schema(self.section)
        return core_schema.no_info_wrap_validator_function(self._entry, as_mapping)

    def _entry(self, value: object, as_mapping: Callable[[object], Section]) -> Section | str:
        return self.read(value) if value is None or isinstance(value, (Scalar, str)) else as_mapping(value)


# --- API keys -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyDigest:
    """The hash of a key, and how it came to be known."""

    sha256: bytes
    literal: bool  # the key itself stands in the file


def _hash(value: object) -> KeyDigest:
    return KeyDigest(_reader(values.hash_digest, "the hash")(value), literal=False)


def _key(value: object) -> KeyDigest:
    return KeyDigest(_reader(values.key_digest, "the key")(value), literal=not single(value).from_env)


KeyHash = Annotated[KeyDigest, PlainValidator(_hash), WithJsonSchema({"type": "string"})]
PlainKey = Annotated[KeyDigest, PlainValidator(_key), _WORD]
