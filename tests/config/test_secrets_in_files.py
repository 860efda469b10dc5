"""Keys that stand in files: `${file:...}` wherever a value stands, and a provider's `api_key_file`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llmgateway.config.load import Loaded, load
from llmgateway.config.tree import ConfigError

SECRET = "sk-secret-0123456789abcdefghijklmnopqrstuvwxyz"
USERS = "users: {alice: {keys: [{key: '${file:user_key}'}]}}"
PROVIDERS = "providers: {rig: {url: 'http://h/v1', api_key_file: rig_key}}"


def read(folder: Path, text: str, **files: str | bytes) -> Loaded:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = folder / "config.yaml"
    config.write_text(text)
    return load(config, {})


def problems(folder: Path, text: str, **files: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **files)
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
    files = {} if content is None else {"user_key": content, "rig_key": content}
    told = problems(tmp_path, f"{USERS}\n{PROVIDERS}", **files)
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
