"""A config file becomes a Config, or all its problems at once, and no message ever shows a secret."""

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmgateway.config.addresses import ProxyAddress, RedisAddress
from llmgateway.config.load import Loaded, build, load, parse, schema
from llmgateway.config.providers import ProviderConfig, TimeoutsConfig, WakeConfig
from llmgateway.config.settings import (
    AffinityConfig,
    Config,
    LogConfig,
    QueueConfig,
    ServerConfig,
    StreamsConfig,
    TlsConfig,
)
from llmgateway.config.tree import ConfigError
from llmgateway.config.users import KeyConfig, LimitsConfig, UserConfig

NOW = 1_800_000_000.0  # 2027-01-15
HASH = "sha256:" + "ab" * 32
GOOD = f"users: {{alice: {{keys: ['{HASH}']}}}}\nproviders: {{rig: {{url: 'http://rig:8000'}}}}\n"


def loaded(text: str | bytes, **environ: str) -> Loaded:
    return parse(text, file="c.yaml", environ=environ, now=NOW)


def config(text: str, **environ: str) -> Config:
    return loaded(text, **environ).config


def problems(text: str | bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    return str(caught.value).split("\n")


def warnings(text: str, **environ: str) -> list[str]:
    return [str(warning) for warning in loaded(text, **environ).warnings]


def problem(text: str, **environ: str) -> str:
    (only,) = problems(text, **environ)
    return only


# --- Good files -----------------------------------------------------------------------------------

FULL = f"""
server:
  {{host: "::", port: 0, base_path: /llm/, max_body: 64KiB, extra_paths: [/v1/tokenize], drain_timeout: 1m30s,
  unavailable_status: 503, bodies_memory: 1MiB, min_rate: 512,
   tls: {{cert: tls/cert.pem, key: /etc/key.pem}}, cors: ["*", HTTPS://Chat.Example.net/],
   trusted_proxies: [172.16.0.0/12, "fd00::1"], metrics_from: [10.0.0.7]}}
users:
  alice:
    admin: true
    limits: {{requests_per_minute: 60, tokens_per_minute: 200k, tokens_per_day: 1.5M, parallel: 4}}
    keys:
      - {HASH}
      - {{name: laptop, hash: "sha256:{"CD" * 32}", expires: 2027-06-30, models: ["qwen3-*", 1.5, on]}}
      - {{name: ci, key: "${{CI_KEY}}", expires: 2027-06-30T12:00:00+02:00, limits: {{parallel: 1}}}}
    route: prefer_own
    weight: 2.5
  bob:
    keys: [bobs-own-key]
groups: {{family: [alice, bob]}}
providers:
  rig:
    url: HTTP://Rig.local:8000/
    owner: alice
    share: [family, everyone, bob]
    api_key: ${{RIG_KEY}}
    headers: {{X-Extra: 1, X-Empty: ""}}
    slots: 4
    weight: 0.5
    models: [1.5, on, qwen3-8b]
    kind: llamacpp
    endpoints: [chat, embeddings]
    wake: {{mac: AA-BB-CC-00-11-22, broadcast: 192.168.1.255}}
    timeouts: {{connect: 500ms, first_byte: 1h, idle: 7}}
health: {{interval: 1, timeout: 2.5s, fall: 3, rise: 4}}
queue: {{size: 7, timeout: 90s}}
streams: {{keepalive: 0}}
affinity: {{headers: [X-My-Chat, x-session-id]}}
log: {{level: debug, format: json, requests: log/r.jsonl, requests_size: 64KiB, requests_keep: 0}}
"""


def test_every_setting_arrives() -> None:
    made = config(FULL, CI_KEY="from-the-environment", RIG_KEY="rig-secret")
    assert made.server == ServerConfig(
        host="::",
        port=0,
        base_path="/llm",
        tls=TlsConfig(cert="tls/cert.pem", key="/etc/key.pem"),
        max_body=65536,
        bodies_memory=1 << 20,
        min_rate=512,
        cors=("*", "https://chat.example.net"),
        trusted_proxies=("172.16.0.0/12", "fd00::1"),
        metrics_from=("10.0.0.7",),
        extra_paths=("/v1/tokenize",),
        unavailable_status=503,
        drain_timeout=90.0,
    )
    assert made.server.trusted_proxies == (ip_network("172.16.0.0/12"), ip_network("fd00::1/128"))
    assert made.server.metrics_from == (ip_network("10.0.0.7/32"),)
    assert made.users["alice"] == UserConfig(
        admin=True,
        limits=LimitsConfig(
            requests_per_minute=60, tokens_per_minute=200_000, tokens_per_day=1_500_000, parallel=4
        ),
        keys=(
            KeyConfig(digest=b"\xab" * 32),
            KeyConfig(
                name="laptop",
                digest=b"\xcd" * 32,
                expires_at=1814400000.0,  # 2027-07-01T00:00:00Z
                models=("qwen3-*", "1.5", "on"),
            ),
            KeyConfig(
                name="ci",
                digest=sha256(b"from-the-environment").digest(),
                expires_at=1814349600.0,
                limits=LimitsConfig(parallel=1),
            ),
        ),
        route="prefer_own",
        weight=2.5,
    )
    assert made.users["bob"].keys == (KeyConfig(digest=sha256(b"bobs-own-key").digest(), plain=True),)
    assert made.groups == {"family": ("alice", "bob")}
    assert made.providers["rig"] == ProviderConfig(
        url="http://rig.local:8000/v1",
        owner="alice",
        share=("family", "everyone", "bob"),
        api_key="rig-secret",
        headers={"X-Extra": "1", "X-Empty": ""},
        slots=4,
        weight=0.5,
        models=("1.5", "on", "qwen3-8b"),
        kind="llamacpp",
        endpoints=("chat", "embeddings"),
        timeouts=TimeoutsConfig(connect=0.5, first_byte=3600.0, idle=7.0),
        wake=WakeConfig(mac="aabbcc001122", broadcast="192.168.1.255"),
    )
    assert (made.health.interval, made.health.timeout, made.health.fall, made.health.rise) == (1.0, 2.5, 3, 4)
    assert made.queue == QueueConfig(size=7, timeout=90.0)
    assert made.streams == StreamsConfig(keepalive=0.0)
    assert made.affinity == AffinityConfig(headers=("X-My-Chat", "x-session-id"))
    assert made.log == LogConfig(
        level="debug", format="json", requests="log/r.jsonl", requests_size=65536, requests_keep=0
    )


def test_what_is_left_out_has_its_default() -> None:
    made = config(GOOD)
    server, rig, health = made.server, made.providers["rig"], made.health
    assert (server.host, server.port, server.max_body, server.extra_paths) == (
        ("127.0.0.1",),
        8900,
        100_000_000,
        (),
    )
    assert (server.drain_timeout, server.base_path, server.tls) == (30.0, "", None)
    assert (server.cors, server.trusted_proxies) == ((), ())
    assert server.metrics_from == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert (rig.owner, rig.share, rig.api_key, rig.headers, rig.weight, rig.models) == (
        None,
        (),
        None,
        {},
        1.0,
        None,
    )
    assert rig.timeouts == TimeoutsConfig(connect=3.0, first_byte=900.0, idle=300.0)
    assert (health.interval, health.timeout, health.fall, health.rise) == (10.0, 5.0, 2, 1)
    assert (rig.slots, rig.wake) == (None, None)
    assert (made.queue.size, made.queue.timeout, made.streams.keepalive) == (100, 300.0, 15.0)
    assert "x-session-id" in made.affinity.headers
    assert all(name == name.lower() for name in made.affinity.headers)
    alice = made.users["alice"]
    assert (alice.route, alice.weight, made.log.level, made.log.format) == ("any", 1.0, "info", "text")
    assert (alice.admin, alice.limits, alice.keys[0].limits) == (False, LimitsConfig(), LimitsConfig())
    limits = alice.limits
    assert (limits.requests_per_minute, limits.tokens_per_minute) == (None, None)
    assert (limits.tokens_per_day, limits.parallel) == (None, None)
    log = made.log
    assert (log.requests, log.requests_size, log.requests_keep) == ("requests.jsonl", 50_000_000, 10)


def test_an_empty_section_is_one_that_is_left_out() -> None:
    text = "server:\n  tls:\n  cors:\n  trusted_proxies:\n"
    text += "users:\n  alice:\n    keys:\n    limits:\n      parallel:\ngroups:\n  g:\nproviders:\nhealth:\n"
    text += "queue:\nstreams:\naffinity:\nlog:\n"
    assert config(text) == Config(users={"alice": UserConfig()}, groups={"g": ()})


def test_words_that_yaml_takes_for_something_else_are_names() -> None:
    made = config("users: {on: {}, 123456: {}, no: {}}\ngroups: {yes: [on, 123456, no]}")
    assert list(made.users) == ["on", "123456", "no"]
    assert made.groups == {"yes": ("on", "123456", "no")}


def test_numbers_may_come_from_the_environment() -> None:
    text = "server: {port: '${PORT}'}\nhealth:\n  fall: ${FALL:-4}\n"
    text += "providers: {a: {url: 'http://a', weight: '${W}'}}"
    made = config(text, PORT="1234", W="2.5")
    assert (made.server.port, made.health.fall, made.providers["a"].weight) == (1234, 4, 2.5)


def test_slots_wake_and_the_queue_may_come_from_the_environment() -> None:
    text = "queue: {size: '${Q}', timeout: '${T}'}\nstreams: {keepalive: '${T}'}\n"
    text += "affinity: {headers: ['${H}']}\nusers: {a: {weight: '${Q}'}}\n"
    text += (
        "providers: {a: {url: 'http://a', slots: '${Q}', wake: {mac: '${M}', broadcast: '${B:-10.0.0.255}'}}}"
    )
    made = config(text, Q="3", T="20s", H="X-Chat", M="00:00:00:00:00:07")
    assert (made.queue, made.streams.keepalive) == (QueueConfig(size=3, timeout=20.0), 20.0)
    assert (made.affinity.headers, made.users["a"].weight) == (("X-Chat",), 3.0)
    assert made.providers["a"].slots == 3
    assert made.providers["a"].wake == WakeConfig(mac="000000000007", broadcast="10.0.0.255")


def test_base_path_admin_limits_and_the_request_log_may_come_from_the_environment() -> None:
    text = (
        "server: {base_path: '${P}', cors: ['${O}'], metrics_from: ['${N}'], tls: {cert: '${F}', key: b}}\n"
    )
    text += "users: {a: {admin: '${A}', limits: {tokens_per_day: '${L}'}}}\n"
    text += "log: {requests: '${R:-none}', requests_size: '${S}', requests_keep: '${K:-3}'}"
    made = config(text, P="/llm", O="HTTP://a:80", N="::1", F="c.pem", A="true", L="2M", S="1MB")
    assert (made.server.base_path, made.server.cors) == ("/llm", ("http://a",))
    assert made.server.metrics_from == (ip_network("::1/128"),)
    assert made.server.tls == TlsConfig(cert="c.pem", key="b")
    assert (made.users["a"].admin, made.users["a"].limits.tokens_per_day) == (True, 2_000_000)
    assert made.log == LogConfig(requests="none", requests_size=1_000_000, requests_keep=3)
    assert made.log.requests is None


@pytest.mark.parametrize("nothing", ["", "slots", "wake", "kind", "endpoints", "slots wake kind endpoints"])
def test_slots_wake_kind_and_endpoints_may_be_left_empty(nothing: str) -> None:
    lines = "".join(f"    {name}:\n" for name in nothing.split())
    rig = config(f"providers:\n  rig:\n    url: http://rig\n{lines}").providers["rig"]
    assert (rig.slots, rig.wake, rig.kind, rig.endpoints) == (None, None, None, None)


@pytest.mark.parametrize(
    "written",
    [
        "aa:bb:cc:00:11:22",
        "AA-BB-CC-00-11-22",
        "aabb.cc00.1122",
        "AABBCC001122",
        "'aa:bb:cc:00:11:22'",
    ],
)
def test_a_mac_address_is_read_in_all_usual_spellings(written: str) -> None:
    made = config(f"providers: {{a: {{url: 'http://a', wake: {{mac: {written}}}}}}}")
    assert made.providers["a"].wake == WakeConfig(mac="aabbcc001122", broadcast="255.255.255.255")


def test_a_mac_address_of_digits_is_not_taken_for_a_number() -> None:
    for written in ("00:11:22:33:44:55", "001122334455", "1:1"):
        text = f"providers: {{a: {{url: 'http://a', wake: {{mac: {written}}}}}}}"
        if written == "1:1":
            assert "'1:1' is not a MAC address" in problem(text)
        else:
            wake = config(text).providers["a"].wake
            assert wake is not None and wake.mac == "001122334455"


def test_a_list_of_session_headers_may_be_empty() -> None:
    assert config("affinity: {headers: []}").affinity.headers == ()


def test_a_hash_may_come_from_the_environment() -> None:
    assert config("users: {a: {keys: ['${K}']}}", K=HASH).users["a"].keys == (KeyConfig(digest=b"\xab" * 32),)


def test_an_api_key_with_an_empty_default_is_no_api_key() -> None:
    assert config("providers:\n  a:\n    url: http://a\n    api_key: ${K:-}").providers["a"].api_key is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://a", "http://a/v1"),
        ("http://a:80/", "http://a:80/v1"),
        ("https://a.example.com/v1/", "https://a.example.com/v1"),
        ("http://a/api/v3//", "http://a/api/v3"),
        ("http://192.168.1.1:8000/v1", "http://192.168.1.1:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://[FE80::1%25Eth0]:8000/v1", "http://[fe80::1%25Eth0]:8000/v1"),
        ("http://[fe80::1%eth0]", "http://[fe80::1%25eth0]/v1"),
        ("http://[fe80::1%2525]", "http://[fe80::1%2525]/v1"),
        ("http://a:7997/.", "http://a:7997/."),
        ("unix:/run/llm.sock", "unix:/run/llm.sock:/v1"),
        ("unix:/run/llm.sock:/", "unix:/run/llm.sock:/v1"),
        ("unix:/run/llm.sock:/.", "unix:/run/llm.sock:/."),
        ("unix:///run/llm.sock:/llm/v1/", "unix:/run/llm.sock:/llm/v1"),
        ("http://a:7997/./", "http://a:7997/."),
        ("http://my_rig/a%20b/v1", "http://my_rig/a%20b/v1"),
    ],
)
def test_a_url_is_normalised(written: str, meant: str) -> None:
    assert build({"providers": {"a": {"url": written}}}).providers["a"].url == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("''", ""),
        ("/", ""),
        ("/llm", "/llm"),
        ("/llm/", "/llm"),
        ("/a.b/~c-d_1", "/a.b/~c-d_1"),
        ("/v1x", "/v1x"),
    ],
)
def test_a_base_path_ends_without_a_slash(written: str, meant: str) -> None:
    assert config(f"server: {{base_path: {written}}}").server.base_path == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("*", "*"),
        ("https://Chat.Example.net/", "https://chat.example.net"),
        ("HTTP://192.168.1.10:3000", "http://192.168.1.10:3000"),
        ("https://a:443", "https://a"),
        ("http://a:080", "http://a"),
        ("http://a:443", "http://a:443"),
        ("http://[FD00::1]:3000", "http://[fd00::1]:3000"),
        ("tauri://localhost", "tauri://localhost"),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(written: str, meant: str) -> None:
    assert config(f"server: {{cors: ['{written}']}}").server.cors == (meant,)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.7", "10.0.0.7/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1/128"),
        ("FD00::/8", "fd00::/8"),
    ],
)
def test_an_address_alone_is_a_network_of_one(written: str, meant: str) -> None:
    assert config(f"server: {{metrics_from: ['{written}']}}").server.metrics_from == (ip_network(meant),)


