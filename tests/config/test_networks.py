"""Networks that need no key: each address is one user's, and what is hardly meant is said."""

from __future__ import annotations

import pytest

from llmgateway.config.load import parse
from llmgateway.config.tree import ConfigError

RIG = "providers: {rig: {url: 'http://rig'}}\n"


def users(**networks: str) -> str:
    entries = (f"  {name}: {{from: {written}}}\n" for name, written in networks.items())
    return f"users:\n{''.join(entries)}{RIG}"


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="c.yaml", environ=environ)
    return str(caught.value).split("\n")


def warnings(text: str) -> list[str]:
    return [str(each) for each in parse(text, file="c.yaml", environ={}).warnings]


def test_the_networks_arrive() -> None:
    made = parse(users(a="[192.168.1.0/24, 10.0.0.7]", b="['fd00::/8']"), file="c.yaml", environ={})
    assert [str(each) for each in made.config.users["a"].networks] == ["192.168.1.0/24", "10.0.0.7/32"]
    assert not made.warnings, "somebody with networks needs no key"


@pytest.mark.parametrize(
    "networks",
    [
        {"a": "[192.168.1.0/24]", "b": "[192.168.2.0/24]"},
        {"a": "[0.0.0.0/0]", "b": "['::/0']"},
        {"a": "[10.0.0.0/8, 10.1.0.0/16, 10.0.0.0/8]"},
        {"a": "", "b": "[]"},
    ],
    ids=str,
)
def test_networks_apart_and_those_of_one_user_are_fine(networks: dict[str, str]) -> None:
    assert parse(users(**networks), file="c.yaml", environ={})


@pytest.mark.parametrize(
    ("networks", "place"),
    [
        ({"a": "[192.168.1.0/24]", "b": "[192.168.1.0/24]"}, "3:14: users.b.from[0]: "),
        ({"a": "[192.168.1.7]", "b": "[10.0.0.1, 192.168.0.0/16]"}, "3:24: users.b.from[1]: "),
        ({"a": "[192.168.0.0/16]", "b": "[192.168.1.7]"}, "3:14: users.b.from[0]: "),
        ({"a": "[10.0.0.0/8, 10.1.0.0/16]", "b": "[10.1.0.0/24]"}, "3:14: users.b.from[0]: "),
        ({"a": "['fd00::/8']", "b": "['fd00::1']"}, "3:14: users.b.from[0]: "),
        ({"a": "[10.0.0.0/8]", "b": "['::ffff:10.1.0.0/112']"}, "3:14: users.b.from[0]: "),
    ],
    ids=str,
)
def test_an_address_of_two_users_is_a_problem_of_the_file(networks: dict[str, str], place: str) -> None:
    (problem,) = problems(users(**networks))
    assert place in problem
    assert "an address in it is users.a.from[" in problem and "each can be one user's only" in problem


def test_all_of_them_are_told_at_once() -> None:
    found = problems(users(a="[10.0.0.0/8, 192.168.1.300, x]", b="[10.1.0.0/16, 10.1.2.0/24]", c="10.3.0.1"))
    assert [each.split(": ")[1] for each in found] == [
        "users.a.from[1]", "users.a.from[2]", "users.b.from[0]", "users.b.from[1]", "users.c.from",
    ]  # fmt: skip


@pytest.mark.parametrize("network", ["0.0.0.0/0", "'::/0'"])
def test_everybody_is_warned_of(network: str) -> None:
    (warning,) = warnings(users(a=f"[10.0.0.1, {network}]"))
    assert "users.a.from[1]: this takes everybody" in warning


def test_a_path_that_is_there_with_ollamas_api_need_not_be_written() -> None:
    server = "server: {ollama_api: %s, extra_paths: [/api/chat, /api/pull, /api/mine]}\n"
    found = warnings(server % "true" + users(a="[10.0.0.1]"))
    assert [each.split(": ")[1] for each in found] == ["server.extra_paths[0]", "server.extra_paths[1]"]
    assert warnings(server % "false" + users(a="[10.0.0.1]")) == []


def test_what_comes_from_the_environment_is_not_shown() -> None:
    found = problems(users(a="['${NET}']", b="['${NET}']"), NET="10.9.8.0/24")
    assert "10.9.8" not in str(found) and len(found) == 1
