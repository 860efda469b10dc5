"""Keys that stand in files: `${file:...}` wherever a value stands, and a provider's `api_key_file`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llmgateway.config import files
from llmgateway.config.load import Loaded, load
from llmgateway.config.tree import ConfigError

SECRET = "sk-secret-0123456789abcdefghijklmnopqrstuvwxyz"
USERS = "users: {alice: {keys: [{key: '${file:user_key}'}]}}"
PROVIDERS = "providers: {rig: {url: 'http://h/v1', api_key_file: rig_key}}"


def read(folder: Path, text: str, **beside: str | bytes) -> Loaded:
    for name, content in beside.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / name).chmod(0o600)
    config = folder / "config.yaml"
    config.write_text(text)
    return load(config, {})


def problems(folder: Path, text: str, **beside: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **beside)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_key_of_a_user_may_stand_in_a_file(tmp_path: Path, end: str) -> None:
    loaded = read(tmp_path, f"{USERS}\n{PROVIDERS}", user_key=SECRET + end, rig_key="up" + end)
    (key,) = loaded.config.users["alice"].keys
    assert key.digest == hashlib.sha256(SECRET.encode()).digest()
    assert not loaded.warnings, "it does not stand in the config"
    assert loaded.config.providers["rig"].api_key == "up"


def test_a_full_path_is_as_good_and_a_part_of_a_value_too(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("desk\n")
    text = f"providers: {{rig: {{url: 'http://${{file:{tmp_path}/name}}.lan/v1'}}}}"
    assert read(tmp_path, text).config.providers["rig"].url == "http://desk.lan/v1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        ("\n", "the file is empty"),
        (b"\xff\xfe", "not text"),
        ("x" * 70_000, "too large"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_place_and_without_its_content(
    tmp_path: Path, content: str | bytes | None, words: str
) -> None:
    beside = {} if content is None else {"user_key": content, "rig_key": content}
    told = problems(tmp_path, f"{USERS}\n{PROVIDERS}", **beside)
    assert [problem.split(": ")[:2] for problem in told] == [
        ["config.yaml:1:30", "users.alice.keys[0].key"],
        ["config.yaml:2:53", "providers.rig.api_key_file"],
    ]
    assert all(words in problem for problem in told)
    assert "xxxx" not in "".join(told)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rig_key").mkdir()
    (told,) = problems(tmp_path, PROVIDERS)
    assert "this is not a file" in told


def test_a_key_and_the_file_of_a_key_are_one_too_many(tmp_path: Path) -> None:
    text = "providers:\n  rig:\n    url: http://h/v1\n    api_key: a\n    api_key_file: rig_key"
    (told,) = problems(tmp_path, text, rig_key="b")
    assert told.startswith("config.yaml:5:19: providers.rig.api_key_file: ") and "not both" in told


def test_a_key_in_a_file_that_no_header_can_carry_is_told_where_the_file_is_named(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, PROVIDERS, rig_key="a\x01b")
    assert "a\x01b" not in told and told.startswith("config.yaml:1:53: providers.rig.api_key")


# What others can read.

PLAIN_KEY = f"users: {{alice: {{keys: [{SECRET}]}}}}"
HASHED = f"users: {{alice: {{keys: ['sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}']}}}}"


def told(folder: Path, text: str, mode: int, *, others: int = 0o600) -> list[str]:
    """The warnings about who can read a config of this mode, and files beside it of another."""
    for name in ("user_key", "rig_key"):
        (folder / name).write_text(SECRET)
        (folder / name).chmod(others)
    config = folder / "config.yaml"
    config.write_text(text)
    config.chmod(mode)
    warnings = [str(each).removeprefix(f"{folder}/") for each in load(config, {"NAME": SECRET}).warnings]
    assert SECRET not in "".join(warnings)
    return [each for each in warnings if "other users of this machine" in each]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (PLAIN_KEY, "1:24: users.alice.keys[0]"),
        (f"users: {{a: {{keys: [{{name: x, key: {SECRET}}}]}}}}", "1:20: users.a.keys[0]"),
        ("providers: {rig: {url: 'http://h', api_key: abcd}}", "1:45: providers.rig.api_key"),
        ("providers: {rig: {url: 'http://h', headers: {X-Token: abcd}}}", "providers.rig.headers.X-Token"),
        ("providers: {rig: {url: 'http://h', proxy: 'socks5://a:b@h:1'}}", "providers.rig.proxy"),
        ("cluster: {limits: 'redis://:abcd@h'}", "cluster.limits"),
    ],
)
def test_a_secret_in_a_config_that_others_can_read_is_told_in_one_line_with_what_to_do(
    tmp_path: Path, text: str, path: str
) -> None:
    (line,) = told(tmp_path, text, 0o644)
    assert path in line and "chmod 600" in line and "\n" not in line
    assert told(tmp_path, text, 0o600) == told(tmp_path, text, 0o711) == []


def test_of_many_secrets_in_a_config_the_first_is_told(tmp_path: Path) -> None:
    both = "providers: {a: {url: 'http://a', api_key: abcd}, b: {url: 'http://b', api_key: abcd}}"
    assert len(told(tmp_path, f"{PLAIN_KEY}\n{both}", 0o644)) == 1


@pytest.mark.parametrize(
    "text",
    [
        HASHED,
        "users: {a: {keys: ['${NAME}']}}",
        "providers: {rig: {url: 'http://h', api_key: '${NAME}', headers: {X-Title: home, X-Key: '${NAME}'}}}",
        "providers: {rig: {url: 'http://h', proxy: 'socks5://h:1'}}",
        "cluster: {limits: 'redis://h'}",
        "cluster: {limits: 'redis://:${NAME}@h'}",
        "{}",
    ],
)
def test_a_config_without_a_secret_may_be_read_by_everybody(tmp_path: Path, text: str) -> None:
    assert told(tmp_path, text, 0o644) == []


def test_a_file_of_a_secret_that_others_can_read_is_told_where_it_is_named(tmp_path: Path) -> None:
    text = f"{USERS}\n{PROVIDERS}"
    lines = told(tmp_path, text, 0o644, others=0o644)
    assert [line.rpartition(": other users")[0] for line in lines] == [
        "config.yaml:1:30: users.alice.keys[0].key",
        "config.yaml:2:53: providers.rig.api_key_file",
    ]
    assert told(tmp_path, text, 0o644, others=0o400) == []


def test_a_file_that_stands_for_no_secret_may_be_read_by_everybody(tmp_path: Path) -> None:
    text = "providers: {rig: {url: 'http://${file:user_key}'}}"
    assert told(tmp_path, text, 0o644, others=0o644) == []


@pytest.mark.parametrize(
    ("mode", "owner", "user", "is_open"),
    [
        (0o100600, 7, 7, False),
        (0o100640, 7, 7, True),
        (0o100640, 0, 7, False),  # as contrib/llmgateway.service has it
        (0o100640, 0, 0, False),  # root looks at what is for the gateway
        (0o100644, 0, 7, True),
        (0o100604, 0, 0, True),
        (0o100611, 7, 7, False),
        (0o010644, 7, 7, False),  # a pipe
    ],
)
def test_a_group_may_read_what_is_not_the_gateways_own(
    mode: int, owner: int, user: int, is_open: bool
) -> None:
    assert files.is_open(os.stat_result((mode, 0, 0, 1, owner, 5, 0, 0, 0, 0)), to=user) is is_open