def test_nobody_may_read_the_metrics_without_a_key_if_the_list_is_empty() -> None:
    assert config("server: {metrics_from: []}").server.metrics_from == ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1", 1), ("60", 60), ("500k", 500_000), ("500K", 500_000), ("2M", 2_000_000), ("1.001M", 1_001_000)],
)
def test_amounts(written: str, meant: int) -> None:
    made = config(f"users: {{a: {{limits: {{tokens_per_day: {written}}}}}}}")
    assert made.users["a"].limits.tokens_per_day == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [("true", True), ("True", True), ("TRUE", True), ("false", False), ("False", False), ("FALSE", False)],
)
def test_true_and_false(written: str, meant: bool) -> None:
    assert config(f"users: {{a: {{admin: {written}}}}}").users["a"].admin is meant


@pytest.mark.parametrize("written", ["none", "None", "'none'"])
def test_the_request_log_can_be_turned_off(written: str) -> None:
    assert config(f"log: {{requests: {written}}}").log.requests is None


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("0", 0),
        ("500ms", 0.5),
        ("10s", 10),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("0.5", 0.5),
    ],
)
def test_durations(written: str, seconds: float) -> None:
    assert config(f"server: {{drain_timeout: {written}}}").server.drain_timeout == seconds


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("1", 1),
        ("1B", 1),
        ("1kB", 1000),
        ("1.5 MB", 1_500_000),
        ("64KiB", 65536),
        ("2GiB", 2**31),
        ("3GB", 3 * 10**9),
        ("1.001MB", 1_001_000),
    ],
)
def test_sizes(written: str, size_bytes: int) -> None:
    assert config(f"server: {{max_body: {written}}}").server.max_body == size_bytes


@pytest.mark.parametrize(
    ("written", "epoch_s"),
    [
        ("1970-01-01", 86400.0),
        ("'1970-01-01'", 86400.0),
        ("1970-01-02T00:00:00", 86400.0),
        ("1970-01-02 00:00", 86400.0),
        ("1970-01-02T01:00:00.5+01:00", 86400.5),
        ("1970-01-02t00:00:00z", 86400.0),
        ("9999-12-31", 253402300800.0),
    ],
)
def test_expiry(written: str, epoch_s: float) -> None:
    text = f'users: {{a: {{keys: [{{hash: "{HASH}", expires: {written}}}]}}}}'
    assert config(text).users["a"].keys[0].expires_at == epoch_s


