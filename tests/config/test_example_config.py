"""The example config is the manual: valid as it stands, complete, and accepted by the schema for editors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmgateway.api.endpoints import BY_NAME
from llmgateway.config.fields import Section
from llmgateway.config.load import SECTIONS, Loaded, parse, schema
from llmgateway.config.providers import ProviderConfig, TimeoutsConfig, WakeConfig
from llmgateway.config.settings import (
    LOOPBACK,
    SESSION_HEADERS,
    AffinityConfig,
    ClusterConfig,
    HealthConfig,
    LogConfig,
    QueueConfig,
    ServerConfig,
    StreamsConfig,
    TlsConfig,
)
from llmgateway.config.users import NO_LIMITS, KeyEntry, LimitsConfig, UserConfig
from llmgateway.servers.known import BY_KIND

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "config.example.yaml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
MODELS = tuple(dict.fromkeys(model for _, model in SECTIONS))


def uncommented(text: str) -> str:
    """The commented example of a whole provider as YAML, with its users."""
    block = re.search(r"^# providers:\n(#.*\n)+", text, re.MULTILINE)
    assert block is not None
    lines = (line.removeprefix("# ") for line in block[0].splitlines())
    return "\n".join([*lines, "users: {bob: {}}", "groups: {family: [bob]}"])


def read(text: str, **environ: str) -> Loaded:
    return parse(text, file=EXAMPLE.name, environ=environ, now=1_800_000_000.0)


def test_the_example_is_valid_without_an_environment_and_has_no_warnings() -> None:
    assert read(TEXT).warnings == ()


def test_it_begins_with_two_providers_and_one_user_which_alone_are_a_config() -> None:
    first_screen = TEXT.split("# That is a complete config.")[0]
    assert len(first_screen.splitlines()) <= 24
    loaded = read(first_screen)
    assert (len(loaded.config.providers), len(loaded.config.users), loaded.warnings) == (2, 1, ())


def test_the_commented_provider_is_valid_and_complete() -> None:
    text = uncommented(TEXT)
    assert read(text, OFFICE_GPU_KEY="a-key").config.providers["office-gpu"].api_key == "a-key"
    written = yaml.safe_load(text)["providers"]["office-gpu"]
    assert {*written, "api_key_file"} == set(ProviderConfig.model_fields), "there is an api_key already"
    assert set(written["timeouts"]) == set(TimeoutsConfig.model_fields)
    assert set(written["wake"]) == set(WakeConfig.model_fields)


def test_every_kind_and_every_endpoint_is_named_here_and_every_endpoint_in_the_docs() -> None:
    explained = re.search(r"^#     # What kind of server(.*\n)*?#     endpoints:", TEXT, re.MULTILINE)
    assert explained is not None
    table = (EXAMPLE.parent / "docs" / "servers" / "index.md").read_text("utf-8")
    assert {*BY_KIND, *BY_NAME} <= {*re.findall(r"\w+", explained[0])}
    assert {*BY_NAME} <= {*re.findall(r"`(\w+)`", table)}


def test_every_model_has_its_place_in_the_file() -> None:
    assert {model.__name__ for model in MODELS} == {*schema()["$defs"], "Config"}


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in MODELS for name in model.model_fields], ids=str
)
def test_every_setting_is_named(model: type[Section], name: str) -> None:
    text = TEXT[_start(model) :] if model in STARTS else TEXT
    name = model.model_fields[name].alias or name
    assert re.search(rf"^[ #-]*{name}:( |$)", text, re.MULTILINE), f"{model.__name__}.{name} is not explained"


OTHERS = {
    (ServerConfig, name)
    for name in (
        "listen base_path tls cors trusted_proxies metrics_from extra_paths default_model"
        " connections_per_address"
    ).split()
}
SIMPLE = [
    (model, name, info.default)
    for model in (ServerConfig, HealthConfig, QueueConfig, StreamsConfig, LogConfig, TimeoutsConfig)
    for name, info in model.model_fields.items()
    if (model, name) not in OTHERS
]


@pytest.mark.parametrize(("model", "name", "default"), SIMPLE, ids=str)
def test_the_default_that_it_tells_is_the_default(model: type[Section], name: str, default: object) -> None:
    explained = re.search(rf"((?:^ *#.*\n)*)^[ #]*{name}: .*", TEXT[_start(model) :], re.MULTILINE)
    assert explained is not None
    told = re.findall(r"Default: ([^ \n]*[^ \n.,])", explained[0])
    assert told
    assert getattr(model.model_validate({name: _value(told[-1])}), name) == default


def test_the_defaults_of_the_server_that_it_shows_are_the_defaults() -> None:
    server = read(TEXT).config.server
    assert server.base_path == ServerConfig().base_path == ""
    assert server.cors == ServerConfig().cors == ()
    assert server.trusted_proxies == ServerConfig().trusted_proxies == ()
    assert server.metrics_from == ServerConfig().metrics_from == LOOPBACK
    assert server.tls is ServerConfig().tls is None
    told = (
        'Default: "", nothing.\n  base_path: ',
        "Default: [], none.\n  cors: [",
        "Default: plain HTTP.\n  # tls:",
    )
    assert all(each in TEXT for each in (*told, "Default: [], none.\n  trusted_proxies: ["))


def test_the_defaults_of_a_user_that_it_tells_are_the_defaults() -> None:
    assert "Default: false.\n    admin: false" in TEXT
    assert "Default: no limits.\n    limits:" in TEXT
    assert (UserConfig().admin, UserConfig().limits) == (False, NO_LIMITS)
    for name in LimitsConfig.model_fields:
        assert re.search(rf"^      {name}: .*Default: no limit$", TEXT, re.MULTILINE)
        assert getattr(NO_LIMITS, name) is None


def test_the_commented_tls_is_valid_and_complete() -> None:
    block = re.search(r"^  # tls:\n(  #   .*\n)+", TEXT, re.MULTILINE)
    assert block is not None
    text = "server:\n" + block[0].replace("  # ", "  ")
    assert read(text).config.server.tls == TlsConfig(cert="fullchain.pem", key="privkey.pem")
    assert set(yaml.safe_load(text)["server"]["tls"]) == set(TlsConfig.model_fields)


def test_the_other_defaults_that_it_tells_are_the_defaults() -> None:
    assert read(TEXT).config.affinity == AffinityConfig(headers=SESSION_HEADERS) == AffinityConfig()
    assert "Default: 255.255.255.255" in TEXT[_start(WakeConfig) :]
    assert WakeConfig(mac="aabbccddeeff").broadcast == "255.255.255.255"
    assert read(TEXT).config.cluster == ClusterConfig(name=None, instances=1, limits=None) == ClusterConfig()
    for model in (UserConfig, ProviderConfig):
        assert re.search(r"Default: 1\.\n[# ]*weight: ", TEXT[_start(model) :])
        assert model.model_fields["weight"].default == 1.0


STARTS = {
    ServerConfig: "\nserver:",
    TlsConfig: "\n  # tls:",
    UserConfig: "\n  bob:",
    LimitsConfig: "\n    limits:",
    KeyEntry: "\n      - name: phone",
    ProviderConfig: "\n#   office-gpu:",
    TimeoutsConfig: "timeouts:",
    WakeConfig: "#     wake:",
    HealthConfig: "\nhealth:",
    QueueConfig: "\nqueue:",
    StreamsConfig: "\nstreams:",
    AffinityConfig: "\naffinity:",
    ClusterConfig: "\ncluster:",
    LogConfig: "\nlog:",
}


def _start(model: type[Section]) -> int:
    return TEXT.index(STARTS[model])


def _value(text: str) -> object:
    return int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)


# --- The schema accepts what the file accepts -----------------------------------------------------

TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def is_of(value: object, type_name: str) -> bool:
    if isinstance(value, bool) and type_name != "boolean":
        return False
    return isinstance(value, TYPES[type_name])


def complaints(value: Any, rule: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """The part of JSON Schema that ours uses."""
    if "$ref" in rule:
        yield from complaints(value, root["$defs"][rule["$ref"].rpartition("/")[2]], root, path)
    if "anyOf" in rule and all(any(complaints(value, each, root)) for each in rule["anyOf"]):
        yield f"{path}: none of {rule['anyOf']}"
    types = rule.get("type", [])
    if types and not any(is_of(value, each) for each in ([types] if isinstance(types, str) else types)):
        yield f"{path}: not {types}"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{path}: not in {rule['enum']}"
    if "pattern" in rule and isinstance(value, str) and not re.search(rule["pattern"], value):
        yield f"{path}: not like {rule['pattern']}"
    if isinstance(value, (int, float)) and not rule.get("minimum", value) <= value <= rule.get(
        "maximum", value
    ):
        yield f"{path}: out of range"
    if isinstance(value, list) and "items" in rule:
        for item in value:
            yield from complaints(item, rule["items"], root, f"{path}[]")
    if isinstance(value, dict):
        yield from complaints_about_keys(value, rule, root, path)


def complaints_about_keys(
    value: dict[str, Any], rule: dict[str, Any], root: dict[str, Any], path: str
) -> Iterator[str]:
    yield from (f"{path}: {name} is missing" for name in rule.get("required", []) if name not in value)
    for name, item in value.items():
        inner = rule.get("properties", {}).get(name, rule.get("additionalProperties", {}))
        if inner is False:
            yield f"{path}: {name} is unknown"
        else:
            yield from complaints(item, inner, root, f"{path}.{name}")


def of_editors(text: str) -> list[str]:
    rules = schema()
    return list(complaints(_json(yaml.safe_load(text)), rules, rules))


def _json(value: Any) -> Any:
    """As editors see it: JSON has no dates."""
    return json.loads(json.dumps(value, default=str))


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        uncommented(TEXT),
        "server:\nusers:\nproviders:\nhealth:\nqueue:\nstreams:\naffinity:\nlog:\ngroups:\n",
        "users:\n  alice:\n",
        "providers: {a: {url: http://a, models: [1.5, on], timeouts: {idle: 3}}}",
        "server: {port: '${PORT}', max_body: 100, drain_timeout: 1.5}",
        "log: {level: '${LEVEL:-info}'}",
        "users: {a: {keys: [a-plain-key, {key: a-plain-key2}], weight: 0.5}}",
        "providers: {a: {url: http://a, slots: 4, wake: {mac: 001122334455, broadcast: 10.0.0.255}}}",
        "providers: {a: {url: http://a, slots: '${PORT}', wake: {mac: 'aa:bb:cc:dd:ee:ff'}}}",
        "providers:\n  a:\n    url: http://a\n    slots:\n    wake:\n",
        "queue: {size: '${PORT}', timeout: 10}\nstreams: {keepalive: 0}\naffinity:\n  headers:\n",
        "affinity: {headers: [x-chat]}",
        "server: {base_path: /llm, tls: {cert: a, key: b}, cors: ['*'], trusted_proxies: [10.0.0.0/8]}",
        "server: {base_path: '${H}', tls: , cors: , trusted_proxies: , metrics_from: []}",
        "users: {a: {admin: true, limits: {parallel: 4, tokens_per_day: 2M, tokens_per_minute: '${PORT}'}}}",
        "users: {a: {admin: '${T}', limits: , keys: [{key: a-plain-key, limits: {parallel: }}]}}",
        "log: {requests: none, requests_size: 64KiB, requests_keep: 0}",
        "log: {requests: a.jsonl, requests_size: 70000, requests_keep: '${PORT}'}",
    ],
)
def test_the_schema_accepts_what_the_file_accepts(text: str) -> None:
    read(text, OFFICE_GPU_KEY="x", PORT="80", T="true", H="/llm")
    assert of_editors(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "prot: 1",
        "server: {port: x}",
        "server: {port: 70000}",
        "providers: {a: {}}",
        "log: {level: loud}",
        "users: [a]",
        "users: {a: {weight: much}}",
        "queue: {size: 0}",
        "queue: {size: many}",
        "streams: {keepalive: [1]}",
        "affinity: {headers: x-chat}",
        "providers: {a: {url: http://a, slots: 0}}",
        "providers: {a: {url: http://a, wake: {}}}",
        "providers: {a: {url: http://a, wake: {mac: aabbccddeeff, port: 9}}}",
        "server: {tls: {cert: a.pem}}",
        "server: {tls: a.pem}",
        "server: {cors: '*'}",
        "server: {metrics_from: 10.0.0.0/8}",
        "server: {base_path: 5}",
        "users: {a: {admin: 1}}",
        "users: {a: {admin: 'true'}}",
        "users: {a: {limits: 60}}",
        "users: {a: {limits: {per_hour: 60}}}",
        "users: {a: {limits: {parallel: [1]}}}",
        "users: {a: {keys: [{key: a-plain-key, limits: {parallel: 0.5}}]}}",
        "log: {requests: }",
        "log: {requests_size: 1.5}",
        "log: {requests_keep: -1}",
        "log: {requests_keep: 1001}",
    ],
)
def test_the_schema_refuses_what_the_file_refuses(text: str) -> None:
    assert of_editors(text)
