"""Writes docs/config.md, the reference of the config file, from its models: `scripts/reference`.

All of it comes from the JSON Schema that editors get, so the page says what the program reads. A test fails
where the page is not what this writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llmgateway.config.load import SECTIONS, schema

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "config.md"
HEAD: Final = """\
# Config reference

<!-- Made by scripts/reference from the models in llmgateway/config: change those, not this. -->

Every setting of `config.yaml`. [config.example.yaml](../config.example.yaml) explains them at length, in
their place; [Operation](operation.md#changing-the-config-while-it-runs) tells what happens when you save it.

Times are `500ms`, `10s`, `15m`, `2h`, `1d`, `1h30m` or a number of seconds; sizes `100MB`, `64KiB` or a
number of bytes. `${NAME}` is the environment variable of that name, `${NAME:-default}` has a default, and
`${file:PATH}` is what a file holds. In the headings `*` is a name of yours, or an entry of a list.
"""
VARIABLE: Final = r"\$\{"
WORDS: Final = {
    "string": "text",
    "boolean": "true or false",
    "integer": "number",
    "array": "list",
    "object": "mapping",
}
EXAMPLES: Final = {"10s": "time", "100MB": "size", "500k": "number"}
UNITS: Final = {
    "time": {"h": 3_600, "m": 60, "s": 1},
    "size": {"GB": 10**9, "MB": 10**6, "KiB": 1024},
}


def page() -> str:
    """The whole page."""
    root = schema()
    models = root["$defs"] | {"Config": root}
    parts = [HEAD]
    for place, model in SECTIONS:
        rule = models[model.__name__]
        title = f"`{'.'.join(place)}`" if place else "The file"
        parts.append(
            f"\n## {title}\n\n{rule['description']}\n\n| key | value | default | |\n|---|---|---|---|\n"
        )
        needed = rule.get("required", ())
        parts += (_row(name, each, needed=name in needed) for name, each in rule["properties"].items())
    return "".join(parts)


def _row(name: str, rule: dict[str, Any], *, needed: bool) -> str:
    kinds = tuple(dict.fromkeys(_kinds(rule)))
    default = "needed" if needed else _default(rule["default"], kinds[0])
    return f"| `{name}` | {' or '.join(kinds)} | {default} | {rule['description']} |\n"


def _kinds(rule: dict[str, Any]) -> Iterator[str]:
    """What may stand there, in words; that a variable may, and nothing at all, needs none."""
    for each in rule.get("anyOf", ()):
        yield from _kinds(each)
    if "enum" in rule:
        yield from (f"`{each}`" for each in rule["enum"])
    elif "$ref" in rule:
        yield "section"
    elif rule.get("type", "null") != "null" and rule.get("pattern") != VARIABLE:
        yield _kind(rule["type"], rule.get("examples", ()))


def _kind(named: str | list[str], examples: Sequence[object]) -> str:
    for example, kind in EXAMPLES.items():
        if example in examples:
            return kind
    return WORDS.get(named if isinstance(named, str) else named[0], "number")


def _default(value: Any, kind: str) -> str:
    """What holds where nothing is said; empty where the last column says it, or there is nothing to say."""
    if kind == "section" or value in (None, "", [], {}):
        return ""
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, list):
        return ", ".join(f"`{each}`" for each in value)
    if kind in UNITS:
        return f"`{_measured(value, UNITS[kind])}`"
    return f"`{value if isinstance(value, str) else f'{value:g}'}`"


def _measured(amount: float, units: Mapping[str, int]) -> str:
    """An amount in the largest unit that leaves it whole."""
    for unit, worth in units.items():
        if amount >= worth and amount % worth == 0:
            return f"{amount // worth:.0f}{unit}"
    return f"{amount:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