# --- One problem at a time ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("port: 65536", "server.port: '65536' is not a port"),
        ("port: -1", "server.port: '-1' is not a port"),
        ("port: true", "server.port: 'true' is not a whole number"),
        ("port: 80.0", "server.port: '80.0' is not a whole number"),
        ("port: 0o17", "server.port: '0o17' is not a whole number"),
        ("port: 22:22", "server.port: '22:22' is not a whole number"),
        ("port: '80'", "server.port: '80' is text; write the number without quotes"),
        ("port:", "server.port: nothing stands here"),
        ("port: [80]", "server.port: a single value belongs here"),
        ("port: {a: 1}", "server.port: a single value belongs here"),
        ("port: 99999999999999999999999", "server.port: '99999999999999999999999' is not a whole number"),
        (
            "host: http://a",
            "server.host: 'http://a' is not an address to listen on; write it without http://",
        ),
        ("host: 127.0.0.1:80", "server.host: '127.0.0.1:80' is not an address to listen on; write only"),
        ("host: 300.1.1.1", "server.host: '300.1.1.1' is not an address"),
        ("host: '*'", "server.host: '*' is not an address; write 0.0.0.0"),
        ("host: a b", "server.host: 'a b' is not an address"),
        ("host: []", "server.host: an empty list names no address"),
        ("host: [127.0.0.1, 'a b']", "server.host[1]: 'a b' is not an address"),
        ("host: {a: 1}", "server.host: a list belongs here"),
        (
            "listen: /run/x.sock",
            "server.listen: '/run/x.sock' is not a Unix socket; write unix: and its path",
        ),
        ("listen: 'unix:'", "server.listen: 'unix:' is not a Unix socket"),
        (f"listen: unix:/{'x' * 200}", "is too long for a Unix socket"),
        ("host: ''", "server.host: '' is not an address"),
        ("max_body: 100M", "server.max_body: '100M' is not a size; write 100MB, 64KiB"),
        ("max_body: 0", "server.max_body: '0' is not a size that makes sense"),
        ("max_body: -1", "server.max_body: '-1' is not a size"),
        ("max_body: 1.5B", "server.max_body: '1.5B' is not a whole number of bytes"),
        ("max_body: true", "server.max_body: 'true' is not a size"),
        (
            "unavailable_status: 500",
            "server.unavailable_status: '500' is not a status for this; write 404, or",
        ),
        ("unavailable_status: '503'", "server.unavailable_status: '503' is text; write the number without"),
        ("unavailable_status: retry", "server.unavailable_status: 'retry' is not a whole number"),
        ("drain_timeout: 10 parsecs", "server.drain_timeout: '10 parsecs' is not a duration; write 500ms"),
        ("drain_timeout: -1", "server.drain_timeout: '-1' is negative"),
        ("drain_timeout: .nan", "server.drain_timeout: '.nan' is not a duration"),
        ("drain_timeout: .inf", "server.drain_timeout: '.inf' is not a duration"),
        ("drain_timeout: 1e999", "server.drain_timeout: '1e999' is too long"),
        ("drain_timeout: 366d", "server.drain_timeout: '366d' is too long"),
        ("drain_timeout: 30m1h", "server.drain_timeout: '30m1h' names its units twice or out of order"),
        ("drain_timeout: true", "server.drain_timeout: 'true' is not a duration"),
        ("extra_paths: /v1/x", "server.extra_paths: a list belongs here"),
        ("extra_paths: {a: b}", "server.extra_paths: a list belongs here"),
        ("extra_paths: [v1/x]", "server.extra_paths[0]: 'v1/x' does not begin with /"),
        ("prot: 1", "server.prot: unknown key; did you mean `port`?"),
        ("reuse_port: maybe", "server.reuse_port: 'maybe' is neither true nor false"),
        (
            "{listen: 'unix:/run/x.sock', reuse_port: true}",
            "server.reuse_port: a Unix socket has no port to share; leave this or `listen` out",
        ),
        ("drain_delay: soon", "server.drain_delay: 'soon' is not a duration"),
        (
            "quantum: {}",
            "server.quantum: unknown key; known here: host, port, listen, reuse_port, base_path, tls, ",
        ),
        (
            "base_path: llm",
            "server.base_path: 'llm' does not begin with /; write only the path, such as /llm",
        ),
        ("base_path: https://a/llm", "server.base_path: 'https://a/llm' does not begin with /"),
        ("base_path: //", "server.base_path: '//' is not a plain path"),
        ("base_path: /a//", "server.base_path: '/a//' is not a plain path"),
        ("base_path: /a/../b", "server.base_path: '/a/../b' is not a plain path"),
        ("base_path: /a/.", "server.base_path: '/a/.' is not a plain path"),
        ("base_path: /a;b", "server.base_path: '/a;b' is not a plain path; write /, letters, digits and"),
        ("base_path: /a b", "server.base_path: '/a b' is not a plain path"),
        (
            "base_path: /v1",
            "server.base_path: '/v1' ends in /v1, which comes after it anyway; write the part",
        ),
        ("base_path: /llm/v1/", "server.base_path: '/llm/v1/' ends in /v1"),
        ("base_path:", "server.base_path: nothing stands here"),
        ("tls: {cert: a}", "2:8: server.tls.key: `key` is missing; write one here"),
        ("tls: {key: a}", "2:8: server.tls.cert: `cert` is missing; write one here"),
        ("tls: {cert: a, key: ''}", "2:23: server.tls.key: '' is not the name of a file"),
        ('tls: {cert: "a\\0", key: b}', "2:15: server.tls.cert: 'a\\x00' is not the name of a file"),
        ("tls: {cert: certs/, key: b}", "server.tls.cert: 'certs/' is a folder; write the name of a file"),
        ("tls: {cert: a, key: }", "server.tls.key: nothing stands here"),
        ("tls: {cert: a, kye: b, key: c}", "server.tls.kye: unknown key; did you mean `key`?"),
        ("tls: cert.pem", "server.tls: a mapping belongs here"),
        ("cors: https://a", "server.cors: a list belongs here"),
        ("cors: [chat.example.net]", "2:10: server.cors[0]: 'chat.example.net' has no http:// or https://"),
        (
            "cors: ['https://*.example.net']",
            "'https://*.example.net' has a * in it; write each origin on its",
        ),
        ("cors: [https://a/chat]", "server.cors[0]: 'https://a/chat' is not an origin; write scheme://host"),
        ("cors: [https://a//]", "'https://a//' is not an origin"),
        ("cors: [https://user@a]", "'https://user@a' is not an origin"),
        ("cors: ['https://a:']", "'https://a:' is not an origin"),
        ("cors: ['https://a:0']", "'https://a:0' is not an origin"),
        ("cors: ['https://a:99999']", "'https://a:99999' is not an origin"),
        ("cors: [https://é]", "'https://é' is not an origin"),
        ("cors: [\u212attp://a]", "is not an origin"),
        ("cors: ['https://']", "'https://' is not an origin"),
        ("cors: ['http://[::z]']", "'http://[::z]' is not an origin"),
        ("trusted_proxies: 10.0.0.1", "server.trusted_proxies: a list belongs here"),
        (
            "trusted_proxies: [nginx]",
            "2:21: server.trusted_proxies[0]: 'nginx' is not an IP address or network",
        ),
        (
            "trusted_proxies: [10.0.0.5/8]",
            "'10.0.0.5/8' is one address in a network; write the address alone, or the network's first one, ",
        ),
        ("trusted_proxies: ['fd00::1/8']", "'fd00::1/8' is one address in a network"),
        ("trusted_proxies: [10.0.0.0/33]", "'10.0.0.0/33' is not an IP address or network"),
        ("trusted_proxies: [10.0.0.0/]", "'10.0.0.0/' is not an IP address or network"),
        ("trusted_proxies: [10.0.0]", "'10.0.0' is not an IP address or network"),
        ("trusted_proxies: ['']", "'' is not an IP address or network"),
        ("metrics_from: [fe80::1%eth0]", "server.metrics_from[0]: 'fe80::1%eth0' is not an IP address or"),
        ("metrics_from: [~]", "server.metrics_from[0]: nothing stands here"),
        ("metric_from: []", "server.metric_from: unknown key; did you mean `metrics_from`?"),
    ],
)
def test_a_wrong_setting_of_the_server(line: str, expected: str) -> None:
    assert expected in problem(f"server:\n  {line}\n")


UNFORWARDABLE = (
    *(
        "/",
        "//v1/x",
        "/v1//x",
        "/v1/../x",
        "/v1/./x",
        "/v1/x/",
        "/v1/x?a",
        "/v1/x#a",
        "/v1/%2e",
        "/v1/ x",
        "/é",
    ),
    *(
        "/v1/{x}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/gateway",
        "/gateway/status",
        "/v1/models",
        "/v1/models/x",
    ),
    *("/v1/chat/completions", "/v1/messages"),
)


