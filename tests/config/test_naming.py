"""What models are called across the file: each name that cannot work is told, with its place and a remedy."""

from __future__ import annotations

import pytest

from llmgateway.config.load import parse
from llmgateway.config.settings import Config
from llmgateway.config.tree import ConfigError

ASKED = "providers: {rig: {url: 'http://rig'}}\n"
LISTED = "providers: {rig: {url: 'http://rig', models: [qwen-4b, qwen-8b, 'm:latest']}}\n"


def config(text: str, **environ: str) -> Config:
    return parse(text, file="c.yaml", environ=environ).config


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text, **environ)
    return str(caught.value).split("\n")


def models(text: str) -> str:
    return f"providers: {{rig: {{url: 'http://rig', models: {text}}}}}"


def rename(text: str, more: str = "") -> str:
    return f"providers: {{rig: {{url: 'http://rig', rename: {text}{more}}}}}"


def test_names_arrive_as_the_contract_has_them() -> None:
    made = config("""
providers:
  desk: {url: http://desk, models: [qwen3-8b, {name: qwen, as: "Qwen/Qwen3-8B-GGUF:Q4_K_M"}, 1.5]}
  mini: {url: http://mini, rename: {"qwen3:8b": qwen}}
aliases: {gpt-4o-mini: qwen, fast: [qwen-4b, qwen]}
fallbacks: {qwen-32b: [qwen-8b]}
""")
    told = {"qwen3-8b": "qwen3-8b", "qwen": "Qwen/Qwen3-8B-GGUF:Q4_K_M", "1.5": "1.5"}
    assert made.providers["desk"].listed == told
    assert (made.providers["mini"].listed, made.providers["mini"].rename) == (None, {"qwen3:8b": "qwen"})
    assert made.aliases == {"gpt-4o-mini": ("qwen",), "fast": ("qwen-4b", "qwen")}
    assert made.fallbacks == {"qwen-32b": ("qwen-8b",)}
    assert (config(ASKED).aliases, config(ASKED).fallbacks) == ({}, {})


def test_what_is_listed_and_renamed_is_called_as_it_is_renamed() -> None:
    made = config(rename("{a: b}", ", models: [a, {name: c, as: a}, {name: a, as: x}]"))
    assert made.providers["rig"].listed == {"b": "a", "c": "a", "a": "x"}


@pytest.mark.parametrize(
    "text",
    [
        ASKED + "aliases: {a: b, c: [d, e]}\nfallbacks: {x: [y, z], z: y}",  # any name may be a model's
        LISTED + "aliases: {gpt: qwen-8b, fast: [qwen-4b, qwen-8b], short: m}",
        LISTED + "aliases: {qwen-8b: qwen-4b, gpt: qwen-8b}",  # a real model of the name goes first
        LISTED + "fallbacks: {qwen-8b: [qwen-4b, m]}",
        rename("{'a:1': a, 'b:1': b}"),
        rename("{a: b}") + "\naliases: {c: b}",
        "aliases:\nfallbacks:\n" + rename(""),
    ],
)
def test_what_can_work_is_no_problem(text: str) -> None:
    config(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (models("[a, a]"), "c.yaml:1:50: providers.rig.models[1]: 'a' stands here twice; keep one"),
        (
            models("[a, {name: a, as: b}]"),
            "c.yaml:1:57: providers.rig.models[1].name: 'a' stands here twice; keep one, or give it another",
        ),
        (models("[{name: a}]"), "c.yaml:1:47: providers.rig.models[0].as: `as` is missing"),
        (models("[{as: a}]"), "c.yaml:1:47: providers.rig.models[0].name: `name` is missing"),
        (models("[{name: a, told_as: b, as: c}]"), "c.yaml:1:57: providers.rig.models[0].told_as: unknown"),
        (models("[{name: a, ass: b, as: c}]"), "models[0].ass: unknown key; did you mean `as`?"),
        (models("[{name: ' a', as: b}]"), "models[0].name: ' a' is not a model name"),
        (models("[{name: a, as: ''}]"), "models[0].as: '' is not a model name"),
        (models("[{name: [a], as: b}]"), "models[0].name: a single value belongs here"),
        (models("[[a]]"), "models[0]: a mapping belongs here"),
        (rename("[a]"), "c.yaml:1:46: providers.rig.rename: a mapping belongs here"),
        (rename("{a: }"), "c.yaml:1:50: providers.rig.rename.a: nothing stands here"),
        (rename("{a: b, b: c}"), "c.yaml:1:50: providers.rig.rename.a: 'b' is renamed itself; a name can"),
        (rename("{a: a}"), "c.yaml:1:50: providers.rig.rename.a: 'a' is its name already"),
        (rename("{a: c, b: c}"), "c.yaml:1:56: providers.rig.rename.b: 'c' is what 'a' is called already"),
        (
            rename("{a: b}", ", models: [c]"),
            "c.yaml:1:47: providers.rig.rename.a: `models` does not list it, so this renames nothing",
        ),
        (rename("{a: b}", ", models: [a, b]"), "rename.a: 'b' stands under `models` as well"),
        (rename("{x: b}", ", models: [{name: a, as: x}]"), "rename.x: `models` does not list it"),
        (ASKED + "aliases: {a: a}", "c.yaml:2:14: aliases.a: an alias cannot stand for itself"),
        (ASKED + "aliases: {a: [b, a]}", "c.yaml:2:18: aliases.a[1]: an alias cannot stand for itself"),
        (
            ASKED + "aliases: {a: b, b: c}",
            "c.yaml:2:14: aliases.a: 'b' is an alias, and aliases do not chain",
        ),
        (ASKED + "aliases: {a: []}", "c.yaml:2:14: aliases.a: an empty list names no model"),
        (ASKED + "aliases: {a: }", "aliases.a[0]: nothing stands here"),
        (ASKED + "aliases: {a: [b, b]}", "c.yaml:2:18: aliases.a[1]: 'b' stands here twice"),
        (ASKED + "aliases: {' a': b}", "c.yaml:2:11: aliases. a: ' a' is not a model name"),
        (
            LISTED + "aliases: {a: qwen-9b}",
            "c.yaml:2:14: aliases.a: 'qwen-9b' is no model of any provider, and each has a list",
        ),
        (LISTED + "aliases: {a: [qwen-8b, zzz]}", "c.yaml:2:24: aliases.a[1]: 'zzz' is no model of any"),
        ("aliases: {a: b}", "c.yaml:1:14: aliases.a: 'b' is no model of any provider"),
        (
            rename("{qwen-4b: small}", ", models: [qwen-4b]") + "\naliases: {a: qwen-4b}",
            "c.yaml:2:14: aliases.a: 'qwen-4b' is no model of any provider",
        ),
        (ASKED + "fallbacks: {a: [a]}", "c.yaml:2:17: fallbacks.a[0]: a model cannot take its own place"),
        (ASKED + "fallbacks: {a: []}", "c.yaml:2:16: fallbacks.a: an empty list names no model"),
        (LISTED + "fallbacks: {qwen-8b: x}", "c.yaml:2:22: fallbacks.qwen-8b: 'x' is no model of any"),
        (
            ASKED + "aliases: {gpt: a}\nfallbacks: {gpt: b}",
            "c.yaml:3:13: fallbacks.gpt: 'gpt' is an alias, for which this never counts",
        ),
        (ASKED + "aliases: {gpt: a}\nfallbacks: {a: [b, gpt]}", "fallbacks.a[1]: 'gpt' is an alias"),
    ],
)
def test_what_cannot_work_is_told_with_its_place(text: str, told: str) -> None:
    (only,) = problems(text)
    assert told in only
    assert only.startswith("c.yaml:")