@pytest.mark.parametrize("path", UNFORWARDABLE)
def test_a_path_that_cannot_be_forwarded(path: str) -> None:
    assert "c.yaml:1:24: server.extra_paths[0]: " in problem(f"server: {{extra_paths: ['{path}']}}")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("192.168.1.1:8000", "has no http:// in front"),
        ("localhost", "has no http:// in front"),
        ("ftp://a", "is neither http:// nor https://"),
        ("http://user:pw@a/v1", "has a user or password in it"),
        ("http://a/v1?key=pw", "has a part after ? or #"),
        ("http://a/v1#", "has a part after ? or #"),
        ("http://", "has no host"),
        ("http:///v1", "has no host"),
        ("http://:80", "has no host"),
        ("http://a:0", "has no valid port"),
        ("http://a:99999", "has no valid port"),
        ("http://a:b", "has no valid port"),
        ("http://a:", "has no valid port"),
        ("http://[::1", "has no valid host"),
        ("http://[::z]", "has no valid host"),
        ("http://1.2.3", "has no valid host"),
        ("unix:", "has no whole path of a socket; write one without spaces and odd characters"),
        ("unix:llm.sock", "has no whole path of a socket"),
        ("unix:/run/../llm.sock", "has no whole path of a socket"),
        ("unix:/run/llm.sock:v1", "has no path after the socket's colon"),
        ("unix:/run/llm.sock:/v1/models", "ends in /models;"),
        (f"unix:/{'a' * 107}", "has a socket of over 107 characters"),
        ("http://[fe80::1%25]", "has no valid zone; write the network interface after %25, such as"),
        ("http://[fe80::1%]", "has no valid host"),
        ("http://[fe80::1%25a b]", "is empty or has spaces"),
        ("http://[fe80::1%25a/b]", "has no valid host"),
        ("http://a_{b}", "has no valid host"),
        ("http://a b", "is empty or has spaces"),
        ("http://é", "is empty or has spaces"),
        ("", "is empty or has spaces"),
        ("http://a/v1/../x", "has an unusual path"),
        ("http://a//v1", "has an unusual path"),
        ("http://a/%zz", "has an unusual path"),
        ("http://a/v1/chat/completions", "ends in /chat/completions; write the base URL without that"),
        ("http://a/v1/completions/", "ends in /completions;"),
        ("http://a/v1/models", "ends in /models;"),
        ("http://a:11434/api", "is Ollama's own API"),
        ("http://a:11434/api/chat", "is Ollama's own API"),
    ],
)
def test_a_wrong_url(url: str, expected: str) -> None:
    found = problem(f"providers:\n  rig:\n    url: '{url}'\n")
    assert found.startswith(f"c.yaml:3:10: providers.rig.url: the URL {expected}")
    assert "pw" not in found.replace("pw@", "")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("socks5://rig:1080", ProxyAddress("socks5", "rig", 1080)),
        ("SOCKS5H://Rig:1080/", ProxyAddress("socks5h", "rig", 1080)),
        ("http://[fe80::1]:3128", ProxyAddress("http", "fe80::1", 3128)),
        ("http://me:p%40s:s@10.0.0.1:1", ProxyAddress("http", "10.0.0.1", 1, "me", "p@s:s")),
        ("socks5://me:p@s/s#s?@rig:1", ProxyAddress("socks5", "rig", 1, "me", "p@s/s#s?")),
    ],
)
def test_a_proxy_is_taken_apart(written: str, meant: ProxyAddress) -> None:
    made = config("providers: {rig: {url: 'http://rig', proxy: '${P}'}}", P=written).providers["rig"]
    assert made.proxy == meant
    assert "p@s" not in f"{made!r}{made.proxy!r}{meant.place}"


def test_a_proxy_with_an_empty_default_is_no_proxy() -> None:
    assert config("providers:\n  a:\n    url: http://a\n    proxy: ${K:-}").providers["a"].proxy is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", "is empty or has spaces"),
        ("socks5://me:p w@rig:1", "is empty or has spaces"),
        ("rig:1080", "has no socks5:// or http:// in front"),
        ("https://rig:1080", "is neither socks5:// nor socks5h:// nor http://"),
        ("socks4://rig:1080", "is neither socks5:// nor socks5h:// nor http://"),
        ("socks5://rig", "has no host and port behind socks5://"),
        ("socks5://:1080", "has no host and port"),
        ("socks5://rig:0", "has no host and port"),
        ("socks5://rig:65536", "has no host and port"),
        ("http://rig:1080/v1", "has no host and port"),
        ("http://1.2.3:1080", "has no valid host"),
        ("http://[::z]:1080", "has no valid host"),
        ("http://[fe80::1%25eth0]:1080", "has no host and port"),
        ("http://pw@rig:1080", "has a user or a password alone; write both, as user:password@"),
        ("http://:pw@rig:1080", "has a user or a password alone"),
        ("http://me:pw%C3%A9@rig:1080", "has a user or password that no proxy can be told"),
        ("http://me:pw%0d%0a@rig:1080", "has a user or password that no proxy can be told"),
        (f"socks5://me:{'pw' * 128}@rig:1080", "has a user or password that no proxy can be told"),
        ("http://m%3ae:pw@rig:1080", "has a colon in its user"),
    ],
)
def test_a_wrong_proxy(written: str, expected: str) -> None:
    found = problem(f"providers:\n  rig:\n    url: http://rig\n    proxy: '{written}'\n")
    assert found.startswith(f"c.yaml:4:12: providers.rig.proxy: the proxy {expected}")
    assert "pw" not in found


def test_a_password_of_a_proxy_that_looks_like_a_variable_is_warned_of() -> None:
    text = "providers: {rig: {url: 'http://rig', proxy: 'socks5://me:%s@rig:1'}}"
    (found,) = [each for each in warnings(text % "$PW") if "proxy" in each]
    assert "providers.rig.proxy: this is taken as it stands, and not from the environment" in found
    assert not [each for each in warnings(text % "${PW}", PW="$PW") if "proxy" in each]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("redis://rig", RedisAddress(False, "rig", 6379, 0)),
        ("REDISS://Rig:1/2", RedisAddress(True, "rig", 1, 2)),
        ("redis://[fd00::1]/", RedisAddress(False, "fd00::1", 6379, 0)),
        ("redis://:p%40s:s@10.0.0.1", RedisAddress(False, "10.0.0.1", 6379, 0, "", "p@s:s")),
        ("redis://me:p@s/s#s?@rig:1", RedisAddress(False, "rig", 1, 0, "me", "p@s/s#s?")),
    ],
)
def test_a_redis_is_taken_apart(written: str, meant: RedisAddress) -> None:
    made = config("cluster: {limits: '${P}'}", P=written).cluster
    assert made.limits == meant
    assert "p@s" not in f"{made!r}{made.limits!r}{meant.place}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", "is empty or has spaces"),
        ("redis://:p w@rig:1", "is empty or has spaces"),
        ("rig:6379", "has no redis:// in front, nor rediss:// for TLS"),
        ("http://rig:6379", "has no redis:// in front"),
        ("redis://rig:0", "is not redis://, host, port and number"),
        ("redis://rig/zero", "is not redis://, host, port and number"),
        ("redis://rig/0?pw=1", "is not redis://, host, port and number"),
        ("redis://", "is not redis://, host, port and number"),
        ("redis://1.2.3", "has no valid host"),
        ("redis://pw@rig", "has an @ but no password"),
        ("redis://pw:@rig", "has an @ but no password"),
    ],
)
def test_a_wrong_redis(written: str, expected: str) -> None:
    found = problem(f"cluster:\n  limits: '{written}'\n")
    assert found.startswith(f"c.yaml:2:11: cluster.limits: the URL {expected}")
    assert "pw" not in found


def test_a_password_of_redis_that_looks_like_a_variable_is_warned_of() -> None:
    (found,) = [each for each in warnings("cluster: {limits: 'redis://:$PW@rig'}") if "cluster" in each]
    assert "cluster.limits: this is taken as it stands, and not from the environment" in found
    assert not [
        each for each in warnings("cluster: {limits: 'redis://:${PW}@rig'}", PW="$PW") if "cluster" in each
    ]


def test_a_redis_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cluster:\n  limits: redis://rig\n")
    assert load(file, {}).config.cluster.limits is not None
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    (told,) = map(str, caught.value.problems)
    assert "c.yaml:2:11: cluster.limits: this needs the Python package redis" in told
    assert "scripts/setup redis" in told
    file.write_text("cluster:\n  limits:\n")
    assert load(file, {}).config.cluster.limits is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", "is empty or has spaces"),
        ("rig:4318", "has no http:// in front"),
        ("grpc://rig:4317", "is neither http:// nor https://"),
        ("http://me:pw@rig:4318", "has a user or password"),
        ("http://rig:4318/v1/traces?key=pw", "has a part after ? or #"),
        ("unix:/run/otel.sock", "is a socket; write a URL"),
    ],
)
def test_a_wrong_collector(written: str, expected: str) -> None:
    found = problem(f"telemetry:\n  otlp: '{written}'\n")
    assert found.startswith(f"c.yaml:2:9: telemetry.otlp: the URL {expected}")
    assert "pw" not in found


def test_a_collector_needs_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("telemetry:\n  otlp: http://rig:4318\n")
    assert load(file, {}).config.telemetry.otlp == "http://rig:4318"
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    (told,) = map(str, caught.value.problems)
    assert "c.yaml:2:9: telemetry.otlp: this needs OpenTelemetry's packages" in told
    assert "scripts/setup otel" in told
    file.write_text("telemetry:\n  otlp:\n")
    assert load(file, {}).config.telemetry.otlp is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("instances: 0", "2:14: cluster.instances: '0' is too small; write 1 or more, or own"),
        (
            "instances: many",
            "2:14: cluster.instances: 'many' is not a whole number; write one in digits, such as 3, or own",
        ),
        ("name: gw 1", "2:9: cluster.name: 'gw 1' is not a usable name"),
        ("instance: 2", "2:3: cluster.instance: unknown key; did you mean `instances`?"),
        ("limits: 3", "2:11: cluster.limits: the URL has no redis:// in front"),
    ],
)
def test_a_wrong_cluster(line: str, expected: str) -> None:
    assert problem(f"cluster:\n  {line}\n").startswith(f"c.yaml:{expected}")


def test_no_proxy_leads_to_a_unix_socket() -> None:
    found = problem("providers:\n  rig:\n    url: unix:/run/llm.sock\n    proxy: http://rig:1\n")
    assert found.startswith("c.yaml:4:5: providers.rig.proxy: no proxy leads to a Unix socket")


def test_the_same_url_by_another_proxy_is_another_server() -> None:
    text = (
        "providers: {a: {url: 'http://localhost:1', proxy: 'socks5://x:1'}, b: {url: 'http://localhost:1'%s}}"
    )
    assert "the same server" not in str(warnings(text % ""))
    assert "the same server" in str(warnings(text % ", proxy: 'socks5://x:1'"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("weight: 0", "3:13: providers.rig.weight: '0' is not a number above 0"),
        ("weight: .nan", "providers.rig.weight: '.nan' is not a number above 0"),
        ("weight: 1e999", "providers.rig.weight: '1e999' is not a number above 0"),
        ("weight: true", "providers.rig.weight: 'true' is not a number above 0"),
        ("api_key: ''", "providers.rig.api_key: the api_key is empty"),
        ("api_key: 'a b'", "providers.rig.api_key: the api_key has spaces"),
        ('api_key: "a\\nb"', "providers.rig.api_key: the api_key has spaces"),
        ("headers: [a]", "providers.rig.headers: a mapping belongs here"),
        ("headers: {'a b': c}", "3:15: providers.rig.headers.a b: 'a b' is not a header name"),
        (
            'headers: {A: "b\\r\\nc"}',
            "providers.rig.headers.A: the value of this header is not a header value",
        ),
        ("headers: {A: ' b'}", "providers.rig.headers.A: the value of this header is not a header value"),
        ("headers: {A: é}", "providers.rig.headers.A: the value of this header is not a header value"),
        ("headers: {A: }", "providers.rig.headers.A: nothing stands here"),
        (
            "headers: {Host: 'b '}",
            "providers.rig.headers.Host: the value of this header is not a header value",
        ),
        ("tls: {verify: true}", "3:5: providers.rig.tls: the url is not https://"),
        ("tls: on", "3:10: providers.rig.tls: a mapping belongs here"),
        ("headers: {Content-Length: 3}", "'Content-Length' belongs to the connection"),
        ("headers: {Transfer-Encoding: x}", "'Transfer-Encoding' belongs to the connection"),
        ("headers: {Connection: x}", "'Connection' belongs to the connection"),
        (
            "headers: {A: b, a: c}",
            "providers.rig.headers: two of the names differ only in upper and lower case",
        ),
        ("{api_key: k, headers: {authorization: b}}", "`api_key` is sent in this header"),
        ("models: []", "3:13: providers.rig.models: an empty list names no model"),
        (
            "kind: Ollama",
            "3:11: providers.rig.kind: 'Ollama' is not a kind of server; did you mean 'ollama'?",
        ),
        ("kind: llama.cpp", "'llama.cpp' is not a kind of server; did you mean 'llamacpp'?"),
        ("kind: triton", "not a kind of server; known here: ollama, llamacpp, lmstudio, vllm, generic"),
        ("kind: [vllm]", "3:11: providers.rig.kind: a single value belongs here"),
        (
            "endpoints: [chat, embedings]",
            "providers.rig.endpoints[1]: 'embedings' is not an endpoint; did you",
        ),
        ("endpoints: [/v1/chat]", "3:17: providers.rig.endpoints[0]: '/v1/chat' is not an endpoint; "),
        ("endpoints: []", "3:16: providers.rig.endpoints: an empty list names no endpoint; name one, or"),
        ("endpoints: chat", "3:16: providers.rig.endpoints: a list belongs here; put the value in brackets"),
        ("models: [' a']", "3:14: providers.rig.models[0]: ' a' is not a model name"),
        ("models: a", "providers.rig.models: a list belongs here"),
        ("timeouts: {connect: 0s}", "3:25: providers.rig.timeouts.connect: '0s' leaves no time at all"),
        (
            "timeouts: {total: 3}",
            "3:16: providers.rig.timeouts.total: unknown key; known here: connect, first_byte",
        ),
        ("timeouts: 3", "3:15: providers.rig.timeouts: a mapping belongs here"),
        ("owner: alcie", "3:12: providers.rig.owner: 'alcie' is not a user; did you mean 'alice'?"),
        ("owner: family", "'family' is a group; write one user here"),
        ("owner: everyone", "leave the line out, then it belongs to everybody"),
        ("owner: [alice]", "3:12: providers.rig.owner: a single value belongs here"),
        (
            "share: [alice, famly]",
            "3:20: providers.rig.share[1]: 'famly' is not a user or group; did you mean 'family'?",
        ),
        ("share: [xyz]", "'xyz' is not a user or group; known here: alice, family, everyone"),
        ("share: everyone", "3:12: providers.rig.share: a list belongs here"),
        ("wieght: 3", "3:5: providers.rig.wieght: unknown key; did you mean `weight`?"),
        ("quantum: 3", "3:5: providers.rig.quantum: unknown key; known here: url, owner, share"),
        ("slots: 0", "3:12: providers.rig.slots: '0' is too small; write 1 or more"),
        ("slots: -4", "providers.rig.slots: '-4' is too small"),
        ("slots: 2.5", "providers.rig.slots: '2.5' is not a whole number; write one in digits"),
        ("slots: unlimited", "providers.rig.slots: 'unlimited' is not a whole number"),
        ("slots: [4]", "3:12: providers.rig.slots: a single value belongs here"),
        ("slot: 4", "3:5: providers.rig.slot: unknown key; did you mean `slots`?"),
        ("wake: aa:bb:cc:dd:ee:ff", "3:11: providers.rig.wake: a mapping belongs here"),
        ("wake: {}", "3:11: providers.rig.wake.mac: `mac` is missing; write one here"),
        ("wake: {broadcast: 10.0.0.255}", "providers.rig.wake.mac: `mac` is missing"),
        (
            "wake: {mac: aa:bb:cc:dd:ee}",
            "3:17: providers.rig.wake.mac: 'aa:bb:cc:dd:ee' is not a MAC address; write six pairs",
        ),
        ("wake: {mac: aa:bb:cc:dd:ee:fg}", "'aa:bb:cc:dd:ee:fg' is not a MAC address"),
        ("wake: {mac: 'aa bb cc dd ee ff'}", "'aa bb cc dd ee ff' is not a MAC address"),
        ("wake: {mac: ''}", "providers.rig.wake.mac: '' is not a MAC address"),
        ("wake: {mac: }", "providers.rig.wake.mac: nothing stands here"),
        (
            "wake: {mac: aabbccddeeff, broadcast: 192.168.1.0/24}",
            "3:42: providers.rig.wake.broadcast: '192.168.1.0/24' is not an IPv4 address; write the",
        ),
        ("wake: {mac: aabbccddeeff, broadcast: 'ff02::1'}", "'ff02::1' is not an IPv4 address"),
        ("wake: {mac: aabbccddeeff, broadcast: rig.local}", "'rig.local' is not an IPv4 address"),
        (
            "wake: {mac: aabbccddeeff, port: 9}",
            "3:31: providers.rig.wake.port: unknown key; known here: mac, ",
        ),
    ],
)
def test_a_wrong_setting_of_a_provider(line: str, expected: str) -> None:
    first, rest = ("<<: " + line, "") if line.startswith("{") else (line, "")
    text = f"providers:\n  rig:\n    {first}{rest}\n    url: http://a\n"
    assert expected in problem(f"{text}users: {{alice: {{}}}}\ngroups: {{family: [alice]}}\n")


def test_a_provider_without_a_url() -> None:
    assert problem("providers:\n  rig:\n    weight: 2\n") == (
        "c.yaml:3:5: providers.rig.url: `url` is missing; write one here"
    )
    assert "providers.rig.url: `url` is missing" in problem("providers:\n  rig:\n")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("[sha256:abc]", "keys[0]: the hash is not a hash; write sha256: and 64 hex digits"),
        (f"[sha256:{'g' * 64}]", "keys[0]: the hash is not a hash"),
        (f"[{{hash: {'a' * 64}}}]", "keys[0].hash: the hash is not a hash"),
        (f"[{{key: '{HASH}'}}]", "keys[0].key: the key is a hash, not a key; write it under `hash`"),
        ("[short]", "keys[0]: the key has fewer than 8 characters"),
        ("['with a space']", "keys[0]: the key is empty or has spaces"),
        ("['']", "keys[0]: the key is empty or has spaces"),
        ("[{key: schlüssel}]", "keys[0].key: the key is empty or has spaces, control or non-ASCII"),
        ("[{name: a}]", "keys[0].key: exactly one of `hash` and `key` is needed"),
        ("[~]", "keys[0].key: exactly one of `hash` and `key` is needed"),
        (f"[{{hash: '{HASH}', key: long-enough}}]", "keys[0].key: exactly one of `hash` and `key` is needed"),
        (f"[{{hash: '{HASH}', expires: soon}}]", "keys[0].expires: 'soon' is not a date; write 2027-06-30"),
        (f"[{{hash: '{HASH}', expires: 2027-02-30}}]", "keys[0].expires: '2027-02-30' is not a date"),
        (f"[{{hash: '{HASH}', expires: 20270630}}]", "keys[0].expires: '20270630' is not a date"),
        (f"[{{hash: '{HASH}', models: []}}]", "keys[0].models: an empty list names no model"),
        (f"[{{hash: '{HASH}', name: a b}}]", "keys[0].name: 'a b' is not a usable name"),
        (f"[{{hash: '{HASH}', expire: 2027-06-30}}]", "keys[0].expire: unknown key; did you mean `expires`?"),
        ("long-enough-key", "keys: a list belongs here"),
        ("{laptop: long-enough-key}", "keys: a list belongs here"),
    ],
)
def test_a_wrong_key(keys: str, expected: str) -> None:
    found = problem(f"users:\n  alice:\n    keys: {keys}\n")
    assert f"users.alice.{expected}" in found
    assert found.startswith("c.yaml:3:")
    assert not any(secret in found for secret in ("short", "schl", "long-enough", "with a space"))