def test_a_loop_is_told_at_each_of_its_places() -> None:
    first, second = problems(ASKED + "aliases:\n  a: b\n  b: [c, a]\n")
    assert first.startswith("c.yaml:3:6: aliases.a: this leads in a loop, a -> b -> a; write the name of a ")
    assert second.startswith("c.yaml:4:10: aliases.b[1]: this leads in a loop, b -> a -> b; ")


def test_a_name_that_is_both_sides_of_a_rename_is_told_also_where_two_are_swapped() -> None:
    assert len(problems(rename("{a: b, b: a}"))) == 2


def test_all_of_it_is_told_at_once_beside_mistakes_of_shape() -> None:
    found = problems(
        "providers: {rig: {url: 'http://rig', models: [a, a], rename: {x: y}, slots: many}}\n"
        "aliases: {b: b, c: zzz}\nfallbacks: {a: a}\nservr: {}\n"
    )
    assert len(found) == 7


def test_a_list_that_is_none_hides_no_more_than_itself() -> None:
    (only,) = problems(models("qwen") + "\naliases: {a: b}")
    assert "providers.rig.models: a list belongs here" in only


def test_no_name_from_the_environment_is_shown() -> None:
    told = "\n".join(problems(LISTED + "aliases: {a: '${SECRET}'}", SECRET="qwen-8c"))
    assert "qwen-8c" not in told and "this value is no model" in told


def test_a_long_chain_of_names_takes_no_long_time() -> None:
    chain = ", ".join(f"a{i}: a{i + 1}" for i in range(300))
    assert len(problems(ASKED + f"aliases: {{{chain}, a300: a0}}")) == 301


def test_two_models_can_take_each_others_place_as_fallbacks_do_not_chain() -> None:
    loaded = parse(LISTED + "fallbacks: {qwen-8b: qwen-4b, qwen-4b: qwen-8b}", file="c.yaml", environ={})
    assert not any("fallbacks" in str(each) for each in loaded.warnings)


def test_a_fallback_for_what_no_provider_lists_is_doubtful_only() -> None:
    loaded = parse(LISTED + "fallbacks: {qwen-9b: qwen-8b}", file="c.yaml", environ={})
    assert loaded.config.fallbacks == {"qwen-9b": ("qwen-8b",)}
    assert any("fallbacks.qwen-9b: 'qwen-9b' is no model" in str(each) for each in loaded.warnings)


def test_a_key_for_an_alias_is_doubtful_as_that_opens_nothing() -> None:
    user = "users: {bob: {keys: [{hash: 'sha256:%s', models: [gpt, 'q*', qwen-8b]}]}}\n" % ("ab" * 32)
    aliases = "aliases: {gpt: [qwen-8b, qwen-4b], qwen-8b: qwen-4b}"
    (only,) = parse(user + LISTED + aliases, file="c.yaml", environ={}).warnings
    assert str(only).startswith("c.yaml:1:")
    assert "users.bob.keys[0].models[0]: this is an alias, which opens nothing; write what" in str(only)
    assert str(only).endswith("stands for: qwen-8b, qwen-4b")


def test_an_alias_that_looks_like_a_pattern_is_doubtful() -> None:
    user = "users: {bob: {keys: ['sha256:%s']}}\n" % ("ab" * 32)
    (only,) = parse(user + ASKED + "aliases: {'gpt-*': a, b: c}", file="c.yaml", environ={}).warnings
    assert str(only).startswith("c.yaml:3:20: aliases.gpt-*: an alias is no pattern")