def test_a_hash_with_a_space_in_it_is_explained() -> None:
    found = problems(f"users: {{alice: {{keys: [sha256: {'a' * 64}]}}}}")
    assert "without a space after the colon" in found[0]


@pytest.mark.parametrize(
    ("second", "path"),
    [
        ("bob: {keys: [the-same-key]}", "users.bob.keys[0]"),
        ("bob: {keys: [{key: the-same-key}]}", "users.bob.keys[0].key"),
        (f"bob: {{keys: ['sha256:{sha256(b'the-same-key').hexdigest()}']}}", "users.bob.keys[0]"),
        ("bob: {keys: ['${KEY}']}", "users.bob.keys[0]"),
    ],
)
def test_a_key_that_stands_twice(second: str, path: str) -> None:
    text = f"users:\n  alice: {{keys: [the-same-key]}}\n  {second}\n"
    found = problem(text, KEY="the-same-key")
    assert found.startswith("c.yaml:3:")
    assert f"{path}: this is the same key as users.alice.keys[0]; " in found
    assert "the-same-key" not in found


def test_one_user_cannot_have_a_key_twice_either() -> None:
    assert "users.a.keys[1]: this is the same key as" in problem(
        f"users: {{a: {{keys: ['{HASH}', '{HASH}']}}}}"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("users: [alice]", "c.yaml:1:8: users: a mapping belongs here"),
        ("users: {alice: secret-key}", "c.yaml:1:16: users.alice: a mapping belongs here"),
        ("users: {'a b': {}}", "c.yaml:1:9: users.a b: 'a b' is not a usable name; write 1 to 64 of"),
        ("users: {'': {}}", "is not a usable name"),
        (f"users: {{{'a' * 65}: {{}}}}", "is not a usable name"),
        ("users: {everyone: {}}", "c.yaml:1:9: users.everyone: 'everyone' is reserved"),
        ("groups: {everyone: []}", "c.yaml:1:10: groups.everyone: 'everyone' is reserved"),
        ("providers: {a/b: {url: 'http://a'}}", "c.yaml:1:13: providers.a/b: 'a/b' is not a usable name"),
        ("users: {a: {}}\ngroups: {a: []}", "c.yaml:2:10: groups.a: 'a' is a user already"),
        ("groups: {g: [nobody]}", "c.yaml:1:14: groups.g[0]: 'nobody' is not a user; known here: none"),
        ("groups: {g: [], h: [g]}", "c.yaml:1:21: groups.h[0]: 'g' is a group; write its users"),
        ("groups: {g: [everyone]}", "c.yaml:1:14: groups.g[0]: 'everyone' cannot be in a group"),
        (
            "users: {a: {route: own}}",
            "c.yaml:1:20: users.a.route: 'own' is not one of the choices; write 'any', ",
        ),
        ("log: {level: off}", "c.yaml:1:14: log.level: 'off' is not one of the choices; write 'debug', "),
        (
            "users: {a: {admin: yes}}",
            "c.yaml:1:20: users.a.admin: 'yes' is neither true nor false; write one",
        ),
        ("users: {a: {admin: 1}}", "users.a.admin: '1' is neither true nor false"),
        ("users: {a: {admin: 'true'}}", "users.a.admin: 'true' is text; write true or false without quotes"),
        ("users: {a: {admin: }}", "users.a.admin: nothing stands here"),
        ("users: {a: {amdin: true}}", "c.yaml:1:13: users.a.amdin: unknown key; did you mean `admin`?"),
        ("users: {a: {limits: 60}}", "c.yaml:1:21: users.a.limits: a mapping belongs here"),
        (
            "users: {a: {limits: {requests_per_hour: 60}}}",
            "c.yaml:1:22: users.a.limits.requests_per_hour: unknown key; did you mean `requests_per_minute`?",
        ),
        (
            "users: {a: {limits: {budget: 5}}}",
            "users.a.limits.budget: unknown key; known here: requests_per_minute, tokens_per_minute, ",
        ),
        (
            f"users: {{a: {{keys: [{{hash: '{HASH}', limits: {{parralel: 2}}}}]}}}}",
            "users.a.keys[0].limits.parralel: unknown key; did you mean `parallel`?",
        ),
        (
            "users: {a: {limits: {parallel: 0}}}",
            "c.yaml:1:32: users.a.limits.parallel: '0' is too small or too large; write 1 or more",
        ),
        (
            "users: {a: {limits: {parallel: -1}}}",
            "users.a.limits.parallel: '-1' is not a number of this kind",
        ),
        ("users: {a: {limits: {parallel: 0.5}}}", "users.a.limits.parallel: '0.5' is not a whole number"),
        (
            "users: {a: {limits: {parallel: 1.2345k}}}",
            "'1.2345k' is not a whole number; write one such as 60",
        ),
        (
            "users: {a: {limits: {parallel: 2m}}}",
            "'2m' is not a number of this kind; write one such as 60, 500k",
        ),
        ("users: {a: {limits: {parallel: 2 M}}}", "'2 M' is not a number of this kind"),
        ("users: {a: {limits: {parallel: unlimited}}}", "'unlimited' is not a number of this kind"),
        ("users: {a: {limits: {parallel: 99999999999M}}}", "'99999999999M' is too small or too large"),
        (
            "users: {a: {limits: {parallel: '2M'}}}",
            "users.a.limits.parallel: '2M' is text; write the number without quotes",
        ),
        ("log: {requests: }", "c.yaml:1:17: log.requests: nothing stands here"),
        ("log: {requests: ''}", "log.requests: '' is not the name of a file"),
        ("log: {requests: logs/}", "log.requests: 'logs/' is a folder; write the name of a file in it"),
        (
            "log: {requests: off}",
            "'off' would be the name of a file; write one such as requests.jsonl, or none",
        ),
        ("log: {requests: true}", "log.requests: 'true' would be the name of a file"),
        ("log: {requests: [a]}", "log.requests: a single value belongs here"),
        (
            "log: {requests_size: 63KiB}",
            "log.requests_size: '63KiB' is too small for a log; write 64KiB or more",
        ),
        ("log: {requests_size: big}", "log.requests_size: 'big' is not a size"),
        ("log: {requests_keep: -1}", "log.requests_keep: '-1' is not a number of files to keep; write 0 to"),
        ("log: {requests_keep: 1001}", "log.requests_keep: '1001' is not a number of files to keep"),
        ("log: {requests_keep: all}", "log.requests_keep: 'all' is not a whole number"),
        ("log: {request: a}", "c.yaml:1:7: log.request: unknown key; did you mean `requests`?"),
        ("log: {format: [text]}", "c.yaml:1:15: log.format: a single value belongs here"),
        ("health: {timeout: 0}", "c.yaml:1:19: health.timeout: '0' leaves no time at all"),
        ("health: {interval: -1s}", "c.yaml:1:20: health.interval: '-1s' is not a duration"),
        ("health: {fall: 0}", "c.yaml:1:16: health.fall: '0' is too small; write 1 or more"),
        ("health: {rise: 1.5}", "c.yaml:1:16: health.rise: '1.5' is not a whole number"),
        (
            "server: {extra_paths: [/a, /b, /a]}",
            "c.yaml:1:32: server.extra_paths[2]: this path stands here twice",
        ),
        ("provders: {}", "c.yaml:1:1: provders: unknown key; did you mean `providers`?"),
        (
            "limits: {size: 100}",
            "c.yaml:1:1: limits: unknown key; known here: server, users, groups, providers, aliases, ",
        ),
        (
            "users: {a: {weight: 0}}",
            "c.yaml:1:21: users.a.weight: '0' is not a number above 0; write one such as",
        ),
        ("users: {a: {weight: -1}}", "users.a.weight: '-1' is not a number above 0"),
        ("users: {a: {weight: .inf}}", "users.a.weight: '.inf' is not a number above 0"),
        ("users: {a: {wait: 2}}", "c.yaml:1:13: users.a.wait: unknown key; did you mean `weight`?"),
        ("queue: {size: 0}", "c.yaml:1:15: queue.size: '0' is too small; write 1 or more"),
        ("queue: {size: -1}", "c.yaml:1:15: queue.size: '-1' is too small; write 1 or more"),
        ("queue: {size: many}", "queue.size: 'many' is not a whole number; write one in digits"),
        ("queue: {size: 1.5}", "queue.size: '1.5' is not a whole number"),
        ("queue: {size: }", "queue.size: nothing stands here"),
        ("queue: {timeout: 0}", "c.yaml:1:18: queue.timeout: '0' leaves no time at all"),
        ("queue: {timeout: -1}", "queue.timeout: '-1' is negative"),
        ("queue: {timeout: soon}", "queue.timeout: 'soon' is not a duration; write 500ms"),
        ("queue: {sise: 3}", "c.yaml:1:9: queue.sise: unknown key; did you mean `size`?"),
        ("queue: 100", "c.yaml:1:8: queue: a mapping belongs here"),
        ("streams: {keepalive: -1}", "c.yaml:1:22: streams.keepalive: '-1' is negative"),
        ("streams: {keepalive: off}", "streams.keepalive: 'off' is not a duration; write 500ms"),
        ("streams: {keepalive: [1]}", "streams.keepalive: a single value belongs here"),
        ("streams: {keep_alive: 1}", "streams.keep_alive: unknown key; did you mean `keepalive`?"),
        ("streams: 15s", "c.yaml:1:10: streams: a mapping belongs here"),
        (
            "affinity: {headers: x-chat}",
            "c.yaml:1:21: affinity.headers: a list belongs here; put the value in",
        ),
        ("affinity: {headers: {x-chat: 1}}", "affinity.headers: a list belongs here"),
        (
            "users: {a: {person_header: Authorization}}",
            "c.yaml:1:28: users.a.person_header: 'Authorization' holds keys, and names of persons are logged",
        ),
        (
            "users: {a: {person_header: x user}}",
            "users.a.person_header: 'x user' is not a header name; write",
        ),
        ("users: {a: {persons_header: X-User}}", "did you mean `person_header`?"),
        ("affinity: {headers: [a b]}", "c.yaml:1:22: affinity.headers[0]: 'a b' is not a header name; write"),
        ("affinity: {headers: ['x:']}", "affinity.headers[0]: 'x:' is not a header name"),
        ("affinity: {headers: [a, host]}", "affinity.headers[1]: 'host' belongs to the connection"),
        (
            "affinity: {headers: [a, b, a]}",
            "c.yaml:1:28: affinity.headers[2]: this header stands here twice; keep one of them",
        ),
        (
            "affinity: {headers: [X-Chat, x-chat]}",
            "c.yaml:1:30: affinity.headers[1]: this header stands here twice; keep one of them",
        ),
        ("affinity: {header: [a]}", "c.yaml:1:12: affinity.header: unknown key; did you mean `headers`?"),
    ],
)
def test_a_wrong_file(text: str, expected: str) -> None:
    assert expected in problem(text)


# --- All problems together ------------------------------------------------------------------------


def test_problems_of_text_shape_and_meaning_are_reported_together_in_the_order_of_the_file() -> None:
    text = """\
users:
  alice: {keys: [k], rout: any}
  bob: {}
  bob: {}
groups: {family: [alise]}
providers:
  one: {url: nowhere, weight: []}
  two: {url: "${NOPE}", share: [famly], owner: bbo}
  three: {}
"""
    assert [found.split(": ")[:2] for found in problems(text)] == [
        ["c.yaml:2:18", "users.alice.keys[0]"],
        ["c.yaml:2:22", "users.alice.rout"],
        ["c.yaml:4:3", "users.bob"],
        ["c.yaml:5:19", "groups.family[0]"],
        ["c.yaml:7:14", "providers.one.url"],
        ["c.yaml:7:31", "providers.one.weight"],
        ["c.yaml:8:14", "providers.two.url"],
        ["c.yaml:8:33", "providers.two.share[0]"],
        ["c.yaml:8:48", "providers.two.owner"],
        ["c.yaml:9:10", "providers.three.url"],
    ]


def test_an_unset_variable_is_one_problem_wherever_it_stands() -> None:
    text = "server: {port: '${A}'}\nusers: {a: {route: '${A}', keys: ['${A}', {key: '${A}'}]}}\n"
    text += (
        "providers: {p: {url: '${A}', owner: '${A}', share: ['${A}'], api_key: '${A}', models: ['${A}']}}\n"
    )
    found = problems(text)
    assert len(found) == 9
    assert all("the environment variable A is not set" in each for each in found)


def test_the_same_problem_is_reported_once() -> None:
    assert len(problems("log: {level: '${A}${A}'}")) == 1


def test_a_sensible_file_has_no_warnings() -> None:
    assert warnings(GOOD) == []


# --- Warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", ["c.yaml:1:1: providers: no providers", "c.yaml:1:1: users: no users"]),
        (
            "# hi\nusers:\nproviders:\n",
            ["c.yaml:2:7: users: no users", "c.yaml:3:11: providers: no providers"],
        ),
        (GOOD + "groups: {}", []),
        (
            GOOD.replace("keys", "route: any, keys").replace(f"['{HASH}']", "[]"),
            ["c.yaml:1:16: users.alice: this"],
        ),
        (
            GOOD.replace(HASH, "a-plain-key"),
            ["c.yaml:1:24: users.alice.keys[0]: the key stands in this file"],
        ),
        (
            GOOD.replace(f"'{HASH}'", "{key: a-plain-key}"),
            ["c.yaml:1:30: users.alice.keys[0].key: the key stands"],
        ),
        (
            GOOD.replace(HASH, "${NOPE:-a-plain-key}"),
            ["c.yaml:1:24: users.alice.keys[0]: the key stands in this"],
        ),
        (GOOD.replace(HASH, "${KEY}"), []),
        (
            GOOD.replace(f"'{HASH}'", f"{{hash: '{HASH}', expires: 2027-01-14}}"),
            ["c.yaml:1:115: users.alice.keys[0].expires: this key has expired"],
        ),
        (GOOD.replace(f"'{HASH}'", f"{{hash: '{HASH}', expires: 2027-01-15}}"), []),
        (
            GOOD.replace("providers: {", "providers: {a: {url: 'http://rig:8000/v1/'}, "),
            ["c.yaml:2:57: providers.rig.url: the same server with the same api_key as a"],
        ),
        (GOOD.replace("providers: {", "providers: {a: {url: 'http://rig:8000', api_key: x}, "), []),
        (
            GOOD.replace("{url", "{share: [alice], url"),
            ["c.yaml:2:26: providers.rig.share: without an `owner` the server belongs to everybody"],
        ),
        (GOOD.replace("{keys", "{admin: true, keys"), []),
        (GOOD.replace("{keys", "{limits: {parallel: 1}, keys"), []),
        (
            GOOD.replace("{keys", "{limits: {}, keys"),
            ["c.yaml:1:25: users.alice.limits: no limit is set here; write one of requests_per_minute, "],
        ),
        (
            GOOD.replace("{keys", "{limits: {parallel: }, keys"),
            ["c.yaml:1:25: users.alice.limits: no limit is set here"],
        ),
        (
            GOOD.replace(f"'{HASH}'", f"{{hash: '{HASH}', limits: }}"),
            ["c.yaml:1:114: users.alice.keys[0].limits: no limit is set here"],
        ),
        (
            GOOD.replace(
                f"'{HASH}'", f"{{hash: '{HASH}', limits: {{tokens_per_day: 2M, parallel: 3}}}}"
            ).replace("{keys", "{limits: {tokens_per_day: 1.5M, parallel: 3}, keys"),
            ["c.yaml:1:176: users.alice.keys[0].limits.tokens_per_day: this is more than the user may"],
        ),
        (GOOD + 'server: {cors: ["*"], trusted_proxies: [10.0.0.0/8], metrics_from: [0.0.0.0/0]}', []),
        (
            GOOD + 'server: {cors: [http://a, "*"]}',
            ['c.yaml:3:16: server.cors: with "*" every web page may call'],
        ),
        (
            GOOD + "server: {trusted_proxies: [10.0.0.1, '::/0']}",
            ["c.yaml:3:38: server.trusted_proxies[1]: this trusts everybody, so that anybody can claim"],
        ),
    ],
)
def test_what_is_doubtful_is_a_warning(text: str, expected: list[str]) -> None:
    found = warnings(text, KEY="from-the-environment")
    assert len(found) == len(expected)
    for each, beginning in zip(found, expected, strict=True):
        assert each.startswith(beginning)
        assert "a-plain-key" not in each


# --- Secrets --------------------------------------------------------------------------------------

SECRET = "hunter2-hunter2"


SETTINGS = """
    server.host server.port server.max_body server.drain_timeout server.extra_paths.0 users.a
    users.a.route users.a.keys users.a.keys.0 users.a.keys.0.name users.a.keys.0.hash users.a.keys.0.key
    users.a.keys.0.expires users.a.keys.0.models.0 groups.g.0 providers providers.p providers.p.url
    providers.p.owner providers.p.share.0 providers.p.api_key providers.p.headers providers.p.headers.A
    providers.p.weight providers.p.models.0 providers.p.timeouts.idle health health.fall log.level
    users.a.weight providers.p.slots providers.p.wake providers.p.wake.mac providers.p.wake.broadcast
    queue queue.size queue.timeout streams.keepalive affinity.headers affinity.headers.0
    server.base_path server.tls server.tls.cert server.tls.key server.cors server.cors.0
    server.trusted_proxies.0 server.metrics_from.0 users.a.admin users.a.limits users.a.limits.parallel
    users.a.keys.0.limits users.a.keys.0.limits.tokens_per_day
    log.requests log.requests_size log.requests_keep cluster cluster.name cluster.instances cluster.limits
""".split()


@pytest.mark.parametrize("steps", SETTINGS)
def test_no_message_shows_a_value_from_the_environment(steps: str) -> None:
    tree: Any = "${SECRET}"
    for step in reversed(steps.split(".")):
        tree = [tree] if step.isdigit() else {step: tree}
    assert SECRET not in "\n".join(problems(yaml.safe_dump(tree), SECRET=f"{SECRET} \n"))


@pytest.mark.parametrize("text", [FULL.replace("${RIG_KEY}", SECRET).replace("bobs-own-key", SECRET)])
def test_no_repr_shows_a_secret(text: str) -> None:
    made = loaded(text.replace("X-Extra: 1", f"X-Extra: {SECRET}"), CI_KEY=f"{SECRET}2")
    assert made.config.providers["rig"].headers["X-Extra"] == SECRET
    assert SECRET not in repr(made) + str(made) + str(made.config)


@pytest.mark.parametrize(
    "text",
    [
        "users: {a: {keys: [{key: 'hunter2 hunter2'}]}}",
        "users: {a: {keys: {hunter2-hunter2: x}}}",
        "users: {a: {keys: [{hunter2-hunter2: x}]}}",
        "users: {a: {keys: [{key: {hunter2: x}}]}}",
        "users: {a: hunter2-hunter2}",
        "providers: {a: {url: 'http://x:hunter2@a'}}",
        "providers: {a: {url: 'http://a', api_key: 'hunter2 '}}",
        "providers: {a: {url: 'http://a', api_key: [hunter2]}}",
        "providers: {a: {url: 'http://a', headers: {A: 'hunter2 '}}}",
        "providers: {a: {url: 'http://a', headers: {A: [hunter2]}}}",
        "providers: {a: {url: 'http://a', headers: hunter2}}",
    ],
)
def test_no_message_shows_a_secret_of_the_file(text: str) -> None:
    assert "hunter2" not in "\n".join(problems(text))


def test_an_error_of_a_model_itself_does_not_show_the_input() -> None:
    with pytest.raises(ValidationError) as caught:
        ProviderConfig(url="http://a", api_key="hunter2 hunter2")
    assert "hunter2" not in str(caught.value)


# --- From files and from Python -------------------------------------------------------------------


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    made = load(path, {}).config
    assert (made.users, made.providers) == (config(GOOD).users, config(GOOD).providers)


def test_relative_paths_count_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "etc"
    (folder / "tls").mkdir(parents=True)
    for name in ("tls/cert.pem", "key.pem"):
        (folder / name).touch()
    (folder / "config.yaml").write_text(
        GOOD + f"server: {{tls: {{cert: tls/cert.pem, key: '{folder / 'key.pem'}'}}}}\n"
    )
    made = load(Path("etc/config.yaml"), {}).config
    assert made.server.tls == TlsConfig(cert=str(folder / "tls/cert.pem"), key=str(folder / "key.pem"))
    assert made.log.requests == str(folder / "requests.jsonl")
    assert made.server.model_copy(update={"tls": None}) == ServerConfig()


def test_no_request_log_has_no_path(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + "log: {requests: none}\n")
    assert load(path, {}).config.log.requests is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.pem", "there is no such file; write its path, seen from the folder of this file"),
        ("certs", "this is not a file; write the path of one"),
        ("config.yaml/cert.pem", "the file cannot be read (Not a directory); let the user who runs the"),
        (
            "x" * 300,
            "the file cannot be read (File name too long); let the user who runs the gateway read it",
        ),
    ],
)
def test_a_certificate_that_cannot_be_read_is_a_problem_beside_all_others(
    tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "key.pem").touch()
    path = tmp_path / "config.yaml"
    path.write_text(f"server:\n  prot: 1\n  tls:\n    cert: ${{CERT}}\n    key: key.pem\n{GOOD}")
    with pytest.raises(ConfigError) as caught:
        load(path, {"CERT": name})
    unknown, unreadable = caught.value.problems
    assert unknown.path == "server.prot"
    assert str(unreadable).startswith(f"{path}:4:11: server.tls.cert: {why}")
    assert name not in unreadable.message


@pytest.mark.parametrize(
    ("spool", "words"), [("gone", "no such folder"), ("file", "no such folder"), ("'\\a'", "not the name")]
)
def test_a_spool_that_is_no_folder_is_a_problem(tmp_path: Path, spool: str, words: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "config.yaml"
    path.write_text(f"server: {{spool: {spool}}}\n".replace("'\\a'", '"\\a"'))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.column) == ("server.spool", 1, 17)
    assert words in problem.message


def test_a_spool_is_seen_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    path = tmp_path / "config.yaml"
    for written, seen in (("spool", str(tmp_path / "spool")), ("none", None)):
        path.write_text(f"server: {{spool: {written}}}\n")
        assert load(path, {}).config.server.spool == seen


@pytest.mark.parametrize("name", ["''", '"a\\0"', "certs/", "[a]", "", "${NOPE}"])
def test_the_name_of_a_certificate_that_is_none_is_one_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "cert.pem").touch()
    path = tmp_path / "config.yaml"
    path.write_text(f"{GOOD}server:\n  tls:\n    cert: cert.pem\n    key: {name}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert [problem.path for problem in caught.value.problems] == ["server.tls.key"]


def test_a_broken_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"config\.yaml:1:1: the file is not UTF-8") as caught:
        load(path, {})
    assert caught.value.problems[0].file == str(path)


@pytest.mark.parametrize("name", ["missing.yaml", "", "a\0b", "x" * 5000])
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read"):
        load(tmp_path / name, {})


def test_a_config_is_built_from_plain_values() -> None:
    made = build(
        {
            "server": {"port": 0, "drain_timeout": 0.5, "extra_paths": ("/v1/x",), "metrics_from": ["::1"]},
            "users": {
                "a": {
                    "admin": True,
                    "keys": ["a-plain-key", {"hash": HASH, "expires": None, "limits": {"parallel": 2}}],
                }
            },
            "log": {"requests": "r.jsonl"},
            "providers": {
                "p": {"url": "http://p", "share": ["a"], "models": None, "timeouts": {"idle": "2m"}}
            },
        }
    )
    assert (made.server.port, made.server.drain_timeout, made.server.extra_paths) == (0, 0.5, ("/v1/x",))
    assert [key.plain for key in made.users["a"].keys] == [True, False]
    assert [key.limits.parallel for key in made.users["a"].keys] == [None, 2]
    assert (made.users["a"].admin, made.log.requests) == (True, "r.jsonl")
    assert made.server.metrics_from == (ip_network("::1/128"),)
    assert made.providers["p"].timeouts.idle == 120.0
    assert build({}) == Config()


@pytest.mark.parametrize("port", [True, 1.5, "80", -1, None, [1], float("nan"), 2**70])
def test_a_wrong_plain_value_is_a_problem_without_a_position(port: object) -> None:
    with pytest.raises(ConfigError, match=r"^<built-in>: server\.port: "):
        build({"server": {"port": port}})


def test_plain_values_are_checked_for_meaning_too() -> None:
    with pytest.raises(ConfigError, match=r"^<built-in>: providers\.p\.owner: 'x' is not a user"):
        build({"providers": {"p": {"url": "http://p", "owner": "x"}}})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        config(GOOD).server.port = 1  # type: ignore[misc]


# --- Anything at all ------------------------------------------------------------------------------

TEXTS = f"alice everyone {HASH} http://a http://[ 10s 1h 5MB ${{A}} ${{B}} a-plain-key * any".split()
TEXTS += ["aa:bb:cc:dd:ee:ff", "10.0.0.255", "x-chat", "10.0.0.0/8", "::1", "none", "2M", "9" * 400, "/llm"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(max_size=8)
    | st.sampled_from(TEXTS)
)
WORDS = st.sampled_from(
    """
    server users groups providers health log keys url owner share models port alice bob hash key expires
    name route weight headers timeouts extra_paths [key] << 0 connect fall max_body host api_key
    Authorization queue streams affinity slots wake mac broadcast size timeout keepalive
    base_path tls cert cors trusted_proxies metrics_from admin limits parallel tokens_per_day requests
    requests_size requests_keep log
""".split()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


def assert_config_or_problems(text: str | bytes, environ: Mapping[str, str]) -> None:
    try:
        parse(text, file="c.yaml", environ=environ, now=NOW)
    except ConfigError as error:
        assert error.problems
        assert all(each.line >= 1 and each.column >= 1 and each.message for each in error.problems)
        assert len(str(error).splitlines()) == len(error.problems)


@given(TREES, st.text(max_size=8))
def test_any_yaml_is_a_config_or_problems(tree: object, value: str) -> None:
    assert_config_or_problems(yaml.safe_dump(tree), {"A": value})


@given(st.dictionaries(st.sampled_from(list(Config.model_fields)), TREES), st.text(max_size=8))
def test_any_yaml_with_the_right_sections_is_a_config_or_problems(tree: object, value: str) -> None:
    assert_config_or_problems(yaml.safe_dump(tree, allow_unicode=True), {"A": value})


@given(st.text() | st.binary())
def test_any_text_is_a_config_or_problems(text: str | bytes) -> None:
    assert_config_or_problems(text, {})


# --- The schema -----------------------------------------------------------------------------------


def test_the_schema_is_json_and_describes_every_setting() -> None:
    made = json.loads(json.dumps(schema()))
    models = [made, *made["$defs"].values()]
    settings = [setting for model in models for setting in model["properties"].values()]
    assert len(settings) > 30
    assert all(setting["description"] for setting in settings)
    assert all(model["additionalProperties"] is False for model in models)
